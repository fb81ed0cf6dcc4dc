"""Edits of massive activations: the residual stream after a block is clipped, with norms as they are, frozen or held.

Notable: a massive activation acts by its value and through the norms that it scales. Frozen norms divide by the root of the
mean square of an untouched pass, so that only the value is gone (the question of arXiv 2601.22966). They no longer normalise:
where later layers write much to a token that was small, the pass may run off to infinity, and its loss is then nan. Held ones
divide by that root or their own, the larger, which keeps what a massive activation does to them and stays bounded. A norm is
known by what it does, not by its class: odd, free of its input's scale, and centring or not.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from .anatomy import Anatomy
from .intervention import Given, Intervention, Kind, Recording, same_norm

_FROZEN, _HELD = "clip-massive-frozen", "clip-massive-held"
# Their names in transformers and here.
_EPSILONS = ("variance_epsilon", "eps", "epsilon", "layer_norm_epsilon")


class ActivationEdit(Intervention):
    """|x| after each block, or after those named, clipped to a quantile of its own text, or to a multiple of its median.

    Its control adds, at every token, a random direction of the norm of what clipping takes away.
    """

    kinds: ClassVar[dict[str, Kind]] = {
        "clip-massive": Kind("clips the residual stream", value="limit", where="layers"),
        _FROZEN: Kind("clips the residual stream and keeps the norms' divisors", value="limit", where="layers"),
        _HELD: Kind("clips the residual stream and lets no norm's divisor fall", value="limit", where="layers"),
    }
    has_like: ClassVar[bool] = True

    @property
    def needs(self) -> Literal["", "norms"]:
        return "norms" if self.kind in (_FROZEN, _HELD) else ""

    def control(self) -> "ActivationEdit":
        """A random direction of the same norm in the residual stream."""
        if self.is_like:
            raise ValueError(f"{self.word} is a control itself; give the edit that it belongs to")
        return self.model_copy(update={"is_like": True})

    @contextmanager
    def applied(self, anatomy: Anatomy, given: Given) -> Iterator[None]:
        """By hooks on what gives the residual stream, and on the norms of its width."""
        if not anatomy.residual:
            raise ValueError(
                f"{self.word}: this model has no residual taps; give each block `self.tap_residual = gatelab.nn.tap.Tap()` "
                "and return self.tap_residual(x)"
            )
        if self.needs and (given.recorded is None or not given.recorded.norms):
            raise ValueError(
                f"{self.word} takes the norms of an untouched pass; run it inside `recorded` and hand it over"
            )
        with ExitStack() as stack:
            for module, layer in anatomy.residual.items():
                if self.acts_in(layer):
                    stack.callback(module.register_forward_hook(self._hook(layer, given.seed), prepend=True).remove)
            for norm in _norms(anatomy, self.word) if self.needs else ():
                hook = norm.replaying(given.recorded, self)
                stack.callback(norm.module.register_forward_hook(hook, prepend=True).remove)
            yield

    @contextmanager
    def recording(self, anatomy: Anatomy) -> Iterator[Recording]:
        """Keeps the divisors of all norms of the residual stream's width."""
        if not self.needs:
            raise ValueError(f"{self.word} needs no recording; run it as it is")
        recording = Recording()
        with ExitStack() as stack:
            for norm in _norms(anatomy, self.word):
                stack.callback(norm.module.register_forward_hook(norm.keeping(recording)).remove)
            yield recording

    def limit(self, x_BTD: Tensor) -> Tensor:
        """What |x| is clipped to, one number a sequence, [B, 1, 1]."""
        size_BN = x_BTD.flatten(1).abs().float()
        if self.value.startswith("q"):
            n = size_BN.shape[1]
            limit_B = size_BN.kthvalue(max(1, math.ceil(float(self.value[1:]) * n)), dim=1).values
        else:
            limit_B = size_BN.median(dim=1).values * float(self.value[:-1])
        return limit_B[:, None, None].to(x_BTD.dtype)

    def _hook(self, layer: int, seed: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            x_BTD = output[0] if isinstance(output, tuple) else output
            limit_B11 = self.limit(x_BTD)
            edited_BTD = torch.lerp(x_BTD, x_BTD.clamp(-limit_B11, limit_B11), self.dose)
            if self.is_like:
                edited_BTD = (x_BTD + same_norm(edited_BTD - x_BTD, seed, layer)).to(x_BTD.dtype)
            return (edited_BTD, *output[1:]) if isinstance(output, tuple) else edited_BTD

        return hook


@dataclass(frozen=True)
class _Norm:
    """A norm y = w ⊙ x / r + b, or of x less its mean; r = √(mean square + ε)."""

    name: str
    module: nn.Module
    is_centring: bool
    epsilon: float
    bias_D: Tensor

    def root(self, x_BTD: Tensor) -> Tensor:
        """r, [B, T, 1], in float32 at least."""
        wide = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
        if self.is_centring:
            wide = wide - wide.mean(dim=-1, keepdim=True)
        return (wide.square().mean(dim=-1, keepdim=True) + self.epsilon).sqrt()

    def keeping(self, recording: Recording) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            recording.norms[self.name] = self.root(inputs[0]).detach()

        return hook

    def replaying(self, recording: Recording, edit: ActivationEdit) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            root_BT1, recorded_BT1 = self.root(inputs[0]), recording.norms[self.name]
            if root_BT1.shape[1:] != recorded_BT1.shape[1:]:
                raise ValueError(
                    f"{edit.word}: norms were recorded on a text of {recorded_BT1.shape[1]} tokens, and this one has "
                    f"{root_BT1.shape[1]}; record the text that is run"
                )
            ratio_BT1 = root_BT1 / (recorded_BT1 if edit.kind == _FROZEN else torch.maximum(root_BT1, recorded_BT1))
            scaled = (output - self.bias_D) * ratio_BT1 + self.bias_D
            # Taking the bias off and putting it back rounds, where there is nothing to do.
            return torch.where(ratio_BT1 == 1, output, scaled.to(output.dtype))

        return hook


def _norms(anatomy: Anatomy, word: str) -> list[_Norm]:
    """The norms of the residual stream's width.

    Raises:
        ValueError: for one that is more than a scale and a bias on a normed input, and when there is none.
    """
    D = anatomy.d_model
    found = []
    for name, module in anatomy.model.named_modules():
        if type(module).__name__.endswith("Norm") or isinstance(module, nn.LayerNorm):
            weight = getattr(module, "weight", None)
            width = (getattr(module, "width", D),) if weight is None else tuple(weight.shape)
            if width == (D,):
                found.append(_known(name, module, D, word))
    if not found:
        raise ValueError(f"{word}: no norm of width {D} was found, so none can be frozen; take clip-massive")
    return found


@torch.no_grad()
def _known(name: str, module: nn.Module, D: int, word: str) -> _Norm:
    like = next(module.parameters(), torch.zeros(()))
    x_BTD = 10 * torch.randn(1, 4, D, generator=torch.Generator().manual_seed(0)).to(like)
    bias_D = module(torch.zeros_like(x_BTD))[0, 0]
    normed = module(x_BTD) - bias_D
    size = normed.abs().mean()

    def is_same(other: Tensor, tolerance: float = 0.02) -> bool:
        return bool((normed - (other - bias_D)).abs().mean() <= tolerance * size)

    if not (is_same(module(2 * x_BTD)) and is_same(2 * bias_D - module(-x_BTD))):
        raise ValueError(
            f"{word}: norm {name} ({type(module).__name__}) is more than a scale and a bias on a normed input, so it "
            "cannot be frozen; take clip-massive"
        )
    epsilon = next((getattr(module, e) for e in _EPSILONS if hasattr(module, e)), 0.0)
    return _Norm(name, module, is_same(module(x_BTD + 20), 0.1), epsilon, bias_D)
