"""GatedAttention: the one attention layer of every architecture, with a list of gates.

Notable: projections are separate modules, so that weights are easy to read, to probe and to remove, and may still run as one
product (`is_packed`); taps mark q, k, v as they enter the softmax. `projections` has what comes before the softmax, `hiding` what
queries see, `attend` the op, `attention_checks` what is refused.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..config.base import validate
from ..config.gate import GateSpec, parse_gates
from ..config.kv_experts import KVExperts
from ..config.model import check_first_hidden, check_gates
from ..config.normaliser import Heads, Normaliser, Softmax
from ..config.output_map import OUTPUT_MAPS, OutputMap
from ..config.rope import RopeScaling, Unscaled
from ..ops.gated_attention import choose
from .attend import Weighing, attended, mapped
from .attention_checks import check_call, check_kinds, check_source, check_weighing, kv_heads_and_width
from .cache import Cache, Keys
from .gate import Gate
from .hiding import HIDES, Sight, hidden_first, hidden_heads, sight, sight_in_cache, sight_of_context
from .kv_experts import key_and_value_maps
from .linear import Linear
from .norm import head_norm
from .projections import Projections
from .rope import Rope
from .softmax import LearnedNormaliser
from .tap import Tap
from .watch import Watch
from .widths import check_widths

__all__ = ["HIDES", "GatedAttention"]


class GatedAttention(Projections):
    """Attention with grouped queries and any list of gates; causal self-attention is y_BTD = attn(x_BTD).

    Args:
        d_model, n_heads, n_kv_heads, head_dim: widths; kv heads default to n_heads, head_dim to d_model / n_heads.
        gate: a slug (`sdpa-headwise`), a preset (`qwen3-next`), slugs joined by `+`, a GateSpec, a sequence, or None.
        qk_norm: False, True (RMSNorm with gain per head), "rms-no-gain", or "rms-all-heads": one RMSNorm over all heads'
            channels (OLMo 2).
        rope_theta, rope_fraction, rope_scaling: rotary positions; theta None for none.
        max_seq_len: length of the rotary tables.
        softmax: a normaliser of `gatelab.config.normaliser`, such as `Softmax()` or `SinkLogit(init)`.
        output_map: a name in `OUTPUT_MAPS`; comes before the gate. `xsa` acts in self-attention only.
        kv_experts: `v-8top2`, or None.
        window: a query sees the last so many keys; None for all.
        first_hidden_from: heads whose queries do not see the key at position 0, but where they see no other.
        bias: biases in q, k, v and o projections.
        dropout: the share of attention weights that are dropped in training (`train()`), the others divided by 1 − dropout. Where
            nothing but masks and a bias acts on a softmax torch's kernels do it, else the whole matrix.
        softcap: logits are c·tanh(z/c), in the whole matrix alone; None for as they are.
        layer: index in the model's cache.
        impl: implementation of the attention op; see `gatelab.ops.gated_attention`. `auto` without gradients decodes a single
            query with `gatelab.ops.gated_decode` where its kernels serve.

    The input is the pre-normed hidden state, which the gates read too (arXiv 2505.06708, section 2.2).

    Raises:
        ValueError: for an impossible gate, heads that do not divide, an unknown word, a width or epsilon that is no number
            above 0, rope on odd channels, a gate on the log-sum-exp together with an output map, a first key hidden from heads
            that are not there or beside a gate on the scores, dropout or capped logits together with an `impl` that has none.
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
        rope_fraction: float = 1.0,
        rope_scaling: RopeScaling = Unscaled(),  # noqa: B008  (a frozen value)
        max_seq_len: int = 4096,
        softmax: Normaliser | None = None,
        output_map: str = "none",
        kv_experts: KVExperts | str | None = None,
        window: int | None = None,
        first_hidden_from: Sequence[int] = (),
        norm_eps: float = 1e-6,
        bias: bool = False,
        dropout: float = 0.0,
        softcap: float | None = None,
        layer: int = 0,
        impl: str = "auto",
    ):
        super().__init__()
        check_widths(
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            window=window,
            max_seq_len=max_seq_len,
        )
        n_kv_heads, head_dim = kv_heads_and_width(d_model, n_heads, n_kv_heads, head_dim)
        check_kinds(
            qk_norm=qk_norm, norm_eps=norm_eps, output_map=output_map, softmax=softmax, rope_scaling=rope_scaling
        )
        specs = tuple(GateSpec.parse(g) if isinstance(g, str) else g for g in parse_gates(gate))
        # Whether it is causal or crosses is said at each call; here only what holds for all of them.
        check_gates(specs, is_causal=True, is_cross=False, output_map=output_map)
        self.normaliser = softmax or Softmax()
        choose(impl, self.normaliser)  # refuses a name that does not exist, or does not serve the normaliser
        hides_first = len(first_hidden_from) > 0
        check_weighing(dropout, softcap, impl, normaliser=self.normaliser, gates=specs, hides_first=hides_first)
        self.normaliser.check(n_heads, n_kv_heads)
        self.n_heads, self.n_kv_heads, self.head_dim, self.layer, self.impl = n_heads, n_kv_heads, head_dim, layer, impl
        self.window, self.eps, self.is_packed = window, norm_eps, False
        self.dropout, self.softcap = dropout, softcap
        self.map_name = output_map
        check_first_hidden(first_hidden_from, n_heads, specs)
        self.first_hidden_from = tuple(first_hidden_from)
        hidden_H = hidden_heads(n_heads, self.first_hidden_from) if self.first_hidden_from else None
        self.register_buffer("hidden_H", hidden_H, persistent=False)
        self.heads = Heads(n_heads, n_kv_heads, head_dim, layer, max_seq_len)

        self.q_proj = Linear(d_model, n_heads * head_dim, bias=bias)
        experts = validate(KVExperts, kv_experts) if isinstance(kv_experts, str) else kv_experts
        self.k_proj, self.v_proj = key_and_value_maps(d_model, n_kv_heads, head_dim, experts, bias=bias)
        self.o_proj = Linear(n_heads * head_dim, d_model, bias=bias, paired_side="in")
        self.gates = nn.ModuleDict(
            {s.site: Gate(s, d_model=d_model, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim) for s in specs}
        )
        self.q_norm, self.k_norm = (head_norm(qk_norm, n, head_dim, norm_eps) for n in (n_heads, n_kv_heads))
        self.rope = Rope(head_dim, rope_theta, max_seq_len, rope_fraction, rope_scaling) if rope_theta else None
        self.sink = LearnedNormaliser(self.normaliser, self.heads) if self.normaliser.learned(self.heads) else None
        self.tap_q, self.tap_k, self.tap_v = Tap(), Tap(), Tap()

    def forward(
        self,
        x_BTD: Tensor,
        *,
        context_BSD: Tensor | None = None,
        segment_ids_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        is_token_BS: Tensor | None = None,
        cache: Cache | None = None,
        is_causal: bool = True,
        is_cross: bool = False,
        bias_BHTS: Tensor | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """[B, T, D] to [B, T, D].

        Args:
            context_BSD: cross-attention: keys and values, and their gates, read this instead; every query sees all.
            segment_ids_BT: document numbers; attention stays within a document (`gatelab.nn.documents`).
            positions_BT: rotary positions, whole numbers of [B, T] or [1, T]; None counts on from the first token.
            is_token_BS: True for a token of what is looked at (x, or the context), False for padding, before or after a row's
                tokens. No token looks at padding, and padding looks at padding, so that its output is finite and means
                nothing; what stands in it must be finite too. Rotary positions count from each row's first token.
            cache: keys and values so far (`gatelab.nn.cache`); x then continues at position cache.length. With a context it
                keeps the keys and values of the context, which is read once, and which of them are tokens.
            is_causal: False lets every token see all others.
            is_cross: cross-attention, as any call with a context is; says so where the cache has kept the context and
                context_BSD is left out.
            bias_BHTS: added to the logits, such as a relative position's.
            watch: causal self-attention appends its first-token mass; no number where the op has no log-sum-exp of the keys
                alone (a window, documents, padding, a cache, a bias, a gate on the scores, a hidden first key, dropout, capped
                logits, no softmax, `impl="reference"`).

        Raises:
            ValueError: segment_ids_BT together with a cache, a context or a hidden first key; is_token_BS together with a
                cache in self-attention, or there on a CPU with padding between a row's tokens; positions_BT without rotary
                positions, past their table (`Rope.rows`) or with a cache that turns keys by their place in it; cross-attention
                without a context; a sequence past the rotary table or the cache; a gate that this call has no source for.
        """
        is_cross = is_cross or context_BSD is not None
        check_call(
            x_BTD,
            context_BSD,
            segment_ids_BT,
            positions_BT,
            is_token_BS,
            cache,
            d_model=self.q_proj.in_features,
            is_cross=is_cross,
            has_positions=self.rope is not None,
            hides_first=self.hidden_H is not None,
        )
        kept = cache.context.get(self.layer) if is_cross and cache is not None else None
        source_BSD = context_BSD if is_cross else x_BTD
        gate = self._gate("sdpa")
        check_source(gate and gate.spec, is_cross=is_cross, has_keys=source_BSD is not None or kept is not None)

        products = self._products(x_BTD, source_BSD if kept is None else None, cache)
        q_BTHK = self._gated("query", self._heads(products["q"], self.n_heads, self.q_norm), x_BTD, products)
        keys = self._keys(source_BSD, products, is_token_BS) if kept is None else kept
        if self.rope is not None and not is_cross:
            q_BTHK, keys = self._turned(q_BTHK, keys, cache, positions_BT, is_token_BS)
        q_BTHK = self.tap_q(q_BTHK)
        if kept is None:
            keys = Keys(self.tap_k(keys.k_BSGK), self.tap_v(keys.v_BSGK), keys.score_logits_BSH)
            keys = self._looked_up(keys, cache, is_token_BS, is_cross=is_cross)

        # As the values are before their own gate.
        reads_value = gate is not None and gate.spec.source == "value"
        v_BTGK = self._heads(products["v"], self.n_kv_heads, None) if reads_value else None
        is_mapped = self.map_name != "none" and not (self.output_map.needs_value and is_cross)
        inside = None if is_mapped else self._inside(gate)
        logits = None if inside is None else inside.logits(x_BTD, v_BTGK=v_BTGK, product=products.get("sdpa"))
        seen = self._sight(
            x_BTD, keys, segment_ids_BT, is_token_BS, cache, bias_BHTS, is_causal=is_causal, is_cross=is_cross
        )
        y_BTHK = attended(q_BTHK, keys, logits, inside and inside.spec, self._weighing(len(x_BTD)), seen, cache, watch)
        if is_mapped:
            y_BTHK = mapped(self.output_map, y_BTHK, keys.v_BSGK, self.eps)
        if inside is None:
            y_BTHK = self._gated("sdpa", y_BTHK, x_BTD, products, v_BTGK)
        out_BTD = self.o_proj(y_BTHK.flatten(-2))
        if "out" not in self.gates:
            return out_BTD
        return self._gated("out", out_BTD.unsqueeze(2), x_BTD, products).squeeze(2)

    @property
    def output_map(self) -> OutputMap:
        """The map of the output; looked up by name, since a layer that is copied or pickled cannot carry functions along."""
        return OUTPUT_MAPS[self.map_name]

    def hides(self, n_keys: int, end: int, is_token_BS: Tensor | None = None) -> Tensor | None:
        """What is added to the logits of the last `n_keys` keys before position `end`, [1, S, H] in float32, so that the first
        key of a sequence is hidden from the heads that are not to see it (of rows with padding [B, S, H]); None where nothing
        is. `is_token_BS` is of all positions before `end`."""
        if self.hidden_H is None or (n_keys < end and is_token_BS is None):
            return None
        return hidden_first(self.hidden_H, n_keys, is_token_BS)

    def _sight(
        self,
        x_BTD: Tensor,
        keys: Keys,
        segment_ids_BT: Tensor | None,
        is_token_BS: Tensor | None,
        cache: Cache | None,
        bias_BHTS: Tensor | None,
        *,
        is_causal: bool,
        is_cross: bool,
    ) -> Sight:
        if is_cross:
            kept_BS = None if cache is None else cache.context_tokens.get(self.layer)
            return sight_of_context(kept_BS if is_token_BS is None else is_token_BS, bias_BHTS)
        n, n_keys, start = x_BTD.shape[1], keys.k_BSGK.shape[1], 0
        if cache is None:
            seen = sight(is_causal, self.window, segment_ids_BT, is_token_BS, bias_BHTS)
        else:
            start, seen = cache.length, sight_in_cache(is_causal, self.window, cache, n, n_keys, bias_BHTS)
        if self.hidden_H is None or (cache is not None and not cache.has_first):
            return seen
        if self.hidden_H.is_meta and not x_BTD.is_meta:
            self.hidden_H = hidden_heads(self.n_heads, self.first_hidden_from, x_BTD.device)
        if cache is not None and cache.padding is not None:
            is_token_BS = cache.padding.is_token_BS[:, : start + n]
        return seen._replace(first_BSH=self.hides(n_keys, start + n, is_token_BS))

    def _inside(self, gate: Gate | None) -> Gate | None:
        """The gate on the output where the op applies it. One that reads the output comes after the op; so does one whose scores
        are averaged over more heads than are here."""
        if gate is None or gate.spec.source in ("output", "hybrid") or gate.shape.heads != self.n_heads:
            return None
        return gate

    def _weighing(self, n_sequences: int) -> Weighing:
        learned, scores = None if self.sink is None else self.sink.learned(n_sequences), self._gate("scores")
        dropout = self.dropout if self.training else 0.0
        rules = (scores and scores.spec, self.heads, self.impl, dropout, self.softcap)
        return Weighing(self.normaliser, learned, *rules)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GatedAttention":
        """A module's way to another type or device. What no checkpoint holds is made anew where it had no values yet, on the
        meta device."""
        had_values = self.hidden_H is None or not self.hidden_H.is_meta
        super()._apply(fn, recurse)
        if not had_values and not self.hidden_H.is_meta:
            made_H = hidden_heads(self.n_heads, self.first_hidden_from, self.hidden_H.device)
            self.hidden_H = made_H.to(self.hidden_H.dtype)
        return self

    def extra_repr(self) -> str:
        """Heads, and the gates' slugs."""
        gates = "+".join(g.spec.slug for g in self.gates.values()) or "none"
        return f"heads={self.n_heads}/{self.n_kv_heads}x{self.head_dim}, gate={gates}"
