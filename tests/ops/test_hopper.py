"""FlashAttention-4 with the gate in it: what its main loop is given, what is refused, and the contract on a Hopper GPU.

The kernel before the main loop runs on a CUDA device, else in Triton's interpreter; the main loop itself needs Hopper.
"""

import math
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreter import DEVICE, interpreting
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gatelab.config import GateSpec
from gatelab.config.normaliser import NORMALISERS, SinkLogit, Softmax
from gatelab.ops.contract import check
from gatelab.ops.gated_attention import Call, gated_attention, hopper, visible
from gatelab.ops.gated_attention.cases import Case, inputs
from gatelab.ops.gated_attention.hopper import unserved

with interpreting():
    from gatelab.ops.gated_attention.hopper_prepare import Prepared, prepare

pytestmark = pytest.mark.usefixtures("interpreted")


@dataclass(frozen=True)
class Shape:
    name: str
    B: int = 2
    T: int = 21
    H: int = 3
    K: int = 32
    W: int = 32
    tile: int = 64


SHAPES = (
    Shape("elementwise"),
    Shape("headwise", W=1),
    Shape("ungated", W=0),
    Shape("tile-of-80", T=83, K=64, W=64, tile=80),
    Shape("tile-of-80-headwise", B=1, T=160, H=2, W=1, tile=80),
    Shape("96-channels", B=1, T=5, K=96, W=96),
    Shape("96-channels-headwise", T=65, H=1, K=96, W=1),
    Shape("one-token", B=1, T=1, H=1, K=128, W=128, tile=128),
)
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)


def drawn(shape: Shape, dtype: torch.dtype) -> dict[str, Tensor]:
    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes).to(DEVICE, dtype)

    B, T, H, K = shape.B, shape.T, shape.H, shape.K
    logits = {"logits": 2 * normal(B, T, H, shape.W)} if shape.W else {}
    return {"dz": normal(B, T, H, K), "z": normal(B, T, H, K), "lse": torch.randn(B, H, T, device=DEVICE), **logits}


def prepared(shape: Shape, t: dict[str, Tensor]) -> Prepared:
    logits = t.get("logits")
    dtype = None if logits is None else logits.dtype
    return prepare(t["dz"], t["z"], logits, t["lse"], tile=shape.tile, dtype=dtype)


def by_token(rows_BHP: Tensor, T: int) -> Tensor:
    return rows_BHP[:, :, :T].transpose(1, 2)


def expected(name: str, dz: Tensor, z: Tensor, lse: Tensor, logits: Tensor | None = None) -> Tensor:
    """The formulas of kernels.md, one operation after the other in the given type."""
    sums = (dz * z).sum(3)
    if logits is None:
        return {"dy": dz, "delta": sums, "lse2": lse.transpose(1, 2) / math.log(2)}[name]
    score, is_headwise = logits.sigmoid(), logits.shape[3] == 1
    slopes = dz * z * (-logits).sigmoid()
    raised = lse.transpose(1, 2) - (score.log().squeeze(3) if is_headwise else 0)
    return {
        "dy": dz if is_headwise else dz * score,
        "dlogits": slopes.sum(3, keepdim=True) if is_headwise else slopes,
        "delta": sums / score.squeeze(3) if is_headwise else sums,
        "lse2": raised / math.log(2),
    }[name]


@DTYPES
@by_shape
def test_what_the_main_loop_reads_keeps_the_contract(dtype: torch.dtype, shape: Shape) -> None:
    t = drawn(shape, dtype)
    dy, dlogits, delta, lse2, _ = prepared(shape, t)
    found = {"dy": dy, "delta": by_token(delta, shape.T), "lse2": by_token(lse2, shape.T)}
    for name, value in (found | ({} if dlogits is None else {"dlogits": dlogits})).items():
        is_wide = name in ("delta", "lse2")
        # Statistics are float32 whatever the inputs are: the plain path to beat is that of float32.
        given = {n: v.float() if is_wide else v for n, v in t.items()} | {"grad_BTHK": torch.ones(1, dtype=value.dtype)}
        [verdict] = check(lambda value=value, **_: value, lambda name=name, **t: expected(name, **t), given)
        assert verdict.holds, (name, verdict)


@by_shape
def test_padding_adds_nothing_and_every_element_is_written(monkeypatch: pytest.MonkeyPatch, shape: Shape) -> None:
    t = drawn(shape, torch.float32)
    for name in ("empty", "empty_like"):
        plain = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, plain=plain, **k: plain(*a, **k).fill_(math.nan))
    dy, dlogits, delta, lse2, dq = prepared(shape, t)
    n_rows = -(-shape.T // shape.tile) * shape.tile
    assert delta.shape == lse2.shape == (shape.B, shape.H, n_rows) and dq.shape == (shape.B, shape.H, n_rows * shape.K)
    assert not any(value.isnan().any() for value in (dy, delta, lse2) + (() if dlogits is None else (dlogits,)))
    assert not dq.any() and dq.dtype == torch.float32
    assert not delta[:, :, shape.T :].any() and (lse2[:, :, shape.T :] == math.inf).all()


@pytest.mark.parametrize("W", [1, 32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_shut_and_open_gates_stay_finite(dtype: torch.dtype, W: int) -> None:
    shape = Shape("extreme", T=8, W=W)
    t = drawn(shape, dtype)
    with torch.no_grad():
        t["logits"][:, ::2], t["logits"][:, 1::2] = -1e4, 1e4
        t["logits"][:, 0], t["logits"][:, 1] = -80.0, 80.0
        t["z"] = (t["z"].float() * t["logits"].float().sigmoid()).to(dtype)
    dy, dlogits, delta, lse2, _ = prepared(shape, t)
    assert all(value.isfinite().all() for value in (dy, dlogits, delta, lse2[:, :, : shape.T]))
    # A query behind a shut gate leaves nothing: its weights are 0, or its upstream gradient is.
    weights = torch.exp2(-by_token(lse2, shape.T)[:, ::2])
    assert (weights * dy[:, ::2].abs().amax(3) < 1e-30).all() and (dlogits[:, ::2].abs() < 1e-30).all()


def row_logits(q: Tensor, k: Tensor, *, is_causal: bool, window: int | None, in_spans: Tensor | None) -> Tensor:
    """[B, H, T, S], −∞ where a key is hidden; `in_spans` [B, T, S] says it in the place of causality and window."""
    seen = in_spans
    if seen is None:
        seen = visible(q.shape[1], k.shape[1], is_causal=is_causal, window=window, mask_BTS=None, device=q.device)
    x_BHTS = torch.einsum("bthk,bshk->bhts", q, k.repeat_interleave(q.shape[2] // k.shape[2], dim=2))
    return (x_BHTS / math.sqrt(q.shape[3])).masked_fill(~seen[:, None], -math.inf)


def within(spans_2BT: Tensor | None) -> Tensor | None:
    """Which positions, last, are in the span of each, [B, T, T]."""
    if spans_2BT is None:
        return None
    at_T = torch.arange(spans_2BT.shape[2], device=spans_2BT.device)
    start_BT1, stop_BT1 = spans_2BT[..., None]
    return (at_T >= start_BT1) & (at_T < stop_BT1)


class Emulated:
    """What `hopper_kernels` computes, as formulas: the forward pass, and FlashAttention's backward main loop over what it
    is given."""

    @staticmethod
    def queries_of_a_tile(q: Tensor, k: Tensor, *, is_causal: bool, window: int | None, has_documents: bool) -> int:
        return 80

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None, *, is_causal: bool, window: int | None,
        spans_4BT: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        wide = [t if t is None else t.double() for t in (q, k, v, logits)]
        seen = None if spans_4BT is None else within(spans_4BT[:2])
        x_BHTS = row_logits(*wide[:2], is_causal=is_causal, window=window, in_spans=seen)
        each_v = wide[2].repeat_interleave(q.shape[2] // v.shape[2], dim=2)
        z = torch.einsum("bhts,bshk->bthk", x_BHTS.softmax(3), each_v) * (1 if logits is None else wide[3].sigmoid())
        return z.to(q.dtype).contiguous(), x_BHTS.logsumexp(3).float()

    @staticmethod
    def backward(
        q: Tensor, k: Tensor, v: Tensor, given: Prepared, *, is_causal: bool, window: int | None,
        spans_4BT: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        T, R, dtype = q.shape[1], q.shape[2] // k.shape[2], q.dtype
        q, k, v, dy = (t.double() for t in (q, k, v, given.dy_BTHK))
        seen = None if spans_4BT is None else within(spans_4BT[2:]).mT
        x_BHTS = row_logits(q, k, is_causal=is_causal, window=window, in_spans=seen)
        each_k, each_v = (t.repeat_interleave(R, dim=2) for t in (k, v))
        p_BHTS = torch.exp2(x_BHTS / math.log(2) - given.lse2_BHP[:, :, :T, None])
        slopes = torch.einsum("bthk,bshk->bhts", dy, each_v) - given.delta_BHP[:, :, :T, None]
        ds_BHTS = p_BHTS * slopes / math.sqrt(q.shape[3])
        dq, dk = torch.einsum("bhts,bshk->bthk", ds_BHTS, each_k), torch.einsum("bhts,bthk->bshk", ds_BHTS, q)
        dv = torch.einsum("bhts,bthk->bshk", p_BHTS, dy)
        dk, dv = (t.unflatten(2, (-1, R)).sum(3) for t in (dk, dv))
        dq, dk, dv = (t.to(dtype).contiguous() for t in (dq, dk, dv))
        return dq, dk, dv


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper, "_kernels", lambda: Emulated)


def attend(**a: Any) -> Tensor:
    given = (a["q_BTHK"], a["k_BSGK"], a["v_BSGK"], a["gate_logits_BTHK"])
    packed = {"segment_ids_BT": a["segment_ids_BT"]} if "segment_ids_BT" in a else {}
    return hopper.attention(*given, is_causal=a["is_causal"], window=a["window"], **packed)[0]


REFERENCE = partial(gated_attention, impl="reference")
FEW = Case("few", T=19, G=2)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("changes", [{}, {"window": 5}, {"is_causal": False, "S": 26}], ids=str)
@pytest.mark.parametrize("gate", [None, "sdpa-headwise", "sdpa-elementwise"])
def test_the_operator_over_emulated_kernels_keeps_the_contract(
    gate: str | None, changes: dict[str, Any], dtype: torch.dtype
) -> None:
    arguments = inputs(replace(FEW, gate=gate, **changes), seed=4, dtype=dtype, device=DEVICE)
    verdicts = check(attend, REFERENCE, arguments)
    assert len(verdicts) == 4 + (gate is not None) and all(v.holds for v in verdicts), verdicts


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("shape", [(1, 1, 4, 32), (1, 1, 4, 1), (2, 1, 1, 32), (1, 19, 1, 1)], ids=str)
def test_a_constant_gets_the_sum_of_its_gradients(shape: tuple[int, ...]) -> None:
    word = "elementwise" if shape[3] > 1 else "headwise"
    arguments = inputs(replace(FEW, gate=f"sdpa-{word}-static"), seed=5, dtype=torch.bfloat16, device=DEVICE)
    arguments["gate_logits_BTHK"] = torch.randn(shape).to(DEVICE, torch.bfloat16).requires_grad_()
    verdicts = check(attend, REFERENCE, arguments)
    assert len(verdicts) == 5 and all(v.holds for v in verdicts), verdicts


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("gate", [None, "sdpa-headwise", "sdpa-elementwise"])
def test_the_operators_are_what_torch_expects_of_them(gate: str | None) -> None:
    arguments = inputs(replace(FEW, T=6, gate=gate), seed=6, dtype=torch.float32, device=DEVICE)
    given = [arguments[n] for n in ("q_BTHK", "k_BSGK", "v_BSGK", "gate_logits_BTHK")]
    forward, backward = (getattr(torch.ops.gatelab, n).default for n in ("gated_hopper", "gated_hopper_backward"))
    torch.library.opcheck(forward, (*given, True, 3))
    plain = [t if t is None else t.detach() for t in given]
    z, lse = forward(*plain, True, 3)
    torch.library.opcheck(backward, (torch.randn_like(z), *plain, z, lse, True, 3))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("gate", ["sdpa-headwise", "sdpa-elementwise"])
def test_slices_of_one_odd_projection_give_what_copies_of_them_give(gate: str) -> None:
    slices, copies = slices_and_copies(replace(FEW, gate=gate), torch.float32)
    found, expected = (hopper.attention(*t, is_causal=True)[0] for t in (slices, copies))
    upstream = torch.randn_like(found)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(z, t, upstream) for z, t in ((found, slices), (expected, copies))]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def slices_and_copies(case: Case, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """q, k, v and logits, of one projection whose rows begin anywhere, and of their own."""
    arguments = inputs(case, seed=3, dtype=dtype, device=DEVICE)
    copies = [arguments[n] for n in ("q_BTHK", "k_BSGK", "v_BSGK", "gate_logits_BTHK")]
    sizes = [t[0, 0].numel() for t in copies]
    odd = torch.full((*copies[0].shape[:2], 5), math.nan, dtype=dtype, device=DEVICE)
    wide = torch.cat([odd[..., :2], *(t.detach().flatten(2) for t in copies), odd[..., 2:]], dim=-1)
    pieces = wide.split([2, *sizes, 3], dim=-1)[1:-1]
    return [p.unflatten(-1, t.shape[2:]).requires_grad_() for p, t in zip(pieces, copies, strict=True)], copies


def a_call(**changes: Any) -> Call:
    given = {"n_queries": 8, "n_keys": 8, "head_dim": 128, "dtypes": (torch.bfloat16,), "device": torch.device("cuda")}
    return Call(**(given | changes))


@pytest.fixture
def on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(hopper, "_installed", lambda: hopper._VERSION)


def test_what_it_serves(on_hopper: None) -> None:
    assert unserved(Softmax()) is None and unserved(Softmax(), a_call()) is None
    for changes in (
        {"gate": GateSpec.parse("sdpa-elementwise")},
        {"gate": GateSpec.parse("sdpa-headwise-static")},
        {"window": 4},
        {"extras": ("segment_ids_BT",)},
        {"n_queries": 3},
        {"is_causal": False, "n_keys": 5, "head_dim": 96},
        {"dtypes": (torch.float16, torch.float16), "head_dim": 64},
    ):
        assert unserved(Softmax(), a_call(**changes)) is None, changes


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"extras": ("mask_BTS",)}, "takes none of mask_BTS, bias_BHTS and score_gate, and mask_BTS came"),
        ({"gate": GateSpec.parse("sdpa-headwise-tanh")}, "a sigmoid of each head's own, and sdpa-headwise-tanh came"),
        ({"gate": GateSpec.parse("sdpa-headwise-lse")}, "do not wait for its log-sum-exp, and sdpa-headwise-lse came"),
        ({"dtypes": (torch.float32,)}, "takes q, k and v of bfloat16 or of float16, and torch.float32 came"),
        ({"dtypes": (torch.bfloat16, torch.float16)}, "and torch.bfloat16, torch.float16 came"),
        ({"head_dim": 80}, "takes heads of 64, 96, 128 channels, and 80 came"),
        ({"device": torch.device("cpu")}, "runs on CUDA devices, and tensors on cpu came"),
    ],
    ids=str,
)
def test_whatever_else_comes_it_refuses_in_a_sentence(on_hopper: None, changes: dict[str, Any], why: str) -> None:
    assert unserved(Softmax(), a_call(**changes)).endswith(why)
    assert unserved(SinkLogit()) == "computes a softmax without a slot, and sink-logit is none"
    assert all(unserved(n()) is not None for kind, n in NORMALISERS.items() if kind != "softmax")


def test_a_device_or_an_installation_that_lacks_something_is_told(
    on_hopper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for found, came in ((None, "it is missing"), ("4.0.0", "4.0.0 is installed")):
        monkeypatch.setattr(hopper, "_installed", lambda found=found: found)
        why = f"needs flash-attn-4 {hopper._VERSION}, and {came}: pip install 'gatelab[hopper]'"
        assert unserved(Softmax(), a_call()) == why
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    assert unserved(Softmax(), a_call()) == "needs a CUDA device of capability 9.0, and one of 10.0 came"
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert "in no fixed order" in unserved(Softmax(), a_call())


def test_the_extra_brings_the_version_that_is_asked_for() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert (
        f"flash-attn-4[cu13]=={hopper._VERSION}; platform_system == 'Linux'"
        in (project["optional-dependencies"]["hopper"])
    )


COMPILED = """
import torch
from gatelab.ops.gated_attention import hopper
kernels, half = hopper._kernels(), torch.bfloat16
gates = (None, kernels.Gate(half, False, True), kernels.Gate(half, True, True), kernels.Gate(torch.float32, True, False))
for K in hopper._WIDTHS:
    for kind in (kernels.Kind(True, False, False), kernels.Kind(False, True, True), kernels.Kind(False, True, True, True)):
        for gate in gates:
            kernels._forward(half, K, 1, kind, gate)
        for R in (1, 2):
            kernels._backward(half, K, R, kind)
"""


@pytest.mark.slow
@pytest.mark.skipif(hopper._installed() != hopper._VERSION, reason="needs what the extra hopper installs")
def test_the_kernels_compile_for_hopper_where_there_is_none() -> None:
    for_hopper = os.environ | {"CUTE_DSL_ARCH": "sm_90a", "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-P", "-c", COMPILED], check=True, env=for_hopper)


@pytest.mark.parametrize("width", [0, 1, 64])
def test_what_is_traced_has_the_shapes_of_the_inputs(width: int) -> None:
    with FakeTensorMode():
        wide = torch.empty(2, 9, 600, device="cuda", dtype=torch.bfloat16)
        q, k, v = (t.unflatten(-1, (-1, 64)) for t in wide.split([256, 128, 128, 88], dim=-1)[:3])
        logits = torch.empty(1, 9, 4, width, device="cuda") if width else None
        z, lse = torch.ops.gatelab.gated_hopper(q, k, v, logits, True, None)
        gradients = torch.ops.gatelab.gated_hopper_backward(z, q, k, v, logits, z, lse, True, 4)
    assert z.shape == q.shape and z.is_contiguous() and lse.shape == (2, 4, 9) and lse.dtype == torch.float32
    wanted = (q, k, v, wide.new_empty(0) if logits is None else logits)
    assert [(g.shape, g.dtype) for g in gradients] == [(t.shape, t.dtype) for t in wanted]


@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_empty_inputs_give_empty_outputs_and_gradients_of_zero(empty: str) -> None:
    B, T = (0, 3) if empty == "batch" else (2, 0)
    q = torch.zeros(B, T, 4, 64, dtype=torch.bfloat16, requires_grad=True)
    k = torch.ones(B, 3, 2, 64, dtype=torch.bfloat16, requires_grad=True)
    logits = torch.zeros(B, T, 4, 1, dtype=torch.bfloat16, requires_grad=True)
    z, lse = hopper.attention(q, k, k, logits, is_causal=False)
    z.sum().backward()
    assert z.shape == q.shape == q.grad.shape and lse.shape == (B, 4, T)
    assert not k.grad.any() and logits.grad.shape == logits.shape


PLAIN = Case("plain", T=300, K=128)
CASES = (
    PLAIN,
    replace(PLAIN, name="headwise", gate="sdpa-headwise"),
    replace(PLAIN, name="elementwise", gate="sdpa-elementwise"),
    Case("grouped-odd", T=333, H=6, G=2, K=64, gate="sdpa-elementwise"),
    Case("one-kv-head", T=129, G=1, K=128, gate="sdpa-headwise"),
    Case("both-ways", T=211, K=128, gate="sdpa-headwise", is_causal=False),
    Case("cross", T=190, S=260, G=2, K=128, gate="sdpa-elementwise", is_causal=False),
    Case("last-queries", T=70, S=200, K=64, gate="sdpa-elementwise"),
    Case("keys-that-nobody-sees", T=70, S=700, K=64, gate="sdpa-elementwise", window=30),
    Case("keys-that-nobody-sees-grouped", T=70, S=700, G=2, K=128, gate="sdpa-headwise", window=30),
    Case("one-token", T=1, K=128, gate="sdpa-elementwise"),
    Case("window", T=300, G=2, K=128, gate="sdpa-elementwise", window=70),
    Case("window-both-ways", T=300, K=64, gate="sdpa-headwise", window=33, is_causal=False),
    Case("96-channels", T=270, G=2, K=96, gate="sdpa-elementwise"),
    Case("96-channels-both-ways", T=270, K=96, gate="sdpa-elementwise", is_causal=False),
    Case("96-channels-headwise", T=200, K=96, gate="sdpa-headwise", window=40),
    Case("static", T=150, K=64, gate="sdpa-elementwise-static"),
)


@pytest.fixture
def served() -> None:
    why = unserved(Softmax(), a_call(device=torch.device(DEVICE)))
    if why is not None:
        pytest.skip(f"hopper {why}")


@pytest.mark.gpu
@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_it_keeps_the_contract(dtype: torch.dtype, case: Case) -> None:
    arguments = inputs(case, seed=1, dtype=dtype, device="cuda")
    verdicts = check(attend, REFERENCE, arguments)
    assert len(verdicts) == 4 + (case.gate is not None) and all(v.holds for v in verdicts), verdicts


@pytest.mark.gpu
@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("shape", [(1, 1, 4, 128), (1, 1, 4, 1), (2, 1, 1, 128)], ids=str)
@pytest.mark.parametrize("wide", [torch.bfloat16, torch.float32], ids=str)
def test_a_constant_gate_of_either_type_keeps_the_contract(shape: tuple[int, ...], wide: torch.dtype) -> None:
    word = "elementwise" if shape[3] > 1 else "headwise"
    case = replace(PLAIN, T=140, gate=f"sdpa-{word}-static")
    arguments = inputs(case, seed=2, dtype=torch.bfloat16, device="cuda")
    arguments["gate_logits_BTHK"] = torch.randn(shape).to("cuda", wide).requires_grad_()
    verdicts = check(attend, REFERENCE, arguments)
    assert len(verdicts) == 5 and all(v.holds for v in verdicts), verdicts


@pytest.mark.gpu
@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("gate", ["sdpa-headwise", "sdpa-elementwise"])
def test_slices_give_the_same_bits_as_copies(gate: str) -> None:
    slices, copies = slices_and_copies(replace(PLAIN, G=2, gate=gate), torch.bfloat16)
    found, same = (hopper.attention(*t, is_causal=True) for t in (slices, copies))
    assert torch.equal(found[0], same[0]) and torch.equal(found[1], same[1]) and found[0].is_contiguous()


@pytest.mark.gpu
@pytest.mark.usefixtures("served")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
def test_compiled_in_one_graph_it_keeps_the_contract() -> None:
    compiled = torch.compile(attend, fullgraph=True)
    arguments = inputs(replace(PLAIN, G=2, gate="sdpa-elementwise"), seed=6, dtype=torch.bfloat16, device="cuda")
    verdicts = check(compiled, REFERENCE, arguments)
    assert len(verdicts) == 5 and all(v.holds for v in verdicts), verdicts
    torch._dynamo.reset()
