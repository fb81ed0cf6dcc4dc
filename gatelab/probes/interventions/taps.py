"""An edit of keys in one of Gatelab's own attention layers: through its taps, and for masking through its bias.

Notable: where a kv head serves query heads that are edited differently, keys and values are repeated, and the layer is told
so. A masked key costs a T×T bias here, as any bias does.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...config.normaliser import KeyBias
from ...nn.attention import GatedAttention
from ...ops.gated_attention import visible
from .intervention import Given, Intervention
from .keys import added_logit, chosen, differs_by_head, edited_values


@contextmanager
def edited_layer(edit: Intervention, attention: GatedAttention, layer: int, given: Given) -> Iterator[None]:
    """Edits the keys of one layer.

    Raises:
        ValueError: heads that are not there, or that this layer cannot tell apart; from the forward pass: a cache, a context,
            a position beyond the text.
    """
    H, G = attention.n_heads, attention.n_kv_heads
    edit.heads(layer, H, given.seed)
    is_masking = edit.kind.startswith("mask-key")
    is_repeated = not is_masking and G != H and differs_by_head(edit)
    if is_repeated and (isinstance(attention.normaliser, KeyBias) or attention.output_map.needs_value):
        raise ValueError(
            f"{edit.word}: this layer reads its {G} kv heads elsewhere too ({attention.normaliser.kind}, "
            f"{attention.map_name}), so the query heads of one cannot be edited apart; name whole layers"
        )
    segments: list[Tensor | None] = [None]

    def before(_module: nn.Module, args: tuple[Tensor, ...], keywords: dict[str, Any]) -> Any:
        if keywords.get("cache") is not None or keywords.get("context_BSD") is not None or keywords.get("is_cross"):
            raise ValueError(f"{edit.word}: run whole sequences of self-attention without a cache")
        if keywords.get("is_token_BS") is not None:
            raise ValueError(f"{edit.word}: padding would count as keys; run rows of one length, without is_token_BS")
        segments[0] = keywords.get("segment_ids_BT")
        if not is_masking:
            return None
        x_BTD = args[0] if args else keywords["x_BTD"]
        first_BS, valid_BS = _first_keys(segments[0], x_BTD)
        keys_BHS = chosen(edit, layer, H, first_BS, valid_BS, given)
        if keys_BHS is None:
            return None
        hidden_BHTS = _hidden(attention, keys_BHS, segments[0], keywords.get("is_causal", True))
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        bias_BHTS = torch.zeros_like(hidden_BHTS, dtype=wide).masked_fill(hidden_BHTS, added_logit(edit))
        if keywords.get("bias_BHTS") is not None:
            bias_BHTS = bias_BHTS + keywords["bias_BHTS"]
        return args, keywords | {"bias_BHTS": bias_BHTS}

    def repeated(_module: nn.Module, _inputs: Any, k_BSGK: Tensor) -> Tensor:
        # An edit outside of this one may have done so.
        return k_BSGK if k_BSGK.shape[2] == H else k_BSGK.repeat_interleave(H // G, dim=2)

    def values(_module: nn.Module, _inputs: Any, v_BSGK: Tensor) -> Tensor | None:
        first_BS, valid_BS = _first_keys(segments[0], v_BSGK)
        keys_BHS = chosen(edit, layer, H, first_BS, valid_BS, given)
        if keys_BHS is None:
            return None
        keys_BGS = keys_BHS[:, :: H // v_BSGK.shape[2]]
        return edited_values(edit, v_BSGK.transpose(1, 2), keys_BGS, valid_BS).transpose(1, 2)

    with ExitStack() as stack:
        stack.callback(attention.register_forward_pre_hook(before, with_kwargs=True, prepend=True).remove)
        if not is_masking:
            # Before hooks that are there already, so that probes see what is edited; the last put there runs first.
            stack.callback(attention.tap_v.register_forward_hook(values, prepend=True).remove)
        if is_repeated:
            stack.callback(setattr, attention, "heads", attention.heads)
            attention.heads = replace(attention.heads, n_kv_heads=H)
            for tap in (attention.tap_k, attention.tap_v):
                stack.callback(tap.register_forward_hook(repeated, prepend=True).remove)
        yield


def _first_keys(segment_ids_BT: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Which keys are first in their documents, and all of them, [B, S]; `like` is of shape [B, S, …]."""
    valid_BS = torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    first_BS = torch.zeros_like(valid_BS)
    first_BS[:, 0] = True
    if segment_ids_BT is not None:
        first_BS[:, 1:] = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    return first_BS, valid_BS


def _hidden(attention: GatedAttention, keys_BHS: Tensor, segment_ids_BT: Tensor | None, is_causal: bool) -> Tensor:
    """What is masked, [B, H or 1, T, S]: the chosen keys where a query sees another."""
    S = keys_BHS.shape[2]
    documents_BTS = None if segment_ids_BT is None else segment_ids_BT[:, :, None] == segment_ids_BT[:, None]
    seen_BTS = visible(
        S, S, is_causal=is_causal, window=attention.window, mask_BTS=documents_BTS, device=keys_BHS.device
    )
    keys_BH1S = (keys_BHS[:, :1] if bool((keys_BHS == keys_BHS[:, :1]).all()) else keys_BHS)[:, :, None]
    has_other = (seen_BTS[:, None] & ~keys_BH1S).any(dim=-1, keepdim=True)
    return keys_BH1S & has_other
