"""A stretch of queries of one attention layer, and everything that their weights, values and gates depend on.

Notable: a whole sequence is one stretch; a long one comes in several, each with all the keys before it, as a cache gives
them. Positions are counted from the sequence's first token, so that statistics of stretches add up.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import ModuleType

import torch
from torch import Tensor

from ...config.gate import GateSpec
from ...config.normaliser import Heads, Normaliser, Softmax
from .block import Block, Gates, part
from .fused import Fused

_SOFTMAX = Softmax()
# What a sequence has of its own in stretches that are alike.
_ALONG_BATCH = ("q_BTHK", "k_BSGK", "v_BSGK", "y_BTHK", "segment_ids_BT")


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """T queries, which are the last T of `start_key` + S positions when causal, and S keys.

    Args:
        q_BTHK, k_BSGK: after q/k-norm and rotation, as they enter the softmax; None where the weights are given.
        v_BSGK: values, of any width; None leaves out what needs them.
        weights_BHTS: what multiplies the values, where it is known as it is; then no other argument of the scoring counts.
        normaliser, learned, heads, is_causal, window, mask_BTS, bias_BHTS, score_logits_BSH, score_gate: as in
            `gatelab.ops.gated_attention.gated_attention`.
        softcap: logits are c·tanh(z/c), before masks.
        segment_ids_BT: document numbers of T = S tokens; attention stays within a document.
        start_key: the position of the first key; keys before it were given up, as a window's cache does.
        n_tokens: how long the sequence will be; None: this stretch ends it.
        y_BTHK: the weighted values, where they are known (before the gate); else they are computed.
        is_mapped: something stands between the weighted values and the gate.
        gates: by site, (spec, logits [B or 1, T or 1, H, K or 1]); one on the log-sum-exp gives what is added to it.
    """

    q_BTHK: Tensor | None
    k_BSGK: Tensor | None
    v_BSGK: Tensor | None = None
    weights_BHTS: Tensor | None = None
    normaliser: Normaliser = _SOFTMAX
    learned: dict[str, Tensor] | None = None
    heads: Heads | None = None
    is_causal: bool = True
    window: int | None = None
    segment_ids_BT: Tensor | None = None
    mask_BTS: Tensor | None = None
    bias_BHTS: Tensor | None = None
    score_logits_BSH: Tensor | None = None
    score_gate: GateSpec | None = None
    softcap: float | None = None
    start_key: int = 0
    n_tokens: int | None = None
    y_BTHK: Tensor | None = None
    is_mapped: bool = False
    gates: Gates = field(default_factory=dict)

    def __post_init__(self) -> None:
        _, _, T, S = self.shape
        if self.segment_ids_BT is not None and T != S:
            raise ValueError(
                f"segment_ids_BT number the tokens of self-attention, and here are {T} queries and {S} keys; give mask_BTS"
            )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Sequences, query heads, queries, keys."""
        if self.weights_BHTS is not None:
            return tuple(self.weights_BHTS.shape)
        B, T, H = self.q_BTHK.shape[:3]
        return B, H, T, self.k_BSGK.shape[1]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return (self.q_BTHK if self.weights_BHTS is None else self.weights_BHTS).device

    @property
    def start(self) -> int:
        """The position of the first query; of causal ones the last stands at the last key."""
        _, _, T, S = self.shape
        return self.start_key + S - T if self.is_causal else 0

    @property
    def likeness(self) -> tuple[object, ...] | None:
        """What stretches have in common that `along_batch` may join; None of one with gates, given weights, or a mask, a bias
        or something learned of its own."""
        own = (
            self.weights_BHTS, self.learned, self.mask_BTS, self.bias_BHTS, self.score_logits_BSH, self.score_gate
        )  # fmt: skip
        if self.gates or any(x is not None for x in own):
            return None
        tensors = (self.q_BTHK, self.k_BSGK, self.v_BSGK, self.y_BTHK, self.segment_ids_BT)
        kinds = [None if x is None else (x.shape, x.dtype) for x in tensors]
        rules = (self.normaliser, self.is_causal, self.window, self.softcap, self.is_mapped)
        return (*kinds, self.device, *rules, self.start_key, self.n_tokens)

    @cached_property
    def query_T(self) -> Tensor:
        """The positions of the queries."""
        return torch.arange(self.start, self.start + self.shape[2], device=self.device)

    @cached_property
    def first_BT(self) -> Tensor:
        """The position of the first token of each query's document; 0 without documents."""
        B, _, T, _ = self.shape
        if self.segment_ids_BT is None:
            return torch.zeros(B, T, dtype=torch.int64, device=self.device)
        starts_BT = torch.cat(
            [torch.ones_like(self.segment_ids_BT[:, :1]), self.segment_ids_BT.diff(dim=1)], dim=1
        ).bool()
        return torch.where(starts_BT, torch.arange(T, device=self.device), 0).cummax(dim=1).values

    def blocks(self, block: int = 256) -> Iterator[Block]:
        """The weights of `block` queries at a time, in order, with the keys that any of them may see.

        Raises:
            ValueError: whatever `attention_weights` refuses.
        """
        _, _, T, S = self.shape
        for t in range(0, T, block):
            u = min(t + block, T)
            # Later keys are hidden from all queries of the block.
            s = S - T + u if self.is_causal else S
            sees_BTS = self.sees(self.query_T[t:u], slice(t, u), s)
            yield self._block(slice(t, u), s, sees_BTS, start=self.start + t, is_causal=self.is_causal)

    def fused(self, maths: ModuleType) -> Fused:
        """All queries at once, by the functions of `identities` or of `kernels`; only where `fused.serves` says so."""
        S, none = self.shape[3], torch.empty(0, device=self.device)
        return Fused(self, self.start, self.query_T, slice(None), S, True, none, self.first_BT, maths)

    def rows(self, query_R: Tensor) -> Block:
        """The weights of some queries, by their positions, over all keys; not of a gate on the scores of form `forget`,
        which asks for the queries between them."""
        index_R = query_R - self.start
        sees_BRS = self.sees(query_R, index_R, self.shape[3])
        return self._block(index_R, self.shape[3], sees_BRS, start=self.start, is_causal=False)

    def sees(self, query_T: Tensor, index: slice | Tensor, s: int) -> Tensor:
        """Which of the first s keys queries see, by their positions and their index in the stretch, [B, T, s]."""
        key_S = torch.arange(self.start_key, self.start_key + s, device=self.device)
        behind_TS = query_T[:, None] - key_S
        sees_BTS = torch.ones_like(behind_TS, dtype=torch.bool)[None]
        if self.is_causal:
            sees_BTS = sees_BTS & (behind_TS >= 0)
        if self.window is not None:
            sees_BTS = sees_BTS & (behind_TS.abs() < self.window)
        if self.segment_ids_BT is not None:
            sees_BTS = sees_BTS & (self.segment_ids_BT[:, index, None] == self.segment_ids_BT[:, None, :s])
        if self.mask_BTS is not None:
            sees_BTS = sees_BTS & part(self.mask_BTS, index, s)
        return sees_BTS.expand(self.shape[0], *sees_BTS.shape[1:])

    def _block(self, index: slice | Tensor, s: int, sees_BTS: Tensor, *, start: int, is_causal: bool) -> Block:
        return Block(
            stretch=self,
            start=start,
            query_T=self.query_T[index],
            index=index,
            n_keys=s,
            is_causal=is_causal,
            sees_BTS=sees_BTS,
            first_BT=self.first_BT[:, index],
        )


def along_batch(stretches: list[Stretch]) -> Stretch:
    """Stretches of one likeness as one: the sequences of the first, then those of the second, and so on; a copy, but of one
    alone itself."""
    if len(stretches) == 1:
        return stretches[0]
    parts = {name: [getattr(stretch, name) for stretch in stretches] for name in _ALONG_BATCH}
    return replace(stretches[0], **{n: None if own[0] is None else torch.cat(own) for n, own in parts.items()})
