"""What to ask: tasks whose items are pure functions of a number, in one file each. Free of torch.

Notable: an item's definition is pure Python, and its sampler in NumPy gives the same tokens; every item knows where its
evidence is.
"""

from functools import cache
from importlib import import_module

from ..config import one_of
from .task import Knobs, Piece, Task, TaskBatch, TaskError, TaskItem
from .vocabulary import VOCAB_SIZE

# A task is a file of this folder that defines TASK, and its line here.
TASKS = (
    "needle",
    "multikey",
    "multivalue",
    "multiquery",
    "mqar",
    "track",
    "aggregate",
    "cite",
    "select",
    "bracket",
    "identifier",
    "find",
    "conflict",
    "absent",
    "associate",
)

__all__ = ["TASKS", "VOCAB_SIZE", "Knobs", "Piece", "Task", "TaskBatch", "TaskError", "TaskItem", "open_task"]


@cache
def open_task(name: str) -> Task:
    """The task of a name.

    Raises:
        TaskError: no such task, with the nearest.
    """
    if name not in TASKS:
        raise TaskError(f"no task {name!r}: {one_of(name, TASKS)}")
    return import_module(f".{name}", __name__).TASK
