"""What a GPU holds where it holds most: at the end of the forward pass, or while it updates.

Notable: states are exact, and so are gathered weights; activations are `train.cost`'s estimate of eager torch, less what
compiled code does not keep: float32 copies of what gates multiply, which are computed again, the output before a gate that is
recovered from the one after it (`flash-lean`), the experts' outputs in float32, and, where steps are not captured, as on meshes,
SiLU of a SwiGLU's gate, computed again (compiled blocks keep three tensors of the FFN's width, counted on CPUs; captured steps
held no less than four, `measured`). There routers, which are not compiled, keep what they read in float32, and where experts are
shared out the busier rank has more rows (benchmarks/results/expert_parts_h200_2026-11.json). Where tensor ranks exchange within
compiled blocks, what a block keeps is what it read and the sums that it received, two or three tensors of the model's width, and
all else is computed again in the backward pass (torch 2.11 on H200s, by a record of every allocation; on CPUs torch 2.13 keeps
the rest too, and plans of such meshes are too low by it). Left out: the allocator's waste, workspaces, NCCL's buffers and the
driver's share.
"""

from dataclasses import dataclass
from functools import lru_cache

from ...config.gate import SITES, GateSpec
from ...config.gate_axes import resolve_share
from ...config.model import ModelConfig
from ...config.objective import Objective
from ...config.run import default_objective
from ..cost import training_bytes
from .devices import UNEVEN
from .mesh import Mesh, numel, of_rank, parts

# Bytes of logits that are there at a time (`gatelab.ops.linear_cross_entropy`).
LOGITS = 512 * 2**20
# Tensors of an expert's channels that eager torch keeps of a row, as `train.cost` counts them.
CHANNELS = {"swiglu": 4, "clamped_swiglu": 7}


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU at its peak: float32 `weights`, AdamW's two `moments` and `gradients`; `gathered` weights in bfloat16 and
    a block's gradient before it is divided; `activations`; and the head's logits, gradients and hidden states, `loss`."""

    weights: int
    moments: int
    gradients: int
    gathered: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        return self.weights + self.moments + self.gradients + self.gathered + self.activations + self.loss


def memory(
    model: ModelConfig, mesh: Mesh, context: int, micro_batch: int, n_parts: int, *,
    recompute: bool = False, objective: Objective | None = None,
) -> Memory:  # fmt: skip
    """Of a step of `n_parts` micro-batches of `micro_batch` sequences each, of a resolved model."""
    n = states(model, mesh)
    kept, recomputed = activations(of_rank(model, mesh.tp), context, objective, is_captured=mesh.gpus == 1)
    if mesh.tp > 1 and model.moe is None:
        kept = recomputed + _received(model, context, objective)
    if mesh.ep > 1:
        # Of all layers, and where each is computed again of one.
        rank = of_rank(model, mesh.tp)
        more, n_layers = _more_rows(rank, context, objective), sum(map(model.depth, model.architecture.stacks))
        kept, recomputed = kept + more, recomputed + more // n_layers
    held = 4 * n if n_parts > 1 or mesh.is_sharded else 0
    forward = Memory(
        weights=4 * n,
        moments=8 * n,
        gradients=held,
        gathered=_gathered(model, mesh),
        activations=micro_batch * (recomputed if recompute else kept),
        loss=_loss(model, micro_batch * lengths(model, context, objective)[-1], mesh.tp),
    )
    # Undivided gradients are copied side by side, for one update and one exchange of all.
    update = Memory(4 * n, 8 * n, 4 * n * (1 if mesh.is_sharded else 2), 0, 0, 0)
    return max(forward, update, key=lambda m: m.total)


@lru_cache(maxsize=256)
def states(model: ModelConfig, mesh: Mesh) -> int:
    """Weights that a GPU keeps."""
    return sum(numel(p.kept) for p in parts(model, mesh))


def lengths(model: ModelConfig, context: int, objective: Objective | None) -> tuple[int, ...]:
    """Tokens of a sequence that each of the model's stacks reads, without registers."""
    found = (objective or default_objective(model)).lengths(context)
    return tuple(n for n in found if n is not None)


@lru_cache(maxsize=256)
def activations(model: ModelConfig, context: int, objective: Objective | None, *, is_captured: bool) -> tuple[int, int]:
    """Bytes that compiled blocks keep of one sequence: as they are, and where each is computed again."""
    plain = model.model_copy(update={"gate": (), "cross_gate": None, "encoder_gate": None})
    bare = training_bytes(plain, 1, context, objective=objective)
    more, largest = 0, 0
    read = lengths(model, context, objective)
    for stack, n in zip(model.architecture.stacks, read, strict=True):
        blocks = []
        for layer in range(model.depth(stack)):
            gates = [(g, n) for g in model.gates(stack, layer)]
            if stack.has_cross:
                crossing = model.gates(stack, layer, is_cross=True)
                gates += [(g, n if SITES[g.site].side == "query" else read[0]) for g in crossing]
            block = sum((length + model.registers) * _gate_bytes(model, g) for g, length in gates)
            if model.moe is not None:
                block -= (n + model.registers) * 2 * model.moe.top_k * model.d_model
                if not is_captured:
                    block += (n + model.registers) * (4 * model.d_model - 2 * _recomputed_silu(model))
            elif model.mlp == "swiglu" and not is_captured:
                block -= (n + model.registers) * 2 * model.d_ff
            blocks.append(block)
        more, largest = more + sum(blocks), max(largest, max(blocks), key=abs)
    return bare.activations + more, bare.recomputed + largest


def _recomputed_silu(model: ModelConfig) -> int:
    """Numbers of a token's pairs that compiled code computes again."""
    moe = model.moe
    return moe.top_k * moe.d_expert if moe.activation.kind == "swiglu" else 0


def _more_rows(model: ModelConfig, context: int, objective: Objective | None) -> int:
    """Bytes of one sequence's rows, as experts read them and of their channels, that the busier rank keeps beyond an even share."""
    moe, read = model.moe, lengths(model, context, objective)
    vectors = sum(model.depth(s) * (n + model.registers) for s, n in zip(model.architecture.stacks, read, strict=True))
    a_token = moe.top_k * (model.d_model + CHANNELS[moe.activation.kind] * moe.d_expert) - _recomputed_silu(model)
    return int((UNEVEN - 1) * 2 * vectors * a_token)


def _received(model: ModelConfig, context: int, objective: Objective | None) -> int:
    """Bytes of one sequence's sums over tensor ranks that stay within blocks; the last of a block is what the next reads."""
    read = lengths(model, context, objective)
    stacks = zip(model.architecture.stacks, read, strict=True)
    within = sum((2 if s.has_cross else 1) * model.depth(s) * (n + model.registers) for s, n in stacks)
    return 2 * within * model.d_model


def _gate_bytes(c: ModelConfig, spec: GateSpec) -> int:
    """Of one token: its logits, and what it gates once more where that is not recovered from what comes out."""
    site, s = SITES[spec.site], spec.shape(c.d_model, c.n_heads, c.n_kv_heads, c.head_dim)
    is_recovered = (spec.site, spec.form, spec.activation) == ("sdpa", "mul", "sigmoid") and c.softmax.is_softmax
    gated = 0 if is_recovered else s.heads * {"K": c.head_dim, "D": c.d_model}[site.width]
    inner = spec.mlp if spec.rank is None else spec.rank
    hidden = 0 if inner is None else resolve_share(inner, s.d_in)
    return 2 * (gated + hidden + (s.heads * s.width if spec.source != "static" else 0))


def _gathered(model: ModelConfig, mesh: Mesh) -> int:
    """All weights in bfloat16 where they stay. Where states are shared out, the gathered ones of two blocks, or of all, and what
    is no block's; the head in bfloat16; and a block's gradient in bfloat16 and float32."""
    own = parts(model, mesh)
    if not mesh.is_sharded:
        # Rows of tables are looked up in float32.
        tables = ("embedding.weight", "registers_RD", "table.weight")
        if model.tied_embeddings:
            tables = tables[1:]
        return 2 * sum(numel(p.local) for p in own if not p.name.endswith(tables))
    units: dict[str, int] = {}
    for p in own:
        units[p.unit] = units.get(p.unit, 0) + p.n_bytes * p.n_gathered
    gradients: dict[str, int] = {}
    for p in own:
        gradients[p.unit] = gradients.get(p.unit, 0) + 6 * p.n_gathered
    two = 2 * max(n for name, n in units.items() if name)
    blocks = sum(n for name, n in units.items() if name) if mesh.shard == "zero2" else two
    head = 2 * model.vocab_size * model.d_model
    return units.get("", 0) + blocks + head + max(n for name, n in gradients.items() if name)


def _loss(model: ModelConfig, tokens: int, tp: int) -> int:
    """Tensor ranks take some tokens each; the head's gradient is summed over them from a copy."""
    head = model.vocab_size * model.d_model
    return min(LOGITS, 2 * tokens // tp * model.vocab_size) + (4 if tp == 1 else 8) * head + 2 * tokens * model.d_model
