"""The same weights at another length: rotary positions go on turning as trained, or slowed by YaRN."""

import copy

from ..config.rope import RopeScaling, YaRN
from ..models.model import Model
from ..nn.rope import Rope


def reaching(model: Model, length: int, *, trained: int | None = None) -> Model:
    """The model for sequences of `length` tokens; it shares every parameter with the one given, which stays as it is.

    Args:
        trained: the length in tokens that its plain rotary positions were trained with: YaRN by length / trained; None: no
            scaling but its own.

    Raises:
        ValueError: learned positions that do not reach; YaRN for positions that are not plain rotary ones.
    """
    c = model.config
    if c.positions == "learned" and length > c.max_seq_len:
        raise ValueError(
            f"length={length}: this model has learned positions for {c.max_seq_len} tokens; ask at most so many, or train "
            f"with model.max_seq_len={length}"
        )
    if trained is not None and (c.positions != "rope" or c.rope_scaling.kind != "none"):
        raise ValueError(
            f"YaRN stretches plain rotary positions, and this model has positions={c.positions}, "
            f"rope_scaling={c.rope_scaling.kind}; leave `trained` out"
        )
    if c.positions != "rope" or (length <= c.max_seq_len and trained is None):
        return model
    scaling = c.rope_scaling if trained is None else YaRN(factor=length / trained, original_seq_len=trained)
    return _turning(model, max(length, c.max_seq_len), scaling)


def stretched(model: Model, factor: float, title: str, *, trained: int | None = None) -> tuple[Model, str]:
    """The model with its positions stretched `factor` times by YaRN, whatever the length, and a note that says so.

    Args:
        trained: the length in tokens that its positions were trained with; those that it has unless stated.

    Raises:
        ValueError: positions that are not plain rotary ones, of the model that `title` names.
    """
    c = model.config
    if c.positions != "rope" or c.rope_scaling.kind != "none":
        has = (
            f"rotary positions scaled already ({c.rope_scaling.kind})"
            if c.positions == "rope"
            else f"positions={c.positions}"
        )
        raise ValueError(f"--yarn {factor:g}: stretches plain rotary positions, and {title} has {has}; leave it out")
    trained = trained or c.max_seq_len
    reach = int(factor * trained)
    out = _turning(model, max(reach, c.max_seq_len), YaRN(factor=factor, original_seq_len=trained))
    return out, f"its positions were extended from {trained} to {reach} tokens (yarn)"


def _turning(model: Model, n_positions: int, scaling: RopeScaling) -> Model:
    """A copy with other rotary tables; it shares every parameter."""
    c = model.config
    out = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    out.config = c.model_copy(update={"max_seq_len": n_positions, "rope_scaling": scaling})
    for layer in (layer for layer in out._attention_layers() if layer.rope is not None):
        rope = Rope(layer.rope.head_dim, c.rope_theta, n_positions + c.registers, c.rope_fraction, scaling)
        layer.rope = rope.to(layer.rope.cos_TK.device)
    return out
