"""From the hidden state to queries, keys and values: projections with their norms, gates and rotary positions.

Notable: q, k, v and the gates that read x may be one matrix product (`is_packed`); their modules and weights stay apart.
"""

import torch
from torch import Tensor, nn

from .cache import Cache, Keys
from .gate import Gate
from .hiding import positions_of_tokens
from .linear import Linear, linear, spread
from .norm import Norm
from .rope import Rope

# Channels of a joint projection are a multiple of so many: rows of 128 bytes in bfloat16, to which torch.compile pads others,
# and then copies what is sliced from them.
_EVEN = 64
# A logit of which every activation of a forget gate makes exactly 1, whose logarithm adds nothing to sums over tokens.
_OPEN = 1000.0


class Projections(nn.Module):
    """What an attention layer does before the softmax; abstract: the layer makes the modules, under the names of checkpoints."""

    q_proj: Linear
    k_proj: nn.Module
    v_proj: nn.Module
    q_norm: Norm | None
    k_norm: Norm | None
    gates: nn.ModuleDict
    rope: Rope | None
    n_heads: int
    n_kv_heads: int
    head_dim: int
    layer: int
    is_packed: bool

    def _products(self, x_BTD: Tensor, source_BSD: Tensor | None, cache: Cache | None) -> dict[str, Tensor]:
        """x times each projection, and what keys are made of times theirs (None: they are there already); in one product
        where that was asked for and both are x, gates that read x included."""
        if self.is_packed and source_BSD is x_BTD:
            gates = {s: g.g_proj for s, g in self.gates.items() if g.spec.source == "hidden" and g.g_down is None}
            maps = {"q": self.q_proj, "k": self.k_proj, "v": self.v_proj, **gates}
            return joint_products(maps, x_BTD, cache, self.layer)
        products = {"q": self.q_proj(x_BTD)}
        if source_BSD is not None:
            products |= {"k": self.k_proj(source_BSD), "v": self.v_proj(source_BSD)}
        return products

    def _keys(self, source_BSD: Tensor, products: dict[str, Tensor], is_token_BS: Tensor | None) -> Keys:
        """Keys, values and score logits of the source's tokens, before RoPE; padding makes nobody forget."""
        k_BSGK = self._heads(products["k"], self.n_kv_heads, self.k_norm)
        v_BSGK = self._heads(products["v"], self.n_kv_heads, None)
        k_BSGK = self._gated("key", k_BSGK, source_BSD, products)
        v_BSGK = self._gated("value", v_BSGK, source_BSD, products, v_BSGK)
        scores = self._gate("scores")
        logits_BSH = None
        if scores is not None:
            logits_BSH1 = scores.logits(source_BSD, product=products.get("scores"))
            logits_BSH = logits_BSH1.squeeze(-1).expand(*source_BSD.shape[:2], -1)
            if is_token_BS is not None and scores.spec.form == "forget":
                logits_BSH = logits_BSH.masked_fill(~is_token_BS[..., None], _OPEN)
        return Keys(k_BSGK, v_BSGK, logits_BSH)

    def _turned(
        self,
        q_BTHK: Tensor,
        keys: Keys,
        cache: Cache | None,
        positions_BT: Tensor | None,
        is_token_BS: Tensor | None,
    ) -> tuple[Tensor, Keys]:
        """Queries and keys at their rotary positions; of a cache that turns late, the queries alone."""
        start, rows = 0 if cache is None else cache.length, None
        if positions_BT is None and is_token_BS is not None:
            self.rope.check(q_BTHK.shape[1])
            positions_BT = positions_of_tokens(is_token_BS)
        if positions_BT is not None:
            rows = self.rope.rows(positions_BT)
        if cache is None or cache.turns_late:
            q_BTHK = self.rope(q_BTHK, start, rows=rows)
            return q_BTHK, keys if cache is not None else keys._replace(k_BSGK=self.rope(keys.k_BSGK, rows=rows))
        # As one tensor for decoding, where an op costs more than its numbers.
        both_BTHK = self.rope(torch.cat([q_BTHK, keys.k_BSGK], dim=2), start, rows=rows)
        return both_BTHK[:, :, : self.n_heads], keys._replace(k_BSGK=both_BTHK[:, :, self.n_heads :])

    def _looked_up(self, keys: Keys, cache: Cache | None, is_token_BS: Tensor | None, *, is_cross: bool) -> Keys:
        """What queries look at: these keys, or all that the cache has with them."""
        if cache is None:
            return keys
        if is_cross:
            return cache.keep_context(self.layer, keys, is_token_BS)
        keys = cache.append(self.layer, keys)
        return keys._replace(k_BSGK=self.rope(keys.k_BSGK)) if self.rope is not None and cache.turns_late else keys

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
        """y through the gate at a site, where there is one; some read y itself."""
        gate = self._gate(site)
        if gate is None:
            return y_BTHK
        return gate(y_BTHK, gate.logits(x_BTD, v_BTGK=v_BTGK, y_BTHK=y_BTHK, product=products.get(site)))

    def _heads(self, product: Tensor, n_heads: int, norm: Norm | None) -> Tensor:
        if norm is not None and norm.width != self.head_dim:
            return norm(product).unflatten(-1, (n_heads, self.head_dim))
        heads_BTHK = product.unflatten(-1, (n_heads, self.head_dim))
        return heads_BTHK if norm is None else norm(heads_BTHK)


def joint_products(maps: dict[str, nn.Module], x_BTD: Tensor, cache: Cache | None, layer: int) -> dict[str, Tensor]:
    """x times each map, [B, T, channels] by name, "q" first; what is no `Linear` cannot join and is computed apart. Without
    gradients a cache keeps the joint weight of its layer, so that a text is decoded with one product a token."""
    joined = {name: m for name, m in maps.items() if isinstance(m, Linear)}
    widths = [m.out_features for m in joined.values()]
    # A few gate channels more must not move the rows off what kernels read as it lies.
    rest = -sum(widths) % _EVEN
    keeps = cache is not None and not torch.is_grad_enabled()
    owner, weight = cache.joint.get(layer, (None, None)) if keeps else (None, None)
    if owner is not maps["q"]:
        weights = [m.weight.to(x_BTD.dtype) for m in joined.values()]
        if rest:
            weights.append(weights[0].new_zeros(*weights[0].shape[:-2], rest, weights[0].shape[-1]))
        weight = torch.cat(weights, dim=-2)
        if keeps:
            cache.joint[layer] = maps["q"], weight
    pieces = linear(x_BTD, weight).split([*widths, rest], dim=-1)[: len(widths)]
    products = {
        name: piece if m.bias is None else piece + spread(m.bias.to(x_BTD.dtype), x_BTD, n_dims=1)
        for (name, m), piece in zip(joined.items(), pieces, strict=True)
    }
    return products | {name: m(x_BTD) for name, m in maps.items() if name not in joined}
