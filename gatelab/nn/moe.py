"""Feed-forward layers of experts: softmax top-k routing (arXiv 2505.06708, its 15A2B models), and the router's losses.

Notable: the losses are sums over tokens divided by the tokens of the global batch, so that what micro-batches or ranks
compute adds up to the loss of the whole, gradients included ("Demons in the Detail", arXiv 2501.11873).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..config.moe import MoE
from ..ops.expert_ffn import choose, expert_ffn
from ..ops.expert_ffn.grouped import MOST_EXPERTS
from .linear import Linear
from .mlp import MLP


@dataclass
class Routing:
    """What one layer's router did with its tokens: sums over them, float32 at least.

    `counts_X`: pairs of a token and a choice that each expert got, without gradient. `probability_X`: sum of the softmax
    over all experts. `z`: sum of logsumexp(logits)². Of M stacked models all have an axis of M in front, and `n_tokens` counts
    those of one.
    """

    counts_X: Tensor
    probability_X: Tensor
    z: Tensor
    n_tokens: int


class Experts(nn.Module):
    """One matrix of every expert: `weight` [X, out, in], and `bias` [X, out] or None; `paired_side` as in `Linear`. Multiplied
    in `expert_ffn`. In a stack of M models [M, X, out, in] and [M, X, out]."""

    def __init__(
        self, n_experts: int, d_in: int, d_out: int, *, bias: bool = False, paired_side: Literal["in", "out"] = "out"
    ):
        super().__init__()
        self.in_features, self.paired_side = d_in, paired_side
        self.weight = nn.Parameter(torch.empty(n_experts, d_out, d_in).uniform_(-(d_in**-0.5), d_in**-0.5))
        self.bias = nn.Parameter(torch.zeros(n_experts, d_out)) if bias else None

    def extra_repr(self) -> str:
        """The shape."""
        return f"weight={list(self.weight.shape)}, bias={self.bias is not None}"


class ExpertMLP(nn.Module):
    """Σ over the top_k experts of p_e · w2_e(SiLU(w1_e x) ⊙ w3_e x), or another activation of theirs, with biases where
    `bias` says so; plus the shared experts, times σ(shared_router x) where `shared_weight` is sigmoid.

    p is the softmax of the router's logits over all experts, divided by the sum of the chosen when `normalise_top_k`.
    Router and weighted sum compute in float32 whatever x's type; between equal probabilities torch's topk decides.

    Args:
        moe: numbers and widths; its two coefficients are the training loss's.
        impl: implementation of the experts; see `gatelab.ops.expert_ffn`.
    """

    def __init__(self, d_model: int, moe: MoE, *, impl: str = "auto"):
        super().__init__()
        self.moe, self.impl = moe, impl
        self.ffn = expert_ffn  # expert parallel puts one in its place that sends tokens to where their experts are
        self.router = Linear(d_model, moe.n_experts, bias=moe.router_bias)
        self.w1 = Experts(moe.n_experts, d_model, moe.d_expert, bias=moe.bias)
        self.w3 = Experts(moe.n_experts, d_model, moe.d_expert, bias=moe.bias)
        self.w2 = Experts(moe.n_experts, moe.d_expert, d_model, bias=moe.bias, paired_side="in")
        self.shared = MLP(d_model, moe.n_shared * moe.d_expert, "swiglu", bias=False) if moe.n_shared else None
        self.shared_router = Linear(d_model, 1, bias=False) if moe.shared_weight == "sigmoid" else None

    def forward(self, x_BTD: Tensor, routed: list[Routing] | None = None) -> Tensor:
        """[B, T, D] to [B, T, D] in x's type; appends one `Routing` to `routed` when that is a list.

        Under activation checkpointing say use_reentrant=False: the other kind runs first without gradient, so that what is
        appended then has none, and then appends a second time. Take the losses before the backward pass.
        """
        x_ND = x_BTD.flatten(0, -2)
        logits_NX = self.router(x_ND.to(torch.promote_types(x_ND.dtype, torch.float32)))
        probability_NX = logits_NX.softmax(dim=-1)
        weight_NE, chosen_NE = probability_NX.topk(self.moe.top_k, dim=-1)
        if self.moe.normalise_top_k:
            weight_NE = weight_NE / weight_NE.sum(dim=-1, keepdim=True)
        y_ND = self.of_chosen(x_ND, chosen_NE, weight_NE)
        if self.shared is not None:
            shared_ND = self.shared(x_ND)
            if self.shared_router is not None:
                shared_ND = self.shared_router(x_ND).sigmoid() * shared_ND
            y_ND = y_ND + shared_ND
        if routed is not None:
            n_models = None if self._n_models is None else (self._n_models, -1)
            of_each = (
                t if n_models is None else t.unflatten(0, n_models) for t in (logits_NX, probability_NX, chosen_NE)
            )
            routed.append(_routing(*of_each))
        return y_ND.view_as(x_BTD)

    @property
    def _n_models(self) -> int | None:
        """M of a stack; None of a plain model."""
        return len(self.w1.weight) if self.w1.weight.dim() == 4 else None

    def of_chosen(self, x_ND: Tensor, chosen_NE: Tensor, weight_NE: Tensor) -> Tensor:
        """The weighted sum of the chosen experts, [N, D]."""
        tokens, maps, dtype = (x_ND, chosen_NE, weight_NE), (self.w1, self.w3, self.w2), x_ND.dtype
        weights = [w.weight.to(dtype) for w in maps]
        biases = [None if w.bias is None else w.bias.to(dtype) for w in maps]
        if self._n_models is None:
            return self._sum(*tokens, weights, biases)
        M, X, F, D = weights[0].shape
        tokens_MN = [t.unflatten(0, (M, -1)) for t in tokens]
        if choose(self.impl, d_model=D, d_expert=F, dtype=dtype, device=x_ND.device) == "reference":
            # It computes every expert on every token: each model's own alone, and those of one number of all models at once.
            of_biases = None if biases[0] is None else 0
            return torch.vmap(self._sum, in_dims=(0, 0, 0, 0, of_biases))(*tokens_MN, weights, biases).flatten(0, 1)
        # Experts of several models are experts of one, as many as a grouped product takes.
        at_once = max(1, MOST_EXPERTS // X)
        sums = []
        for first in range(0, M, at_once):
            own = slice(first, first + at_once)
            x_mND, chosen_mNE, weight_mNE = (t[own] for t in tokens_MN)
            chosen_mNE = chosen_mNE + X * torch.arange(len(x_mND), device=x_ND.device)[:, None, None]
            flat = [t.flatten(0, 1) for t in (x_mND, chosen_mNE, weight_mNE)]
            of_all = [[t if t is None else t[own].flatten(0, 1) for t in ts] for ts in (weights, biases)]
            sums.append(self._sum(*flat, *of_all))
        return sums[0] if len(sums) == 1 else torch.cat(sums)

    def _sum(
        self,
        x_ND: Tensor,
        chosen_NE: Tensor,
        weight_NE: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
    ) -> Tensor:
        b1_XF, b3_XF, b2_XD = biases
        return self.ffn(
            x_ND, chosen_NE, weight_NE, *weights,
            b1_XF=b1_XF, b3_XF=b3_XF, b2_XD=b2_XD, activation=self.moe.activation, impl=self.impl,
        )  # fmt: skip


def router_losses(
    routed: list[Routing],
    moe: MoE,
    counts_LX: Tensor | None = None,
    n_tokens_L: Sequence[int] | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(balance, z), scalars, or [M] of M stacked models; means over layers, before their coefficients `moe.balance` and `moe.z`.

    balance = X Σ_x f_x P_x with f_x the share of the global batch's choices that expert x got (no gradient) and P_x its
    mean probability: 1 for a uniform router, X when all goes to one expert of top_k = 1. z = mean of logsumexp².

    Args:
        routed: one a layer, of the whole batch or of a part of it.
        counts_LX, n_tokens_L: choices and tokens of the global batch, for a part; layers may see different numbers of
            tokens. The losses of all parts, and their gradients, then sum to those of the whole. [L, M, X] of a stack.

    Raises:
        ValueError: no layer, one of counts_LX and n_tokens_L without the other, or of another shape.
    """
    if not routed:
        raise ValueError("routed is empty: pass the list to the forward of a model with experts first")
    if (counts_LX is None) != (n_tokens_L is None):
        raise ValueError("counts_LX and n_tokens_L describe the global batch together: give both, or neither")
    probability_LX = torch.stack([r.probability_X for r in routed])
    if counts_LX is None:
        counts_LX, n_tokens_L = torch.stack([r.counts_X for r in routed]), [r.n_tokens for r in routed]
    if counts_LX.shape != probability_LX.shape:
        raise ValueError(
            f"counts_LX of shape {tuple(counts_LX.shape)}: expected {tuple(probability_LX.shape)}, layers and experts"
        )
    if len(n_tokens_L) != len(routed):
        raise ValueError(f"n_tokens_L has {len(n_tokens_L)} entries for {len(routed)} layers; give one a layer")
    # Filled on the device: while a step is captured nothing is copied to it.
    numbers = n_tokens_L if isinstance(n_tokens_L, Tensor) else [probability_LX.new_full((), n) for n in n_tokens_L]
    tokens_L = torch.stack(tuple(numbers)).to(probability_LX)
    z_L = torch.stack([r.z for r in routed])
    tokens_L = tokens_L.view(-1, *[1] * (z_L.dim() - 1))
    share_LX = counts_LX.to(probability_LX.dtype) / (moe.top_k * tokens_L[..., None])
    balance_L = moe.n_experts * (share_LX * probability_LX / tokens_L[..., None]).sum(dim=-1)
    return balance_L.mean(dim=0), (z_L / tokens_L).mean(dim=0)


def _routing(logits_NX: Tensor, probability_NX: Tensor, chosen_NE: Tensor) -> Routing:
    """Sums over tokens, the last axis but one; stacked models have theirs before it."""
    N, X = logits_NX.shape[-2:]
    experts_X = torch.arange(X, device=chosen_NE.device)
    return Routing(
        counts_X=(chosen_NE[..., None] == experts_X).sum(dim=(-3, -2)).float(),
        probability_X=probability_NX.sum(dim=-2),
        z=logits_NX.logsumexp(dim=-1).square().sum(dim=-1),
        n_tokens=N,
    )
