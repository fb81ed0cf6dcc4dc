"""A decoder of ours that transformers has no architecture for: its configuration and names for modeling_gatelab.py, which
is shipped beside the weights and run with trust_remote_code; and what that file does not compute, refused by its field.
"""

from dataclasses import replace
from typing import Any

from ...config import GateSpec, ModelConfig, Softmax, validate
from ...config.rope import rotary_dim
from ..layouts import geometry_of
from .folder import Stored
from .positions import layer_types
from .tensors import Origin, Plan, Tensors

_GATE = ".gates.sdpa."
_OF_THE_CODE = ("architectures", "auto_map", "model_type", "gate_activation", "gate_bias")
FILES = ("configuration_gatelab.py", "modeling_gatelab.py")
# Fields with the values that the shipped code computes.
_COMPUTED: dict[str, tuple[Any, ...]] = {
    "arch": ("decoder",), "output_map": ("none",), "kv_experts": (None,), "softmax": (Softmax(),), "registers": (0,),
    "gate_layers": ("all",), "residual_clip": (None,), "norm": ("rms", "layer"), "embedding_norm": ("none",),
    "positions": ("rope", "learned", "none"), "moe": (None,),
}  # fmt: skip


def check_shipped(found: Stored) -> None:
    """Whether the shipped code computes what this model does.

    Raises:
        ValueError: naming the field of the configuration that it does not know, or the gate.
    """
    c = found.config
    for name, allowed in _COMPUTED.items():
        value = getattr(c, name)
        if value not in allowed:
            shown = getattr(value, "kind", value)
            words = " or ".join(str(getattr(a, "kind", a)) for a in allowed)
            raise ValueError(
                f"{found.title}: model.{name}={shown} cannot be exported: the code that goes with a model knows {words}; it is "
                "left out, so that nothing is approximated"
            )
    for gate in c.gate:
        plain = (gate.site, gate.sharing, gate.form, gate.source, gate.rank, gate.mlp)
        if len(c.gate) > 1 or plain != ("sdpa", "specific", "mul", "hidden", None, None):
            slugs = "+".join(g.slug for g in c.gate)
            raise ValueError(
                f"{found.title}: model.gate={slugs} cannot be exported: the code that goes with a model knows one gate, "
                "sdpa-headwise or sdpa-elementwise, read from the hidden state"
            )


def shipped_config(found: Stored) -> dict[str, Any]:
    """The config.json of a model that brings its code along."""
    c, gate = found.config, found.config.gate[0] if found.config.gate else None
    return {
        "architectures": ["GatelabForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_gatelab.GatelabConfig",
            "AutoModel": "modeling_gatelab.GatelabModel",
            "AutoModelForCausalLM": "modeling_gatelab.GatelabForCausalLM",
        },
        "model_type": "gatelab",
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.max_seq_len,
        "gate": gate and gate.granularity,
        "gate_activation": gate.activation if gate else "sigmoid",
        "gate_bias": bool(gate and gate.bias),
        "qk_norm": c.qk_norm,
        "norm": c.norm,
        "norm_position": c.norm_position,
        "norm_eps": c.norm_eps,
        "mlp": c.mlp,
        "bias": c.bias,
        "rope_frequencies": _frequencies(c),
        "rope_amplitude": c.rope_scaling.amplitude if c.positions == "rope" else 1.0,
        "learned_positions": c.positions == "learned",
        "sliding_window": c.window,
        "layer_types": layer_types(c),
        "first_hidden_from": [list(heads) for heads in c.first_hidden_from],
        "tie_word_embeddings": c.tied_embeddings,
        "initializer_range": c.init_std,
    }


def shipped_plan(found: Stored) -> Plan:
    """Where each tensor of the shipped code comes from."""
    return {shipped_name(name): Origin(name, shape) for name, shape in found.tensors.shapes.items()}


def shipped_name(ours: str) -> str:
    """What the shipped code calls one of our parameters."""
    if ours.startswith("head."):
        return f"lm_{ours}"
    return "model." + ours.replace(_GATE, ".")


def is_shipped(config: dict[str, Any]) -> bool:
    """Whether a config.json is one of these."""
    return config.get("model_type") == "gatelab"


def in_layout(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Such a checkpoint in the words and the names of layout `gatelab`, of which the shipped code reads neither: so its config no
    longer names that code.

    Raises:
        ValueError: a width, or a gate, that its config does not say; heads that do not see the first key.
    """
    if any(hidden := config.get("first_hidden_from") or []):
        raise ValueError(
            f"first_hidden_from={hidden}: no layout says which heads do not see the first key; keep this checkpoint's own"
        )
    grain, n_turning = config.get("gate"), 2 * len(config.get("rope_frequencies") or [])
    plain = {
        "site": "sdpa",
        "activation": config.get("gate_activation", "sigmoid"),
        "bias": config.get("gate_bias", False),
    }
    own = {name: value for name, value in config.items() if name not in _OF_THE_CODE} | {
        "gate": "none" if grain is None else validate(GateSpec, plain | {"granularity": grain}).slug,
        "partial_rotary_factor": n_turning / geometry_of(config).head_dim,
    }
    theirs = {name.replace(".g_proj.", f"{_GATE}g_proj."): name for name in tensors.shapes}
    shapes, dtypes = ({ours: held[name] for ours, name in theirs.items()} for held in (tensors.shapes, tensors.dtypes))
    return own, replace(
        tensors, shapes=shapes, dtypes=dtypes, read=lambda ours: tensors.read(theirs[ours]), read_part=None
    )


def _frequencies(c: ModelConfig) -> list[float]:
    if c.positions != "rope":
        return []
    return c.rope_scaling.frequencies(rotary_dim(c.head_dim, c.rope_fraction), c.rope_theta)
