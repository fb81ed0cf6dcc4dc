"""RULER's variable tracking (vt): a chain of assignments in a line said again and again; which names have the value?

Notable: one worked example stands before, with names of three letters and five lines, whatever the tokenizer.
"""

from itertools import pairwise

from ..draws import Draws, key_of
from ..prompt import Prompt, PromptTask, Script, Setting
from .match import found
from .needles import FILLER
from .words import letters

_HOPS = 4
_EXAMPLE_LINES = 5
_N_NEW = 30


def task() -> PromptTask:
    """The task."""
    return PromptTask(
        "ruler/vt", "follows a chain of five names of one value", "RULER vt (arXiv 2404.06654)", _item,
        lambda setting, index: (1, max(1, setting.length)), found, "found", has_depth=False,
    )  # fmt: skip


def _item(setting: Setting, index: int, size: int) -> Prompt:
    draws = Draws(key_of("ruler/vt", setting.seed), index)
    shown, names = ([letters(n, k, "A") for n in draws.distinct(_HOPS + 1, 26**k)] for k in (3, 5))
    values = [10_000 + v for v in draws.distinct(2, 90_000)]
    script = Script()
    _chain(script, draws, shown, values[0], _EXAMPLE_LINES, "")
    script.say(f" {' '.join(shown)}\n\n")
    _chain(script, draws, names, values[1], size, "evidence")
    return Prompt(
        task="ruler/vt",
        index=index,
        parts=(script.text,),
        answers=(f" {' '.join(names)}",),
        options=(),
        references=tuple(names),
        n_new=_N_NEW,
        evidence=tuple(script.spans["evidence"]),
        distractors=(),
        depth=None,
        chance=len(names) * 26.0**-5,
        floor=0.5,  # five names of the ten that the text has
        factors={"n_haystack": size},
    )


def _chain(script: Script, draws: Draws, names: list[str], value: int, n_lines: int, role: str) -> None:
    """The task on one chain, up to where its names are to be written."""
    said = [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in pairwise(names))]
    places = sorted(w * (n_lines + 1) >> 32 for w in draws.words(len(said)))
    pieces = []
    for line in range(n_lines + 1):
        pieces += [(role, text) for place, text in zip(places, said, strict=True) if place == line]
        pieces += [("", FILLER)] if line < n_lines else []
    script.say("Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n")
    script.say_all(pieces, "\n")
    script.say(
        f"\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: According to the "
        f"chain(s) of variable assignment in the text above, {len(names)} variables are assigned the value {value}, they are:"
    )
