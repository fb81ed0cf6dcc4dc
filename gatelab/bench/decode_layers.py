"""The layers of which a decoding step is timed: ours with a gate or none, an ungated one of equal weights, transformers' own.

Notable: an elementwise gate brings as many weights as its queries' projection, and they are read in every step. So that the
gate's cost is seen apart from theirs there is an ungated layer whose input is so much wider that it has as many; heads and
cache are the same. A cache keeps the joint weights of one layer: were it the same object for all, each step would join its own
anew and free those that another's captured graph reads.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..nn.attention import GatedAttention
from ..nn.cache import KVCache
from .plan import DecodePlan

Step = Callable[[], Tensor]
_UNIT = 8  # channels of a width; another is slow on tensor cores
_THETA = 10_000.0


@dataclass(frozen=True)
class Layer:
    """A layer's step with a cache that is not advanced, so that every step is the same one; `reference` is a function of
    weights, input and cache, for the contract."""

    step: Step
    reference: Callable[..., Tensor]
    arguments: dict[str, Tensor]
    n_weights: int


def width_of(plan: DecodePlan) -> int:
    """Of the input of a layer that is as wide as its heads together."""
    return plan.heads * plan.head_dim


def matched_width(plan: DecodePlan, gate: str) -> int:
    """Of an ungated layer's input, so that it has about the weights of the gated one."""
    with torch.device("meta"):
        none, gated = (sum(p.numel() for p in _made(plan, g, 1, width_of(plan)).parameters()) for g in ("none", gate))
    return _UNIT * round(width_of(plan) * gated / none / _UNIT)


def own(plan: DecodePlan, gate: str, cache: KVCache, *, width: int) -> Layer:
    """Ours behind the first layer of a cache, whose keys and values it reads; the weights that it joins are kept apart."""
    cache = copy(cache)
    cache.joint = {}
    layer, reference = (
        _ready(plan, _made(plan, gate, cache.length + 1, width, impl=impl)) for impl in ("auto", "reference")
    )
    x_B1D = _input(plan, len(cache.k_LBSGK[0]), width)
    arguments = dict(layer.named_parameters()) | {"x_B1D": x_B1D}
    n_weights = sum(p.numel() for p in layer.parameters())
    return Layer(partial(_step, layer, x_B1D, cache), partial(_through, reference), arguments, n_weights)


def qwen3_next(plan: DecodePlan, cache: KVCache) -> Layer:
    """transformers' own with an elementwise gate, norms of queries and keys, and the cache that it decodes with by itself, which
    is joined anew in every step. All channels turn, as ours do. The reference is ours with its weights."""
    from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention

    H, G, K, D = plan.heads, plan.kv_heads, plan.head_dim, width_of(plan)
    config = Qwen3NextConfig(
        hidden_size=D, num_hidden_layers=1, num_attention_heads=H, num_key_value_heads=G, head_dim=K,
        layer_types=["full_attention"], rms_norm_eps=1e-6, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    layer = _ready(plan, Qwen3NextAttention(config, 0))
    reference = GatedAttention(
        d_model=D, n_heads=H, n_kv_heads=G, head_dim=K, gate="qwen3-next", qk_norm=True, rope_theta=_THETA,
        max_seq_len=cache.length + 1, norm_eps=1e-6, impl="reference",
    )  # fmt: skip
    turns = _turns(K, cache.length, layer.q_proj.weight)
    x_B1D = _input(plan, len(cache.k_LBSGK[0]), D)
    kept = _kept(cache.k_LBSGK[0, :, : cache.length], cache.v_LBSGK[0, :, : cache.length])
    arguments = dict(layer.named_parameters()) | {"x_B1D": x_B1D}
    n_weights = sum(p.numel() for p in layer.parameters())
    step = partial(_step_of_theirs, layer, turns, x_B1D, kept, (kept.layers[0].keys, kept.layers[0].values))
    return Layer(step, partial(_as_ours, _ready(plan, reference), (H, K)), arguments, n_weights)


def _made(plan: DecodePlan, gate: str, max_seq_len: int, width: int, *, impl: str = "auto") -> GatedAttention:
    torch.manual_seed(0)
    layer = GatedAttention(
        d_model=width, n_heads=plan.heads, n_kv_heads=plan.kv_heads, head_dim=plan.head_dim, gate=gate,
        rope_theta=_THETA, max_seq_len=max_seq_len, impl=impl,
    )  # fmt: skip
    layer.is_packed = True
    return layer


def _ready(plan: DecodePlan, layer: nn.Module) -> Any:
    # Rotary tables stay in float32, as they are in a model.
    for parameter in layer.parameters():
        parameter.data = parameter.data.to(getattr(torch, plan.dtype))
    return layer.to(plan.device).requires_grad_(False)


def _input(plan: DecodePlan, batch: int, width: int) -> Tensor:
    return torch.randn(batch, 1, width, device=plan.device, dtype=getattr(torch, plan.dtype))


@torch.no_grad()
def _step(layer: GatedAttention, x_B1D: Tensor, cache: KVCache) -> Tensor:
    out_B1D = layer(x_B1D, cache=cache)
    cache.advance(0)  # so that the next step is the same one
    return out_B1D


@torch.no_grad()
def _through(layer: GatedAttention, x_B1D: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, **weights: Tensor) -> Tensor:
    """A step of the layer with the weights and the cache that are given, in their type; without gradients, as the step that
    is timed."""
    B, S, G, K = k_BSGK.shape
    cache = KVCache(
        n_layers=1, batch=B, max_seq_len=S + 1, n_kv_heads=G, head_dim=K, dtype=k_BSGK.dtype, device=k_BSGK.device
    )
    cache.k_LBSGK[0, :, :S], cache.v_LBSGK[0, :, :S] = k_BSGK, v_BSGK
    cache.length = S
    return functional_call(layer, weights, (x_B1D,), {"cache": cache})


def _turns(n_channels: int, position: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a position, [1, 1, K], the two halves alike, as transformers' rotary modules lay them out; their angles
    in float32 would be their own error."""
    powers = torch.arange(0, n_channels, 2, device=like.device, dtype=torch.float64) / n_channels
    angles_K = (position * _THETA**-powers).repeat(2)
    return angles_K.cos().to(like.dtype)[None, None], angles_K.sin().to(like.dtype)[None, None]


def _kept(k_BSGK: Tensor, v_BSGK: Tensor) -> Any:
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache()
    cache.update(k_BSGK.transpose(1, 2), v_BSGK.transpose(1, 2), 0)
    return cache


@torch.no_grad()
def _step_of_theirs(
    layer: nn.Module, turns: tuple[Tensor, Tensor], x_B1D: Tensor, kept: Any, before: tuple[Tensor, Tensor]
) -> Tensor:
    kept.layers[0].keys, kept.layers[0].values = before
    return layer(x_B1D, turns, None, past_key_values=kept)[0]


def _as_ours(
    layer: GatedAttention, shape: tuple[int, int], x_B1D: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, **weights: Tensor
) -> Tensor:
    """Theirs through ours: one projection of queries and gate, head by head, and norms that multiply by 1 + w."""
    queries, gates = weights.pop("q_proj.weight").unflatten(0, (shape[0], 2, shape[1])).unbind(1)
    ours = {n: w + 1 if n.endswith("_norm.weight") else w for n, w in weights.items()}
    ours |= {"q_proj.weight": queries.flatten(0, 1), "gates.sdpa.g_proj.weight": gates.flatten(0, 1)}
    return _through(layer, x_B1D, k_BSGK, v_BSGK, **ours)
