"""What the words of the atlas mean, before anything else: a gate and a sink, and what its sentences and tables count."""

from typing import TYPE_CHECKING, Any

from .atlas_words import TOY, Words, tasks_of
from .markup import Html, tag

if TYPE_CHECKING:
    from ..analysis.atlas import Atlas

_GATE = (
    " multiplies what a head of attention gives out (G1), or the values that it reads (G2), by numbers that it computes from the"
    " token at hand: one a head (headwise) or one a channel (elementwise); 0 is shut, 1 is open."
)
_SINK = " is a token, mostly the first, that takes much of the attention for no use of its content."
_WORDS = {
    "Effect": "With a gate minus without, the same seed on either side, mean over seeds; intervals are Student's t at 95%. Of one"
    " pair there is none, and none where seeds change between two states, which an exact test judges.",
    "Setting": "A model on some data, in which each gate stands at its own best learning rate. Nothing is averaged over settings,"
    " they are counted.",
    "Confirmed": "Named by a screen, registered, and held on seeds that were run after that, by Holm at 5%.",
    "Screen, exploratory, pilot": "Seen, and not tested again: of a screen within its false-discovery rate, exploratory at p below"
    " 5%; of a pilot there are fewer than three seeds, from which nothing is recommended.",
}


def meanings(atlas: "Atlas", words: Words) -> list[Html]:
    """A gate and a sink in a sentence each; then the words that are used on every such page, and those that this one needs."""
    letters = [tag("span", words.letter(s.letter), f" {s.name}; ") for s in atlas.sheets]
    entries: list[tuple[str, Any]] = [*_WORDS.items()]
    if any(p.data.startswith(TOY) for p in atlas.places):
        toy = "Bigram-Backcopy: a layer or a few learn pairs of tokens, and to copy after a trigger; BOS always comes first."
        entries.append(("The toy", toy))
    if any("from 0." in label for s in atlas.sheets for label in s.labels.values()):
        entries.append(
            ("From 0.5, from 0.95", "The value at which a gate starts to be trained: half open, or nearly open.")
        )
    if tasks := tasks_of(atlas):
        entries.append(("Tasks", "; ".join(f"{name} {what}" for name, what in tasks.items()) + "."))
    entries.append(
        ("Letters", tag("span", "The study that a number is of: ", letters, "↓ leads to the section it rests on."))
    )
    more = "docs/metrics.md of the project defines every metric in full."
    return [
        tag("p", "A ", tag("b", "gate"), _GATE, " A ", tag("b", "sink"), _SINK),
        tag("h3", "How to read", id="how"),
        tag("dl", [(tag("dt", word), tag("dd", meaning)) for word, meaning in entries], class_="words"),
        tag("p", more, class_="about"),
    ]
