"""lay_out: the model on the meta device, shared out by the trainer's own code over a fake process group, as its first rank sees it.

Notable: nothing is allocated and nothing sent, so that one process stands for any number. What is checked is that every parameter
can be shared out, and that a rank then keeps what the planner counts; what layers compute on it is not run.
"""

import time
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from ...config.base import validate
from ...config.model import ModelConfig
from ...config.parallel import ParallelConfig
from ...models import model_class
from .. import mesh as trainer
from ..shard.layout import lay_out as share
from .mesh import Mesh, numel, parts


@dataclass(frozen=True)
class LaidOut:
    """What the first of `gpus` ranks, which has most, keeps: `n_weights` numbers, and `n_planned` by the planner. `differs`:
    parameters whose shapes differ."""

    gpus: int
    n_weights: int
    n_planned: int
    differs: tuple[str, ...]
    seconds: float

    @property
    def holds(self) -> bool:
        return not self.differs


def lay_out(model: ModelConfig, mesh: Mesh) -> LaidOut:
    """Of a resolved model.

    Raises:
        ValueError: where this process has already joined others.
    """
    if dist.is_initialized():
        raise ValueError("this process has already joined others; lay a model out in a process of its own")
    start, planned = time.perf_counter(), {p.name: p.kept for p in parts(model, mesh)}
    # Without a store torch takes its own fake one.
    dist.init_process_group("fake", rank=0, world_size=mesh.gpus)
    try:
        found = _kept(model, mesh)
    finally:
        dist.destroy_process_group()
    names = sorted(planned.keys() | found.keys())
    return LaidOut(
        gpus=mesh.gpus,
        n_weights=sum(map(numel, found.values())),
        n_planned=sum(map(numel, planned.values())),
        differs=tuple(f"{n} {found.get(n)}, planned {planned.get(n)}" for n in names if found.get(n) != planned.get(n)),
        seconds=time.perf_counter() - start,
    )


def _kept(model: ModelConfig, mesh: Mesh) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        built = model_class(model)(model)
    if mesh.gpus > 1:
        share(built, _fake(mesh), torch.bfloat16, torch.device("meta"))
    own = {name: p.to_local() if isinstance(p, DTensor) else p for name, p in built.named_parameters()}
    return {name: tuple(p.shape) for name, p in own.items()}


def _fake(mesh: Mesh) -> trainer.Mesh:
    """As `trainer.make_mesh`, but for its group of hosts, which would wait for the others."""
    config = validate(ParallelConfig, asdict(mesh))
    ranks = torch.arange(mesh.gpus)
    base = DeviceMesh("cpu", ranks.view(mesh.dp, mesh.tp).T, mesh_dim_names=("tensor", "data"))
    of_experts = ranks.view(-1, mesh.ep).T if mesh.tp == 1 else ranks[None]
    expert = DeviceMesh("cpu", of_experts, mesh_dim_names=("expert", "copy"))
    return trainer.Mesh(config, base, expert, dist.group.WORLD)
