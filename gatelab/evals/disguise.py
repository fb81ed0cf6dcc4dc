"""Is a sink a gate in disguise? How well a linear gate says what a head leaves over beside its first key.

Exactly, attention is (1 − p₀)·(attention without the first key) + p₀·v₀, where 1 − p₀ = σ(LSE of the others − z₀) = σ(−gap)
(docs/metrics.md has the gap; arXiv 2410.13835 the drained v₀). Where v₀ is small this is a headwise gate on the output. A
trained one is σ(w·x + b) of the state x that the attention reads (arXiv 2505.06708), so that is what is fitted here.

Notable: ridge regression on the logit by normal equations in float64, one X'X a layer for all its heads, so memory does not
grow with the text; another set of equations, of every fourth training document, chooses the penalty without a second pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config.run import ProbeConfig
from ..ops.attention_stats import FirstKey
from ..probes.external import observe
from ..probes.external.interpose import Attend, interposed
from ..probes.interventions.anatomy import anatomy
from ..probes.probe import AttentionView, Probe
from ..record import Row
from .ridge import PENALTIES, Equations, Errors, chosen, features

_HELD_BACK = 4


@dataclass(frozen=True)
class LayerFit:
    """The fits of one layer's H heads. `weight_FH` by what is read: features as in `READS`, of weight 0 where not read;
    `penalty_H` likewise; `r2_H` by (what is read, `logit` or `score`), on the test documents, where also `mass_H`, the
    mean p₀, was taken."""

    layer: int
    weight_FH: dict[str, Tensor]
    penalty_H: dict[str, Tensor]
    r2_H: dict[tuple[str, str], Tensor]
    mass_H: Tensor

    def openness(self, reads: str, x_BTD: Tensor, window: int | None = None) -> Tensor:
        """The fitted σ(w·x + b) of whole causal sequences, [B, T, H] in float64; 1 for the first query, which has no key but
        the first, and for those from which a window hides it."""
        n_others_T = torch.arange(x_BTD.shape[1], device=x_BTD.device).clamp(min=1)
        score_BTH = (features(x_BTD, n_others_T) @ self.weight_FH[reads].to(x_BTD.device)).sigmoid()
        score_BTH[:, 0] = 1
        if window is not None:
            score_BTH[:, window:] = 1
        return score_BTH


@dataclass(frozen=True)
class GateFits:
    """The fits of all layers, and of how many queries of training and test documents."""

    layers: tuple[LayerFit, ...]
    n_train: int
    n_test: int

    def rows(self, run: str = "", step: int = 0) -> list[Row]:
        """`sink_gate_r2` of every head, with `stage` and `domain`; none where the test documents' values do not vary."""
        return [
            Row(run, step, "disguise", "sink_gate_r2", value, "1", fit.layer, head, stage=stage, domain=reads)
            for fit in self.layers
            for (reads, stage), r2_H in fit.r2_H.items()
            for head, value in enumerate(r2_H.tolist())
            if value == value
        ]


@torch.no_grad()
def gate_fits(
    model: nn.Module,
    train_ids: Sequence[Sequence[int]],
    test_ids: Sequence[Sequence[int]],
    *,
    penalties: Sequence[float] = PENALTIES,
) -> GateFits:
    """Fit σ(w·x + b) to 1 − p₀ of every head, at every query that sees another key than the first.

    Of each head and set of features the penalty is taken that has the smallest squared error on every fourth training
    document, fitted to the others; the weights are then those of all training documents. The test documents choose nothing.

    Args:
        model: a decoder of transformers that looks up its attention function.
        train_ids, test_ids: token ids, three at least each; every document is run alone. Four training documents at least.

    Raises:
        ValueError: too few or too short documents, a test document that was trained on, a penalty that is not positive, a
            model in which no causal attention can be observed.
    """
    _check(model, train_ids, test_ids, penalties)
    fitted: dict[int, Equations] = {}
    held_back: dict[int, Equations] = {}
    with _watched(model, train_ids[0]) as read:
        for d, ids in enumerate(train_ids):
            into = held_back if d % _HELD_BACK == _HELD_BACK - 1 else fitted
            read(ids, lambda layer, x_NF, y_NH, into=into: into.setdefault(layer, Equations()).add(x_NF, y_NH))
        errors = {layer: Errors(*chosen(fitted[layer], held_back[layer], penalties)) for layer in fitted}
        for ids in test_ids:
            read(ids, lambda layer, x_NF, y_NH: errors[layer].add(x_NF, y_NH))
    if not errors:
        raise ValueError(f"{type(model).__name__} showed no causal self-attention; take a decoder of softmax attention")
    n_train = sum(e[min(e)].n for e in (fitted, held_back))
    layers = tuple(
        LayerFit(i, e.weight_FH, e.penalty_H, e.r2_H(), 1 - e.mean_score_H) for i, e in sorted(errors.items())
    )
    return GateFits(layers, n_train, errors[layers[0].layer].n)


class _Gaps(Probe):
    """Hands the gaps of each layer on as soon as the layer has run."""

    name, metrics, statistics = "gaps", {}, (FirstKey,)

    def __init__(self, take: Callable[[int, FirstKey], None]):
        super().__init__(ProbeConfig(), ())
        self.take = take

    def attention(self, view: AttentionView) -> None:
        """Causal self-attention alone."""
        if view.stack is None:
            self.take(view.layer, view.of(FirstKey))

    def summaries(self, rows: list[Row]) -> list[Row]:
        """None."""
        return rows


@contextmanager
def _watched(model: nn.Module, ids: Sequence[int]) -> Iterator[Callable[..., None]]:
    """Gives `read(ids, take)`: runs a document, and calls take(layer, features_NF, −gap_NH) after each layer, in float64,
    of the N queries that see the first key and another."""
    own = anatomy(model)
    with states_read(model, ids) as states, observe(model.base_model, []) as recorder:
        module_of = {own.layers[module]: module for module in states}

        def read(ids: Sequence[int], take: Callable[[int, Tensor, Tensor], None]) -> None:
            def layer_ran(layer: int, first: FirstKey) -> None:
                is_seen_T = ~first.gap_BHT[0].isnan().any(dim=0)
                features_TF = features(states[module_of[layer]][0], first.n_seen_BT[0] - 1)
                take(layer, features_TF[is_seen_T], -first.gap_BHT[0, :, is_seen_T].T.double())

            recorder.probes[:] = [_Gaps(layer_ran)]
            model.base_model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)

        yield read


@contextmanager
def states_read(model: nn.Module, ids: Sequence[int]) -> Iterator[dict[nn.Module, Tensor]]:
    """What each attention module was given in the pass that ran last, [B, T, D]; a pass over two ids finds them first."""
    found: dict[nn.Module, Tensor] = {}

    def around(attend: Attend, module: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        found[module] = torch.empty(0)
        return attend(module, *arguments, **keywords)

    def before(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        found[module] = (arguments[0] if arguments else keywords["hidden_states"]).detach()

    if anatomy(model).is_own:
        raise ValueError(
            "fits take a decoder of transformers; the gates of Gatelab's own models are seen by the probes"
        )
    with interposed(model, around), torch.no_grad():
        model.base_model(input_ids=torch.tensor([list(ids[:2])], device=model.device), use_cache=False)
    if not found:
        raise ValueError(f"{type(model).__name__} looks up no attention function, so what its heads read was not seen")
    handles = [module.register_forward_pre_hook(before, with_kwargs=True) for module in found]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _check(
    model: nn.Module,
    train_ids: Sequence[Sequence[int]],
    test_ids: Sequence[Sequence[int]],
    penalties: Sequence[float],
) -> None:
    if anatomy(model).is_own:
        raise ValueError(
            "fits take a decoder of transformers; the gates of Gatelab's own models are seen by the probes"
        )
    if len(train_ids) < _HELD_BACK or not test_ids:
        raise ValueError(
            f"{len(train_ids)} training and {len(test_ids)} test documents: expected {_HELD_BACK} and one at least"
        )
    short = min(len(ids) for ids in (*train_ids, *test_ids))
    if short < 3:
        raise ValueError(f"a document has {short} tokens, and two queries need three; take longer ones")
    longest, limit = (
        max(len(ids) for ids in (*train_ids, *test_ids)),
        getattr(model.config, "max_position_embeddings", None),
    )
    if limit is not None and longest > limit:
        raise ValueError(f"a document has {longest} tokens, and this model positions for {limit}; take shorter ones")
    n_ids = model.get_input_embeddings().num_embeddings
    wrong = next((i for ids in (*train_ids, *test_ids) for i in ids if not 0 <= i < n_ids), None)
    if wrong is not None:
        raise ValueError(f"a document has the id {wrong}; this model has ids 0 to {n_ids - 1}")
    if {tuple(ids) for ids in train_ids} & {tuple(ids) for ids in test_ids}:
        raise ValueError("a test document is a training document too, so nothing would be held out; give others")
    if not penalties or min(penalties) <= 0:
        raise ValueError(f"penalties={list(penalties)}: expected positive numbers, of features of variance 1")
