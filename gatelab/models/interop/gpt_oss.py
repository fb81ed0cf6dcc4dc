"""gpt-oss, in and out: sink logits, windows in every other layer, and experts of a clamped swiglu with biases.

Layout: an expert's matrices lie as [in, out]; columns of `gate_up_proj` are w1's and w3's in turn, its bias likewise. The
released weights have experts in MXFP4; whatever else they are, one tensor holds those of a layer. The router weighs by a
softmax over the chosen logits, which is that over all divided by the sum of the chosen.
"""

import re
from typing import Any

import torch
from torch import Tensor

from ...config import ModelConfig, validate
from .family import Family, quantisation
from .llama import LLAMA, fields, llama_name
from .llama import origin as dense_origin
from .mxfp4 import PACKED, unpacked
from .positions import dynamic_note
from .tensors import Origin, Plan

_OURS = re.compile(r"^(.*)\.mlp\.w([123])\.(weight|bias)$")
_SINK = (".attention.sink.sink_logit_H", ".attention.sinks")


def model(config: Any) -> ModelConfig:
    """Our configuration of such a model.

    Raises:
        ValueError: naming the key of the configuration that cannot be expressed.
    """
    c = config
    moe = {
        "n_experts": c.num_local_experts,
        "top_k": c.num_experts_per_tok,
        "d_expert": c.intermediate_size,
        "activation": {"kind": "clamped_swiglu", "limit": c.swiglu_limit, "alpha": c.swiglu_alpha},
        "bias": True,
        "router_bias": True,
    }
    return validate(ModelConfig, fields(c) | {"softmax": "sink-logit", "moe": moe})


def origin(name: str, shape: tuple[int, ...], ours: ModelConfig, config: Any) -> Origin:
    """Where one of our parameters comes from."""
    found = _OURS.match(name)
    if not found:
        own = name.replace(*_SINK)
        return Origin(llama_name(own), shape) if ".mlp." in own else dense_origin(own, shape, ours, config)
    word = ("gate_up_proj", "down_proj", "gate_up_proj")[int(found[2]) - 1]
    theirs = llama_name(f"{found[1]}.mlp.experts.{word}") + ("_bias" if found[3] == "bias" else "")
    first, is_joined = (0 if found[2] == "1" else 1), word == "gate_up_proj"
    if found[3] == "bias":
        X, O = shape  # noqa: E741
        return Origin(theirs, (X, 2 * O), move=lambda b: b[:, first::2]) if is_joined else Origin(theirs, shape)
    X, O, I = shape  # noqa: E741
    if is_joined:
        return Origin(theirs, (X, I, 2 * O), move=lambda w: w[..., first::2].transpose(1, 2))
    return Origin(theirs, (X, I, O), move=lambda w: w.transpose(1, 2))


def gpt_oss_plan(shapes: dict[str, tuple[int, ...]], c: ModelConfig) -> Plan:
    """Where each tensor of theirs comes from that holds sinks, routers or experts of ours; a bias that ours has not is 0."""
    X, F, D = c.moe.n_experts, c.moe.d_expert, c.d_model
    plan = {llama_name(name.replace(*_SINK)): Origin(name, shape) for name, shape in shapes.items() if _SINK[0] in name}
    for layer in range(c.n_layers):
        mlp = f"blocks.{layer}.mlp"
        router, experts = llama_name(f"{mlp}.router"), llama_name(f"{mlp}.experts")
        up, down = ((f"{mlp}.w3.weight", (X, F, D)),), (f"{mlp}.w2.weight", (X, D, F))
        plan |= {
            f"{router}.weight": Origin(f"{mlp}.router.weight", (X, D)),
            f"{router}.bias": Origin(f"{mlp}.router.bias" if c.moe.router_bias else None, (X,)),
            f"{experts}.gate_up_proj": Origin(f"{mlp}.w1.weight", (X, F, D), beside=up, move=_in_turn_and_turned),
            f"{experts}.down_proj": Origin(*down, move=lambda w: w.transpose(1, 2)),
            f"{experts}.gate_up_proj_bias": Origin(None, (X, 2 * F)),
            f"{experts}.down_proj_bias": Origin(f"{mlp}.w2.bias" if c.moe.bias else None, (X, D)),
        }
        if c.moe.bias:
            beside = ((f"{mlp}.w3.bias", (X, F)),)
            plan[f"{experts}.gate_up_proj_bias"] = Origin(f"{mlp}.w1.bias", (X, F), beside=beside, move=_in_turn)
    return plan


def _in_turn(first_XF: Tensor, second_XF: Tensor) -> Tensor:
    return torch.stack([first_XF, second_XF], dim=2).flatten(1, 2)


def _in_turn_and_turned(first_XFD: Tensor, second_XFD: Tensor) -> Tensor:
    return _in_turn(first_XFD, second_XFD).transpose(1, 2)


def _notes(config: Any) -> tuple[str, ...]:
    is_packed = quantisation(config) == "mxfp4"
    own = ("its experts, stored as mxfp4, were unpacked to bfloat16, which has the same numbers",) if is_packed else ()
    return (*own, *dynamic_note(config))


GPT_OSS = Family(
    model,
    origin,
    exact={"hidden_act": LLAMA.exact["hidden_act"]},
    copies=LLAMA.copies,
    packed={"mxfp4": PACKED},
    view=lambda tensors, config: unpacked(tensors),
    notes=_notes,
)
