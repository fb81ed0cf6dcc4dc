"""Tests by where in depth the gate is: trained in a third of the layers alone, or at its mean there in finished runs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..config.gate_layers import PLACES
from .cause_tests import changes_of, unedited
from .causes import EDITED, LOSS, NOTHING, Decision, Ledger, Test, besides, decided, not_nothing
from .student import estimate, interval
from .to_run import seeds_more
from .two_states import depending_states, mark, state_of

FIRST, LAST = THIRDS = ("first-third", "last-third")


def in_layers(word: str, model: Mapping[str, Any]) -> str | None:
    """An edit's word with a third of the layers written out; None where the model has no thirds, or no gate in some layer."""
    kind, _, place = word.partition(":")
    if place not in THIRDS:
        return word
    depth = model.get("n_layers", 1)
    if depth < 2 or model.get("gate_layers", "all") != "all":
        return None
    return f"{kind}:{','.join(f'l{layer}' for layer in PLACES[place](depth))}"


def thirds_trained() -> Test:
    """The arms that have this gate in the first third of the layers alone, and in the last: they differ in the ledger's reading.
    What each lacks of the gate in every layer is told beside it."""

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        metric, bound = ledger.evidence.readings.get(ledger.reading), ledger.bound or 0.0
        state = state_of(metric) if metric else None
        predicts = (
            f"they differ in whether {state.words}" if state
            else f"they differ in the {ledger.label}{f' by more than {bound:g} {metric.unit}' if metric and bound else ''}"
        )  # fmt: skip
        found = Decision(
            "a gate in the first third alone against one in the last", "what is trained", predicts,
            reading=mark(ledger.reading, state),
        )  # fmt: skip
        own = ledger.models.get((cell, arm), {})
        why = _no_thirds(own)
        if why:
            return replace(found, verdict="undecided", numbers=why)
        rest = besides(own, "gate_layers")
        alike = {
            _layers(m): a for (c, a), m in ledger.models.items() if c == cell and besides(m, "gate_layers") == rest
        }
        lacking = [third for third in THIRDS if third not in alike]
        if lacking:
            new = [
                f"Arm('{arm}-{third}', {{'model.gate': '{own.get('gate')}', 'model.gate_layers': '{third}'}}, control=True)"
                for third in lacking
            ]
            return replace(found, arms=[*(alike[third] for third in THIRDS if third in alike), *new])
        first, last = alike[FIRST], alike[LAST]
        refused = [ledger.evidence.refused[cell, a] for a in (first, last) if (cell, a) in ledger.evidence.refused]
        if refused:
            return replace(found, to_do=refused)
        found = replace(found, test=f"a gate in a third alone: {first} against {last}")
        if state is not None:
            return depending_states(found, ledger, state, {a: (cell, a) for a in (first, last)})
        between = _differences(ledger, cell, first, last)
        if metric is None or len(between) < 2:
            return replace(found, n=len(between), to_do=seeds_more(ledger, [cell]))
        found = decided(found, between, lambda e: not_nothing(e, bound), metric.unit)
        beside = [_said(a, _differences(ledger, cell, a, arm)) for a in (first, last)]
        return replace(found, numbers="; ".join([found.numbers, *filter(None, beside)]))

    return Test(test)


def thirds_edited(kind: str) -> Test:
    """An edit of the gates in the first third of the layers against the same in the last, each beyond its control, in finished
    runs."""
    words = [f"{kind}:{third}" for third in THIRDS]

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        own = ledger.models.get((cell, arm), {})
        found = Decision(
            f"{kind} in the first third against the last", "the forward pass of finished runs",
            f"beyond their controls the costs differ by more than {NOTHING} nats", reading=EDITED,
        )  # fmt: skip
        if ledger.reading != LOSS:
            why = f"rows of edits hold the change in loss alone, and nothing of the {ledger.label}"
            return replace(found, to_do=[why])
        why = _no_thirds(own)
        if why:
            return replace(found, verdict="undecided", numbers=why)
        edits = [in_layers(word, own) for word in words]
        parts = [changes_of(ledger, cell, arm, word) for word in edits]
        (first, _), (last, _) = parts
        both = [name for name in first if name in last]
        if len(both) < 2:
            return unedited(found, ledger, cell, both, [name for _, lacks in parts for name in lacks])
        found = decided(found, [first[name] - last[name] for name in both], not_nothing, "nats")
        beside = [_said(w, [own[n] for n in both]) for w, own in zip(edits, (first, last), strict=True)]
        return replace(found, numbers="; ".join([found.numbers, *filter(None, beside)]))

    return Test(test, tuple((word, True) for word in words))


def _no_thirds(model: Mapping[str, Any]) -> str:
    if _layers(model) != "all":
        return "this gate is in a part of the layers itself; explain the arm that has it in all of them"
    return "one layer has no thirds" if model.get("n_layers", 1) < 2 else ""


def _layers(model: Mapping[str, Any]) -> Any:
    layers = model.get("gate_layers", "all")
    return layers if isinstance(layers, str) else tuple(layers)


def _differences(ledger: Ledger, cell: str, arm: str, other: str) -> list[float]:
    """The reading of one arm minus that of another, seed by seed."""
    ours, theirs = (ledger.evidence.comparable_runs(ledger.reading, cell, a) for a in (arm, other))
    return [ours[s] - theirs[s] for s in ours if s in theirs]


def _said(words: str, values: list[float]) -> str:
    e = estimate(values, scale=max(map(abs, values))) if len(values) > 1 else None
    if e is None or not e.sigma > 0:
        return ""
    low, high = interval(e, 0.95)
    return f"{words} {e.mean:+.4g} ({low:+.4g} to {high:+.4g})"
