"""What a preset is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Changes = dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """What a name changes in a model: fields of `ModelConfig`, or, where they depend on the model, a function from it to them.

    `results` are what its authors print, `note` what is uncertain or differs. `adds` is the number of weights a layer where it
    is not that of one gate, with d, H, G, K as in the formulas and F the width of an expert; `printed` the millions that the
    authors print.
    """

    changes: Changes | Callable[[Any], Changes]
    formula: str
    source: str
    results: str = ""
    note: str = ""
    adds: str = ""
    printed: float | None = None

    def of(self, model: Any) -> Changes:
        """The fields it sets in this model."""
        return self.changes(model) if callable(self.changes) else self.changes

    def gate_alone(self, name: str) -> str:
        """The slug of a preset that is one gate and nothing else.

        Raises:
            ValueError: for any other, saying how to use it.
        """
        if callable(self.changes) or set(self.changes) != {"gate"} or "+" in self.changes["gate"]:
            what = "more than one gate" if callable(self.changes) or "gate" in self.changes else "no gate"
            raise ValueError(f"{name!r} changes {what}: use it as model.preset={name}")
        return self.changes["gate"]
