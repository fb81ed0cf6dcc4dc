"""Plans against measured steps: `gatelab.train.planner` and `MEASURED`, as a Markdown table; nothing is timed here."""

from gatelab.train.planner import plan_step
from gatelab.train.planner.measured import MEASURED

HEADING = "| GPU | mesh | model | tokens a step | context | attention | GiB, measured | planned | ms, measured | planned | sets |"


def main() -> None:
    """A row a measured step; planned with its share of what was measured."""
    print(f"{HEADING}\n|{'---|' * 11}")
    for m in MEASURED:
        plan = plan_step(m.job, m.mesh, device=m.device, micro_batch=m.micro_batch)
        gib, ms = plan.memory.total / 2**30, 1e3 * plan.seconds.total
        mesh = "" if m.mesh.gpus == 1 else m.mesh
        cells = (
            plan.device.name, mesh, m.name, f"{m.tokens:,}", f"{m.context:,}", m.attention, m.gib,
            f"{gib:.1f} ({gib / m.gib:.2f})", m.ms, f"{ms:.1f} ({ms / m.ms:.2f})", m.sets,
        )  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
