"""plan_step: the memory, traffic and time of one training step on a mesh; best_step: the fastest mesh of so many GPUs."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ...config.base import ConfigError
from ...config.model import ModelConfig
from ...config.objective import Objective
from ...models.sizes import count_active, count_parameters
from ..cost import model_flops_per_token
from .devices import DEVICES, Device
from .memory import Memory, memory
from .mesh import Mesh, Shard, problems
from .seconds import Seconds, seconds
from .traffic import KINDS, Transfer, transfers


@dataclass(frozen=True)
class Job:
    """A step: a resolved model, `tokens` of all GPUs together in sequences of `context`, and how the objective cuts these."""

    model: ModelConfig
    tokens: int
    context: int
    objective: Objective | None = None

    @property
    def sequences(self) -> int:
        return self.tokens // self.context


@dataclass(frozen=True)
class Layout:
    """What may be stated of how a job is spread; None and 0: to be chosen, the fastest that fits. `recompute` is never chosen: it
    is `execution.recompute=layer`, which whoever starts the run has to say."""

    tp: int | None = None
    dp: int | None = None
    ep: int | None = None
    shard: Shard | None = None
    micro_batch: int = 0
    recompute: bool = False


@dataclass(frozen=True)
class StepPlan:
    """What a step takes on each GPU of a mesh; `micro_batch` sequences a forward pass."""

    job: Job
    mesh: Mesh
    device: Device
    micro_batch: int
    recompute: bool
    memory: Memory
    transfers: tuple[Transfer, ...]
    seconds: Seconds

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.device.memory

    @property
    def tokens_per_s(self) -> float:
        """Of all GPUs."""
        return self.job.tokens / self.seconds.total

    @property
    def mfu(self) -> float:
        """The model's own operations over the GPUs' stated peak."""
        flops = model_flops_per_token(self.job.model, self.job.context, self.job.objective) * self.job.tokens
        return flops / self.mesh.gpus / self.seconds.total / self.device.peak

    @property
    def traffic(self) -> dict[str, float]:
        """Bytes that a GPU sends, by kind."""
        return {kind: sum(t.n_bytes for t in self.transfers if t.kind == kind) for kind in KINDS}

    def record(self) -> dict[str, Any]:
        """All its numbers: bytes and seconds, of one GPU but for tokens a second."""
        return {
            "device": self.device.name,
            "gpus": self.mesh.gpus,
            **asdict(self.mesh),
            "micro_batch": self.micro_batch,
            "recompute": self.recompute,
            "tokens": self.job.tokens,
            "context": self.job.context,
            "n_parameters": count_parameters(self.job.model),
            "n_active": count_active(self.job.model),
            "fits": self.fits,
            "bytes": asdict(self.memory) | {"total": self.memory.total},
            "sent_bytes": self.traffic,
            "seconds": asdict(self.seconds) | {"total": self.seconds.total, "one_by_one": self.seconds.one_by_one},
            "tokens_per_s": self.tokens_per_s,
            "mfu": self.mfu,
        }


def plan_step(
    job: Job, mesh: Mesh | None = None, *, device: str = "h100", micro_batch: int = 0, recompute: bool = False
) -> StepPlan:
    """What a step takes on a mesh (None: one GPU).

    Args:
        device: of `DEVICES`.
        micro_batch: sequences of a group of tp GPUs a forward pass; 0: all that it has.

    Raises:
        ConfigError: every reason why the mesh cannot have the model, or the batch.
    """
    mesh = mesh or Mesh()
    if found := _problems(job, mesh, micro_batch):
        raise ConfigError(found)
    return _step(job, mesh, DEVICES[device], micro_batch or job.sequences // mesh.dp, recompute)


def best_step(job: Job, gpus: int, layout: Layout | None = None, *, device: str = "h100") -> StepPlan:
    """The fastest step on so many GPUs that fits, of all that `layout` leaves open; if none does, the one that needs the
    least memory.

    Open are tp, up to the GPUs of a machine, ep, sharding and micro-batches of powers of two.

    Raises:
        ConfigError: when nothing divides, with the reasons of the mesh that was stated, or of plain data parallelism.
    """
    layout = layout or Layout()
    stated = {"tp": layout.tp, "dp": layout.dp, "ep": layout.ep}
    if wrong := [f"{word}={n}: expected 1 or more" for word, n in stated.items() if n is not None and n < 1]:
        raise ConfigError(wrong)
    plans = list(_open(job, gpus, layout, DEVICES[device]))
    if plans:
        fitting = [p for p in plans if p.fits]
        return min(fitting, key=_haste) if fitting else min(plans, key=lambda p: p.memory.total)
    tp = layout.tp or (gpus // layout.dp if layout.dp and gpus % layout.dp == 0 else 1)
    mesh = Mesh(layout.dp or gpus // tp, tp, layout.ep or 1, layout.shard or "zero3")
    if mesh.gpus != gpus:
        word = f"tp={tp} does not divide" if layout.dp is None else f"dp={mesh.dp} × tp={tp} is not"
        raise ConfigError([f"{word} {gpus} GPUs; state other numbers, or leave one out"])
    found = _problems(job, mesh, layout.micro_batch)
    raise ConfigError(found or [f"{gpus} GPUs: no mesh divides this model and batch; state fewer of tp, dp and ep"])


def _haste(plan: StepPlan) -> tuple[float, float]:
    """Of steps that take as long the one that computes less comes first."""
    return float(f"{plan.seconds.total:.4g}"), plan.seconds.computing


def _open(job: Job, gpus: int, layout: Layout, device: Device) -> Iterator[StepPlan]:
    for mesh in _meshes(job, gpus, layout, device):
        if _problems(job, mesh, layout.micro_batch):
            continue
        own = job.sequences // mesh.dp
        sizes = (
            [layout.micro_batch]
            if layout.micro_batch
            else [2**i for i in range(own.bit_length()) if own % 2**i == 0] + [own]
        )
        for size in dict.fromkeys(sizes):
            yield _step(job, mesh, device, size, layout.recompute)


def _meshes(job: Job, gpus: int, layout: Layout, device: Device) -> Iterator[Mesh]:
    if layout.dp is not None and layout.tp is None:
        tps = [gpus // layout.dp] if layout.dp > 0 and gpus % layout.dp == 0 else []
    else:
        tps = [2**i for i in range(device.node.bit_length())] if layout.tp is None else [layout.tp]
    eps = [1] if job.model.moe is None else [2**i for i in range(min(job.model.moe.n_experts, 64).bit_length())]
    for tp in tps:
        if tp < 1 or gpus % tp or layout.dp not in (None, gpus // tp):
            continue
        dp = gpus // tp
        shards = [layout.shard] if layout.shard else ["none"] if dp == 1 else ["zero2", "zero3"]
        yield from (Mesh(dp, tp, ep, shard) for ep in (eps if layout.ep is None else [layout.ep]) for shard in shards)


def _problems(job: Job, mesh: Mesh, micro_batch: int) -> list[str]:
    if job.tokens < job.context or job.tokens % job.context:
        return [f"tokens={job.tokens} is not a number of whole sequences of context={job.context}; take a multiple"]
    found = problems(mesh, job.model, job.sequences)
    if not found and (micro_batch < 0 or (micro_batch and job.sequences // mesh.dp % micro_batch)):
        found = [
            f"micro_batch={micro_batch} does not divide the {job.sequences // mesh.dp} sequences of a group; take a divisor"
        ]
    return found


def _step(job: Job, mesh: Mesh, device: Device, micro_batch: int, recompute: bool) -> StepPlan:
    own = job.sequences // mesh.dp
    n_parts, how = own // micro_batch, {"recompute": recompute, "objective": job.objective}
    sent = transfers(job.model, mesh, job.context, own, n_parts, **how)
    return StepPlan(
        job,
        mesh,
        device,
        micro_batch,
        recompute,
        memory(job.model, mesh, job.context, micro_batch, n_parts, **how),
        sent,
        seconds(job.model, mesh, device, job.context, own, n_parts, transfers=sent, **how),
    )
