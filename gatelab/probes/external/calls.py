"""A call of an attention function of transformers, and the stretch of queries that it makes for the probes."""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ...config.normaliser import Heads, SinkLogit, Softmax
from ...ops.attention_stats import Stretch
from .gates import FAMILIES
from .intercept import Fused, Softmaxed
from .masks import Part, of_part, of_tokens

# Arguments of an attention function that change the weights in a way no stretch states.
_BEYOND = {
    "indices": "it attends to chosen keys",
    "block_indices": "it attends to chosen blocks of keys",
    "sinks": "it adds keys of its own",
}
_SOFTMAX = Softmax()
_CROSS = re.compile(r"(^|\.)(encoder_attn|EncDecAttention|crossattention|cross_attn|cross_attention)(\.|$)")


@dataclass
class Call:
    """One call: [B, H or G, T or S, K] as transformers orders them. `y_BTHK` is what it returned; `gate_BTN` what came out
    of the projection that holds its family's gate. Of a family that computes its softmax itself there are the weights, and
    neither queries nor keys."""

    module: nn.Module
    name: str
    q_BHTK: Tensor | None
    k_BGSK: Tensor | None
    v_BGSK: Tensor
    mask: Tensor | None
    is_causal: bool
    scaling: float | None = None
    position_bias: Tensor | None = None
    sinks_H: Tensor | None = None
    softcap: float | None = None
    beyond: str | None = None
    weights_BHTS: Tensor | None = None
    y_BTHK: Tensor | None = None
    gate_BTN: Tensor | None = None

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        """Sequences, queries, keys."""
        if self.weights_BHTS is not None:
            B, _, T, S = self.weights_BHTS.shape
            return B, T, S
        B, _, T, _ = self.q_BHTK.shape
        return B, T, self.k_BGSK.shape[2]

    @cached_property
    def is_cross(self) -> bool:
        """Whether the keys are of other tokens."""
        return getattr(self.module, "is_cross_attention", False) or _CROSS.search(self.name) is not None

    def refused(self) -> str | None:
        """Why its weights cannot be stated, if so."""
        if self.beyond is not None:
            return self.beyond
        if self.sinks_H is not None and self.sinks_H.numel() != self.q_BHTK.shape[1]:
            return f"its sinks of shape {tuple(self.sinks_H.shape)} are not one logit a head"
        return None

    def stretch(self, part: Part, layer: int, *, start_key: int = 0, n_tokens: int | None = None) -> Stretch:
        """The stretch of the queries of a part of the batch."""
        # A stretch that goes on from a cache is all queries, and its part all keys.
        all_queries = self.is_cross or n_tokens is not None

        def queries(values: Tensor, dim: int) -> Tensor:
            return of_part(part, values) if all_queries else of_tokens(part, values, dim)

        v_BSGK = of_tokens(part, self.v_BGSK, 2).transpose(1, 2)
        ids_BT = None if part.segment_ids_T is None else part.segment_ids_T.expand(v_BSGK.shape[0], -1)
        if self.weights_BHTS is not None:
            weights_BHTS = queries(of_tokens(part, self.weights_BHTS, 3), 2)
            return Stretch(
                q_BTHK=None, k_BSGK=None, v_BSGK=v_BSGK, weights_BHTS=weights_BHTS, is_causal=part.is_causal,
                window=part.window, segment_ids_BT=ids_BT, start_key=start_key, n_tokens=n_tokens,
            )  # fmt: skip
        _, H, _, K = self.q_BHTK.shape
        # A stretch's logits are q·k/√K.
        scale = 1.0 if self.scaling is None else self.scaling * math.sqrt(K)
        q_BTHK = queries(self.q_BHTK, 2).transpose(1, 2)
        gates = {}
        if self.gate_BTN is not None:
            spec, logits_BTHK = FAMILIES[type(self.module).__name__].gate(self.gate_BTN, H, K)
            gates["sdpa"] = spec, queries(logits_BTHK, 1)
        bias_BHTS = None if self.position_bias is None else queries(of_tokens(part, self.position_bias, 3), 2)
        return Stretch(
            q_BTHK=q_BTHK if math.isclose(scale, 1.0) else q_BTHK * scale,
            k_BSGK=of_tokens(part, self.k_BGSK, 2).transpose(1, 2),
            v_BSGK=v_BSGK,
            normaliser=_SOFTMAX if self.sinks_H is None else SinkLogit(),
            learned=None if self.sinks_H is None else {"sink_logit_H": self.sinks_H.flatten()},
            heads=Heads(H, self.k_BGSK.shape[1], K, layer),
            is_causal=part.is_causal,
            window=part.window,
            segment_ids_BT=ids_BT,
            bias_BHTS=bias_BHTS,
            softcap=self.softcap,
            start_key=start_key,
            n_tokens=n_tokens,
            # A learned sink scales the output after the softmax; what the weights fetch is that output.
            y_BTHK=None if self.y_BTHK is None else queries(self.y_BTHK, 1),
            gates=gates,
        )


def read_call(
    module: nn.Module, name: str, is_sdpa: bool, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> Call:
    """The call of an attention function with these arguments (query, key, value, mask, …)."""
    query, key, value, *rest = (*arguments, *(keywords[n] for n in ("query", "key", "value") if n in keywords))
    mask = rest[0] if rest else keywords.get("attention_mask")
    is_causal = keywords.get("is_causal")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    bias, sinks = keywords.get("position_bias"), keywords.get("s_aux")
    return Call(
        module=module,
        name=name,
        q_BHTK=query.detach(),
        k_BGSK=key.detach(),
        v_BGSK=value.detach(),
        mask=mask,
        # Without a mask eager attention sees both ways, whatever the module says.
        is_causal=bool(is_causal) and is_sdpa and query.shape[2] > 1,
        scaling=keywords.get("scaling"),
        position_bias=None if bias is None else bias.detach(),
        sinks_H=None if sinks is None else sinks.detach(),
        softcap=keywords.get("softcap"),
        beyond=next((why for name, why in _BEYOND.items() if keywords.get(name) is not None), None),
    )


def noticed_call(noticed: Softmaxed | Fused) -> Call:
    """The call that a family makes in its own code; values are those of every head where no key/value head is known."""
    if isinstance(noticed, Fused):
        return Call(
            noticed.module, noticed.name, noticed.q_BHTK, noticed.k_BGSK, noticed.v_BGSK, noticed.mask_B1TS,
            is_causal=noticed.is_causal and noticed.q_BHTK.shape[2] > 1, scaling=noticed.scale,
            position_bias=noticed.bias_BHTS,
        )  # fmt: skip
    return Call(
        noticed.module, noticed.name, None, None, noticed.v_BGSK, noticed.mask_B1TS, is_causal=False,
        weights_BHTS=noticed.weights_BHTS,
    )  # fmt: skip


def same_output(output: Any, call: Call) -> Tensor | None:
    """What an attention function returned, if it is the weighted values of every query and head."""
    y_BTHK = output[0] if isinstance(output, tuple) else output
    B, H, T, _ = call.q_BHTK.shape
    if not isinstance(y_BTHK, torch.Tensor) or y_BTHK.shape != (B, T, H, call.v_BGSK.shape[3]):
        return None
    return y_BTHK.detach()
