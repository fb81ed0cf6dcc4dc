"""reweighted: attention to documents after their calibrated relevance, while a block runs (arXiv 2406.16008).

    with reweighted(model, [Focus(question.documents, relevance_D, len(question.prompt) - 1)]):
        model(ids)

From a query on, each head's attention inside of the documents is dealt out anew: a token of document k gets
α_k / (the mean attention of the document's tokens) × C of what it had, α = softmax(relevance / temperature), C such that the
documents together keep what they had.

Notable: factors that keep the sum of a softmax's row are biases on its logits, ln of the factor, and exactly so; weights of
the same pass decide them, layer by layer, so layers that are changed see what those before them made of it.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...models.decoder import Decoder
from ...nn.attention import GatedAttention
from ...ops.gated_attention import attention_weights
from ...probes.interventions.anatomy import anatomy
from ...tasks.task import Span

# The paper's, for attention that is a mean over a document's tokens.
TEMPERATURE = 5e-5
# ln of the least factor: beside any other document nothing is left.
_LEAST = -1e4


@dataclass(frozen=True)
class Focus:
    """Of one sequence: its documents, how relevant each is (calibrated attention), and the first query that is changed.

    Raises:
        ValueError: as many documents as numbers are not there, documents that do not stand before the query.
    """

    documents: tuple[Span, ...]
    relevance: tuple[float, ...]
    start: int

    def __post_init__(self) -> None:
        if not self.documents or len(self.documents) != len(self.relevance):
            raise ValueError(f"{len(self.documents)} documents and {len(self.relevance)} relevances; give one each")
        if not all(abs(r) < float("inf") for r in self.relevance):
            raise ValueError(f"relevance={self.relevance}: expected finite numbers")
        if min(s for s, _ in self.documents) < 0 or max(e for _, e in self.documents) > self.start:
            raise ValueError(
                f"start={self.start}: documents {self.documents} have to end before the query that is changed"
            )


@contextmanager
def reweighted(
    model: Decoder,
    focuses: Sequence[Focus],
    *,
    layers: Sequence[int] | None = None,
    temperature: float = TEMPERATURE,
) -> Iterator[None]:
    """Change the attention of a decoder of Gatelab, until the block ends; run whole sequences, without a cache.

    Any gate at the output, on values, keys or queries, any window and any position are fine, as are slots beside the
    softmax. Models of transformers are not changed, nor are normalisers that are no softmax, gates on the scores and hidden
    first keys, whose weights are no softmax of logits that a bias moves alone.

    Args:
        focuses: one a sequence of the batch.
        layers: None takes the latter half, as the paper's 16 of 32.
        temperature: of the softmax over relevances.

    Raises:
        ValueError: another model, one that is compiled, a layer that is not there or cannot be changed, a temperature that is not
            positive; from the forward pass, another number of sequences, a cache, documents kept apart.
    """
    if not isinstance(model, Decoder):
        raise ValueError(f"{type(model).__name__} is no decoder of Gatelab, and attention is reweighted in those alone")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected a number above 0")
    own = list(anatomy(model).attention)
    layers = range(len(own) // 2, len(own)) if layers is None else layers
    if wrong := [layer for layer in layers if not 0 <= layer < len(own)]:
        raise ValueError(f"layer {wrong[0]}: this model has layers 0 to {len(own) - 1}")
    for layer in layers:
        if not own[layer].normaliser.is_softmax or "scores" in own[layer].gates or own[layer].hidden_H is not None:
            raise ValueError(
                f"layer {layer} of {own[layer].normaliser.kind} with gates {list(own[layer].gates) or 'none'} and, it may be, "
                "a hidden first key: reweighting takes a softmax, with or without a slot, and nothing on the scores"
            )
    with ExitStack() as stack:
        for layer in layers:
            change = _Change(own[layer], focuses, model.config.registers, temperature)
            stack.callback(own[layer].register_forward_pre_hook(change.before, with_kwargs=True).remove)
            # Behind hooks that are there already, so that what they plant is what counts.
            stack.callback(own[layer].tap_q.register_forward_hook(change.queried).remove)
            stack.callback(own[layer].tap_k.register_forward_hook(change.keyed).remove)
        yield


class _Change:
    """One layer's: a bias is handed to the pass, and filled in when its queries and keys are known."""

    def __init__(self, attention: GatedAttention, focuses: Sequence[Focus], n_registers: int, temperature: float):
        self.attention, self.focuses, self.first, self.temperature = attention, focuses, n_registers, temperature
        self.bias_BHTS: Tensor | None = None
        self.q_BTHK: Tensor | None = None

    def before(self, _module: nn.Module, args: tuple[Tensor, ...], keywords: dict[str, Any]) -> Any:
        if keywords.get("cache") is not None or keywords.get("segment_ids_BT") is not None:
            raise ValueError(
                "attention is reweighted in whole sequences, without a cache and without documents kept apart"
            )
        x_BTD = args[0] if args else keywords["x_BTD"]
        B, T = x_BTD.shape[:2]
        if len(self.focuses) != B:
            raise ValueError(f"{len(self.focuses)} focuses and {B} sequences; give one each")
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        given = keywords.get("bias_BHTS")
        self.bias_BHTS = torch.zeros(B, self.attention.n_heads, T, T, dtype=wide, device=x_BTD.device)
        if given is not None:
            self.bias_BHTS += given
        return args, keywords | {"bias_BHTS": self.bias_BHTS}

    def queried(self, _module: nn.Module, _inputs: Any, q_BTHK: Tensor) -> None:
        self.q_BTHK = q_BTHK.detach()

    @torch.no_grad()
    def keyed(self, _module: nn.Module, _inputs: Any, k_BSGK: Tensor) -> None:
        own = self.attention
        for b, focus in enumerate(self.focuses):
            t = self.first + focus.start
            weights_1HRS, _ = attention_weights(
                self.q_BTHK[b : b + 1, t:].float(),
                k_BSGK[b : b + 1].float(),
                normaliser=own.normaliser,
                learned=None if own.sink is None else own.sink.learned(1),
                heads=own.heads,
                window=own.window,
                bias_BHTS=self.bias_BHTS[b : b + 1, :, t:],
            )
            spans = [(self.first + s, self.first + e) for s, e in focus.documents]
            factors_HRD = _log_factors(weights_1HRS[0], spans, focus.relevance, self.temperature)
            for d, (s, e) in enumerate(spans):
                self.bias_BHTS[b, :, t:, s:e] += factors_HRD[..., d, None].to(self.bias_BHTS.dtype)
        self.bias_BHTS = self.q_BTHK = None


def _log_factors(weights_HRS: Tensor, spans: Sequence[Span], relevance: Sequence[float], temperature: float) -> Tensor:
    """ln of what each document's weights are multiplied by, [H, R, D] in float64; 0 where no document has any."""
    mean_HRD = torch.stack([weights_HRS[..., s:e].double().mean(dim=-1) for s, e in spans], dim=-1)
    n_D = mean_HRD.new_tensor([e - s for s, e in spans])
    score_D = mean_HRD.new_tensor(relevance) / temperature
    # A document that a query does not see takes no part.
    log_alpha_HRD = score_D.expand_as(mean_HRD).masked_fill(mean_HRD == 0, -torch.inf).log_softmax(dim=-1)
    total_HR1 = (mean_HRD * n_D).sum(dim=-1, keepdim=True)
    log_c_HR1 = total_HR1.log() - (log_alpha_HRD + n_D.log()).logsumexp(dim=-1, keepdim=True)
    factors_HRD = (log_alpha_HRD + log_c_HR1 - mean_HRD.log()).clamp(min=_LEAST)
    return torch.where(mean_HRD == 0, 0.0, factors_HRD)
