"""A tiny Llama with random parameters, none of them zero, and dropout in its attention; and token ids for it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

V, T = 31, 12
_SIZES = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "pad_token_id": 0, "attention_dropout": 0.2,
}  # fmt: skip


def ids(batch: int = 3, length: int = T, seed: int = 1) -> Tensor:
    return torch.randint(1, V, (batch, length), generator=torch.Generator().manual_seed(seed))


def llama(**changes: Any) -> nn.Module:
    """In training mode."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SIZES | changes))
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    return model.train()
