"""What this installation measures, and what this machine can do."""

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def probe_records() -> list[dict[str, Any]]:
    """One record a metric: probe, metric, unit."""
    from ..probes import PROBES

    return [{"probe": name, "metric": m, "unit": u} for name, p in PROBES.items() for m, u in p.metrics.items()]


def intervention_records() -> list[dict[str, Any]]:
    """One record a kind of edit: its word, what it does, its doses."""
    from ..probes.interventions import KINDS

    return [
        {"word": word, "what": kind.kinds[word].what, "doses": " ".join(f"{d:g}" for d in kind.kinds[word].doses)}
        for word, kind in KINDS.items()
    ]


def machine_records() -> list[dict[str, Any]]:
    """One record a fact about this machine and installation."""
    from ..data.cache import default_cache
    from ..study.local import gpus, n_cores

    facts: dict[str, Any] = {"python": sys.version.split()[0], "platform": platform.platform()}
    for package in (
        "gatelab",
        "torch",
        "numpy",
        "pydantic",
        "duckdb",
        "altair",
        "tokenizers",
        "triton",
        "transformers",
    ):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    facts["cores"] = n_cores()
    facts["gpus"] = ", ".join(gpus()) or "none"
    facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    cache = default_cache()
    there = next(p for p in (cache, *cache.parents) if p.exists())
    facts["cache"] = _home(cache)
    facts["free_disk_gib"] = round(shutil.disk_usage(there).free / 2**30, 1)
    facts["writable_here"] = "yes" if os.access(Path.cwd(), os.W_OK) else "no: runs need --out elsewhere"
    return [{"fact": name, "value": str(value)} for name, value in facts.items()]


def _home(path: Path) -> str:
    """The path with the home folder as ~, which is all that another reader needs to know."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
