"""LongPPL (arXiv 2410.23771): perplexity over the tokens for which a long context matters, and only those.

A token is key if a reference model is surer of it by more than `gain` nats with the whole context than with a short one, and
then gives it more than `floor` nats of log-probability. Notable: the paper lets an evaluator choose, and so do we, but once:
the key set is a file, so that every arm of a comparison is scored on the same tokens.

    keys = key_tokens(reference, documents, window=128, stride=32)
    keys.write(Path("keys.json"))
    rows = long_ppl(model, documents, KeyTokens.read(Path("keys.json"))).rows("mine", 0)
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from ..config.base import Config, ConfigError, canonical, digest, validate
from ..record import Row
from .changes import ratio_interval
from .intervene import _as_evaluated
from .next_token import NextToken, next_token
from .position_loss import token_losses

WINDOW, STRIDE = 4096, 1024  # the paper's
GAIN, FLOOR = 2.0, -2.0


class KeyDocument(Config):
    """Of one document: a digest of its ids, how many there are, the key tokens' positions, in order, and how many tokens could
    not be judged, for what the reference says of them is no number."""

    digest: str
    n_tokens: Annotated[int, Field(ge=2)]
    positions: tuple[Annotated[int, Field(ge=1)], ...]
    not_finite: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _in_order(self) -> "KeyDocument":
        if list(self.positions) != sorted(set(self.positions)) or max(self.positions, default=0) >= self.n_tokens:
            raise ValueError(
                f"positions of a document of {self.n_tokens} tokens: expected each once, in order, and below"
            )
        return self


class KeyTokens(Config):
    """A key set, and how it was chosen: by which model, with which short context and bounds."""

    format: Literal["gatelab-key-tokens-1"] = "gatelab-key-tokens-1"
    reference: str
    window: int
    stride: int
    gain: float
    floor: float
    bos_id: int | None = None
    documents: tuple[KeyDocument, ...]

    @property
    def n(self) -> int:
        """How many tokens are key."""
        return sum(len(d.positions) for d in self.documents)

    @property
    def not_finite(self) -> float:
        """The share of all tokens but each document's first that could not be judged."""
        return sum(d.not_finite for d in self.documents) / sum(d.n_tokens - 1 for d in self.documents)

    def write(self, path: Path) -> None:
        """As JSON, under a temporary name until it is whole."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(canonical(self)) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    @staticmethod
    def read(path: Path) -> "KeyTokens":
        """A key set that was written.

        Raises:
            ConfigError: no such file, or none of a key set.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError([f"{path} is no key set: {error}; write one with key_tokens(…).write"]) from None
        if not isinstance(value, dict) or value.get("format") != "gatelab-key-tokens-1":
            raise ConfigError(
                [f"{path} is no key set of the format gatelab-key-tokens-1; write one with key_tokens(…).write"]
            )
        return validate(KeyTokens, value)


@torch.no_grad()
def key_tokens(
    reference: nn.Module | NextToken,
    documents: Sequence[Sequence[int]],
    *,
    window: int = WINDOW,
    stride: int = STRIDE,
    gain: float = GAIN,
    floor: float = FLOOR,
    bos_id: int | None = None,
    name: str = "",
) -> KeyTokens:
    """Choose the key tokens of documents by a reference model.

    Args:
        window, stride: a token's short context is the last `window` tokens before it and up to stride − 1 more, since one pass
            serves `stride` tokens. The first `window` + `stride` tokens of a document are never key.
        gain: key is ln p(whole context) − ln p(short context) above it, in nats.
        floor: and ln p(whole context) above it.
        bos_id: stands before every short context too; for documents that begin with it. None, as in the paper: short contexts
            begin where they begin.
        name: what the file calls the reference.

    Raises:
        ValueError: no documents, one that is too short, too long or of unknown ids; a window or stride below 1, a `bos_id` that
            a document does not begin with.
    """
    if window < 1 or stride < 1:
        raise ValueError(f"window={window}, stride={stride}: expected numbers of tokens from 1")
    language = next_token(reference)
    for i, ids in enumerate(documents):
        if bos_id is not None and list(ids[:1]) != [bos_id]:
            raise ValueError(f"bos_id={bos_id}: document {i} does not begin with it; leave it out, or put it there")
    whole = token_losses(language, documents)
    chosen = []
    with _as_evaluated(language.model):
        for ids, loss_T in zip(documents, whole, strict=True):
            short_T = _short_losses(language, list(ids), loss_T, window, stride, bos_id)
            with np.errstate(invalid="ignore"):  # of two infinities
                gain_T = short_T - loss_T
            positions = tuple((1 + np.flatnonzero((gain_T > gain) & (-loss_T > floor))).tolist())
            lost = int(np.isnan(gain_T).sum())
            chosen.append(KeyDocument(digest=_digest(ids), n_tokens=len(ids), positions=positions, not_finite=lost))
    return KeyTokens(
        reference=name, window=window, stride=stride, gain=gain, floor=floor, bos_id=bos_id,
        documents=tuple(chosen),
    )  # fmt: skip


def _short_losses(
    language: NextToken, ids: list[int], whole_T: np.ndarray, window: int, stride: int, bos_id: int | None
) -> np.ndarray:
    """Losses of tokens 1 … after a short context; where that is the whole one, the same number."""
    out_T = whole_T.copy()
    beginning = [] if bos_id is None else [bos_id]
    # Token i is read after those from `start` on: `window` at least, fewer than `window` + `stride`.
    for start in range(stride, len(ids) - window, stride):
        first, last = start + window, min(start + window + stride, len(ids))
        before = beginning + ids[start : last - 1]
        at = [len(beginning) + i - start - 1 for i in range(first, last)]
        losses, _ = language.losses(language.states(before), at, ids[first:last])
        out_T[first - 1 : last - 1] = losses.numpy()
    return out_T


@dataclass(frozen=True)
class LongPPL:
    """By document: how many key tokens it has, the sum of their losses, and the mean loss of all its tokens but the first; in
    nats."""

    n_keys: tuple[int, ...]
    key_losses: tuple[float, ...]
    mean_losses: tuple[float, ...]
    n_tokens: tuple[int, ...]

    @property
    def loss(self) -> float:
        """Mean loss of all key tokens, in nats."""
        return sum(self.key_losses) / sum(self.n_keys)

    @property
    def value(self) -> float:
        """LongPPL."""
        return perplexity(self.loss)

    def rows(self, run: str = "", step: int = 0) -> list[Row]:
        """Rows of source `long-ppl`; docs/metrics.md defines them."""
        n_predicted = [n - 1 for n in self.n_tokens]
        sums = [m * n for m, n in zip(self.mean_losses, n_predicted, strict=True)]
        low, high = ratio_interval(self.key_losses, self.n_keys)
        plain_low, plain_high = ratio_interval(sums, n_predicted)
        length = self.n_tokens[0] if len(set(self.n_tokens)) == 1 else None
        return [
            Row(run, step, "long-ppl", metric, value, unit, length=length)
            for metric, value, unit in (
                ("long_ppl", self.value, "1"),
                ("long_loss", self.loss, "nats"),
                ("long_loss_low", low, "nats"),
                ("long_loss_high", high, "nats"),
                ("plain_ppl", perplexity(sum(sums) / sum(n_predicted)), "1"),
                ("plain_ppl_low", perplexity(plain_low), "1"),
                ("plain_ppl_high", perplexity(plain_high), "1"),
                ("key_share", sum(self.n_keys) / sum(n_predicted), "share"),
            )
        ]


def perplexity(loss: float) -> float:
    """exp of a loss in nats; infinity where no float is as large."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def long_ppl(model: nn.Module | NextToken, documents: Sequence[Sequence[int]], keys: KeyTokens) -> LongPPL:
    """The loss of a model on the tokens of a key set, each after the whole context before it.

    Raises:
        ValueError: documents that are not the key set's, which those of another tokenizer are not; no key token in them; and as
            `token_losses`.
    """
    if len(documents) != len(keys.documents):
        raise ValueError(f"{len(documents)} documents, and the key set is of {len(keys.documents)}; give the same")
    for i, (ids, own) in enumerate(zip(documents, keys.documents, strict=True)):
        if _digest(ids) != own.digest:
            raise ValueError(
                f"document {i} of {len(ids)} ids is not the one of {own.n_tokens} that the key set was made of; give the same "
                "texts in the tokens of the same tokenizer"
            )
    if not keys.n:
        why = f", and of {keys.not_finite:.0%} of the texts its reference said no number" if keys.not_finite else ""
        raise ValueError(f"the key set has no token{why}; choose one from longer documents, or with a lower gain")
    losses = token_losses(model, documents)
    of_keys = [loss_T[np.array(d.positions, dtype=int) - 1] for loss_T, d in zip(losses, keys.documents, strict=True)]
    return LongPPL(
        tuple(len(k) for k in of_keys),
        tuple(float(k.sum()) for k in of_keys),
        tuple(float(loss_T.mean()) for loss_T in losses),
        tuple(len(ids) for ids in documents),
    )


def _digest(ids: Sequence[int]) -> str:
    return digest([int(t) for t in ids])
