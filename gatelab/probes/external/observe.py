"""observe: collect the probes' rows while a transformers model runs.

    with observe(model, ["sinks", "massive"]) as recorder:
        model(**tokenizer(text, return_tensors="pt"))
    rows, missing = recorder.rows(), recorder.unobserved

The model's attention function is replaced, through transformers' registry, by one that calls the very function it
replaces and keeps q, k and v until the block ends; the mask function goes with it, without which transformers drops the
causal mask. So the model's output is what it was, and its memory too: a model set to eager attention builds its
T×T matrices as ever, and the probes add a block of queries at a time. What is not a softmax over the keys that a view can
state exactly is named in `unobserved`, and has no rows.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ...config.base import nearest
from ...config.normaliser import Heads, SinkLogit, Softmax
from ...config.run import ProbeConfig
from ...record import Row
from ..capture import PROBES, Recorder
from ..probe import AttentionView, Probe, ResidualView, statistics_of
from .gates import FAMILIES
from .interpose import Attend, interposed
from .masks import Part, read_mask

# Arguments of an attention function that change the weights in a way no view states.
_BEYOND = {
    "softcap": "its logits are capped by a tanh",
    "indices": "it attends to chosen keys",
    "block_indices": "it attends to chosen blocks of keys",
    "sinks": "it adds keys of its own",
}
_CROSS = re.compile(r"(^|\.)(encoder_attn|EncDecAttention|crossattention|cross_attn|cross_attention)(\.|$)")
# Children of a block that mix no tokens.
_LOCAL = re.compile(r"norm|^ln|mlp|ffn|feed_forward|^fc|drop|act|moe|expert|router|residual|intermediate|^output$")
_LOCAL_CLASS = re.compile(r"(Norm|MLP|MoE|Moe|SparseMoeBlock|Experts|HyperConnection)$")
_UNSEEN = "no call of an attention function that can be replaced was seen in it"


@dataclass(frozen=True)
class Unobserved:
    """A module whose attention, if it has any, has no rows, and why."""

    module: str
    class_name: str
    why: str


class Observed(Recorder):
    """The probes of one observation, and what they could not see."""

    def __init__(self, probes: list[Probe]):
        super().__init__(probes)
        self._unobserved: dict[str, Unobserved] = {}

    @property
    def unobserved(self) -> list[Unobserved]:
        """What ran and has no attention rows, in the order it was met."""
        return list(self._unobserved.values())

    def miss(self, name: str, module: nn.Module, why: str) -> None:
        """Note a module that cannot be observed."""
        self._unobserved.setdefault(name, Unobserved(name, type(module).__name__, why))

    def rows(self, run: str = "", step: int = 0) -> list[Row]:
        """Everything measured so far, averaged over all sequences seen; rows of the residual stream alone where no
        attention could be observed.

        Raises:
            ValueError: when no forward pass was seen.
        """
        rows = [row for probe in self.probes for row in probe.rows(run, step)]
        return rows if rows or self._unobserved else super().rows(run, step)


@contextmanager
def observe(
    model: nn.Module,
    names: Sequence[str] | None = None,
    *,
    config: ProbeConfig | None = None,
    domains: tuple[str, ...] = (),
) -> Iterator[Observed]:
    """Watch the attention layers and the blocks' outputs of a transformers model of text.

    A layer's number is its block's place in its stack. Attention is causal, `encoder` (it sees both ways) or `cross` as
    its mask says; padding is left out, so the first token is the first that is no padding. A model set to another
    implementation than `sdpa` and `eager` runs as `sdpa` meanwhile.

    Args:
        model: of transformers 5, not compiled. Run it on whole sequences.
        names: of probes, see `gatelab probes`; None takes all.
        config: thresholds and queries left out.
        domains: names of the domains that `Recorder.domain_BT` numbers.

    Raises:
        ValueError: an unknown probe, a compiled model, one that is not of transformers.
    """
    from transformers import PreTrainedModel

    for name in names or ():
        if name not in PROBES:
            raise ValueError(f"no probe {name!r}: expected {', '.join(PROBES)}{nearest(name, list(PROBES))}")
    if hasattr(model, "_orig_mod") or any(getattr(m, "_compiled_call_impl", None) for m in model.modules()):
        raise ValueError(
            "this model is compiled and would ignore the probes; give and run the module that was compiled"
        )
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"{type(model).__name__} is not a model of transformers; for modules around GatedAttention take `capture`"
        )
    recorder = Observed([PROBES[n](config or ProbeConfig(), domains) for n in (PROBES if names is None else names)])
    watch = _Watch(model, recorder)
    with interposed(model, watch.around):
        handles = watch.hooks()
        try:
            yield recorder
        finally:
            for handle in handles:
                handle.remove()


@dataclass
class _Call:
    """One call of an attention function: [B, H or G, T or S, K] as transformers orders them."""

    module: nn.Module
    q_BHTK: Tensor
    k_BGSK: Tensor
    v_BGSK: Tensor
    mask: Tensor | None
    is_causal: bool
    scaling: float | None
    position_bias: Tensor | None
    sinks_H: Tensor | None
    beyond: str | None


class _Watch:
    """The hooks of one observation: calls are kept while a block runs and become views when it ends."""

    def __init__(self, model: nn.Module, recorder: Observed):
        self.model, self.recorder = model, recorder
        self.names = {m: name for name, m in model.named_modules()}
        self.blocks = _blocks(model)
        self.calls: list[_Call] = []
        self.gates: dict[nn.Module, Tensor] = {}
        self.read: dict[tuple[int, int, int, bool, bool], tuple[Tensor | None, list[Part] | None]] = {}
        self.padding: dict[str | None, list[Part]] = {}

    def hooks(self) -> list[Any]:
        handles = [
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.model.register_forward_hook(self._end),
        ]
        for name, block in self.blocks.items():
            handles.append(block.register_forward_hook(self._block_hook(name)))
        for module in self.names:
            if family := FAMILIES.get(type(module).__name__):
                projection = getattr(module, family.projection)
                handles.append(projection.register_forward_hook(self._gate_hook(module)))
        return handles

    def around(self, attend: Attend, module: nn.Module, *args: Any, **keywords: Any) -> Any:
        """Note what an attention function is given, and let it run."""
        self.called(module, attend.is_sdpa, *args, **keywords)
        return attend(module, *args, **keywords)

    def called(
        self,
        module: nn.Module,
        is_sdpa: bool,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *_: Any,
        scaling: float | None = None,
        is_causal: bool | None = None,
        position_bias: Tensor | None = None,
        s_aux: Tensor | None = None,
        **others: Any,
    ) -> None:
        """An attention function is about to run."""
        if module not in self.names:
            return
        if is_causal is None:
            is_causal = getattr(module, "is_causal", True)
        self.calls.append(
            _Call(
                module,
                *(x.detach() for x in (query, key, value)),
                attention_mask,
                # Without a mask eager attention sees both ways, whatever the module says.
                bool(is_causal) and is_sdpa and query.shape[2] > 1,
                scaling,
                None if position_bias is None else position_bias.detach(),
                None if s_aux is None else s_aux.detach(),
                next((why for name, why in _BEYOND.items() if others.get(name) is not None), None),
            )
        )

    def _begin(self, _model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.calls.clear()
        self.gates.clear()
        self.read.clear()
        given = signature(self.model.forward).bind_partial(*args, **keywords).arguments
        is_both = getattr(self.model.config, "is_encoder_decoder", False)
        masks = {None: given.get("decoder_attention_mask" if is_both else "attention_mask")}
        if is_both:
            masks["encoder"] = given.get("attention_mask")
        self.padding = {stack: _kept(mask) for stack, mask in masks.items() if mask is not None and mask.dim() == 2}

    @torch.no_grad()
    def _end(self, *_: Any) -> None:
        if not self.calls and not self.blocks:
            self.recorder.miss("", self.model, _UNSEEN)
        self._give(self._looks())  # of what stands in no block
        self.read.clear()

    def _gate_hook(self, attention: nn.Module) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.gates[attention] = output.detach()

        return hook

    def _block_hook(self, name: str) -> Any:
        @torch.no_grad()
        def hook(block: nn.Module, _inputs: Any, output: Any) -> None:
            if not self.calls:
                for child, mixer in block.named_children():
                    if not (_LOCAL.search(child.lower()) or _LOCAL_CLASS.search(type(mixer).__name__)):
                        self.recorder.miss(f"{name}.{child}", mixer, _UNSEEN)
            looks = self._looks()
            x_BTD = output[0] if isinstance(output, tuple) else output
            stack, layer = self._place(name)
            if x_BTD.dim() == 3:
                own = [part for part, view in looks if view.stack != "cross"]
                for part in own or self.padding.get(stack) or [Part(None, 0, x_BTD.shape[1], is_causal=False)]:
                    looks.append((part, ResidualView(layer, stack, _of(part, x_BTD)[:, part.start : part.end])))
            self._give(looks)

        return hook

    def _place(self, name: str) -> tuple[str | None, int]:
        """The stack, as in `ResidualView`, and the layer that a block's name, or that of something in it, states."""
        block = next((b for b in self.blocks if name == b or name.startswith(f"{b}.")), None)
        if block is None:
            return None, getattr(self.model.get_submodule(name), "layer_idx", None) or 0
        is_both = getattr(self.model.config, "is_encoder_decoder", False)
        stack = "encoder" if is_both and "encoder" in block.split(".") else None
        return stack, int(re.findall(r"\d+", block)[-1])

    def _looks(self) -> list[tuple[Part, AttentionView | ResidualView]]:
        """The views of the calls that were kept, with their parts of the batch."""
        calls, self.calls = self.calls, []
        looks: list[tuple[Part, AttentionView | ResidualView]] = []
        for call in calls:
            own = self.names[call.module]
            if sum(c.module is call.module for c in calls) > 1:
                found: Any = "it calls attention more than once in a pass"
            else:
                found = self._look(call, own)
            if isinstance(found, str):
                self.recorder.miss(own, call.module, found)
            else:
                looks += found
                self.recorder.n_layers_seen += 1
        self.gates.clear()
        return looks

    def _give(self, looks: list[tuple[Part, AttentionView | ResidualView]]) -> None:
        """Show views to the probes, those of the same sequences together: a probe may join a block's attention and its
        output."""
        for rows in dict.fromkeys(part.rows for part, _ in looks):
            for part, view in looks:
                if part.rows == rows:
                    for probe in self.recorder.probes:
                        (probe.residual if isinstance(view, ResidualView) else probe.attention)(view)

    def _look(self, call: _Call, name: str) -> list[tuple[Part, AttentionView]] | str:
        """The views of one layer, or why there are none."""
        H, T, K = call.q_BHTK.shape[1:]
        G, S = call.k_BGSK.shape[1:3]
        is_cross = getattr(call.module, "is_cross_attention", False) or _CROSS.search(name) is not None
        if call.beyond is not None:
            return call.beyond
        if call.sinks_H is not None and call.sinks_H.numel() != H:
            return f"its sinks of shape {tuple(call.sinks_H.shape)} are not one logit a head"
        if T != S and not is_cross:
            return f"{T} queries meet {S} keys: a cache, or keys that are not the queries' tokens"
        parts = self._parts(call, is_cross)
        if parts is None:
            return "its mask is neither causal nor open, with or without window, documents and padding"
        gates = {}
        if (family := FAMILIES.get(type(call.module).__name__)) and call.module in self.gates:
            gates["sdpa"] = family.gate(self.gates[call.module], H, K)
        # A view's logits are q·k/√K.
        scale = 1.0 if call.scaling is None else call.scaling * math.sqrt(K)
        q_BTHK = call.q_BHTK.transpose(1, 2)
        q_BTHK = q_BTHK if math.isclose(scale, 1.0) else q_BTHK * scale
        layer = self._place(name)[1]
        looks = []
        for part in parts:
            keys = slice(part.start, part.end)
            queries = slice(None) if is_cross else keys
            bias = None if call.position_bias is None else _of(part, call.position_bias)[..., queries, keys]
            ids_T = part.segment_ids_T
            n = len(call.q_BHTK) if part.rows is None else 1
            own = {site: (spec, _of(part, logits_BTHK)[:, queries]) for site, (spec, logits_BTHK) in gates.items()}
            view = AttentionView(
                layer=layer,
                stack="cross" if is_cross else None if part.is_causal else "encoder",
                q_BTHK=_of(part, q_BTHK)[:, queries],
                k_BSGK=_of(part, call.k_BGSK)[:, :, keys].transpose(1, 2),
                v_BSGK=_of(part, call.v_BGSK)[:, :, keys].transpose(1, 2),
                gates=own,
                normaliser=Softmax() if call.sinks_H is None else SinkLogit(),
                learned=None if call.sinks_H is None else {"sink_logit_H": call.sinks_H.flatten()},
                heads=Heads(H, G, K, layer),
                window=part.window,
                bias_BHTS=bias,
                segment_ids_BT=None if ids_T is None else ids_T.expand(n, -1),
                domain_BT=_given(self.recorder.domain_BT, part, queries, T),
                tokens_BS=None if is_cross else _given(self.recorder.tokens_BT, part, queries, T),
                statistics=statistics_of(self.recorder.probes, own),
            )
            looks.append((part, view))
        return looks

    def _parts(self, call: _Call, is_cross: bool) -> list[Part] | None:
        # Layers share masks; the tensor is kept, so that its id stays its own.
        T, S = call.q_BHTK.shape[2], call.k_BGSK.shape[2]
        key = (id(call.mask), T, S, call.is_causal, is_cross)
        if key not in self.read:
            found = read_mask(call.mask, T, S, is_causal=call.is_causal, is_cross=is_cross)
            self.read[key] = (call.mask, found)
        return self.read[key][1]


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks by name: what transformers checkpoints as one, the outermost."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer in blocks)
        if isinstance(module, GradientCheckpointingLayer) and not is_inside and re.search(r"\d", name):
            blocks[name] = module
    return blocks


def _kept(mask_BT: Tensor) -> list[Part]:
    """The tokens of each sequence that are no padding; nothing where there is none."""
    parts = []
    for b, row_T in enumerate(mask_BT.bool()):
        index = row_T.nonzero().flatten().tolist()
        if index:
            parts.append(Part(b, index[0], index[-1] + 1, is_causal=False))
    return [] if mask_BT.all() else parts


def _of(part: Part, values: Tensor) -> Tensor:
    """The part's sequences; an axis of 1 is of every sequence."""
    return values if part.rows is None or len(values) == 1 else values[part.rows : part.rows + 1]


def _given(given_BT: Tensor | None, part: Part, tokens: slice, n_tokens: int) -> Tensor | None:
    """The part's domains or ids; None where they number other tokens."""
    return None if given_BT is None or given_BT.shape[1] != n_tokens else _of(part, given_BT)[:, tokens]
