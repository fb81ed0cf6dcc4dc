"""Which process this is among those that share a run, and the sums they exchange.

Data parallel: every rank takes its rows of each batch; gradients and losses are summed; rank 0 writes. One process is
the case of one rank, with nothing exchanged.
"""

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """`rank` of `world`; `is_writer` is true on exactly one."""

    rank: int = 0
    world: int = 1

    @property
    def is_writer(self) -> bool:
        return self.rank == 0

    def share(self, n_sequences: int) -> slice:
        """The rows of a batch that belong to this rank.

        Raises:
            ValueError: when the batch does not divide.
        """
        if n_sequences % self.world:
            raise ValueError(f"train.batch_size={n_sequences} does not divide among {self.world} processes")
        size = n_sequences // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def sum_(self, values: Tensor) -> None:
        """Sum a tensor over all ranks, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(values)

    def max_(self, values: Tensor) -> None:
        """The largest of all ranks, in place, element by element."""
        if self.world > 1:
            torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            torch.distributed.barrier()

    def any_says(self, flag: bool, device: torch.device) -> bool:
        """Whether any rank says so: what all must decide alike."""
        if self.world == 1:
            return flag
        said = torch.tensor(float(flag), device=device)
        self.sum_(said)
        return bool(said.item() > 0)

    def sum_gradients(self, model: nn.Module) -> None:
        """Sum every gradient over all ranks, in one flat exchange."""
        if self.world == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        torch.distributed.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def join(device: torch.device) -> Ranks:
    """The ranks that torchrun's environment names; joins their process group once. A single process without it.

    GATELAB_MEETING names a file where processes of one machine meet, which needs no port that others could reach.
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
        )
    return Ranks(torch.distributed.get_rank(), world)
