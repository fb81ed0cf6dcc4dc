"""Edits of gates, in their scores: a constant, open, their mean, shuffled over tokens, of scaled logits, or another text's.

Notable: scores are put in the place of what the gate computes, not logits, so that a clamp is exact and may lie outside of
the activation's range; a gate that adds, and one that keeps a share, are edited likewise. In a family of transformers the
attention output is multiplied anew before the output projection. Shuffling gives a token the scores of later ones.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...config.gate import SITES, GateSpec
from ...nn.attention import GatedAttention
from ...ops.gate_apply import gate_scores
from ..external.gates import FAMILIES
from ..external.interpose import Attend, interposed
from .anatomy import Anatomy
from .frozen import FROZEN, Change, patterns_held, patterns_kept, put_scores
from .intervention import Given, Intervention, Kind, Recording, same_norm, shuffled

# Of gates with one score, or one a channel, for each query head.
_OF_HEADS = ("sdpa", "query", "scores")
# Of gates that an attention pattern does not depend on within its layer.
_BESIDE = ("sdpa", "value", "out")


class GateEdit(Intervention):
    """An edit of the gates at every site, or at the one named, in all heads or those named.

    Its control adds to the attention layer's output, at every token, a random direction of the norm of what the edit changes
    there: the layer is computed a second time with the edit.
    """

    kinds: ClassVar[dict[str, Kind]] = {
        "gate": Kind("sets gates to a score", at="site", value="score"),
        "gate-mean": Kind("sets gates to their mean over the text", at="site"),
        "gate-shuffle": Kind("gives tokens one another's gates", at="site"),
        "gate-scale": Kind("multiplies gates' logits", at="site", value="factor"),
        "gate-transplant": Kind("sets gates to those of another text, or run", at="site"),
        f"gate{FROZEN}": Kind("sets gates to a score and keeps the attention pattern", at="site", value="score"),
        f"gate-mean{FROZEN}": Kind("sets gates to their mean and keeps the attention pattern", at="site"),
        f"gate-shuffle{FROZEN}": Kind("gives tokens one another's gates and keeps the attention pattern", at="site"),
    }
    has_like: ClassVar[bool] = True

    @property
    def needs(self) -> Literal["", "gates", "pattern"]:
        return "gates" if self.kind == "gate-transplant" else "pattern" if self._is_frozen else ""

    def control(self) -> "GateEdit":
        """A random direction of the same norm, added to the attention layer's output."""
        if self.is_like:
            raise ValueError(f"{self.word} is a control itself; give the edit that it belongs to")
        return self.model_copy(update={"is_like": True})

    @contextmanager
    def applied(self, anatomy: Anatomy, given: Given) -> Iterator[None]:
        """By the gates' taps, or by hooks before the output projections of known families."""
        if self.needs == "gates" and (given.recorded is None or not given.recorded.gates):
            raise ValueError(
                f"{self.word} takes the gates of another pass; run that inside `recorded` and hand it over"
            )

        def change(layer: int, site: str, spec: GateSpec, logits_BTHK: Tensor) -> Tensor:
            return self._scores(layer, site, spec, logits_BTHK, given)

        layers = [(a, layer) for a, layer in _gated(anatomy, self).items() if self.acts_in(layer)]
        with ExitStack() as stack:
            if self._is_frozen:
                stack.enter_context(patterns_held(anatomy, self.word, given))
            seen = None if anatomy.is_own else stack.enter_context(_outputs_kept(anatomy))
            for attention, layer in layers:
                if self.is_like:
                    hook = _like_hook(attention, layer, self, change, seen, given.seed)
                    stack.callback(attention.register_forward_hook(hook, with_kwargs=True, prepend=True).remove)
                else:
                    stack.enter_context(_edited(attention, layer, self, change, seen))
            yield

    @contextmanager
    def recording(self, anatomy: Anatomy) -> Iterator[Recording]:
        """Keeps the scores of every gate that the edit is to change, or every layer's attention pattern."""
        if not self.needs:
            raise ValueError(f"{self.word} needs no recording; run it as it is")
        if self._is_frozen:
            with patterns_kept(anatomy, self.word) as recording:
                yield recording
            return
        recording = Recording()

        def keep(layer: int, site: str, spec: GateSpec, logits_BTHK: Tensor) -> Tensor:
            recording.gates[layer, site] = scores = gate_scores(logits_BTHK, spec).detach()
            return scores

        with scores_changed(anatomy, self, keep):
            yield recording

    def sites(self, attention: nn.Module) -> list[str]:
        """The sites of a layer's gates that are edited."""
        sites = list(attention.gates) if isinstance(attention, GatedAttention) else ["sdpa"]
        return [site for site in sites if self.at in (None, site) and (site in _BESIDE or not self._is_frozen)]

    def check(self, layer: int, spec: GateSpec) -> None:
        """Refuses what cannot be done to a gate.

        Raises:
            ValueError: in a sentence.
        """
        why = None
        if self.value == "open" and spec.form == "add":
            why = "its scores are added, and none of them is open; take gate=0, which adds nothing"
        elif self._does == "gate" and spec.form == "forget" and self.score <= 0:
            why = "its scores are shares that are kept, and the logarithm of one is taken; take a score above 0"
        elif spec.source == "lse" and (self._does != "gate" or self.dose < 1 or self._by_head):
            why = "its logits are not known before attention is computed; take gate=<score> at dose 1, in whole layers"
        elif self._by_head and spec.site not in _OF_HEADS:
            why = f"gates at the site {spec.site} are not of query heads; name whole layers"
        if why:
            raise ValueError(f"{self.word}: gate {spec.slug} of layer {layer}: {why}")

    @property
    def score(self) -> float:
        """The constant of the kind `gate`."""
        return 1.0 if self.value == "open" else float(self.value)

    @property
    def _is_frozen(self) -> bool:
        return self.kind.endswith(FROZEN)

    @property
    def _does(self) -> str:
        """What is done to the gates, whatever is kept."""
        return self.kind.removesuffix(FROZEN)

    def _wrong_parts(self) -> str | None:
        if self._is_frozen and self.at is not None and self.at not in _BESIDE and self.at in SITES:
            return f"a gate at {self.at} makes the pattern that is kept; take one of {', '.join(_BESIDE)}"
        return super()._wrong_parts()

    @property
    def _by_head(self) -> bool:
        return any(head is not None for _, head in self.places)

    def _scores(self, layer: int, site: str, spec: GateSpec, logits_BTHK: Tensor, given: Given) -> Tensor:
        """The scores of one gate after the edit, in float32 at least."""
        scores_BTHK = gate_scores(logits_BTHK, spec)
        if self.kind == "gate-scale":
            factor = 1 + self.dose * (float(self.value) - 1)
            edited = gate_scores(logits_BTHK * factor, spec)
        else:
            target = self._target(layer, site, scores_BTHK, given)
            edited = torch.lerp(scores_BTHK, target.to(scores_BTHK).expand_as(scores_BTHK), self.dose)
        if not self._by_head:
            return edited
        n_heads = logits_BTHK.shape[2]  # a shared gate has one score for all, and its logits have every head
        heads_H = torch.tensor(self.heads(layer, n_heads, given.seed), device=edited.device)
        return torch.where(heads_H[:, None], edited, scores_BTHK)

    def _target(self, layer: int, site: str, scores_BTHK: Tensor, given: Given) -> Tensor:
        if self._does == "gate":
            return torch.full_like(scores_BTHK, self.score)
        if self._does == "gate-mean":
            return scores_BTHK.mean(dim=1, keepdim=True)
        if self._does == "gate-shuffle":
            return scores_BTHK[:, shuffled(scores_BTHK.shape[1], given.seed, layer)]
        recorded = given.recorded.gates.get((layer, site))
        if recorded is None or recorded.shape[1:] != scores_BTHK.shape[1:]:
            came = "nothing" if recorded is None else f"scores {tuple(recorded.shape)}"
            raise ValueError(
                f"{self.word}: {came} was recorded for gate {site} of layer {layer}, which has scores "
                f"{tuple(scores_BTHK.shape)}; record a text of equal length in a model of equal gates"
            )
        return recorded


@contextmanager
def scores_changed(anatomy: Anatomy, edit: GateEdit, change: Change) -> Iterator[None]:
    """Lets `change` give the scores of every gate that an edit means, until the block ends.

    Raises:
        ValueError: no such gate, or one that the edit cannot be made in.
    """
    with ExitStack() as stack:
        seen = None if anatomy.is_own else stack.enter_context(_outputs_kept(anatomy))
        for attention, layer in _gated(anatomy, edit).items():
            if edit.acts_in(layer):
                stack.enter_context(_edited(attention, layer, edit, change, seen))
        yield


def _gated(anatomy: Anatomy, edit: GateEdit) -> dict[nn.Module, int]:
    """The attention layers that have a gate which the edit means, checked.

    Raises:
        ValueError: when a layer that is named has none, or no layer has one.
    """
    if anatomy.is_own:
        found: dict[nn.Module, int] = {a: layer for a, layer in anatomy.attention.items() if edit.sites(a)}
        for attention, layer in found.items():
            edit.heads(layer, attention.n_heads, 0)
            for site in edit.sites(attention) if edit.acts_in(layer) else ():
                edit.check(layer, attention.gates[site].spec)
    else:
        found = {m: layer for m, layer in anatomy.layers.items() if type(m).__name__ in FAMILIES}
        found = found if edit.at in (None, "sdpa") else {}
    at = "" if edit.at is None else f" at the site {edit.at}"
    if not found:
        known = "" if anatomy.is_own else f"; families with gates are known by {', '.join(FAMILIES)}"
        raise ValueError(f"{edit.word}: {type(anatomy.model).__name__} has no gate{at} that is known here{known}")
    missing = sorted({layer for layer, _ in edit.places} - set(found.values()))
    if missing:
        raise ValueError(
            f"{edit.word}: layer {missing[0]} has no gate{at}; layers with one are {', '.join(map(str, found.values()))}"
        )
    return found


class _Seen:
    """What an edit of a transformers layer needs: its attention function's output, and its gate projection's."""

    def __init__(self) -> None:
        self.y_BTHK: dict[nn.Module, Tensor] = {}
        self.projected: dict[nn.Module, Tensor] = {}


@contextmanager
def _outputs_kept(anatomy: Anatomy) -> Iterator[_Seen]:
    seen = _Seen()

    def around(attend: Attend, module: nn.Module, *args: Any, **keywords: Any) -> Any:
        output = attend(module, *args, **keywords)
        if type(module).__name__ in FAMILIES:
            seen.y_BTHK[module] = output[0]
        return output

    with interposed(anatomy.model, around):
        yield seen


@contextmanager
def _edited(attention: nn.Module, layer: int, edit: GateEdit, change: Change, seen: _Seen | None) -> Iterator[None]:
    """Lets `change` give the scores of one layer's gates."""
    with ExitStack() as stack:
        if seen is not None:
            family = FAMILIES[type(attention).__name__]

            def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
                seen.projected[attention] = output

            def multiply(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                y_BTHK = seen.y_BTHK.pop(attention)
                spec, logits_BTHK = family.gate(seen.projected.pop(attention), *y_BTHK.shape[2:])
                scores_BTHK = change(layer, "sdpa", spec, logits_BTHK)
                return ((y_BTHK.to(scores_BTHK.dtype) * scores_BTHK).flatten(-2).to(inputs[0].dtype), *inputs[1:])

            stack.callback(getattr(attention, family.projection).register_forward_hook(keep).remove)
            stack.callback(attention.o_proj.register_forward_pre_hook(multiply, prepend=True).remove)
        else:
            for site in edit.sites(attention):
                put_scores(stack, attention.gates[site], layer, change)
        yield


def _like_hook(
    attention: nn.Module, layer: int, edit: GateEdit, change: Change, seen: _Seen | None, seed: int
) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
        if seen is not None:
            keywords = keywords | {"past_key_values": None}
        with _edited(attention, layer, edit, change, seen):
            edited = attention.forward(*args, **keywords)
        clean_BTD, edited_BTD = (x[0] if isinstance(x, tuple) else x for x in (output, edited))
        moved_BTD = (clean_BTD + same_norm(edited_BTD - clean_BTD, seed, layer)).to(clean_BTD.dtype)
        return (moved_BTD, *output[1:]) if isinstance(output, tuple) else moved_BTD

    return hook
