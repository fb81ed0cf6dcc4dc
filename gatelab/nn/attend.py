"""From queries and keys to outputs: the op that serves a call, and the map of its output.

Notable: a call that is watched takes the op that tells its log-sum-exp where nothing but causality acts on the logits, and a
cache's newest query the kernels that decode where they serve; every other takes `gated_attention`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..config.gate import GateSpec
from ..config.normaliser import Heads, Normaliser, Softmax
from ..config.output_map import OutputMap
from ..ops.gated_attention import gated_attention, gated_attention_and_lse
from ..ops.gated_decode import choose as choose_decode
from ..ops.gated_decode import gated_decode
from .cache import Cache, Keys
from .hiding import HIDES, Sight
from .watch import Watch


class Weighing(NamedTuple):
    """How logits become weights: the normaliser with what it learned, the gate on the scores, the layer, who computes it, the
    share that is dropped, and the bound of the logits."""

    normaliser: Normaliser
    learned: dict[str, Tensor] | None
    score_gate: GateSpec | None
    heads: Heads
    impl: str
    dropout: float
    softcap: float | None

    @property
    def is_bare(self) -> bool:
        """Whether the normaliser is all there is."""
        return self.score_gate is None and not self.dropout and self.softcap is None


def attended(
    q_BTHK: Tensor,
    keys: Keys,
    gate_logits_BTHK: Tensor | None,
    gate: GateSpec | None,
    weighing: Weighing,
    seen: Sight,
    cache: Cache | None,
    watch: Watch | None,
) -> Tensor:
    """weights · v, and the gate where one is inside, [B, T, H, K]; a causal layer's first-token mass goes to the watch."""
    given = (q_BTHK, keys.k_BSGK, keys.v_BSGK, gate_logits_BTHK, gate)
    is_watched, lse_BHT = watch is not None and seen.is_causal, None
    is_bare = seen.is_bare and weighing.is_bare
    if is_watched and is_bare and cache is None:
        y_BTHK, lse_BHT = gated_attention_and_lse(
            *given,
            normaliser=weighing.normaliser,
            learned=weighing.learned,
            heads=weighing.heads,
            impl=weighing.impl,
        )
    elif cache is not None and _splits(q_BTHK, keys, gate, weighing, seen):
        y_BTHK = gated_decode(*given, window=seen.window)
    else:
        hides = seen.first_BSH is not None
        y_BTHK = gated_attention(
            *given,
            normaliser=weighing.normaliser,
            learned=weighing.learned,
            heads=weighing.heads,
            score_logits_BSH=seen.first_BSH if hides else keys.score_logits_BSH,
            score_gate=HIDES if hides else weighing.score_gate,
            bias_BHTS=seen.bias_BHTS,
            is_causal=seen.is_causal,
            window=seen.window,
            segment_ids_BT=seen.segment_ids_BT,
            mask_BTS=seen.mask_BTS,
            dropout=weighing.dropout,
            softcap=weighing.softcap,
            impl=weighing.impl,
        )
    if is_watched:
        watch.add(q_BTHK, keys.k_BSGK, lse_BHT)
    return y_BTHK


def mapped(output_map: OutputMap, y_BTHK: Tensor, v_BSGK: Tensor, eps: float) -> Tensor:
    """The output map of y, in float32 and rounded once; the values are those that entered the softmax, the queries' own last."""
    wide = torch.promote_types(y_BTHK.dtype, torch.float32)
    v_BTHK = None
    if output_map.needs_value:
        v_BTGK = v_BSGK[:, v_BSGK.shape[1] - y_BTHK.shape[1] :]
        v_BTHK = v_BTGK.repeat_interleave(y_BTHK.shape[2] // v_BTGK.shape[2], dim=2).to(wide)
    return output_map.apply(y_BTHK.to(wide), v_BTHK, eps).to(y_BTHK.dtype)


def _splits(q_BTHK: Tensor, keys: Keys, gate: GateSpec | None, weighing: Weighing, seen: Sight) -> bool:
    """Whether the kernels that decode take a cache's newest query: where they serve, nothing but a window acts on the logits,
    and nobody asks for a gradient."""
    is_bare = weighing.is_bare and seen._replace(window=None).is_bare
    is_alone = q_BTHK.shape[1] == 1 and is_bare and type(weighing.normaliser) is Softmax
    if not is_alone or weighing.impl != "auto" or torch.is_grad_enabled():
        return False
    return choose_decode("auto", q_BTHK, keys.k_BSGK, keys.v_BSGK, gate) == "split"
