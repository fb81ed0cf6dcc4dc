"""AdamW with the usual groups: matrices decay, everything else does not."""

import torch
from torch import nn

from ..config.run import OptimConfig
from ..nn.linear import HeadLinear, Linear
from ..nn.moe import Experts


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the weights of linear layers, heads' own maps and experts (decay) and all others: norms, biases,
    embeddings, registers, relative positions, what a normaliser learns and gate constants (no decay). A head tied to the
    embedding counts as an embedding."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, Linear | HeadLinear | Experts)} - tables
    decayed = [p for p in model.parameters() if id(p) in matrices]
    others = [p for p in model.parameters() if id(p) not in matrices]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        fused=True,
    )
