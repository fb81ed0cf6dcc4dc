"""Gradient norms by layer after a backward pass, and the gates' share of them.

    loss.backward()
    rows += gradient_rows(model, step=step)

Notable: a parameter without a gradient (frozen, or not used) is left out, and so is a layer that has none; it has no norm of
zero. The share of a gate is the project's own measure: one that falls towards zero tells a gate that stopped learning.
docs/metrics.md has the formulas.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...nn.attention import GatedAttention
from ...record import Row
from ..blocks import Block, blocks
from ..external.gates import FAMILIES

# What a part of a block is called on the way to a parameter; norms that stand before or after it belong to neither.
_ATTENTION = re.compile(r"att(n|ention)", re.IGNORECASE)
_MLP = re.compile(r"mlp|ffn|feed_?forward|^fc|moe|expert|router|dense_|^intermediate$|^output$|^wi|^wo$", re.IGNORECASE)
_NORM = re.compile(r"norm|^ln", re.IGNORECASE)

# (stack, layer, site) of a gate -> its gradients.
Place = tuple[str | None, int, str]


def gradient_rows(model: nn.Module, run: str = "", step: int = 0) -> list[Row]:
    """Rows of `layer_grad_norm`, of every block and of its attention and its MLP (coordinate `stage`), and of
    `gate_grad_share`, of every gate in its layer and of every gate site in the model.

    Call it between `loss.backward()` and `zero_grad()`; gradients are taken as they stand, so before clipping, and
    unscaled.

    Args:
        model: whose blocks `blocks` finds: Gatelab's, of transformers, or somebody's own around GatedAttention; wrapped by
            DistributedDataParallel, PEFT or torch.compile too.

    Raises:
        ValueError: no blocks; no gradients; gradients that are sharded over processes.
    """
    own = blocks(model)
    if not own:
        raise ValueError(
            f"{type(model).__name__} has no blocks that are known: of Gatelab, transformers or GatedAttention"
        )
    parameters = [p for p in model.parameters() if p.grad is not None]
    if not parameters:
        raise ValueError("no parameter has a gradient; call this after loss.backward() and before zero_grad()")
    if any(isinstance(p.grad, DTensor) for p in parameters):
        raise ValueError(
            "the gradients are sharded over processes (FSDP, tensor parallelism); one process has no norm of them"
        )
    square = dict(zip(map(id, parameters), _squares([p.grad for p in parameters]), strict=True))

    def norm(some: Iterable[nn.Parameter]) -> float | None:
        found = [square[id(p)] for p in some if id(p) in square]
        return math.sqrt(sum(found)) if found else None

    rows = []
    for block in own:
        for stage, some in _parts(block.module).items():
            if (value := norm(some)) is not None:
                at = {"layer": block.layer, "stack": block.stack, "stage": stage}
                rows.append(Row(run, step, "gradients", "layer_grad_norm", value, "1", **at))
    layers = {(row.stack, row.layer): row.value for row in rows if row.stage is None}
    return rows + _shares(own, layers, math.sqrt(sum(square.values())), run, step)


@dataclass(frozen=True)
class _Gate:
    """Gradients of one gate; `block_stack` is its block's, which a gate of cross-attention does not have itself."""

    block_stack: str | None
    stack: str | None
    layer: int
    site: str
    gradients: list[Tensor]


def _shares(
    own: list[Block], layers: dict[tuple[str | None, int], float], total: float, run: str, step: int
) -> list[Row]:
    gates = [gate for block in own for gate in _gates(block) if gate.gradients]
    each = iter(_squares([g for gate in gates for g in gate.gradients]))
    rows, sites = [], defaultdict(float)
    for gate in gates:
        square = sum(next(each) for _ in gate.gradients)
        sites[gate.stack, gate.site] += square
        of_layer = layers[gate.block_stack, gate.layer]
        if of_layer:
            at = {"layer": gate.layer, "stack": gate.stack, "site": gate.site}
            rows.append(Row(run, step, "gradients", "gate_grad_share", math.sqrt(square) / of_layer, "share", **at))
    for (stack, site), square in sites.items() if total else ():
        at = {"stack": stack, "site": site}
        rows.append(Row(run, step, "gradients", "gate_grad_share", math.sqrt(square) / total, "share", **at))
    return rows


def _gates(block: Block) -> list[_Gate]:
    """The block's gates: of GatedAttention by site, and in known families of transformers that on the output."""
    found = []
    for name, module in block.module.named_modules():
        if isinstance(module, GatedAttention):
            stack = "cross" if "cross" in name.rpartition(".")[2] else block.stack
            for site, gate in module.gates.items():
                gradients = [p.grad for p in gate.parameters() if p.grad is not None]
                found.append(_Gate(block.stack, stack, block.layer, site, gradients))
        elif type(module).__name__ in FAMILIES:
            found.append(_Gate(block.stack, block.stack, block.layer, "sdpa", _of_family(module)))
    return found


def _of_family(attention: nn.Module) -> list[Tensor]:
    """Gradients of a known family's gate: of a projection, or of those of its rows that make the logits."""
    family = FAMILIES[type(attention).__name__]
    projection = getattr(attention, family.projection)
    parameters = [p for p in projection.parameters() if p.grad is not None]
    if not parameters:
        return []
    N, K = projection.out_features, attention.head_dim
    H = attention.o_proj.in_features // K
    # What it reads of the numbers of the rows.
    rows_N = family.read(torch.arange(N)[None, None], H, K).flatten()
    if len(rows_N) == N:
        return [p.grad for p in parameters]
    # An adapter's factors are no rows of the projection.
    return [
        p.grad[rows_N.to(p.grad.device)] for p in parameters if p.shape[0] == N and isinstance(projection, nn.Linear)
    ]


def _parts(block: nn.Module) -> dict[str | None, list[nn.Parameter]]:
    """A block's parameters, and those of its attention and its MLP, by the names on the way to them."""
    parts: dict[str | None, list[nn.Parameter]] = {None: list(block.parameters()), "attention": [], "mlp": []}
    gated = {id(p) for m in block.modules() if isinstance(m, GatedAttention) for p in m.parameters()}
    for name, parameter in block.named_parameters():
        path = [part for part in name.split(".")[:-1] if not _NORM.search(part)]
        if id(parameter) in gated or any(map(_ATTENTION.search, path)):
            parts["attention"].append(parameter)
        elif any(map(_MLP.search, path)):
            parts["mlp"].append(parameter)
    return parts


def _squares(gradients: list[Tensor]) -> list[float]:
    """The square of each gradient's 2-norm; one wait for the device."""
    if not gradients:
        return []
    dense = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    norms = [torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in dense]
    return torch.stack([n.to(norms[0].device) for n in norms]).cpu().double().square().tolist()
