"""Which process this is among those that share a run, and the sums they exchange.

Data parallel: every data rank takes its rows of each batch; gradients and losses are summed; rank 0 writes. One process is
the case of one rank, with nothing exchanged. With a mesh (`gatelab.train.mesh`) ranks that share layers see the same rows.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from .shard.exchange import gathered

if TYPE_CHECKING:
    from .mesh import Mesh


@dataclass(frozen=True)
class Ranks:
    """`rank` of `world`; `is_writer` is true on exactly one. Without a mesh every rank is a data rank. `hosts` is the group in
    which hosts agree, without their devices being waited for; None where the processes' own is one."""

    rank: int = 0
    world: int = 1
    mesh: "Mesh | None" = None
    hosts: ProcessGroup | None = None

    @property
    def n_data(self) -> int:
        """Ranks that share a batch."""
        return self.world if self.mesh is None else self.mesh.n_data

    @property
    def n_tensor(self) -> int:
        """Ranks that share a layer."""
        return 1 if self.mesh is None else self.mesh.n_tensor

    @property
    def _data(self) -> ProcessGroup | None:
        return None if self.mesh is None else self.mesh.data

    @property
    def is_writer(self) -> bool:
        return self.rank == 0

    def share(self, n_sequences: int) -> slice:
        """The rows of a batch that belong to this rank.

        Raises:
            ValueError: when the batch does not divide.
        """
        if n_sequences % self.n_data:
            raise ValueError(f"train.batch_size={n_sequences} does not divide among {self.n_data} processes")
        size = n_sequences // self.n_data
        first = (self.rank if self.mesh is None else self.mesh.data_rank) * size
        return slice(first, first + size)

    def sum_(self, values: Tensor) -> None:
        """Sum a tensor over all data ranks, in place."""
        if self.n_data > 1:
            torch.distributed.all_reduce(values, group=self._data)

    def max_(self, values: Tensor) -> None:
        """The largest of all data ranks, in place, element by element."""
        if self.n_data > 1:
            torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group=self._data)

    def all_heads(self, values_LH: Tensor) -> Tensor:
        """What each rank has of its own heads, of all heads."""
        return values_LH if self.n_tensor == 1 else gathered(values_LH, self.mesh.tensor)

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            torch.distributed.barrier()

    def any_says(self, flag: bool) -> bool:
        """Whether any rank says so: what all must decide alike."""
        return self.any_say([flag])[0]

    def any_say(self, flags: list[bool]) -> list[bool]:
        """`any_says` of several at once."""
        if self.world == 1:
            return flags
        said = torch.tensor(flags, dtype=torch.float32)
        torch.distributed.all_reduce(said, group=self.hosts)
        return [n > 0 for n in said.tolist()]

    def sum_gradients(self, model: nn.Module) -> None:
        """Sum every gradient over all ranks, in one flat exchange."""
        if self.world == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        torch.distributed.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def join(device: torch.device, wait_s: float) -> Ranks:
    """The ranks that torchrun's environment names; joins their process group once. A single process without it.

    GATELAB_MEETING names a file where processes of one machine meet, which needs no port that others could reach.

    Args:
        wait_s: seconds after which one that waits for another gives up.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=os.environ.get("GATELAB_MEETING", "env://"),
            world_size=world,
            rank=int(os.environ["RANK"]),
            timeout=timedelta(seconds=wait_s),
        )
    hosts = None
    if device.type == "cuda":
        hosts = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=wait_s))
    return Ranks(torch.distributed.get_rank(), world, hosts=hosts)
