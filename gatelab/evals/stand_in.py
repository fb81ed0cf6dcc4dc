"""What a gate in a sink's place does to the loss: the first key masked, the head's output times σ(w·x + b) instead.

Notable: with the measured 1 − p₀ as the gate it is, but for the first query, the model whose first value is zero; so what a
fitted gate changes beside that is what the fit misses.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..ops.attention_stats import FirstKey, one_pass
from ..probes.external.calls import Call, read_call
from ..probes.external.interpose import Attend, interposed
from ..probes.external.masks import Part, read_mask
from ..probes.interventions import intervened
from ..probes.interventions.anatomy import anatomy
from ..probes.interventions.values import KeyEdit
from .changes import Change, interval
from .disguise import GateFits, states_read
from .next_token import next_token
from .ridge import READS


class SameHeads(KeyEdit):
    """An edit of a key in named heads whose control edits another key of the same heads: a layer in which most heads are
    named has too few others."""

    def control(self) -> "SameHeads":
        """Another key of the middle half of the text."""
        return self.model_copy(update={"at": f"other-{self.at}"})


@torch.no_grad()
def stand_ins(
    model: nn.Module,
    documents: Sequence[Sequence[int]],
    fits: GateFits,
    heads: Collection[tuple[int, int]],
    *,
    reads: Sequence[str] = (*READS, "measured"),
    keeps_value: bool = False,
) -> dict[str, Change]:
    """The change in next-token loss when a gate stands in for the sink of these (layer, head), by what the gate reads; `none`
    is the first key masked and no gate. The changes are paired, by document; `gated_instead` says what is done.

    Raises:
        ValueError: a model in training mode or without such a loss, heads or fits that are not there.
    """
    if model.training:
        raise ValueError("this model is in training mode, and dropout would change its loss; call model.eval() first")
    language = next_token(model)
    found: dict[str, list[float]] = {name: [] for name in ("none", *reads)}
    for ids in documents:
        targets = list(range(len(ids) - 1)), list(ids[1:])

        def loss(around: Any, ids: Sequence[int] = ids, targets: Any = targets) -> float:
            with around:
                states = language.states(list(ids))
            return float(language.losses(states, *targets)[0].mean())

        untouched = loss(nullcontext())
        for name in found:
            around = gated_instead(model, fits, heads, None if name == "none" else name, keeps_value=keeps_value)
            found[name].append(loss(around) - untouched)
    return {name: Change(1.0, float(np.mean(c)), *interval(c), tuple(c)) for name, c in found.items()}


@contextmanager
def gated_instead(
    model: nn.Module,
    fits: GateFits,
    heads: Collection[tuple[int, int]],
    reads: str | None,
    *,
    keeps_value: bool = False,
) -> Iterator[None]:
    """Mask the first key of these (layer, head), and multiply their outputs by a gate g: fitted, with what it reads as in
    `READS`; `measured`, 1 − p₀ of the same pass, which makes it the model with v₀ zero but at the first query; None: no gate.

    Args:
        keeps_value: add (1 − g)·v₀, so that the measured gate gives the model as it was, and a fitted one what its errors
            do. Run whole sequences without padding.

    Raises:
        ValueError: heads or fits that are not there.
    """
    fit_of = {fit.layer: fit for fit in fits.layers}
    if reads not in (None, "measured", *READS):
        raise ValueError(f"no gate reads {reads!r}: expected None, measured, {', '.join(READS)}")
    wrong = [(i, h) for i, h in heads if i not in fit_of or not 0 <= h < len(fit_of[i].mass_H)]
    if wrong or not heads:
        what = f"no fit of head {wrong[0][1]} in layer {wrong[0][0]}" if wrong else "no heads"
        raise ValueError(f"{what}: give (layer, head) of layers {min(fit_of)} to {max(fit_of)} that were fitted")
    edit = SameHeads(kind="mask-key", at="first", where=",".join(f"l{i}h{h}" for i, h in sorted(heads)))
    own = anatomy(model)

    def around(attend: Attend, module: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        output = attend(module, *arguments, **keywords)
        layer = own.layers.get(module)
        named = sorted(h for i, h in heads if i == layer)
        if not named or reads is None:
            return output
        call = read_call(module, "", attend.is_sdpa, arguments, keywords)
        part = _whole(call, layer)
        if reads == "measured":
            gate_BTH = _measured(call, part, layer)
        else:
            gate_BTH = fit_of[layer].openness(reads, states[module], part.window)
        gate_BTN1 = gate_BTH[:, :, named, None].to(output[0].dtype)
        y_BTHK = output[0].clone()
        y_BTHK[:, :, named] *= gate_BTN1
        if keeps_value:
            n_a_group = y_BTHK.shape[2] // call.v_BGSK.shape[1]
            first_B1NK = call.v_BGSK[:, None, [h // n_a_group for h in named], 0]
            y_BTHK[:, :, named] += (1 - gate_BTN1) * first_B1NK
        return (y_BTHK, *output[1:])

    # What is entered last is asked first: it is given the keys as they are, and calls the attention that masks one.
    with states_read(model, [0, 0]) as states, intervened(model, edit), interposed(model, around):
        yield


def _whole(call: Call, layer: int) -> Part:
    """The part of the batch that a call is of: all of it."""
    _, T, S = call.sizes
    parts = read_mask(call.mask, T, S, is_causal=call.is_causal, is_cross=False)
    if not parts or not parts[0].is_causal or (parts[0].rows, parts[0].start, parts[0].end) != (None, 0, S):
        raise ValueError(f"layer {layer} is not causal, or its text is padded; give whole sequences, one a pass")
    return parts[0]


def _measured(call: Call, part: Part, layer: int) -> Tensor:
    """1 − p₀ of an attention call, [B, T, H]; 1 where there is no first key or no other."""
    first = FirstKey()
    one_pass([first], call.stretch(part, layer))
    return (-first.gap_BHT).sigmoid().nan_to_num(1.0).transpose(1, 2)
