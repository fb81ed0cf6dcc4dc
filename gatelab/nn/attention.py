"""GatedAttention: the one attention layer of every architecture, with a list of gates.

Notable: the gate sites are six lines of `forward`; projections are separate modules, so that weights are easy to read,
to probe and to remove, and may still run as one product (`is_packed`); taps mark q, k, v as they enter the softmax.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.base import validate
from ..config.gate import GateSpec, parse_gates
from ..config.kv_experts import KVExperts
from ..config.model import check_first_hidden, check_gates
from ..config.normaliser import Heads, Normaliser, Softmax
from ..config.output_map import OUTPUT_MAPS, OutputMap
from ..config.rope import RopeScaling, Scaling, Unscaled
from ..ops.gated_attention import choose, gated_attention, gated_attention_and_lse
from ..ops.gated_decode import choose as choose_decode
from ..ops.gated_decode import gated_decode
from .cache import Cache, Keys
from .gate import Gate
from .kv_experts import RoutedHeads
from .linear import Linear, linear, spread
from .norm import Norm
from .rope import Rope
from .softmax import LearnedNormaliser
from .tap import Tap
from .watch import Watch

# Channels of a packed projection are a multiple of so many: rows of 128 bytes in bfloat16, to which torch.compile pads others,
# and then copies what is sliced from them.
_EVEN = 64
# How the first key is hidden from a head: one number a key, added to its logit, as a gate on the scores does it. Beside any
# other key the weight is then exactly 0, a query that sees no other still sees it, and float16 holds the number times √K.
HIDES = GateSpec(site="scores", granularity="headwise", form="add", activation="identity")
_HIDDEN = -1000.0


class GatedAttention(nn.Module):
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
        layer: index in the model's cache.
        impl: implementation of the attention op; see `gatelab.ops.gated_attention`. `auto` without gradients decodes a single
            query with `gatelab.ops.gated_decode` where its kernels serve.

    The input is the pre-normed hidden state, which the gates read too (arXiv 2505.06708, section 2.2).

    Raises:
        ValueError: for an impossible gate, heads that do not divide, an unknown word, rope on odd channels, a gate on the
            log-sum-exp together with an output map, a first key hidden from heads that are not there or beside a gate on the
            scores.
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
        layer: int = 0,
        impl: str = "auto",
    ):
        super().__init__()
        _check_widths(
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            window=window,
            max_seq_len=max_seq_len,
        )
        n_kv_heads = n_kv_heads or n_heads
        if n_heads % n_kv_heads:
            raise ValueError(
                f"n_kv_heads={n_kv_heads} does not divide n_heads={n_heads}; take a divisor, as each kv head serves as many "
                f"query heads"
            )
        if head_dim is None and d_model % n_heads:
            raise ValueError(f"d_model={d_model} is not a multiple of n_heads={n_heads}; state head_dim")
        head_dim = head_dim or d_model // n_heads
        if qk_norm not in (False, True, "rms", "rms-no-gain", "rms-all-heads"):
            raise ValueError(f"qk_norm={qk_norm!r}: expected False, True, 'rms', 'rms-no-gain' or 'rms-all-heads'")
        if output_map not in OUTPUT_MAPS:
            raise ValueError(f"output_map={output_map!r}: expected one of {', '.join(OUTPUT_MAPS)}")
        if softmax is not None and not isinstance(softmax, Normaliser):
            raise ValueError(f"softmax={softmax!r}: give a value of gatelab.config, as in softmax=SinkLogit()")
        if not isinstance(rope_scaling, Scaling):
            raise ValueError(
                f"rope_scaling={rope_scaling!r}: give a value of gatelab.config.rope, as in YaRN(factor=4, …)"
            )
        specs = tuple(GateSpec.parse(g) if isinstance(g, str) else g for g in parse_gates(gate))
        # Whether it is causal or crosses is said at each call; here only what holds for all of them.
        check_gates(specs, is_causal=True, is_cross=False, output_map=output_map)
        self.normaliser = softmax or Softmax()
        choose(impl, self.normaliser)  # refuses a name that does not exist, or does not serve the normaliser
        self.normaliser.check(n_heads, n_kv_heads)
        self.n_heads, self.n_kv_heads, self.head_dim, self.layer, self.impl = n_heads, n_kv_heads, head_dim, layer, impl
        self.window, self.eps, self.is_packed = window, norm_eps, False
        self.map_name = output_map
        check_first_hidden(first_hidden_from, n_heads, specs)
        self.first_hidden_from = tuple(first_hidden_from)
        hidden_H = torch.tensor(self._hidden_heads()) if self.first_hidden_from else None
        self.register_buffer("hidden_H", hidden_H, persistent=False)
        self.heads = Heads(n_heads, n_kv_heads, head_dim, layer, max_seq_len)

        self.q_proj = Linear(d_model, n_heads * head_dim, bias=bias)
        experts = validate(KVExperts, kv_experts) if isinstance(kv_experts, str) else kv_experts
        routed = [] if experts is None else list(experts.what)
        self.k_proj, self.v_proj = (
            RoutedHeads(d_model, n_kv_heads, head_dim, n_experts=experts.n, top=experts.top, bias=bias)
            if name in routed
            else Linear(d_model, n_kv_heads * head_dim, bias=bias)
            for name in ("k", "v")
        )
        self.o_proj = Linear(n_heads * head_dim, d_model, bias=bias, paired_side="in")
        self.gates = nn.ModuleDict(
            {s.site: Gate(s, d_model=d_model, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim) for s in specs}
        )
        self.q_norm, self.k_norm = (_head_norm(qk_norm, n, head_dim, norm_eps) for n in (n_heads, n_kv_heads))
        self.rope = Rope(head_dim, rope_theta, max_seq_len, rope_fraction, rope_scaling) if rope_theta else None
        self.sink = LearnedNormaliser(self.normaliser, self.heads) if self.normaliser.learned(self.heads) else None
        self.tap_q, self.tap_k, self.tap_v = Tap(), Tap(), Tap()

    def forward(
        self,
        x_BTD: Tensor,
        *,
        context_BSD: Tensor | None = None,
        segment_ids_BT: Tensor | None = None,
        cache: Cache | None = None,
        is_causal: bool = True,
        is_cross: bool = False,
        bias_BHTS: Tensor | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """[B, T, D] to [B, T, D].

        Args:
            context_BSD: cross-attention: keys and values, and their gates, read this instead; every query sees all.
            segment_ids_BT: document numbers; attention stays within a document.
            cache: keys and values so far (`gatelab.nn.cache`); x then continues at position cache.length. With a context it
                keeps the keys and values of the context, which is read once.
            is_causal: False lets every token see all others.
            is_cross: cross-attention, as any call with a context is; says so where the cache has kept the context and
                context_BSD is left out.
            bias_BHTS: added to the logits, such as a relative position's.
            watch: causal self-attention appends its first-token mass; no number where the op has no log-sum-exp of the keys
                alone (a window, documents, a cache, a bias, a gate on the scores, a hidden first key, no softmax,
                `impl="reference"`).

        Raises:
            ValueError: segment_ids_BT together with a cache, a context or a hidden first key; cross-attention without a
                context; a sequence past the rotary table or the cache; a gate that this call has no source for.
        """
        _check_input(self.q_proj.in_features, x_BTD=x_BTD, context_BSD=context_BSD)
        if self.hidden_H is not None and self.hidden_H.is_meta and not x_BTD.is_meta:
            self.hidden_H = torch.tensor(self._hidden_heads(), device=x_BTD.device)
        is_cross = is_cross or context_BSD is not None
        if segment_ids_BT is not None and (cache is not None or is_cross):
            raise ValueError("segment_ids_BT does not go together with a cache or a context; decode one document a row")
        if segment_ids_BT is not None and self.hidden_H is not None:
            raise ValueError("first_hidden_from hides the first key of a sequence, not of its documents; run one a row")
        if segment_ids_BT is not None and segment_ids_BT.shape != x_BTD.shape[:2]:
            raise ValueError(
                f"segment_ids_BT of shape {tuple(segment_ids_BT.shape)}: expected a document number for each token, "
                f"{tuple(x_BTD.shape[:2])}"
            )
        start = 0 if cache is None or is_cross else cache.length
        kept = cache.context.get(self.layer) if is_cross and cache is not None else None
        if is_cross and context_BSD is None and kept is None:
            raise ValueError("cross-attention has nothing to look at: give context_BSD, or a cache that has kept it")
        source_BSD = context_BSD if is_cross else x_BTD
        products = self._products(x_BTD, source_BSD if kept is None else None, cache)
        q_BTHK = self._gated("query", self._heads(products["q"], self.n_heads, self.q_norm), x_BTD, products)
        keys = self._keys(source_BSD, products) if kept is None else kept
        turns = self.rope is not None and not is_cross
        turns_late = turns and cache is not None and cache.turns_late
        if turns_late:
            q_BTHK = self.rope(q_BTHK, start)
        elif turns:
            q_BTHK, k_BSGK = self._turned(q_BTHK, keys.k_BSGK, start, is_decoding=cache is not None)
            keys = keys._replace(k_BSGK=k_BSGK)
        q_BTHK = self.tap_q(q_BTHK)
        if kept is None:
            keys = Keys(self.tap_k(keys.k_BSGK), self.tap_v(keys.v_BSGK), keys.score_logits_BSH)
            if cache is not None:
                keys = cache.keep_context(self.layer, keys) if is_cross else cache.append(self.layer, keys)
            if turns_late:
                keys = keys._replace(k_BSGK=self.rope(keys.k_BSGK))
        gate, scores = self._gate("sdpa"), self._gate("scores")
        reads_value = gate is not None and gate.spec.source == "value"
        if reads_value and is_cross:
            raise ValueError(f"gate {gate.spec.slug} reads the query's own value, which cross-attention does not have")
        # As the values are before their own gate.
        raw_v_BTGK = self._heads(products["v"], self.n_kv_heads, None) if reads_value else None
        is_mapped = self.map_name != "none" and not (self.output_map.needs_value and is_cross)
        # A gate that reads the output, or follows a map of it, comes after the op; so does one whose scores are averaged over
        # more heads than are here.
        is_inside = gate is not None and not is_mapped and gate.spec.source not in ("output", "hybrid")
        is_inside = is_inside and gate.shape.heads == self.n_heads
        logits = gate.logits(x_BTD, v_BTGK=raw_v_BTGK, product=products.get("sdpa")) if is_inside else None
        spec = gate.spec if is_inside else None
        learned = None if self.sink is None else self.sink.learned(len(x_BTD))
        is_watched = watch is not None and is_causal and not is_cross
        added = (segment_ids_BT, cache, bias_BHTS, scores, self.window, self.hidden_H)
        window, mask_BTS = None if is_cross else self.window, None
        if cache is not None and not is_cross:
            window, mask_BTS, bias_BHTS = self._hidden(cache, x_BTD.shape[1], keys.k_BSGK.shape[1], bias_BHTS)
        has_first = not is_cross and (cache is None or cache.has_first)
        hidden_1SH = self.hides(keys.k_BSGK.shape[1], start + x_BTD.shape[1]) if has_first else None
        lse_BHT, given = None, (q_BTHK, keys.k_BSGK, keys.v_BSGK, logits, spec)
        if is_watched and all(a is None for a in added):
            y_BTHK, lse_BHT = gated_attention_and_lse(
                *given,
                normaliser=self.normaliser,
                learned=learned,
                heads=self.heads,
                impl=self.impl,
            )
        elif cache is not None and self._splits(*given[:3], spec, mask_BTS, bias_BHTS, hidden_1SH, scores):
            y_BTHK = gated_decode(*given, window=window)
        else:
            y_BTHK = gated_attention(
                *given,
                normaliser=self.normaliser,
                learned=learned,
                heads=self.heads,
                score_logits_BSH=keys.score_logits_BSH if hidden_1SH is None else hidden_1SH,
                score_gate=HIDES if hidden_1SH is not None else None if scores is None else scores.spec,
                bias_BHTS=bias_BHTS,
                is_causal=is_causal and not is_cross,
                window=window,
                segment_ids_BT=segment_ids_BT,
                mask_BTS=mask_BTS,
                impl=self.impl,
            )
        if is_watched:
            watch.add(q_BTHK, keys.k_BSGK, lse_BHT)
        if is_mapped:
            y_BTHK = self._map(y_BTHK, keys.v_BSGK)
        if gate is not None and not is_inside:
            logits = gate.logits(x_BTD, v_BTGK=raw_v_BTGK, y_BTHK=y_BTHK, product=products.get("sdpa"))
            y_BTHK = gate(y_BTHK, logits)
        out_BTD = self.o_proj(y_BTHK.flatten(-2))
        if "out" not in self.gates:
            return out_BTD
        return self._gated("out", out_BTD.unsqueeze(2), x_BTD, products).squeeze(2)

    @property
    def output_map(self) -> OutputMap:
        """The map of the output; looked up by name, since a layer that is copied or pickled cannot carry functions along."""
        return OUTPUT_MAPS[self.map_name]

    def hides(self, n_keys: int, end: int) -> Tensor | None:
        """What is added to the logits of the last `n_keys` keys before position `end`, [1, S, H] in float32, so that the first
        key of a sequence is hidden from the heads that are not to see it; None where nothing is."""
        if self.hidden_H is None or n_keys < end:
            return None
        return F.pad(self.hidden_H[None, None], (0, 0, 0, n_keys - 1))

    def _hidden_heads(self) -> list[float]:
        return [_HIDDEN if h in self.first_hidden_from else 0.0 for h in range(self.n_heads)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GatedAttention":
        """A module's way to another type or device. What no checkpoint holds is made anew where it had no values yet, on the
        meta device."""
        had_values = self.hidden_H is None or not self.hidden_H.is_meta
        super()._apply(fn, recurse)
        if not had_values and not self.hidden_H.is_meta:
            self.hidden_H = torch.tensor(self._hidden_heads(), dtype=self.hidden_H.dtype, device=self.hidden_H.device)
        return self

    def _keys(self, source_BSD: Tensor, products: dict[str, Tensor]) -> Keys:
        """Keys, values and score logits of the source's tokens, before RoPE."""
        k_BSGK = self._heads(products["k"], self.n_kv_heads, self.k_norm)
        v_BSGK = self._heads(products["v"], self.n_kv_heads, None)
        k_BSGK = self._gated("key", k_BSGK, source_BSD, products)
        v_BSGK = self._gated("value", v_BSGK, source_BSD, products, v_BSGK)
        scores = self._gate("scores")
        logits_BSH = None
        if scores is not None:
            logits_BSH1 = scores.logits(source_BSD, product=products.get("scores"))
            logits_BSH = logits_BSH1.squeeze(-1).expand(*source_BSD.shape[:2], -1)
        return Keys(k_BSGK, v_BSGK, logits_BSH)

    def _turned(self, q_BTHK: Tensor, k_BTGK: Tensor, start: int, *, is_decoding: bool) -> tuple[Tensor, Tensor]:
        """Queries and keys from position `start`; as one tensor for decoding, where an op costs more than its numbers."""
        if not is_decoding:
            return self.rope(q_BTHK, start), self.rope(k_BTGK, start)
        both_BTHK = self.rope(torch.cat([q_BTHK, k_BTGK], dim=2), start)
        return both_BTHK[:, :, : self.n_heads], both_BTHK[:, :, self.n_heads :]

    def _products(self, x_BTD: Tensor, source_BSD: Tensor | None, cache: Cache | None) -> dict[str, Tensor]:
        """x times each projection, and what keys are made of times theirs (None: they are there already); in one product
        where that was asked for and both are x, gates that read x included."""
        if self.is_packed and source_BSD is x_BTD:
            return self._packed(x_BTD, cache)
        products = {"q": self.q_proj(x_BTD)}
        if source_BSD is not None:
            products |= {"k": self.k_proj(source_BSD), "v": self.v_proj(source_BSD)}
        return products

    def _packed(self, x_BTD: Tensor, cache: Cache | None) -> dict[str, Tensor]:
        """One matrix product of all linear maps of x; what cannot join it is computed apart. Without gradients a cache keeps
        the joint weight, so that a text is decoded with one product a token."""
        gates = {s: g.g_proj for s, g in self.gates.items() if g.spec.source == "hidden" and g.g_down is None}
        maps = {"q": self.q_proj, "k": self.k_proj, "v": self.v_proj, **gates}
        joined = {name: m for name, m in maps.items() if isinstance(m, Linear)}
        widths = [m.out_features for m in joined.values()]
        # A few gate channels more must not move the rows off what kernels read as it lies.
        rest = -sum(widths) % _EVEN
        keeps = cache is not None and not torch.is_grad_enabled()
        owner, weight = cache.joint.get(self.layer, (None, None)) if keeps else (None, None)
        if owner is not self.q_proj:
            weights = [m.weight.to(x_BTD.dtype) for m in joined.values()]
            if rest:
                weights.append(weights[0].new_zeros(*weights[0].shape[:-2], rest, weights[0].shape[-1]))
            weight = torch.cat(weights, dim=-2)
            if keeps:
                cache.joint[self.layer] = self.q_proj, weight
        pieces = linear(x_BTD, weight).split([*widths, rest], dim=-1)[: len(widths)]
        products = {
            name: piece if m.bias is None else piece + spread(m.bias.to(x_BTD.dtype), x_BTD, n_dims=1)
            for (name, m), piece in zip(joined.items(), pieces, strict=True)
        }
        return products | {name: m(x_BTD) for name, m in maps.items() if name not in joined}

    def _hidden(
        self, cache: Cache, n_queries: int, n_keys: int, bias_BHTS: Tensor | None
    ) -> tuple[int | None, Tensor | None, Tensor | None]:
        """Window, mask and bias of queries that end a cache's keys; for a single query a bias is all that is needed, since
        a mask would be joined with others in every layer."""
        window = None if self.window is None or n_keys <= self.window else self.window
        if bias_BHTS is not None:
            bias_BHTS = bias_BHTS[..., -n_keys:]  # a cache may have kept fewer than there were
        if cache.padding is None:
            return window, None, bias_BHTS
        end = cache.length + n_queries
        if n_queries > 1:
            return window, cache.padding.mask_BTS(end, n_queries, n_keys), bias_BHTS
        padding_B11S = cache.padding.bias_B11S(end, n_keys)
        return window, None, padding_B11S if bias_BHTS is None else bias_BHTS + padding_B11S

    def _splits(
        self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, gate: GateSpec | None, *others: Tensor | Gate | None
    ) -> bool:
        """Whether the kernels that decode take a cache's newest query: where they serve, nothing else acts on the logits, and
        nobody asks for a gradient."""
        is_bare = type(self.normaliser) is Softmax and all(other is None for other in others)
        if q_BTHK.shape[1] != 1 or self.impl != "auto" or torch.is_grad_enabled() or not is_bare:
            return False
        return choose_decode("auto", q_BTHK, k_BSGK, v_BSGK, gate) == "split"

    def _gate(self, site: str) -> Gate | None:
        return self.gates[site] if site in self.gates else None  # noqa: SIM401  (ModuleDict has no get)

    def _gated(
        self,
        site: str,
        y_BTHK: Tensor,
        x_BTD: Tensor,
        products: dict[str, Tensor],
        v_BTGK: Tensor | None = None,
    ) -> Tensor:
        gate = self._gate(site)
        return y_BTHK if gate is None else gate(y_BTHK, gate.logits(x_BTD, v_BTGK=v_BTGK, product=products.get(site)))

    def _heads(self, product: Tensor, n_heads: int, norm: Norm | None) -> Tensor:
        if norm is not None and norm.width != self.head_dim:
            return norm(product).unflatten(-1, (n_heads, self.head_dim))
        heads_BTHK = product.unflatten(-1, (n_heads, self.head_dim))
        return heads_BTHK if norm is None else norm(heads_BTHK)

    def _map(self, y_BTHK: Tensor, v_BSGK: Tensor) -> Tensor:
        wide = torch.promote_types(y_BTHK.dtype, torch.float32)
        v_BTHK = None
        if self.output_map.needs_value:
            # The queries' own, as they entered the softmax.
            v_BTGK = v_BSGK[:, v_BSGK.shape[1] - y_BTHK.shape[1] :]
            v_BTHK = v_BTGK.repeat_interleave(self.n_heads // self.n_kv_heads, dim=2).to(wide)
        return self.output_map.apply(y_BTHK.to(wide), v_BTHK, self.eps).to(y_BTHK.dtype)

    def extra_repr(self) -> str:
        """Heads, and the gates' slugs."""
        gates = "+".join(g.spec.slug for g in self.gates.values()) or "none"
        return f"heads={self.n_heads}/{self.n_kv_heads}x{self.head_dim}, gate={gates}"


def _head_norm(qk_norm: bool | str, n_heads: int, head_dim: int, eps: float) -> Norm | None:
    if qk_norm == "rms-all-heads":
        return Norm(n_heads * head_dim, "rms", eps)
    return Norm(head_dim, "rms" if qk_norm is True else qk_norm, eps) if qk_norm else None


def _check_widths(**widths: int | None) -> None:
    for name, value in widths.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: take a number from 1")


def _check_input(d_model: int, **hidden: Tensor | None) -> None:
    for name, given in hidden.items():
        if given is not None and (given.dim() != 3 or given.shape[2] != d_model):
            raise ValueError(f"{name} of shape {tuple(given.shape)}: expected [batch, tokens, d_model={d_model}]")
        if given is not None and not given.is_floating_point():
            raise ValueError(
                f"{name} of type {given.dtype}: expected hidden states in a floating type, as an embedding gives"
            )
