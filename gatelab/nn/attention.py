"""GatedAttention: the one attention layer of every architecture, with a list of gates.

Notable: the gate sites are five lines of `forward`; projections are separate modules, so that weights are easy to
read, to probe and to remove; taps mark q, k, v as they enter the softmax.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from ..config.gate import GateSpec, parse_gates
from ..config.model import Normaliser, SinkLogit, Softmax
from ..ops.gated_attention import gated_attention
from .cache import KVCache
from .gate import Gate
from .linear import Linear
from .norm import Norm
from .rope import Rope
from .softmax import SinkLogitHeads
from .tap import Tap


class GatedAttention(nn.Module):
    """Causal self-attention with grouped queries and any list of gates; y_BTD = attn(x_BTD).

    Args:
        d_model, n_heads, n_kv_heads, head_dim: widths; kv heads default to n_heads, head_dim to d_model / n_heads.
        gate: a slug (`sdpa-headwise`), slugs joined by `+`, a GateSpec, a sequence of them, or None.
        qk_norm: False, True (RMSNorm with gain per head), or "rms-no-gain".
        rope_theta: base of the rotary positions; None for none.
        max_seq_len: length of the rotary tables.
        softmax: `Softmax()` or `SinkLogit(init)`.
        bias: biases in q, k, v and o projections.
        layer: index in the model's cache.
        impl: implementation of the attention op; see `gatelab.ops.gated_attention`.

    The input is the pre-normed hidden state, which the gates read too (arXiv 2505.06708, section 2.2).

    Raises:
        ValueError: for an impossible gate, heads that do not divide, an unknown qk_norm, rope on an odd head_dim.
    """

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        gate: str | GateSpec | Sequence[GateSpec | str] | None = None,
        qk_norm: bool | str = False,
        rope_theta: float | None = 10_000.0,
        max_seq_len: int = 4096,
        softmax: Normaliser | None = None,
        norm_eps: float = 1e-6,
        bias: bool = False,
        layer: int = 0,
        impl: str = "auto",
    ):
        super().__init__()
        n_kv_heads = n_kv_heads or n_heads
        if n_heads % n_kv_heads:
            raise ValueError(f"n_kv_heads={n_kv_heads} does not divide n_heads={n_heads}")
        if head_dim is None and d_model % n_heads:
            raise ValueError(f"d_model={d_model} is not a multiple of n_heads={n_heads}; state head_dim")
        head_dim = head_dim or d_model // n_heads
        if rope_theta and head_dim % 2:
            raise ValueError(f"head_dim={head_dim} is odd, and rope turns pairs of channels; take an even one")
        if qk_norm not in (False, True, "rms", "rms-no-gain"):
            raise ValueError(f"qk_norm={qk_norm!r}: expected False, True, 'rms' or 'rms-no-gain'")
        specs = [GateSpec.parse(g) if isinstance(g, str) else g for g in parse_gates(gate)]
        if len({s.site for s in specs}) < len(specs):
            raise ValueError(f"gate={[s.slug for s in specs]}: one gate a site is the limit")
        self.n_heads, self.n_kv_heads, self.head_dim, self.layer, self.impl = n_heads, n_kv_heads, head_dim, layer, impl

        self.q_proj = Linear(d_model, n_heads * head_dim, bias=bias)
        self.k_proj = Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.v_proj = Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.o_proj = Linear(n_heads * head_dim, d_model, bias=bias, paired_side="in")
        heads = {"key": n_kv_heads, "value": n_kv_heads, "out": 1}
        width = {"out": d_model}
        self.gates = nn.ModuleDict(
            {s.site: Gate(s, d_model, heads.get(s.site, n_heads), width.get(s.site, head_dim)) for s in specs}
        )
        kind = "rms" if qk_norm is True else qk_norm or None
        self.q_norm = Norm(head_dim, kind, norm_eps) if kind else None
        self.k_norm = Norm(head_dim, kind, norm_eps) if kind else None
        self.rope = Rope(head_dim, rope_theta, max_seq_len) if rope_theta else None
        softmax = softmax or Softmax()
        self.sink = SinkLogitHeads(n_heads, softmax.init) if isinstance(softmax, SinkLogit) else None
        self.tap_q, self.tap_k, self.tap_v = Tap(), Tap(), Tap()

    def forward(
        self,
        x_BTD: Tensor,
        *,
        segment_ids_BT: Tensor | None = None,
        cache: KVCache | None = None,
        is_causal: bool = True,
    ) -> Tensor:
        """[B, T, D] to [B, T, D].

        Args:
            segment_ids_BT: document numbers; attention stays within a document (not together with a cache).
            cache: keys and values so far; x then continues at position cache.length.
            is_causal: False lets every token see all others.

        Raises:
            ValueError: segment_ids_BT together with a cache; a sequence past the rotary table or the cache.
        """
        if cache is not None and segment_ids_BT is not None:
            raise ValueError("segment_ids_BT and cache do not go together; decode one document a row")
        start = cache.length if cache is not None else 0
        q_BTHK = self.q_proj(x_BTD).unflatten(-1, (self.n_heads, self.head_dim))
        k_BTGK = self.k_proj(x_BTD).unflatten(-1, (self.n_kv_heads, self.head_dim))
        v_BTGK = self.v_proj(x_BTD).unflatten(-1, (self.n_kv_heads, self.head_dim))
        if self.q_norm is not None:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        q_BTHK, k_BTGK, v_BTGK = (
            self._gate("query", q_BTHK, x_BTD),
            self._gate("key", k_BTGK, x_BTD),
            self._gate("value", v_BTGK, x_BTD),
        )
        if self.rope is not None:
            q_BTHK, k_BTGK = self.rope(q_BTHK, start), self.rope(k_BTGK, start)
        q_BTHK, k_BSGK, v_BSGK = self.tap_q(q_BTHK), self.tap_k(k_BTGK), self.tap_v(v_BTGK)
        if cache is not None:
            k_BSGK, v_BSGK = cache.append(self.layer, k_BSGK, v_BSGK)
        mask_BTS = None if segment_ids_BT is None else segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
        gate = self.gates["sdpa"] if "sdpa" in self.gates else None  # noqa: SIM401  (ModuleDict has no get)
        y_BTHK = gated_attention(
            q_BTHK,
            k_BSGK,
            v_BSGK,
            None if gate is None else gate.logits(x_BTD),
            None if gate is None else gate.spec,
            is_causal=is_causal,
            mask_BTS=mask_BTS,
            sink_logit_H=None if self.sink is None else self.sink.sink_logit_H,
            impl=self.impl,
        )
        out_BTD = self.o_proj(y_BTHK.flatten(-2))
        return self._gate("out", out_BTD.unsqueeze(2), x_BTD).squeeze(2) if "out" in self.gates else out_BTD

    def _gate(self, site: str, y_BTHK: Tensor, x_BTD: Tensor) -> Tensor:
        return self.gates[site](y_BTHK, x_BTD) if site in self.gates else y_BTHK

    def extra_repr(self) -> str:
        """Heads, and the gates' slugs."""
        gates = "+".join(g.spec.slug for g in self.gates.values()) or "none"
        return f"heads={self.n_heads}/{self.n_kv_heads}x{self.head_dim}, gate={gates}"
