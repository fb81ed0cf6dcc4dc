"""Mesh: the processes of one run by what they share, batches, layers or experts.

Notable: tensor ranks are neighbours, then expert ranks, so that what talks most is nearest; two device meshes over the same
processes, (tensor, data) for most weights and (expert, copy) for experts.
"""

from dataclasses import dataclass
from datetime import timedelta

import torch
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from ..config.parallel import ParallelConfig


@dataclass(frozen=True)
class Mesh:
    """`base` has axes (tensor, data), `expert` axes (expert, copy); `saving` is a group of all that exchanges on hosts while
    others compute."""

    config: ParallelConfig
    base: DeviceMesh
    expert: DeviceMesh
    saving: ProcessGroup

    @property
    def n_tensor(self) -> int:
        return self.base.size(0)

    @property
    def tensor(self) -> ProcessGroup:
        """Those that share this rank's layers."""
        return self.base.get_group("tensor")

    @property
    def n_data(self) -> int:
        return self.base.size(1)

    @property
    def data_rank(self) -> int:
        return self.base.get_local_rank("data")

    @property
    def data(self) -> ProcessGroup:
        """Those that hold what this rank holds, and see other sequences."""
        return self.base.get_group("data")


def make_mesh(config: ParallelConfig, world: int, device: torch.device, wait_s: float) -> Mesh:
    """The mesh of all processes; every one of them must call it, with the same configuration.

    Args:
        wait_s: as of `parallel.join`.

    Raises:
        ValueError: a layout that is not one of so many processes.
    """
    dp = config.data_ranks(world)
    ranks = torch.arange(world)
    base = DeviceMesh(device.type, ranks.view(dp, config.tp).T, mesh_dim_names=("tensor", "data"))
    # With tensor ranks there are no expert ranks; then each rank is alone in its group, and no weight lies there.
    of_experts = ranks.view(-1, config.ep).T if config.tp == 1 else ranks[None]
    expert = DeviceMesh(device.type, of_experts, mesh_dim_names=("expert", "copy"))
    wait = timedelta(seconds=wait_s)
    # torch gives groups of a mesh its own time-outs, whatever that of all processes is.
    for group in (*base.get_all_groups(), *expert.get_all_groups()):
        _set_pg_timeout(wait, group)
    return Mesh(config, base, expert, torch.distributed.new_group(backend="gloo", timeout=wait))
