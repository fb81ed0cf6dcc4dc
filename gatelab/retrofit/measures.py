"""What is measured of a model before and after: losses by document, sinks, massive activations, gates, and how far gates moved."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean

import torch
from torch import Tensor

from ..data import IGNORED
from ..evals.changes import interval
from ..models.model import Model
from ..ops.linear_cross_entropy import linear_cross_entropy
from ..probes import capture
from ..record import Row
from .tuning import gate_parameters

# Sequences a pass, and those of a text that the probes look at.
_AT_ONCE, _PROBED = 16, 32
_PROBES = ("sinks", "anywhere", "massive", "gate_scores", "gate_effect")


@dataclass(frozen=True)
class Measured:
    """An arm: the mean loss of each held-out sequence by the text's name, in nats a token, and the probes' rows, whose `domain`
    is that name."""

    arm: str
    losses: dict[str, tuple[float, ...]]
    rows: list[Row] = field(repr=False)

    def loss(self, text: str) -> float:
        """The mean over a text's sequences."""
        return mean(self.losses[text])

    def value(self, text: str, metric: str, *, threshold: float | None = None) -> float | None:
        """A metric of the whole model on a text; None where the probes saw none."""
        whole = (None, None, None)
        return next(
            (
                r.value
                for r in self.rows
                if (r.metric, r.domain) == (metric, text)
                and (r.layer, r.head, r.bin) == whole
                and threshold in (None, r.threshold)
            ),
            None,
        )

    def largest(self, text: str) -> float:
        """The largest ∞-norm: of any layer the mean over sequences of max |x|."""
        return max(r.value for r in self.rows if (r.metric, r.domain) == ("massive_max", text) and r.layer is not None)


@torch.no_grad()
def measure(model: Model, arm: str, heldout: Mapping[str, Tensor], step: int, *, probed: bool = True) -> Measured:
    """An arm on held-out sequences, [N, T + 1] ids by the text's name; without `probed` its losses alone."""
    names = [name for name in _PROBES if model.config.gate or not name.startswith("gate")]
    losses: dict[str, tuple[float, ...]] = {}
    rows: list[Row] = []
    for text, ids_NT in heldout.items():
        losses[text] = tuple(loss for part_BT in ids_NT.split(_AT_ONCE) for loss in _losses(model, part_BT))
        rows.append(Row(arm, step, "retrofit", "heldout_loss", mean(losses[text]), "nats", domain=text))
        if not probed:
            continue
        with capture(model, names) as recorder:
            for part_BT in ids_NT[:_PROBED].split(_AT_ONCE):
                model.hidden(part_BT[:, :-1].to(model.head.weight.device))
        rows += [replace(row, domain=text) for row in recorder.rows(arm, step) if row.domain is None]
    return Measured(arm, losses, rows)


def _losses(model: Model, ids_BT: Tensor) -> list[float]:
    ids_BT = ids_BT.to(model.head.weight.device)
    x_BTD, weight_VD = model.hidden(ids_BT[:, :-1]), model.head.weight
    # A sequence in the place of a model: each has its own sum.
    weight_BVD = weight_VD[None].expand(len(ids_BT), -1, -1)
    sums = [
        linear_cross_entropy(x_BTD[b : b + 1], weight_BVD[b : b + 1], ids_BT[b : b + 1, 1:], ignored=IGNORED)[0]
        for b in range(len(ids_BT))
    ]
    return (torch.stack(sums).double() / (ids_BT.shape[1] - 1)).tolist()


def changes(measured: Sequence[Measured], reference: Measured) -> Iterator[Row]:
    """`loss_change` of each arm, paired by sequence, beside the reference, with its 95% interval over sequences."""
    for arm in measured:
        step = arm.rows[0].step
        for text, losses in arm.losses.items():
            paired = [a - b for a, b in zip(losses, reference.losses[text], strict=True)]
            low, high = interval(paired)
            values = {"loss_change": mean(paired), "loss_change_low": low, "loss_change_high": high}
            for metric, value in values.items():
                yield Row(
                    arm.arm,
                    step,
                    "retrofit",
                    metric,
                    value,
                    "nats",
                    domain=text,
                    intervention=f"beside {reference.arm}",
                )


class Movement:
    """How far a model's gates are from where they stood when this was made."""

    def __init__(self, model: Model, ids_BT: Tensor):
        self._start = {name: p.detach().clone() for name, p in gate_parameters(model).items()}
        self._ids_BT = ids_BT

    @torch.no_grad()
    def rows(self, model: Model, arm: str, step: int) -> list[Row]:
        """By layer `gate_shift`, ‖θ − θ₀‖ of the gate's parameters, and `gate_shift_relative`, that over ‖θ₀‖ (none where
        that is 0); of the model their means over layers, and `gate_mean` and `gate_below` on the text it was given."""
        by_layer: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for name, p in gate_parameters(model).items():
            by_layer.setdefault(int(name.split(".")[1]), []).append((p.detach() - self._start[name], self._start[name]))
        rows, shifts, relative = [], [], []
        for layer, parts in sorted(by_layer.items()):
            moved, start = (_norm([part[i] for part in parts]) for i in range(2))
            shifts.append(moved)
            rows.append(Row(arm, step, "retrofit", "gate_shift", moved, "1", layer))
            if start:
                relative.append(moved / start)
                rows.append(Row(arm, step, "retrofit", "gate_shift_relative", moved / start, "ratio", layer))
        for metric, values, unit in (("gate_shift", shifts, "1"), ("gate_shift_relative", relative, "ratio")):
            if values:
                rows.append(Row(arm, step, "retrofit", metric, mean(values), unit))
        with capture(model, ["gate_scores"]) as recorder:
            model.hidden(self._ids_BT.to(model.head.weight.device))
        return rows + [
            r for r in recorder.rows(arm, step) if r.metric in ("gate_mean", "gate_below") and r.head is None
        ]


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([t.double().square().sum() for t in tensors]).sum().sqrt())
