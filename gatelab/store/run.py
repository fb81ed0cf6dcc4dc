"""One run's folder."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import SCHEMA
from ..mirror import Mirror
from .files import DamagedError, Stamp, StoreError, check_keys, read_json, read_stored, stamp_of, write_json


class RunFolder:
    """One run's folder. `state` is derived from its files; nothing stores it twice. With `objects` it mirrors a run of these."""

    def __init__(self, path: Path, objects: Mirror | None = None):
        self.path, self.objects = path, objects
        self.fingerprint = path.name
        self._done: tuple[Stamp, dict[str, Any]] | None = None
        self._checked: Stamp | None = None  # run.json as it was when it was whole

    def look(self) -> None:
        """Of a run on an object store, let the mirror have what others wrote of its ledger."""
        if self.objects is not None:
            self.objects.look(self.path)

    def create(self, config: dict[str, Any]) -> None:
        """Make the folder and write run.json. An existing one is checked, and rewritten where it differs: under the
        same fingerprint that can only be where the data lies, or damage.

        Raises:
            StoreError: when the folder was written by another schema version.
        """
        (self.path / "attempts").mkdir(parents=True, exist_ok=True)
        if self.config_if_whole() != config:
            write_json(self.path / "run.json", {"schema": SCHEMA, "fingerprint": self.fingerprint, "run": config})

    def config(self) -> dict[str, Any]:
        """The canonical configuration.

        Raises:
            StoreError: when it is missing, or from another version.
            DamagedError: when it is cut or edited.
        """
        path = self.path / "run.json"
        try:
            value = read_stored(path)
            check_keys(path, value, {"run": dict})
        except DamagedError as error:
            raise DamagedError(f"{error} `gatelab run` of the study, not of its folder, writes it again") from None
        return value["run"]

    def config_if_whole(self) -> dict[str, Any] | None:
        """The same; None where it is missing, cut or edited.

        Raises:
            StoreError: when it is from another version.
        """
        try:
            return self.config() if (self.path / "run.json").exists() else None
        except DamagedError:
            return None

    def check_config(self) -> None:
        """Whether run.json is whole, if it is there, as it must be of a finished run; read once as long as it stays as it is.

        Raises:
            StoreError, DamagedError: as `config`.
        """
        stamp = stamp_of(f"{self.path}/run.json")  # of a thousand runs a Path each takes as long as to look
        if stamp != self._checked:
            self.config()
            self._checked = stamp
        if stamp is None and self.done() is not None:
            raise DamagedError(
                f"{self.path / 'run.json'}: is missing; `gatelab run` of the study, not of its folder, writes it again"
            )

    def done(self) -> dict[str, Any] | None:
        """What done.json says (`status`: done or diverged, steps, seconds), or None.

        Raises:
            DamagedError: when it is cut or edited.
        """
        stamp = stamp_of(f"{self.path}/done.json")
        if stamp is None:
            return None
        if self._done is not None and self._done[0] == stamp:
            return dict(self._done[1])
        path = self.path / "done.json"
        try:
            value = read_json(path)
            check_keys(path, value, {"status": str})
        except DamagedError as error:
            raise DamagedError(f"{error} Remove it, and `gatelab run` carries this run out again") from None
        if value["status"] not in ("done", "diverged"):
            raise DamagedError(f"{path}: status {value['status']!r}, expected done or diverged; was it edited?")
        self._done = stamp, value
        return dict(value)

    def check_rows(self) -> None:
        """Whether a finished run has the rows that it ended with. There may be more; none at all were left behind, as where only
        weights are taken along; and done.json of an older version, or one that names a save of an object store, counts none.

        Raises:
            DamagedError: when there are fewer.
        """
        done = self.done() or {}
        expected = done.get("rows_bytes")
        if not isinstance(expected, int) or "saved" in done or self.objects is not None:
            return
        try:
            if os.stat(f"{self.path}/rows.jsonl").st_size >= expected:
                return
            with open(self.rows_path, "rb") as file:  # a network file system looks again where a file is opened
                found = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return
        if found < expected:
            raise DamagedError(
                f"{self.rows_path}: has {found} bytes, and the run ended with {expected}; was it cut, or is it still being "
                f"copied? Copy it again, or remove done.json beside it, and `gatelab run` carries this run out again"
            )

    def attempts(self) -> list[dict[str, Any]]:
        """The attempts so far, oldest first: each with owner, started, ended, outcome, message; without those that cannot be
        read."""
        folder = f"{self.path}/attempts"
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = []
        for name in sorted(names):
            if name[0].isdecimal() and name.endswith(".json"):
                with suppress(DamagedError):
                    found.append(read_json(f"{folder}/{name}"))
        return [attempt for attempt in found if isinstance(attempt, dict)]

    def mark_done(self, status: str, facts: dict[str, Any]) -> None:
        """Write done.json, last of all, with how many bytes the rows have."""
        n_bytes = self.rows_path.stat().st_size if self.rows_path.exists() else 0
        write_json(self.path / "done.json", {"status": status, **facts, "rows_bytes": n_bytes})

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
