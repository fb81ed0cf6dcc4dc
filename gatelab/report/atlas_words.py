"""The atlas in words: what an arm, a setting, a cell, a task and a rule are called in a sentence.

Notable: an arm has the words of its studies, of several the plainest; a setting is named by its model and data, and the letter of
its study stands behind it, in a guide as a link.
"""

import re
from typing import TYPE_CHECKING

from ..tasks import TASKS, open_task
from .markup import Html, quantity, tag

if TYPE_CHECKING:
    from ..analysis.atlas import Atlas, Place, Sheet

CHECK = "✓"
TOY = "bigram-backcopy"
_SITE = re.compile(r"\bG\d\b")  # an arm's words with a letter and number for a place are not the plainest

# What an anomaly's rule has found, of a gate.
RULES = {
    "gate-collapse": "a layer's gate is shut or open nearly everywhere",
    "worse-than-none": "the task or the loss is worse than without a gate",
    "sink-stays": "the sink stays",
    "new-bias": "a bias for some position or token that the ungated model has not",
    "dead-heads": "more than a quarter of the heads are shut for good",
    "removed-but-worse": "the sink ends and the loss is worse",
    "sign-flip": "the effect has the opposite sign of that in other cells",
    "massive-without-sink": "massive activations without a sink",
    "sink-without-massive": "a sink without massive activations",
    "two-regimes": "the seeds fall into two groups",
    "instability": "a training that is unstable where the ungated one is not",
    "worse-at-length": "beyond the length of training it loses more",
    "gain-vanishes": "the gain is gone at the best learning rate",
}


class Words:
    """Of an atlas: its arms, settings and cells as its recommendations name them, a letter before each name."""

    def __init__(self, atlas: "Atlas") -> None:
        self._arms = _arm_words(atlas)
        self._sheets = {s.letter: s for s in atlas.sheets}
        self._places = {name: words for s in atlas.sheets for name, words in _settings(s).items()}

    def arm(self, name: str) -> str:
        """The words of an arm that the atlas calls so."""
        return self._arms.get(name, name)

    def gate(self, name: str) -> Html:
        """The same in a sentence, with the configuration's word behind it."""
        return tag("i", self.arm(name), title=name)

    def where(self, name: str) -> str:
        """A setting or cell, with its letter."""
        letter, words = self._split(name)
        return f"{words} ({letter})"

    def linked(self, name: str) -> Html:
        """The same, its letter a link."""
        letter, words = self._split(name)
        return tag("span", f"{words} ", self.letter(letter))

    def letter(self, letter: str) -> Html:
        """The letter of a study as a link to its page, or to its row here."""
        s = self._sheets[letter]
        return tag("a", f"[{letter}]", href=s.pages.get("page", "#studies"), title=s.name)

    def _split(self, name: str) -> tuple[str, str]:
        letter, _, own = name.partition(" ")
        return letter, self._places.get(name, own)


def _arm_words(atlas: "Atlas") -> dict[str, str]:
    """Each arm's plainest words; two that would have the same keep the configuration's word behind them."""
    said: dict[str, list[str]] = {}
    for s in atlas.sheets:
        for name, label in s.labels.items():
            said.setdefault(name, []).append(label)
    words = {name: min(labels, key=lambda x: (bool(_SITE.search(x)), len(x), x)) for name, labels in said.items()}
    held = list(words.values())
    return {name: word if held.count(word) == 1 else f"{word} ({name})" for name, word in words.items()}


def _settings(s: "Sheet") -> dict[str, str]:
    """{setting or cell behind its letter: words}; names of their own where the words would be those of another."""
    words = {name: _place(place, list(s.places.values())) for name, place in s.places.items()}
    held = list(words.values())
    words = {name: word if held.count(word) == 1 else f"{word}, {name}" for name, word in words.items()}
    out = {f"{s.letter} {name}": word for name, word in words.items()}
    if not isinstance(s.advice, str):
        for setting in s.advice.at_best.settings:
            for rate, cell in setting.cells.items():
                at = f" at a learning rate of {rate:g}" if len(setting.cells) > 1 else ""
                out.setdefault(f"{s.letter} {cell}", f"{words[setting.name]}{at}")
    return out


def _place(place: "Place", beside: "list[Place]") -> str:
    """A model on data, its size where the study has several of the kind."""
    alike = {p.n_parameters for p in beside if (p.architecture, p.data) == (place.architecture, place.data)}
    size = f" of {quantity(place.n_parameters)}" if len(alike) > 1 else ""
    return f"{model_words(place.architecture)}{size} on {data_words(place.data)}"


def model_words(architecture: str) -> str:
    """A kind of model."""
    return architecture.replace(", experts", " with experts")


def data_words(data: str) -> str:
    """What a model is trained on: the name of a task, the toy, or a text."""
    return data.removeprefix("task ").replace(TOY, "the toy")


def tasks_of(atlas: "Atlas") -> dict[str, str]:
    """{a task that some study has: what it asks of a model}."""
    named = {name for p in atlas.places if p.data.startswith("task ") for name in data_words(p.data).split(", ")}
    return {name: open_task(name).what for name in TASKS if name in named}
