"""One query a sequence against a cache: the contract of the kernels, on a CUDA device, else in Triton's interpreter; and that
a layer decodes with them what it decodes without."""

import ast
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreter import DEVICE, interpreting
from torch import Tensor

from gatelab.config import GateSpec
from gatelab.config.normaliser import SinkLogit
from gatelab.nn.attention import GatedAttention
from gatelab.nn.cache import KVCache
from gatelab.nn.recent import StreamingCache
from gatelab.ops.contract import check
from gatelab.ops.gated_attention import gated_attention
from gatelab.ops.gated_decode import IMPLEMENTATIONS, choose, gated_decode, split

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "inside_h100_2026-11.json"
with interpreting():
    from gatelab.ops.gated_decode import kernels, merge
    from gatelab.ops.gated_decode.kernels import Cut

pytestmark = pytest.mark.usefixtures("interpreted")
REFERENCE = partial(gated_decode, impl="reference")
# So that a few keys are many splits.
TINY = Cut(16, 4, 2, 10_000, 16)
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)


@dataclass(frozen=True)
class Shape:
    """`first` and `end`: of each sequence, None for the whole cache."""

    name: str
    B: int = 2
    S: int = 75
    H: int = 4
    G: int = 2
    K: int = 16
    gate: str | None = "sdpa-elementwise"
    window: int | None = None
    first: tuple[int, ...] | None = None
    end: tuple[int, ...] | None = None
    cut: Cut = TINY

    def slots(self) -> dict[str, Any]:
        def made(values: tuple[int, ...] | None, dtype: torch.dtype) -> Tensor | None:
            return None if values is None else torch.tensor(values, dtype=dtype, device=DEVICE)

        return {"window": self.window, "first_B": made(self.first, torch.int64), "end_B": made(self.end, torch.int32)}


SHAPES = (
    Shape("ungated", gate=None),
    Shape("headwise", gate="sdpa-headwise"),
    Shape("elementwise"),
    Shape("whole-blocks", S=64),
    Shape("one-key", S=1),
    Shape("one-split", S=75, cut=Cut(16, 4, 2, 1, 16)),
    Shape("many-splits", B=1, S=600, H=1, G=1),
    Shape("more-splits-than-a-merge-asks-for-at-once", B=1, S=1040, H=1, G=1),
    Shape("many-queries-a-key", H=20, G=1, gate="sdpa-headwise"),
    Shape("a-head-each", H=3, G=3),
    Shape("odd-channels", K=20),
    Shape("wide", K=128, H=2, G=1),
    Shape("odd-wide-headwise", K=72, H=2, G=1, end=(75, 20), gate="sdpa-headwise"),
    Shape("odd-wide-elementwise", B=1, K=72, H=2, G=1),
    Shape("window", window=33),
    Shape("window-of-one", window=1),
    Shape("window-wider-than-the-cache", window=900),
    Shape("padded", B=3, first=(0, 7, 70)),
    Shape("unequal", B=3, end=(75, 20, 1)),
    Shape("everything", B=3, first=(3, 0, 11), end=(75, 20, 33), window=25, gate="sdpa-headwise"),
    Shape("the-cut-of-few-sequences", S=300, cut=kernels.CUTS[128].few),
    *(Shape(f"the-cut-of-many-{n}", S=300, cut=cut) for n, (_, cut) in enumerate(kernels.CUTS[128].many)),
    Shape("the-cut-of-narrow-heads", S=300, cut=kernels.CUTS[64].few),
    Shape("the-cut-of-wide-heads", B=1, S=300, H=3, G=1, K=200, gate="sdpa-headwise", cut=kernels.CUTS[256].few),
)
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)


def drawn(shape: Shape, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes).to(DEVICE, dtype)

    gate = None if shape.gate is None else GateSpec.parse(shape.gate)
    width = 1 if shape.gate == "sdpa-headwise" else shape.K
    return {
        "q_B1HK": 2 * normal(shape.B, 1, shape.H, shape.K),
        "k_BSGK": normal(shape.B, shape.S, shape.G, shape.K),
        "v_BSGK": normal(shape.B, shape.S, shape.G, shape.K),
        "gate_logits_B1HK": None if gate is None else 2 * normal(shape.B, 1, shape.H, width),
        "gate": gate,
    }


def by_kernels(
    q_B1HK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_B1HK: Tensor | None,
    gate: GateSpec | None,
    *,
    window: int | None = None,
    first_B: Tensor | None = None,
    end_B: Tensor | None = None,
    cut: Cut = TINY,
) -> Tensor:
    """The kernels with the arguments of `gated_decode`, on any device."""
    slots = {"window": window, "first_B": first_B, "end_B": end_B}
    return kernels.gated_decode(q_B1HK, k_BSGK, v_BSGK, gate_logits_B1HK, **slots, cut=cut)


def broken(candidate: Callable[..., Tensor], shape: Shape, dtype: torch.dtype) -> list[Any]:
    arguments = drawn(shape, dtype) | shape.slots()
    # Decoding has no gradient.
    arguments["grad_BTHK"] = torch.zeros_like(arguments["q_B1HK"])
    [verdict] = check(candidate, REFERENCE, arguments)
    return [] if verdict.holds else [verdict]


@DTYPES
@by_shape
def test_the_kernels_keep_the_contract(shape: Shape, dtype: torch.dtype) -> None:
    assert not broken(partial(by_kernels, cut=shape.cut), shape, dtype)


@by_shape
def test_the_specification_is_attention_over_each_sequences_own_keys(shape: Shape) -> None:
    given = {n: t.double() if isinstance(t, Tensor) else t for n, t in drawn(shape).items()}
    found = REFERENCE(**given, **shape.slots())
    for b in range(shape.B):
        first = 0 if shape.first is None else shape.first[b]
        end = shape.S if shape.end is None else shape.end[b]
        rows = {n: t[b : b + 1] if isinstance(t, Tensor) else t for n, t in given.items()}
        q, k, v, logits, gate = rows.values()
        first = max(first, end - (shape.window or shape.S))
        expected = gated_attention(q, k[:, first:end], v[:, first:end], logits, gate, impl="reference")
        torch.testing.assert_close(found[b : b + 1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [REFERENCE, by_kernels], ids=["reference", "kernels"])
def test_a_sequence_without_a_key_gets_zeros(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Tensor]) -> None:
    shape = Shape("empty", B=3, first=(0, 30, 0), end=(0, 30, 40))
    given, slots, empty = drawn(shape), shape.slots(), torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(math.nan))
    z = function(**given, **slots)
    assert not z[:2].any() and z[2].abs().amin() > 0


def test_what_lies_outside_of_a_sequence_does_not_matter() -> None:
    shape = Shape("outside", B=2, first=(3, 0), end=(75, 20), window=40)
    given, slots = drawn(shape), shape.slots()
    expected = by_kernels(**given, **slots)
    for b, (first, end) in enumerate(((35, 75), (0, 20))):
        for name in ("k_BSGK", "v_BSGK"):
            given[name][b, :first], given[name][b, end:] = math.nan, math.nan
    assert torch.equal(by_kernels(**given, **slots), expected)


def test_numbers_of_the_sequences_may_be_views_and_one_number_of_all() -> None:
    given, pairs = drawn(Shape("views", B=3)), torch.tensor([[2, 75], [0, 20], [5, 6]], device=DEVICE)
    for first_B, end_B in ((pairs[:, 0], pairs[:, 1]), (None, torch.tensor(20, device=DEVICE).expand(3))):
        found = by_kernels(**given, first_B=first_B, end_B=end_B)
        assert torch.equal(
            found, by_kernels(**given, first_B=None if first_B is None else first_B.clone(), end_B=end_B.clone())
        )
        torch.testing.assert_close(found, REFERENCE(**given, first_B=first_B, end_B=end_B), rtol=1e-5, atol=1e-6)


def test_logits_of_another_type_are_read_as_they_are() -> None:
    given = drawn(Shape("mixed"), torch.float16) | {"grad_BTHK": torch.zeros(2, 1, 4, 16).half()}
    given["gate_logits_B1HK"] = torch.randn(2, 1, 4, 16).to(DEVICE)
    [verdict] = check(by_kernels, REFERENCE, given)
    assert verdict.holds, verdict


def test_splits_move_nothing_but_the_last_bits_and_calls_not_even_those() -> None:
    given = drawn(Shape("cuts", B=1, S=150, H=2, G=1))
    expected = by_kernels(**given)
    assert torch.equal(by_kernels(**given), expected)
    for cut in (Cut(16, 4, 2, 1, 16), Cut(32, 8, 3, 20, 40), Cut(64, 4, 1, 3, 1)):
        torch.testing.assert_close(by_kernels(**given, cut=cut), expected, rtol=1e-5, atol=1e-6)


def test_more_splits_than_keys_leave_no_trace() -> None:
    shape = Shape("more splits than keys", S=20, cut=Cut(16, 4, 2, 10_000, 1))
    given = drawn(shape)
    assert kernels.n_splits(given["q_B1HK"], given["k_BSGK"], shape.cut) == 20
    assert not broken(partial(by_kernels, cut=shape.cut), shape, torch.float32)


def test_the_number_of_splits_follows_from_shapes_alone() -> None:
    def n(B: int, S: int, G: int, cut: Cut) -> int:
        return kernels.n_splits(torch.empty(B, 1, G, 8), torch.empty(B, S, G, 8), cut)

    cut = Cut(64, 4, 3, 100, 128)
    assert [n(1, S, 8, cut) for S in (1, 128, 129, 1000, 100_000)] == [1, 1, 2, 8, 13]
    assert n(64, 100_000, 8, cut) == 1


MEASURED = [row for row in json.loads(RESULTS.read_text())["short_and_decode"] if row["kind"] == "cuts"]


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: f"{row['B']}x{row['S']}")
def test_the_cut_is_the_fastest_measured_at_that_shape(row: dict[str, Any]) -> None:
    """32 heads on 8 of 128, by what is launched: keys at a time, warps, stages and splits on 132 multiprocessors."""
    fastest = min(row["us"], key=lambda name: row["us"][name][0])
    cut = kernels.cut_of(128, row["B"] * 8, row["S"])
    with torch.device("meta"):
        q_B1HK, k_BSGK = torch.empty(row["B"], 1, 32, 128), torch.empty(row["B"], row["S"], 8, 128)
    on_132 = cut._replace(n_programs=132 * cut.n_programs)
    assert cut[:3] == ast.literal_eval(fastest)[:3]
    assert kernels.n_splits(q_B1HK, k_BSGK, on_132) == row["n_splits"][fastest]


def test_there_is_a_cut_for_every_shape_and_six_were_measured() -> None:
    assert len(MEASURED) == 6
    assert all(cuts.many[-1][0] == kernels._ANY for cuts in kernels.CUTS.values())
    assert all(isinstance(kernels.cut_of(K, n, S), Cut) for K in (1, 65, 256) for n in (1, 9**5) for S in (1, 2**30))


@by_shape
def test_every_element_of_the_results_is_written(monkeypatch: pytest.MonkeyPatch, shape: Shape) -> None:
    given = drawn(shape)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(math.nan))
    assert by_kernels(**given, **shape.slots(), cut=shape.cut).isfinite().all()


@pytest.mark.parametrize("W", [1, 16])
def test_slices_of_one_projection_and_of_a_longer_cache_are_read_where_they_lie(W: int) -> None:
    given = drawn(Shape("sliced", gate="sdpa-headwise" if W == 1 else "sdpa-elementwise"))
    wide = torch.full((2, 1, 3 + 4 * 16 + 4 * W + 5), math.nan, device=DEVICE)
    wide[..., 3:67], wide[..., 67:-5] = given["q_B1HK"].flatten(2), given["gate_logits_B1HK"].flatten(2)
    store = torch.full((2, 2, 90, 2, 16), math.nan, device=DEVICE)
    store[0, :, :75], store[1, :, :75] = given["k_BSGK"], given["v_BSGK"]
    views = {
        "q_B1HK": wide[..., 3:67].unflatten(2, (4, 16)),
        "k_BSGK": store[0].narrow(1, 0, 75),
        "v_BSGK": store[1].narrow(1, 0, 75),
        "gate_logits_B1HK": wide[..., 67:-5].unflatten(2, (4, W)),
    }
    assert torch.equal(by_kernels(**(given | views)), by_kernels(**given))


@pytest.mark.parametrize("shape", [(1, 1, 4, 16), (1, 1, 4, 1), (2, 1, 1, 16), (2, 1, 4, 16)], ids=str)
def test_a_constant_gate_is_spread_over_the_sequences(shape: tuple[int, ...]) -> None:
    given = drawn(Shape("static", gate="sdpa-elementwise" if shape[3] > 1 else "sdpa-headwise"))
    given["gate_logits_B1HK"] = torch.randn(shape).to(DEVICE)
    found = split.gated_decode(**given, window=None, first_B=None, end_B=None)
    torch.testing.assert_close(found, REFERENCE(**given), rtol=1e-5, atol=1e-6)


def test_shut_and_open_gates_stay_finite() -> None:
    given = drawn(Shape("extreme", B=4, gate="sdpa-headwise"), torch.float16)
    given["gate_logits_B1HK"] = torch.tensor([-80.0, 80.0, -1e4, 1e4], device=DEVICE).half()[:, None, None, None]
    z = split.gated_decode(**given, window=None, first_B=None, end_B=None)
    y = by_kernels(**(given | {"gate_logits_B1HK": None, "gate": None}), cut=kernels.cut_of(16, 8, 75))
    assert torch.equal(z[1], y[1]) and torch.equal(z[3], y[3]) and not z[0].any() and not z[2].any()


@pytest.mark.parametrize("is_bounded", [False, True])
def test_the_operator_is_what_torch_expects_of_it(is_bounded: bool) -> None:
    q, k, v, logits, _ = drawn(Shape("checked", S=20)).values()
    slots = [9, *(torch.tensor(n, device=DEVICE) for n in ([0, 2], [20, 4]))] if is_bounded else [None, None, None]
    torch.library.opcheck(torch.ops.gatelab.gated_decode.default, (q, k, v, logits, *slots))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
def test_compiled_in_one_graph_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "unserved", lambda *_: None)
    given = drawn(Shape("compiled", S=20))
    compiled = torch.compile(partial(gated_decode, impl="split"), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**given), gated_decode(**given, impl="split"))
    torch._dynamo.reset()


def test_no_sequence_is_no_output() -> None:
    given = drawn(Shape("none", B=0))
    assert split.gated_decode(**given, window=None, first_B=None, end_B=None).shape == (0, 1, 4, 16)


def test_there_is_no_gradient_and_nobody_is_told_otherwise() -> None:
    given = drawn(Shape("gradient", S=20))
    given["q_B1HK"].requires_grad_()
    with pytest.raises(RuntimeError, match="autograd"):
        split.gated_decode(**given, window=None, first_B=None, end_B=None).sum().backward()


def test_auto_is_the_kernels_on_cuda_devices_where_they_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    given = drawn(Shape("chosen"))
    q, k, v, _, gate = given.values()
    assert choose("auto", q.cpu(), k.cpu(), v.cpu(), gate) == "reference"
    with pytest.raises(
        ValueError, match=r"^impl='split' takes q, k and v of bfloat16 or of float16, and .* came; take "
    ):
        choose("split", q, k, v, gate)
    with pytest.raises(ValueError, match="impl='flash': expected one of auto, reference, split"):
        choose("flash", q, k, v)
    monkeypatch.setattr(split, "_missing", lambda device: None)
    with torch.device("meta"):
        q, k = torch.empty(2, 1, 4, 64, dtype=torch.bfloat16), torch.empty(2, 9, 2, 64, dtype=torch.bfloat16)
        wide = torch.empty(2, 1, 4, 264, dtype=torch.bfloat16)
    assert split.unserved(q, k, k, gate) == "runs on CUDA devices, and tensors on meta came"
    assert split.unserved(wide, k, k) == "takes heads of up to 256 channels, and 264 came"
    tanh, lse = GateSpec.parse("sdpa-headwise-tanh"), GateSpec.parse("sdpa-headwise-lse")
    assert split.unserved(q, k, k, tanh) == "multiplies by a sigmoid of each head's own, and sdpa-headwise-tanh came"
    assert "do not wait for its log-sum-exp" in split.unserved(q, k, k, lse)
    with torch.device("meta"):
        many, one = torch.empty(2, 1, 65, 128, dtype=torch.bfloat16), torch.empty(2, 9, 1, 128, dtype=torch.bfloat16)
    said = "takes up to 8192 channels of query heads that share a key head, and 65 heads of 128 came"
    assert split.unserved(many, one, one) == said and "65" not in split.unserved(many[:, :, :64], one, one)


WRONG = {
    "two queries": ({"q_B1HK": torch.zeros(2, 2, 4, 16)}, r"\(2, 2, 4, 16\), .*: expected \[B,1,H,K\]"),
    "no groups": ({"q_B1HK": torch.zeros(2, 1, 3, 16)}, "with G dividing H"),
    "another k": ({"k_BSGK": torch.zeros(2, 74, 2, 16)}, r"expected \[B,1,H,K\], \[B,S,G,K\] and \[B,S,G,K\]"),
    "a window of 0": ({"window": 0}, "window=0: expected the number of keys"),
    "end as a float": ({"end_B": torch.zeros(2)}, r"end_B of shape \(2,\) and type torch.float32: expected int32"),
    "first of another shape": ({"first_B": torch.zeros(2, 1, dtype=torch.int64)}, r"first_B of shape \(2, 1\)"),
    "no logits": ({"gate_logits_B1HK": None}, "a gate and its logits come together"),
    "on the lse": ({"gate": GateSpec.parse("sdpa-headwise-lse")}, "take gatelab.ops.gated_attention"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_in_a_sentence(name: str) -> None:
    changes, said = WRONG[name]
    with pytest.raises(ValueError, match=said):
        gated_decode(**(drawn(Shape("wrong")) | changes))


LAYERS = {
    "none": {"gate": None},
    "headwise": {"gate": "sdpa-headwise"},
    "elementwise": {"gate": "sdpa-elementwise+value-headwise", "qk_norm": True},
    "window": {"gate": "sdpa-elementwise", "window": 5},
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_decodes_with_the_kernels_what_it_decodes_without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    layer = GatedAttention(d_model=24, n_heads=4, n_kv_heads=2, head_dim=12, **LAYERS[name]).to(DEVICE)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p) / 3)
    x_BTD = torch.randn(2, 12, 24, device=DEVICE)
    called = []

    def decoded() -> Tensor:
        cache = KVCache(n_layers=1, batch=2, max_seq_len=12, n_kv_heads=2, head_dim=12, device=DEVICE)
        out = []
        for piece_BTD in x_BTD.split([4, *[1] * 8], dim=1):
            out.append(layer(piece_BTD, cache=cache))
            cache.advance(piece_BTD.shape[1])
        return torch.cat(out, dim=1)

    with torch.no_grad():
        expected = decoded()
        decode = split.gated_decode
        monkeypatch.setattr(split, "unserved", lambda *_: None)
        monkeypatch.setitem(IMPLEMENTATIONS, "split", lambda *a, **k: called.append(1) or decode(*a, **k))
        torch.testing.assert_close(decoded(), expected, rtol=1e-4, atol=1e-5)
    assert len(called) == 8
    # With gradients it decodes as before.
    assert decoded().requires_grad and len(called) == 8


def test_a_layer_decodes_across_with_the_kernels_what_it_decodes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = GatedAttention(d_model=24, n_heads=4, n_kv_heads=2, head_dim=12, gate="sdpa-elementwise", window=3).to(
        DEVICE
    )
    x_BTD, context_BSD = torch.randn(2, 5, 24, device=DEVICE), torch.randn(2, 7, 24, device=DEVICE)
    called = []

    def decoded() -> Tensor:
        cache = KVCache(n_layers=1, batch=2, max_seq_len=5, n_kv_heads=2, head_dim=12, device=DEVICE)
        first_B1D = layer(x_BTD[:, :1], context_BSD=context_BSD, cache=cache)
        rest = [layer(piece_B1D, is_cross=True, cache=cache) for piece_B1D in x_BTD[:, 1:].split(1, dim=1)]
        return torch.cat([first_B1D, *rest], dim=1)

    with torch.no_grad():
        expected, decode = decoded(), split.gated_decode
        monkeypatch.setattr(split, "unserved", lambda *_: None)
        monkeypatch.setitem(IMPLEMENTATIONS, "split", lambda *a, **k: called.append(1) or decode(*a, **k))
        torch.testing.assert_close(decoded(), expected, rtol=1e-4, atol=1e-5)
        # A query sees its whole context, window or not.
        torch.testing.assert_close(expected, layer(x_BTD, context_BSD=context_BSD), rtol=1e-4, atol=1e-5)
    assert len(called) == 5


def test_a_layer_decodes_from_a_cache_that_drops_tokens_what_it_decodes_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = GatedAttention(d_model=24, n_heads=4, n_kv_heads=2, head_dim=12, gate="sdpa-headwise").to(DEVICE)
    x_BTD = torch.randn(2, 9, 24, device=DEVICE)
    called = []

    def decoded() -> Tensor:
        cache = StreamingCache(first=1, last=3, n_layers=1, batch=2, n_kv_heads=2, head_dim=12, device=DEVICE)
        out = []
        for piece_B1D in x_BTD.split(1, dim=1):
            out.append(layer(piece_B1D, cache=cache))
            cache.advance(1)
        return torch.cat(out, dim=1)

    with torch.no_grad():
        expected, decode = decoded(), split.gated_decode
        monkeypatch.setattr(split, "unserved", lambda *_: None)
        monkeypatch.setitem(IMPLEMENTATIONS, "split", lambda *a, **k: called.append(1) or decode(*a, **k))
        torch.testing.assert_close(decoded(), expected, rtol=1e-4, atol=1e-5)
    assert len(called) == 9


UNSERVED = {
    "a slot": {"softmax": SinkLogit(init=0.5)},
    "a gate on the scores": {"gate": "scores-headwise"},
    "a gate on the lse": {"gate": "sdpa-headwise-lse"},
    "another implementation": {"impl": "sdpa"},
}


@pytest.mark.parametrize("name", UNSERVED)
def test_a_layer_that_the_kernels_do_not_serve_decodes_as_before(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError(f"the kernels were called for {name}")

    monkeypatch.setitem(IMPLEMENTATIONS, "split", refuse)
    unserved = split.unserved

    def on_any_device(*given: Any) -> str | None:
        why = unserved(*given)
        return None if why is not None and why.startswith("runs on CUDA devices") else why

    monkeypatch.setattr(split, "unserved", on_any_device)
    layer = GatedAttention(d_model=16, n_heads=2, head_dim=8, **UNSERVED[name]).to(DEVICE, torch.bfloat16)
    room = {"n_layers": 1, "batch": 1, "max_seq_len": 4, "n_kv_heads": 2, "head_dim": 8, "n_score_heads": 2}
    cache = KVCache(**room, dtype=torch.bfloat16, device=DEVICE)
    with torch.no_grad():
        assert layer(torch.randn(1, 1, 16, device=DEVICE).bfloat16(), cache=cache).isfinite().all()
        if name == "another implementation":
            layer.impl = "auto"
            cache.advance(1)
            with pytest.raises(AssertionError, match="the kernels were called"):
                layer(torch.randn(1, 1, 16, device=DEVICE).bfloat16(), cache=cache)


LARGE = [
    Shape(f"{B}x{S}x{K}-{gate}", B=B, S=S, H=32, G=8, K=K, gate=gate)
    for B, S, K in ((1, 4096, 128), (8, 1000, 128), (64, 77, 128), (2, 3000, 64), (2, 3000, 256))
    for gate in (None, "sdpa-headwise", "sdpa-elementwise")
]


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gatelab.ops.gated_decode import kernels, split

def shared_bytes(capability, K, R, cut):
    kernel = kernels.split_kernel
    constants = {"HAS_FIRST": True, "HAS_END": True, "OVERLAPPED": capability >= 90}
    constants |= {"R": R, "K": K, "PADDED": K, "X": max(16, R), "Y": cut.passed}
    types = {n: "*bf16" for n in "qkv"} | {"first": "*i64", "end": "*i64", "sums": "*fp32", "pairs": "*fp32", "scale": "fp32"}
    types |= {n: "i32" for n in ("S", "G", "N", "window")} | dict.fromkeys(constants, "constexpr")
    signature = {n: types.get(n, "i64") for n in kernel.arg_names}
    wide = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t == "i64" or t[0] == "*"}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()}, wide)
    options = {"num_warps": cut.n_warps, "num_stages": cut.n_stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared

limits = {80: 163, 89: 99, 90: 227}
shapes = ((64, 128), (128, 1), (128, 64), (256, 1), (256, 32))
cuts = {K: {kernels.cut_of(K, n, S) for n in (1, 10**4) for S in (4096, 32768)} for K, _ in shapes}
found = {(c, K, R, cut): shared_bytes(c, K, R, cut) for c in limits for K, R in shapes for cut in cuts[K]}
assert all(R * K <= split._MOST_CHANNELS for _, K, R, _ in found)
assert all(0 < n <= 1024 * limits[c] for (c, *_), n in found.items()), found
"""


@pytest.mark.slow
def test_what_is_served_fits_into_the_shared_memory_of_each_capability() -> None:
    """In KiB a block may take, by the CUDA programming guide's table of compute capabilities."""
    compiled = os.environ | {"TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-P", "-c", COMPILED], check=True, env=compiled)


OVERLAPPED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gatelab.ops.gated_decode import kernels, merge

def ptx(kernel, constants, types, capability):
    constants = constants | {"OVERLAPPED": capability >= 90}
    types |= dict.fromkeys(constants, "constexpr")
    signature = {n: types.get(n, "i64") for n in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()})
    options = {"launch_pdl": True} if capability >= 90 else {}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]

types = dict.fromkeys(("sums", "pairs"), "*fp32") | dict.fromkeys("SGN", "i32") | {"window": "i32", "scale": "fp32"}
types |= dict.fromkeys(("q", "k", "v", "first", "end", "logits", "z"), "*bf16")
of_split = {"HAS_FIRST": False, "HAS_END": False, "R": 4, "K": 64, "PADDED": 64, "X": 16, "Y": 64}
of_merge = {"K": 64, "C": 32, "PARTS": 16, "MERGED": 16}
assert "griddepcontrol.launch_dependents" in ptx(kernels.split_kernel, of_split, types, 90)
assert "griddepcontrol" not in ptx(kernels.split_kernel, of_split, types, 80)
for W, n_before in ((0, 0), (1, 1), (64, 1)):
    code = ptx(merge.merge_kernel, of_merge | {"W": W}, types, 90)
    before, after = code.split("griddepcontrol.wait")
    assert before.count("ld.global") == n_before and after.count("ld.global") > 1
    # Nothing written before it, no way around it, and nothing allowed early.
    assert not any(word in before for word in ("st.global", "ret;", "bra")) and "launch_dependents" not in code
    assert "griddepcontrol" not in ptx(merge.merge_kernel, of_merge | {"W": W}, types, 80)
"""


@pytest.mark.slow
def test_an_overlapped_merge_reads_its_logits_and_nothing_else_before_it_waits() -> None:
    subprocess.run([sys.executable, "-P", "-c", OVERLAPPED], check=True, env=os.environ | {"TRITON_INTERPRET": "0"})


@pytest.mark.parametrize(
    ("device", "cuda", "capability", "is_compiled", "expected"),
    [
        ("cuda", "13.0", (9, 0), True, True),
        ("cuda", "13.0", (12, 0), True, True),
        ("cuda", "13.0", (8, 9), True, False),
        ("cuda", None, (9, 4), True, False),  # HIP calls its devices so, too
        ("cuda", "13.0", (9, 0), False, False),
        ("cpu", "13.0", (9, 0), True, False),
    ],
)
def test_a_merge_is_launched_early_where_that_can_be(
    monkeypatch: pytest.MonkeyPatch, device: str, cuda: str | None, capability: tuple, is_compiled: bool, expected: bool
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    kind = merge.triton.JITFunction if is_compiled else object
    monkeypatch.setattr(merge, "merge_kernel", kind.__new__(kind))
    assert merge.is_overlapped(torch.device(device)) is expected


@pytest.mark.gpu
@pytest.mark.parametrize("shape", LARGE, ids=lambda s: s.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_on_a_gpu_it_keeps_the_contract(dtype: torch.dtype, shape: Shape) -> None:
    assert not broken(partial(gated_decode, impl="split"), shape, dtype)


@pytest.mark.gpu
def test_a_captured_graph_serves_every_length() -> None:
    given = drawn(Shape("captured", S=500, H=8, G=2, K=64), torch.bfloat16)
    end_B = torch.tensor([500, 500], device=DEVICE)
    beside = torch.cuda.Stream()
    with torch.cuda.stream(beside):
        gated_decode(**given, end_B=end_B, impl="split")
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z = gated_decode(**given, end_B=end_B, impl="split")
    for ends in ([500, 3], [17, 320]):
        end_B.copy_(torch.tensor(ends))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(z, gated_decode(**given, end_B=end_B, impl="split"))


# Of so many splits that there is something to merge, and of so many programs that a device is full of them.
RACED = [
    Shape(f"{B}x{S}-{gate}", B=B, S=S, H=32, G=8, K=128, gate=gate)
    for B, S in ((1, 4096), (8, 700))
    for gate in (None, "sdpa-headwise", "sdpa-elementwise")
]
by_race = pytest.mark.parametrize("shape", RACED, ids=lambda s: s.name)


def chained(given: dict[str, Any], end_B: Tensor) -> Tensor:
    """Three decodes; the kernel before each of the last two makes its query and its logits of what the merge before gave."""
    q_B1HK, logits_B1HW = given["q_B1HK"], given["gate_logits_B1HK"]
    for _ in range(3):
        now = given | {"q_B1HK": q_B1HK, "gate_logits_B1HK": logits_B1HW}
        z_B1HK = gated_decode(**now, end_B=end_B, impl="split")
        q_B1HK, logits_B1HW = 8 * z_B1HK, None if logits_B1HW is None else 8 * z_B1HK[..., : logits_B1HW.shape[3]]
    return z_B1HK


def one_by_one(function: Callable[[], Tensor]) -> Tensor:
    """The function with merges that are launched behind the splits, waited for."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernels, "is_overlapped", lambda device: False)
        found = function()
        torch.cuda.synchronize()
    return found


@pytest.mark.gpu
@by_race
def test_graphs_on_several_streams_give_the_bits_of_what_is_launched_one_by_one(shape: Shape) -> None:
    replays, n_streams = 200, 3
    tables = [drawn(replace(shape, B=replays * shape.B, S=1), torch.bfloat16) for _ in range(n_streams)]
    names = [n for n in ("q_B1HK", "gate_logits_B1HK") if tables[0][n] is not None]
    ends = torch.randint(1, shape.S + 1, (n_streams, replays, shape.B), device=DEVICE, dtype=torch.int32)
    fixed = [(drawn(shape, torch.bfloat16), torch.full_like(ends[0, 0], shape.S)) for _ in range(n_streams)]
    streams = [torch.cuda.Stream() for _ in range(n_streams)]
    graphs, outputs = [torch.cuda.CUDAGraph() for _ in streams], []
    for stream, graph, (given, end_B) in zip(streams, graphs, fixed, strict=True):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            chained(given, end_B)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            outputs.append(chained(given, end_B))

    def fill(s: int, i: int) -> None:
        given, end_B = fixed[s]
        for name in names:
            given[name].copy_(tables[s][name].unflatten(0, (replays, shape.B))[i])
        end_B.copy_(ends[s, i])

    torch.cuda.synchronize()
    captured: list[list[Tensor]] = [[] for _ in streams]
    launched: list[list[Tensor]] = [[] for _ in streams]
    for i in range(replays):
        for s, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                fill(s, i)
                graphs[s].replay()
                captured[s].append(outputs[s].clone())
                launched[s].append(chained(*fixed[s]))
    torch.cuda.synchronize()
    for i in range(replays):
        for s in range(n_streams):
            fill(s, i)
            expected = one_by_one(lambda s=s: chained(*fixed[s]))
            assert torch.equal(captured[s][i], expected), f"replay {i} on stream {s}"
            assert torch.equal(launched[s][i], expected), f"call {i} on stream {s}"


@pytest.mark.gpu
@by_race
def test_decodes_in_a_row_may_share_the_memory_of_their_sums(monkeypatch: pytest.MonkeyPatch, shape: Shape) -> None:
    """And something else takes it now and then, while the merge runs as far as the host knows, and fills it."""
    given = [drawn(shape, torch.bfloat16) for _ in range(4)]
    expected = [one_by_one(lambda g=g: gated_decode(**g, impl="split")) for g in given]
    places, filled, merged = [], set(), kernels.merge

    def noted(sums_BHNK: Tensor, *rest: Any, **named: Any) -> Tensor:
        places.append((sums_BHNK.data_ptr(), sums_BHNK.numel()))
        return merged(sums_BHNK, *rest, **named)

    monkeypatch.setattr(kernels, "merge", noted)
    found = []
    for i in range(200):
        found.append(gated_decode(**given[i % 4], impl="split"))
        if i % 3 == 0:
            size = places[-1][1]
            filled.add((torch.full((size,), math.nan, device=DEVICE).data_ptr(), size))
    torch.cuda.synchronize()
    assert len(set(places)) < len(places) and filled & set(places)
    assert [i for i, z in enumerate(found) if not torch.equal(z, expected[i % 4])] == []
