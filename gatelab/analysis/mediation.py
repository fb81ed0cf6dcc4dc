"""Mediation by manipulation: does a gate act on the loss through the sink? Either is moved while the other is held.

| moving the sink at a fixed gate | moving the gate at a fixed sink | the gate acts | the hypothesis is |
|---|---|---|---|
| costs more than its control | costs no more than its control | through the sink alone | supported |
| costs more | costs more | through the sink, and besides it | refuted |
| costs no more | costs more | not through the sink | refuted |
| costs no more | costs no more | through neither, in a finished model | refuted |

"More" is by `NOTHING` nats, in one-sided t over seeds; where either test is undecided, so is the hypothesis, unless the other
refutes it. The sink is moved by taking the first key out of the softmax, with every gate held at the scores of the untouched
pass, in the gated runs that have a sink; where the gate has left fewer than two, in the ungated ones, which have no gate. The
gate is moved by giving tokens one another's scores, with every layer's attention pattern held. The control of the first takes
another key out, that of the second adds a random direction of the same norm: what a change of that kind or size costs anyway
is taken off. Either is of finished models: what a gate did while they trained, it does not show.
"""

from dataclasses import dataclass, replace

from .anomalies.readings import SINK
from .cause_tests import changes_of, edit, masses_of, unedited
from .causes import EDITED, NOTHING, Decision, Ledger, Test, above_nothing, decided

HELD_GATE, NO_GATE, HELD_SINK = "mask-key-frozen@first", "mask-key@first", "gate-shuffle-frozen"

SAYS = {
    ("supported", "supported"): "the gate acts through the sink alone",
    ("supported", "refuted"): "the gate acts through the sink, and besides it",
    ("refuted", "refuted"): "the gate acts, and not through the sink",
    ("refuted", "supported"): "neither the sink nor the gate's scores carry loss in the finished model",
}


def sink_moved() -> Test:
    """The first key taken out of the softmax, gates held: of the gated runs that have a sink, where two do, else of such
    ungated ones. The other side is told beside it."""

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        found = Decision(
            "the sink moved at a fixed gate",
            "the forward pass of finished runs",
            f"costs {NOTHING} nats more than its control does",
            reading=EDITED,
        )
        sides = [
            _Side.of(ledger, cell, who, whose, word)
            for who, whose, word in (("gated", arm, HELD_GATE), ("ungated", ledger.evidence.baseline, NO_GATE))
        ]
        decides = next((side for side in sides if len(side.with_sink) > 1), None)
        if decides is None:
            most = max((mass for side in sides for mass in side.masses.values()), default=0.0)
            words = f"fewer than two runs have a sink to move (first-token mass {most:.2g} at most, {SINK:g} is one)"
            return replace(found, verdict="undecided", numbers=words)
        found = replace(found, test=f"{found.test}: {decides.word} of the {decides.who} runs with a sink")
        changes = [decides.changes[name] for name in decides.with_sink if name in decides.changes]
        if len(changes) < 2:
            lacks = [name for name in decides.with_sink if name in decides.lacks]
            return unedited(found, ledger, cell, changes, lacks)
        found = decided(found, changes, above_nothing, "nats")
        (other,) = (side for side in sides if side is not decides)
        if len(other.changes) < 2:
            return found
        said = decided(found, list(other.changes.values()), above_nothing, "nats").numbers
        n_moved = sum(name in other.changes for name in other.with_sink)
        beside = f"{other.who} runs, {n_moved} of {len(other.changes)} with a sink: {said}"
        return replace(found, numbers=f"{found.numbers}; {beside}")

    return Test(test, ((HELD_GATE, True), (NO_GATE, False)))


@dataclass(frozen=True)
class _Side:
    """The gated runs of an arm, or the ungated ones: which have a sink, and what moving it changes."""

    who: str
    word: str
    masses: dict[str, float]
    with_sink: list[str]
    changes: dict[str, float]
    lacks: list[str]

    @classmethod
    def of(cls, ledger: Ledger, cell: str, who: str, arm: str, word: str) -> "_Side":
        masses, (changes, lacks) = masses_of(ledger, cell, arm), changes_of(ledger, cell, arm, word)
        # Where nothing was told of a run's sink it counts as one.
        with_sink = [name for name in (*changes, *lacks) if masses.get(name, 1.0) > SINK]
        return cls(who, word, masses, with_sink, changes, lacks)


def gate_moved() -> Test:
    """Tokens given one another's gates, attention patterns held."""
    moved = edit(HELD_SINK, of_gate=True, costs="no more")

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        found = moved(ledger, cell, arm)
        return replace(found, test=f"the gate moved at a fixed sink: {found.test}")

    return Test(test, moved.edits)
