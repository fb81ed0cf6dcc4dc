"""What one item looks like from inside: attention of the token before the answer, and gate scores, along the text.

Notable: kept for the few items that a run got most wrong, in thousandths, so that a page can show them; what a model does on
average is for the probes.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import torch

from ..config import Run
from ..config.run import ProbeConfig
from ..models.decoder import Decoder
from ..models.model import Model
from ..ops.attention_stats import Gates, Scores, Statistic
from ..probes.capture import capture
from ..probes.probe import AttentionView, Probe
from ..record import Item, Row
from ..tasks import Knobs, TaskItem, open_task

N_ITEMS = 16
LONGEST = 1024  # tokens; a longer text would be no strip


def with_strips(model: Model, run: Run, items: Sequence[Item]) -> list[Item]:
    """The items, `strips` among the factors of those `N_ITEMS` of each task at the length of training that have the lowest
    margins, of none that is asked beside. Of a decoder, at lengths up to `LONGEST`; else as they came."""
    if not isinstance(model, Decoder) or run.train.seq_len > LONGEST:
        return list(items)
    chosen: set[int] = set()
    for name in dict.fromkeys(item.task for item in items):
        own = [i for i, x in enumerate(items) if x.task == name and x.factors["length"] == run.train.seq_len]
        own = [i for i in own if isfinite(items[i].score) and not items[i].factors.get("is_beside")]
        chosen |= set(sorted(own, key=lambda i: (items[i].score, i))[:N_ITEMS])
    return [
        replace(item, factors={**item.factors, "strips": _strips(model, _made(item))}) if i in chosen else item
        for i, item in enumerate(items)
    ]


def _made(item: Item) -> TaskItem:
    made_of = item.factors["knobs"]
    knobs = Knobs(item.factors["length"], made_of["asked_depth"], made_of["distractors"], made_of["hardness"])
    return open_task(item.task).item(knobs, item.item)


@torch.no_grad()
def _strips(model: Model, item: TaskItem) -> dict[str, Any]:
    """By layer and token, in thousandths: `attention`, what the first token that is asked pays each, mean over heads; `gates`, by
    site, the scores' mean over heads and channels."""
    probe = _Along(item.asked[0], len(item.tokens))
    with capture(model, []) as recorder:
        recorder.probes[:] = [probe]
        model.hidden(torch.tensor([item.tokens], device=model.head.weight.device))
    return {"attention": probe.attention_LT, "gates": probe.gates_LT}


class _Along(Probe):
    """Of one sequence of `n_tokens`, and its query `at`."""

    name, metrics = "along", {}

    def __init__(self, at: int, n_tokens: int):
        super().__init__(ProbeConfig(), ())
        self.at, self.n_tokens = at, n_tokens
        self.attention_LT: list[list[int]] = []
        self.gates_LT: dict[str, list[list[int]]] = {}

    def asks(self, gates: Gates) -> tuple[type[Statistic], ...]:
        """Nothing without a gate."""
        return (Scores,) if gates else ()

    def attention(self, view: AttentionView) -> None:
        """Layers come in order."""
        registers = view.n_keys - self.n_tokens
        first, at = 0, self.at + registers
        for block in view.last.blocks():
            weights_HTS = block.weights_BHTS[0]
            if first <= at < first + weights_HTS.shape[1]:
                mean_S = weights_HTS[:, at - first].mean(dim=0)[registers:]
                seen = _thousandths(mean_S)
                self.attention_LT.append(seen + [0] * (self.n_tokens - len(seen)))
            first += weights_HTS.shape[1]
        for site, scores in view.of(Scores).sites.items() if view.last.gates else ():
            mean_BTH = scores.mean_BTH
            if mean_BTH.shape[1] == view.n_keys:
                self.gates_LT.setdefault(site, []).append(_thousandths(mean_BTH[0, registers:].mean(dim=-1)))

    def summaries(self, rows: list[Row]) -> list[Row]:
        """None."""
        return rows


def _thousandths(values_T: torch.Tensor) -> list[int]:
    return (values_T.double() * 1000).nan_to_num(0, 0, 0).round().long().tolist()
