"""What a GPU sends in a step, by kind, and how long that takes at the links' stated rates.

Notable: bytes are those that leave a GPU in a ring, (n − 1)/n of a tensor to gather or to reduce it, twice that for both. A block's
weights travel in bfloat16, embeddings, head and gradients in float32; where rows are fewer than GPUs, filled up. Latency is left
out, so that small pieces among many GPUs take longer, and so are the gradients of what tp leaves whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ...config.model import ModelConfig
from ...config.objective import Objective
from .devices import Device
from .memory import lengths
from .mesh import Mesh, parts

Kind = Literal["all-gather", "reduce-scatter", "all-reduce", "all-to-all"]
KINDS: tuple[Kind, ...] = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all")


@dataclass(frozen=True)
class Transfer:
    """`n_bytes` sent by a GPU in a step, among `size` GPUs that are `stride` apart. `hides`: under the blocks' work."""

    kind: Kind
    what: str
    size: int
    stride: int
    n_bytes: float
    hides: bool

    def seconds(self, device: Device) -> float:
        """On the slowest link that it takes."""
        near = max(1, min(self.size, device.node // self.stride))
        if self.size * self.stride <= device.node:
            return self.n_bytes / device.link
        if self.kind == "all-to-all":
            far = (self.size - near) / (self.size - 1)
            return max(self.n_bytes * far / device.network, self.n_bytes * (1 - far) / device.link)
        # Rings through a machine leave it once for each of its GPUs, on that one's card.
        return self.n_bytes / min(device.link, near * device.network)


def transfers(
    model: ModelConfig, mesh: Mesh, context: int, sequences: int, n_parts: int, *,
    recompute: bool = False, objective: Objective | None = None,
) -> tuple[Transfer, ...]:  # fmt: skip
    """Of a step of `sequences` a group in `n_parts` micro-batches, of a resolved model; those of no byte are left out."""
    found = (
        *_of_states(model, mesh, n_parts),
        *_of_tokens(model, mesh, context, sequences, n_parts, recompute=recompute, objective=objective),
    )
    return tuple(t for t in found if t.n_bytes)


def counts_first(model: ModelConfig, n_parts: int) -> bool:
    """Whether each micro-batch is run forward once more, to count the experts' choices of the whole batch."""
    return model.moe is not None and n_parts > 1


def _of_states(model: ModelConfig, mesh: Mesh, n_parts: int) -> Iterator[Transfer]:
    forwards = 2 if counts_first(model, n_parts) else 1
    for is_expert, what in ((False, "weights"), (True, "experts' weights")):
        own = [p for p in parts(model, mesh) if p.is_expert == is_expert]
        n, copies = mesh.sharing(is_expert=is_expert), mesh.copies(is_expert=is_expert)
        stride = mesh.tp * (mesh.ep if is_expert else 1)
        # A block's are gathered for each pass, but for a backward pass after which they stayed.
        again = {True: forwards + (mesh.shard == "zero3"), False: forwards}
        gathers = sum(again[bool(p.unit)] * p.n_bytes * p.n_gathered for p in own)
        ring = n_parts * (n - 1) / n
        yield Transfer("all-gather", what, n, stride, ring * gathers, hides=True)
        summed = sum(4 * p.n_gathered for p in own)
        yield Transfer("reduce-scatter", f"gradients of {what}", n, stride, ring * summed, hides=True)
        # Gradients that are not shared out are exchanged as one, when all are there.
        yield Transfer(
            "all-reduce", f"gradients of {what}", copies, stride, 2 * (copies - 1) / copies * summed, hides=False
        )


def _of_tokens(
    model: ModelConfig, mesh: Mesh, context: int, sequences: int, n_parts: int, *,
    recompute: bool, objective: Objective | None,
) -> Iterator[Transfer]:  # fmt: skip
    passes = 2 + recompute + counts_first(model, n_parts)
    sums, sent = 0, 0
    for stack, n in zip(model.architecture.stacks, lengths(model, context, objective), strict=True):
        vectors = sequences * (n + model.registers) * model.depth(stack)
        sums += passes * vectors * (3 if stack.has_cross else 2)
        sent += 0 if model.moe is None else 2 * passes * vectors * model.moe.top_k
    summed, moved = (
        2 * (mesh.tp - 1) / mesh.tp * sums * 2 * model.d_model,
        (mesh.ep - 1) / mesh.ep * sent * 2 * model.d_model,
    )
    yield Transfer("all-reduce", "parts of layers", mesh.tp, 1, summed, hides=False)
    spoken = sequences * lengths(model, context, objective)[-1]
    of_head = 2 * spoken * model.d_model + 4 * n_parts * model.vocab_size * model.d_model
    yield Transfer(
        "all-reduce", "gradients at the head", mesh.tp, 1, 2 * (mesh.tp - 1) / mesh.tp * of_head, hides=False
    )
    yield Transfer("all-to-all", "tokens to experts and back", mesh.ep, mesh.tp, moved, hides=False)
