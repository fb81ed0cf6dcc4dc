"""What a config has to say so that an attention layer's layout is recognised: the inverse of `recognise`."""

from typing import Any

from ...config.gate import GateSpec
from .canonical import Convention, Geometry, Granularity
from .geometry import geometry_of
from .layout import Layout
from .recognise import ONE_PLUS
from .table import LAYOUTS

# Everything that says something of a gate or of what its norms multiply by.
_SAID = {"gate", "gate_attn_act_mode", *ONE_PLUS, *(field for layout in LAYOUTS.values() for field in layout.fields)}
_TYPES = {name for layout in LAYOUTS.values() for name in layout.model_types}
_FRACTIONS = ("partial_rotary_factor", "rotary_percent", "rope_fraction", "partial_rotary_factors")


def stated(
    config: dict[str, Any],
    layout: Layout,
    geometries: dict[int | None, Geometry],
    *,
    granularity: Granularity | None,
    activation: str,
    gain: Convention | None,
    has_gate_bias: bool,
) -> dict[str, Any]:
    """A config for layers of a layout, made from that of the same layers in another.

    The model's type stays unless it is the name of a code that has a layout: that code would misread these tensors.

    Args:
        geometries: of each layer, by its number.
        gain: of its q/k norms; None: it has none.

    Raises:
        ValueError: layers whose shares of turning channels no config can say.
    """
    said = _gate(layout, granularity, activation, has_gate_bias)
    if len(layout.gains) > 1 and gain is not None:
        said[ONE_PLUS[0]] = gain == "1+w"
    inner = config.get("text_config")
    if isinstance(inner, dict):
        outer = {name: value for name, value in config.items() if name not in _SAID and name != "text_config"}
        return _untyped(outer) | {"text_config": _stated(inner, layout, geometries, said)}
    return _stated(config, layout, geometries, said)


def _stated(
    config: dict[str, Any], layout: Layout, geometries: dict[int | None, Geometry], said: dict[str, Any]
) -> dict[str, Any]:
    own = _untyped({name: value for name, value in config.items() if name not in _SAID}) | said
    if _turning(own, geometries):
        return own
    own = {name: value for name, value in own.items() if name not in _FRACTIONS}
    shares = {
        layer: (g.head_dim if g.rotary_dim is None else g.rotary_dim) / g.head_dim for layer, g in geometries.items()
    }
    if len(set(shares.values())) == 1:
        own["partial_rotary_factor"] = next(iter(shares.values()))
    else:
        n_layers = max(layer for layer in shares if layer is not None) + 1
        own["partial_rotary_factors"] = [shares.get(layer, 1.0) for layer in range(n_layers)]
    if not _turning(own, geometries):
        raise ValueError(
            f"{layout.slug}: no config says that layers turn shares {sorted(set(shares.values()))} of their channels, as these do; "
            "take the layout that they come from"
        )
    return own


def _untyped(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "model_type" or value not in _TYPES}


def _gate(layout: Layout, granularity: Granularity | None, activation: str, has_bias: bool) -> dict[str, Any]:
    if layout.slug == "gatelab":
        if granularity is None:
            return {"gate": "none"}
        return {"gate": GateSpec(site="sdpa", granularity=granularity, activation=activation, bias=has_bias).slug}
    if layout.slug == "olmo-core":
        return {"gate": granularity and {"granularity": granularity}}
    if layout.slug == "laguna":
        return {"gating": {"headwise": "per-head", "elementwise": "per-element"}[granularity]}
    return {layout.fields[0]: granularity is not None} if layout.fields else {}


def _turning(config: dict[str, Any], geometries: dict[int | None, Geometry]) -> bool:
    """Whether the config says of every layer what it is."""
    return all(geometry_of(config, layer=layer) == g for layer, g in geometries.items())
