"""From a plan to a benchmark: the device's rates, the rows of its kind, a goal beside every row that one is about."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import torch

from ..config.base import ConfigError
from .floors import Rates, measure_rates
from .goals import judged
from .plan import Plan
from .timing import Budget, Timing

Facts = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """What one benchmark found: its kind, the device's name, sentences that head its table, its rows, and what was measured
    of the device, with versions and the plan."""

    kind: str
    device: str
    heading: list[str]
    rows: list[Timing]
    facts: Facts


def benchmark(kind: str, plan: Plan, tell: Callable[[str], None]) -> Benchmark:
    """Time what the plan says; `tell` hears what is being done.

    Raises:
        ConfigError: when what the kind compares with is not installed, or nothing of what is asked for can be served here.
    """
    # Before the time begins: what a kind needs may take seconds to be imported.
    module = import_module(f".{kind}", __package__)
    budget, device = Budget.of(plan.seconds), torch.device(plan.device)
    dtype = getattr(torch, getattr(plan, "dtype", "bfloat16" if plan.device == "cuda" else "float32"))
    rates = measure_rates(device, dtype, seconds=min(2.0, plan.seconds / 10))
    name = device_name(plan.device)
    rows = module.measure(plan, rates, budget, tell)
    facts = {
        "kind": kind,
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "utc": utc_now(),
        "copy_bytes_per_s": rates.bytes_per_s,
        "product_flops_per_s": rates.flops_per_s,
        "plan": plan.model_dump(mode="json"),
    }
    return Benchmark(kind, name, [*_heading(facts, rates, dtype), module.NOTE], judged(rows, name), facts)


def device_name(device: str) -> str:
    """What results call a device."""
    return torch.cuda.get_device_name(device) if device == "cuda" else f"{platform.machine()} CPU"


def utc_now() -> str:
    """To the minute."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M")


def pick_device(name: str) -> str:
    """`auto` is the GPU where there is one.

    Raises:
        ConfigError: for cuda where torch sees none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(["--device cuda: torch sees no CUDA device here; take --device cpu or auto"])
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def _heading(facts: Facts, rates: Rates, dtype: torch.dtype) -> list[str]:
    is_cpu = facts["plan"]["device"] == "cpu"
    given = {k: v for k, v in facts["plan"].items() if v is not None}
    stated = {k: ",".join(map(str, v)) if isinstance(v, list) else v for k, v in given.items()}
    return [
        *(["No GPU was used: these times say nothing about one."] if is_cpu else []),
        f"{facts['device']}, CPU threads: {facts['threads']}, torch {facts['torch']}, Python {facts['python']}.",
        f"Measured in this run: a copy moves {rates.bytes_per_s / 1e9:.4g} GB/s (read and write), a product of {rates.side}³ "
        f"in {str(dtype).removeprefix('torch.')} does {rates.flops_per_s / 1e12:.4g} TFLOP/s.",
        "All of a shape took turns in every round; times are medians, ratios medians of those within rounds.",
        f"{facts['kind']}: {' '.join(f'{k}={v}' for k, v in stated.items())}.",
    ]
