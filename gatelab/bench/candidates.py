"""Who computes gated attention, or the gate alone: every implementation of this package, and the peers that are installed.

Notable: a peer is imported only when its turn comes, and one that is not there is left out. Peers that are compiled, and
kernels that a CPU does not have, are candidates on CUDA alone. Causal, which all of them serve; a window and documents go to each
in the form that it takes, and to who takes none as a mask.
"""

import operator
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..config.gate import GateSpec
from ..ops.gate_apply import apply_gate
from ..ops.gate_apply.fused import gate_gradients, gate_output
from ..ops.gated_attention import IMPLEMENTATIONS, OPERATORS, gated_attention
from ..ops.gated_attention.flash import KEEPS_OUTPUT
from .seen import Seen

Call = Callable[..., Tensor]
QWEN = "transformers, as Qwen3-Next"
_LONGEST_MATRIX = 2048  # tokens; the reference keeps whole matrices
# Own implementations of which one is the fastest where a goal is set.
_FASTEST = ("hopper", *KEEPS_OUTPUT)
_BACKENDS = {
    "torch cuDNN": SDPBackend.CUDNN_ATTENTION,
    "torch flash": SDPBackend.FLASH_ATTENTION,
    "torch efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def often_compiled(device: str) -> AbstractContextManager[object]:
    """Where a function may be compiled anew for each gate, and for each shape or check: the default limit is 8 in all."""
    if device != "cuda":
        return nullcontext()
    import torch._dynamo

    return torch._dynamo.config.patch(recompile_limit=64)


@dataclass(frozen=True)
class Candidate:
    """A function of (q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK=None), or for the gate alone of (y_BTHK, logits_BTHK), by
    these names; `more_passes`: how often more than a gate after attention its kernels touch a tensor as large as the output
    in the backward pass; `without`: what it gives no gradient of; `is_operator`: whether the gate is inside of it, so that
    less need be kept; `has_matrices`: whether it makes all weights of attention; `is_first`: whether a goal is about its time,
    as a baseline too."""

    name: str
    call: Call
    is_own: bool = False
    more_passes: int = 0
    without: tuple[str, ...] = ()
    is_operator: bool = False
    has_matrices: bool = False
    is_first: bool = False


def attention_candidates(spec: GateSpec | None, seen: Seen) -> list[Candidate]:
    """Of one gate, or of none; own implementations first. One that refuses the shape is among them, and says so itself."""
    is_cuda = seen.device.type == "cuda"
    own = [
        Candidate(
            f"gatelab {name}",
            partial(gated_attention, gate=spec, impl=name, **seen.given),
            is_own=True,
            more_passes=_more_passes(name, spec),
            is_operator=name in OPERATORS,
            has_matrices=name == "reference",
            is_first=name in _FASTEST,
        )
        for name in (*IMPLEMENTATIONS, *(OPERATORS if is_cuda else KEEPS_OUTPUT))
        if name != "reference" or seen.length <= _LONGEST_MATRIX
    ]
    pinned = _BACKENDS if is_cuda else {"torch flash": SDPBackend.FLASH_ATTENTION}
    peers = [
        Candidate(
            name, partial(_pinned, spec=spec, backend=b, seen=seen), is_first=spec is None and name == "torch cuDNN"
        )
        for name, b in pinned.items()
    ]
    if is_cuda:
        peers += [Candidate("torch.compile", _compiled(spec, seen)), Candidate("FlexAttention", _flex(spec, seen))]
    if is_cuda and _has("flash_attn.cute"):
        peers.append(Candidate("FA4", partial(_fa4, spec=spec, seen=seen), is_first=spec is None))
    if spec is not None and spec.slug == "sdpa-elementwise" and _has("transformers"):
        peers.append(Candidate(QWEN, partial(_qwen3_next, seen=seen)))
    return own + peers


def gate_candidates(spec: GateSpec, device: torch.device) -> list[Candidate]:
    """The gate alone: eager, compiled, and in one pass each way, from the ungated output and from the gated one (lean).

    Of a headwise gate the last two leave the output's gradient to attention's own backward kernel, and give none."""
    candidates = [Candidate("eager", partial(_apply, spec=spec))]
    if device.type == "cuda":
        candidates.append(Candidate("torch.compile", _compiled_gate(spec)))
    if (spec.form, spec.activation, spec.sharing) != ("mul", "sigmoid", "specific"):
        return candidates
    without = ("y_BTHK",) if spec.granularity == "headwise" else ()
    for name, keeps in KEEPS_OUTPUT.items():
        call, more = partial(_fused, is_output=keeps), _more_passes(name, spec)
        candidates.append(Candidate(f"gatelab {name}", call, is_own=True, more_passes=more, without=without))
    return candidates


def _more_passes(name: str, spec: GateSpec | None) -> int:
    """Flash recovers the output or is given it, and raises the log-sum-exp in the place of a headwise gate's product."""
    if name not in KEEPS_OUTPUT or spec is None:
        return 0
    return (not KEEPS_OUTPUT[name]) - (spec.granularity == "headwise")


class _Fused(torch.autograd.Function):
    """The gate's kernels of `flash`, without attention."""

    @staticmethod
    def forward(ctx: Any, y_BTHK: Tensor, logits_BTHK: Tensor, is_output: bool) -> Tensor:
        z_BTHK = gate_output(y_BTHK, logits_BTHK)
        ctx.save_for_backward(y_BTHK if is_output else z_BTHK, logits_BTHK)
        ctx.is_output = is_output
        return z_BTHK

    @staticmethod
    def backward(ctx: Any, dz_BTHK: Tensor) -> tuple[Tensor | None, Tensor, None]:
        kept_BTHK, logits_BTHK = ctx.saved_tensors
        lse_BHT = _any_lse(*kept_BTHK.shape[:3], kept_BTHK.device)
        found = gate_gradients(dz_BTHK, kept_BTHK, logits_BTHK, lse_BHT, is_output=ctx.is_output)
        return found.dy_BTHK if ctx.needs_input_grad[0] else None, found.dlogits_BTHK, None


@cache
def _any_lse(B: int, T: int, H: int, device: torch.device) -> Tensor:
    return torch.zeros(B, H, T, device=device)


def _fused(y_BTHK: Tensor, logits_BTHK: Tensor, *, is_output: bool) -> Tensor:
    return _Fused.apply(y_BTHK, logits_BTHK, is_output)


def _compiled_gate(spec: GateSpec) -> Call:
    def applied(y_BTHK: Tensor, logits_BTHK: Tensor) -> Tensor:
        return apply_gate(y_BTHK, logits_BTHK, spec)

    return torch.compile(applied, fullgraph=True, dynamic=False)


def _apply(y_BTHK: Tensor, logits_BTHK: Tensor, *, spec: GateSpec) -> Tensor:
    return apply_gate(y_BTHK, logits_BTHK, spec)


def _gated(y_BTHK: Tensor, logits_BTHK: Tensor | None, spec: GateSpec | None) -> Tensor:
    return y_BTHK if spec is None else apply_gate(y_BTHK, logits_BTHK, spec)


def _attention(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask_TS: Tensor | None) -> Tensor:
    q_BHTK, k_BGSK, v_BGSK = (t.transpose(1, 2) for t in (q_BTHK, k_BSGK, v_BSGK))
    is_grouped = k_BGSK.shape[1] != q_BHTK.shape[1]
    y_BHTK = F.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSK, attn_mask=mask_TS, is_causal=mask_TS is None, enable_gqa=is_grouped
    )
    return y_BHTK.transpose(1, 2)


def _pinned(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None = None,
    *,
    spec: GateSpec | None,
    backend: SDPBackend,
    seen: Seen,
) -> Tensor:
    with sdpa_kernel(backend):
        y_BTHK = _attention(q_BTHK, k_BSGK, v_BSGK, seen.mask_TS)
    return _gated(y_BTHK, gate_logits_BTHK, spec)


def _compiled(spec: GateSpec | None, seen: Seen) -> Call:
    def attended(
        q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, gate_logits_BTHK: Tensor | None, mask_TS: Tensor | None
    ) -> Tensor:
        return _gated(_attention(q_BTHK, k_BSGK, v_BSGK, mask_TS), gate_logits_BTHK, spec)

    # In one graph, or it raises: torch would else run what it recompiled too often eagerly, under the same name.
    compiled = torch.compile(attended, fullgraph=True, dynamic=False)

    def call(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, gate_logits_BTHK: Tensor | None = None) -> Tensor:
        return compiled(q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK, seen.mask_TS)

    return call


def _flex(spec: GateSpec | None, seen: Seen) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    masks: list[object] = []

    def attended(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, logits: Tensor | None, mask: object) -> Tensor:
        q_BHTK, k_BGSK, v_BGSK = (t.transpose(1, 2) for t in (q_BTHK, k_BSGK, v_BSGK))
        is_grouped = k_BGSK.shape[1] != q_BHTK.shape[1]
        y_BHTK = flex_attention(q_BHTK, k_BGSK, v_BGSK, block_mask=mask, enable_gqa=is_grouped)
        return _gated(y_BHTK.transpose(1, 2), logits, spec)

    # A mask that looks nothing up where nothing is to be.
    rule = operator.ge if seen.is_plain else seen.among
    compiled = torch.compile(attended, fullgraph=True, dynamic=False)

    def call(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, gate_logits_BTHK: Tensor | None = None) -> Tensor:
        if not masks:
            T = seen.length
            masks.append(create_block_mask(lambda b, h, t, s: rule(t, s), None, None, T, T, device=seen.device))
        return compiled(q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK, masks[0])

    return call


def _fa4(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None = None,
    *,
    spec: GateSpec | None,
    seen: Seen,
) -> Tensor:
    from flash_attn.cute import flash_attn_func

    if seen.documents > 1:
        raise ValueError("FA4 takes documents as sequences of their own lengths, which this benchmark does not make")
    reach = {} if seen.window is None else {"window_size": (seen.window - 1, 0)}
    out = flash_attn_func(q_BTHK, k_BSGK, v_BSGK, causal=True, **reach)
    # Some versions return the log-sum-exp as well.
    y_BTHK = out[0] if isinstance(out, tuple) else out
    return _gated(y_BTHK, gate_logits_BTHK, spec)


def _qwen3_next(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, gate_logits_BTHK: Tensor, *, seen: Seen | None = None
) -> Tensor:
    """As Qwen3NextAttention.forward goes on after its projections, norms and rotation, and before its output projection, in our
    reading (transformers 5); a test holds it to that module's own."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    n_groups = q_BTHK.shape[2] // k_BSGK.shape[2]
    module = SimpleNamespace(num_key_value_groups=n_groups, is_causal=True)
    q_BHTK, k_BGSK, v_BGSK = (t.transpose(1, 2) for t in (q_BTHK, k_BSGK, v_BSGK))
    mask_TS = None if seen is None else seen.mask_TS
    mask_BHTS = None if mask_TS is None else mask_TS[None, None]
    y_BTHK, _ = sdpa_attention_forward(module, q_BHTK, k_BGSK, v_BGSK, mask_BHTS, scaling=q_BTHK.shape[3] ** -0.5)
    gated_BTN = y_BTHK.flatten(-2).contiguous() * torch.sigmoid(gate_logits_BTHK.flatten(-2))
    return gated_BTN.unflatten(-1, q_BTHK.shape[2:])


def _has(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # of the package that it would be in
        return False
