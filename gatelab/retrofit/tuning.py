"""Training a model on from where it stands, gated or not: two sets of learning rates, distillation, a penalty.

Notable: a generator, as `gatelab.train.loop` is; the order of the sequences depends on the seed and nothing else, so a gated
model and its ungated control read the same tokens in the same order.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config.retrofit import Retrofit
from ..data import IGNORED
from ..models.model import Model
from ..nn.gate import Gate
from ..ops.linear_cross_entropy import linear_cross_entropy
from ..train.optim import build_optimizer
from ..train.schedule import learning_rate

# float32 logits of the model and of its teacher that are held at once.
_LOGITS = 2**28


@dataclass(frozen=True)
class Tuned:
    """One optimiser step, counted from 1: the loss that was minimised, its cross-entropy and divergence in nats a token (None
    where its share is 0), the mean square of the residual stream (None without a penalty), and the norm of all gradients
    before clipping. Tensors on the device, so that nothing waits for it."""

    step: int
    loss: Tensor
    cross_entropy: Tensor | None
    divergence: Tensor | None
    residual_square: Tensor | None
    grad_norm: Tensor


def tune(model: Model, ids_NT: Tensor, config: Retrofit, *, teacher: Model | None = None) -> Iterator[Tuned]:
    """Train on the sequences, [N, T + 1] ids, `train.steps` steps; with fewer sequences than those read, again in another
    order.

    Args:
        teacher: whose distribution `config.distil` asks for.

    Raises:
        ValueError: no sequences, or distillation without a teacher.
    """
    steps, batch = config.train.steps, config.train.batch_size
    if steps and not len(ids_NT):
        raise ValueError("no text to train on; give one, or train.tokens=0")
    if config.distil and teacher is None:
        raise ValueError(f"distil={config.distil:g} needs the ungated model as its teacher")
    device = model.head.weight.device
    ids_NT = ids_NT.to(device)
    order_N = _order(len(ids_NT), steps * batch, config.seed)
    optimizer = optimizer_of(model, config)
    model.train()
    try:
        for step in range(steps):
            rates = [learning_rate(optim, step, steps) for optim in (config.optim, config.gate_optim)]
            for group in optimizer.param_groups:
                group["lr"] = rates[group["is_gate"]]
            optimizer.zero_grad(set_to_none=True)
            rows_BT = ids_NT[order_N[step * batch : (step + 1) * batch].to(device)]
            loss, parts = _loss(model, rows_BT, config, teacher)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip or math.inf)
            optimizer.step()
            yield Tuned(step + 1, loss.detach(), *parts, norm)
    finally:
        model.eval()


def gate_parameters(model: Model) -> dict[str, nn.Parameter]:
    """The parameters of all gates, by name."""
    gates = [name for name, module in model.named_modules() if isinstance(module, Gate)]
    return {n: p for n, p in model.named_parameters() if any(n.startswith(f"{gate}.") for gate in gates)}


def optimizer_of(model: Model, config: Retrofit) -> torch.optim.AdamW:
    """AdamW with the gates' parameters in groups of their own (`is_gate`), by the configuration that is theirs."""
    gates = {id(p) for p in gate_parameters(model).values()}
    made = {True: build_optimizer(model, config.gate_optim), False: build_optimizer(model, config.optim)}
    groups = [
        group | {"params": [p for p in group["params"] if (id(p) in gates) is is_gate], "is_gate": is_gate}
        for is_gate, optimizer in made.items()
        for group in optimizer.param_groups
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], fused=True)


def _order(n: int, n_wanted: int, seed: int) -> Tensor:
    """Indices of the sequences in the order in which they are read."""
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(n, generator=generator) for _ in range(-(-n_wanted // n))] if n_wanted else []
    return torch.cat(rounds)[:n_wanted] if rounds else torch.empty(0, dtype=torch.int64)


def _loss(
    model: Model, rows_BT: Tensor, config: Retrofit, teacher: Model | None
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    inputs_BT, targets_N = rows_BT[:, :-1], rows_BT[:, 1:].flatten()
    cross_entropy = divergence = square = None
    with _residual_squares(model, is_on=config.penalty > 0) as squares:
        x_ND = model.hidden(inputs_BT).flatten(0, 1)
    loss = x_ND.new_zeros((), dtype=torch.float32)
    if config.distil < 1:
        weight_1VD = model.head.weight[None]
        cross_entropy = linear_cross_entropy(x_ND[None], weight_1VD, targets_N[None], ignored=IGNORED)[0]
        cross_entropy = cross_entropy / len(targets_N)
        loss = loss + (1 - config.distil) * cross_entropy
    if config.distil:
        with torch.no_grad():
            taught_ND = teacher.hidden(inputs_BT).flatten(0, 1)
        divergence = divergence_of(x_ND, model.head.weight, taught_ND, teacher.head.weight) / len(targets_N)
        loss = loss + config.distil * divergence
    if squares:
        square = torch.stack(squares).mean()
        loss = loss + config.penalty * square
    parts = tuple(None if part is None else part.detach() for part in (cross_entropy, divergence, square))
    return loss, parts


def divergence_of(x_ND: Tensor, weight_VD: Tensor, taught_ND: Tensor, taught_VD: Tensor) -> Tensor:
    """Σ over positions of KL(taught ‖ this) in nats, the softmax in float32; logits are made again in the backward pass, some
    positions at a time."""

    def piece(x_ND: Tensor, weight_VD: Tensor, taught_ND: Tensor) -> Tensor:
        log_p_NV = (x_ND @ weight_VD.to(x_ND.dtype).T).float().log_softmax(dim=-1)
        with torch.no_grad():
            log_taught_NV = (taught_ND @ taught_VD.to(taught_ND.dtype).T).float().log_softmax(dim=-1)
        return F.kl_div(log_p_NV, log_taught_NV, reduction="sum", log_target=True)

    at_once = max(1, _LOGITS // len(weight_VD))
    total = x_ND.new_zeros((), dtype=torch.float32)
    for x_part, taught_part in zip(x_ND.split(at_once), taught_ND.split(at_once), strict=True):
        total = total + checkpoint(piece, x_part, weight_VD, taught_part, use_reentrant=False)
    return total


@contextmanager
def _residual_squares(model: Model, *, is_on: bool) -> Iterator[list[Tensor]]:
    """The mean square of the residual stream after each block of the pass inside, in float32."""
    squares: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        squares.append(output.float().square().mean())

    handles = [block.tap_residual.register_forward_hook(keep) for block in model.blocks] if is_on else []
    try:
        yield squares
    finally:
        for handle in handles:
            handle.remove()
