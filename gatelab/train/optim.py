"""AdamW with the usual groups: matrices decay, everything else does not."""

import torch
from torch import nn

from ..config.run import OptimConfig
from ..nn.linear import HeadLinear, Linear
from ..nn.moe import Experts


def decayed_names(model: nn.Module) -> set[str]:
    """The weights that decay, by name."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, Linear | HeadLinear | Experts)} - tables
    return {name for name, p in model.named_parameters() if id(p) in matrices}


def build_optimizer(model: nn.Module, optim: OptimConfig, decayed: set[str] | None = None) -> torch.optim.AdamW:
    """AdamW over the weights of linear layers, heads' own maps and experts (decay) and all others: norms, biases,
    embeddings, registers, relative positions, what a normaliser learns and gate constants (no decay). A head tied to the
    embedding counts as an embedding. `decayed` names the former where the model's weights are shared out, and its modules no
    longer say."""
    decayed = decayed_names(model) if decayed is None else decayed
    # Matrices first; and one group takes weights of one mesh.
    groups: dict[tuple[bool, object], list[nn.Parameter]] = {(True, None): [], (False, None): []}
    for name, p in model.named_parameters():
        groups.setdefault((name in decayed, getattr(p, "device_mesh", None)), []).append(p)
    return torch.optim.AdamW(
        [
            {"params": params, "weight_decay": optim.weight_decay if is_decayed else 0.0}
            for (is_decayed, _), params in groups.items()
        ],
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        fused=True,
    )


def begin_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give an optimiser that has not stepped the state from which AdamW begins: nothing."""
    for p in model.parameters():
        if not optimizer.state[p]:
            optimizer.state[p] |= {
                "step": torch.zeros((), device=p.device),
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
            }
