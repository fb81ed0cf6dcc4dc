"""The same weights at another length: rotary positions go on turning as trained, or slowed by YaRN."""

import copy

from ..config.rope import YaRN
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
    out = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    out.config = c.model_copy(update={"max_seq_len": max(length, c.max_seq_len), "rope_scaling": scaling})
    for layer in (layer for layer in out._attention_layers() if layer.rope is not None):
        n_positions = out.config.max_seq_len + c.registers
        rope = Rope(layer.rope.head_dim, c.rope_theta, n_positions, c.rope_fraction, scaling)
        layer.rope = rope.to(layer.rope.cos_TK.device)
    return out
