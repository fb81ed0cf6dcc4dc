"""A benchmark's rows as a table, and as files: a section of a page, and a list for programs.

Notable: a file is of a kind, a device and a month, and every benchmark adds its own section at the end, with its own
heading, so that no run takes another's numbers away.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config.base import ConfigError
from ..store import StoreError, read_json, write_json, write_text
from .benchmark import Benchmark
from .timing import Timing

Record = dict[str, Any]
# Column of the table -> what it shows of a row.
_COLUMNS: dict[str, Callable[[Timing], Any]] = {
    "shape": lambda r: r.shape,
    "gate": lambda r: r.gate,
    "what": lambda r: f"gate alone, {r.candidate}" if r.what == "gate" else r.candidate,
    "work": lambda r: r.work,
    "median ms": lambda r: _rounded(r.median_ms),
    "least to most": lambda r: _range(r.least_ms, r.most_ms),
    "rounds": lambda r: r.rounds,
    "floor ms": lambda r: _rounded(r.floor_ms),
    "of floor": lambda r: _rounded(r.of_floor),
    "own traffic ms": lambda r: _rounded(r.own_floor_ms),
    "ratio": lambda r: _rounded(r.ratio, 4),
    "ratio, least to most": lambda r: _range(r.ratio_least, r.ratio_most),
    "to": lambda r: r.against,
    "of a layer": lambda r: None if r.of_layer is None else f"{r.of_layer:.2%}",
    "MiB": lambda r: _rounded(r.peak_mib, 5),
    "kept MiB": lambda r: _rounded(r.kept_mib, 5),
    "ungated + logits MiB": lambda r: _rounded(r.kept_goal_mib, 5),
    "tokens/s": lambda r: None if r.tokens_per_s is None else f"{r.tokens_per_s:,.0f}",
    "MFU": lambda r: None if r.mfu is None else f"{r.mfu:.1%}",
    "contract": lambda r: r.contract,
    "goal": lambda r: r.goal,
    "met": lambda r: r.met,
}


def table(found: Benchmark) -> list[Record]:
    """The rows as shown, without columns in which nothing is said."""
    shown = [{name: of(row) for name, of in _COLUMNS.items()} for row in found.rows]
    empty = {name for name in _COLUMNS if all(record[name] in (None, "") for record in shown)}
    return [{k: "" if v is None else v for k, v in record.items() if k not in empty} for record in shown]


def records(found: Benchmark) -> list[Record]:
    """A record a row, with the device and the version of torch."""
    return [{"device": found.device, "torch": found.facts["torch"], **row.as_dict()} for row in found.rows]


def write(found: Benchmark, folder: Path) -> tuple[Path, Path]:
    """Add the benchmark to <kind>_<device>_<yyyy-mm>.md and .json of a folder, which is made where there is none.

    Raises:
        ConfigError: as `read_before`; nothing is written then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, data = places(found.kind, found.device, found.facts["utc"], folder)
    before, earlier = read_before(page, data)
    before = before or f"# gatelab bench {found.kind}, {found.device}\n"
    write_text(page, f"{before}\n{section(found)}")
    write_json(data, [*earlier, {**found.facts, "rows": [row.as_dict() for row in found.rows]}])
    return page, data


def places(kind: str, device: str, utc: str, folder: Path) -> tuple[Path, Path]:
    """The page and the data of a kind, a device's name and a time that begins with the year and the month."""
    stem = f"{kind}_{slug(device)}_{utc[:7]}"
    return folder / f"{stem}.md", folder / f"{stem}.json"


def read_before(page: Path, data: Path) -> tuple[str, list[Record]]:
    """What earlier benchmarks wrote: the page's text and the data's list, each empty where there is no file.

    Raises:
        ConfigError: for what is no file, cannot be read, or is no list in JSON.
    """
    for path in (page, data):
        if path.exists() and not path.is_file():
            raise ConfigError(
                [f"{path}: is no file, and results are added to one of this name; move it, or change --out"]
            )
    try:
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        earlier = read_json(data) if data.exists() else []
    except UnicodeDecodeError:
        raise ConfigError([f"{page}: is no text, and results are added to it; move it, or change --out"]) from None
    except (OSError, StoreError) as error:
        raise ConfigError([f"{error} (results are added to it: mend or move it, or change --out)"]) from None
    if not isinstance(earlier, list):
        raise ConfigError([f"{data}: is no list of results, to which one could be added; move it, or change --out"])
    return text, earlier


def section(found: Benchmark) -> str:
    """The benchmark in Markdown."""
    shown = table(found)
    names = list(shown[0]) if shown else []
    lines = [names, ["---"] * len(names), *([str(v) for v in record.values()] for record in shown)]
    rows = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"## {found.facts['utc']} UTC\n\n" + "\n\n".join(found.heading) + f"\n\n{rows}\n"


def slug(device: str) -> str:
    """A device's name for a file's: NVIDIA H100 80GB HBM3 is h100, any CPU is cpu."""
    if device.endswith("CPU"):
        return "cpu"
    words = [w for w in device.lower().split() if w not in ("nvidia", "geforce") and not re.match(r"\d+gb|hbm|pcie", w)]
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words)).strip("-")


def _rounded(value: float | None, digits: int = 4) -> str | None:
    return None if value is None else f"{value:.{digits}g}"


def _range(least: float | None, most: float | None) -> str | None:
    return None if least is None else f"{least:.4g} to {most:.4g}"
