"""Attention and its gate as one operator: the contract, what it keeps, what it refuses, and what `auto` makes of it."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gatelab.config import GateSpec, ModelConfig
from gatelab.config.normaliser import NORMALISERS, SinkLogit, Softmax
from gatelab.nn.attention import GatedAttention
from gatelab.ops.contract import check
from gatelab.ops.gated_attention import Call, choose, chosen_for, flash, gated_attention, short
from gatelab.ops.gated_attention.call import call_of
from gatelab.ops.gated_attention.cases import CASES, Case, apart, inputs, together
from gatelab.ops.gated_attention.scoring import Scoring, scoring

REFERENCE = partial(gated_attention, impl="reference")
SERVED = {"plain", "headwise", "elementwise", "grouped-odd", "one-kv-head", "both-ways", "cross", "one-token"}
MORE = (
    Case("odd-channels", T=13, H=6, G=2, K=20, gate="sdpa-elementwise"),
    Case("odd-channels-headwise", T=7, H=6, G=3, K=12, gate="sdpa-headwise"),
    Case("ungated-groups", T=9, H=6, G=2, K=16, is_causal=False),
    Case("static", T=11, G=2, gate="sdpa-elementwise-static"),
    Case("other-sources", T=11, G=2, gate="sdpa-headwise-head_slice"),
)
by_impl = pytest.mark.parametrize("impl", flash.KEEPS_OUTPUT)
both_gates = pytest.mark.parametrize("gate", ["sdpa-headwise", "sdpa-elementwise"])
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def tensors(case: Case, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v and the gate's logits, each a leaf."""
    arguments = inputs(case, seed=3, dtype=dtype)
    return [arguments[n] for n in ("q_BTHK", "k_BSGK", "v_BSGK", "gate_logits_BTHK")]


@by_impl
@pytest.mark.parametrize("case", [*(c for c in CASES if c.name in SERVED), *MORE], ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_it_keeps_the_contract(dtype: torch.dtype, case: Case, impl: str) -> None:
    arguments = apart(inputs(case, seed=1, dtype=dtype))
    verdicts = check(together(partial(gated_attention, impl=impl)), together(REFERENCE), arguments)
    assert len(verdicts) == 4 + (case.gate is not None) and all(v.holds for v in verdicts), verdicts


@by_impl
@pytest.mark.parametrize("case", [c for c in CASES if c.name not in SERVED], ids=lambda c: c.name)
def test_whatever_else_there_is_it_refuses_in_a_sentence(case: Case, impl: str) -> None:
    arguments = inputs(case, seed=1, dtype=torch.float32)
    del arguments["grad_BTHK"]
    rest = "sdpa" if case.is_softmax else "reference"
    with pytest.raises(ValueError, match=rf"^impl='{impl}' [a-z].* (came|is none); take {rest}, or auto$"):
        gated_attention(**arguments, impl=impl)
    assert torch.equal(gated_attention(**arguments), gated_attention(**arguments, impl=rest))


@by_impl
@pytest.mark.parametrize("shape", [(1, 1, 4, 32), (1, 1, 4, 1), (2, 1, 4, 1), (1, 1, 1, 32)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_constant_gate_keeps_the_contract(dtype: torch.dtype, shape: tuple[int, ...], impl: str) -> None:
    word = "elementwise" if shape[3] > 1 else "headwise"
    arguments = inputs(Case("static", T=21, G=2, gate=f"sdpa-{word}-static"), seed=2, dtype=dtype)
    arguments["gate_logits_BTHK"] = torch.randn(shape).to(dtype).requires_grad_()
    verdicts = check(together(partial(gated_attention, impl=impl)), together(REFERENCE), apart(arguments))
    assert len(verdicts) == 5 and all(v.holds for v in verdicts), verdicts


@by_impl
@both_gates
def test_slices_of_one_projection_give_what_copies_of_them_give(gate: str, impl: str) -> None:
    case = Case("sliced", T=9, G=2, K=16, gate=gate)
    copies = tensors(case)
    ends = np.cumsum([t[0, 0].numel() for t in copies])
    wide = torch.full((2, 9, int(ends[-1]) + 5), math.nan)
    for t, end in zip(copies, ends, strict=True):
        wide[..., end - t[0, 0].numel() : end] = t.detach().flatten(2)
    wide.requires_grad_()
    slices = [
        wide[..., end - t[0, 0].numel() : end].unflatten(-1, t.shape[2:]) for t, end in zip(copies, ends, strict=True)
    ]
    spec = GateSpec.parse(gate)
    found, expected = (gated_attention(*t, spec, impl=impl) for t in (slices, copies))
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    upstream = torch.randn_like(found)
    [gradient] = torch.autograd.grad(found, wide, upstream)
    apart_ = torch.autograd.grad(expected, copies, upstream)
    torch.testing.assert_close(gradient[..., :-5], torch.cat([g.flatten(2) for g in apart_], dim=-1))
    assert not gradient[..., -5:].any()


def kept_bytes(function: Any, *arguments: Any, **keywords: Any) -> int:
    """Memory of what a function keeps for its backward pass, a storage counted once."""
    storages: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        kept = function(*arguments, **keywords)
    assert kept.requires_grad
    return sum(storages.values())


@by_impl
@both_gates
def test_a_gate_keeps_its_logits_and_nothing_else(gate: str, impl: str) -> None:
    q, k, v, logits = tensors(Case("memory", T=48, G=2, gate=gate), torch.bfloat16)
    found = kept_bytes(gated_attention, q, k, v, logits, GateSpec.parse(gate), impl=impl)
    assert found == sum(2 * t.numel() for t in (q, k, v, q, logits)) + 4 * q[..., 0].numel()
    assert found <= kept_bytes(gated_attention, q, k, v, impl="sdpa") + 2 * logits.numel()
    eager = kept_bytes(gated_attention, q, k, v, logits, GateSpec.parse(gate), impl="sdpa")
    assert found < eager


def test_the_lean_one_keeps_what_the_next_projection_keeps_too() -> None:
    q, k, v, logits = tensors(Case("memory", T=48, gate="sdpa-elementwise"), torch.bfloat16)
    weight, gate = torch.randn(128, 128, dtype=torch.bfloat16, requires_grad=True), GateSpec.parse("sdpa-elementwise")

    def projected(impl: str) -> Tensor:
        return gated_attention(q, k, v, logits, gate, impl=impl).flatten(2) @ weight

    kept, lean, eager = (kept_bytes(projected, impl) for impl in ("flash", "flash-lean", "sdpa"))
    assert kept - lean == 2 * q.numel() and eager > kept


@pytest.mark.parametrize("keeps_output", [True, False])
@pytest.mark.parametrize("gate", [None, "sdpa-headwise", "sdpa-elementwise"])
def test_the_log_sum_exp_comes_along_and_takes_no_gradient(gate: str | None, keeps_output: bool) -> None:
    case = Case("lse", T=9, G=2, K=12, gate=gate)
    q, k, v, logits = tensors(case, torch.float64)
    z, lse_BHT = flash.attention(q, k, v, logits, is_causal=True, keeps_output=keeps_output)
    q_, k_ = q.detach().numpy(), np.repeat(k.detach().numpy(), 2, axis=2)
    exponents = np.einsum("bthk,bshk->bhts", q_, k_) / math.sqrt(12)
    expected = np.log((np.exp(exponents) * np.tril(np.ones((9, 9)))).sum(-1))
    np.testing.assert_allclose(lse_BHT.numpy(), expected, rtol=1e-12)
    assert z.requires_grad and not lse_BHT.requires_grad


@by_impl
@both_gates
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_shut_and_open_gates_stay_finite(dtype: torch.dtype, gate: str, impl: str) -> None:
    q, k, v, logits = tensors(Case("extreme", T=12, G=2, gate=gate), dtype)
    with torch.no_grad():
        logits[:, ::3], logits[:, 1::3], logits[:, 2::3] = -80.0, 80.0, -1e4
    z = gated_attention(q, k, v, logits, GateSpec.parse(gate), impl=impl)
    gradients = torch.autograd.grad(z, (q, k, v, logits), torch.randn_like(z))
    assert all(g.isfinite().all() for g in gradients) and all(g.any() for g in gradients[:3])
    plain = gated_attention(q, k, v, impl="sdpa")
    torch.testing.assert_close(z[:, 1::3], plain[:, 1::3])
    assert (z[:, ::3].abs().float() < 1e-30).all() and not z[:, 2::3].any()
    # A query behind a shut gate moves nothing.
    assert (gradients[0][:, ::3].abs().float() < 1e-30).all() and not gradients[0][:, 2::3].any()


# All that torch checks by itself.
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def assert_as_torch_expects(given: list[Tensor], kernel: str, *, keeps_output: bool, checks: tuple[str, ...]) -> None:
    """Both operators; the first by these checks."""
    forward, backward = (getattr(torch.ops.gatelab, n).default for n in ("gated_flash", "gated_flash_backward"))
    torch.library.opcheck(forward, (*given, kernel, True, keeps_output), test_utils=checks)
    q, k, v, logits = (t if t is None else t.detach() for t in given)
    z, lse, y, seed, offset = forward(q, k, v, logits, kernel, True, keeps_output)
    is_output = keeps_output or logits is None
    kept = y if keeps_output and logits is not None else z
    torch.library.opcheck(
        backward, (torch.randn_like(z), q, k, v, logits, kept, lse, seed, offset, kernel, True, is_output)
    )


@pytest.mark.parametrize("keeps_output", [True, False])
@pytest.mark.parametrize("gate", [None, "sdpa-headwise", "sdpa-elementwise"])
def test_the_operators_are_what_torch_expects_of_them(gate: str | None, keeps_output: bool) -> None:
    given = tensors(Case("checked", T=6, G=2, K=12, gate=gate))
    assert_as_torch_expects(given, "cpu", keeps_output=keeps_output, checks=CHECKS)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["cudnn", "flash"])
@pytest.mark.parametrize("keeps_output", [True, False])
@pytest.mark.parametrize("gate", [None, "sdpa-headwise", "sdpa-elementwise"])
def test_on_a_gpu_the_operators_over_its_kernels_are_too(gate: str | None, keeps_output: bool, kernel: str) -> None:
    why = flash._missing(CUDA)
    if why is not None or (kernel == "cudnn" and not flash._has_cudnn(CUDA)):
        pytest.skip(f"flash {why}" if why else "cuDNN's attention is not taken on this device")
    drawn = tensors(Case("checked", T=24, G=2, K=64, gate=gate), torch.bfloat16)
    given = [t if t is None else t.detach().to(CUDA).requires_grad_() for t in drawn]
    # Without dropout these kernels need not write their two small tensors, so that these are equal to nothing.
    assert_as_torch_expects(given, kernel, keeps_output=keeps_output, checks=CHECKS[:-1])


@pytest.mark.parametrize("keeps_output", [True, False])
@pytest.mark.parametrize("kernel", ["cudnn", "flash"])
def test_what_is_traced_of_cudas_kernels_has_the_shapes_of_the_inputs(kernel: str, keeps_output: bool) -> None:
    with FakeTensorMode():
        wide = torch.empty(2, 9, 600, device="cuda", dtype=torch.bfloat16)
        pieces = wide.split([4 * 64, 2 * 64, 2 * 64, 4, 84], dim=-1)[:4]
        q, k, v, logits = (t.unflatten(-1, (n, -1)) for t, n in zip(pieces, (4, 2, 2, 4), strict=True))
        z, lse, *kept = torch.ops.gatelab.gated_flash(q, k, v, logits, kernel, True, keeps_output)
        seen = (kept[0] if keeps_output else z, lse, *kept[1:], kernel, True, keeps_output)
        gradients = torch.ops.gatelab.gated_flash_backward(z, q, k, v, logits, *seen)
    assert z.shape == q.shape and z.is_contiguous() and lse.shape == (2, 4, 9) and lse.dtype == torch.float32
    assert kept[0].shape == (q.shape if keeps_output else (0,))
    assert [g.shape for g in gradients] == [t.shape for t in (q, k, v, logits)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
@by_impl
@pytest.mark.parametrize("name", ["plain", "one-kv-head", "grouped-odd"])
def test_compiled_in_one_graph_it_keeps_the_contract(name: str, impl: str) -> None:
    case = next(c for c in CASES if c.name == name)
    compiled = torch.compile(partial(gated_attention, impl=impl), fullgraph=True, backend="aot_eager")
    found = check(together(compiled), together(REFERENCE), apart(inputs(case, seed=6, dtype=torch.float32)))
    assert all(v.holds for v in found), found
    torch._dynamo.reset()


@by_impl
@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_empty_inputs_give_empty_outputs_and_gradients_of_zero(empty: str, impl: str) -> None:
    B, T = (0, 3) if empty == "batch" else (2, 0)
    q = torch.zeros(B, T, 4, 8, requires_grad=True)
    k = torch.ones(B, 3, 2, 8, requires_grad=True)
    logits = torch.zeros(B, T, 4, 1, requires_grad=True)
    z = gated_attention(q, k, k, logits, GateSpec.parse("sdpa-headwise"), is_causal=False, impl=impl)
    z.sum().backward()
    assert z.shape == q.shape == q.grad.shape and not k.grad.any() and logits.grad.shape == logits.shape


LAYERS = {
    "headwise": {"gate": "sdpa-headwise"},
    "elementwise": {"gate": "sdpa-elementwise-bias"},
    "static": {"gate": "sdpa-headwise-static"},
    "low rank": {"gate": "sdpa-elementwise-rank=3"},
    "value": {"gate": "sdpa-headwise-value+value-elementwise"},
    "after the op": {"gate": "sdpa-elementwise-hybrid"},
    "none": {"gate": None, "qk_norm": True},
}


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_what_the_reference_computes(name: str, is_packed: bool) -> None:
    def layer(impl: str) -> GatedAttention:
        torch.manual_seed(1)
        made = GatedAttention(d_model=24, n_heads=4, n_kv_heads=2, head_dim=12, impl=impl, **LAYERS[name])
        with torch.no_grad():
            for p in made.parameters():
                p.copy_(torch.randn_like(p) / 3)
        made.is_packed = is_packed
        return made

    layers = {impl: layer(impl) for impl in ("flash-lean", "reference")}
    names = [n for n, _ in layers["reference"].named_parameters()]

    def called(impl: str, x_BTD: Tensor, **weights: Tensor) -> Tensor:
        weights = {n.replace("/", "."): w for n, w in weights.items()}
        return torch.func.functional_call(layers[impl], weights, (x_BTD,))

    arguments = {n.replace(".", "/"): p.detach().requires_grad_() for n, p in layers["reference"].named_parameters()}
    arguments |= {"x_BTD": torch.randn(2, 7, 24, requires_grad=True), "grad_BTHK": torch.randn(2, 7, 24)}
    verdicts = check(partial(called, "flash-lean"), partial(called, "reference"), arguments)
    assert len(verdicts) == 2 + len(names) and all(v.holds for v in verdicts), verdicts


def a_call(**changes: Any) -> Call:
    given = {"n_queries": 8, "n_keys": 8, "head_dim": 128, "dtypes": (torch.bfloat16,), "device": CUDA}
    return Call(**(given | changes))


def test_auto_is_the_lean_one_on_cuda_devices_where_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_missing", lambda device: None)
    monkeypatch.setattr(short, "_missing", lambda device: None)
    assert choose("auto", Softmax(), a_call()) == "flash-lean"
    assert choose("auto", Softmax(), a_call(gate=GateSpec.parse("sdpa-elementwise"))) == "flash-lean"
    assert choose("auto") == "sdpa"
    others = (
        {"device": CPU},
        {"dtypes": (torch.float32,)},
        {"dtypes": (torch.bfloat16, torch.float32)},
        {"head_dim": 12},
        {"head_dim": 264},
        {"n_queries": 1},
        {"window": 4},
        {"extras": ("mask_BTS",)},
        {"gate": GateSpec.parse("sdpa-headwise-tanh")},
        {"gate": GateSpec.parse("sdpa-headwise-lse")},
    )
    for changes in others:
        assert choose("auto", Softmax(), a_call(**changes)) == "sdpa", changes
    assert choose("auto", SinkLogit(), a_call()) == "sdpa"
    assert choose("auto", NORMALISERS["softpick"](), a_call()) == "reference"
    monkeypatch.setattr(flash, "_missing", lambda device: "needs Triton")
    assert choose("auto", Softmax(), a_call()) == "sdpa"


def test_auto_is_the_own_kernels_where_they_were_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_missing", lambda device: None)
    monkeypatch.setattr(short, "_missing", lambda device: None)

    def chosen(head_dim: int, n: int, **changes: object) -> str:
        return choose("auto", Softmax(), a_call(head_dim=head_dim, n_queries=n, n_keys=n, **changes))

    def gated(n: int, gate: str) -> str:
        return chosen(64, n, gate=GateSpec.parse(gate))

    assert gated(1024, "sdpa-headwise") == chosen(32, 2048) == chosen(32, 300, is_causal=False) == "short"
    assert gated(1024, "sdpa-elementwise") == chosen(64, 256, gate=None) == "short"
    assert gated(1025, "sdpa-headwise") == gated(1025, "sdpa-elementwise") == chosen(64, 257, gate=None) == "flash-lean"
    assert chosen(64, 512, is_causal=False, gate=GateSpec.parse("sdpa-headwise")) == "short"
    assert chosen(64, 513, is_causal=False, gate=GateSpec.parse("sdpa-headwise")) == "flash-lean"
    assert chosen(64, 129, is_causal=False, gate=None) == chosen(32, 1025, is_causal=False) == "flash-lean"
    assert chosen(32, 2049) == chosen(128, 64) == chosen(48, 64) == "flash-lean"
    assert chosen(64, 512, window=8) == chosen(32, 64, extras=("mask_BTS",)) == "sdpa"
    assert choose("auto", Softmax(), a_call(head_dim=64, n_queries=1, n_keys=64)) == "sdpa"


def test_auto_without_a_gradient_is_what_is_fastest_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_missing", lambda device: None)
    monkeypatch.setattr(short, "_missing", lambda device: None)

    def chosen(head_dim: int, n: int, gate: str | None = None, **changes: object) -> str:
        spec = None if gate is None else GateSpec.parse(gate)
        call = a_call(head_dim=head_dim, n_queries=n, n_keys=n, gate=spec, has_gradients=False, **changes)
        return choose("auto", Softmax(), call)

    assert chosen(32, 2048) == chosen(32, 512, "sdpa-headwise") == chosen(32, 512, "sdpa-elementwise") == "short"
    assert chosen(64, 2048, "sdpa-headwise") == chosen(64, 64, "sdpa-elementwise") == "short"
    assert chosen(64, 256) == chosen(64, 2049, "sdpa-headwise") == chosen(32, 2049) == "flash-lean"
    assert chosen(32, 64, window=8) == "sdpa"


@pytest.mark.parametrize("compiled", [False, True])
def test_a_call_knows_whether_a_gradient_is_wanted(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    monkeypatch.setattr(flash, "_missing", lambda device: None)
    monkeypatch.setattr(short, "_missing", lambda device: None)

    softmax, on_gpu = Softmax(), {"device": CUDA}

    def chosen(*given: Tensor | None) -> Tensor:
        """A number that says what was chosen, as if it were on a GPU."""
        call = call_of(*given, None, scoring_of(given[0], given[1]))
        names = ("short", "flash-lean", "sdpa")
        return given[0].new_tensor(float(names.index(choose("auto", softmax, replace(call, **on_gpu)))))

    def scoring_of(q_BTHK: Tensor, k_BSGK: Tensor) -> Scoring:
        nothing = ("learned", "heads", "window", "mask_BTS", "bias_BHTS", "score_logits_BSH", "score_gate")
        return scoring(q_BTHK, k_BSGK, normaliser=softmax, is_causal=True, **dict.fromkeys(nothing))

    asked = torch.compile(chosen, fullgraph=True, backend="eager") if compiled else chosen
    q = torch.zeros(1, 8, 2, 64, dtype=torch.bfloat16)
    logits = torch.zeros(1, 8, 2, 1, requires_grad=True)
    leaf = q.clone().requires_grad_()
    assert asked(q, q, q, None).item() == 1 and asked(leaf, q, q, None).item() == 0
    assert asked(q, q, leaf, None).item() == asked(q, q, q, logits).item() == asked(2 * leaf, q, q, None).item() == 0
    with torch.no_grad():
        assert asked(leaf, leaf, leaf, logits).item() == 1
    if compiled:
        torch._dynamo.reset()


def test_a_device_that_the_kernels_do_not_know_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"impl='flash' runs on cpu and cuda, and tensors on mps came; take sdpa, or auto"
    ):
        choose("flash", Softmax(), a_call(device=torch.device("mps")))
    with pytest.raises(ValueError, match=r"bfloat16 and float16 on CUDA devices, and torch\.float64 came"):
        choose("flash", Softmax(), a_call(dtypes=(torch.float64,)))
    with pytest.raises(ValueError, match="heads of a multiple of 8 channels up to 256 on CUDA devices, and 20 came"):
        choose("flash-lean", Softmax(), a_call(head_dim=20))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ValueError, match=r"impl='flash' needs a CUDA device of capability 8\.0 or later"):
        choose("flash", Softmax(), a_call())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "flash_sdp_enabled", lambda: False)
    with pytest.raises(ValueError, match=r"switched off; take sdpa, or auto"):
        choose("flash", Softmax(), a_call())


def test_cudnn_is_taken_on_hopper_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(T: int = 8, K: int = 64, device: str = "meta", S: int | None = None, is_causal: bool = True) -> str:
        q = torch.empty(1, T, 2, K, dtype=torch.bfloat16, device=device)
        return flash.stock_kernel(q, q if S is None else q.new_empty(1, S, 2, K), is_causal=is_causal)

    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert kernel(device="cpu") == "cpu" and kernel() == kernel(K=128) == "cudnn"
    assert kernel(K=136) == kernel(T=1) == "flash"
    # Half a pair of its tiles would be empty, and nothing hides it.
    assert [kernel(S=S, is_causal=False) for S in (63, 64, 65, 128, 192)] == [
        "cudnn",
        "flash",
        "cudnn",
        "cudnn",
        "flash",
    ]
    assert kernel(T=64) == kernel(T=192) == "cudnn"
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert kernel() == "flash"
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert kernel() == "flash"


def test_the_facts_of_a_model_are_those_of_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_missing", lambda device: None)

    def chosen(device: torch.device = CUDA, has_mask: bool = False, **changes: Any) -> str:
        config = ModelConfig(**({"d_model": 96, "n_heads": 2, "n_layers": 4} | changes)).resolved(32, 16)
        return chosen_for(config, dtype=torch.bfloat16, device=device, has_mask=has_mask)

    assert chosen() == chosen(gate="sdpa-elementwise") == "flash-lean"
    assert chosen(gate="sdpa-headwise-hybrid") == chosen(gate="sdpa-headwise-silu", output_map="xsa") == "flash-lean"
    assert chosen(CPU) == chosen(has_mask=True) == chosen(positions="relative") == chosen(window=4) == "sdpa"
    assert chosen(gate="sdpa-headwise-silu") == chosen(gate="scores-headwise") == chosen(softmax="sink-logit") == "sdpa"
    assert chosen(softmax="sigmoid") == "reference"
    assert chosen(window=4, global_every=2) == "flash-lean+sdpa"
    both = {"arch": "encoder-decoder", "n_encoder_layers": 2, "gate": "sdpa-headwise-silu"}
    assert chosen(**both) == "sdpa" and chosen(**both, cross_gate="sdpa-headwise") == "flash-lean+sdpa"
