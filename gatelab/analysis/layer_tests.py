"""A test by one layer at a time: the gates of a layer are off in finished runs, those of the others as they were trained."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from .cause_tests import changes_of, unedited
from .causes import EDITED, LEVEL, NOTHING, Decision, Ledger, Test, near_zero
from .student import Estimate, estimate, interval, p_above

EACH = "each-layer"
_MOST_SAID = 6  # layers whose costs are listed


def each_layer(word: str, model: Mapping[str, Any]) -> list[str]:
    """An edit's word a layer; none of a model of one layer, or with gates in a part of its layers."""
    kind, _, place = word.partition(":")
    depth = model.get("n_layers", 1)
    if place != EACH or depth < 2 or model.get("gate_layers", "all") != "all":
        return []
    return [f"{kind}:l{layer}" for layer in range(depth)]


def layers_edited(kind: str) -> Test:
    """An edit of the gates of one layer at a time, each beyond its control: two layers differ by more than nothing, at 5% over all
    pairs of layers (Bonferroni); or each two by less (TOST)."""
    word = f"{kind}:{EACH}"

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        own = ledger.models.get((cell, arm), {})
        found = Decision(
            f"{kind} in one layer at a time", "the forward pass of finished runs",
            f"beyond their controls the costs of two layers differ by more than {NOTHING} nats", reading=EDITED,
        )  # fmt: skip
        words = each_layer(word, own)
        if not words:
            return replace(
                found, to_do=["one layer, or a gate in a part of the layers, has no others to be held against"]
            )
        parts = [changes_of(ledger, cell, arm, w) for w in words]
        runs = [name for name in parts[0][0] if all(name in changes for changes, _ in parts)]
        if len(runs) < 2:
            return unedited(found, ledger, cell, runs, [name for _, lacks in parts for name in lacks])
        costs = {w: [changes[name] for name in runs] for w, (changes, _) in zip(words, parts, strict=True)}
        return _judged(found, costs)

    return Test(test, ((word, True),))


def _judged(found: Decision, costs: Mapping[str, Sequence[float]]) -> Decision:
    """By the pairs of layers; the number told is of the two that lie furthest apart, its interval as wide as all pairs ask."""
    pairs = {(a, b): _difference(costs[a], costs[b]) for a, b in combinations(costs, 2)}
    spread = [e for e in pairs.values() if e.sigma > 0]
    (a, b), far = max(pairs.items(), key=lambda x: abs(x[1].mean))
    level = LEVEL / len(pairs)
    verdict = "undecided"
    if any(p_above(replace(e, mean=abs(e.mean)), NOTHING) < level / 2 for e in spread):
        verdict = "supported"
    elif len(spread) == len(pairs) and all(near_zero(e) == "supported" for e in spread):
        verdict = "refuted"
    if far.mean < 0:
        a, b, far = b, a, replace(far, mean=-far.mean)
    low, high = interval(far, 1 - level) if far.sigma > 0 else (far.mean, far.mean)
    numbers = (
        f"{a} costs {far.mean:.4g} nats more than {b} (over all pairs 95%: {low:+.4g} to {high:+.4g}, {far.n} seeds)"
    )
    return replace(
        found, verdict=verdict, numbers=f"{numbers}; {_said(costs)}", estimate=far.mean, low=low, high=high, n=far.n
    )


def _difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    d = [a - b for a, b in zip(ours, theirs, strict=True)]
    return estimate(d, scale=max(map(abs, (*ours, *theirs))))


def _said(costs: Mapping[str, Sequence[float]]) -> str:
    """The mean cost of each layer, of many those that cost most."""
    means = {w.partition(":")[2]: sum(c) / len(c) for w, c in costs.items()}
    shown = sorted(means, key=lambda w: -abs(means[w]))[:_MOST_SAID]
    rest = f", {len(means) - len(shown)} cost less" if len(means) > len(shown) else ""
    return ", ".join(f"{layer} {means[layer]:+.4g}" for layer in means if layer in shown) + rest
