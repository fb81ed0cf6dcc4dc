"""What is between q kᵀ and the weights: masks, a window, biases, a gate on the scores and a normaliser, as one value.

Notable: a gate on the scores is one number a key. It scales the key's weight (`mul`) or adds to its logit (`add`,
`forget`), so no implementation needs more of it than a row of S numbers a head.
"""

from dataclasses import dataclass, replace
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.gate import GateSpec
from ...config.normaliser import Heads, Normaliser
from ..gate_apply import gate_scores

_LEAST_CAP, _MOST_CAP = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Scoring:
    """Everything but q and k that attention weights depend on; see `gated_attention` for each."""

    normaliser: Normaliser
    learned: dict[str, Tensor]
    heads: Heads
    is_causal: bool
    window: int | None
    mask_BTS: Tensor | None
    bias_BHTS: Tensor | None
    score_logits_BSH: Tensor | None
    score_gate: GateSpec | None
    segment_ids_BT: Tensor | None = None
    dropout: float = 0.0
    softcap: float | None = None

    def masked(self) -> "Scoring":
        """The same with documents as a mask, for those that know no documents."""
        if self.segment_ids_BT is None:
            return self
        same_BTS = self.segment_ids_BT[:, :, None] == self.segment_ids_BT[:, None, :]
        mask_BTS = same_BTS if self.mask_BTS is None else same_BTS & self.mask_BTS
        return replace(self, mask_BTS=mask_BTS, segment_ids_BT=None)


def scoring(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    *,
    normaliser: Normaliser,
    learned: dict[str, Tensor] | None,
    heads: Heads | None,
    is_causal: bool,
    window: int | None,
    mask_BTS: Tensor | None,
    bias_BHTS: Tensor | None,
    score_logits_BSH: Tensor | None,
    score_gate: GateSpec | None,
    segment_ids_BT: Tensor | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
) -> Scoring:
    """The arguments as they were given, checked against q and k; heads of None are read from the shapes.

    Raises:
        ValueError: for whatever does not fit, in a sentence.
    """
    shapes = f"q, k of shapes {tuple(q_BTHK.shape)}, {tuple(k_BSGK.shape)}"
    if q_BTHK.dim() != 4 or k_BSGK.dim() != 4:
        raise ValueError(f"{shapes}: expected [B,T,H,K], [B,S,G,K]")
    B, T, H, K = q_BTHK.shape
    S, G = k_BSGK.shape[1:3]
    if not G or H % G or k_BSGK.shape[0] != B or k_BSGK.shape[3] != K:
        raise ValueError(f"{shapes}: expected [B,T,H,K], [B,S,G,K] with G dividing H")
    if T and not S:
        raise ValueError(f"{T} queries and no key: a row of weights over nothing does not exist; give one key at least")
    if is_causal and T > S:
        raise ValueError(
            f"{T} causal queries and {S} keys: the first queries would see no key; give at least as many keys, or "
            "is_causal=False"
        )
    if window is not None and window < 1:
        raise ValueError(f"window={window}: expected the number of keys that a query sees, itself included, or None")
    _broadcasts("mask_BTS", mask_BTS, (B, T, S))
    if mask_BTS is not None and mask_BTS.dtype != torch.bool:
        raise ValueError(f"mask_BTS of type {mask_BTS.dtype}: expected torch.bool, True where a query may see a key")
    if segment_ids_BT is not None and (T != S or segment_ids_BT.shape != (B, T)):
        raise ValueError(
            f"segment_ids_BT of shape {tuple(segment_ids_BT.shape)} beside {T} queries and {S} keys: expected the number of "
            f"each token's document, {(B, S)}, and as many queries as keys"
        )
    if segment_ids_BT is not None and (segment_ids_BT.is_floating_point() or segment_ids_BT.dtype == torch.bool):
        raise ValueError(
            f"segment_ids_BT of type {segment_ids_BT.dtype}: expected the numbers of documents, torch.int64"
        )
    _broadcasts("bias_BHTS", bias_BHTS, (B, H, T, S))
    _broadcasts("score_logits_BSH", score_logits_BSH, (B, S, H))
    if (score_gate is None) != (score_logits_BSH is None):
        raise ValueError("a gate on the scores and its logits come together: give both, or neither")
    if score_gate is not None and score_gate.site != "scores":
        raise ValueError(f"score_gate={score_gate.slug} has its place elsewhere; expected one at the site 'scores'")
    if score_gate is not None and score_gate.form == "forget" and not is_causal:
        raise ValueError("form forget sums over the tokens between a key and a later query: it needs is_causal=True")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}: expected the share of weights that are dropped, from 0 and below 1")
    check_softcap(softcap)
    normaliser.check(H, G)
    if heads is None:
        heads = Heads(H, G, K)
    if (heads.n_heads, heads.n_kv_heads, heads.head_dim) != (H, G, K):
        raise ValueError(f"{heads} does not describe q and k, which have {H} and {G} heads of {K} channels")
    learned = {} if learned is None else learned
    expected = {name: p.shape for name, p in normaliser.learned(heads).items()}
    given = {name: tuple(t.shape) for name, t in learned.items()}
    of_each = {name: (B, *shape) for name, shape in expected.items()} if normaliser.may_differ else expected
    if given not in (expected, of_each):
        raise ValueError(f"learned of shapes {given}: {normaliser.kind} takes {expected}")
    if score_logits_BSH is not None:
        score_logits_BSH = score_logits_BSH.expand(-1, S, -1)  # a constant has 1 in the place of S
    return Scoring(
        normaliser,
        learned,
        heads,
        is_causal,
        window,
        mask_BTS,
        bias_BHTS,
        score_logits_BSH,
        score_gate,
        segment_ids_BT,
        dropout,
        softcap,
    )


def check_softcap(softcap: float | None) -> None:
    """Refuses what is no bound, or one that float32 does not hold, by which logits would become not-a-numbers.

    Raises:
        ValueError: naming it.
    """
    if softcap is None:
        return
    if not isinstance(softcap, Real) or isinstance(softcap, bool) or not _LEAST_CAP <= softcap <= _MOST_CAP:
        raise ValueError(
            f"softcap={softcap!r}: expected the bound of the logits, a number above 0 that float32 holds as Gemma 2's 50.0, or "
            "None"
        )


def visible(
    n_queries: int,
    n_keys: int,
    *,
    is_causal: bool,
    window: int | None = None,
    mask_BTS: Tensor | None,
    device: torch.device,
    start: int | None = None,
) -> Tensor:
    """Which keys a query may see, [B or 1, T, S] boolean. The first query stands at position `start`; None: where the
    last one stands at the last key.

    Causal: no key after the query. Window: less than `window` positions away.
    """
    start = n_keys - n_queries if start is None else start
    query_T1 = torch.arange(start, start + n_queries, device=device)[:, None]
    behind_TS = query_T1 - torch.arange(n_keys, device=device)
    allowed = torch.ones_like(behind_TS, dtype=torch.bool)
    if is_causal:
        allowed = allowed & (behind_TS >= 0)
    if window is not None:
        allowed = allowed & (behind_TS.abs() < window)
    return allowed[None] if mask_BTS is None else allowed & mask_BTS


def key_scale(logits_BSH: Tensor | None, gate: GateSpec | None) -> Tensor | None:
    """What a score gate of form `mul` multiplies a key's weight by, [B or 1, S, H or 1] in float32 (float64 stays)."""
    if gate is None or gate.form != "mul":
        return None
    return gate_scores(logits_BSH[..., None], gate).squeeze(-1)


def key_bias(logits_BSH: Tensor | None, gate: GateSpec | None) -> Tensor | None:
    """What a score gate adds to a key's logit, [B or 1, S, H or 1] in float32 (float64 stays); None for form `mul`.

    Form `forget` (arXiv 2503.02130) adds ln act of the tokens j+1 … i to the logit of key j and query i: c_i − c_j with
    c the sums from the first token on. This is −c_j; a query's own c_i moves its whole row.
    """
    if gate is None or gate.form == "mul":
        return None
    if gate.form == "add":
        return gate_scores(logits_BSH[..., None], gate).squeeze(-1)
    if gate.activation == "sigmoid" and gate.sharing == "specific":
        # ln σ(z) in this form stays finite where σ(z) is 0.
        log_BSH = F.logsigmoid(logits_BSH.to(torch.promote_types(logits_BSH.dtype, torch.float32)))
    else:
        log_BSH = gate_scores(logits_BSH[..., None], gate).squeeze(-1).log()
    return -log_BSH.cumsum(dim=1)


def check_gate_logits(logits_BTHK: Tensor | None, gate: GateSpec | None, shape: tuple[int, ...]) -> None:
    """Refuses logits without a gate at the attention output, or that do not broadcast to its shape.

    Raises:
        ValueError: saying what was expected.
    """
    if (gate is None) != (logits_BTHK is None):
        raise ValueError("a gate and its logits come together: give both, or neither")
    if gate is not None and not isinstance(gate, GateSpec):
        raise ValueError(f"gate={gate!r}: give a GateSpec, as in GateSpec.parse('sdpa-headwise')")
    if gate is not None and gate.site != "sdpa":
        raise ValueError(f"gate={gate.slug} has its place elsewhere; expected one at the site 'sdpa'")
    _broadcasts("gate_logits_BTHK", logits_BTHK, shape)


def _broadcasts(name: str, given: Tensor | None, shape: tuple[int, ...]) -> None:
    if given is None:
        return
    if given.dim() != len(shape) or any(n != 1 and n != m for n, m in zip(given.shape, shape, strict=True)):
        raise ValueError(f"{name} of shape {tuple(given.shape)}: expected {shape}, or 1 in the place of an axis")
