"""Rotary positions beyond the trained ones, as transformers 5 keeps them: `rope_parameters` of a configuration.

`yarn` as in arXiv 2309.00071; `linear` divides positions (arXiv 2306.15595); `dynamic` is NTK scaling of the base. Notable:
transformers' own `dynamic` chooses the base anew from the length read so far, so keys that a cache holds would be rotated
by another base than the queries that meet them; here the base is fixed at the one that it has at the full length.
"""

import copy
from typing import Any, Literal

from pydantic import model_validator

from ...config.base import Config

# Layers that look no further than their window keep their positions.
_LOCAL = ("sliding", "chunked", "local")


class Extension(Config):
    """Positions for `length` tokens, or for `factor` times the trained ones."""

    kind: Literal["yarn", "linear", "dynamic"] = "yarn"
    length: int | None = None
    factor: float | None = None

    @model_validator(mode="after")
    def _one(self) -> "Extension":
        if (self.length is None) == (self.factor is None):
            raise ValueError("expected one of length and factor; state how far the positions shall reach")
        return self


def extend_positions(config: Any, extension: Extension) -> Any:
    """A copy of a transformers configuration whose rotary positions reach further; the weights are read with it.

    Raises:
        ValueError: positions that are not rotary, that are scaled already, or that reach as far without.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    family, limit = config.model_type, getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None)
    if getattr(config, "is_encoder_decoder", False) or not rope or limit is None:
        reach = "" if limit is None else f"; take at most {limit} tokens"
        raise ValueError(f"positions of a model of type {family!r} are not one decoder's rotary ones to extend{reach}")
    factor = extension.factor if extension.length is None else extension.length / limit
    if factor <= 1.0:
        asked = f"factor {factor:g}" if extension.length is None else f"{extension.length} tokens"
        raise ValueError(
            f"this model has positions for {limit} tokens, which {asked} does not exceed; leave the extension out"
        )
    nested = {name: own for name, own in rope.items() if isinstance(own, dict)}
    reaching = {name: own for name, own in nested.items() if not any(word in name for word in _LOCAL)} or {"": rope}
    for own in reaching.values():
        if own.get("rope_type", "default") != "default":
            raise ValueError(
                f"this model's rotary positions are already scaled ({own['rope_type']}) to reach {limit} tokens; "
                "leave the extension out, or edit rope_parameters in its config.json"
            )
        own |= _scaled(text, own, extension.kind, factor, limit)
    text.max_position_embeddings = extension.length or int(limit * factor)
    return config


def _scaled(text: Any, own: dict[str, Any], kind: str, factor: float, limit: int) -> dict[str, Any]:
    """What changes in one set of rotary parameters."""
    if kind == "yarn":
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": limit}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    rotated = int(head_dim * own.get("partial_rotary_factor", 1.0))
    # transformers' formula at a length of factor * limit.
    grown = (factor * factor - (factor - 1)) ** (rotated / (rotated - 2))
    return {"rope_type": "default", "rope_theta": own["rope_theta"] * grown}
