"""Where in a model an edit can take hold: its attention layers and blocks by number, Gatelab's own or transformers'.

A layer's number is its block's place in its stack, as in the probes' rows.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...models.model import Model
from ...nn.attention import GatedAttention
from ..capture import refuse_shared


@dataclass(frozen=True)
class Anatomy:
    """One model. `layers` has the number of every module inside a block, and of every GatedAttention; `residual` are the
    modules that give the residual stream after a block."""

    model: nn.Module
    is_own: bool
    layers: dict[nn.Module, int]
    residual: dict[nn.Module, int]
    n_layers: int
    d_model: int

    @property
    def attention(self) -> dict[GatedAttention, int]:
        """Gatelab's own attention layers."""
        return {m: layer for m, layer in self.layers.items() if isinstance(m, GatedAttention)}

    @property
    def stream(self) -> nn.Module:
        """The module whose call is one pass through all blocks: without its head, where that stands apart."""
        return self.model if self.is_own else self.model.base_model


def anatomy(model: nn.Module) -> Anatomy:
    """Look a model over.

    Raises:
        ValueError: a compiled model, heads that are shared among processes, a model with two stacks, one in which nothing can be
            edited.
    """
    if any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None for m in model.modules()):
        raise ValueError("this model is compiled and would ignore the edits; give and run the module that was compiled")
    own = [m for m in model.modules() if isinstance(m, GatedAttention)]
    refuse_shared(own)
    if own:
        return _own(model, own)
    if not hasattr(model, "config") or not hasattr(model, "base_model"):
        raise ValueError(
            f"{type(model).__name__} has no GatedAttention layer and is not a model of transformers, so nothing in it can "
            "be edited"
        )
    return _external(model)


@contextmanager
def met_layers(anatomy: Anatomy, named: set[int], word: str) -> Iterator[set[int]]:
    """Gives a set in which an edit of a transformers model notes the layers that it met, and looks at it at the end of each
    pass: an edit that was asked for and did not happen is an error.

    Args:
        named: the layers that have to be met; when empty, any.

    Raises:
        ValueError: from the forward pass, naming the layers.
    """
    met: set[int] = set()

    def check(*_: Any) -> None:
        missed = sorted(named - met)
        if missed or not met:
            where = f"layer {', '.join(map(str, missed))}" if missed else "any layer"
            raise ValueError(
                f"{word}: no call of an attention function that can be replaced was seen in {where} of "
                f"{type(anatomy.model).__name__}; take layers, or a model, of softmax attention that transformers looks up"
            )
        met.clear()

    handle = anatomy.stream.register_forward_hook(check)
    try:
        yield met
    finally:
        handle.remove()


def _own(model: nn.Module, own: list[GatedAttention]) -> Anatomy:
    if isinstance(model, Model) and len(model.config.architecture.stacks) > 1:
        raise ValueError("a model of two stacks has two layers of each number; interventions take models of one stack")
    taps = [m.tap_residual for m in model.modules() if isinstance(getattr(m, "tap_residual", None), nn.Module)]
    return Anatomy(
        model,
        is_own=True,
        layers={m: i for i, m in enumerate(own)},
        residual={m: i for i, m in enumerate(taps)},
        n_layers=len(own),
        d_model=own[0].q_proj.in_features,
    )


def _external(model: nn.Module) -> Anatomy:
    config = model.config.get_text_config()
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError("a model of two stacks has two layers of each number; interventions take models of one stack")
    blocks = _blocks(model)
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no blocks that can be told apart, so nothing in it can be edited")
    return Anatomy(
        model,
        is_own=False,
        layers={m: layer for block, layer in blocks.items() for m in block.modules()},
        residual=blocks,
        n_layers=1 + max(blocks.values()),
        d_model=config.hidden_size,
    )


def _blocks(model: nn.Module) -> dict[nn.Module, int]:
    """What transformers checkpoints as one, the outermost."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    names: list[str] = []
    blocks: dict[nn.Module, int] = {}
    for name, module in model.named_modules():
        numbers = re.findall(r"\d+", name)
        is_inside = any(name.startswith(f"{outer}.") for outer in names)
        if isinstance(module, GradientCheckpointingLayer) and numbers and not is_inside:
            names.append(name)
            blocks[module] = int(numbers[-1])
    return blocks
