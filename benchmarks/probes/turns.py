"""Passes that take turns: seconds and peak memory of each, a line on the terminal, a record in a file."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

Work = Callable[[], object]


def compared(
    works: dict[str, Work], measured: Callable[[Work, str], tuple[float, int]], device: str, repeats: int
) -> dict[str, dict[str, float]]:
    """Each work's median, least and most seconds and its peak bytes; `measured` gives one time's seconds and bytes."""
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            one = measured(work, device)
            # The first warms up; the largest resident set of a process grows in the first pass alone.
            if turn or device == "cpu":
                found[name].append(one)
    out = {}
    for name, pairs in found.items():
        seconds = [s for s, _ in pairs][-repeats:]
        out[name] = {
            "seconds": statistics.median(seconds), "least": min(seconds), "most": max(seconds),
            "bytes": max(b for _, b in pairs),
        }  # fmt: skip
    return out


def tell(label: str, record: dict[str, Any], out: Path | None) -> None:
    """Print what one work took, and append it to `out` where that is given."""
    seconds = f"{record['seconds']:9.4f} s [{record['least']:.4f}, {record['most']:.4f}]"
    print(f"{label} {seconds} {record['bytes'] / 2**20:11.1f} MiB", flush=True)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
