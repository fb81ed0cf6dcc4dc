"""How long the processes of a mesh wait for each other: as long as is said, in every group that they talk in."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from ranks import as_ranks, paths

WAIT_S = 7.0


def live() -> None:
    from gatelab.config.parallel import ParallelConfig
    from gatelab.train.mesh import make_mesh
    from gatelab.train.parallel import join

    cpu = torch.device("cpu")
    join(cpu, WAIT_S)
    mesh = make_mesh(ParallelConfig(tp=2), 4, cpu, WAIT_S)
    groups = [torch.distributed.group.WORLD, *mesh.base.get_all_groups(), *mesh.expert.get_all_groups(), mesh.saving]
    waits = {group._get_backend(cpu).options._timeout for group in groups}
    assert waits == {timedelta(seconds=WAIT_S)}, waits


@pytest.mark.slow
def test_every_group_of_a_mesh_waits_as_long_as_is_said() -> None:

    environ = os.environ | paths() | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__], env=environ, check=True, timeout=300)


if __name__ == "__main__":
    as_ranks(live, 4)
