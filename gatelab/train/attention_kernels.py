"""Which kernels the operators of gated attention take inside, where that depends on the device, its settings and the shape.

Notable: `flash` and `flash-lean` take one of torch's; `short` has an own kernel for the way there, and own ones or one of torch's
for the way back. Of `sdpa` torch decides at the call, and nothing is told.
"""

import torch

from ..config.model import ModelConfig
from ..ops.gated_attention.flash import KEEPS_OUTPUT, stock_kernel
from ..ops.gated_attention.short import backward_kernel


def attention_kernels(config: ModelConfig, names: str, *, dtype: torch.dtype, device: torch.device) -> dict[str, str]:
    """By implementation the kernels of a resolved model's layers on whole sequences, joined by `+` where layers differ.

    Args:
        names: what `chosen_for` gave; a layer that one of them does not serve is another's.
        dtype: that the model computes in.
    """
    c = config
    q_1THK, k_1SGK = (
        torch.empty(1, 1, 1, c.head_dim, dtype=dtype, device=device).expand(1, c.max_seq_len, heads, c.head_dim)
        for heads in (c.n_heads, c.n_kv_heads)
    )
    # Whether a layer is causal, and its window.
    layers = {
        (stack.is_causal, None if c.is_global(layer) else c.window)
        for stack in c.architecture.stacks
        for layer in range(c.depth(stack))
    }
    layers |= {(False, None) for stack in c.architecture.stacks if stack.has_cross}
    found: dict[str, set[str]] = {}
    for name in names.split("+"):
        if name in KEEPS_OUTPUT:
            # They know no window.
            kernels = {stock_kernel(q_1THK, k_1SGK, is_causal=causal) for causal, window in layers if window is None}
        elif name == "short":
            ways = {backward_kernel(q_1THK, k_1SGK, is_causal=causal, window=window) for causal, window in layers}
            kernels = {f"own, back {way}" for way in ways}
        else:
            continue
        found[name] = kernels
    return {name: "+".join(sorted(kernels)) for name, kernels in found.items()}
