"""Attention and gate scores against being right, item by item: is the evidence attended where the answer is right, and is the
document that is cited the one that is looked at?

Notable: seeds differ in both, so right and wrong items are compared within a seed, and seeds without some of each say nothing of
it. Intervals come from drawing items anew, each with the answers of all seeds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from ..tasks.metrics import Interval
from .task_items import Asked, Group, grouped

LEAST = 3  # items that are right, and that are wrong, of a seed that is compared
_SAMPLES, _TAILS = 1000, (2.5, 97.5)
# What of the documents agrees: gold, cited, and most attended ones.
AGREEMENTS = ("cited gold", "attended gold", "cited attended", "all three", "cited attended, of wrong ones")


@dataclass(frozen=True, slots=True)
class Contrast:
    """A reading of right and of wrong items: means over those of all seeds, and how many; `difference`: right less wrong within a
    seed, mean over the `n_seeds` that have `LEAST` of both; None without one. `even`: what even attention would give, of
    attention to the evidence alone."""

    right: float | None
    n_right: int
    wrong: float | None
    n_wrong: int
    difference: Interval | None
    n_seeds: int
    even: float | None


def readings_of(inside: dict[str, Any]) -> dict[str, float]:
    """Means over layers of what `gatelab.evals.inside` kept of an item: attention to the `evidence` and the `first` token, and
    by site the scores at `SITE evidence` and `SITE asked`; nothing where one is no number."""
    by_layer = {name: inside[name] for name in ("evidence", "first")}
    for site, of in inside["gates"].items():
        by_layer |= {f"{site} {where}": of[where] for where in ("evidence", "asked")}
    return {name: fmean(layers) for name, layers in by_layer.items() if layers and None not in layers}


def contrasts(items: Iterable[Asked]) -> dict[Group, dict[str, Contrast]]:
    """{cell, arm, task, times, stretch: {reading: right against wrong}} of items that were looked into; attention to the evidence
    of a task whose keys are asked one by one is each key's to its own pair, right or wrong by itself."""
    out: dict[Group, dict[str, Contrast]] = {}
    for group, own in grouped(a for a in items if a.inside is not None).items():
        found: dict[str, list[tuple[Asked, float, bool]]] = {"evidence": []}
        found |= {name: [] for a in own for name in readings_of(a.inside)}
        for a in own:
            for name, value in readings_of(a.inside).items():
                if name != "evidence" or "of_each" not in a.inside:
                    found[name].append((a, value, a.is_right))
            # After each key one value is said, so it is keys that are right.
            hits = [given == right for given, right in zip(a.given, a.answer, strict=True)]
            of_each = zip(a.inside.get("of_each", ()), hits, strict=False)
            found["evidence"] += [(a, value, is_right) for value, is_right in of_each if value is not None]
        even = fmean(a.inside["even"] for a in own)
        out[group] = {
            name: contrast(
                [a.key[2] for a, *_ in of], [a.index for a, *_ in of], [v for _, v, _ in of], [hit for *_, hit in of],
                even if name == "evidence" else None,
            )
            for name, of in found.items()
            if of
        }  # fmt: skip
    return out


def contrast(
    seeds: Sequence[int],
    items: Sequence[int],
    values: Sequence[float],
    rights: Sequence[bool],
    even: float | None = None,
) -> Contrast:
    """A reading of the same items by several seeds."""
    seed_S, s = np.unique(seeds, return_inverse=True)
    item_I, i = np.unique(items, return_inverse=True)
    sums_2SI, counts_2SI = np.zeros((2, 2, len(seed_S), len(item_I)))
    right = np.array(rights, bool)
    np.add.at(sums_2SI, (right.astype(int), s, i), values)
    np.add.at(counts_2SI, (right.astype(int), s, i), 1.0)
    is_told_S = (counts_2SI.sum(axis=2) >= LEAST).all(axis=0)
    difference = None
    if is_told_S.any():
        sums, counts = sums_2SI[:, is_told_S], counts_2SI[:, is_told_S]
        weights_NI = np.vstack([np.ones(len(item_I)), _drawn(len(item_I))])
        n_2SN = counts @ weights_NI.T
        mean_2SN = np.divide(sums @ weights_NI.T, n_2SN, out=np.full_like(n_2SN, np.nan), where=n_2SN > 0)
        difference = _interval(_mean_of_told(mean_2SN[1] - mean_2SN[0]))
    value = np.array(values, float)
    means = [float(value[kind].mean()) if kind.any() else None for kind in (right, ~right)]
    return Contrast(means[0], int(right.sum()), means[1], int((~right).sum()), difference, int(is_told_S.sum()), even)


def agreements(items: Iterable[Asked]) -> dict[Group, dict[str, Interval]]:
    """Shares of answers in which the documents agree (`AGREEMENTS`), of tasks whose answers name some: gold ones, those that are
    cited, and as many that are attended most. The last is of answers whose citation is wrong, and not there without any."""
    out: dict[Group, dict[str, Interval]] = {}
    with_documents = (a for a in items if a.inside is not None and a.inside.get("attended"))
    for group, own in grouped(with_documents).items():
        index = {item: n for n, item in enumerate(sorted({a.index for a in own}))}
        hits_KI, asked_KI = np.zeros((2, len(AGREEMENTS), len(index)))
        for a in own:
            gold, cited, attended = map(sorted, (a.answer[1:], a.given[1:], a.inside["attended"]))
            is_wrong = cited != gold
            agrees = (not is_wrong, attended == gold, cited == attended, cited == gold == attended, cited == attended)
            counted = (True, True, True, True, is_wrong)
            hits_KI[:, index[a.index]] += np.logical_and(agrees, counted)
            asked_KI[:, index[a.index]] += counted
        weights_NI = np.vstack([np.ones(len(index)), _drawn(len(index))])
        n_KN = asked_KI @ weights_NI.T
        share_KN = np.divide(hits_KI @ weights_NI.T, n_KN, out=np.full_like(n_KN, np.nan), where=n_KN > 0)
        out[group] = {
            name: _interval(share_N)
            for name, share_N in zip(AGREEMENTS, share_KN, strict=True)
            if share_N[0] == share_N[0]
        }
    return out


def _drawn(n: int) -> np.ndarray:
    """How often each of n items is drawn, [samples, n]."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), _SAMPLES).astype(float)


def _mean_of_told(x_SN: np.ndarray) -> np.ndarray:
    """Over seeds that are a number, [N]."""
    told_SN = np.isfinite(x_SN)
    n_N = told_SN.sum(axis=0)
    return np.divide(np.where(told_SN, x_SN, 0).sum(axis=0), n_N, out=np.full(len(n_N), np.nan), where=n_N > 0)


def _interval(x_N: np.ndarray) -> Interval:
    """The first is the estimate, the others are samples of it; those that are no number do not count."""
    low, high = np.percentile(x_N[1:][np.isfinite(x_N[1:])], _TAILS)
    return Interval(float(x_N[0]), float(low), float(high))
