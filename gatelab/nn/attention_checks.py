"""What the attention layer refuses: arguments that it cannot be built from, and calls that it cannot serve."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.gate import GateSpec
from ..config.normaliser import Normaliser
from ..config.output_map import OUTPUT_MAPS
from ..config.rope import Scaling
from ..ops.gated_attention import OPERATORS
from ..ops.gated_attention.scoring import check_softcap
from .cache import Cache

_QK_NORMS = (False, True, "rms", "rms-no-gain", "rms-all-heads")


def kv_heads_and_width(d_model: int, n_heads: int, n_kv_heads: int | None, head_dim: int | None) -> tuple[int, int]:
    """Kv heads and channels of a head, as stated or as they follow from the others.

    Raises:
        ValueError: for heads that do not divide.
    """
    n_kv_heads = n_kv_heads or n_heads
    if n_heads % n_kv_heads:
        raise ValueError(
            f"n_kv_heads={n_kv_heads} does not divide n_heads={n_heads}; take a divisor, as each kv head serves as many "
            f"query heads"
        )
    if head_dim is None and d_model % n_heads:
        raise ValueError(f"d_model={d_model} is not a multiple of n_heads={n_heads}; state head_dim")
    return n_kv_heads, head_dim or d_model // n_heads


def check_kinds(*, qk_norm: Any, norm_eps: Any, output_map: Any, softmax: Any, rope_scaling: Any) -> None:
    """Refuses words and values that are none of those there are, and an epsilon that would make zeros of whatever is normed.

    Raises:
        ValueError: naming what there is.
    """
    if not isinstance(norm_eps, Real) or not 0 < norm_eps < math.inf:
        raise ValueError(f"norm_eps={norm_eps!r}: take a finite number above 0, such as 1e-6")
    if qk_norm not in _QK_NORMS:
        raise ValueError(f"qk_norm={qk_norm!r}: expected False, True, 'rms', 'rms-no-gain' or 'rms-all-heads'")
    if output_map not in OUTPUT_MAPS:
        raise ValueError(f"output_map={output_map!r}: expected one of {', '.join(OUTPUT_MAPS)}")
    if softmax is not None and not isinstance(softmax, Normaliser):
        raise ValueError(f"softmax={softmax!r}: give a value of gatelab.config, as in softmax=SinkLogit()")
    if not isinstance(rope_scaling, Scaling):
        raise ValueError(f"rope_scaling={rope_scaling!r}: give a value of gatelab.config.rope, as in YaRN(factor=4, …)")


def check_weighing(
    dropout: float,
    softcap: float | None,
    impl: str,
    *,
    normaliser: Normaliser,
    gates: Sequence[GateSpec],
    hides_first: bool,
) -> None:
    """Refuses what is no share or no bound, or an implementation that drops no weights or caps no logits.

    Raises:
        ValueError: naming it.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}: expected the share of weights that are dropped, from 0 and below 1")
    if dropout and impl in OPERATORS:
        raise ValueError(f"impl={impl!r} drops no weights, and dropout={dropout} came; take sdpa, reference or auto")
    reads_lse = any(g.site == "scores" or (g.site == "sdpa" and g.source == "lse") for g in gates)
    if dropout and impl == "sdpa" and (reads_lse or normaliser.has_slot or hides_first):
        raise ValueError(
            f"impl='sdpa' reads the log-sum-exp or gates the scores here, and dropout={dropout} came; take reference, or auto"
        )
    check_softcap(softcap)
    if softcap is not None and (impl == "sdpa" or impl in OPERATORS):
        raise ValueError(f"impl={impl!r} caps no logits, and softcap={softcap} came; take reference or auto")


def check_call(
    x_BTD: Tensor,
    context_BSD: Tensor | None,
    segment_ids_BT: Tensor | None,
    positions_BT: Tensor | None,
    is_token_BS: Tensor | None,
    cache: Cache | None,
    *,
    d_model: int,
    is_cross: bool,
    has_positions: bool,
    hides_first: bool,
) -> None:
    """Refuses what a layer cannot serve: see `GatedAttention.forward` for each argument.

    Raises:
        ValueError: saying what came and what to do.
    """
    _check_hidden_states(d_model, x_BTD=x_BTD, context_BSD=context_BSD)
    if cache is not None and not isinstance(cache, Cache):
        raise ValueError(f"cache={cache!r:.60}: expected a cache, such as KVCache(n_layers=…, batch=…, …), or None")
    if segment_ids_BT is not None:
        _check_documents(
            segment_ids_BT, x_BTD.shape[:2], has_other=cache is not None or is_cross, hides_first=hides_first
        )
    if positions_BT is not None:
        _check_positions(positions_BT, x_BTD.shape[:2], cache, is_cross=is_cross, has_positions=has_positions)
    if is_token_BS is not None:
        _check_padding(
            is_token_BS,
            x_BTD if not is_cross else context_BSD,
            has_cache=cache is not None and not is_cross,
            counts=not is_cross,
        )


def check_source(gate: GateSpec | None, *, is_cross: bool, has_keys: bool) -> None:
    """Refuses cross-attention that has nothing to look at, or whose gate on the output reads what is not there.

    Raises:
        ValueError: naming it.
    """
    if is_cross and not has_keys:
        raise ValueError("cross-attention has nothing to look at: give context_BSD, or a cache that has kept it")
    if is_cross and gate is not None and gate.source == "value":
        raise ValueError(f"gate {gate.slug} reads the query's own value, which cross-attention does not have")


def _check_hidden_states(d_model: int, **hidden: Tensor | None) -> None:
    for name, given in hidden.items():
        if (given is not None or name == "x_BTD") and not isinstance(given, Tensor):
            raise ValueError(
                f"{name} is a {type(given).__name__}: expected a tensor, [batch, tokens, d_model={d_model}]"
            )
        if given is not None and (given.dim() != 3 or given.shape[2] != d_model):
            raise ValueError(f"{name} of shape {tuple(given.shape)}: expected [batch, tokens, d_model={d_model}]")
        if given is not None and not given.is_floating_point():
            raise ValueError(
                f"{name} of type {given.dtype}: expected hidden states in a floating type, as an embedding gives"
            )


def _check_documents(segment_ids_BT: Tensor, shape: Sequence[int], *, has_other: bool, hides_first: bool) -> None:
    if has_other:
        raise ValueError("segment_ids_BT does not go together with a cache or a context; decode one document a row")
    if hides_first:
        raise ValueError("first_hidden_from hides the first key of a sequence, not of its documents; run one a row")
    if segment_ids_BT.shape != shape:
        raise ValueError(
            f"segment_ids_BT of shape {tuple(segment_ids_BT.shape)}: expected a document number for each token, "
            f"{tuple(shape)}"
        )


def _check_positions(
    positions_BT: Tensor, shape: Sequence[int], cache: Cache | None, *, is_cross: bool, has_positions: bool
) -> None:
    if is_cross or not has_positions:
        why = "cross-attention has none" if is_cross else "this layer has none (rope_theta=None)"
        raise ValueError(f"positions_BT are rotary positions, and {why}: leave them out")
    if cache is not None and cache.turns_late:
        raise ValueError(
            f"positions_BT does not go together with a {type(cache).__name__}, where a key's position is its place in the "
            "cache: leave them out, or decode with a KVCache"
        )
    if positions_BT.shape not in (shape, (1, shape[1])):
        raise ValueError(
            f"positions_BT of shape {tuple(positions_BT.shape)}: expected a position for each token, {tuple(shape)}, or one "
            "row for all"
        )
    if positions_BT.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"positions_BT of type {positions_BT.dtype}: expected whole numbers from 0, torch.int64")


def _check_padding(is_token_BS: Tensor, looked_at_BSD: Tensor | None, *, has_cache: bool, counts: bool) -> None:
    """`looked_at_BSD`: None where it was read before and kept; `counts`: whether it matters how far apart tokens stand. Compiled
    code and GPUs wait for no value."""
    if has_cache:
        raise ValueError(
            "is_token_BS does not go together with a cache in self-attention, which has its own: cache.padding = "
            "Padding(n_padding_B, max_seq_len, dtype) of gatelab.nn.cache says how many slots stand before each row's tokens"
        )
    if looked_at_BSD is None:
        raise ValueError(
            "is_token_BS without a context_BSD: give both together, once; a cache keeps both, and later calls need neither"
        )
    if not isinstance(is_token_BS, Tensor):
        raise ValueError(
            f"is_token_BS is a {type(is_token_BS).__name__}: expected a tensor of torch.bool, {tuple(looked_at_BSD.shape[:2])}"
        )
    if is_token_BS.shape != looked_at_BSD.shape[:2]:
        raise ValueError(
            f"is_token_BS of shape {tuple(is_token_BS.shape)}: expected one value for each token that is looked at, "
            f"{tuple(looked_at_BSD.shape[:2])}"
        )
    if is_token_BS.dtype != torch.bool:
        raise ValueError(
            f"is_token_BS of type {is_token_BS.dtype}: expected torch.bool, True for a token and False for padding, as in "
            "attention_mask.bool()"
        )
    is_read = type(is_token_BS) is Tensor and is_token_BS.device.type == "cpu" and not torch.compiler.is_compiling()
    if counts and is_read and ((F.pad(is_token_BS.int(), (1, 0)).diff(dim=1) > 0).sum(dim=1) > 1).any():
        raise ValueError(
            "is_token_BS has padding between a row's tokens, where a window and forgetting would count it: put padding before or "
            "after them"
        )
