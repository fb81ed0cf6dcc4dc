"""How long a step takes: products, attention and passes over memory at a device's rates, and what communication does not hide.

Notable: two constants that two measured steps have set, and what profiles, counts and a played step of a mesh gave (`devices`);
attention's rates are its own measurements. Computing a block again costs another forward pass, taken as a third of its work.
"""

from dataclasses import dataclass
from functools import lru_cache

from ...config.model import ModelConfig
from ...config.objective import Objective
from ..cost import attention_flops_per_token, model_flops_per_token
from .devices import (
    LAUNCHED,
    MOVED,
    MOVED_ON_THE_WAY,
    MOVED_PAIRS,
    PRODUCTS,
    ROUTED,
    ROUTER,
    ROUTER_TILE,
    TILE,
    UNEVEN,
    WAIT,
    Device,
    attention_seconds,
    experts_rate,
)  # fmt: skip
from .memory import CHANNELS, LOGITS, activations, lengths, states
from .mesh import Mesh, of_rank
from .traffic import Transfer, counts_first

# Bytes of a weight that an update moves: its gradient joined to the others (8) and its norm taken (4); weights, gradient and
# moments read, weights and moments written (28); the weight cast to bfloat16 (6). Where it is not captured the gradient is first
# scaled by a kernel of its own (8; benchmarks/results/expert_parts_h200_2026-11.json).
_UPDATE, _SCALED = 46, 8


@dataclass(frozen=True)
class Seconds:
    """Of a step on one GPU. `products` are those of layers and head, `experts` the grouped ones, `passes` the blocks' reading and
    writing, `loss` the cross-entropy's, `update` AdamW's. `launches`: between kernels that are not captured, of experts on
    meshes. `waits`: hosts that ask how many rows come to shared experts. `exposed`: communication that nothing hides; `hidden` the
    rest of it."""

    products: float
    experts: float
    attention: float
    passes: float
    loss: float
    update: float
    launches: float
    waits: float
    exposed: float
    hidden: float

    @property
    def computing(self) -> float:
        return self.products + self.experts + self.attention + self.passes + self.loss + self.update

    @property
    def total(self) -> float:
        return self.computing + self.launches + self.waits + self.exposed

    @property
    def one_by_one(self) -> float:
        """Were nothing hidden."""
        return self.total + self.hidden


def seconds(
    model: ModelConfig, mesh: Mesh, device: Device, context: int, sequences: int, n_parts: int, *,
    transfers: tuple[Transfer, ...], recompute: bool = False, objective: Objective | None = None,
) -> Seconds:  # fmt: skip
    """Of a step of `sequences` a group in `n_parts` micro-batches, of a resolved model."""
    rank, n = of_rank(model, mesh.tp), states(model, mesh)
    tokens, spoken = sequences * context, sequences * lengths(model, context, objective)[-1]
    attention, experts, others = _flops(rank, context, objective)
    # Tensor ranks share out its tokens.
    own = spoken / mesh.tp
    head = 6 * rank.vocab_size * rank.d_model * spoken
    counted = counts_first(model, n_parts)
    again = 1 + (recompute + counted) / 3
    forward, backward = attention_seconds(
        attention * tokens, device, head_dim=model.head_dim, length=min(context, model.window or context)
    )
    moved = MOVED * activations(rank, context, objective, is_captured=True)[0] * sequences
    n_blocks = sum(model.depth(stack) for stack in model.architecture.stacks)
    routed, uneven = 0.0, UNEVEN if mesh.ep > 1 else 1.0
    if rank.moe is not None:
        vectors = sum(
            rank.depth(stack) * n
            for stack, n in zip(rank.architecture.stacks, lengths(rank, context, objective), strict=True)
        )
        # Two of a pair's rows are kept.
        a_pair = MOVED_PAIRS - 2 * MOVED + (MOVED_ON_THE_WAY if mesh.ep > 1 else 0)
        a_channel = 2 * rank.moe.top_k * a_pair + (ROUTED if mesh.gpus > 1 else 0)
        # The busier rank's rows are more where they are multiplied.
        more = (uneven - 1) * MOVED * 2 * rank.moe.top_k * CHANNELS[rank.moe.activation.kind] * rank.moe.d_expert
        moved += (a_channel * rank.d_model + more) * vectors * sequences
        columns = -(-rank.moe.n_experts // ROUTER_TILE) * ROUTER_TILE
        routed = 6 * columns * rank.d_model * vectors * sequences / (ROUTER * device.product)
    logits = 2 * own * rank.vocab_size
    chunks = max(n_parts, -(-logits // LOGITS))
    # A pass that counts the experts' choices computes the head too.
    products = (again * (others * tokens - head) + (1 + counted / 3) * head / mesh.tp) / (PRODUCTS * device.product)
    products += again * routed
    grouped = 0.0 if rank.moe is None else again * uneven * experts * tokens / (_grouped_rate(rank) * device.product)
    passes = again * moved / device.copy
    blocks = products + grouped + passes + (attended := backward + forward * (3 * again - 2))
    hideable = sum(t.seconds(device) for t in transfers if t.hides)
    open_ = sum(t.seconds(device) for t in transfers if not t.hides)
    # The first gather and the last scatter have nothing beside them.
    left = max(hideable - blocks, hideable / (n_blocks + 1))
    return Seconds(
        products=products,
        experts=grouped,
        attention=attended,
        passes=passes,
        # Logits written by their product, read and turned by the loss; the weight's gradient read and written a chunk.
        loss=(3 * logits + chunks * 8 * rank.vocab_size * rank.d_model) / device.copy,
        update=n * (_UPDATE + _SCALED * (mesh.gpus > 1) + 12 * (n_parts - 1) * (not mesh.is_sharded)) / device.copy,
        launches=LAUNCHED * n_parts * n_blocks * again if mesh.gpus > 1 and model.moe is not None else 0.0,
        waits=WAIT * n_parts * n_blocks * (1 + recompute + counted) if mesh.ep > 1 else 0.0,
        exposed=open_ + left,
        hidden=hideable - left,
    )


def _grouped_rate(model: ModelConfig) -> float:
    """Of a large product's, with the share of the tiles that an expert's channels fill."""
    width = model.moe.d_expert
    return experts_rate(width) * width / (-(-width // TILE) * TILE)


@lru_cache(maxsize=256)
def _flops(model: ModelConfig, context: int, objective: Objective | None) -> tuple[float, float, float]:
    """Training operations a source token: attention's, the experts', and all others."""
    whole = model_flops_per_token(model, context, objective)
    attention, experts = attention_flops_per_token(model, context, objective), 0.0
    if model.moe is not None:
        idle = model.model_copy(update={"moe": model.moe.model_copy(update={"top_k": 0})})
        experts = whole - model_flops_per_token(idle, context, objective)
    return attention, experts, whole - attention - experts
