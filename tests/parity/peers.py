"""What the parity tests share: a layer of transformers with random weights, and one of ours on the very same tensors.

Notable: nothing is copied. Our module is called on tensors that a conversion makes of the peer's weights (renamed, cut,
permuted, scaled), so both losses are differentiated by the peer's own weights, and no conversion has to be undone.
"""

import re
from collections.abc import Callable, Iterable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

Weights = dict[str, Tensor]

# Llama's names, which most decoders since have, and ours.
LLAMA = [
    (r"^model\.", ""),
    ("embed_tokens", "embedding"),
    (r"^layers", "blocks"),
    (r"^norm\.", "final_norm."),
    ("self_attn", "attention"),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "mlp_norm"),
    (r"mlp\.gate_proj", "mlp.w1"),
    (r"mlp\.up_proj", "mlp.w3"),
    (r"mlp\.down_proj", "mlp.w2"),
    ("lm_head", "head"),
]

# Of the largest number in the tensor. Gradients of sums of squares pass through every rounding twice.
OUTPUTS = {torch.float32: 1e-5, torch.float64: 1e-10}
GRADIENTS = {torch.float32: 1e-4, torch.float64: 1e-10}


def modeling(name: str) -> ModuleType:
    """transformers.models.<name>.modeling_<name>; skips the test where this transformers has no such model."""
    return pytest.importorskip(f"transformers.models.{name}.modeling_{name}")


def drawn(peer: nn.Module) -> nn.Module:
    """The peer in evaluation mode, with every parameter drawn.

    Norms, biases and sinks too: a weight of 0 or 1 says nothing about its place. Matrices keep the size of what they
    multiply; routers are larger, since experts of nearly equal probability would be told apart by rounding.
    """
    for name, weight in peer.named_parameters():
        is_router = name.endswith(("gate.weight", "router.weight"))
        nn.init.normal_(weight, std=1.0 if is_router or weight.dim() == 1 else weight.shape[-1] ** -0.5)
    return peer.eval()


def renamed(weights: Weights, names: Iterable[tuple[str, str]]) -> Weights:
    """Each name after all substitutions, given as (regular expression, replacement)."""
    for pattern, replacement in names:
        weights = {re.sub(pattern, replacement, name): weight for name, weight in weights.items()}
    return weights


def call(ours: nn.Module, weights: Weights, *args: Tensor, **options: object) -> Tensor:
    """Our module on these weights, after checking that they are its parameters, no more and no fewer."""
    expected = {name: tuple(p.shape) for name, p in ours.named_parameters()}
    assert {name: tuple(w.shape) for name, w in weights.items()} == expected
    return functional_call(ours, weights, args, options)


def assert_close(expected: Tensor, found: Tensor) -> None:
    """Equal to the rounding of the type, in units of the largest number."""
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=OUTPUTS[expected.dtype] * largest)


def assert_same(expected: Tensor, found: Tensor, by: Weights) -> None:
    """Equal outputs, and equal gradients of the sum of their squares by each of the peer's tensors.

    Gradients are compared in units of the largest of all: that of a key's bias is 0 but for rounding.
    """
    assert_close(expected, found)
    of_peer = torch.autograd.grad(expected.square().sum(), list(by.values()))
    of_ours = torch.autograd.grad(found.square().sum(), list(by.values()))
    largest = max(float(gradient.abs().max()) for gradient in of_peer)
    assert largest > 0
    for name, theirs, mine in zip(by, of_peer, of_ours, strict=True):
        within = GRADIENTS[theirs.dtype] * largest
        torch.testing.assert_close(
            mine, theirs, rtol=0, atol=within, msg=lambda text, name=name: f"gradient of {name}: {text}"
        )


def assert_another(expected: Tensor, found: Tensor, *, share: float = 0.1) -> None:
    """They differ by more than this share of the expected, so that the claim they belong to can fail."""
    assert (found - expected).norm() > share * expected.norm()


def hidden(*shape: int) -> Tensor:
    """Random, to be differentiated by."""
    return torch.randn(*shape, requires_grad=True)


def attention_of(peer: nn.Module, x_BTD: Tensor, rotary: Callable | None, mask: Callable | None) -> Tensor:
    """An attention layer of transformers, called as a block of its decoder does: rotary tables, then a mask.

    `mask` is one of `transformers.masking_utils`; None leaves causality to the layer.
    """
    positions_1T = torch.arange(x_BTD.shape[1])[None]
    tables = None if rotary is None else rotary(x_BTD, positions_1T)
    mask_B1TS = None
    if mask is not None:
        mask_B1TS = mask(
            config=peer.config,
            inputs_embeds=x_BTD,
            attention_mask=None,
            past_key_values=None,
            position_ids=positions_1T,
        )
    return peer(x_BTD, position_embeddings=tables, attention_mask=mask_B1TS)[0]
