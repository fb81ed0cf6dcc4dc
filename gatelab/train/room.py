"""What to say where a training step finds no memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..config.run import Execution

# torch has a class of its own for GPUs, and words for CPUs.
_WORDS = "can't allocate memory"


@contextmanager
def telling_what_takes_less(execution: Execution) -> Iterator[None]:
    """An error for lack of memory comes out of it as the same error, which says first what would take less."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and _WORDS not in str(error):
            raise
        less = ["a smaller execution.micro_batch"]
        if execution.recompute == "none":
            less.insert(0, "execution.recompute=layer")
        raise type(error)(f"a step does not fit; {' or '.join(less)} takes less ({error})") from error
