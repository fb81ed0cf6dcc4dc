"""The hooks of one observation: calls are kept while a block runs, and become views when it ends.

Notable: where a sequence comes in stretches, a view gathers over all of them, and the probes see it when the sequence is
complete.
"""

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...ops.attention_stats import Gates, Stretch
from ...record import Row
from ..blocks import Block, blocks
from ..probe import AttentionView, Probe, norms_alone, show, statistics_of
from ..residual import ResidualView
from .calls import Call, noticed_call, read_call, same_output
from .gates import FAMILIES
from .intercept import Fused, Softmaxed
from .interpose import Attend
from .masks import Part, of_part, of_tokens, read_mask, read_stretch
from .waiting import Waiting

# Children of a block that mix no tokens.
_LOCAL = re.compile(r"norm|^ln|mlp|ffn|feed_forward|^fc|drop|act|moe|expert|router|residual|intermediate|^output$")
_LOCAL_CLASS = re.compile(r"(Norm|MLP|MoE|Moe|SparseMoeBlock|Experts|HyperConnection)$")
_MIXER = re.compile(r"Mamba|Mixer|DeltaNet|SSM|Recurrent|ShortConv")
UNLIKE = "in a pass it looked up no attention function, as blocks like it do, and was not looked at"
UNSEEN = "no call of an attention function that can be replaced was seen in it"


@dataclass
class Look:
    """A view, the part of the batch that it is of, and the stretch that it has not gathered yet."""

    part: Part
    view: AttentionView | ResidualView
    stretch: Stretch | None = None

    @property
    def gates(self) -> Gates:
        """The gates of an attention layer."""
        stretch = self.stretch or getattr(self.view, "last", None)
        return {} if stretch is None else stretch.gates

    def gather(self, probes: list[Probe]) -> None:
        """Have the view take in its stretch."""
        if self.stretch is not None:
            self.view.add(self.stretch, statistics_of(probes, self.stretch.gates))
            self.stretch = None


@dataclass
class Stretches:
    """A batch of sequences of `n_tokens` that comes in stretches: how much was read, and what was gathered, by module."""

    n_tokens: int
    n_read: int = 0
    views: dict[str, AttentionView | ResidualView] = field(default_factory=dict)


class Recording(Protocol):
    """What a watch needs of its recorder."""

    probes: list[Probe]
    domain_BT: Tensor | None
    tokens_BT: Tensor | None
    stretches: Stretches | None

    def miss(self, name: str, module: nn.Module, why: str) -> None:
        """Note a module that cannot be observed."""

    def saw(self, name: str) -> None:
        """Note one that was."""

    def rows(self, run: str, step: int) -> list[Row]:
        """Everything measured so far."""


class Watch:
    """Turns what runs inside a model into views, and shows them to the recorder's probes."""

    def __init__(self, model: nn.Module, recorder: Recording, named: dict[str, nn.Module]):
        self.model, self.recorder = model, recorder
        self.names = {module: name for name, module in named.items()}
        self.blocks = {block.name: block for block in blocks(model, named)}
        self.kinds = _kinds(self.blocks, named)
        self.calls: list[Call] = []
        # Whether blocks of a kind, each that ran, looked up their attention and had no softmax of their own; and the kind of
        # the one that runs.
        self.looked_up: dict[Hashable, bool] = {}
        self.running: Hashable = None
        # What looks up its attention function, whose own softmax is not to be noticed again.
        self.registered: set[nn.Module] = set()
        self.is_paused = False
        # Tokens of the pass, as its blocks showed.
        self._n_passed = 0
        self.gates: dict[nn.Module, Tensor] = {}
        self.read: dict[tuple[int, int, int, bool, bool], tuple[Tensor | None, list[Part] | None]] = {}
        self.padding: dict[str | None, list[Part]] = {}
        self.waiting = Waiting(recorder.probes)

    def hooks(self) -> list[Any]:
        """Hooks on the model, its blocks and the projections that hold gates; their handles."""
        handles = [
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.model.register_forward_hook(self._end),
        ]
        for block in self.blocks.values():
            handles.append(block.module.register_forward_hook(partial(self._ran, block)))
        for module in self.names:
            if family := FAMILIES.get(type(module).__name__):
                projection = getattr(module, family.projection)
                handles.append(projection.register_forward_hook(self._gate_hook(module)))
        return handles

    def around(self, attend: Attend, module: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        """Let an attention function run, and note what it was given and gave."""
        self.registered.add(module)
        output = attend(module, *arguments, **keywords)
        if module in self.names and not self.is_paused:
            call = read_call(module, self.names[module], attend.is_sdpa, arguments, keywords)
            call.y_BTHK = same_output(output, call)
            self.calls.append(call)
        return output

    def noticed(self, softmax: Softmaxed | Fused) -> None:
        """Note an attention that a family computes in its own code."""
        if self.is_paused:
            return
        self.looked_up[self.running] = False
        if softmax.v_BGSK is None:
            self.recorder.miss(softmax.name, softmax.module, "what its softmax weighs was not seen")
        else:
            self.calls.append(noticed_call(softmax))

    def needless(self, module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
        """Whether the blocks like this one that ran, given the like, all looked up their attention and had no softmax of their
        own. If this one then looks up nothing it is named as unobserved, and its kind is looked at from then on."""
        self.running = None
        if (kind := self.kinds.get(self.names[module])) is None:
            return False
        given = tuple(x is None for x in args), tuple(name for name, x in keywords.items() if x is not None)
        self.running = kind, given
        return self.looked_up.get(self.running, False)

    def _begin(self, _model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.calls.clear()
        self.running = None
        self.gates.clear()
        self.read.clear()
        self.waiting.clear()
        given = signature(self.model.forward).bind_partial(*args, **keywords).arguments
        is_both = getattr(self.model.config, "is_encoder_decoder", False)
        masks = {None: given.get("decoder_attention_mask" if is_both else "attention_mask")}
        if is_both:
            masks["encoder"] = given.get("attention_mask")
        self.padding = {stack: _kept(mask) for stack, mask in masks.items() if mask is not None and mask.dim() == 2}

    @torch.no_grad()
    def _end(self, *_: Any) -> None:
        if self.is_paused:
            return
        if not self.calls and not self.blocks:
            self.recorder.miss("", self.model, UNSEEN)
        looks, n_tokens = self._looks()  # of what stands in no block
        self._give(looks)
        self.waiting.show()
        if self.recorder.stretches is not None:
            self.recorder.stretches.n_read += self._n_passed or n_tokens
            self._n_passed = 0
        self.read.clear()

    def _gate_hook(self, attention: nn.Module) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.gates[attention] = output.detach()

        return hook

    @torch.no_grad()
    def _ran(self, block: Block, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if not self.is_paused:
            # Not under a mode of somebody else, which would see each of these as a call of the model's.
            with torch._C.DisableTorchFunction():
                self._after(block, output[0] if isinstance(output, tuple) else output)

    def _after(self, block: Block, x_BTD: Tensor) -> None:
        """A block has run, and this came out."""
        self._miss_mixers(block)
        if self.running is not None:
            self._trust(block)
        # What goes on from a cache is no sequence of its own.
        goes_on = any(not call.is_cross and call.sizes[1] != call.sizes[2] for call in self.calls)
        looks, _ = self._looks(block)
        if x_BTD.dim() == 3 and (self.recorder.stretches is not None or not goes_on):
            looks += self._residuals(block, x_BTD.detach(), looks)
            self._n_passed = x_BTD.shape[1]
        self._give(looks)

    def _trust(self, block: Block) -> None:
        """Learn whether blocks of the kind that ran need to be looked at."""
        if self.looked_up.get(self.running, False) and not self.calls:
            self.recorder.miss(block.name, block.module, UNLIKE)
        self.looked_up[self.running] = self.looked_up.get(self.running, True) and bool(self.calls)
        self.running = None

    def _miss_mixers(self, block: Block) -> None:
        """Note what mixes tokens in a block and is no attention that was seen."""
        seen = [call.name for call in self.calls]
        for child, mixer in block.module.named_children():
            kind = type(mixer).__name__
            # Beside attention only what is known to mix: other children may be anything.
            if seen and not _MIXER.search(kind):
                continue
            name, is_local = f"{block.name}.{child}", _LOCAL.search(child.lower()) or _LOCAL_CLASS.search(kind)
            if not is_local and not any(s.startswith(name) for s in seen):
                self.recorder.miss(name, mixer, UNSEEN)

    def _residuals(self, block: Block, x_BTD: Tensor, looks: list[Look]) -> list[Look]:
        if self.recorder.stretches is not None:
            view = self._gathered(block.name, self._residual(block))
            view.add(x_BTD)
            return []
        own = [look.part for look in looks if look.view.stack != "cross"]
        out: list[Look] = []
        for part in own or self.padding.get(block.stack) or [Part(None, 0, x_BTD.shape[1], is_causal=False)]:
            view = self._residual(block)
            view.add(of_tokens(part, x_BTD, 1))
            out.append(Look(part, view))
        return out

    def _residual(self, block: Block) -> ResidualView:
        return ResidualView(block.layer, block.stack, norms_alone(self.recorder.probes))

    def _layer(self, name: str, ran: Block | None) -> int:
        """The layer that the name of something in a block states, most likely in the one that ran."""
        for block in chain([ran] if ran is not None else [], self.blocks.values()):
            if name == block.name or name.startswith(f"{block.name}."):
                return block.layer
        number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
        return int(number[1]) if number else getattr(self.model.get_submodule(name), "layer_idx", None) or 0

    def _looks(self, ran: Block | None = None) -> tuple[list[Look], int]:
        """What the calls that were kept show, and how many queries they had."""
        calls, self.calls = self.calls, []
        looks: list[Look] = []
        for call in calls:
            if sum(c.module is call.module for c in calls) > 1:
                found: Any = "it calls attention more than once in a pass"
            else:
                call.gate_BTN = self.gates.get(call.module)
                layer = self._layer(call.name, ran)
                found = self._look(call, layer) if self.recorder.stretches is None else self._gather(call, layer)
            if isinstance(found, str):
                self.recorder.miss(call.name, call.module, found)
            else:
                looks += found
                self.recorder.saw(call.name)
        self.gates.clear()
        return looks, max((call.sizes[1] for call in calls), default=0)

    def _give(self, looks: list[Look]) -> None:
        """Show views to the probes, those of the same sequences together: a probe may join a block's attention and its
        output. Where every layer is like the others, probes that take several wait for the end of the pass."""
        probes = self.recorder.probes
        alone = [probe for probe in probes if not probe.takes_layers]
        waits = len(alone) < len(probes) and not any(look.gates for look in looks)
        if alone or not waits:
            for look in looks:
                look.gather(probes)
            for rows in dict.fromkeys(look.part.rows for look in looks):
                for look in looks:
                    if look.part.rows == rows:
                        show(look.view, alone if waits else probes)
        for look in looks if waits else ():
            if look.stretch is None:
                self.waiting.add(look.part.rows, look.view)
            else:
                self.waiting.keep(look.part.rows, look.view, look.stretch)

    def _look(self, call: Call, layer: int) -> list[Look] | str:
        """What one layer shows, or why there is nothing."""
        B, T, S = call.sizes
        if (why := call.refused()) is not None:
            return why
        if T != S and not call.is_cross:
            return f"{T} queries meet {S} keys: a cache, or keys that are not the queries' tokens"
        parts = self._parts(call)
        if parts is None:
            return "its mask is neither causal nor open, with or without window, documents and padding"
        if call.is_cross and self.padding.get(None):
            return "some of its queries are padding; run sequences of one length"
        looks = []
        for part in parts:
            queries = slice(None) if call.is_cross else slice(part.start, part.end)
            view = AttentionView(
                layer,
                "cross" if call.is_cross else None if part.is_causal else "encoder",
                _given(self.recorder.domain_BT, part, queries, (B, T), call.v_BGSK.device),
                None if call.is_cross else _given(self.recorder.tokens_BT, part, queries, (B, T), call.v_BGSK.device),
            )
            looks.append(Look(part, view, call.stretch(part, layer)))
        return looks

    def _parts(self, call: Call) -> list[Part] | None:
        # Layers share masks; the tensor is kept, so that its id stays its own.
        _, T, S = call.sizes
        key = (id(call.mask), T, S, call.is_causal, call.is_cross)
        if key not in self.read:
            if self.recorder.stretches is None:
                found = read_mask(call.mask, T, S, is_causal=call.is_causal, is_cross=call.is_cross)
            else:
                part = None if call.mask is None and not call.is_causal and T > 1 else read_stretch(call.mask, T, S)
                found = None if part is None else [part]
            self.read[key] = (call.mask, found)
        return self.read[key][1]

    def _gather(self, call: Call, layer: int) -> list[Look] | str:
        """Add a call to the view of its layer; nothing to show yet, or why it cannot be."""
        stretches, (B, T, S) = self.recorder.stretches, call.sizes
        if (why := call.refused()) is not None:
            return why
        start_key = stretches.n_read + T - S
        if call.is_cross or start_key < 0:
            return "its keys are other tokens, and a sequence in stretches shows them again and again"
        parts = self._parts(call)
        if parts is None:
            return "its mask is neither causal nor a window's, which a sequence in stretches needs"
        whole = slice(None)
        view = self._gathered(
            call.name,
            AttentionView(
                layer,
                None,
                _given(self.recorder.domain_BT, parts[0], whole, (B, stretches.n_tokens), call.v_BGSK.device),
                _given(self.recorder.tokens_BT, parts[0], whole, (B, stretches.n_tokens), call.v_BGSK.device),
            ),
        )
        stretch = call.stretch(parts[0], layer, start_key=start_key, n_tokens=stretches.n_tokens)
        view.add(stretch, statistics_of(self.recorder.probes, stretch.gates))
        return []

    def _gathered(self, name: str, new: Any) -> Any:
        return self.recorder.stretches.views.setdefault(name, new)

    def finish(self, stretches: Stretches) -> None:
        """Show what was gathered, block by block.

        Raises:
            ValueError: when fewer tokens came than were announced, or more.
        """
        if stretches.n_read != stretches.n_tokens:
            raise ValueError(f"{stretches.n_read} tokens were read, and {stretches.n_tokens} announced; read them all")
        left, whole = dict(stretches.views), Part(None, 0, stretches.n_tokens, is_causal=True)
        for name in self.blocks:
            own = [n for n in left if n.startswith(f"{name}.")] + [n for n in (name,) if n in left]
            self._give([Look(whole, left.pop(n)) for n in own])
        self._give([Look(whole, view) for view in left.values()])
        self.waiting.show()


def _kinds(blocks: Iterable[str], named: dict[str, nn.Module]) -> dict[str, int]:
    """The blocks' kinds, numbered: of one kind are those made of modules of the same names and classes."""
    kinds: dict[str, list[tuple[str, type]]] = {name: [] for name in blocks}
    outer = None
    for name, module in named.items():
        # What a module holds follows it.
        if outer is None or not name.startswith(f"{outer}."):
            outer = name if name in kinds else None
        if outer is not None:
            kinds[outer].append((name[len(outer) :], type(module)))
    numbers: dict[Hashable, int] = {}
    return {name: numbers.setdefault(tuple(kind), len(numbers)) for name, kind in kinds.items()}


def _kept(mask_BT: Tensor) -> list[Part]:
    """The tokens of each sequence that are no padding; nothing where there is none."""
    parts = []
    for b, row_T in enumerate(mask_BT.bool()):
        index = row_T.nonzero().flatten().tolist()
        if index:
            parts.append(Part(b, index[0], index[-1] + 1, is_causal=False))
    return [] if mask_BT.all() else parts


def _given(
    given_BT: Tensor | None, part: Part, tokens: slice, sizes: tuple[int, int], device: torch.device
) -> Tensor | None:
    """The part's domains or ids, of a single row for every sequence of the batch; None where they number other tokens."""
    if given_BT is None or given_BT.shape[1] != sizes[1]:
        return None
    n_sequences = sizes[0] if part.rows is None else 1
    return of_part(part, given_BT)[:, tokens].expand(n_sequences, -1).to(device)
