"""Attention and its gate as Triton kernels of their own, there and back: on a CUDA device, else in Triton's interpreter."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from interpreter import DEVICE, interpreting
from torch import Tensor

from gatelab.config import GateSpec
from gatelab.config.normaliser import SinkLogit, Softmax
from gatelab.ops.contract import check
from gatelab.ops.gated_attention import Call, gated_attention, short
from gatelab.ops.gated_attention.cases import CASES, Case, apart, inputs, together

with interpreting():
    from gatelab.ops.gated_attention import short_kernels
    from gatelab.ops.gated_attention.short_kernels import Tiles

pytestmark = pytest.mark.usefixtures("interpreted")
REFERENCE = together(partial(gated_attention, impl="reference"))
NAMES = ("plain", "headwise", "elementwise", "grouped-odd", "one-kv-head", "both-ways", "cross", "one-token", "window",
         "window-both-ways")  # fmt: skip
SERVED = [c for c in CASES if c.name in NAMES]
MORE = (
    Case("ungated", B=1, T=37, H=2, G=1, K=16),
    Case("odd-channels", B=1, T=33, H=4, G=2, K=20, gate="sdpa-elementwise"),
    Case("odd-channels-headwise", T=19, H=6, G=3, K=12, gate="sdpa-headwise"),
    Case("whole-blocks", T=48, H=2, G=1, K=16, gate="sdpa-elementwise"),
    Case("continued", T=19, S=50, H=2, G=1, K=16, gate="sdpa-headwise"),
    Case("decoded", T=1, S=37, G=2, K=16, gate="sdpa-elementwise"),
    Case("seen-from-both-sides", B=1, T=35, H=2, G=2, K=16, gate="sdpa-headwise", is_causal=False),
    Case("more-queries-than-keys", T=40, S=21, H=2, G=1, K=16, gate="sdpa-elementwise", is_causal=False),
    Case("window", B=1, T=41, H=2, G=1, K=16, gate="sdpa-elementwise", window=9),
    Case("window-whole-blocks", B=1, T=32, S=48, H=2, G=1, K=16, gate="sdpa-elementwise", window=9),
    Case("window-wider-than-a-block", B=1, T=41, S=70, H=2, G=2, K=16, gate="sdpa-headwise", window=35),
    Case("window-both-ways", B=1, T=40, S=52, H=2, G=2, K=16, is_causal=False, window=7),
    Case("itself", T=18, S=20, H=2, G=2, K=16, gate="sdpa-elementwise", window=1),
)
TINY = Tiles(16, 16, 4, 2)
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
both_gates = pytest.mark.parametrize("gate", ["sdpa-headwise", "sdpa-elementwise"])
any_gate = pytest.mark.parametrize("gate", [None, "sdpa-headwise", "sdpa-elementwise"])


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tiles], None]:
    """Cuts every kernel in the same way."""

    def every(tiles: Tiles) -> None:
        for name in ("FORWARD_TILES", "GATED_TILES", "QUERY_TILES", "KEY_TILES"):
            table = getattr(short_kernels, name)
            monkeypatch.setattr(short_kernels, name, dict.fromkeys(table, tiles))

    return every


def attend(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None = None,
    *,
    is_causal: bool = True,
    window: int | None = None,
    **_: Any,
) -> Tensor:
    """The operator with the arguments of `gated_attention`."""
    return short.attention(q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK, is_causal=is_causal, window=window)[0]


def tensors(case: Case, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v and the gate's logits, each a leaf."""
    arguments = inputs(case, seed=3, dtype=dtype, device=DEVICE)
    found = [arguments[n] for n in ("q_BTHK", "k_BSGK", "v_BSGK", "gate_logits_BTHK")]
    return [t if t is None else t.detach().requires_grad_() for t in found]


def broken(candidate: Callable[..., Tensor], case: Case, dtype: torch.dtype) -> list[Any]:
    verdicts = check(together(candidate), REFERENCE, apart(inputs(case, seed=1, dtype=dtype, device=DEVICE)))
    assert len(verdicts) == 4 + (case.gate is not None)
    return [v for v in verdicts if not v.holds]


@pytest.mark.parametrize("case", MORE, ids=lambda c: c.name)
@pytest.mark.parametrize("is_in_one_loop", [True, False])
@pytest.mark.parametrize("is_gate_first", [True, False])
def test_it_keeps_the_contract(
    monkeypatch: pytest.MonkeyPatch,
    cut: Callable[[Tiles], None],
    case: Case,
    is_gate_first: bool,
    is_in_one_loop: bool,
) -> None:
    cut(TINY)  # so that a few tokens are many blocks
    monkeypatch.setattr(short_kernels, "_IN_ONE_LOOP", 256 * is_in_one_loop)
    monkeypatch.setattr(short_kernels, "_GATE_FIRST", 64 * is_gate_first)
    assert not broken(attend, case, torch.float32)


@DTYPES
@pytest.mark.parametrize("case", SERVED, ids=lambda c: c.name)
def test_with_the_tiles_of_the_tables_it_keeps_the_contract(case: Case, dtype: torch.dtype) -> None:
    if DEVICE == "cuda" and dtype == torch.float32:
        pytest.skip("the tables are for two bytes a number")
    assert not broken(attend, case, dtype)


@pytest.mark.parametrize("K", [16, 64, 128])
def test_each_row_of_the_tables_serves_more_than_one_block(K: int) -> None:
    case = Case("table", B=1, T=150, H=2, G=1, K=K, gate="sdpa-elementwise")
    assert not broken(attend, case, torch.float16)


@pytest.mark.parametrize("tiles", [Tiles(32, 16, 4, 2), Tiles(16, 32, 4, 2)], ids=["keep more", "pass more"])
@pytest.mark.parametrize("window", [None, 9])
def test_tiles_move_nothing_but_the_last_bits_and_calls_not_even_those(
    cut: Callable[[Tiles], None], window: int | None, tiles: Tiles
) -> None:
    leaves = tensors(Case("tiles", B=1, T=41, S=46, H=2, G=1, K=16, gate="sdpa-headwise"))
    upstream = torch.randn_like(leaves[0])

    def results() -> list[Tensor]:
        z = attend(*leaves, window=window)
        return [z, *torch.autograd.grad(z, leaves, upstream)]

    cut(TINY)
    expected, again = results(), results()
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
    cut(tiles)
    for a, b in zip(results(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_attention_to_one_planted_key_is_that_keys_value_times_the_score() -> None:
    q, k, v, logits = (t.detach() for t in tensors(Case("planted", B=1, T=20, H=2, G=1, K=16, gate="sdpa-headwise")))
    q[...], k[...] = 0.0, 0.0
    q[..., 0], k[:, 3, :, 0] = 40.0, 40.0
    z = attend(q, k, v, logits)[0].cpu().double().numpy()
    scores_TH1 = 1 / (1 + np.exp(-logits[0].cpu().double().numpy()))
    np.testing.assert_allclose(z[3:], (v[0, 3].cpu().double().numpy()[None] * scores_TH1)[3:], rtol=1e-6)
    # Before it there is nothing to tell apart: the mean of the values so far.
    np.testing.assert_allclose(z[2], v[0, :3].cpu().double().numpy().mean(0) * scores_TH1[2], rtol=1e-5, atol=1e-6)


@any_gate
def test_the_log_sum_exp_comes_along_and_takes_no_gradient(gate: str | None) -> None:
    q, k, v, logits = tensors(Case("lse", T=9, G=2, K=12, gate=gate))
    z, lse_BHT = short.attention(q, k, v, logits, is_causal=True)
    q_, k_ = (t.detach().cpu().double().numpy() for t in (q, k))
    exponents = np.einsum("bthk,bshk->bhts", q_, np.repeat(k_, 2, axis=2)) / math.sqrt(12)
    expected = np.log((np.exp(exponents) * np.tril(np.ones((9, 9)))).sum(-1))
    np.testing.assert_allclose(lse_BHT.cpu().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert z.requires_grad and not lse_BHT.requires_grad and lse_BHT.dtype == torch.float32


@both_gates
def test_gate_and_output_are_rounded_once_together(gate: str) -> None:
    q, k, v, logits = (t.detach() for t in tensors(Case("rounding", T=33, K=32, gate=gate), torch.float16))
    with torch.no_grad():
        wide = attend(q.float(), k.float(), v.float(), logits.float())
        z = attend(q, k, v, logits)
        twice = (attend(q, k, v) * logits.float().sigmoid()).half()
    assert (z - wide).norm() < 0.9 * (twice - wide).norm()


@both_gates
def test_slices_of_one_projection_give_what_copies_of_them_give(gate: str) -> None:
    copies = tensors(Case("sliced", T=9, G=2, K=16, gate=gate))
    ends = np.cumsum([t[0, 0].numel() for t in copies])
    wide = torch.full((2, 9, int(ends[-1]) + 5), math.nan, device=DEVICE)
    for t, end in zip(copies, ends, strict=True):
        wide[..., end - t[0, 0].numel() : end] = t.detach().flatten(2)
    wide.requires_grad_()
    slices = [
        wide[..., end - t[0, 0].numel() : end].unflatten(-1, t.shape[2:]) for t, end in zip(copies, ends, strict=True)
    ]
    found, expected = attend(*slices), attend(*copies)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    upstream = torch.randn_like(found)
    [gradient] = torch.autograd.grad(found, wide, upstream)
    apart_ = torch.autograd.grad(expected, copies, upstream)
    torch.testing.assert_close(gradient[..., :-5], torch.cat([g.flatten(2) for g in apart_], dim=-1))
    assert not gradient[..., -5:].any()


def test_layouts_whose_channels_lie_apart_are_read_too() -> None:
    q, k, v, logits = tensors(Case("transposed", T=9, G=2, K=16, gate="sdpa-elementwise"))
    turned = [t.detach().transpose(1, 3).contiguous().transpose(1, 3) for t in (q, k, v, logits)]
    assert turned[0].stride(3) != 1
    torch.testing.assert_close(attend(*turned), attend(q, k, v, logits).detach())


@any_gate
@pytest.mark.parametrize("window", [None, 5])
def test_every_element_of_the_results_is_written(
    monkeypatch: pytest.MonkeyPatch, cut: Callable[[Tiles], None], window: int | None, gate: str | None
) -> None:
    cut(TINY)
    q, k, v, logits = tensors(Case("written", T=21, S=33, G=2, K=12, gate=gate))
    for name in ("empty", "empty_like"):
        plain = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, plain=plain, **k: plain(*a, **k).fill_(math.nan))
    given = [t if t is None else t.detach() for t in (q, k, v, logits)]
    z, lse = short_kernels.attend(*given, is_causal=True, window=window)
    found = short_kernels.gradients(torch.randn_like(z), *given, z, lse, is_causal=True, window=window)
    assert all(t.isfinite().all() for t in (z, lse, *found) if t is not None)


@pytest.mark.parametrize("shape", [(1, 1, 4, 32), (1, 1, 4, 1), (2, 1, 4, 1), (1, 1, 1, 32)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_constant_gate_keeps_the_contract(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    word = "elementwise" if shape[3] > 1 else "headwise"
    arguments = inputs(Case("static", T=21, G=2, gate=f"sdpa-{word}-static"), seed=2, dtype=dtype, device=DEVICE)
    arguments["gate_logits_BTHK"] = torch.randn(shape).to(DEVICE, dtype).requires_grad_()
    verdicts = check(together(attend), REFERENCE, apart(arguments))
    assert len(verdicts) == 5 and all(v.holds for v in verdicts), verdicts


@both_gates
def test_logits_of_another_type_keep_the_contract(gate: str) -> None:
    arguments = inputs(Case("mixed", T=21, G=2, gate=gate), seed=2, dtype=torch.float16, device=DEVICE)
    arguments["gate_logits_BTHK"] = arguments["gate_logits_BTHK"].detach().float().requires_grad_()
    verdicts = check(together(attend), REFERENCE, apart(arguments))
    assert len(verdicts) == 5 and all(v.holds for v in verdicts), verdicts


@both_gates
@DTYPES
def test_shut_and_open_gates_stay_finite(dtype: torch.dtype, gate: str) -> None:
    q, k, v, logits = tensors(Case("extreme", T=12, G=2, gate=gate), dtype)
    with torch.no_grad():
        logits[:, ::3], logits[:, 1::3], logits[:, 2::3] = -80.0, 80.0, -1e4
    z = attend(q, k, v, logits)
    gradients = torch.autograd.grad(z, (q, k, v, logits), torch.randn_like(z))
    assert all(g.isfinite().all() for g in gradients) and all(g.any() for g in gradients[:3])
    torch.testing.assert_close(z[:, 1::3], attend(q, k, v)[:, 1::3])
    assert (z[:, ::3].abs().float() < 1e-30).all() and not z[:, 2::3].any()
    # A query behind a shut gate moves nothing.
    assert (gradients[0][:, ::3].abs().float() < 1e-30).all() and not gradients[0][:, 2::3].any()


def test_keys_that_are_not_seen_get_no_gradient() -> None:
    q, k, v, _ = tensors(Case("unseen", B=1, T=40, H=2, G=2, K=16))
    upstream = torch.zeros_like(q)
    upstream[:, 20] = 1.0
    _, dk, dv = torch.autograd.grad(attend(q, k, v, window=4), (q, k, v), upstream)
    for gradient in (dk, dv):
        assert gradient[:, 17:21].abs().amin() > 0
        assert not gradient[:, :17].any() and not gradient[:, 21:].any()


def test_it_keeps_the_logits_and_the_output_and_nothing_else() -> None:
    q, k, v, logits = tensors(Case("memory", T=48, G=2, gate="sdpa-elementwise"), torch.bfloat16)
    storages: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        assert attend(q, k, v, logits).requires_grad
    # The output is what the projection after it keeps too.
    assert sum(storages.values()) == sum(2 * t.numel() for t in (q, k, v, logits, q)) + 4 * q[..., 0].numel()


STOCK = [c for c in SERVED if c.window is None and c.name not in ("grouped-odd", "one-token")]


@pytest.mark.parametrize("case", STOCK, ids=lambda c: c.name)
def test_torchs_way_back_behind_it_keeps_the_contract(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    monkeypatch.setattr(short, "_OWN_BACK", {})
    dtype = torch.float32 if DEVICE == "cpu" else torch.bfloat16
    assert not broken(attend, case, dtype)


def test_the_own_way_back_is_taken_where_it_was_made_for_or_nobody_else_serves() -> None:
    def kernel(
        T: int = 64, S: int | None = None, K: int = 64, is_causal: bool = True, window: int | None = None
    ) -> str:
        q, k = torch.empty(1, T, 4, K), torch.empty(1, T if S is None else S, 2, K)
        return short.backward_kernel(q, k, is_causal=is_causal, window=window)

    assert kernel() == kernel(T=1024) == kernel(T=2048, K=32) == kernel(T=2048, K=24) == "own"
    assert kernel(T=1025) == kernel(T=2049, K=32) == kernel(K=72) == "cpu"
    assert kernel(T=1025, K=40) == kernel(T=8, S=1025, is_causal=False) == "cpu"
    long = {"T": 3000, "K": 128}
    assert kernel(**long, window=9) == kernel(**long, S=3002) == kernel(**(long | {"K": 36})) == "own"


@pytest.mark.parametrize("window, gate", [(None, None), (3, "sdpa-headwise"), (None, "sdpa-elementwise")])
def test_the_operators_are_what_torch_expects_of_them(window: int | None, gate: str | None) -> None:
    given = tensors(Case("checked", B=1, T=6, H=2, G=1, K=12, gate=gate))
    forward, backward = (getattr(torch.ops.gatelab, n).default for n in ("gated_short", "gated_short_backward"))
    torch.library.opcheck(forward, (*given, True, window, "own"))
    given = [t if t is None else t.detach() for t in given]
    z, lse = forward(*given, True, window, "own")
    torch.library.opcheck(backward, (torch.randn_like(z), *given, z, lse, True, window, "own"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
@pytest.mark.parametrize("case", [c for c in SERVED if c.name in ("one-kv-head", "window")], ids=lambda c: c.name)
def test_compiled_in_one_graph_it_keeps_the_contract(case: Case) -> None:
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert not broken(compiled, case, torch.float32)
    torch._dynamo.reset()


@any_gate
@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_empty_inputs_give_empty_outputs_and_gradients_of_zero(empty: str, gate: str | None) -> None:
    B, T = (0, 3) if empty == "batch" else (2, 0)
    q = torch.zeros(B, T, 4, 8, device=DEVICE, requires_grad=True)
    k = torch.ones(B, 3, 2, 8, device=DEVICE, requires_grad=True)
    shape = (B, T, 4, 1 if gate == "sdpa-headwise" else 8)
    logits = None if gate is None else torch.zeros(shape, device=DEVICE, requires_grad=True)
    z = attend(q, k, k, logits, is_causal=False)
    z.sum().backward()
    assert z.shape == q.shape == q.grad.shape and not k.grad.any()
    assert logits is None or logits.grad.shape == logits.shape


def a_call(**changes: Any) -> Call:
    given = {"n_queries": 8, "n_keys": 8, "head_dim": 64, "dtypes": (torch.bfloat16,), "device": torch.device("cuda")}
    return Call(**(given | changes))


def test_what_it_does_not_serve_it_says_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    why = partial(short.unserved, Softmax())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    served = ({}, {"window": 4}, {"n_queries": 1}, {"head_dim": 128}, {"gate": GateSpec.parse("sdpa-headwise")})
    assert not [changes for changes in served if why(a_call(**changes)) is not None] and why() is None
    said = {
        "takes none of segment_ids_BT, mask_BTS, bias_BHTS and score_gate, and mask_BTS came": {
            "extras": ("mask_BTS",)
        },
        "multiplies by a sigmoid of each head's own, and sdpa-headwise-tanh came": {
            "gate": GateSpec.parse("sdpa-headwise-tanh")
        },
        "takes logits that do not wait for its log-sum-exp, and sdpa-headwise-lse came": {
            "gate": GateSpec.parse("sdpa-headwise-lse")
        },
        "takes q, k and v of bfloat16 or of float16, and torch.float32 came": {"dtypes": (torch.float32,)},
        "takes heads of up to 128 channels, and 136 came": {"head_dim": 136},
        "runs on CUDA devices, and tensors on cpu came": {"device": torch.device("cpu")},
    }
    assert {why(a_call(**changes)) for changes in said.values()} == set(said)
    assert short.unserved(SinkLogit()) == "computes a softmax without a slot, and sink-logit is none"
    monkeypatch.setattr(short, "HAS_TRITON", False)
    assert why(a_call()) == "needs Triton: pip install triton"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert why(a_call()) == "needs a CUDA device of capability 8.0 or later"


LARGE = [
    Case(f"{T}x{K}-{gate}", B=2, T=T, H=8, G=G, K=K, gate=gate, window=window)
    for K in (32, 64, 128)
    for T, G, gate, window in (
        (256, 8, "sdpa-elementwise", None),
        (509, 2, "sdpa-headwise", None),
        (1000, 4, "sdpa-elementwise", 200),
        (1024, 8, None, None),
    )
]


@pytest.mark.gpu
@pytest.mark.parametrize("case", LARGE, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_on_a_gpu_it_keeps_the_contract_at_the_sizes_it_is_made_for(dtype: torch.dtype, case: Case) -> None:
    assert not broken(attend, case, dtype)
