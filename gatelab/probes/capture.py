"""capture: collect probes' rows while a model runs, in anyone's loop.

    with capture(model, ["sinks", "gate_scores"]) as recorder:
        model(tokens)
    rows = recorder.rows()

Hooks on taps; nothing is kept but a few numbers a sequence, and no T×T matrix is built. Gradients flow as without it, so
a training step may be watched.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.base import nearest
from ..config.output_map import OUTPUT_MAPS
from ..config.run import ProbeConfig
from ..models.model import Model
from ..nn.attention import HIDES, GatedAttention
from ..ops.attention_stats import Stretch
from ..record import Row
from .anywhere import Anywhere
from .gate_effect import GateEffect
from .gate_scores import GateScores
from .gate_variance import GateVariance
from .massive import Massive
from .position import Position
from .probe import AttentionView, Probe, fetch, norms_alone, show, statistics_of
from .rank import Rank
from .residual import ResidualView
from .shape import Shape
from .sinks import Sinks

PROBES: dict[str, type[Probe]] = {
    "anywhere": Anywhere,
    "gate_effect": GateEffect,
    "gate_scores": GateScores,
    "gate_variance": GateVariance,
    "massive": Massive,
    "position": Position,
    "rank": Rank,
    "shape": Shape,
    "sinks": Sinks,
}


class Recorder:
    """The probes of one capture. Set `domain_BT` before a forward pass to have queries told apart by domain, and
    `tokens_BT` to have the ids named at which sinks sit; both say what self-attention reads, so a model of two stacks has
    neither."""

    def __init__(self, probes: list[Probe]):
        self.probes = probes
        self.domain_BT: Tensor | None = None
        self.tokens_BT: Tensor | None = None
        self.n_layers_seen = 0

    def rows(self, run: str = "", step: int = 0) -> list[Row]:
        """Everything measured so far, averaged over all sequences seen.

        Raises:
            ValueError: when no forward pass was seen: none was run inside the block, or a compiled one, which ignores
                hooks that came after it.
        """
        if not self.n_layers_seen:
            raise ValueError(
                "no forward pass was seen: run the model inside the block, and the uncompiled module if it was compiled"
            )
        fetch(self.probes)
        return [row for probe in self.probes for row in probe.rows(run, step)]

    def rows_of(self, runs: list[str], step: int) -> list[list[Row]]:
        """`rows` of each run of a stacked model: of M runs the first has the first M-th of every batch, and so on.

        Raises:
            ValueError: as `rows`.
        """
        if len(runs) == 1 or not self.n_layers_seen:
            return [self.rows(run, step) for run in runs]
        fetch(self.probes)
        by_probe = [probe.rows_of(runs, step) for probe in self.probes]
        return [[row for rows_M in by_probe for row in rows_M[m]] for m in range(len(runs))]


@contextmanager
def capture(
    model: nn.Module,
    names: Sequence[str] | None = None,
    *,
    config: ProbeConfig | None = None,
    domains: tuple[str, ...] = (),
) -> Iterator[Recorder]:
    """Watch every GatedAttention inside `model`, numbered in order (in a stack of a Gatelab model, by block); residual
    taps too. What an attention layer is, causal, seeing both ways or crossing, it shows at each call.

    Args:
        names: of probes, see `gatelab probes`; None takes all that the model allows (`massive` needs a `Tap` called
            `tap_residual` at the end of each block).
        config: thresholds and queries left out.
        domains: names of the domains that `Recorder.domain_BT` numbers.

    Raises:
        ValueError: an unknown probe, a name in the place of a list, what is no module, a compiled model (it would ignore the
            hooks), heads that are shared among processes, a model without gated attention, `massive` of a model without residual
            taps; in the block, a layer that was compiled before and ignores them.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}: expected a module that holds GatedAttention layers")
    if isinstance(names, str):
        raise ValueError(f"probes {names!r}: give a list of their names, as in capture(model, [{names!r}])")
    for name in names or ():
        if name not in PROBES:
            raise ValueError(f"no probe {name!r}: expected {', '.join(PROBES)}{nearest(name, list(PROBES))}")
    if any(_is_compiled(m) for m in model.modules()):
        raise ValueError(
            "this model is compiled and would ignore the probes; give and run the module that was compiled"
        )
    layers = [m for m in model.modules() if isinstance(m, GatedAttention)]
    if not layers:
        raise ValueError(f"{type(model).__name__} holds no GatedAttention layer, so there is nothing to probe")
    refuse_shared(layers)
    taps = [m.tap_residual for m in model.modules() if isinstance(getattr(m, "tap_residual", None), nn.Module)]
    if names is None:
        names = [name for name in PROBES if taps or name != "massive"]
    elif "massive" in names and not taps:
        raise ValueError(
            "massive: this model has no residual taps; give each block `self.tap_residual = gatelab.nn.tap.Tap()` and "
            "return self.tap_residual(x)"
        )
    recorder = Recorder([PROBES[name](config or ProbeConfig(), domains) for name in names])
    handles: list[Any] = []
    try:
        for index, attention in _numbered(model, layers):
            handles += _watch(attention, index, recorder)
        encoder = {id(m) for name, m in model.named_modules() if name.startswith("encoder_blocks.")}
        for index, tap in _numbered(model, taps):
            stack = "encoder" if id(tap) in encoder else None
            handles.append(tap.register_forward_hook(_residual_hook(index, stack, recorder)))
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def refuse_shared(layers: Iterable[nn.Module]) -> None:
    """Refuses layers of which a process has some heads, which would be numbered from 0 on each.

    Raises:
        ValueError: heads that are shared among processes.
    """
    sharing = sys.modules.get("gatelab.train.shard.tensor")  # which nobody waits for who shares nothing
    if sharing is not None and any(isinstance(layer, sharing.PartOfLayer) for layer in layers):
        raise ValueError(
            "the heads of this model are shared among processes (shard_heads, tensor parallelism), and each would count its own "
            "from 0; probe a model of one process, with the weights that the training saves"
        )


def _is_compiled(module: nn.Module) -> bool:
    # torch.compile(module) wraps it; module.compile() replaces its call.
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _watch(attention: GatedAttention, index: int, recorder: Recorder) -> list[Any]:
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    @torch.no_grad()
    def finish(_module: nn.Module, _args: Any, keywords: dict[str, Any], _output: Tensor) -> None:
        if missing := [name for name in taps if name not in seen]:
            raise ValueError(
                f"attention layer {index} ran and showed no {', '.join(missing)}: this model is compiled and ignores the "
                "probes; run the module that was compiled"
            )
        if keywords.get("cache") is not None:
            raise ValueError("the probes read whole sequences without a cache; run the whole sequence at once")
        if keywords.get("is_token_BS") is not None:
            raise ValueError("the probes would count padding: run rows of one length, without is_token_BS")
        is_cross = keywords.get("context_BSD") is not None
        gates = {site: (gate.spec, seen[site]) for site, gate in attention.gates.items()}
        score_gate, score_logits_BSH1 = gates.get("scores", (None, None))
        hidden_1SH = None if is_cross else attention.hides(*(seen["k"].shape[1],) * 2)
        if hidden_1SH is not None:
            score_gate, score_logits_BSH1 = HIDES, hidden_1SH[..., None]
        stack = "cross" if is_cross else None if keywords.get("is_causal", True) else "encoder"
        stretch = Stretch(
            q_BTHK=seen["q"],
            k_BSGK=seen["k"],
            v_BSGK=seen["v"],
            normaliser=attention.normaliser,
            learned=None if attention.sink is None else attention.sink.learned(len(seen["q"])),
            heads=attention.heads,
            is_causal=stack is None,
            window=attention.window,
            segment_ids_BT=keywords.get("segment_ids_BT"),
            bias_BHTS=keywords.get("bias_BHTS"),
            softcap=attention.softcap,
            score_logits_BSH=None if score_logits_BSH1 is None else score_logits_BSH1.squeeze(-1),
            score_gate=score_gate,
            is_mapped=attention.output_map is not OUTPUT_MAPS["none"],
            gates=gates,
        )
        domain_BT = _of_queries("domain_BT", recorder.domain_BT, seen["q"])
        tokens_BS = None if is_cross else _of_queries("tokens_BT", recorder.tokens_BT, seen["q"])
        view = AttentionView(index, stack, domain_BT, tokens_BS)
        view.add(stretch, statistics_of(recorder.probes, gates))
        seen.clear()
        recorder.n_layers_seen += 1
        show(view, recorder.probes)

    taps = {"q": attention.tap_q, "k": attention.tap_k, "v": attention.tap_v}
    taps |= {site: gate.tap_logits for site, gate in attention.gates.items()}
    handles = [tap.register_forward_hook(keep(name)) for name, tap in taps.items()]
    return [*handles, attention.register_forward_hook(finish, with_kwargs=True)]


def _of_queries(name: str, given_BT: Tensor | None, q_BTHK: Tensor) -> Tensor | None:
    """The domain or id of each query; registers stand before the tokens and have none. None where the queries are
    others."""
    if given_BT is None:
        return None
    if given_BT.dim() != 2 or given_BT.is_floating_point():
        came = f"{tuple(given_BT.shape)} in {given_BT.dtype}"
        raise ValueError(f"{name} of {came}: expected whole numbers [B, T], one a token that the model reads")
    B, T = q_BTHK.shape[:2]
    if given_BT.shape[1] > T:
        return None
    if len(given_BT) not in (1, B):
        raise ValueError(f"{name} of {len(given_BT)} sequences, and the model reads {B}; set it before every pass")
    return F.pad(given_BT.to(q_BTHK.device), (T - given_BT.shape[1], 0), value=-1).expand(B, T)


def _residual_hook(index: int, stack: str | None, recorder: Recorder) -> Any:
    @torch.no_grad()
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        view = ResidualView(index, stack, norms_alone(recorder.probes))
        view.add(output)
        show(view, recorder.probes)

    return hook


def _numbered(model: nn.Module, modules: list[nn.Module]) -> list[tuple[int, nn.Module]]:
    """Modules with their layer: the order in which they stand, or in a Gatelab model their block's place in its stack."""
    if not isinstance(model, Model):
        return list(enumerate(modules))
    names = {id(module): name for name, module in model.named_modules()}
    return [(int(names[id(m)].split(".")[1]), m) for m in modules]
