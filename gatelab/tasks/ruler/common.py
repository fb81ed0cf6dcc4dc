"""RULER's common words (cwe): a numbered list in which ten words come more often than all others; which?

Notable: words are pairs of ours, as keys are. In the layout `original` the list of a given length is shuffled the same way in
every item, so the common words stand at the same numbers.
"""

from functools import lru_cache
from random import Random

from ..draws import Draws, key_of
from ..prompt import Prompt, PromptTask, Script, Setting
from .match import found
from .needles import SHUFFLE
from .words import N_WORDS, pair

_ASKED = 10
_N_NEW = 120
_SHORT = 4096  # tokens, below which words come less often


def task() -> PromptTask:
    """The task."""
    return PromptTask(
        "ruler/cwe", "names the ten words that come most often", "RULER cwe (arXiv 2404.06654)", _item,
        lambda setting, index: (1, _most(setting.length)), found, "found", has_depth=False,
    )  # fmt: skip


def _most(length: int) -> int:
    """Words besides the common ones: more than fit, or as many as there are."""
    return min(max(1, length), N_WORDS // 2)


@lru_cache(maxsize=8)
def _drawn(seed: int, index: int, n_shown: int, n: int) -> tuple[list[str], list[str]]:
    """Words of the example, and of the item the common ones first, each from a part of all pairs of its own."""
    draws, half, quarter = Draws(key_of("ruler/cwe", seed), index), N_WORDS // 2, N_WORDS // 4
    often = [pair(half + k) for k in draws.distinct(_ASKED, quarter)]
    shown = [pair(half + quarter + k) for k in draws.distinct(n_shown, quarter)]
    return shown, [*often, *(pair(k) for k in draws.distinct(n, half))]


def _item(setting: Setting, index: int, size: int) -> Prompt:
    is_short = setting.length < _SHORT
    n_shown, often_shown, seldom_shown = (20, 3, 1) if is_short else (40, 10, 3)
    often, seldom = (6, 1) if is_short else (30, 3)
    shown, drawn = _drawn(setting.seed, index, n_shown, _most(setting.length))
    words = drawn[: _ASKED + size]
    draws = Draws(key_of("ruler/cwe/order", setting.seed), index)
    script = Script()
    _list(script, setting, draws, shown, often_shown, seldom_shown, "", "")
    script.say(f" {_numbered(shown[:_ASKED])}\n")
    _list(script, setting, draws, words, often, seldom, "evidence", "distractor")
    return Prompt(
        task="ruler/cwe",
        index=index,
        parts=(script.text,),
        answers=(f" {_numbered(words[:_ASKED])}",),
        options=(),
        references=tuple(words[:_ASKED]),
        n_new=_N_NEW,
        evidence=tuple(script.spans["evidence"]),
        distractors=tuple(script.spans["distractor"]),
        depth=None,
        chance=_ASKED / N_WORDS,
        floor=_ASKED / (len(words) + len(shown)),
        factors={"n_words": len(words)},
    )


def _list(
    script: Script, setting: Setting, draws: Draws, words: list[str], often: int, seldom: int, common: str, other: str
) -> None:
    """The task on one list, up to where the words are to be written."""
    entries = [(common, w) for w in words[:_ASKED]] * often + [(other, w) for w in words[_ASKED:]] * seldom
    if setting.layout == "original":
        Random(SHUFFLE).shuffle(entries)
    else:
        entries = [entries[i] for i in draws.order(len(entries))]
    script.say(
        "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear "
        "most often.\n"
    )
    for number, (role, word) in enumerate(entries, 1):
        script.say(f"{' ' if number > 1 else ''}{number}. ")
        script.say(word, role)
    script.say(
        "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words that appear most often in the "
        "list are:"
    )


def _numbered(words: list[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))
