"""blocks: the layers of a model, whoever wrote it: a Gatelab model, one of transformers, a module around GatedAttention.

Notable: names decide the numbers, so a model inside of a wrapper (DistributedDataParallel, PEFT, torch.compile) has the
blocks that it has alone. transformers is not imported: a model of it exists only where somebody else has.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..models.block import Block as OwnBlock
from ..nn.attention import GatedAttention


@dataclass(frozen=True)
class Block:
    """One layer: its module and that module's name in the model, its number, and its stack as in `ResidualView` (None, or
    `encoder` in an encoder-decoder)."""

    name: str
    module: nn.Module
    stack: str | None
    layer: int


def blocks(model: nn.Module, named: dict[str, nn.Module] | None = None) -> list[Block]:
    """The blocks in the order of the model's modules; none where nothing is known to be one. `named`: the modules by name,
    where they are known; None asks the model.

    A block of transformers is what it checkpoints as one, the outermost whose name has a number. In somebody's own module
    it is the outermost numbered module around a GatedAttention, else what holds the attention; layers count as `capture`
    counts them.
    """
    named = dict(model.named_modules()) if named is None else named
    known = list(_known(named))
    if not known:
        return _around_attention(named)
    has_encoder = any("encoder" in name.split(".") for name, _ in known)
    is_both = has_encoder and any(getattr(vars(m).get("config"), "is_encoder_decoder", False) for m in named.values())
    found = []
    for name, module in known:
        path = name.split(".")
        is_encoder = "encoder_blocks" in path or (is_both and "encoder" in path)
        found.append(Block(name, module, "encoder" if is_encoder else None, int(re.findall(r"\d+", name)[-1])))
    return found


def _known(named: dict[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    layers = sys.modules.get("transformers.modeling_layers")
    kinds = (OwnBlock,) if layers is None else (OwnBlock, layers.GradientCheckpointingLayer)
    outer: str | None = None
    for name, module in named.items():
        # What a module holds follows it.
        is_inside = outer is not None and name.startswith(f"{outer}.")
        if isinstance(module, kinds) and not is_inside and re.search(r"\d", name):
            outer = name
            yield name, module


def _around_attention(named: dict[str, nn.Module]) -> list[Block]:
    found: dict[str, Block] = {}
    attention = [name for name, module in named.items() if isinstance(module, GatedAttention)]
    for layer, name in enumerate(attention):
        numbered = re.match(r"(.*?\b\d+)(\.|$)", name)
        around = numbered[1] if numbered else name.rpartition(".")[0] or name
        found.setdefault(around, Block(around, named[around], None, layer))
    return list(found.values())
