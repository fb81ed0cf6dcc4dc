"""What statistics ask of a stretch's weights, from kernels that store no weight: for a causal softmax on a GPU.

Notable: which keys a query sees follows from its position alone, so counts and uniform attention are closed forms. The gap
of the first key is told from its mass, which float32 knows to about 10⁻⁶: gaps above 8 are rough, and none is above 12.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.linalg import vector_norm

from ...config.normaliser import SinkLogit, Softmax
from ..gated_attention.rows import aligned
from . import identities
from .block import Block, Received
from .identities import RowStats

if TYPE_CHECKING:
    from .stretch import Stretch

_WIDEST = 256  # channels that the kernels hold
_MOST = 1 - math.exp(-12)
_AT_ONCE = 1024  # queries, where a mask says what they see
_TYPES = (torch.bfloat16, torch.float16, torch.float32)


def serves(stretch: "Stretch") -> bool:
    """Whether the kernels compute a stretch's weights: a causal softmax, with or without a window and a learned sink, of
    queries that all see more than one key but for the sequence's first."""
    is_plain = type(stretch.normaliser) in (Softmax, SinkLogit) and stretch.weights_BHTS is None
    beyond = (
        stretch.segment_ids_BT, stretch.mask_BTS, stretch.bias_BHTS, stretch.score_gate, stretch.softcap
    )  # fmt: skip
    is_bare = is_plain and stretch.is_causal and all(x is None for x in beyond) and stretch.window != 1
    if not is_bare or not stretch.q_BTHK.is_cuda or stretch.q_BTHK.shape[3] > _WIDEST:
        return False
    types = {x.dtype for x in (stretch.q_BTHK, stretch.k_BSGK, stretch.v_BSGK) if x is not None}
    return len(types) == 1 and types <= set(_TYPES) and functions() is not None


def functions() -> ModuleType | None:
    """The kernels; None where Triton is not installed."""
    try:
        from . import kernels
    except ImportError:
        return None
    return kernels


@dataclass(frozen=True)
class Order:
    """What follows of a causal order alone, with or without a window: the same for all layers of a model."""

    n_seen_T: Tensor
    sees_first_T: Tensor
    all_see_first: bool
    has_no_gap_T: Tensor
    first_uniform_T: Tensor
    uniform_S: Tensor
    n_queries_S: Tensor
    shared_uniform_S: Tensor


# A model has a rule or two, and with a pass of a long sequence they change.
@lru_cache(maxsize=4)
def order(start: int, start_key: int, T: int, S: int, window: int | None, device: torch.device) -> Order:
    """Of T queries from position `start` on and S keys from `start_key` on."""
    query_T = torch.arange(start, start + T, device=device)
    key_S = torch.arange(start_key, start_key + S, device=device)
    n_seen_T = query_T + 1
    sees_first_T = torch.full_like(query_T, start_key == 0, dtype=torch.bool)
    # Key k is seen by the queries from k on, the window's length of them, among those of this stretch.
    low_S = (key_S - start).clamp(0, T)
    high_S = torch.full_like(key_S, T)
    if window is not None:
        n_seen_T = n_seen_T.clamp(max=window)
        sees_first_T &= query_T < window
        high_S = (key_S + window - start).clamp(0, T)
    share_T = F.pad((1.0 / n_seen_T.double()).cumsum(0), (1, 0))
    uniform_S = (share_T[high_S] - share_T[low_S]).float()
    shared_uniform_S = uniform_S.clone()
    if start == 0:
        shared_uniform_S[0] -= 1.0
    return Order(
        n_seen_T=n_seen_T,
        sees_first_T=sees_first_T,
        all_see_first=start_key == 0 and (window is None or start + T <= window),
        has_no_gap_T=~(sees_first_T & (query_T > 0)),
        first_uniform_T=sees_first_T / n_seen_T,
        uniform_S=uniform_S,
        n_queries_S=high_S - low_S,
        shared_uniform_S=shared_uniform_S,
    )


@dataclass(frozen=True)
class Fused(Block):
    """All queries of a stretch at once; its weights are never there."""

    maths: ModuleType = identities

    @property
    def _weighed(self) -> tuple[Tensor, Tensor]:
        raise ValueError("no weight is stored here; ask for `sampled` rows")

    @cached_property
    def _order(self) -> "Order":
        s = self.stretch
        return order(s.start, s.start_key, *s.shape[2:], s.window, s.device)

    @cached_property
    def _rows(self) -> RowStats:
        s = self.stretch
        return self.maths.row_stats(s.q_BTHK, s.k_BSGK, window=s.window)

    @cached_property
    def _slot_H1(self) -> Tensor | None:
        s = self.stretch
        slot_BHT1 = s.normaliser.slot_logits(s.q_BTHK, s.learned or {})
        return None if slot_BHT1 is None else slot_BHT1.float().squeeze(-1)

    @cached_property
    def _lse_BHT(self) -> Tensor:
        """Of all that takes mass."""
        lse_BHT = self._rows.lse_BHT
        return lse_BHT if self._slot_H1 is None else torch.logaddexp(lse_BHT, self._slot_H1.expand_as(lse_BHT))

    @cached_property
    def slot_BHT(self) -> Tensor:
        """The slot's mass."""
        if self._slot_H1 is None:
            return torch.zeros_like(self._lse_BHT)
        return (self._slot_H1 - self._lse_BHT).exp()

    def sampled(self, index_R: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of some of the queries, and what they see."""
        rows = self.stretch.rows(self.query_T[index_R])
        return rows.weights_BHTS, rows.sees_BTS

    @property
    def n_seen_BT(self) -> Tensor:
        """How many keys each query sees."""
        return self._order.n_seen_T.expand(self.stretch.shape[0], -1)

    @cached_property
    def _log_first_BHT(self) -> Tensor:
        return self._rows.first_BHT - self._lse_BHT

    @cached_property
    def first_mass_BHT(self) -> Tensor:
        """Mass on the first token."""
        mass_BHT = self._log_first_BHT.exp()
        return mass_BHT if self._order.all_see_first else mass_BHT * self._order.sees_first_T

    @property
    def first_gap_BHT(self) -> Tensor:
        """ln of that over all other mass; not-a-number where it is hidden or alone."""
        others_BHT = torch.log1p(-self.first_mass_BHT.clamp(max=_MOST))
        gap_BHT = self._log_first_BHT.clamp(min=math.log(torch.finfo(torch.float32).tiny)) - others_BHT
        return gap_BHT.masked_fill_(self._order.has_no_gap_T, torch.nan)

    @property
    def first_uniform_BT(self) -> Tensor:
        """Its mass in uniform attention; 0 where it is hidden."""
        return self._order.first_uniform_T.expand(self.stretch.shape[0], -1)

    @property
    def first_value_norm_BTG(self) -> Tensor:
        """‖v‖ of it."""
        norm_B1G = vector_norm(self.stretch.v_BSGK[:, :1], dim=-1, dtype=torch.float32)
        return norm_B1G.expand(-1, len(self.query_T), -1)

    def received(self) -> Received:
        """What every key gets."""
        s, order = self.stretch, self._order
        B, _, _, S = s.shape
        mass_BHS = self.maths.column_sums(s.q_BTHK, s.k_BSGK, self._lse_BHT.contiguous(), window=s.window)
        shared_BHS = mass_BHS
        if s.start == 0:
            # The first query sees the first key alone.
            shared_BHS = mass_BHS.clone()
            shared_BHS[..., 0] -= self.first_mass_BHT[..., 0]
        return Received(
            mass_BHS,
            shared_BHS,
            order.uniform_S.expand(B, S),
            order.n_queries_S.expand(B, S),
            order.shared_uniform_S.expand(B, S),
        )

    def entropy_and_focus(self) -> tuple[Tensor, Tensor]:
        """−Σ p ln p and 1 / Σ p² of the weights of the keys over their sum."""
        return self._rows.entropy_BHT, self._rows.focus_BHT

    def largest_BH(self) -> Tensor:
        """The largest q·k/√K of a query and a key that it sees."""
        return self._rows.largest_BHT.amax(dim=-1)

    @cached_property
    def y_BTHK(self) -> Tensor:
        """The weighted values before the gate, as the stretch knows them or from torch's fused attention."""
        s = self.stretch
        if s.y_BTHK is not None:
            return s.y_BTHK.float()
        H, T, S = s.shape[1:]
        q_BHTK = aligned(s.q_BTHK).transpose(1, 2)
        k_BHSK, v_BHSK = (x.transpose(1, 2).repeat_interleave(H // x.shape[2], dim=1) for x in (s.k_BSGK, s.v_BSGK))
        scale = 1 / math.sqrt(q_BHTK.shape[3])
        if T == S and s.window is None:
            y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, is_causal=True, scale=scale)
        else:
            parts = []
            for t in range(0, T, _AT_ONCE):
                sees_BTS = s.sees(self.query_T[t : t + _AT_ONCE], slice(t, t + _AT_ONCE), S)
                part_BHTK = q_BHTK[:, :, t : t + _AT_ONCE]
                parts.append(
                    F.scaled_dot_product_attention(part_BHTK, k_BHSK, v_BHSK, attn_mask=sees_BTS[:, None], scale=scale)
                )
            y_BHTK = torch.cat(parts, dim=2)
        return y_BHTK.transpose(1, 2).float() * (1.0 - self.slot_BHT).transpose(1, 2)[..., None]

    @property
    def y_norm_BTH(self) -> Tensor:
        """Its norm by head."""
        y_BTHK = self.stretch.y_BTHK
        return vector_norm(self.y_BTHK if y_BTHK is None else y_BTHK, dim=-1, dtype=torch.float32)
