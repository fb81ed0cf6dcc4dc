"""Next-token loss by position: what a longer context is worth, octave by octave, with intervals over documents."""

from collections.abc import Sequence
from math import log

import numpy as np
import torch
from torch import nn

from ..ops.attention_stats import octave
from ..record import Row
from .changes import interval, ratio_interval
from .intervene import _as_evaluated
from .next_token import NextToken, next_token


@torch.no_grad()
def token_losses(model: nn.Module | NextToken, documents: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The loss in nats of each document's tokens but the first, [T − 1] in float64; every document is run alone, whole.

    Raises:
        ValueError: no documents, one of fewer than two tokens, too long or of unknown ids.
    """
    language = next_token(model)
    language.check_documents(documents)
    with _as_evaluated(language.model):
        return [_losses(language, list(ids)) for ids in documents]


def _losses(language: NextToken, ids: list[int]) -> np.ndarray:
    return language.losses(language.states(ids), list(range(len(ids) - 1)), ids[1:])[0].numpy()


def position_rows(
    losses: Sequence[np.ndarray], run: str = "", step: int = 0, *, n_bytes: Sequence[int] | None = None
) -> list[Row]:
    """Rows of source `position` of what `token_losses` gave; docs/metrics.md defines them.

    Args:
        n_bytes: of each document, the bytes of text that its tokens but the first say, so that models with other tokenizers can
            be compared.

    Raises:
        ValueError: no documents, or bytes of another number of them.
    """
    if not len(losses):
        raise ValueError("no documents; give the losses of one at least")
    by_bin: dict[int, list[float]] = {}
    for loss_T in losses:
        bin_T = octave(torch.arange(len(loss_T))).numpy()
        for n in np.unique(bin_T).tolist():
            by_bin.setdefault(n, []).append(float(loss_T[bin_T == n].mean()))
    rows = [] if n_bytes is None else _by_byte(losses, n_bytes, run, step)
    for n, means in sorted(by_bin.items()):
        low, high = interval(means)
        for metric, value in (
            ("position_loss", np.mean(means)),
            ("position_loss_low", low),
            ("position_loss_high", high),
        ):
            rows.append(Row(run, step, "position", metric, float(value), "nats", bin=n))
    return rows


def _by_byte(losses: Sequence[np.ndarray], n_bytes: Sequence[int], run: str, step: int) -> list[Row]:
    if len(n_bytes) != len(losses) or min(n_bytes) < 1:
        raise ValueError(f"n_bytes={list(n_bytes)}: expected a number from 1 of each of {len(losses)} documents")
    bits = [float(loss_T.sum()) / log(2) for loss_T in losses]
    low, high = ratio_interval(bits, n_bytes)
    of = {"bits_per_byte": sum(bits) / sum(n_bytes), "bits_per_byte_low": low, "bits_per_byte_high": high}
    return [Row(run, step, "position", metric, value, "bits/byte") for metric, value in of.items()]
