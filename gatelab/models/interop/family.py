"""Family: how models of one family of transformers become ours, as a value; and what no family may say.

Notable: a key that changes what a model computes is either expressed exactly or refused by its name, never approximated
and never ignored; `exact` lists the values that a key may have.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...config import ModelConfig
from .tensors import Origin, Tensors

# Names under which forks of these families switch an attention gate on; transformers reads past them.
_GATES = (
    "headwise_attn_output_gate", "elementwise_attn_output_gate", "attn_output_gate", "attention_output_gate",
    "use_head_wise_attn_gate", "head_wise_attn_gate", "gated_attention", "gating", "use_output_gate",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """`exact`: keys of its configuration with the values that ours can express; `model`: our
    configuration of theirs; `origin`: where one of our parameters, by name and shape, comes from; `copies`: tensors that
    may be stored a second time, by name, with the one they must equal; `unused`: patterns of tensors that ours has no place
    for, with what they are; `packed`: by a quantisation's name the pattern of the tensors that hold its bytes, which `view`
    unpacks; `view`: the tensors under the names that `origin` gives; `notes`: sentences about a model of such a configuration;
    `code`: whose code computes what ours does."""

    model: Callable[[Any], ModelConfig]
    origin: Callable[[str, tuple[int, ...], ModelConfig, Any], Origin]
    exact: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    packed: Mapping[str, str] = field(default_factory=dict)
    view: Callable[[Tensors, Any], Tensors] = lambda tensors, config: tensors
    notes: Callable[[Any], tuple[str, ...]] = lambda config: ()
    code: Callable[[Any], str] = lambda config: f"transformers' own {config.model_type}"


def check_exact(family: Family, config: Any) -> None:
    """Whether every key of a configuration has a value that ours can express.

    Raises:
        ValueError: naming the key, its value and what is allowed.
    """
    for key in _GATES:
        if key not in family.exact and getattr(config, key, None):
            raise refusal(config, key, "asks for a gate that transformers does not read in this family")
    method = quantisation(config)
    if method is not None and method not in family.packed:
        words = f", or those of {' or '.join(family.packed)}" if family.packed else ""
        raise refusal(
            config, "quantization_config", f"says that the weights are quantised ({method}); take the full ones{words}"
        )
    for key, allowed in family.exact.items():
        value = getattr(config, key, allowed[0])
        if value not in allowed:
            words = " or ".join(repr(a) for a in allowed)
            raise refusal(config, key, f"cannot be expressed exactly by a ModelConfig, which has {words}")


def quantisation(config: Any) -> str | None:
    """The name of the quantisation that a configuration says its weights have; None where they have none."""
    stated = getattr(config, "quantization_config", None)
    if not stated:
        return None
    stated = stated if isinstance(stated, dict) else stated.to_dict()
    return str(stated.get("quant_method"))


def refusal(config: Any, key: str, why: str) -> ValueError:
    """The error that a key of a configuration cannot be used."""
    return ValueError(
        f"{key}={getattr(config, key, None)!r} of this {config.model_type} {why}; it is left unread, so that nothing is "
        "approximated"
    )
