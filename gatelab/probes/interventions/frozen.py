"""What is kept of an untouched pass while something else is edited: the attention pattern, or the gates' scores.

Notable: a pattern is kept as the queries and keys that make it, with the logits of a gate on the scores, so that memory stays
linear in T and every normaliser makes the same weights of them. Values, and what is gated after the softmax, stay as they come.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ...config.gate import GateSpec
from ...ops.gate_apply import gate_scores
from .anatomy import Anatomy
from .intervention import Given, Recording

FROZEN = "-frozen"
# (layer, site, spec, logits [B, T, H, K or 1]) -> the scores to put there.
Change = Callable[[int, str, GateSpec, Tensor], Tensor]


def put_scores(stack: ExitStack, gate: nn.Module, layer: int, change: Change) -> None:
    """The gate's logits become scores, and its activation the identity, until the stack is left."""
    spec = gate.spec
    stack.callback(setattr, gate, "spec", spec)
    source = "static" if spec.source == "lse" else spec.source  # so that nothing is added to the scores
    gate.spec = spec.model_copy(update={"activation": "identity", "sharing": "specific", "source": source})
    hook = gate.tap_logits.register_forward_hook(
        lambda _m, _i, logits: change(layer, spec.site, spec, logits), prepend=True
    )
    stack.callback(hook.remove)


@contextmanager
def patterns_kept(anatomy: Anatomy, word: str) -> Iterator[Recording]:
    """Records what makes the attention weights of every layer.

    Raises:
        ValueError: a model of transformers.
    """
    recording = Recording()
    with ExitStack() as stack:
        for place, tap in _makers(anatomy, word):

            def keep(_m: nn.Module, _i: Any, output: Tensor, place: tuple[int, str] = place) -> None:
                recording.patterns[place] = output.detach()

            stack.callback(tap.register_forward_hook(keep).remove)
        yield recording


@contextmanager
def patterns_held(anatomy: Anatomy, word: str, given: Given) -> Iterator[None]:
    """Attention weights are those of the recorded pass, in every layer.

    Raises:
        ValueError: a model of transformers, no recording; from the forward pass, one of another text.
    """
    held = {} if given.recorded is None else given.recorded.patterns
    if not held:
        raise ValueError(f"{word} keeps the attention of an untouched pass; run it inside `recorded` and hand it over")
    with ExitStack() as stack:
        for place, tap in _makers(anatomy, word):

            def hold(_m: nn.Module, _i: Any, output: Tensor, place: tuple[int, str] = place) -> Tensor:
                return _same(word, held.get(place), output, f"{place[1]} of layer {place[0]}")

            stack.callback(tap.register_forward_hook(hold, prepend=True).remove)
        yield


@contextmanager
def gates_kept(anatomy: Anatomy, word: str) -> Iterator[Recording]:
    """Records the scores of every gate.

    Raises:
        ValueError: a model of transformers, or without a gate; a gate whose scores are made inside of attention.
    """
    recording = Recording()

    def keep(layer: int, site: str, spec: GateSpec, logits_BTHK: Tensor) -> Tensor:
        recording.gates[layer, site] = scores_BTHK = gate_scores(logits_BTHK, spec).detach()
        return scores_BTHK

    with ExitStack() as stack:
        for layer, gate in _gates(anatomy, word):
            put_scores(stack, gate, layer, keep)
        yield recording


@contextmanager
def gates_held(anatomy: Anatomy, word: str, given: Given) -> Iterator[None]:
    """Gates have the scores of the recorded pass.

    Raises:
        ValueError: as `gates_kept` does; no recording; from the forward pass, one of another text.
    """
    held = {} if given.recorded is None else given.recorded.gates
    if not held:
        raise ValueError(f"{word} keeps the gates of an untouched pass; run it inside `recorded` and hand it over")

    def hold(layer: int, site: str, spec: GateSpec, logits_BTHK: Tensor) -> Tensor:
        scores_BTHK = gate_scores(logits_BTHK, spec)
        return _same(word, held.get((layer, site)), scores_BTHK, f"gate {site} of layer {layer}")

    with ExitStack() as stack:
        for layer, gate in _gates(anatomy, word):
            put_scores(stack, gate, layer, hold)
        yield


def _same(word: str, kept: Tensor | None, like: Tensor, what: str) -> Tensor:
    if kept is None or kept.shape != like.shape:
        came = "nothing" if kept is None else f"{tuple(kept.shape)}"
        raise ValueError(
            f"{word}: {came} was recorded for {what}, which is {tuple(like.shape)}; record the text that is run"
        )
    return kept.to(like)


def _makers(anatomy: Anatomy, word: str) -> Iterator[tuple[tuple[int, str], nn.Module]]:
    """((layer, name), tap) of all that the attention weights of each layer are made of."""
    _refuse_others(anatomy, word)
    for attention, layer in anatomy.attention.items():
        yield (layer, "queries"), attention.tap_q
        yield (layer, "keys"), attention.tap_k
        if "scores" in attention.gates:
            yield (layer, "score gate"), attention.gates["scores"].tap_logits


def _gates(anatomy: Anatomy, word: str) -> Iterator[tuple[int, nn.Module]]:
    _refuse_others(anatomy, word)
    found = [(layer, gate) for a, layer in anatomy.attention.items() for gate in a.gates.values()]
    if not found:
        raise ValueError(f"{word}: {type(anatomy.model).__name__} has no gate to keep; take {word.replace(FROZEN, '')}")
    for layer, gate in found:
        if gate.spec.source == "lse":
            raise ValueError(
                f"{word}: gate {gate.spec.slug} of layer {layer} makes its scores inside of attention, so they cannot be kept;"
                f" take {word.replace(FROZEN, '')}"
            )
        yield layer, gate


def _refuse_others(anatomy: Anatomy, word: str) -> None:
    if not anatomy.is_own:
        raise ValueError(
            f"{word}: attention and gates are kept in Gatelab's own layers alone, and this is a"
            f" {type(anatomy.model).__name__}; take {word.replace(FROZEN, '')}"
        )
