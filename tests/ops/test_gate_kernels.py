"""The gate around a fused attention: its kernels on a CUDA device, else in Triton's interpreter, and its formulas."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from interpreter import DEVICE, interpreting
from torch import Tensor

from gatelab.config import GateSpec
from gatelab.ops.contract import check
from gatelab.ops.gate_apply import apply_gate, fused

with interpreting():
    from gatelab.ops.gate_apply import kernels
    from gatelab.ops.gate_apply.kernels import Tile

pytestmark = pytest.mark.usefixtures("interpreted")
BOTH = pytest.mark.parametrize("functions", [kernels, fused], ids=["kernels", "formulas"])
KEPT = pytest.mark.parametrize("is_output", [True, False], ids=["y-kept", "z-kept"])
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)


@dataclass(frozen=True)
class Shape:
    name: str
    B: int = 2
    T: int = 5
    H: int = 3
    K: int = 16
    W: int = 16


SHAPES = (
    Shape("elementwise"),
    Shape("headwise", W=1),
    Shape("odd-channels", K=12, W=12),
    Shape("odd-channels-headwise", K=20, W=1),
    Shape("many-blocks", B=1, T=37, K=128, W=128),
    Shape("many-blocks-headwise", B=1, T=43, K=64, W=1),
    Shape("one-token", B=1, T=1, H=1),
    Shape("one-channel", K=1, W=1),
)
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)


def drawn(shape: Shape, dtype: torch.dtype) -> dict[str, Tensor]:
    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes).to(DEVICE, dtype)

    B, T, H, K = shape.B, shape.T, shape.H, shape.K
    tensors = {"dz": normal(B, T, H, K), "kept": normal(B, T, H, K), "logits": 2 * normal(B, T, H, shape.W)}
    return tensors | {"lse": torch.randn(B, H, T, device=DEVICE)}


def gradients(functions: Any, t: dict[str, Tensor], *, is_output: bool) -> dict[str, Tensor]:
    """What both modules call `gate_gradients`, by name."""
    given = {"is_output": is_output} | ({"dtype": t["logits"].dtype} if functions is kernels else {})
    return dict(zip(fused.Ungated._fields, functions.gate_gradients(*t.values(), **given), strict=True))


def expected(name: str, dz: Tensor, kept: Tensor, logits: Tensor, lse: Tensor, *, is_output: bool) -> Tensor:
    """The derivatives of z = y ⊙ σ, one operation after the other in the given type."""
    score = logits.sigmoid()
    y = kept if is_output else kept / score
    is_headwise = logits.shape[3] == 1
    if name == "dlogits_BTHK":
        slopes = dz * y * score * (-logits).sigmoid()
        return slopes.sum(3, keepdim=True) if is_headwise else slopes
    if name == "lse_BHT":
        return lse - score.log().squeeze(3).transpose(1, 2).to(lse.dtype) if is_headwise else lse
    return {"dy_BTHK": dz if is_headwise else dz * score, "y_BTHK": y}[name]


def holds(found: Tensor, reference: Callable[..., Tensor], given: dict[str, Tensor]) -> None:
    [verdict] = check(lambda **_: found, reference, given | {"grad_BTHK": torch.ones(1, dtype=found.dtype)})
    assert verdict.holds, verdict


@BOTH
@DTYPES
@by_shape
def test_the_product_keeps_the_contract(functions: Any, dtype: torch.dtype, shape: Shape) -> None:
    t = drawn(shape, dtype)
    spec = GateSpec.parse("sdpa-headwise" if shape.W == 1 else "sdpa-elementwise")
    z_BTHK = functions.gate_output(t["kept"], t["logits"])
    holds(z_BTHK, lambda y, logits: apply_gate(y, logits, spec), {"y": t["kept"], "logits": t["logits"]})
    assert z_BTHK.is_contiguous()


@BOTH
@DTYPES
@KEPT
@by_shape
def test_the_way_back_keeps_the_contract(functions: Any, is_output: bool, dtype: torch.dtype, shape: Shape) -> None:
    t = drawn(shape, dtype)
    if not is_output:
        t["kept"] = fused.gate_output(t["kept"], t["logits"])
    for name, found in gradients(functions, t, is_output=is_output).items():
        holds(found, partial(expected, name, is_output=is_output), t)


@BOTH
def test_the_product_is_the_sigmoid_of_numpy(functions: Any) -> None:
    t = drawn(SHAPES[0], torch.float32)
    y, g = (t[n].cpu().double().numpy() for n in ("kept", "logits"))
    np.testing.assert_allclose(functions.gate_output(t["kept"], t["logits"]).cpu(), y / (1 + np.exp(-g)), rtol=1e-6)


def packed(t: Tensor, before: int) -> Tensor:
    """The same numbers as a slice of a wider projection, between channels that are not numbers."""
    B, T, H, W = t.shape
    wide = torch.full((B, T, before + H * W + 24), math.nan, device=t.device, dtype=t.dtype)
    wide[..., before : before + H * W] = t.flatten(2)
    return wide[..., before : before + H * W].unflatten(-1, (H, W))


@BOTH
@KEPT
@by_shape
def test_views_of_a_packed_projection_are_read_where_they_lie(functions: Any, is_output: bool, shape: Shape) -> None:
    t = drawn(shape, torch.float32)
    views = t | {"logits": packed(t["logits"], 8), "kept": t["kept"].transpose(1, 2).contiguous().transpose(1, 2)}
    z, same = (functions.gate_output(d["kept"], d["logits"]) for d in (views, t))
    torch.testing.assert_close(z, same, rtol=1e-6, atol=0)
    for name, value in gradients(functions, views, is_output=is_output).items():
        torch.testing.assert_close(value, gradients(functions, t, is_output=is_output)[name], rtol=1e-5, atol=1e-6)


@KEPT
@by_shape
def test_every_element_of_the_results_is_written(
    monkeypatch: pytest.MonkeyPatch, is_output: bool, shape: Shape
) -> None:
    t = drawn(shape, torch.float32)
    for name in ("empty", "empty_like"):
        plain = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, plain=plain, **k: plain(*a, **k).fill_(math.nan))
    found = gradients(kernels, t, is_output=is_output) | {"z": kernels.gate_output(t["kept"], t["logits"])}
    assert not [name for name, value in found.items() if value.isnan().any()]


@KEPT
@pytest.mark.parametrize("tile", [Tile(64, 1), Tile(128, 2, True), Tile(256, 4, True, "evict_first")], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES[:4], Shape("whole", T=16, H=4, K=16, W=1)], ids=lambda s: s.name)
def test_other_tiles_and_wide_offsets_give_the_same(
    monkeypatch: pytest.MonkeyPatch, is_output: bool, tile: Tile, shape: Shape
) -> None:
    t = drawn(shape, torch.float32)
    expected = [*gradients(kernels, t, is_output=is_output).values(), kernels.gate_output(t["kept"], t["logits"])]
    for key in kernels.TILES:
        monkeypatch.setitem(kernels.TILES, key, tile)
    for is_near in (kernels._is_near, lambda t: False):
        monkeypatch.setattr(kernels, "_is_near", is_near)
        found = [*gradients(kernels, t, is_output=is_output).values(), kernels.gate_output(t["kept"], t["logits"])]
        for value, same in zip(found, expected, strict=True):
            torch.testing.assert_close(value, same, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("stride", "is_near"), [(2**31 - 1, True), (2**31, False)])
def test_offsets_of_64_bits_are_for_what_32_do_not_count(stride: int, is_near: bool) -> None:
    assert kernels._is_near(torch.empty_strided((2, 1, 1, 1), (stride, 1, 1, 1), device="meta")) == is_near


@BOTH
@DTYPES
@pytest.mark.parametrize("W", [1, 16])
def test_shut_and_open_gates_stay_finite(functions: Any, W: int, dtype: torch.dtype) -> None:
    t = drawn(Shape("extreme", W=W), dtype)
    y = t["kept"]
    t["logits"] = torch.empty_like(t["logits"])
    t["logits"][:, ::2], t["logits"][:, 1::2] = -1e4, 1e4
    t["logits"][:, 0], t["logits"][:, 1] = -80.0, 80.0
    t["kept"] = functions.gate_output(y, t["logits"])
    found = gradients(functions, t, is_output=False)
    assert all(value.isfinite().all() for value in found.values())
    # Recovered where the gate is open; where nothing came through, it is 0, as its gradient is.
    torch.testing.assert_close(found["y_BTHK"][:, 1::2], y[:, 1::2])
    assert not found["y_BTHK"][:, ::2].any() and (found["dlogits_BTHK"].abs().float() < 1e-30).all()


@BOTH
@KEPT
def test_headwise_equals_elementwise_with_the_same_logit_in_every_channel(functions: Any, is_output: bool) -> None:
    t = drawn(Shape("headwise", W=1), torch.float32)
    repeated = t | {"logits": t["logits"].repeat(1, 1, 1, 16)}
    torch.testing.assert_close(*(functions.gate_output(d["kept"], d["logits"]) for d in (t, repeated)))
    one, each = (gradients(functions, d, is_output=is_output) for d in (t, repeated))
    torch.testing.assert_close(one["dlogits_BTHK"], each["dlogits_BTHK"].sum(3, keepdim=True), rtol=1e-4, atol=1e-5)
    # dy of the one belongs to a softmax that is smaller by σ = exp(lse − raised lse).
    smaller_BTH1 = (t["lse"] - one["lse_BHT"]).exp().transpose(1, 2)[..., None]
    torch.testing.assert_close(one["dy_BTHK"] * smaller_BTH1, each["dy_BTHK"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 3, 16), (1, 1, 3, 1), (2, 1, 1, 16), (1, 5, 1, 1)], ids=str)
def test_a_constant_gets_the_sum_of_its_gradients(shape: tuple[int, ...]) -> None:
    t = drawn(SHAPES[0], torch.bfloat16)
    logits = torch.randn(shape).to(DEVICE, torch.bfloat16).requires_grad_()
    z_BTHK = fused.gate_output(t["kept"], logits.detach())
    assert torch.equal(z_BTHK, (t["kept"] * logits.float().sigmoid()).bfloat16())
    found = fused.gate_gradients(t["dz"], t["kept"], logits.detach(), t["lse"], is_output=True).dlogits_BTHK
    (t["kept"].double() * logits.double().sigmoid()).backward(t["dz"].double())
    assert found.shape == shape and found.dtype == torch.bfloat16
    torch.testing.assert_close(found, logits.grad, rtol=2**-7, atol=1e-6)


@BOTH
@pytest.mark.parametrize("W", [1, 16])
def test_empty_inputs_give_empty_outputs(functions: Any, W: int) -> None:
    t = drawn(Shape("empty", T=0, W=W), torch.float32)
    assert functions.gate_output(t["kept"], t["logits"]).shape == (2, 0, 3, 16)
    shapes = {name: tuple(v.shape) for name, v in gradients(functions, t, is_output=False).items()}
    assert shapes == {
        "dy_BTHK": (2, 0, 3, 16), "y_BTHK": (2, 0, 3, 16), "lse_BHT": (2, 3, 0), "dlogits_BTHK": (2, 0, 3, W)
    }  # fmt: skip
