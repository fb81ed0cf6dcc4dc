"""How far planned times were from measured ones, and what a plan may therefore take.

Notable: steps are of four kinds, dense or with experts, on one GPU or on several. A kind's worst step was planned at the smallest
share of its measured time, and whatever is planned of that kind may be as far off; the largest meshes that were timed are of two
GPUs, so that more is a plan and no measurement.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from .devices import DEVICES
from .measured import MEASURED
from .mesh import Mesh
from .step import StepPlan, plan_step


@dataclass(frozen=True)
class Spread:
    """`worst`: the smallest share of its measured time at which a step of the plan's kind was planned. `is_timed`: whether steps
    on the plan's mesh were, of whatever model."""

    plan: StepPlan
    worst: float
    is_timed: bool

    @property
    def seconds(self) -> tuple[float, float]:
        return self.plan.seconds.total, self.plan.seconds.total / self.worst

    @property
    def tokens_per_s(self) -> tuple[float, float]:
        """Of all GPUs, from the least."""
        return self.plan.tokens_per_s * self.worst, self.plan.tokens_per_s

    @property
    def mfu(self) -> tuple[float, float]:
        return self.plan.mfu * self.worst, self.plan.mfu

    def digits(self, value: float) -> float:
        """As many as there is reason for: three where the mesh was timed, else two."""
        return float(f"{value:.{3 if self.is_timed else 2}g}")

    def record(self) -> dict[str, Any]:
        """The plan's numbers, with the digits that there is reason for in those of time; what its speed may be, from the least; and
        whether such a mesh was timed."""
        planned = self.plan.record()
        of_time = {name: self.digits(planned[name]) for name in ("tokens_per_s", "mfu")}
        ranges = {"tokens_per_s": self.tokens_per_s, "mfu": self.mfu, "seconds": self.seconds}
        return (
            planned
            | {"seconds": {name: self.digits(value) for name, value in planned["seconds"].items()}}
            | of_time
            | {
                "timed": "timed" if self.is_timed else "not timed",
                "worst_share": self.worst,
                "range": {name: [self.digits(x) for x in ends] for name, ends in ranges.items()},
            }
        )


def spread_of(plan: StepPlan) -> Spread:
    """Of an A100, whose rates are not measured, no mesh was timed."""
    has_experts = plan.job.model.moe is not None
    is_timed = any(
        DEVICES[m.device] is plan.device and _shape(m.mesh) == _shape(plan.mesh)
        for m in MEASURED
        if (m.job.model.moe is not None) == has_experts
    )
    return Spread(plan, shares()[has_experts, plan.mesh.gpus > 1].time[0], is_timed)


@dataclass(frozen=True)
class Shares:
    """The smallest and the largest share, planned over measured, of the steps of a kind."""

    time: tuple[float, float]
    memory: tuple[float, float]


@cache
def shares() -> dict[tuple[bool, bool], Shares]:
    """By kind: with experts, on several GPUs."""
    found: dict[tuple[bool, bool], list[tuple[float, float]]] = {}
    for m in MEASURED:
        plan = plan_step(m.job, m.mesh, device=m.device, micro_batch=m.micro_batch)
        own = found.setdefault((m.job.model.moe is not None, m.mesh.gpus > 1), [])
        own.append((1e3 * plan.seconds.total / m.ms, plan.memory.total / 2**30 / m.gib))
    ends = {kind: [(round(min(x), 2), round(max(x), 2)) for x in zip(*of, strict=True)] for kind, of in found.items()}
    return {kind: Shares(time, memory) for kind, (time, memory) in ends.items()}


def _shape(mesh: Mesh) -> tuple[int, int, int, str]:
    """Without groups there is nothing to share out."""
    return mesh.dp, mesh.tp, mesh.ep, mesh.shard if mesh.dp > 1 else ""
