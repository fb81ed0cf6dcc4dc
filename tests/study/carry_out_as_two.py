"""Two processes carry out the run of a folder. The second is asked to stop after one step; then they begin again."""

import sys
from pathlib import Path

from ranks import as_two_ranks

from gatelab.config import Execution
from gatelab.store import RunFolder
from gatelab.study.carry_out import carry_out


def stopped() -> None:
    """Only one of the two hears the wish to stop; the writer would not save by itself."""
    import torch

    runs = [RunFolder(Path(sys.argv[1]))]
    carry_out(runs, Execution(checkpoint_s=1000), should_stop=lambda: torch.distributed.get_rank() == 1)


def finished() -> None:
    """Nobody hears one."""
    carry_out([RunFolder(Path(sys.argv[1]))], Execution(checkpoint_s=0), should_stop=lambda: False)


as_two_ranks({"stopped": stopped, "finished": finished}[sys.argv[2]])
