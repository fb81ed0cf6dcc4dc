"""Tests by an edit of the forward pass, and by another arm; what several kinds of test share.

Rows of edits come from `gatelab probe --intervene … --json`, appended to `FILE` in the study's folder.
"""

from collections.abc import Callable, Collection, Mapping, Sized
from dataclasses import replace
from typing import Any, Literal

from .anomalies.readings import SINK
from .causes import EDITED, NOTHING, Decision, Ledger, Test, above_nothing, above_zero, decided, near_zero, no_more
from .to_run import edits, seeds_more

FILE = "causes.jsonl"


def edit(word: str, *, of_gate: bool = False, costs: Literal["more", "nothing", "no more"] = "more") -> Test:
    """An intervention on the finished runs of the arm, or of the baseline: it costs more than its control does, or no more; or it
    changes the loss by less than nothing, whatever its control does."""
    whose = "the gated runs" if of_gate else "the ungated runs"
    rule, predicts = {
        "more": (above_nothing, f"costs {whose} {NOTHING} nats more than its control does"),
        "no more": (no_more, f"costs {whose} no {NOTHING} nats more than its control does"),
        "nothing": (near_zero, f"changes the loss of {whose} by less than {NOTHING} nats"),
    }[costs]

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        found = Decision(word, "the forward pass of finished runs", predicts, reading=EDITED)
        changes, lacks = changes_of(ledger, cell, arm if of_gate else "", word, has_control=costs != "nothing")
        if len(changes) < 2:
            return unedited(found, ledger, cell, changes, lacks)
        return decided(found, list(changes.values()), rule, "nats")

    return Test(test, ((word, of_gate),))


def changes_of(
    ledger: Ledger, cell: str, arm: str, word: str, *, has_control: bool = True
) -> tuple[dict[str, float], list[str]]:
    """{run: what an edit changes its loss by, beyond its control} of an arm; and the runs that lack such rows. No arm: the
    baseline."""
    changes, lacks = {}, []
    for name in ledger.runs.get((cell, arm or ledger.evidence.baseline), {}).values():
        own = ledger.edits.get((name, word, 1.0))
        control = ledger.edits.get((name, f"control of {word}", 1.0)) if has_control else 0.0
        if own is None or control is None:
            lacks.append(name)
        else:
            changes[name] = own - control
    return changes, lacks


def unedited(found: Decision, ledger: Ledger, cell: str, changes: Sized, lacks: Collection[str]) -> Decision:
    """The test without enough rows of edits, with what makes them: edits of the runs whose weights are there; where too few have
    any, these runs anew; more seeds where editing every run is not enough."""
    found = replace(found, n=len(changes))
    there = [name for name in dict.fromkeys(lacks) if name not in ledger.unstored]
    if len(changes) + len(there) > 1:
        return replace(found, to_do=edits(ledger, cell, there))
    if len(changes) + len({*lacks}) < 2:
        return replace(found, to_do=seeds_more(ledger, [cell]))
    arms = dict.fromkeys(a for (c, a), of in ledger.runs.items() if c == cell and {*of.values()} & {*lacks})
    few = "too few" if there else "none"
    why = f"edits need weights, which {few} of the runs that lack these rows have in {ledger.folder}; these runs anew"
    return replace(found, to_do=[why], arms=[*arms])


def where_sinks(test: Test) -> Test:
    """The test where an ungated run shows a sink; where none does, doing nothing to it says nothing."""

    def asked(ledger: Ledger, cell: str, arm: str) -> Decision:
        mass = max(masses_of(ledger, cell, ledger.evidence.baseline).values(), default=None)
        found = test(ledger, cell, arm)
        if mass is None or mass > SINK:
            return found
        numbers = f"no ungated run has a sink (first-token mass {mass:.2g} at most, {SINK:g} is one)"
        return replace(found, verdict="undecided", numbers=numbers, to_do=[])

    return Test(asked, test.edits)


def masses_of(ledger: Ledger, cell: str, arm: str) -> dict[str, float]:
    """{run: the largest first-token mass that a layer has at its end}; of all layers together where layers were not told."""
    by_seed, out = ledger.evidence.runs("first_token_mass", cell, arm), {}
    for seed, name in ledger.runs.get((cell, arm), {}).items():
        course = ledger.courses.get(name, {}).get("sink")
        mass = course[-1][1] if course else by_seed.get(seed)
        if mass is not None:
            out[name] = mass
    return out


def excess(word: str, over: str, *, of_gate: bool = False) -> Test:
    """One intervention costs more than another, run by run."""
    one, other = edit(word, of_gate=of_gate, costs="nothing"), edit(over, of_gate=of_gate, costs="nothing")

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        found = Decision(
            f"{word} against {over}", "the forward pass of finished runs", f"the first costs {NOTHING} nats more",
            reading=EDITED,
        )  # fmt: skip
        names = ledger.runs.get((cell, arm if of_gate else ledger.evidence.baseline), {}).values()
        values = [tuple(ledger.edits.get((name, w, 1.0)) for w in (word, over)) for name in names]
        d = [a - b for a, b in values if a is not None and b is not None]
        if len(d) < 2:
            lacks = [name for name, pair in zip(names, values, strict=True) if None in pair]
            return unedited(found, ledger, cell, d, lacks)
        return decided(found, d, above_nothing, "nats")

    return Test(test, one.edits + other.edits)


def arm_where(
    words: str,
    is_it: Callable[[Mapping[str, Any]], bool],
    add: str,
    reading: str,
    predicts: str,
    *,
    sign: int,
    gate: bool,
) -> Test:
    """Another arm of the cell, known by its model: `sign` · (it minus the baseline; minus the gate, where `gate`) is above
    zero."""

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        found = Decision(words, "what is trained", predicts, reading=reading)
        other = next((a for (c, a), m in ledger.models.items() if c == cell and a != arm and is_it(m)), None)
        if other is None:
            return replace(found, arms=[add])
        refused = [ledger.evidence.refused[cell, a] for a in (other, arm) if (cell, a) in ledger.evidence.refused]
        if refused:
            return replace(found, to_do=refused)
        than = arm if gate else ledger.evidence.baseline
        ours, theirs = (ledger.evidence.comparable_runs(reading, cell, a) for a in (other, than))
        d = [ours[s] - theirs[s] for s in ours if s in theirs]
        found = replace(found, test=f"{words}: {other} against {than}")
        if reading not in ledger.evidence.readings:
            return replace(found, to_do=[f"no finished run here has {reading}"])
        if len(d) < 2:
            return replace(found, n=len(d), to_do=seeds_more(ledger, [cell]))
        return decided(found, d, above_zero, ledger.evidence.readings[reading].unit, sign=sign)

    return Test(test)
