"""What a decoder saves, and loses, that leaves the keys and values behind a shut gate unread.

Notable: a gate after attention that reads its token is known before any key is read. Where the scores of all query heads of a
key/value head are small, that head need not be read for the token, and its gated outputs are zero. The decision is the model's own
at every layer, with the heads of the layers below already left out; a teacher-forced pass of a text makes the states that decoding
it token by token would. Beside it as many heads are left out at random. This measures; no kernel here leaves such reads out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..config.gate import GateSpec
from ..nn.attention import GatedAttention
from ..ops.gate_apply import gate_scores
from ..probes.external.gates import FAMILIES
from ..probes.interventions.anatomy import Anatomy, anatomy
from ..probes.interventions.gate import GateEdit, scores_changed
from ..record import Row
from .changes import Change, interval, ratio_interval
from .next_token import NextToken, next_token
from .position_loss import token_losses

THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
Channels = Literal["max", "mean"]
# Sources that are known only when the keys have been read.
_AFTER = ("output", "hybrid", "lse")
_AT_SDPA = GateEdit(kind="gate", at="sdpa", value="0")


@dataclass(frozen=True)
class Skipped:
    """Heads left out below one threshold. `heads`: of all (token, layer, key/value head), the share left out; `reads`, with its 95%
    interval over documents: the share of the bytes that they would read. `change` is that of the next-token loss, `control` that
    of as many heads of the same layers at random, which would read `control_reads`, and `excess` the one less the other, document
    by document."""

    threshold: float
    heads: float
    reads: float
    reads_low: float
    reads_high: float
    control_reads: float
    change: Change
    control: Change
    excess: Change


@dataclass(frozen=True)
class SkippedReads:
    """`loss`: of the untouched model, a mean of documents' means in nats a token; `bytes_a_token`: of keys and values, all layers,
    in the weights' type, mean over tokens."""

    loss: float
    bytes_a_token: float
    n_documents: int
    levels: tuple[Skipped, ...]

    def rows(self, run: str = "", step: int = 0) -> list[Row]:
        """Source `skipped-reads`; docs/metrics.md defines them."""

        def row(metric: str, value: float, unit: str, threshold: float | None = None, of: str | None = None) -> Row:
            return Row(run, step, "skipped-reads", metric, value, unit, threshold=threshold, intervention=of)

        rows = [row("kv_bytes", self.bytes_a_token, "bytes")]
        for s in self.levels:
            shares = {"heads_skipped": s.heads, "reads_skipped": s.reads, "reads_skipped_low": s.reads_low}
            shares["reads_skipped_high"] = s.reads_high
            rows += [row(metric, v, "share", s.threshold, "skip") for metric, v in shares.items()]
            rows.append(row("reads_skipped", s.control_reads, "share", s.threshold, "control of skip"))
            for of, c in (("skip", s.change), ("control of skip", s.control), ("skip less its control", s.excess)):
                values = {"loss_change": c.mean, "loss_change_low": c.low, "loss_change_high": c.high}
                rows += [row(metric, v, "nats", s.threshold, of) for metric, v in values.items()]
        return rows


def skipped_reads(
    model: nn.Module | NextToken,
    documents: Sequence[Sequence[int]],
    thresholds: Sequence[float] = THRESHOLDS,
    *,
    channels: Channels = "max",
    seed: int = 0,
) -> SkippedReads:
    """Leave out the key/value heads whose scores are below a threshold, one threshold after another.

    Args:
        model: a decoder of Gatelab, or of a family of transformers whose gate is known.
        documents: token ids, two at least each; every one is run alone.
        thresholds: above 0; a head is left out where the size |score| of every query head that it serves is below.
        channels: an elementwise gate's score of a head: the largest of its channels' sizes, which forgets nothing that is open, or
            their mean.
        seed: of the heads at random; document i has seed + i.

    Raises:
        ValueError: no gate after attention; one that adds, or reads what attention gives; thresholds or documents that cannot be.
    """
    if not thresholds or any(not t > 0 for t in thresholds) or len(set(thresholds)) < len(thresholds):
        raise ValueError(f"thresholds={list(thresholds)}: expected numbers above 0, each once, as in [0.05, 0.1]")
    if channels not in ("max", "mean"):
        raise ValueError(f"channels={channels!r}: expected 'max' or 'mean'")
    language = next_token(model)
    own = anatomy(language.model)
    layers = dict(_layers(own))
    clean = [float(losses.mean()) for losses in token_losses(language, documents)]
    read = {layer: _bytes(heads, max(map(len, documents))) for layer, heads in layers.items()}
    n_bytes = [float(sum(b[: len(ids)].sum() * layers[i].n for i, b in read.items())) for ids in documents]
    n_heads = sum(len(ids) for ids in documents) * sum(h.n for h in layers.values())
    levels = []
    for threshold in thresholds:
        masks, losses, random_masks, random_losses = [], [], [], []
        for d, ids in enumerate(documents):
            skip = _Skip(layers, len(ids), threshold, channels)
            losses.append(_loss(language, own, skip, ids))
            masks.append(skip.made)
            at_random = _Skip(layers, len(ids), threshold, channels, _as_many(skip.made, seed + d))
            random_losses.append(_loss(language, own, at_random, ids))
            random_masks.append(at_random.made)
        saved, random_saved = (
            [sum(float(read[i][: len(m)] @ m.sum(axis=1)) for i, m in made.items()) for made in all_made]
            for all_made in (masks, random_masks)
        )
        changes = [a - b for a, b in zip(losses, clean, strict=True)]
        controls = [a - b for a, b in zip(random_losses, clean, strict=True)]
        levels.append(
            Skipped(
                threshold,
                sum(int(m.sum()) for made in masks for m in made.values()) / n_heads,
                sum(saved) / sum(n_bytes),
                *(float(np.clip(end, 0, 1)) for end in ratio_interval(saved, n_bytes)),
                sum(random_saved) / sum(n_bytes),
                _change(changes),
                _change(controls),
                _change([a - b for a, b in zip(changes, controls, strict=True)]),
            )
        )
    total = sum(n_bytes) / sum(len(ids) for ids in documents)
    return SkippedReads(float(np.mean(clean)), total, len(documents), tuple(levels))


@dataclass(frozen=True)
class _Heads:
    """Key/value heads of a layer, their channels, the keys that a query sees, and the bytes of a number."""

    n: int
    n_channels: int
    window: int | None
    itemsize: int


def _layers(own: Anatomy) -> Iterator[tuple[int, _Heads]]:
    """Every layer whose keys and values are read.

    Raises:
        ValueError: none of them has a gate after attention.
    """
    if own.is_own:
        found = own.attention
        is_gated = any("sdpa" in attention.gates for attention in found)
    else:
        found = {m: layer for m, layer in own.layers.items() if type(m).__name__ in FAMILIES}
        is_gated = bool(found)
    if not is_gated:
        raise ValueError(
            f"{type(own.model).__name__} has no gate after attention that is known here, so no score tells which keys need not be "
            "read; take a model with one"
        )
    for module, layer in found.items():
        yield layer, _heads(module)


def _heads(module: nn.Module) -> _Heads:
    itemsize = module.o_proj.weight.element_size()
    if isinstance(module, GatedAttention):
        return _Heads(module.n_kv_heads, module.head_dim, module.window, itemsize)
    n_query_heads = module.o_proj.in_features // module.head_dim
    window = getattr(module, "sliding_window", None)
    return _Heads(n_query_heads // module.num_key_value_groups, module.head_dim, window, itemsize)


def _bytes(heads: _Heads, n_tokens: int) -> np.ndarray:
    """What one head's keys and values take, by token, [T]: those so far, its own among them, and in the window."""
    seen = np.arange(1, n_tokens + 1)
    return np.minimum(seen, heads.window or n_tokens) * (2 * heads.n_channels * heads.itemsize)


class _Skip:
    """The scores of one pass of a text: those of heads below a threshold, or of heads that are `given`, are zero. `made`: by layer
    which key/value heads were left out, [T, G]."""

    def __init__(
        self,
        layers: dict[int, _Heads],
        n_tokens: int,
        threshold: float,
        channels: Channels,
        given: dict[int, np.ndarray] | None = None,
    ):
        self.layers, self.n_tokens, self.given = layers, n_tokens, given
        self.threshold, self.channels = threshold, channels
        self.made: dict[int, np.ndarray] = {}

    def scores(self, layer: int, site: str, spec: GateSpec, logits_BTHK: Tensor) -> Tensor:
        if spec.form != "mul" or spec.source_kind in _AFTER:
            why = "adds its scores" if spec.form != "mul" else "reads what attention gives"
            raise ValueError(
                f"gate {spec.slug} of layer {layer} {why}, so it leaves no key unread; take one that multiplies and reads the token"
            )
        scores_BTHK = gate_scores(logits_BTHK, spec)
        # A constant has one score for all tokens, and a shared gate one for all heads.
        scores_BTHK = scores_BTHK.expand(-1, self.n_tokens, logits_BTHK.shape[2], -1)
        n = self.layers[layer].n
        if self.given is None:
            sizes_THK = scores_BTHK[0].abs()
            sizes_TH = sizes_THK.amax(dim=-1) if self.channels == "max" else sizes_THK.mean(dim=-1)
            skipped_TG = sizes_TH.unflatten(1, (n, -1)).amax(dim=-1) < self.threshold
        else:
            skipped_TG = torch.from_numpy(self.given[layer]).to(scores_BTHK.device)
        self.made[layer] = skipped_TG.cpu().numpy()
        skipped_TH = skipped_TG.repeat_interleave(scores_BTHK.shape[2] // n, dim=1)
        return scores_BTHK.masked_fill(skipped_TH[None, :, :, None], 0)


def _as_many(made: dict[int, np.ndarray], seed: int) -> dict[int, np.ndarray]:
    """In every layer as many tokens' heads, at random."""
    out = {}
    for layer, mask_TG in made.items():
        flat = np.zeros(mask_TG.size, dtype=bool)
        flat[np.random.default_rng([seed, layer]).choice(mask_TG.size, int(mask_TG.sum()), replace=False)] = True
        out[layer] = flat.reshape(mask_TG.shape)
    return out


def _loss(language: NextToken, own: Anatomy, skip: _Skip, ids: Sequence[int]) -> float:
    with scores_changed(own, _AT_SDPA, skip.scores):
        (losses,) = token_losses(language, [ids])
    return float(losses.mean())


def _change(changes: Sequence[float]) -> Change:
    return Change(1.0, float(np.mean(changes)), *interval(changes), tuple(changes))
