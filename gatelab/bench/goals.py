"""The project's goals for speed, as numbers, and which rows they are about.

Notable: a goal is judged on the GPUs that it was set for, H100 and H200, and on its own shape; anywhere else the row says
what the goal is and not whether it is met.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from .timing import Timing

JUDGED_ON = ("H100", "H200")


@dataclass(frozen=True)
class Goal:
    """`applies` to a row on a device of that name; `holds` of its numbers, which it has."""

    text: str
    applies: Callable[[Timing, str], bool]
    holds: Callable[[Timing], bool]


def _kernels(row: Timing, device: str) -> bool:
    shape = tuple(row.at.get(name) for name in ("tokens", "heads", "head_dim", "dtype"))
    return row.what == "gate" and row.is_own and shape == (32_768, 16, 128, "bfloat16")


def _beside_compiled(row: Timing, device: str) -> bool:
    return _kernels(row, device) and row.against == "torch.compile"


def _keeping(row: Timing, device: str) -> bool:
    return row.what == "ops" and "is_operator" in row.at and row.kept_goal_mib is not None


def _op(granularity: str) -> Callable[[Timing, str], bool]:
    def applies(row: Timing, device: str) -> bool:
        is_plain = not {"window", "documents"} & row.at.keys()
        is_shape = is_plain and row.at.get("length", 0) >= 4096 and row.at.get("head_dim") == 128
        is_whole = row.what == "ops" and row.work == "forward + backward"
        return is_whole and is_shape and row.at.get("granularity") == granularity and "fastest_own" in row.at

    return applies


def _layer(row: Timing, device: str) -> bool:
    is_best = row.of_layer is not None and "fastest_own" in row.at
    return is_best and row.at.get("granularity") == "headwise" and row.at.get("length") == 4096


def _mfu(least: float, most: float, *, is_moe: bool = False, on: str = "") -> Callable[[Timing, str], bool]:
    def applies(row: Timing, device: str) -> bool:
        n = row.at.get("n_parameters", 0) / 1e6
        is_kind = (
            row.what == "train"
            and row.is_own
            and row.gate == "none"
            and "runs" not in row.at
            and row.at.get("is_moe") == is_moe
        )
        return is_kind and least <= n < most and on in device

    return applies


def _training(granularity: str) -> Callable[[Timing, str], bool]:
    return lambda row, device: row.what == "train" and "runs" not in row.at and row.gate == f"sdpa-{granularity}"


def _stacked(width: int) -> Callable[[Timing, str], bool]:
    return lambda row, device: row.what == "train" and "runs" in row.at and row.at.get("width") == width


def _decoding(row: Timing, device: str) -> bool:
    is_step = row.what == "decode" and row.is_own and row.gate != "none"
    return is_step and 1 <= row.at["batch"] <= 64


def _probing(row: Timing, device: str) -> bool:
    return row.what == "probe" and row.candidate == "probes" and row.at.get("length") == 8192


GOALS = (
    Goal("at most 1.15 of the floor", _kernels, lambda r: r.of_floor <= 1.15),
    Goal("within the spread of torch.compile's", _beside_compiled, lambda r: r.median_ms <= r.at["peer_upper_ms"]),
    Goal("keeps at most ungated + gate logits", _keeping, lambda r: r.kept_mib <= r.kept_goal_mib),
    Goal("at most 1.05 of the best ungated", _op("elementwise"), lambda r: r.ratio <= 1.05),
    Goal("at most 1.02 of the best ungated", _op("headwise"), lambda r: r.ratio <= 1.02),
    Goal("at most 1% of a layer", _layer, lambda r: r.of_layer <= 0.01),
    Goal("MFU at least 33%", _mfu(28, 40, on="H100"), lambda r: r.mfu >= 0.33),
    Goal("MFU at least 38%", _mfu(28, 40, on="H200"), lambda r: r.mfu >= 0.38),
    Goal("MFU at least 45%", _mfu(100, 200), lambda r: r.mfu >= 0.45),
    Goal("MFU at least 50%", _mfu(340, float("inf")), lambda r: r.mfu >= 0.50),
    Goal("MFU at least 30%", _mfu(0, float("inf"), is_moe=True), lambda r: r.mfu >= 0.30),
    Goal("at least 0.98 of ungated tokens/s", _training("headwise"), lambda r: r.ratio <= 1 / 0.98),
    Goal("at least 0.97 of ungated tokens/s", _training("elementwise"), lambda r: r.ratio <= 1 / 0.97),
    Goal("at least 4 times one after another", _stacked(128), lambda r: r.ratio <= 1 / 4),
    Goal("at least 2 times one after another", _stacked(256), lambda r: r.ratio <= 1 / 2),
    Goal("at least 1.2 times one after another", _stacked(512), lambda r: r.ratio <= 1 / 1.2),
    Goal("at most 1.02 of ungated", _decoding, lambda r: r.ratio <= 1.02),
    Goal(
        "at most 1/5 of the time and 1/20 of the memory of all matrices",
        _probing,
        lambda r: r.ratio <= 1 / 5 and r.peak_ratio <= 1 / 20,
    ),
)


def judged(rows: list[Timing], device: str) -> list[Timing]:
    """The rows with their goals; `met` says met or missed, goal by goal, and — on a device that none was set for."""
    return [_judged(row, device) for row in rows]


def _judged(row: Timing, device: str) -> Timing:
    goals = [goal for goal in GOALS if row.median_ms is not None and goal.applies(row, device)]
    if not goals:
        return row
    is_judged = any(name in device for name in JUDGED_ON)
    verdicts = [_verdict(goal, row) if is_judged else "—" for goal in goals]
    return replace(row, goal="; ".join(g.text for g in goals), met="; ".join(verdicts))


def _verdict(goal: Goal, row: Timing) -> str:
    try:
        return "met" if goal.holds(row) else "missed"
    except TypeError:  # a number that it is about was not measured, such as the baseline's
        return "—"
