"""Initial values, paired: each parameter is drawn from a generator keyed by (seed, its name).

So arms that share a parameter start with the same values, whatever else they have; a narrower layer starts as a slice
of the wider one. Drawn by NumPy's counter-based Philox on the host: the same on every device and torch version.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor, nn

from ..config.model import ModelConfig
from ..nn.gate import Gate
from ..nn.linear import HeadLinear, Linear
from ..nn.moe import Experts
from ..nn.softmax import LearnedNormaliser
from .model import Model

# Layers that write to the residual stream.
_WRITERS = (".o_proj", ".w2")


def initialise(model: Model, config: ModelConfig, seed: int) -> None:
    """Draw every weight in place.

    `normal`: N(0, init_std²), biases 0. `scaled`: the same, over √n where one of n layers of a stack writes to the residual
    stream (GPT-2, Radford et al. 2019, section 2.3). `fan-in`: linear layers uniform in ±1/√fan_in, biases too, embeddings N(0, 1).
    Registers are embeddings. Norms, constant gates and what a gate or a normaliser states about its start stay.
    """
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, Linear | HeadLinear | Experts):
                _draw_map(module, name, config, seed)
            elif isinstance(module, nn.Embedding):
                _draw_table(module.weight, f"{name}.weight", config, seed)
            elif isinstance(module, LearnedNormaliser):
                for word, learned in module.normaliser.learned(module.heads).items():
                    if learned.std:
                        drawn = _draw(getattr(module, word), f"{name}.{word}", seed, uniform=False)
                        getattr(module, word).copy_(learned.init + learned.std * drawn)
        for name, parameter in model.named_parameters():
            if name.endswith("registers_RD"):
                _draw_table(parameter, name, config, seed)
        if config.tied_embeddings:
            # The head was drawn last; the shared table belongs to the embedding.
            _draw_table(model.embedding.weight, "embedding.weight", config, seed)
        for module in model.modules():
            if isinstance(module, Gate):
                module.start()


def _draw_map(module: Linear | HeadLinear | Experts, name: str, config: ModelConfig, seed: int) -> None:
    fan_in, bound = config.init == "fan-in", module.in_features**-0.5
    is_narrowed_in = getattr(module, "paired_side", "out") == "in"
    for key, part in _parts(module, f"{name}.weight", module.weight):
        weight = _draw(part, key, seed, fan_in, transposed=is_narrowed_in)
        part.copy_(weight * (bound if fan_in else config.init_std * _onto_residual(name, config)))
    if getattr(module, "bias", None) is not None:
        for key, part in _parts(module, f"{name}.bias", module.bias):
            part.copy_(_draw(part, key, seed, True) * bound if fan_in else part * 0)


def _onto_residual(name: str, config: ModelConfig) -> float:
    """What the standard deviation of a linear layer of this name is multiplied by."""
    if config.init != "scaled" or not name.endswith(_WRITERS):
        return 1.0
    stack = next(s for s in config.architecture.stacks if name.startswith(f"{s.blocks}."))
    return (config.depth(stack) * (3 if stack.has_cross else 2)) ** -0.5


def _parts(module: nn.Module, name: str, whole: Tensor) -> list[tuple[str, Tensor]]:
    """What is drawn at once: each expert by its own number, so that fewer of them, and narrower ones, start as a part of
    more."""
    if not isinstance(module, Experts):
        return [(name, whole)]
    return [(f"{name}.{number}", part) for number, part in enumerate(whole)]


def _draw_table(table: Tensor, name: str, config: ModelConfig, seed: int) -> None:
    scale = 1.0 if config.init == "fan-in" else config.init_std
    table.copy_(_draw(table, name, seed, uniform=False) * scale)


def _draw(like: Tensor, name: str, seed: int, uniform: bool, transposed: bool = False) -> Tensor:
    """Standard normal, or uniform in (−1, 1); row by row, so that fewer rows are a prefix of more."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    generator = np.random.Generator(np.random.Philox(key=key))
    shape = tuple(reversed(like.shape)) if transposed else tuple(like.shape)
    if uniform:
        values = generator.random(shape, dtype=np.float32) * 2 - 1
    else:
        values = generator.standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(values.T.copy() if transposed else values).to(like.device)
