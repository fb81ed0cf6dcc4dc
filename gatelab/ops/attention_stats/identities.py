"""Specifications of the kernels of `kernels.py` in torch: rows, first keys and columns of a softmax, from q, k and the lse.

Notable: given the log-sum-exp, each weight is exp(q·k/√K − lse) and needs no other, so a few columns cost a few columns.
The lse may hold more than the keys: with logaddexp(lse, slot logit) the weights are those beside a slot. All build the
weights that they sum, T × S of them for rows and columns: for tests, and for lengths where that fits. Float64 stays.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..gated_attention import visible

# The kernels hold the first keys as one block.
MOST_FIRST_KEYS = 64


@dataclass(frozen=True)
class RowStats:
    """Of every query, float32. `lse_BHT`: ln Σ exp of its logits q·k/√K; `entropy_BHT` in nats, −Σ p ln p; `focus_BHT`:
    1 / Σ p², the number of keys that would share such a focus evenly; `largest_BHT`: its largest logit; `first_BHT`: its
    logit with key 0, −∞ where that is hidden. The first-key mass is exp(first − lse), the largest exp(largest − lse)."""

    lse_BHT: Tensor
    entropy_BHT: Tensor
    focus_BHT: Tensor
    largest_BHT: Tensor
    first_BHT: Tensor


def row_stats(q_BTHK: Tensor, k_BSGK: Tensor, *, is_causal: bool = True, window: int | None = None) -> RowStats:
    """Shape of the attention of T queries that are the last T of S tokens; query head h reads key head h // (H / G).

    Args:
        q_BTHK, k_BSGK: after q/k-norm and rotation, as they enter the softmax.
        window: a query sees the keys less than this many positions away, its own included.

    Raises:
        ValueError: for arguments that do not fit, in a sentence.
    """
    check(q_BTHK, k_BSGK, is_causal=is_causal, window=window)
    logits_BHTS = _logits(q_BTHK, k_BSGK, is_causal, window)
    weights_BHTS = logits_BHTS.softmax(dim=-1)
    return RowStats(
        lse_BHT=logits_BHTS.logsumexp(dim=-1),
        entropy_BHT=torch.special.entr(weights_BHTS).sum(dim=-1),
        focus_BHT=1.0 / weights_BHTS.square().sum(dim=-1),
        largest_BHT=logits_BHTS.amax(dim=-1),
        first_BHT=logits_BHTS[..., 0],
    )


def first_mass(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    lse_BHT: Tensor,
    *,
    n_first: int = 1,
    is_causal: bool = True,
    window: int | None = None,
) -> Tensor:
    """Mass of every query on each of the first keys, [B, H, T, n_first], 0 where one is hidden.

    Args:
        lse_BHT: ln Σ exp of the query's logits, as an attention kernel returns it.

    Raises:
        ValueError: for arguments that do not fit, in a sentence.
    """
    check(q_BTHK, k_BSGK, lse_BHT, is_causal=is_causal, window=window, n_first=n_first)
    logits_BHTS = _logits(q_BTHK, k_BSGK, is_causal, window, n_first)
    return (logits_BHTS - lse_BHT[..., None]).exp()


def mean_first_mass(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    lse_BHT: Tensor,
    *,
    n_first: int = 1,
    skip: int = 0,
    is_causal: bool = True,
    window: int | None = None,
) -> Tensor:
    """`first_mass` averaged over the queries at position `skip` or later, [B, H, n_first]: cheap enough to leave on.

    Raises:
        ValueError: for arguments that do not fit, and a `skip` that leaves no query.
    """
    check(q_BTHK, k_BSGK, lse_BHT, is_causal=is_causal, window=window, n_first=n_first)
    before = skipped(q_BTHK, k_BSGK, skip)
    mass_BHTS = first_mass(q_BTHK, k_BSGK, lse_BHT, n_first=n_first, is_causal=is_causal, window=window)
    return mass_BHTS[:, :, before:].mean(dim=2)


def column_sums(
    q_BTHK: Tensor, k_BSGK: Tensor, lse_BHT: Tensor, *, is_causal: bool = True, window: int | None = None
) -> Tensor:
    """What every key receives, [B, H, S]: the sum of its mass over the queries. Divide by how many see it (S − s where T = S
    and nothing but the causal order hides keys), or position looks like a sink.

    Raises:
        ValueError: for arguments that do not fit, in a sentence.
    """
    check(q_BTHK, k_BSGK, lse_BHT, is_causal=is_causal, window=window)
    return (_logits(q_BTHK, k_BSGK, is_causal, window) - lse_BHT[..., None]).exp().sum(dim=2)


def check(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    lse_BHT: Tensor | None = None,
    *,
    is_causal: bool,
    window: int | None,
    n_first: int = 1,
) -> None:
    """What all of these functions refuse, here and as kernels.

    Raises:
        ValueError: saying what came and what is expected.
    """
    shapes = f"q, k of shapes {tuple(q_BTHK.shape)}, {tuple(k_BSGK.shape)}"
    if q_BTHK.dim() != 4 or k_BSGK.dim() != 4:
        raise ValueError(f"{shapes}: expected [B,T,H,K], [B,S,G,K]")
    B, T, H, K = q_BTHK.shape
    S, G = k_BSGK.shape[1:3]
    if not G or H % G or not K or k_BSGK.shape[0] != B or k_BSGK.shape[3] != K:
        raise ValueError(f"{shapes}: expected [B,T,H,K], [B,S,G,K] with G dividing H")
    if not S or ((is_causal or window is not None) and T > S):
        raise ValueError(
            f"{T} queries and {S} keys: the queries are the last of the tokens whose keys these are; give at least as "
            "many keys, or is_causal=False without a window"
        )
    if window is not None and window < 1:
        raise ValueError(f"window={window}: expected the number of keys that a query sees, itself included, or None")
    if not 1 <= n_first <= min(S, MOST_FIRST_KEYS):
        raise ValueError(f"n_first={n_first}: expected 1 to {MOST_FIRST_KEYS}, and no more than the {S} keys")
    if lse_BHT is not None and lse_BHT.shape != (B, H, T):
        raise ValueError(f"lse_BHT of shape {tuple(lse_BHT.shape)}: expected one number a query and head, {(B, H, T)}")


def skipped(q_BTHK: Tensor, k_BSGK: Tensor, skip: int) -> int:
    """How many of the queries stand before position `skip`.

    Raises:
        ValueError: all of them, or skip < 0.
    """
    T, S = q_BTHK.shape[1], k_BSGK.shape[1]
    start = max(S - T, 0)  # queries that are more than the keys are not among their tokens, and count from 0
    if not 0 <= skip < start + T or not T:
        raise ValueError(
            f"skip={skip} with {T} queries up to position {start + T - 1}: expected a position that leaves a query"
        )
    return max(skip - start, 0)


def _logits(q_BTHK: Tensor, k_BSGK: Tensor, is_causal: bool, window: int | None, n_keys: int | None = None) -> Tensor:
    """q·k/√K of the first keys (None: all), [B, H, T, n_keys] in float32 at least; −∞ where a key is hidden."""
    T, H, K = q_BTHK.shape[1:]
    S, G = k_BSGK.shape[1:3]
    wide = torch.promote_types(q_BTHK.dtype, torch.float32)
    q_BTGRK = q_BTHK.to(wide).unflatten(2, (G, H // G))
    logits_BHTS = torch.einsum("btgrk,bsgk->bgrts", q_BTGRK, k_BSGK[:, :n_keys].to(wide)).flatten(1, 2) / math.sqrt(K)
    sees_BTS = visible(T, S, is_causal=is_causal, window=window, mask_BTS=None, device=q_BTHK.device)
    return logits_BHTS.masked_fill(~sees_BTS[:, None, :, :n_keys], -math.inf)
