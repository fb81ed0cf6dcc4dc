"""How things are timed: taking turns in rounds, back and forth, so that a busy or a hot device slows all of them alike.

Notable: warm-ups are not counted; the number of rounds follows from the time that is left; a ratio is the median of the
ratios within rounds. What matters most has rounds of its own before the others are looked at, and stays in theirs. On CUDA a
timing is between two events behind a pause, in which the work is launched; before each the L2 cache is overwritten.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

_LEAST, _MOST = 3, 50  # rounds
# How often a work runs at least: to warm up, to be timed for the number of rounds, and in these.
RUNS = _LEAST + 2
_NO_MATTER_S = 1.0  # by so much a benchmark may always be longer
_L2 = 256 << 20  # bytes; larger than the L2 cache of any GPU so far
# A pause of a few milliseconds: as long as Python takes to launch a work, so that its launches are not timed.
_PAUSE = 8_000_000  # clock cycles


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Work:
    """What is timed: `run` of what `before` gave, and `before` is not timed. `floor_ms`: the least that it can take;
    `refused`: asked before it is first run, why it is not to be; `is_first`: whether it is timed before others are begun."""

    run: Callable[[Any], object]
    before: Callable[[], Any] = _nothing
    floor_ms: float = 0.0
    refused: Callable[[], str] = str
    is_first: bool = False


Measure = Callable[[Work], float]
_NOT_RUN = "not run: "
OVER = f"{_NOT_RUN}the time was over; give more --seconds"


@dataclass(frozen=True)
class Budget:
    """The time that a benchmark may take, from now on: until `end`, `asked` seconds in all."""

    end: float
    asked: float

    @classmethod
    def of(cls, seconds: float) -> "Budget":
        return cls(time.perf_counter() + seconds, seconds)

    def share(self, share: float) -> "Budget":
        """A part of what is left."""
        return Budget(time.perf_counter() + share * self.left, self.asked)

    def at_least(self, seconds: float) -> "Budget":
        """The same, or so long from now on."""
        return Budget(max(self.end, time.perf_counter() + seconds), self.asked)

    def check(self) -> None:
        """Raises TimeoutError when it is over, of which `why_not` makes `OVER`."""
        if not self.left:
            raise TimeoutError(OVER.removeprefix(_NOT_RUN))

    @property
    def left(self) -> float:
        """Seconds; 0 when it is over."""
        return max(0.0, self.end - time.perf_counter())

    def lacks(self, seconds: float) -> str:
        """Why what takes so long is not begun, or nothing: it may take what is left, or a tenth of all."""
        if seconds <= max(self.left, self.asked / 10, _NO_MATTER_S):
            return ""
        return (
            f"not run: takes at least {seconds:.3g} s, and {self.left:.3g} s of the {self.asked:g} asked are left; "
            "give more --seconds"
        )


@dataclass(frozen=True)
class Times:
    """Milliseconds of one candidate, one a round, and the peak of bytes beyond those before (None on a CPU). What was begun
    stays till the end: of two candidates the last rounds are the same."""

    ms: tuple[float, ...]
    peak_bytes: int | None

    @property
    def median(self) -> float:
        return statistics.median(self.ms)

    @property
    def upper(self) -> float:
        """Upper quartile: the end of the middle half."""
        return statistics.quantiles(self.ms, n=4, method="inclusive")[2]


@dataclass(frozen=True)
class Turns:
    """Times by name; of what could not be timed, why."""

    times: dict[str, Times]
    failed: dict[str, str]
    rounds: int


@dataclass(frozen=True)
class Timing:
    """A row of the results. Times in milliseconds over `rounds`; `floor_ms` is what the device must spend by its measured
    rates, `own_floor_ms` what it must where the candidate's kernels move more than that; `ratio` is the median over rounds of
    the time over that of `against`; `of_layer` what it takes beyond its own ungated pass, as a share of a decoder layer's time;
    `kept_mib` what is kept for the backward pass, `kept_goal_mib` what may be; `contract` holds, fails or says why there is
    no time."""

    what: str
    shape: str
    gate: str
    candidate: str
    work: str
    contract: str = ""
    median_ms: float | None = None
    least_ms: float | None = None
    most_ms: float | None = None
    rounds: int | None = None
    floor_ms: float | None = None
    own_floor_ms: float | None = None
    of_floor: float | None = None
    ratio: float | None = None
    ratio_least: float | None = None
    ratio_most: float | None = None
    against: str | None = None
    of_layer: float | None = None
    peak_mib: float | None = None
    peak_ratio: float | None = None
    kept_mib: float | None = None
    kept_goal_mib: float | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None
    goal: str | None = None
    met: str | None = None
    is_own: bool = False
    at: dict[str, Any] = field(default_factory=dict)

    def timed(self, times: Times, *, floor_ms: float | None = None, scale: float = 1.0) -> "Timing":
        """The row with its times, each multiplied by `scale`."""
        ms = [scale * t for t in times.ms]
        median = statistics.median(ms)
        return replace(
            self,
            median_ms=median,
            least_ms=min(ms),
            most_ms=max(ms),
            rounds=len(ms),
            floor_ms=floor_ms,
            of_floor=None if floor_ms is None else median / floor_ms,
            peak_mib=None if times.peak_bytes is None else times.peak_bytes / 2**20,
        )

    def over(self, times: Times, base: Times, against: str, *, scale: float = 1.0) -> "Timing":
        """The row with its ratio to a baseline, over the rounds that both were timed in."""
        n = min(len(times.ms), len(base.ms))
        ratios = [scale * a / b for a, b in zip(times.ms[-n:], base.ms[-n:], strict=True)]
        peak = times.peak_bytes / base.peak_bytes if times.peak_bytes and base.peak_bytes else None
        return replace(
            self,
            ratio=statistics.median(ratios),
            ratio_least=min(ratios),
            ratio_most=max(ratios),
            against=against,
            peak_ratio=peak,
        )

    def as_dict(self) -> dict[str, Any]:
        """Every field that says something."""
        return {k: v for k, v in asdict(self).items() if v not in (None, "", {})}


def clock(device: torch.device, *, is_clean: bool = False) -> Measure:
    """Milliseconds of one work on the device: between two events on CUDA, wall time elsewhere. With `is_clean` the L2 cache
    holds lines that were read alone, and nothing of the overwriting is still to be written."""
    if device.type != "cuda":
        return wall_clock(device)
    flushed = torch.empty(_L2, dtype=torch.uint8, device=device)
    read = torch.zeros(_L2 // 4, device=device) if is_clean else None

    def measure(work: Work) -> float:
        given = work.before()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flushed.zero_()
        if read is not None:
            read.sum()
        torch.cuda._sleep(_PAUSE)
        start.record()
        work.run(given)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return measure


def wall_clock(device: torch.device) -> Measure:
    """Milliseconds of wall time, with the device idle at both ends: for work that waits for the device by itself."""

    def measure(work: Work) -> float:
        given = work.before()
        _wait(device)
        start = time.perf_counter()
        work.run(given)
        _wait(device)
        return 1e3 * (time.perf_counter() - start)

    return measure


def take_turns(
    works: dict[str, Work], device: torch.device, *, budget: Budget, share: float = 1.0, measure: Measure | None = None
) -> Turns:
    """Time works in rounds, for a share of the budget that is left: 3 rounds at least and 50 at most.

    Those that are first have rounds for a half of that, before another is asked or run; then all are timed in every round. What
    is refused, raises in its warm-up, is reached only when the time is over, or takes longer than what is left of it, by its
    floor or as it turns out, is left out, and `failed` says why.
    """
    measure, until = measure or clock(device), budget.share(share)
    turns, n_rounds, estimate = Turns({}, {}, 0), 0, 0.0
    peaks: dict[str, int | None] = {}
    found: dict[str, list[float]] = {}
    groups = [[name for name, work in works.items() if work.is_first == is_first] for is_first in (True, False)]
    for names in filter(None, groups):
        for name in names:
            if found and not until.left:
                turns.failed[name] = OVER
                continue
            why, spent, peak = _warmed_up(works[name], device, measure, until, estimate)
            if why:
                turns.failed[name] = why
                continue
            found[name], peaks[name], estimate = [], peak, estimate + spent
        for_these = until.share(0.5) if names is groups[0] and groups[1] else until
        rounds = min(_MOST - n_rounds, int(for_these.left / estimate)) if estimate else 0
        for _ in range(max(_LEAST, rounds) if found else 0):
            n_rounds += 1
            # Back and forth: who follows one that lets the device cool is faster than who follows one that does not.
            for name in list(found)[:: -1 if n_rounds % 2 == 0 else 1]:
                found[name].append(measure(works[name]))
    turns.times.update({name: Times(tuple(times), peaks[name]) for name, times in found.items()})
    return replace(turns, rounds=n_rounds)


def _warmed_up(
    work: Work, device: torch.device, measure: Measure, until: Budget, estimate: float
) -> tuple[str, float, int | None]:
    """Why a work is left out, or nothing, and of what is not the seconds of a round and its peak. `estimate`: seconds of a
    round of the others."""
    if why := until.lacks(RUNS * work.floor_ms / 1e3) or work.refused():
        return why, 0.0, None
    try:
        work.run(work.before())
        peak = _peak_bytes(work, device)
        start = time.perf_counter()
        measure(work)
        spent = time.perf_counter() - start
    except Exception as error:
        return why_not(error), 0.0, None
    return until.lacks(_LEAST * (estimate + spent)), spent, peak


def why_not(error: Exception) -> str:
    """`not run: …` in one line; memory that an exhausted pass held is given back."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return "not run: out of memory"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{_NOT_RUN}{lines[0][:200]}"


def _peak_bytes(work: Work, device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    given = work.before()
    _wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work.run(given)
    _wait(device)
    return torch.cuda.max_memory_allocated(device) - before


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
