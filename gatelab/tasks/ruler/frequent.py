"""RULER's frequent words (fwe): coded words by a zeta law, the most frequent of them dots; which three come next?

Notable: rank k comes n·k⁻²/ζ(2) times, rounded down, so the size is n. In the layout `original` every text of one size has
its ranks in the same places.
"""

from functools import lru_cache
from math import pi
from random import Random

from ..draws import Draws, key_of
from ..prompt import Prompt, PromptTask, Script, Setting
from ..task import TaskError
from .match import found
from .needles import SHUFFLE
from .words import N_CODED, letters

_DOTS = "..."
_N_NEW = 50
_PER_WORD = 50  # tokens of the length to a word of the vocabulary


def task() -> PromptTask:
    """The task."""
    return PromptTask(
        "ruler/fwe", "names the three coded words that come most often", "RULER fwe (arXiv 2404.06654)", _item, _sizes, found,
        "found", has_depth=False,
    )  # fmt: skip


def _counts(n: int, n_words: int) -> list[int]:
    """How often each rank comes, the dots' first, down to the last that does."""
    counts = [int(n * 6 / pi**2 / k**2) for k in range(1, n_words + 1)]
    return [c for c in counts if c]


def _sizes(setting: Setting, index: int) -> tuple[int, int]:
    return _least(setting.length // _PER_WORD), max(setting.length, _least(setting.length // _PER_WORD))


@lru_cache
def _least(n_words: int) -> int:
    """The least n of which the first five ranks come unequally often."""
    if n_words < 4:
        raise TaskError(
            f"ruler/fwe: a length below {4 * _PER_WORD} has fewer than four words to tell apart; ask for a longer one"
        )
    n = 1
    while len(counts := _counts(n, n_words)[:5]) < min(5, n_words) or len(set(counts)) < len(counts):
        n += 1
    return n


def _item(setting: Setting, index: int, size: int) -> Prompt:
    draws = Draws(key_of("ruler/fwe", setting.seed), index)
    n_words = setting.length // _PER_WORD
    words = [_DOTS, *(letters(n, 6) for n in draws.distinct(n_words - 1, N_CODED))]
    counts = _counts(size, n_words)
    roles = ["", *["evidence"] * 3, *["distractor"] * max(0, len(counts) - 4)]
    entries = [(role, word) for role, word, n in zip(roles, words, counts, strict=False) for _ in range(n)]
    if setting.layout == "original":
        Random(SHUFFLE).shuffle(entries)
    else:
        entries = [entries[i] for i in draws.order(len(entries))]
    script = Script()
    script.say(
        "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded "
        "words. "
    )
    script.say_all(entries, " ")
    script.say(
        "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently appeared "
        "words in the above coded text? Answer: According to the coded text above, the three most frequently appeared words are:"
    )
    return Prompt(
        task="ruler/fwe",
        index=index,
        parts=(script.text,),
        answers=(f" {' '.join(words[1:4])}",),
        options=(),
        references=tuple(words[1:4]),
        n_new=_N_NEW,
        evidence=tuple(script.spans["evidence"]),
        distractors=tuple(script.spans["distractor"]),
        depth=None,
        chance=3 / N_CODED,
        floor=3 / (len(counts) - 1),
        factors={"n_words": len(entries)},
    )
