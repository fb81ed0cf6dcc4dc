"""The tables of `gatelab plan` on GPUs: memory, what is sent, and speed with how far it can be trusted."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..train.planner import Spread, StepPlan

# With experts, on several GPUs.
_KINDS = {
    (False, False): "Timed steps without experts on one GPU",
    (True, False): "Timed steps with experts on one GPU",
    (False, True): "Timed steps without experts on two H200s",
    (True, True): "Timed steps with experts on two H200s",
}


def show(name: str, plans: "list[StepPlan]") -> None:
    """Print the plans of one job."""
    from ..models.sizes import count_active, count_parameters
    from ..terminal import print_records
    from ..train.planner import spread_of
    from .base import short_count

    first, spreads = plans[0], [spread_of(p) for p in plans]
    job, d = first.job, first.device
    weights = short_count(count_parameters(job.model))
    active = f", {short_count(count_active(job.model))} active" if job.model.moe else ""
    print(
        f"{name}: {weights} weights{active}; a step of {job.tokens:,} tokens in sequences of {job.context:,}; {d.name}"
    )
    print_records([_memory_row(p) for p in plans], f"\nGiB of a GPU at its peak, of {d.memory / 2**30:.0f}")
    print("micro-batch: sequences of a group of tp GPUs in a forward pass")
    if any(p.recompute for p in plans):
        print(
            "again: blocks are computed a second time in the backward pass; a run is told so by execution.recompute=layer"
        )
    print_records(
        [_sent_row(s) for s in spreads], "\nGB that a GPU sends in a step, by kind, and seconds of it by the plan"
    )
    print(
        "open: communication with nothing beside it. Gathers and scatters of weights hide behind the blocks, what tp and ep send"
    )
    print("does not; one by one: the step with nothing hidden. A GPU sends at its links' stated rates.")
    print_records(
        [_speed_row(s) for s in spreads],
        "\nSpeed: as planned, and down to what it is were the plan as far off as the worst timed step",
    )
    print("\n".join(_trusted(spreads)))
    if not d.is_measured:
        print(f"{d.name}: rates are stated ones, at an H100's share of its own stated ones; none was measured")


def _memory_row(p: "StepPlan") -> dict[str, Any]:
    return (
        {"GPUs": p.mesh.gpus, "mesh": str(p.mesh), "micro-batch": p.micro_batch}
        | ({"again": "yes"} if p.recompute else {})
        | {name: _short(value / 2**30) for name, value in asdict(p.memory).items()}
        | {"all": _short(p.memory.total / 2**30), "fits": "yes" if p.fits else "NO"}
    )


def _sent_row(s: "Spread") -> dict[str, Any]:
    p = s.plan
    return (
        {"GPUs": p.mesh.gpus}
        | {kind: _short(sent / 1e9) for kind, sent in p.traffic.items()}
        | {"computing": s.digits(p.seconds.computing), "open": s.digits(p.seconds.exposed)}
        | {"one by one": s.digits(p.seconds.one_by_one)}
    )


def _speed_row(s: "Spread") -> dict[str, Any]:
    def ends(low: float, high: float) -> str:
        return f"{s.digits(low):,.6g} to {s.digits(high):,.6g}"

    return {
        "GPUs": s.plan.mesh.gpus,
        "mesh": str(s.plan.mesh),
        "s a step": ends(*s.seconds),
        "thousand tokens/s": ends(*(n / 1e3 for n in s.tokens_per_s)),
        "MFU %": ends(*(100 * x for x in s.mfu)),
        "such a mesh": "timed" if s.is_timed else "not timed",
    }


def _trusted(spreads: "list[Spread]") -> list[str]:
    """What ranges and marks are by, of the kinds of steps that are shown."""
    from ..train.planner import shares

    shown = {(s.plan.job.model.moe is not None, s.plan.mesh.gpus > 1) for s in spreads}
    lines = [
        f"{_KINDS[kind]} were planned at {of.time[0]:.2f} to {of.time[1]:.2f} of their time and {of.memory[0]:.2f} to "
        f"{of.memory[1]:.2f} of their memory."
        + (" Above 1 a step was faster than its plan, and than its range." if of.time[1] > 1 else "")
        for kind, of in shares().items()
        if kind in shown
    ]
    if any(not s.is_timed for s in spreads):
        lines.append(
            f"not timed: no step on such a mesh of {spreads[0].plan.device.name}s was, nor any on more than two GPUs."
        )
    return lines


def _short(value: float) -> float:
    return float(f"{value:.3g}")
