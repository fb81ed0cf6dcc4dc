"""What several unclear effects on one metric of a cell share, said once: the smallest effects that could have been seen, and how
many seeds would be needed. A sentence of `verdicts` stands alone and says its own; in a list of them these are the same words."""

import re
from collections.abc import Sequence

from ..record import Finding
from .verdicts import NO_EFFECT_COULD, SMALLEST, compact_size

_SEEDS = re.compile(r"; (at least \d+ seeds that all change the same way would be needed)\.")


def in_common(findings: Sequence[Finding]) -> tuple[list[str], list[str]]:
    """The sentences of the effects on one metric in one cell, those of unclear effects without what power has to say where two or
    more of them say it; and that, a sentence each."""
    smallest = [f for f in findings if _clause(f) in f.sentence]
    seeds = [f for f in findings if _SEEDS.search(f.sentence)]
    said, after = {id(f): f.sentence for f in findings}, []
    if len(smallest) > 1:
        for f in smallest:
            said[id(f)] = f.sentence.replace(_clause(f), ".", 1)
        sizes = [f"{f.arm} {compact_size(f)}" for f in smallest]
        after.append(f"{SMALLEST[:1].upper()}{SMALLEST[1:].replace('effect', 'effects', 1)}: {', '.join(sizes)}.")
    needed = dict.fromkeys(_SEEDS.search(f.sentence).group(1) for f in seeds)
    if len(seeds) > 1 and len(needed) == 1:
        for f in seeds:
            said[id(f)] = _SEEDS.sub(".", said[id(f)], count=1)
        after += [f"To decide on changes of regime, {clause}." for clause in needed]
    return [said[id(f)] for f in findings], after


def _clause(f: Finding) -> str:
    """As `verdicts` ends the sentence of an unclear effect."""
    size = compact_size(f)
    return f"; {NO_EFFECT_COULD if size == 'none' else f'{SMALLEST} is {size}'}."
