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
from ..nn.linear import Linear


def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Draw every weight in place.

    `normal`: N(0, init_std²), biases 0. `fan-in`: linear layers uniform in ±1/√fan_in, biases too, embeddings N(0, 1).
    Norms, sink logits, static gates and gates whose spec states a starting value keep what their constructors gave.
    """
    fan_in = config.init == "fan-in"
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, Linear):
                gate = _gate_of(model, name)
                if gate is not None and gate.spec.init != "random":
                    continue
                bound = module.in_features**-0.5
                weight = _draw(module.weight, f"{name}.weight", seed, fan_in, transposed=module.paired_side == "in")
                module.weight.copy_(weight * (bound if fan_in else config.init_std))
                if module.bias is not None:
                    module.bias.copy_(
                        _draw(module.bias, f"{name}.bias", seed, True) * bound if fan_in else module.bias * 0
                    )
            elif isinstance(module, nn.Embedding):
                weight = _draw(module.weight, f"{name}.weight", seed, uniform=False)
                module.weight.copy_(weight * (1.0 if fan_in else config.init_std))
        if config.tied_embeddings:
            # The head was drawn last; the shared table belongs to the embedding.
            weight = _draw(model.embedding.weight, "embedding.weight", seed, uniform=False)
            model.embedding.weight.copy_(weight * (1.0 if fan_in else config.init_std))


def _gate_of(model: nn.Module, name: str) -> Gate | None:
    parent = model.get_submodule(name.rpartition(".")[0]) if "." in name else None
    return parent if isinstance(parent, Gate) else None


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
