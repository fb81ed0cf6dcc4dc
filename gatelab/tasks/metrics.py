"""What an answer is worth: exact match and margin, sets, citations, edits, positions, lengths. NumPy only.

Notable: a tie, or a number that is no number, is never right. Both are counted, and a choice in which k options are tied
best gives 1/k of a point to the right one among them, so a model that says nothing scores chance and not everything.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

N_BINS = 11  # of depth, as in the grids of needle tests
MIN_LENGTHS = 3  # from which on an effective length is told
KEPT = 0.85  # of a model's own short score, NoLiMa's form (arXiv 2502.05167)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`is_right` is strict; `credit` what chance would give, from 0 to 1; `is_tied` and `is_nan` say why they differ."""

    is_right: bool
    credit: float
    is_tied: bool = False
    is_nan: bool = False


def choice(scores: Sequence[float], right: int) -> Verdict:
    """Whether option `right` has the highest score (log-probabilities, say); one score that is not finite spoils all.

    Minus infinity is a score: an option that cannot be.
    """
    if any(math.isnan(s) or s == math.inf for s in scores):
        return Verdict(False, 0.0, is_nan=True)
    best = max(scores)
    tied = [i for i, s in enumerate(scores) if s == best]
    if len(tied) == 1:
        return Verdict(right == tied[0], float(right == tied[0]))
    return Verdict(False, (right in tied) / len(tied), is_tied=True)


@dataclass(frozen=True, slots=True)
class Share:
    """Precision, recall and their harmonic mean, shares."""

    precision: float
    recall: float
    f1: float


def overlap(given: Sequence[object], right: Sequence[object]) -> Share:
    """Of what was given, the share that is right; of what is right, the share that was given. Order does not count, and what
    is said twice counts once more only where it is right twice. Nothing given, or nothing right: 0, unless both."""
    if not given and not right:
        return Share(1.0, 1.0, 1.0)
    common = sum((Counter(given) & Counter(right)).values())
    precision = common / len(given) if given else 0.0
    recall = common / len(right) if right else 0.0
    return Share(precision, recall, 2 * common / (len(given) + len(right)))


def cited(given: Sequence[int], right: Sequence[int]) -> tuple[bool, Share]:
    """(is the value right, citation shares): both are a value and then documents, as the task `cite` answers."""
    return bool(given) and given[0] == right[0], overlap(given[1:], right[1:])


def answer_by_citation(pairs: Sequence[tuple[bool, bool]]) -> dict[tuple[bool, bool], float]:
    """Shares of the items whose (answer, citation) is right or wrong: all four, which sum to 1.

    Raises:
        ValueError: without items.
    """
    if not pairs:
        raise ValueError("answer_by_citation: no items; score some first")
    return {(a, c): sum(p == (a, c) for p in pairs) / len(pairs) for a in (True, False) for c in (True, False)}


def edit_similarity(given: Sequence[object], right: Sequence[object]) -> float:
    """1 − Levenshtein distance / the longer length; 1 for two empty ones. LongBench's code tasks have a fuzzy ratio there,
    which is another number."""
    if not given and not right:
        return 1.0
    before = list(range(len(right) + 1))
    for i, g in enumerate(given, 1):
        now = [i]
        for j, r in enumerate(right, 1):
            now.append(min(before[j] + 1, now[-1] + 1, before[j - 1] + (g != r)))
        before = now
    return 1 - before[-1] / max(len(given), len(right))


def rouge_l(given: str, right: str) -> float:
    """ROUGE-L F of the package rouge-score, with its stemmer, as in HELMET and the harness; other packages differ.

    Raises:
        ModuleNotFoundError: the package is not there; it is in the extra `eval`.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("ROUGE-L needs the package rouge-score: pip install 'gatelab[eval]'") from error
    return RougeScorer(["rougeL"], use_stemmer=True).score(right, given)["rougeL"].fmeasure


def copied_from_start(given: Sequence[int], tokens: Sequence[int], *, least: int = 3) -> bool:
    """Whether an answer begins as the text does: its first `least` tokens (all, of a shorter one) are those after BOS.

    A behavioural trace of attention that rests on the beginning, seen in RULER's cwe (arXiv 2404.06654).
    """
    n = min(least, len(given))
    return n > 0 and tuple(given[:n]) == tuple(tokens[1 : 1 + n])


def bin_of(depth: float) -> int:
    """The depth's bin, 0 to 10."""
    return min(N_BINS - 1, int(depth * N_BINS))


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the percentile bootstrap over items around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PositionCurve:
    """A score by depth. primacy: the first bin less the mean of the middle three; recency: the last bin less that;
    u_index: the mean of both ends less it; worst: the lowest bin. `bins` are means, nan where there is no item, and `ranges`
    their intervals."""

    bins: tuple[float, ...]
    primacy: Interval
    recency: Interval
    u_index: Interval
    worst: Interval
    ranges: tuple[tuple[float, float], ...]


def position_curve(
    depths: Sequence[float],
    scores: Sequence[float],
    *,
    is_paired: bool = False,
    confidence: float = 0.95,
    n_samples: int = 1000,
    seed: int = 0,
) -> PositionCurve:
    """The curve of a score (accuracy, or a margin, which does not saturate) over 11 bins of depth; the items of each bin are
    drawn anew for the intervals.

    Args:
        is_paired: every item stands in every bin, the k-th of a bin being that of all others, so that items are drawn and not
            their places.

    Raises:
        ValueError: a bin at an end or in the middle without items; paired bins of unequal numbers; scores that are not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError("position_curve: a score is not finite; count such items and leave them out")
    of_bin = [np.array([s for d, s in zip(depths, scores, strict=True) if bin_of(d) == b]) for b in range(N_BINS)]
    if empty := [b for b in (0, 4, 5, 6, N_BINS - 1) if not len(of_bin[b])]:
        raise ValueError(
            f"position_curve: no items in depth bins {empty} of 0 to 10; ask at depths b/10 for b = 0 … 10"
        )
    if is_paired and len({len(own) for own in of_bin}) > 1:
        raise ValueError("position_curve: bins of unequal numbers of items are not paired; leave is_paired out")
    rng = np.random.default_rng(seed)
    together = rng.integers(0, len(of_bin[0]), (n_samples, len(of_bin[0]))) if is_paired else None
    filled = [b for b in range(N_BINS) if len(of_bin[b])]
    means_SB = np.full((n_samples + 1, N_BINS), np.nan)
    for b in filled:
        n = len(of_bin[b])
        means_SB[0, b] = of_bin[b].mean()
        drawn = together if is_paired else rng.integers(0, n, (n_samples, n))
        means_SB[1:, b] = of_bin[b][drawn].mean(axis=1)
    first_S, last_S, middle_S = means_SB[:, 0], means_SB[:, -1], means_SB[:, 4:7].mean(axis=1)
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]

    def interval(x_S: np.ndarray) -> Interval:
        low, high = np.percentile(x_S[1:], tails)
        return Interval(float(x_S[0]), float(low), float(high))

    return PositionCurve(
        bins=tuple(means_SB[0].tolist()),
        primacy=interval(first_S - middle_S),
        recency=interval(last_S - middle_S),
        u_index=interval((first_S + last_S) / 2 - middle_S),
        worst=interval(means_SB[:, filled].min(axis=1)),
        ranges=tuple(tuple(np.percentile(means_SB[1:, b], tails).tolist()) for b in range(N_BINS)),
    )


def guessing(chance: float | None, copying: float | None) -> float | None:
    """What a score has to be above to say something: the greater of chance and of blind copying; None where neither is known.

    Where copying scores 1 it is all that is asked (a needle without distractors), and no guess.
    """
    return max((g for g in (chance, copying) if g is not None and g < 1), default=None)


def effective_length(
    score_by_length: dict[int, float],
    chance_by_length: Mapping[int, float] = MappingProxyType({}),
    low_by_length: Mapping[int, float] = MappingProxyType({}),
) -> int | None:
    """The longest length whose score is at least 85% of the model's own best at its three shortest lengths, both less what guessing
    scores there (`guessing`), where that is known; None where none is, or that best is no number or not above it (0 where it is
    not known).

    NoLiMa's relative form; RULER's fixed 85.6 is another model's score.

    Args:
        low_by_length: the lower ends of the scores' intervals; where chance is known, the best's has to be above it too.
    """
    above = {length: score - chance_by_length.get(length, 0.0) for length, score in score_by_length.items()}
    shortest = [length for length in sorted(above)[:MIN_LENGTHS] if not math.isnan(above[length])]
    base = max(shortest, key=lambda length: above[length], default=None)
    if base is None or above[base] <= 0:
        return None
    if base in chance_by_length and low_by_length.get(base, math.inf) <= chance_by_length[base]:
        return None
    return max((length for length, score in above.items() if score >= KEPT * above[base]), default=None)
