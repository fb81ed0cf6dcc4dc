"""What verdict cards say on a terminal: what is decided first, then what is not run, a line a hypothesis, and each command once."""

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite

from .causes import Card, Decision
from .to_run import is_command

_ORDER = ("supported", "refuted", "undecided")
_FIRST = ("", "val_loss", "first_token_mass")  # readings of the cards on the loss and on sinks


def explained(cards: Iterable[Card], *, all_: bool = False) -> Iterator[str]:
    """The cards of the arms, those on the loss and on sinks first, of these the decided, with their tests that say a number (in a
    line with it where one test is all that a card rests on), those on the parts of a reading in a line; of the others what they
    lack, with the commands under their numbers. With `all_` every test of every card with its commands."""
    cards = list(cards)
    if all_:
        yield from _in_full(cards)
        return
    commands: dict[str, list[str]] = {}
    for study, cell, arm in dict.fromkeys((c.study, c.cell, c.arm) for c in cards):
        own = [c for c in cards if (c.study, c.cell, c.arm) == (study, cell, arm)]
        yield _titled(study, cell, arm)
        numbered = [c for c in own if _has_numbers(c)]
        for card in sorted((c for c in numbered if not _is_part(c)), key=_rank):
            told = [d for d in card.decisions if _is_said(d)]
            if len(told) == 1 and told[0].verdict == card.verdict:
                of = f" of {card.reading}" if card.reading else ""
                (d,) = told
                yield f"  {card.verdict:<10} {card.hypothesis}{of}: {_tested(d)[2:]}{_numbered(d, commands)}"
                continue
            yield _headed(card)
            for d in told:
                yield f"    {_tested(d)}{_numbered(d, commands)}"
        yield from _parts([c for c in numbered if _is_part(c)])
        if not numbered:
            yield "  nothing is decided"
    yield from _lacking(cards, commands)
    if commands:
        yield "\nwhat makes these rows (--all: every test with what makes its own)"
    for i, words in enumerate(commands.values(), 1):
        yield f"  [{i}] {max(words, key=len)}"


def _rank(card: Card) -> tuple[bool, int]:
    return card.reading not in _FIRST, _ORDER.index(card.verdict)


def _is_part(card: Card) -> bool:
    """Whether it is of a part of a reading, such as an octave of positions."""
    return ":" in card.reading


def _parts(cards: Sequence[Card]) -> Iterator[str]:
    """The verdicts on the parts of each reading in a line."""
    of: dict[str, dict[str, dict[str, list[str]]]] = {}  # {reading: {hypothesis: {verdict: parts}}}
    for card in sorted(cards, key=_rank):
        reading, _, part = card.reading.partition(":")
        of.setdefault(reading, {}).setdefault(card.hypothesis, {}).setdefault(card.verdict, []).append(part)
    for reading, hypotheses in of.items():
        said = []
        for name, verdicts in hypotheses.items():
            each = [f"{verdict} ({', '.join(parts)})" for verdict, parts in verdicts.items()]
            said.append(f"{name} {', '.join(each)}")
        yield f"  {reading}, part by part (--all has the numbers): {'; '.join(said)}"


def _in_full(cards: Sequence[Card]) -> Iterator[str]:
    before = None
    for card in cards:
        if (card.study, card.cell, card.arm) != before:
            before = card.study, card.cell, card.arm
            yield _titled(*before)
        yield _headed(card)
        for d in card.decisions:
            yield f"    {_tested(d)}"
            for word in d.to_do:
                yield f"        {word}"


def _titled(study: str, cell: str, arm: str) -> str:
    return f"\n{f'{study}, runs of the same configuration: ' if study else ''}{cell}, {arm}"


def _lacking(cards: Sequence[Card], commands: dict[str, list[str]]) -> Iterator[str]:
    """Of each hypothesis what its tests lack, over arms and readings."""
    lines: dict[str, dict[str, list[str]]] = {}  # {hypothesis: {what it lacks: the tests that do}}
    for card in cards:
        for d in card.decisions:
            if not _is_said(d):
                numbers = [d.numbers] if d.numbers else []
                lacks = "; ".join([*numbers, *(w for w in d.to_do if not is_command(w))]) + _numbered(d, commands)
                tests = lines.setdefault(card.hypothesis, {}).setdefault(lacks.strip(), [])
                tests += [d.test] if d.test not in tests else []
    if lines:
        yield "\nnot run, or nothing to decide by"
    for hypothesis, of in lines.items():
        told = "; ".join(f"{', '.join(tests)}: {lacks}" for lacks, tests in of.items())
        yield f"  {hypothesis}: {told}"


def _numbered(d: Decision, commands: dict[str, list[str]]) -> str:
    """The numbers of the commands that a test asks for, which are the same whatever is remarked behind them."""
    found = []
    for word in filter(is_command, d.to_do):
        command = word.partition("    #")[0]
        commands.setdefault(command, []).append(word)
        found.append(f"[{list(commands).index(command) + 1}]")
    return f" {' '.join(dict.fromkeys(found))}" if found else ""


def _is_said(d: Decision) -> bool:
    return d.verdict != "not run" and (d.verdict != "undecided" or isfinite(d.estimate) or d.n > 0)


def _has_numbers(card: Card) -> bool:
    return any(map(_is_said, card.decisions))


def _headed(card: Card) -> str:
    of = f" of {card.reading}" if card.reading else ""
    return f"  {card.verdict:<10} {card.hypothesis}{of}: {card.claim}{': ' + card.says if card.says else ''}"


def _tested(d: Decision) -> str:
    said = f"{d.verdict}; {d.numbers}" if d.numbers else d.verdict
    return f"{d.mark} {d.test} [{d.reading}]: {d.predicts}: {said}"
