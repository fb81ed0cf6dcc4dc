"""The runs of a result's pack or archive: how each ended, what it was, and its rows of the metrics that claims read; nothing is
unpacked.

Either holds a study's folder as `gatelab run` writes it (study.json, runs/*/run.json, done.json, rows.jsonl). Of the rows
those of the whole model are read, at every look, of no domain of the data; positions are as trained, but of accuracies, which
are read with YaRN too.
"""

import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from lzma import LZMAError
from math import isfinite, nan
from pathlib import Path
from typing import Any

from ..store import StoreError
from .packed import SUFFIX, read_pack
from .tasks import u_index

NAMES = (f"folder{SUFFIX}", "folder.tar.xz", "folder.tar.gz")
_READ = ("study.json", "confirmation.json", "run.json", "done.json", "rows.jsonl")
# Of each metric the coordinates that tell its rows apart.
_KEPT = {
    "val_loss": (), "gate_mean": (), "gate_below": ("threshold",), "gate_hoyer": (), "position_mass": ("bin",),
    "position_mass_uniform": ("bin",), "exact_match": ("intervention", "length", "bin"), "citation_f1": ("length",),
    "loss_spikes": ("threshold",),
}  # fmt: skip
_WORTH_PARSING = re.compile(rf'"metric": ?"(?:{"|".join(_KEPT)})"'.encode()).search
_NOT_THE_MODEL = ("layer", "head", "domain", "intervention")
_COLUMNS = tuple(dict.fromkeys((*_NOT_THE_MODEL, *(c for at in _KEPT.values() for c in at))))

Looks = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Kept:
    """A planned run. `looks` {(metric, *coordinates): {step: value}}; `status` is 'missing' where the archive has no end of it."""

    cell: str
    arm: str
    seed: int
    status: str
    config: Mapping[str, Any]
    looks: Mapping[tuple, Looks]

    def last(self, metric: str, *at: float | str | None) -> float:
        """The value at the last look; nan where there is none."""
        looks = self.looks.get((metric, *at), {})
        return looks[max(looks)] if looks else nan

    def bins(self, metric: str, *at: float | str | None) -> dict[int, float]:
        """{bin: value at the last look}."""
        keys = [k for k in self.looks if k[: 1 + len(at)] == (metric, *at) and k[-1] is not None]
        return {int(k[-1]): self.last(*k) for k in keys}


def position_bias(run: Kept) -> float:
    """Half the sum over octaves of positions of |p − `position_mass_uniform`|, p being `position_mass` over its sum (a slot takes
    some): the share of attention that lies elsewhere than that of uniform attention."""
    mass, even = run.bins("position_mass"), run.bins("position_mass_uniform")
    whole = sum(mass.values())
    return sum(abs(mass[b] / whole - even[b]) for b in mass) / 2 if whole > 0 and mass.keys() == even.keys() else nan


def u_size(run: Kept, times: int) -> float:
    """|U-index| of `exact_match` at a multiple of the length of training."""
    u = u_index(run.bins("exact_match", None, times * run.config["train"]["seq_len"]))
    return nan if u is None else abs(u)


def accuracy(run: Kept, times: int, stretch: str | None = None) -> float:
    """`exact_match` at a multiple of the length of training, positions as trained or stretched."""
    return run.last("exact_match", stretch, times * run.config["train"]["seq_len"], None)


def unstable(run: Kept) -> float:
    """1 of a run that diverged or has loss spikes, 0 of one that has neither, by the rule of the screen (docs/metrics.md)."""
    if run.status == "diverged":
        return 1.0
    both, alone = run.last("loss_spikes", None), [run.last("loss_spikes", t) for t in (0.1, 7.0)]
    if isfinite(both):
        return float(both > 0)
    # Of rows that count by each threshold alone: fewer than three of either are none by both.
    return 0.0 if min(alone) < 3 else nan


# What claims read of a run that is done; docs/metrics.md says what each is.
NUMBERS: dict[str, Callable[[Kept], float]] = {
    "val_loss": lambda run: run.last("val_loss"),
    "gate_mean": lambda run: run.last("gate_mean"),
    "gate_below": lambda run: run.last("gate_below", 0.1),
    "gate_hoyer": lambda run: run.last("gate_hoyer"),
    "citation_f1": lambda run: run.last("citation_f1", run.config["train"]["seq_len"]),
    "position_bias": position_bias,
    "u_size@8x": lambda run: u_size(run, 8),
    "accuracy@1x": lambda run: accuracy(run, 1),
    "accuracy@8x": lambda run: accuracy(run, 8),
    "accuracy@2x, YaRN": lambda run: accuracy(run, 2, "yarn"),
    "accuracy@8x, YaRN": lambda run: accuracy(run, 8, "yarn"),
    "unstable": unstable,
}
# What a run that diverged has too.
OF_DIVERGED = ("unstable",)


def kept(folder: Path) -> list[Kept]:
    """The planned runs of the pack or archive that lies in a result's folder, in the plan's order; where some were made to confirm
    a screen, those of the screen's seeds: a few cells have the others.

    Raises:
        StoreError: there is no archive, or it cannot be read.
    """
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    if not found:
        raise StoreError(
            f"{folder}: has none of {', '.join(NAMES)}; the claims of `--claims` read a study's runs there"
        )
    state = found[0].stat()
    return list(_kept(found[0], (state.st_mtime_ns, state.st_size)))


@lru_cache(maxsize=8)
def _kept(archive: Path, _state: tuple[int, int]) -> tuple[Kept, ...]:
    study, confirmation, parts = (_packed if archive.suffix == SUFFIX else _archived)(archive)
    try:
        seeds = confirmation.get("screened_seeds")
        plan = [entry for entry in study["plan"] if seeds is None or entry["seed"] in seeds]
        return tuple(_run(entry, parts.get(entry["fingerprint"], {})) for entry in plan)
    except (AttributeError, KeyError, TypeError):
        raise StoreError(
            f"{archive}: its study.json has no plan of runs; make it again from the study's folder"
        ) from None


Parts = tuple[dict, dict, dict[str, dict[str, Any]]]  # study.json, confirmation.json, {run: {name: content}}


def _packed(pack: Path) -> Parts:
    found = read_pack(pack)
    parts = {run: dict(files) for run, files in found.runs.items()}
    columns = ("run", "metric", "stack", "site", "step", "value", *_COLUMNS)
    unlike = " AND ".join(
        f"({c} IS NULL OR metric IN ({_quoted(m for m in _KEPT if c in _KEPT[m])}))" for c in _NOT_THE_MODEL
    )
    rows = found.query(f"""SELECT {", ".join(columns)} FROM packed WHERE metric IN ({_quoted(_KEPT)}) AND {unlike}
        ORDER BY run, metric, step""")
    for run, of_run in groupby((dict(zip(columns, row, strict=True)) for row in rows), key=lambda row: row["run"]):
        parts.setdefault(run, {})["rows.jsonl"] = _looks(of_run)
    return found.study["study.json"], found.study.get("confirmation.json", {}), parts


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "''"


def _archived(archive: Path) -> Parts:
    study: dict | None = None
    confirmation: dict = {}
    parts: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                *_, run, name = ("", "", *Path(member.name).parts)
                if not member.isfile() or name not in _READ:
                    continue
                file = tar.extractfile(member)
                if name == "rows.jsonl":
                    parts.setdefault(run, {})[name] = _looks(_rows(file))
                elif name == "study.json":
                    study = json.load(file)
                elif name == "confirmation.json":
                    confirmation = json.load(file)
                else:
                    parts.setdefault(run, {})[name] = json.load(file)
    except (tarfile.TarError, LZMAError, zlib.error, EOFError, OSError, ValueError) as error:
        raise StoreError(f"{archive}: cannot be read ({error}); make it again from the study's folder") from None
    if study is None:
        raise StoreError(f"{archive}: holds no study.json; make it again from the study's folder")
    return study, confirmation, parts


def _rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Most rows of a run are of other metrics: they are not worth parsing."""
    return (json.loads(line) for line in lines if _WORTH_PARSING(line))


def _run(entry: Mapping[str, Any], files: Mapping[str, Any]) -> Kept:
    status = files.get("done.json", {}).get("status", "missing")
    config = files.get("run.json", {}).get("run", {})
    return Kept(entry["cell"], entry["arm"], entry["seed"], status, config, files.get("rows.jsonl", {}))


def _looks(rows: Iterable[Mapping[str, Any]]) -> dict[tuple, dict[int, float]]:
    """Of several stacks causal self-attention, or the encoder where a metric has nothing else; of several sites of gates G1, or
    the first, as for study metrics."""
    places: dict[tuple, dict[tuple[str, str], dict[int, float]]] = {}
    for row in rows:
        stack = row.get("stack") or ""
        at = _KEPT.get(row["metric"])
        if at is None or stack == "cross" or any(row.get(c) is not None for c in _NOT_THE_MODEL if c not in at):
            continue
        key = (row["metric"], *(row.get(c) for c in at))
        site = row.get("site") or ""
        place = (stack, "" if site == "sdpa" else site)
        places.setdefault(key, {}).setdefault(place, {})[row["step"]] = float(row["value"])
    return {key: of_place[min(of_place)] for key, of_place in places.items()}
