"""A gated model out of an ungated one: the same weights, the gate where it is to start.

Notable: a gate that stands at ½ and a W_O that is doubled leave every bit as it was, since powers of two only move the
exponent; so a plain sigmoid can start as the identity without being shut off from its gradient.
"""

import torch

from ..config import ACTIVATIONS, GateSpec, ModelConfig, Softmax, canonical, validate
from ..models import build_model
from ..models.model import Model
from ..nn.attention import GatedAttention

# What the shapes of a retrofitted layer rest on: fields with the values that they must have.
_PLAIN = {"arch": "decoder", "output_map": "none", "registers": 0, "first_hidden_from": ()}


def check_ungated(title: str, config: ModelConfig) -> None:
    """Whether a gate can be put into a model.

    Raises:
        ValueError: naming the field that is in the way.
    """
    if config.gate:
        slugs = "+".join(g.slug for g in config.gate)
        raise ValueError(f"{title}: is gated already ({slugs}); take a model without a gate, or train this one on")
    for name, value in _PLAIN.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{title}: model.{name}={getattr(config, name)} cannot be retrofitted; take a model with {name}={value}"
            )


def check_sinks(title: str, config: ModelConfig) -> None:
    """Whether a model's first key can be hidden and a gate put in its place.

    Raises:
        ValueError: naming the field that is in the way.
    """
    for name, value in {"softmax": Softmax(), "window": None, "kv_experts": None}.items():
        found = getattr(config, name)
        if found != value:
            raise ValueError(
                f"{title}: start=surgery takes a plain softmax over all earlier keys, and this model has "
                f"{name}={getattr(found, 'kind', found)}; take start=identity"
            )


def identity(spec: GateSpec) -> tuple[GateSpec, float]:
    """The gate as it starts, and what W_O is multiplied by so that the model computes what it did.

    Of a gate that states its `init` that value; else one whose logits are 0, if there is one, and then float32 logits keep
    their bits.

    Raises:
        ValueError: the gate cannot stand still at such a value, saying which activations can.
    """
    if spec.around is not None or (not spec.has_projection and spec.source != "static"):
        raise ValueError(f"gate {spec.slug} varies from the start; for start=identity leave out 'around' and 'lse'")
    neutral = {"mul": 1.0, "add": 0.0}[spec.form]
    if spec.init != "random":
        if spec.form == "add" and spec.init != 0:
            raise ValueError(f"gate {spec.slug} adds {spec.init:g} from the start; start=identity takes init=0")
        if spec.form == "mul" and spec.init == 0:
            raise ValueError(f"gate {spec.slug} starts shut, and start=identity divides W_O by its value; take init=1")
        return spec, 1.0 if spec.form == "add" else 1.0 / spec.init
    for value in (neutral, *([0.5] if spec.form == "mul" else [])):
        if _is_exact(spec.activation, value):
            started = validate(GateSpec, spec.__dict__ | {"init": value})
            return started, 1.0 if spec.form == "add" else 1.0 / value
    can = [name for name in ACTIVATIONS if any(_is_exact(name, v) for v in ((1.0, 0.5) if neutral else (0.0,)))]
    raise ValueError(
        f"gate {spec.slug}: start=identity takes a gate that can stand exactly at {'1 or ½' if neutral else '0'}, and "
        f"{spec.activation} cannot; the activations {', '.join(can)} can. Or state init, and logits are equal up to rounding"
    )


def _is_exact(activation: str, value: float) -> bool:
    """Whether the activation has the value, in float32 and without error."""
    try:
        logit = ACTIVATIONS[activation].inverse(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        return False
    # In bfloat16 too, which holds few logits but these.
    is_held = logit in (0.0, 1.0)
    return is_held and ACTIVATIONS[activation].apply(torch.tensor(logit)).item() == value


def gated_config(
    config: ModelConfig, gate: GateSpec, *, hidden: tuple[tuple[int, ...], ...] = (), bias: bool = False
) -> ModelConfig:
    """The configuration of `gated`'s model.

    Raises:
        ConfigError: a gate that this model cannot have, such as one of more channels than there are.
    """
    own = {"gate": gate.slug, "first_hidden_from": hidden, "bias": config.bias or bias}
    return validate(ModelConfig, canonical(config) | own)


def gated(
    model: Model, gate: GateSpec, *, seed: int, hidden: tuple[tuple[int, ...], ...] = (), bias: bool = False
) -> Model:
    """A model with the weights of an ungated one and the gate as its spec starts it, on the same device; biases that it did
    not have are 0."""
    out = build_model(gated_config(model.config, gate, hidden=hidden, bias=bias), seed=seed)
    state = out.state_dict()
    for name, tensor in state.items():
        if name.endswith(".bias") and ".gates." not in name:
            tensor.zero_()  # with init fan-in they are drawn
    out.load_state_dict(state | {k: v.cpu() for k, v in model.state_dict().items()})
    out.compute_dtype = model.compute_dtype
    return out.to(model.head.weight.device).eval()


@torch.no_grad()
def as_identity(model: Model, spec: GateSpec, *, seed: int) -> Model:
    """The model with a gate that changes nothing.

    Raises:
        ValueError: as `identity`.
    """
    started, factor = identity(spec)
    out = gated(model, started, seed=seed)
    for layer in attention_layers(out):
        layer.o_proj.weight *= factor
    return out


def attention_layers(model: Model) -> list[GatedAttention]:
    """The attention layers of a decoder, in order."""
    return [block.attention for block in model.blocks]
