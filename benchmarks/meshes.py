"""One model on one GPU and on two: tokens a second a GPU, memory, and the losses of the same batches.

    python benchmarks/meshes.py --size 1b --context 4096 --sequences 8 --out meshes.json

Every arm is a run of the trainer in processes of its own, on GPUs that nothing else uses: `one` is a captured and compiled step,
`dp` the same weights on two GPUs, `zero2` and `zero3` share them out (FSDP2), `tp` shares each layer. A GPU of `dp`, `zero2`
and `zero3` sees as many sequences a step as that of `one`; the two of `tp` see together twice as many. `ep` shares the experts
of a mixture (`--size moe-480m`), `ep zero3` all else too. `one x2` is one GPU with two such batches a step, for its losses. Data
are random tokens, losses those of the first steps. On a CPU gloo's ranks show that it runs; its times mean nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from gatelab.bench.plan import TrainPlan, size
from gatelab.bench.train import _arm, _random_tokens
from gatelab.config.parallel import ParallelConfig
from gatelab.config.run import Execution, Run, TrainConfig
from gatelab.train.cost import model_flops_per_token
from gatelab.train.group import Group
from gatelab.train.loop import train

PEAK = 989e12


@dataclass(frozen=True)
class Arm:
    """`batches`: of one GPU's sequences a step; those of a micro-batch are one GPU's."""

    name: str
    processes: int
    batches: int
    parallel: dict[str, int | str]
    is_timed: bool = True

    @property
    def needs_experts(self) -> bool:
        """Whether it is no mesh of a model without experts."""
        return "ep" in self.parallel


ARMS = (
    Arm("one", 1, 1, {}),
    Arm("one x2", 1, 2, {}, is_timed=False),
    Arm("dp", 2, 2, {}),
    Arm("zero2", 2, 2, {"shard": "zero2"}),
    Arm("zero3", 2, 2, {"shard": "zero3"}),
    Arm("tp", 2, 2, {"tp": 2}),
    Arm("ep", 2, 2, {"ep": 2}),
    Arm("ep zero3", 2, 2, {"ep": 2, "shard": "zero3"}),
)


def rank(args: argparse.Namespace, arm: Arm) -> None:
    """One process of an arm; the first writes what it saw."""
    torch.set_num_threads(1)
    plan = TrainPlan(
        device=args.device, sizes=args.size, context=args.context, tokens=args.context, steps=1, gates=args.gate
    )
    model = _arm(plan, plan.sizes[0], args.gate, 1).model
    training = TrainConfig(
        tokens=args.context * args.sequences * arm.batches * 10**6,
        batch_size=args.sequences * arm.batches,
        seq_len=args.context,
    )
    run = Run(model=model, train=training)
    data = _random_tokens(model.vocab_size - run.resolved_objective.extra_ids(args.context))
    execution = Execution(
        device=args.device, micro_batch=args.sequences, processes=arm.processes, parallel=ParallelConfig(**arm.parallel)
    )
    began = time.perf_counter()
    group = Group([run.model_copy(update={"data": data})], execution)
    steps, losses, times = train(group), [], []
    for _ in range(args.first):
        losses.append(next(steps).loss[0])
    ready = time.perf_counter() - began
    until = time.perf_counter() + (args.seconds if arm.is_timed else 0.0)
    is_over = not arm.is_timed
    while not is_over:
        began = time.perf_counter()
        next(steps)
        times.append(time.perf_counter() - began)
        # All ranks end together.
        is_over = group.ranks.any_says(time.perf_counter() > until)
    if not group.ranks.is_writer:
        return
    cuda = group.device.type == "cuda"
    record = asdict(arm) | {
        "losses": losses, "seconds": times, "ready_s": ready, "tokens": training.tokens_per_step,
        "flops_per_token": model_flops_per_token(model, args.context), "facts": group.facts(),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        "n_parameters": sum(p.numel() for p in group.members[0].model.parameters()),
    }  # fmt: skip
    Path(args.rank_out).write_text(json.dumps(record))


def carry_out(args: argparse.Namespace, arm: Arm, folder: Path) -> dict:
    """Start an arm's processes and wait; what failed is a record that says so."""
    out, log = folder / f"{arm.name}.json", folder / f"{arm.name}.log"
    meeting = folder / f"{arm.name}.meeting"
    own = [sys.executable, "-P", "-W", "ignore", __file__, *sys.argv[1:], "--arm", arm.name, "--rank-out", str(out)]
    with log.open("w") as told:
        ranks = []
        for n in range(arm.processes):
            environ = os.environ | {
                "RANK": str(n), "LOCAL_RANK": str(n), "WORLD_SIZE": str(arm.processes), "OMP_NUM_THREADS": "1",
                "GATELAB_MEETING": f"file://{meeting}",
            }  # fmt: skip
            ranks.append(subprocess.Popen(own, env=environ, stdout=told, stderr=told))
        until = time.monotonic() + args.limit
        while any(r.poll() is None for r in ranks) and not any(r.poll() for r in ranks) and time.monotonic() < until:
            time.sleep(0.1)
        for r in ranks:
            if r.poll() is None:
                r.kill()
            r.wait()
    if not out.exists():
        return asdict(arm) | {"error": log.read_text()[-1500:]}
    return json.loads(out.read_text())


def row(found: dict, base: float | None) -> str:
    """A line of the table."""
    if "error" in found:
        return f"{found['name']:<8} {found['error']}"
    losses = " ".join(f"{loss:.5f}" for loss in found["losses"])
    if not found["seconds"]:
        return f"{found['name']:<8} {'':>60} {losses}"
    x = sorted(found["seconds"])
    median = statistics.median(x)
    rate = found["tokens"] / median / found["processes"]
    share = "" if base is None else f"{rate / base:6.3f}"
    mfu = rate * found["flops_per_token"] / PEAK
    peak = "" if found["peak_gib"] is None else f"{found['peak_gib']:6.1f}"
    spread = f"{1e3 * median:8.1f} ({1e3 * x[0]:.1f} to {1e3 * x[int(0.9 * len(x))]:.1f})"
    return f"{found['name']:<8} {spread:<28} {rate:9.0f} {share:>6} {mfu:6.1%} {peak:>6} {len(x):>4}  {losses}"


def main() -> None:
    """All arms, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="1b")
    parser.add_argument("--gate", default="none")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--sequences", type=int, default=8, help="a GPU and step")
    parser.add_argument("--seconds", type=float, default=8.0, help="that an arm is timed")
    parser.add_argument("--first", type=int, default=6, help="steps before that, whose losses are kept")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds that an arm may take in all")
    parser.add_argument("--arms", help=f"some of {', '.join(arm.name for arm in ARMS)}; else all that the size has")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--rank-out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    by_name = {arm.name: arm for arm in ARMS}
    if args.arm is not None:
        rank(args, by_name[args.arm])
        return
    has_experts = size(args.size).moe is not None
    taken = args.arms.split(",") if args.arms else [a.name for a in ARMS if has_experts or not a.needs_experts]
    unknown = [name for name in taken if name not in by_name]
    if unknown:
        parser.error(f"--arms {unknown[0]}: take some of {', '.join(by_name)}")
    if not has_experts and any(by_name[name].needs_experts for name in taken):
        parser.error(
            f"--size {args.size} has no experts to share; take one that has, such as moe-480m, or leave ep out"
        )
    where = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(
        f"{args.size}, gate {args.gate}, {where}, torch {torch.__version__}, {args.sequences} x {args.context} tokens a GPU"
    )
    print("arm      ms a step, median (least to 90%)  tokens/s a GPU  of one   MFU   GiB  steps  losses")
    found, base = [], None
    with tempfile.TemporaryDirectory() as place:
        for name in taken:
            record = carry_out(args, by_name[name], Path(place))
            found.append(record)
            print(row(record, base), flush=True)
            if name == "one" and record.get("seconds"):
                base = record["tokens"] / statistics.median(record["seconds"])
            if args.out is not None:
                args.out.write_text(
                    json.dumps({"device": where, "torch": torch.__version__, "arms": found}, indent=1) + "\n"
                )


if __name__ == "__main__":
    main()
