"""Training: `for step in train(run)`. `cost`, `schedule` and `spikes` are free of torch.

`gatelab.train` is this package and, called, the function `gatelab.train.loop.train`: the import system binds a package's
name over any function of that name, so the package itself has to answer.
"""

import sys
from collections.abc import Container, Iterator
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config.run import Run
    from ..record import Step
    from .group import Group


class _Train(ModuleType):
    def __call__(self, group: "Group | Run", rests: "Container[int] | None" = None) -> "Iterator[Step]":
        """See `gatelab.train.loop.train`."""
        from .loop import train

        return train(group, rests)


sys.modules[__name__].__class__ = _Train
