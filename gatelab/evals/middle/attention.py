"""What the last token of a prompt pays each document, and what it would pay a dummy document in the same place.

Found in the Middle (arXiv 2406.16008) takes attention to be relevance plus a bias of the place, and what a document without
content gets there for the bias. Notable: in three forms, since what an output gate shuts, or what has a drained value, does
not reach the output however large its mass. No T×T matrix is built: one row of the weights is.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ...config.run import ProbeConfig
from ...nn.attention import GatedAttention
from ...ops.attention_stats import Block, Effect, Stretch
from ...probes.capture import capture
from ...probes.external import observe
from ...probes.probe import AttentionView, Probe
from ...record import Row
from ...tasks.task import Span
from ..intervene import _as_evaluated
from ..next_token import NextToken, next_token
from ..question import Question, filled

# Mass; times how open the head's gate is at the query; times the norm of the value too.
FORMS = ("mass", "gated", "gated-value")
# Ids and spans of them to what the last query pays each span: by layer, [form, span].
Look = Callable[[tuple[int, ...], Sequence[Span]], dict[int, np.ndarray]]


@dataclass(frozen=True)
class DocumentAttention:
    """Attention of one question's last token to its D documents: a mean over a document's tokens and over heads, by form
    [L, D], float64. `raw_LD` of the text as it is; `dummy_LD` of the dummy in each document's place, all others as they are. A
    form that a layer does not tell is not-a-number there (docs/metrics.md)."""

    question: Question
    layers: tuple[int, ...]
    raw_LD: dict[str, np.ndarray]
    dummy_LD: dict[str, np.ndarray]

    def of(self, stage: str, form: str = "mass", layers: Sequence[int] | None = None) -> np.ndarray:
        """Mean over layers, [D]; `stage` is `raw`, `dummy`, or `calibrated`: the former less the latter. Layers by number;
        None takes all.

        Raises:
            ValueError: a stage, form or layer that is not there.
        """
        if stage not in ("raw", "dummy", "calibrated") or form not in FORMS:
            raise ValueError(f"{stage}, {form}: expected raw, dummy or calibrated, and one of {', '.join(FORMS)}")
        wanted = self.layers if layers is None else tuple(layers)
        if not wanted or set(wanted) - set(self.layers):
            raise ValueError(
                f"layers {list(wanted)}: attention was seen in layers {list(self.layers)}; take some of them"
            )
        rows = [self.layers.index(layer) for layer in wanted]
        raw_D, dummy_D = (by_form[form][rows].mean(axis=0) for by_form in (self.raw_LD, self.dummy_LD))
        return {"raw": raw_D, "dummy": dummy_D, "calibrated": raw_D - dummy_D}[stage]


@torch.no_grad()
def document_attention(
    model: nn.Module | NextToken, questions: Sequence[Question], *, dummy: Sequence[int]
) -> list[DocumentAttention]:
    """Look at every question: one pass as it is, and one with the dummy in the place of each document.

    Args:
        model: a decoder of Gatelab, or of transformers whose attention the probes observe; a gate of a family that
            `probes.external.gates` does not know counts as open there.
        dummy: ids without content, repeated or cut to a document's length, so that nothing moves.

    Raises:
        ValueError: a model without next tokens or whose attention is not seen, a question that it cannot read, documents
            after the prompt, an empty dummy or one of unknown ids.
    """
    language, dummy = next_token(model), tuple(dummy)
    if not dummy:
        raise ValueError("dummy has no ids; give one at least, such as a line break or a noise token")
    language.check_ids(dummy, "dummy")
    for question in questions:
        question.check(language)
        if question.documents[-1][1] > len(question.prompt):
            raise ValueError(
                f"{question.name}: a document stands after the prompt's end; ask what stands after all of them"
            )
    is_own = any(isinstance(m, GatedAttention) for m in language.model.modules())
    watch = capture(language.model, []) if is_own else observe(language.model.base_model, [])
    with _as_evaluated(language.model), watch as recorder:

        def look(ids: tuple[int, ...], spans: Sequence[Span]) -> dict[int, np.ndarray]:
            probe = _LastQuery(len(ids), spans)
            recorder.probes[:] = [probe]
            language.states(list(ids))
            if not probe.found:
                raise ValueError(
                    f"{type(language.model).__name__} showed no causal self-attention; take a decoder of softmax attention"
                )
            return probe.found

        return [_look(question, dummy, look) for question in questions]


def _look(question: Question, dummy: tuple[int, ...], look: Look) -> DocumentAttention:
    documents = question.documents
    raw = look(question.prompt, documents)
    places = [look(filled(question.prompt, (span,), dummy), (span,)) for span in documents]
    layers = tuple(sorted(raw))
    raw_LFD = np.stack([raw[layer] for layer in layers])
    dummy_LFD = np.stack([np.concatenate([found[layer] for found in places], axis=1) for layer in layers])
    return DocumentAttention(
        question,
        layers,
        {form: raw_LFD[:, i] for i, form in enumerate(FORMS)},
        {form: dummy_LFD[:, i] for i, form in enumerate(FORMS)},
    )


class _LastQuery(Probe):
    """`found`: by layer, of one sequence of `n_tokens`, what the last query pays each span, [form, span]."""

    name, metrics = "documents", {}

    def __init__(self, n_tokens: int, spans: Sequence[Span]):
        super().__init__(ProbeConfig(), ())
        self.n_tokens, self.spans = n_tokens, spans
        self.found: dict[int, np.ndarray] = {}

    def attention(self, view: AttentionView) -> None:
        """Causal self-attention alone."""
        if view.stack is not None:
            return
        block = _last(view.last)
        mass_HS = block.weights_BHTS[0, :, -1].double()
        forms = [mass_HS, torch.full_like(mass_HS, torch.nan), torch.full_like(mass_HS, torch.nan)]
        open_H = _openness(block, len(mass_HS))
        if open_H is not None:
            forms[1] = mass_HS * open_H[:, None]
            if (v_BSGK := view.last.v_BSGK) is not None:
                norm_GS = v_BSGK[0, : mass_HS.shape[1]].double().norm(dim=-1).T
                forms[2] = forms[1] * norm_GS.repeat_interleave(len(mass_HS) // len(norm_GS), dim=0)
        first = view.n_keys - self.n_tokens  # registers stand before the tokens
        of_span = [[form[:, first + s : first + e].mean() for s, e in self.spans] for form in forms]
        self.found[view.layer] = torch.tensor(of_span, dtype=torch.float64).numpy()

    def summaries(self, rows: list[Row]) -> list[Row]:
        """None."""
        return rows


def _last(stretch: Stretch) -> Block:
    """Queries of which the last is the sequence's: it alone, but where its weights ask for those before it."""
    if stretch.score_gate is not None and stretch.score_gate.form == "forget":
        return deque(stretch.blocks(), maxlen=1)[0]
    return stretch.rows(stretch.query_T[-1:])


def _openness(block: Block, n_heads: int) -> Tensor | None:
    """How open each head's gate at the output is for the last query; 1 without one, None where it cannot be told."""
    if "sdpa" not in block.stretch.gates:
        return torch.ones(n_heads, dtype=torch.float64, device=block.stretch.device)
    effect = Effect()
    effect.add(block)
    return None if effect.openness_BHT is None else effect.openness_BHT[0, :, -1].double().abs()
