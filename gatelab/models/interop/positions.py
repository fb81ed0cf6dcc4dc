"""Positions both ways: what a configuration of transformers says of rotary positions and windows, and how ours says it there."""

from typing import Any

from ...config import ModelConfig
from ...config.rope import LinearScaling, Llama3Scaling, NTKScaling, RopeScaling, Unscaled, YaRN, rotary_dim
from .family import refusal


def rotary(config: Any, *, turns_partly: bool = False) -> dict[str, Any]:
    """`rope_theta`, `rope_fraction` and `rope_scaling` of ours.

    Args:
        turns_partly: this family's code reads `partial_rotary_factor`.

    Raises:
        ValueError: a kind of positions that ours has not.
    """
    given = dict(config.rope_parameters)
    theta, kind = given.pop("rope_theta", None), given.pop("rope_type", "default")
    fraction = given.pop("partial_rotary_factor", 1.0)
    if theta is None or (fraction != 1.0 and not turns_partly):
        raise refusal(config, "rope_parameters", "cannot be expressed: one base, and all channels turning, can")
    scaling = _scaling(kind, given, config.max_position_embeddings)
    if scaling is None:
        raise refusal(
            config,
            "rope_parameters",
            "cannot be expressed: the kinds 'default', 'linear', 'dynamic', 'yarn' and 'llama3' can",
        )
    return {"rope_theta": float(theta), "rope_fraction": fraction, "rope_scaling": scaling}


def _scaling(kind: str, given: dict[str, Any], reach: int) -> RopeScaling | None:
    # The dynamic kind stretches nothing up to max_position_embeddings, where a model of ours ends (`dynamic_note`).
    if kind in ("default", "dynamic"):
        return Unscaled()
    if kind == "linear":
        return LinearScaling(factor=given["factor"])
    if kind == "llama3":
        return Llama3Scaling(
            factor=given["factor"],
            original_seq_len=given["original_max_position_embeddings"],
            low_freq_factor=given["low_freq_factor"],
            high_freq_factor=given["high_freq_factor"],
        )
    own = {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate"}
    if kind != "yarn" or {k for k, v in given.items() if v is not None} - own:
        return None  # mscale and mscale_all_dim among them
    trained = given.get("original_max_position_embeddings") or reach
    return YaRN(
        factor=given.get("factor") or reach / trained,
        original_seq_len=trained,
        beta_fast=given.get("beta_fast") or 32.0,
        beta_slow=given.get("beta_slow") or 1.0,
        attention_factor=given.get("attention_factor"),
        truncate=given.get("truncate", True),
    )


def dynamic_note(config: Any) -> tuple[str, ...]:
    """A sentence where a model's positions would be stretched by the length it meets, as ours are not."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "dynamic":
        return ()
    reach = config.max_position_embeddings
    return (
        f"its positions are stretched (dynamic) beyond {reach} tokens, which is where this model ends: within, they are plain",
    )


def windows(config: Any) -> dict[str, Any]:
    """`window` and `global_every` of ours, from `layer_types` and `sliding_window`.

    Raises:
        ValueError: layers with a window that do not alternate as ours do.
    """
    kinds = getattr(config, "layer_types", None) or []
    is_local = [kind == "sliding_attention" for kind in kinds]
    if set(kinds) - {"sliding_attention", "full_attention"}:
        raise refusal(config, "layer_types", "cannot be expressed: full and sliding attention can")
    if not any(is_local):
        return {}
    n_layers = len(is_local)
    # The period of the first layer without one; one beyond the stack where there is none.
    every = is_local.index(False) + 1 if not all(is_local) else 0
    expected = [not (every and (layer + 1) % every == 0) for layer in range(n_layers)]
    if is_local != expected:
        raise refusal(
            config, "layer_types", "cannot be expressed: windows in all layers but every n-th (global_every) can"
        )
    return {"window": config.sliding_window, "global_every": every}


def layer_types(c: ModelConfig) -> list[str]:
    """What transformers calls the layers with a window and those without."""
    return ["full_attention" if c.is_global(layer) else "sliding_attention" for layer in range(c.n_layers)]


def rope_parameters(c: ModelConfig) -> dict[str, Any]:
    """Rotary positions as transformers 5 writes them down, but for the share of the channels that turns."""
    scaling = c.rope_scaling
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "rope_theta": c.rope_theta, "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "rope_theta": c.rope_theta,
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_seq_len,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
        }
    if isinstance(scaling, NTKScaling):
        return {"rope_type": "default", "rope_theta": _turning_base(c)}
    if not isinstance(scaling, YaRN):
        return {"rope_type": "default", "rope_theta": c.rope_theta}
    return {
        "rope_type": "yarn",
        "rope_theta": c.rope_theta,
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_seq_len,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "attention_factor": scaling.amplitude,
        "truncate": scaling.truncate,
    }


def _turning_base(c: ModelConfig) -> float:
    """The base whose plain frequencies are those of NTK scaling: theta · factor^(R / (R − 2))."""
    turning = rotary_dim(c.head_dim, c.rope_fraction)
    return c.rope_theta * c.rope_scaling.factor ** (turning / (turning - 2))
