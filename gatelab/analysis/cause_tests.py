"""The kinds of test that a hypothesis may have: an edit of the forward pass, another arm, cells that differ in a key.

Rows of edits come from `gatelab probe --intervene … --json`, appended to `FILE` in the study's folder.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .anomalies.readings import SINK
from .causes import LEVEL, NOTHING, Decision, Ledger, Test, above_nothing, above_zero, decided, near_zero
from .heterogeneity import dependences

FILE = "causes.jsonl"
MOST_COMMANDS = 5  # that a card prints, a run each


def edit(word: str, *, of_gate: bool = False, is_harmless: bool = False) -> Test:
    """An intervention on the finished runs of the arm, or of the baseline: it changes the loss by less than nothing, or costs
    more than its control does."""
    whose = "the gated runs" if of_gate else "the ungated runs"
    predicts = (
        f"changes the loss of {whose} by less than {NOTHING} nats"
        if is_harmless
        else f"costs {whose} {NOTHING} nats more than its control does"
    )

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        found = Decision(word, "the forward pass of finished runs", predicts)
        changes, lacks = [], []
        for name in ledger.runs.get((cell, arm if of_gate else ledger.evidence.baseline), {}).values():
            own = ledger.edits.get((name, word, 1.0))
            control = 0.0 if is_harmless else ledger.edits.get((name, f"control of {word}", 1.0))
            if own is None or control is None:
                lacks.append(name)
            else:
                changes.append(own - control)
        if len(changes) < 2:
            enough = len(changes) + len(lacks) > 1
            return replace(
                found, n=len(changes), to_do=_edits(ledger, cell, word, lacks) if enough else _more_seeds(ledger)
            )
        return decided(found, changes, near_zero if is_harmless else above_nothing, "nats")

    return Test(test, ((word, of_gate),))


def _edits(ledger: Ledger, cell: str, word: str, names: Sequence[str]) -> list[str]:
    """The commands that make the rows of an edit of these runs: one a run, or where they are many one for all."""
    if len(names) > MOST_COMMANDS:
        command = f"gatelab find {shlex.quote(ledger.folder)} --explain {shlex.quote(cell)} --edit"
        return [f"{command}    # {len(names)} runs lack it; --seeds 0..7 makes some"]
    return [
        f"gatelab probe {ledger.folder}/runs/{name} --intervene {word} --json >> {ledger.folder}/{FILE}"
        for name in names
    ]


def where_sinks(test: Test) -> Test:
    """The test where an ungated run shows a sink; where none does, doing nothing to it says nothing."""

    def asked(ledger: Ledger, cell: str, arm: str) -> Decision:
        mass = ledger.evidence.runs("first_token_mass", cell, ledger.evidence.baseline)
        found = test(ledger, cell, arm)
        if not mass or max(mass.values()) > SINK:
            return found
        numbers = f"no ungated run has a sink (first-token mass {max(mass.values()):.2g} at most, {SINK:g} is one)"
        return replace(found, verdict="undecided", numbers=numbers, to_do=[])

    return Test(asked, test.edits)


def excess(word: str, over: str, *, of_gate: bool = False) -> Test:
    """One intervention costs more than another, run by run."""
    one, other = edit(word, of_gate=of_gate, is_harmless=True), edit(over, of_gate=of_gate, is_harmless=True)

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        found = Decision(
            f"{word} against {over}", "the forward pass of finished runs", f"the first costs {NOTHING} nats more"
        )
        names = ledger.runs.get((cell, arm if of_gate else ledger.evidence.baseline), {}).values()
        values = [tuple(ledger.edits.get((name, w, 1.0)) for w in (word, over)) for name in names]
        d = [a - b for a, b in values if a is not None and b is not None]
        if len(d) < 2:
            to_do = dict.fromkeys(x for part in (one, other) for x in part(ledger, cell, arm).to_do)
            return replace(found, n=len(d), to_do=list(to_do))
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
        found = Decision(words, "what is trained", predicts)
        other = next((a for (c, a), m in ledger.models.items() if c == cell and a != arm and is_it(m)), None)
        if other is None:
            return replace(
                found,
                to_do=[
                    f"add {add} to the arms of the study's file, then: gatelab run {ledger.study} --out {ledger.folder}"
                ],
            )
        refused = [ledger.evidence.refused[cell, a] for a in (other, arm) if (cell, a) in ledger.evidence.refused]
        if refused:
            return replace(found, to_do=refused)
        than = arm if gate else ledger.evidence.baseline
        ours, theirs = (ledger.evidence.runs(reading, cell, a) for a in (other, than))
        d = [ours[s] - theirs[s] for s in ours if s in theirs]
        found = replace(found, test=f"{words}: {other} against {than}")
        if len(d) < 2:
            return replace(found, n=len(d), to_do=_more_seeds(ledger))
        return decided(found, d, above_zero, ledger.evidence.readings[reading].unit, sign=sign)

    return Test(test)


def cells_by(key: str, word: Callable[[Mapping[str, Any]], str], predicts: str) -> Test:
    """Cells that differ in a key: the gate's effect on the loss depends on it (partial F). Refuted where the whole interval
    of its slope a doubling counts as nothing. `word` makes such cells of a cell's configuration."""

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        found = Decision(key, "cells that differ in it", predicts)
        if key not in ledger.factors and not any(k.startswith(f"{key}.") for k in ledger.factors):
            try:
                words = word(ledger.bases[cell])
            except KeyError:
                return replace(found, to_do=[f"cells that differ in {key}; this study does not say what its own have"])
            there = f"{ledger.folder}-{key.rpartition('.')[2]}"
            ask = f"gatelab find {there} --explain CELL"
            return replace(found, to_do=[f"gatelab run {ledger.study} {words} --out {there}, then {ask}"])
        one = replace(ledger.evidence, arms=[arm])
        of_key = [d for d in dependences(one, ledger.factors, ["val_loss"]) if key in _keys(d.factor)]
        if not of_key:
            return replace(
                found, to_do=["no cells with two pairs each of the held-out loss, made by one version of the code"]
            )
        d = of_key[0]
        if d.notes or " = " in d.factor:
            why = d.notes[0] if d.notes else f"the cells differ alike in {d.label}: they cannot be told apart"
            return replace(found, verdict="undecided", numbers=why)
        is_slope = d.slope == d.slope
        is_nothing = is_slope and max(abs(d.slope_low), abs(d.slope_high)) < NOTHING
        numbers = f"F({d.df:g}, {d.df_error:g}) = {d.f:.3g}, p = {d.p:.2g}, against {d.against}" + (
            f"; {d.slope:+.3g} nats a doubling ({d.slope_low:+.3g} to {d.slope_high:+.3g})" if is_slope else ""
        )
        return replace(
            found, verdict="refuted" if is_nothing else "supported" if d.p < LEVEL else "undecided", numbers=numbers,
            estimate=d.slope, low=d.slope_low, high=d.slope_high, n=len(ledger.factors[key]) if key in ledger.factors else 0,
        )  # fmt: skip

    return Test(test)


def _keys(merged: str) -> list[str]:
    """The keys of a factor; those below a key count as it."""
    names = merged.split(" = ")
    return [*names, *(n.rpartition(".")[0] for n in names)]


def at(base: Mapping[str, Any], key: str) -> Any:
    value: Any = base
    for part in key.split("."):
        value = value[part]
    return value


def _more_seeds(ledger: Ledger) -> list[str]:
    some = max(2, len({s for seeds in ledger.runs.values() for s in seeds}) + 1)
    return [f"gatelab run {ledger.study} seed=0..{some} --out {ledger.folder}"]
