"""What an evaluation found, of the harness's tasks or of ours."""

from dataclasses import dataclass, field
from typing import Any

from ..record import Item, Row


@dataclass
class Found:
    """`rows` of tasks and groups, an `Item` an item and way of reading the answer out, `records` of what was asked for by name,
    `notes`, what `about` says of how it came, and the texts of `files` that belong to it, by name."""

    rows: list[Row]
    items: list[Item]
    records: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
