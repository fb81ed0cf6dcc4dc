"""One run's folder."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import SCHEMA
from ..mirror import Mirror
from .files import Stamp, StoreError, check_keys, read_json, read_stored, stamp_of, write_json


class RunFolder:
    """One run's folder. `state` is derived from its files; nothing stores it twice. With `objects` it mirrors a run of these."""

    def __init__(self, path: Path, objects: Mirror | None = None):
        self.path, self.objects = path, objects
        self.fingerprint = path.name
        self._done: tuple[Stamp, dict[str, Any]] | None = None

    def look(self) -> None:
        """Of a run on an object store, let the mirror have what others wrote of its ledger."""
        if self.objects is not None:
            self.objects.look(self.path)

    def create(self, config: dict[str, Any]) -> None:
        """Make the folder and write run.json. An existing one is checked, and rewritten where it differs: under the
        same fingerprint that can only be where the data lies.

        Raises:
            StoreError: when the folder was written by another schema version.
        """
        (self.path / "attempts").mkdir(parents=True, exist_ok=True)
        if not (self.path / "run.json").exists() or self.config() != config:
            write_json(self.path / "run.json", {"schema": SCHEMA, "fingerprint": self.fingerprint, "run": config})

    def config(self) -> dict[str, Any]:
        """The canonical configuration.

        Raises:
            StoreError: when it is missing, cut, or from another version.
        """
        value = read_stored(self.path / "run.json")
        check_keys(self.path / "run.json", value, {"run": dict})
        return value["run"]

    def done(self) -> dict[str, Any] | None:
        """What done.json says (`status`: done or diverged, steps, seconds), or None.

        Raises:
            StoreError: when it is cut or edited.
        """
        path = self.path / "done.json"
        stamp = stamp_of(path)
        if stamp is None:
            return None
        if self._done is not None and self._done[0] == stamp:
            return dict(self._done[1])
        try:
            value = read_json(path)
            check_keys(path, value, {"status": str})
        except StoreError as error:
            raise StoreError(f"{error} Remove it, and `gatelab run` carries this run out again") from None
        if value["status"] not in ("done", "diverged"):
            raise StoreError(f"{path}: status {value['status']!r}, expected done or diverged; was it edited?")
        self._done = stamp, value
        return dict(value)

    def attempts(self) -> list[dict[str, Any]]:
        """The attempts so far, oldest first: each with owner, started, ended, outcome, message."""
        folder = self.path / "attempts"
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [read_json(folder / name) for name in sorted(names) if name[0].isdecimal() and name.endswith(".json")]

    def mark_done(self, status: str, facts: dict[str, Any]) -> None:
        """Write done.json, last of all."""
        write_json(self.path / "done.json", {"status": status, **facts})

    @property
    def rows_path(self) -> Path:
        return self.path / "rows.jsonl"

    @property
    def items_path(self) -> Path:
        return self.path / "items.jsonl"

    def items(self) -> Iterator[dict[str, Any]]:
        """The answers to items of tasks at the run's last step; none where it was asked nothing.

        Raises:
            StoreError: when the file is cut or edited.
        """
        if not self.items_path.exists():
            return
        with open(self.items_path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)
                except (json.JSONDecodeError, RecursionError):
                    raise StoreError(f"{self.items_path}, line {number}: not readable as JSON; was it cut?") from None
