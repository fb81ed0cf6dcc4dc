"""Whether the harness's RULER comes to an end with a tokenizer: its generators count in the tokenizer's tokens, and where not even
their shortest item fits, variable tracking tries for ever and the common words are asked of an empty list.

Notable: the names and numbers in an item are drawn, so the longest of a few draws counts, and as much more as they differ. What
the generators draw later is not changed by it.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from lm_eval.tasks import TaskManager

from ...config import ConfigError
from . import definitions
from .definitions import RULER
from .quiet import quiet
from .tasks import Asking

_DRAWS = 20
# As `vt_utils` has them: the worked example is made for a context of 500, in steps of 5 lines of filler, an item in steps of 10.
_EXAMPLE, _CHAINS, _HOPS, _VT_ANSWER = 500, 1, 4, 30
_CWE_ANSWER, _CWE_WORDS = 120, 10

Count = Callable[[str], int]


def that_end(asking: Asking, manager: TaskManager, count: Count) -> tuple[Asking, list[str]]:
    """What is asked, tags written out, and notes: of a tag the tasks are left out whose generator would not end, or ask nothing, at
    one of the lengths.

    Args:
        count: tokens of a text, what the tokenizer puts first included.

    Raises:
        ConfigError: such a task was named, or stands in a group, which has a score of all its tasks; or a tag has no other.
    """
    of_name = {name: [leaf for leaf, _ in definitions.leaves(manager, name)] for name in asking.names}
    problems = _problems({leaf for own in of_name.values() for leaf in own}, count, asking.lengths)
    refused, names, notes = [], [], []
    for name, own in of_name.items():
        bad = [leaf for leaf in own if leaf in problems]
        good = [leaf for leaf in own if leaf not in problems]
        if not definitions.is_tag(manager, name) or not good:
            refused += bad
            names.append(name)
            continue
        names += good
        notes += [f"{name}: without {leaf}: {problems[leaf]}" for leaf in bad]
        if name == RULER and asking.data_dir is not None:
            notes.append(
                f"{name}: offline {', '.join(sorted(good))}, which need no file; gatelab/ruler asks all thirteen, given --haystack "
                "and the files of its questions"
            )
    if refused:
        raise ConfigError([f"--tasks {leaf}: {problems[leaf]}" for leaf in dict.fromkeys(refused)])
    return replace(asking, names=tuple(dict.fromkeys(names))), notes


def _problems(names: set[str], count: Count, lengths: Sequence[int]) -> dict[str, str]:
    """Why a task cannot be asked, of those that cannot."""
    out = {}
    with quiet(), _undone():
        for name, shortest in (("ruler_vt", _tracking), ("ruler_cwe", _common)):
            said = (shortest(count, length) for length in sorted(lengths) if name in names)
            if problem := next((s for s in said if s), None):
                out[name] = problem
    return out


def _tracking(count: Count, length: int) -> str | None:
    from lm_eval.tasks.ruler.vt_utils import generate_input_output

    def longest(n_lines: int, is_example: bool) -> int:
        made = (generate_input_output(n_lines, _CHAINS, _HOPS, is_icl=is_example) for _ in range(_DRAWS))
        return _at_most(count(f"{text} {answer}") for text, answer in made)

    example, n_lines = longest(5, True), 5
    if example + _VT_ANSWER > _EXAMPLE:
        return (
            f"its worked example has up to {example} of this tokenizer's tokens at its shortest, and the harness's generator, "
            f"which has room for {_EXAMPLE - _VT_ANSWER} of it, would not come to an end; ask gatelab/ruler/vt"
        )
    while (longer := longest(n_lines + 5, True)) + _VT_ANSWER <= _EXAMPLE:
        example, n_lines = longer, n_lines + 5
    item = longest(10, False) + example + _VT_ANSWER
    if item <= length:
        return None
    return (
        f"--lengths {length}: its shortest item has up to {item} of this tokenizer's tokens, worked example and answer included, "
        "and the harness's generator may not come to an end; ask for longer ones, or gatelab/ruler/vt"
    )


def _common(count: Count, length: int) -> str | None:
    from lm_eval.tasks.ruler.cwe_utils import generate_input_output

    made = (generate_input_output(_CWE_WORDS, length) for _ in range(_DRAWS))
    item = _CWE_ANSWER + _at_most(
        count(f"{example}\n{text} {' '.join(f'{i}. {w}' for i, w in enumerate(answer, 1))}")
        for example, text, answer in made
    )
    if item <= length:
        return None
    return (
        f"--lengths {length}: its shortest item has up to {item} of this tokenizer's tokens, worked example and answer included, "
        "and the harness would ask for the words of an empty list; ask for longer ones, or gatelab/ruler/cwe"
    )


def _at_most(counts: Iterator[int]) -> int:
    """The largest, and as much more as they differ."""
    found = list(counts)
    return 2 * max(found) - min(found)


@contextmanager
def _undone() -> Iterator[None]:
    """Draws leave the generators of the process where they were."""
    before, before_np = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_np)
