"""The widths of an attention layer from a checkpoint's config, whoever's names it uses.

Notable: Laguna and Step have layers of different head counts and rotary shares, so that a config alone may not say; a layer's
number then does. AFMoE turns no channel in its global layers.
"""

from typing import Any

from ...config.base import validate
from ...config.rope import rotary_dim
from .canonical import Geometry

_NAMES = {
    "d_model": ("hidden_size", "d_model"),
    "n_heads": ("num_attention_heads", "n_heads"),
    "n_kv_heads": ("num_key_value_heads", "num_query_groups", "num_attention_groups", "n_kv_heads"),
    "head_dim": ("head_dim", "kv_channels"),
}
_FRACTIONS = ("partial_rotary_factor", "rotary_percent", "rope_fraction")
# What transformers' code of these takes where the config does not say.
_UNSAID_FRACTION = {
    "qwen3_next": 0.25,
    "qwen3_5": 0.25,
    "qwen3_5_text": 0.25,
    "qwen3_5_moe": 0.25,
    "qwen3_5_moe_text": 0.25,
}


def geometry_of(config: dict[str, Any], *, layer: int | None = None) -> Geometry:
    """The geometry of a layer, counted from 0; None: of all layers.

    Raises:
        ValueError: a width that is not said or said twice; layers that differ and no layer named; a layer without softmax
            attention; rotary pairs that are neighbours.
    """
    own = text_config(config)
    kind = _kind(own, layer)
    if own.get("rotary_interleaved"):
        raise ValueError(
            "rotary_interleaved=True: pairs of neighbouring channels turn, and half-split pairs are expected here"
        )
    found = {width: _number(own, names) for width, names in _NAMES.items()}
    found["n_heads"] = _heads(own, layer, kind, found["n_heads"])
    for width in ("d_model", "n_heads"):
        if found[width] is None:
            raise ValueError(f"the config does not say {width}; it needs {' or '.join(_NAMES[width])}")
    if found["head_dim"] is None:
        if found["d_model"] % found["n_heads"]:
            raise ValueError(
                f"d_model={found['d_model']} is not a multiple of n_heads={found['n_heads']}; the config needs head_dim"
            )
        found["head_dim"] = found["d_model"] // found["n_heads"]
    found["n_kv_heads"] = found["n_kv_heads"] or found["n_heads"]
    fraction = _fraction(own, layer, kind)
    turning = 0 if fraction == 0 else rotary_dim(found["head_dim"], fraction)
    return validate(Geometry, found | {"rotary_dim": turning})


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that describes the language model.

    Raises:
        ValueError: it is no dictionary.
    """
    if not isinstance(config, dict):
        raise ValueError(f"a config of type {type(config).__name__}: expected what its config.json holds, a dictionary")
    inner = config.get("text_config")
    return {"model_type": config.get("model_type")} | inner if isinstance(inner, dict) else config


def _kind(own: dict[str, Any], layer: int | None) -> str | None:
    """The layer's type, such as sliding_attention; that of all layers where none is named and all have one."""
    kinds = own.get("layer_types")
    if kinds is not None and not isinstance(kinds, (list, tuple)):
        raise ValueError(f"layer_types={kinds!r}: expected a list of the layers' types")
    if layer is not None and (not isinstance(layer, int) or layer < 0):
        raise ValueError(f"layer={layer!r}: expected a number from 0")
    if layer is None or not kinds:
        return kinds[0] if kinds and len(set(kinds)) == 1 else None
    if layer >= len(kinds):
        raise ValueError(f"layer={layer}: the config has layers 0 to {len(kinds) - 1}")
    if "linear" in kinds[layer]:
        soft = [i for i, kind in enumerate(kinds) if "linear" not in kind]
        raise ValueError(f"layer {layer} is {kinds[layer]} and has no softmax; take one of {soft}")
    return kinds[layer]


def _heads(own: dict[str, Any], layer: int | None, kind: str | None, n_heads: int | None) -> int | None:
    listed, other = own.get("num_attention_heads_per_layer"), own.get("attention_other_setting") or {}
    sliding = own.get("num_sliding_attention_heads", other.get("num_attention_heads"))
    if listed:
        return _of(listed, layer, "num_attention_heads_per_layer")
    if sliding is None or sliding == n_heads or kind == "full_attention":
        return n_heads
    if kind is None:
        raise ValueError(f"sliding layers have {sliding} heads and others {n_heads}; name the layer")
    return sliding if kind == "sliding_attention" else n_heads


def _fraction(own: dict[str, Any], layer: int | None, kind: str | None) -> float:
    """The share of a head's channels that turn."""
    if own.get("positions", "rope") != "rope":
        return 0.0
    if own.get("model_type") == "afmoe":
        if kind is None:
            raise ValueError(
                "AFMoE's global layers turn no channel and its sliding ones all; name the layer, by layer_types"
            )
        return 1.0 if kind == "sliding_attention" else 0.0
    if own.get("partial_rotary_factors"):
        return float(_of(own["partial_rotary_factors"], layer, "partial_rotary_factors"))
    rope = own.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_parameters={rope!r}: expected a dictionary")
    nested = {name: value for name, value in rope.items() if isinstance(value, dict)}
    unsaid = _UNSAID_FRACTION.get(str(own.get("model_type")), 1.0)
    said = _number(own, _FRACTIONS)
    if kind in nested:
        rope = nested[kind]
    elif nested:
        shares = [value.get("partial_rotary_factor") for value in nested.values()]
        if len(set(shares)) > 1:
            raise ValueError(f"layers of different types turn different shares of a head, {shares}; name the layer")
        rope = {"partial_rotary_factor": shares[0]}
    share = _number(rope, ("partial_rotary_factor",))
    return float(next(value for value in (share, said, unsaid) if value is not None))


def _of(values: list[Any], layer: int | None, name: str) -> Any:
    if layer is None and len(set(values)) == 1:
        return values[0]
    if layer is None or not 0 <= layer < len(values):
        raise ValueError(f"{name} has a value for each of {len(values)} layers, and layer={layer}; name one of them")
    return values[layer]


def _number(own: dict[str, Any], names: tuple[str, ...]) -> Any:
    said = {name: own[name] for name in names if own.get(name) is not None}
    if len(set(said.values())) > 1:
        raise ValueError(f"the config contradicts itself: {', '.join(f'{n}={v}' for n, v in said.items())}; keep one")
    for name, value in said.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name}={value!r}: expected a number")
    return next(iter(said.values()), None)
