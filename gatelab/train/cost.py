"""What training costs, from configurations alone: operations, bytes of states, an estimate of activations. Free of torch.

Notable: operations are per token of the source, `train.seq_len` of them a sequence. An objective may cut these in two:
an encoder reads some and a decoder says others, and each weight counts for the tokens that it meets. What tests hold
operations against is the work of a model's own products; activations are an estimate, as `training_bytes` says.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from ..config.architecture import Stack
from ..config.gate import SITES, GateSpec
from ..config.gate_axes import resolve_share
from ..config.model import ModelConfig
from ..config.objective import Objective
from ..config.run import Run, default_objective
from ..models.sizes import count_parameters, parameter_shapes


def flops_per_token(run: Run) -> float:
    """Training operations a source token of a resolved run; see `model_flops_per_token`."""
    return model_flops_per_token(run.model, run.train.seq_len, run.resolved_objective)


def model_flops_per_token(model: ModelConfig, seq_len: int, objective: Objective | None = None) -> float:
    """Training operations a source token: 6 a weight and a token that it multiplies (tables of tokens and positions
    multiply none; of experts, those that are chosen), and attention's 2 products, 12 H K a pair of a query and a key that
    it sees, forward and backward.

    A causal query sees half of the context on average, one that looks both ways all of it, one with a window at most that
    window's keys, and cross-attention what the encoder read, whose keys and values each layer makes once.

    Args:
        model: resolved.
        seq_len: tokens of a source sequence.
        objective: how they are cut; None is the first of the model's architecture.
    """
    lengths = _lengths(model, seq_len, objective)
    work = sum(6 * n * (_length_met(name, lengths, model) / seq_len) for name, n in _multiplying(model))
    return work + attention_flops_per_token(model, seq_len, objective)


def attention_flops_per_token(model: ModelConfig, seq_len: int, objective: Objective | None = None) -> float:
    """Of `model_flops_per_token` what attention's two products are."""
    lengths = _lengths(model, seq_len, objective)
    pairs = sum(_pairs(model, stack, lengths) for stack in model.architecture.stacks)
    return 12 * model.n_heads * model.head_dim * (pairs / seq_len)


def run_flops(run: Run) -> float:
    """Training operations of the whole run."""
    return flops_per_token(run) * run.train.steps * run.train.tokens_per_step


def state_bytes(run: Run) -> int:
    """Bytes of float32 weights, gradients and the two moments of AdamW."""
    return 16 * count_parameters(run.model)


@dataclass(frozen=True)
class TrainingBytes:
    """Bytes of one process that trains. `weights`, `gradients` and `moments` (AdamW's two) are exact; the rest estimates.

    `casts` are the weights in the compute type, kept from the forward to the backward pass; `activations` what the blocks
    keep between the two, `recomputed` what they keep when each block is computed a second time in the backward pass;
    `logits` the float32 log-probabilities and their gradient.
    """

    weights: int
    gradients: int
    moments: int
    casts: int
    activations: int
    recomputed: int
    logits: int

    @property
    def states(self) -> int:
        """What stays from step to step."""
        return self.weights + self.gradients + self.moments

    def total(self, *, recompute: bool = False) -> int:
        """All of it, with the blocks' activations kept or computed again."""
        return self.states + self.casts + (self.recomputed if recompute else self.activations) + self.logits


def training_bytes(
    model: ModelConfig,
    batch_size: int,
    seq_len: int,
    *,
    precision: Literal["float32", "bfloat16"] = "bfloat16",
    objective: Objective | None = None,
) -> TrainingBytes:
    """What a training step of a resolved model keeps, for one micro-batch of `batch_size` sequences.

    An estimate of what eager torch with fused attention and norms saves for the backward pass, by adding up tensors as
    arXiv 2205.05198 does. A token of a block keeps, in elements of the compute type (4 or 2 bytes):

        norms            2 D each: the input, and the result that the projections read
        attention        (2 H + 2 G) K: q, k, v, y; (H + G) K more with q/k-norm; 4 H bytes of log-sum-exp
        gate             what it gates, once more; its scores in float32; in bfloat16 what it gates in float32
        swiglu/gelu/relu 4 F / 2 F / F
        experts          top_k (D + 4 F), top_k D and twice the experts in float32; shared ones as swiglu
        whole matrices   8 H S bytes where the normaliser is no softmax, 4 H S where positions are a learned bias

    With recomputation a block keeps its input, D, and one block at a time has all of this. Left out: workspaces, the
    allocator's waste, slots, output maps, experts of keys and values, document masks, and what a compiler saves or spends.
    On CPUs torch's RMSNorm keeps D more in float32, and softpick seven matrices in the place of two.

    Raises:
        ValueError: for a precision that is not of the list, or a batch or a length below 1.
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(
            f"precision={precision!r}: expected 'float32' or 'bfloat16'; 'auto' is one of them on a device"
        )
    if batch_size < 1 or seq_len < 1:
        raise ValueError(f"batch_size={batch_size}, seq_len={seq_len}: give at least one sequence of one token")
    lengths = _lengths(model, seq_len, objective)
    element = 4 if precision == "float32" else 2
    n = count_parameters(model)
    kept = recomputed = largest = 0
    for stack in model.architecture.stacks:
        tokens = lengths[stack.blocks]
        blocks = [_block_bytes(model, stack, layer, lengths, element) for layer in range(model.depth(stack))]
        # The last hidden state, and what the head reads: its norm, or itself after a post-norm.
        ends = (1 if model.norm_position == "post" else 2) * tokens * model.d_model * element
        kept += sum(blocks) + ends
        recomputed += model.depth(stack) * tokens * model.d_model * element + ends
        largest = max(largest, *blocks)
    spoken = lengths[model.architecture.stacks[-1].blocks] - model.registers
    return TrainingBytes(
        weights=4 * n,
        gradients=4 * n,
        moments=8 * n,
        casts=0
        if element == 4
        else 2 * sum(prod(s) for name, s in parameter_shapes(model).items() if _is_cast(name, model)),
        activations=batch_size * kept,
        recomputed=batch_size * (recomputed + largest),
        logits=batch_size * spoken * model.vocab_size * 8,
    )


def _lengths(model: ModelConfig, seq_len: int, objective: Objective | None) -> dict[str, int]:
    """Tokens that each stack reads, registers included, by the name of its blocks."""
    stacks = model.architecture.stacks
    lengths = (objective or default_objective(model)).lengths(seq_len)
    return {s.blocks: n + model.registers for s, n in zip(stacks, lengths, strict=False)}


def _multiplying(model: ModelConfig) -> Iterator[tuple[str, int]]:
    """Name and number of the weights of each parameter that a token multiplies."""
    for name, shape in parameter_shapes(model).items():
        if name.endswith(("embedding.weight", "registers_RD", "relative.table.weight")):
            continue
        n = prod(shape)
        if model.moe is not None and ".mlp.w" in name:
            n = n * model.moe.top_k // model.moe.n_experts
        yield name, n
    if model.tied_embeddings:
        yield "head.weight", model.vocab_size * model.d_model


def _is_cast(name: str, model: ModelConfig) -> bool:
    # Rows of tables are looked up in float32; a tied table is the head's weight too, which is cast.
    return not name.endswith(("embedding.weight", "registers_RD", "table.weight")) or (
        name == "embedding.weight" and model.tied_embeddings
    )


def _length_met(name: str, lengths: dict[str, int], model: ModelConfig) -> int:
    """How many tokens of a sequence a parameter meets."""
    first, last = model.architecture.stacks[0], model.architecture.stacks[-1]
    if name == "head.weight":
        return lengths[last.blocks] - model.registers
    _, crosses, part = name.partition(".cross_attention.")
    word, _, rest = part.partition(".")
    is_key_gate = word == "gates" and SITES[rest.partition(".")[0]].side == "key"
    if crosses and (word in ("k_proj", "v_proj", "k_norm") or is_key_gate):
        return lengths[first.blocks] - model.registers
    prefix = first.blocks.removesuffix("blocks")
    return lengths[first.blocks if prefix and name.startswith(prefix) else last.blocks]


def _pairs(model: ModelConfig, stack: Stack, lengths: dict[str, int]) -> float:
    """Pairs of a query and a key that it sees, of all attention layers of a stack."""
    n, depth = lengths[stack.blocks], model.depth(stack)
    window = n if model.window is None else min(n, model.window)
    n_global = sum(model.is_global(layer) for layer in range(depth))
    # A causal query has itself and window − 1 keys behind it; one that looks both ways as many before it as well.
    behind = [n * n / 2] * n_global + [n * window - window**2 / 2] * (depth - n_global)
    pairs = sum(behind) * (1 if stack.is_causal else 2)
    if not stack.has_cross:
        return pairs
    read = lengths[model.architecture.stacks[0].blocks] - model.registers
    return pairs + depth * n * read


def _block_bytes(c: ModelConfig, stack: Stack, layer: int, lengths: dict[str, int], element: int) -> int:
    """What one block keeps of one sequence."""
    n = lengths[stack.blocks]
    is_whole = not c.softmax.is_softmax
    kept = _norm_bytes(c, n, element) + _attention_bytes(c, c.gates(stack, layer), n, n, element)
    kept += c.n_heads * n * n * (8 if is_whole else 4 if c.positions == "relative" else 0)
    if stack.has_cross:
        read = lengths[c.architecture.stacks[0].blocks] - c.registers
        gates = c.gates(stack, layer, is_cross=True)
        kept += _norm_bytes(c, n, element) + _attention_bytes(c, gates, n, read, element)
        kept += 8 * c.n_heads * n * read if is_whole else 0
    return kept + _norm_bytes(c, n, element) + n * _ffn_bytes(c, element)


def _norm_bytes(c: ModelConfig, n: int, element: int) -> int:
    each = 2 * c.d_model + (2 * c.d_model + 2 * c.norm_rank if c.norm == "gated-rms" else 0)
    # A second norm, after the layer, keeps the layer's result; its own goes into the sum.
    return n * element * (each + (each - c.d_model if c.norm_position == "sandwich" else 0))


def _attention_bytes(c: ModelConfig, gates: tuple[GateSpec, ...], n: int, n_keys: int, element: int) -> int:
    queries, keys = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    kept = (2 * n * queries + 2 * n_keys * keys) * element + 4 * n * c.n_heads
    if c.qk_norm != "none":
        kept += (n * queries + n_keys * keys) * element
    for spec in gates:
        kept += (n if SITES[spec.site].side == "query" else n_keys) * _gate_bytes(c, spec, element)
    return kept


def _gate_bytes(c: ModelConfig, spec: GateSpec, element: int) -> int:
    site, s = SITES[spec.site], spec.shape(c.d_model, c.n_heads, c.n_kv_heads, c.head_dim)
    gated = s.heads * {"K": c.head_dim, "D": c.d_model}[site.width]
    inner = spec.mlp if spec.rank is None else spec.rank
    hidden = 0 if inner is None else resolve_share(inner, s.d_in)
    scores = s.heads * s.width if spec.source != "static" else 0
    return gated * element + 4 * scores + (4 * gated if element == 2 else 0) + hidden * element


def _ffn_bytes(c: ModelConfig, element: int) -> int:
    """What the feed-forward layer keeps of one token."""
    if c.moe is None:
        return {"swiglu": 4, "gelu": 2, "relu": 1}[c.mlp] * c.d_ff * element
    m = c.moe
    channels = {"swiglu": 4, "clamped_swiglu": 7}[m.activation.kind]
    ones = 3 * 16 if m.bias else 0  # a row that each product with a bias takes (`gatelab.ops.expert_ffn.grouped`)
    pairs = m.top_k * ((c.d_model + channels * m.d_expert) * element + ones + 4 * c.d_model)
    return pairs + 8 * m.n_experts + 4 * m.n_shared * m.d_expert * element
