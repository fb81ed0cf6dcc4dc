"""A small model in which attention, values, gates and the residual can be set by hand, by hooks on its taps."""

import math
from collections.abc import Callable

import tiny
import torch
from torch import Tensor, nn

from gatelab.config import ProbeConfig
from gatelab.models import build_model
from gatelab.models.decoder import Decoder
from gatelab.probes import capture
from gatelab.record import Row

T = 16


def model(**changes: object) -> Decoder:
    """Two layers of two heads, whose queries are zero: every head attends uniformly."""
    plain = build_model(tiny.model(**changes))
    for block in plain.blocks:
        nn.init.zeros_(block.attention.q_proj.weight)
    return plain


def set_tap(tap: nn.Module, change: Callable[[Tensor], None]) -> None:
    """Let `change` edit, in place, a copy of what passes the tap."""

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        planted = output.clone()
        change(planted)
        return planted

    tap.register_forward_hook(hook)


def plant_sink(model: Decoder, *, layer: int, head: int, mass: float = 0.9, first: tuple[int, ...] = (0,)) -> None:
    """Let one head put `mass` on the first token of its document, at every later query; documents start at `first`."""
    attention = model.blocks[layer].attention

    def keys(k_BSGK: Tensor) -> None:
        k_BSGK[:, :, head] = 0.0
        for start in first:
            k_BSGK[:, start, head, 0] = math.sqrt(k_BSGK.shape[-1])

    def queries(q_BTHK: Tensor) -> None:
        for t in range(q_BTHK.shape[1]):
            others = t - max(f for f in first if f <= t)
            # e^logit / (e^logit + others) = mass
            q_BTHK[:, t, head] = 0.0
            q_BTHK[:, t, head, 0] = math.log(others * mass / (1 - mass)) if others else 0.0

    set_tap(attention.tap_k, keys)
    set_tap(attention.tap_q, queries)


def plant_sink_at(model: Decoder, position: int, *, layer: int, head: int, mass: float = 0.9) -> None:
    """Let one head put `mass` on the token at `position` (from 1), at every query that sees it; others are uniform."""
    attention = model.blocks[layer].attention

    def keys(k_BSGK: Tensor) -> None:
        k_BSGK[:, :, head] = 0.0
        k_BSGK[:, position, head, 0] = math.sqrt(k_BSGK.shape[-1])

    def queries(q_BTHK: Tensor) -> None:
        q_BTHK[:, :, head] = 0.0
        for t in range(position, q_BTHK.shape[1]):
            q_BTHK[:, t, head, 0] = math.log(t * mass / (1 - mass))

    set_tap(attention.tap_k, keys)
    set_tap(attention.tap_q, queries)


def tokens(batch: int = 2) -> Tensor:
    return torch.randint(0, 17, (batch, T))


def looked_at(
    model: Decoder,
    probe: str,
    *,
    config: ProbeConfig | None = None,
    segment_ids_BT: Tensor | None = None,
    domains: tuple[str, ...] = (),
    domain_BT: Tensor | None = None,
    tokens_BT: Tensor | None = None,
) -> list[Row]:
    """The rows of one probe on two random sequences, or on those given, whose ids it is then told."""
    with capture(model, [probe], config=config, domains=domains) as recorder:
        recorder.domain_BT, recorder.tokens_BT = domain_BT, tokens_BT
        model(tokens() if tokens_BT is None else tokens_BT, segment_ids_BT=segment_ids_BT)
    return recorder.rows("run", 3)


def values(rows: list[Row], metric: str, **coordinates: object) -> dict[tuple[int | None, int | None], float]:
    """(layer, head) -> value of the rows of a metric with these coordinates."""
    return {
        (r.layer, r.head): r.value
        for r in rows
        if r.metric == metric and all(getattr(r, name) == value for name, value in coordinates.items())
    }
