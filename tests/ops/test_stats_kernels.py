"""Rows, first keys and columns of the attention weights as kernels: on a CUDA device, else in Triton's interpreter."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interpreter import DEVICE, interpreting
from torch import Tensor

from gatelab.ops.attention_stats import attention_stats, identities
from gatelab.ops.contract import check

with interpreting():
    from gatelab.ops.attention_stats import kernels
    from gatelab.ops.attention_stats.kernels import Tiles

pytestmark = pytest.mark.usefixtures("interpreted")
BOTH = pytest.mark.parametrize("functions", [kernels, identities], ids=["kernels", "identities"])
# So that a few tokens are many blocks.
TINY = Tiles(16, 16, 4, 2)
ROWS = ("lse_BHT", "entropy_BHT", "focus_BHT", "largest_BHT", "first_BHT")


@dataclass(frozen=True)
class Shape:
    name: str
    B: int = 1
    T: int = 33
    S: int = 33
    H: int = 2
    G: int = 1
    K: int = 16
    is_causal: bool = True
    window: int | None = None
    tiles: Tiles | None = TINY

    @property
    def masks(self) -> dict[str, Any]:
        return {"is_causal": self.is_causal, "window": self.window}


SHAPES = (
    Shape("odd", B=2),
    Shape("even", T=48, S=48),
    Shape("groups", H=6, G=2, T=19, S=19),
    Shape("more-heads-than-run-together", B=3, T=7, S=18, H=6, G=3),
    Shape("continued", T=19, S=50),
    Shape("decoded", T=1, S=37),
    Shape("window", T=45, S=45, window=9),
    Shape("window-wider-than-a-block", T=41, S=70, window=35),
    Shape("itself", T=18, S=20, window=1),
    Shape("bidirectional", T=37, S=37, is_causal=False),
    Shape("bidirectional-window", T=40, S=52, is_causal=False, window=7),
    Shape("crossing", T=35, S=18, is_causal=False),
    Shape("keep-more", T=50, S=50, tiles=Tiles(32, 16, 4, 2)),
    Shape("pass-more", T=50, S=50, window=21, tiles=Tiles(16, 32, 4, 2)),
    Shape("odd-channels", K=23),
    Shape("tiles-of-the-table", T=21, S=30, tiles=None),
)
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)


def drawn(shape: Shape, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    q_BTHK = 2 * torch.randn(shape.B, shape.T, shape.H, shape.K)
    k_BSGK = torch.randn(shape.B, shape.S, shape.G, shape.K)
    return q_BTHK.to(DEVICE, dtype), k_BSGK.to(DEVICE, dtype)


def dense_logits(q_BTHK: Tensor, k_BSGK: Tensor, *, is_causal: bool = True, window: int | None = None) -> Tensor:
    """In the type of q and k, as a plain matrix product has it; then float32 at least."""
    T, H, S = q_BTHK.shape[1], q_BTHK.shape[2], k_BSGK.shape[1]
    k_BSHK = k_BSGK.repeat_interleave(H // k_BSGK.shape[2], dim=2)
    logits_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK) / math.sqrt(q_BTHK.shape[3])
    sees_TS = [
        [(s <= t or not is_causal) and (window is None or abs(t - s) < window) for s in range(S)]
        for t in range(S - T, S)
    ]
    wide = torch.promote_types(q_BTHK.dtype, torch.float32)
    return logits_BHTS.to(wide).masked_fill(~torch.tensor(sees_TS, device=q_BTHK.device), -math.inf)


def dense_row(name: str, q_BTHK: Tensor, k_BSGK: Tensor, **masks: Any) -> Tensor:
    logits_BHTS = dense_logits(q_BTHK, k_BSGK, **masks)
    lse_BHT = logits_BHTS.exp().sum(-1).log()
    p_BHTS = (logits_BHTS - lse_BHT[..., None]).exp()
    return {
        "lse_BHT": lse_BHT,
        "entropy_BHT": -(p_BHTS * logits_BHTS.clamp(min=-1e30)).sum(-1) + lse_BHT,
        "focus_BHT": p_BHTS.square().sum(-1).reciprocal(),
        "largest_BHT": logits_BHTS.max(-1).values,
        "first_BHT": logits_BHTS[..., 0],
    }[name]


def dense_column_sums(q_BTHK: Tensor, k_BSGK: Tensor, lse_BHT: Tensor, **masks: Any) -> Tensor:
    return (dense_logits(q_BTHK, k_BSGK, **masks) - lse_BHT[..., None]).exp().sum(2)


def dense_first_mass(q_BTHK: Tensor, k_BSGK: Tensor, lse_BHT: Tensor, *, n_first: int, **masks: Any) -> Tensor:
    return (dense_logits(q_BTHK, k_BSGK, **masks) - lse_BHT[..., None]).exp()[..., :n_first]


def exact_lse(q_BTHK: Tensor, k_BSGK: Tensor, **masks: Any) -> Tensor:
    return dense_row("lse_BHT", q_BTHK.double(), k_BSGK.double(), **masks).float()


def finite(function: Callable[..., Tensor], **arguments: Any) -> Tensor:
    """A hidden first key's −∞ as a number, so that errors can be measured."""
    return function(**arguments).clamp(min=-1e4)


def holds(candidate: Callable, reference: Callable, arguments: dict[str, Any]) -> None:
    # Of float32: what the contract grants for one rounding of the result.
    [verdict] = check(candidate, reference, arguments | {"grad_BTHK": torch.ones(1)})
    assert verdict.holds, verdict


@by_shape
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_kernels_keep_the_contract(dtype: torch.dtype, shape: Shape) -> None:
    q_BTHK, k_BSGK = drawn(shape, dtype)
    given = {"q_BTHK": q_BTHK, "k_BSGK": k_BSGK}
    rows = kernels.row_stats(q_BTHK, k_BSGK, tiles=shape.tiles, **shape.masks)
    for name in ROWS:
        found_BHT = getattr(rows, name).clamp(min=-1e4)
        holds(lambda found=found_BHT, **_: found, partial(finite, partial(dense_row, name, **shape.masks)), given)
    given["lse_BHT"] = exact_lse(q_BTHK, k_BSGK, **shape.masks)
    columns = partial(kernels.column_sums, tiles=shape.tiles, **shape.masks)
    holds(columns, partial(dense_column_sums, **shape.masks), given)
    masks = shape.masks | {"n_first": 3}
    holds(partial(kernels.first_mass, **masks), partial(dense_first_mass, **masks), given)


def test_the_kernels_keep_the_contract_in_float16() -> None:
    test_the_kernels_keep_the_contract(torch.float16, SHAPES[0])


@by_shape
def test_the_identities_are_the_definition_in_float64(shape: Shape) -> None:
    q_BTHK, k_BSGK = drawn(shape, torch.float64)
    exactly = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    found = identities.row_stats(q_BTHK, k_BSGK, **shape.masks)
    for name in ROWS:
        exactly(getattr(found, name), dense_row(name, q_BTHK, k_BSGK, **shape.masks))
    q_k_lse = q_BTHK, k_BSGK, found.lse_BHT
    exactly(identities.column_sums(*q_k_lse, **shape.masks), dense_column_sums(*q_k_lse, **shape.masks))
    mass_BHTS = dense_first_mass(*q_k_lse, n_first=3, **shape.masks)
    exactly(identities.first_mass(*q_k_lse, n_first=3, **shape.masks), mass_BHTS)
    exactly(identities.mean_first_mass(*q_k_lse, n_first=3, **shape.masks), mass_BHTS.mean(2))


@BOTH
@pytest.mark.parametrize("skip", [0, 20, 36, 49])
def test_the_mean_counts_queries_by_position(functions: Any, skip: int) -> None:
    shape = Shape("continued", B=2, T=19, S=50, H=4, G=2)
    q_BTHK, k_BSGK = drawn(shape)
    lse_BHT = exact_lse(q_BTHK, k_BSGK)
    mass_BHTS = dense_first_mass(q_BTHK.double(), k_BSGK.double(), lse_BHT, n_first=2)
    found = functions.mean_first_mass(q_BTHK, k_BSGK, lse_BHT, n_first=2, skip=skip)
    torch.testing.assert_close(found, mass_BHTS[:, :, max(skip - 31, 0) :].mean(2).float(), rtol=1e-5, atol=1e-7)


@by_shape
def test_every_element_of_the_results_is_written(monkeypatch: pytest.MonkeyPatch, shape: Shape) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(math.nan))
    q_BTHK, k_BSGK = drawn(shape)
    lse_BHT = exact_lse(q_BTHK, k_BSGK, **shape.masks)
    found = vars(kernels.row_stats(q_BTHK, k_BSGK, tiles=shape.tiles, **shape.masks))
    found["columns"] = kernels.column_sums(q_BTHK, k_BSGK, lse_BHT, tiles=shape.tiles, **shape.masks)
    found["first"] = kernels.first_mass(q_BTHK, k_BSGK, lse_BHT, n_first=3, **shape.masks)
    found["mean"] = kernels.mean_first_mass(q_BTHK, k_BSGK, lse_BHT, n_first=3, **shape.masks)
    assert not [name for name, t in found.items() if t.isnan().any()]


@BOTH
def test_columns_sum_to_the_queries_less_what_a_slot_takes(functions: Any) -> None:
    shape = Shape("groups", B=2, T=37, S=41, H=4, G=2)
    q_BTHK, k_BSGK = drawn(shape)
    lse_BHT = exact_lse(q_BTHK, k_BSGK)
    columns_BHS = functions.column_sums(q_BTHK, k_BSGK, lse_BHT)
    torch.testing.assert_close(columns_BHS.sum(-1).cpu(), torch.full((2, 4), 37.0), rtol=1e-5, atol=0)
    sink_H1 = torch.tensor([-1.0, 0.0, 1.0, 3.0], device=DEVICE)[:, None]
    beside_BHS = functions.column_sums(q_BTHK, k_BSGK, torch.logaddexp(lse_BHT, sink_H1))
    slot_BH = (sink_H1 - lse_BHT).sigmoid().sum(-1)
    assert (slot_BH > 0.01).all()
    torch.testing.assert_close(beside_BHS.sum(-1) + slot_BH, columns_BHS.sum(-1))


@BOTH
def test_uniform_attention_has_the_numbers_of_the_harmonic_series(functions: Any) -> None:
    T = 35
    q_BTHK, k_BSGK = drawn(Shape("uniform", T=T, S=T))
    rows = functions.row_stats(torch.zeros_like(q_BTHK), k_BSGK)
    n_T = torch.arange(1.0, T + 1, device=DEVICE)
    for name, expected_T in zip(ROWS, (n_T.log(), n_T.log(), n_T, 0 * n_T, 0 * n_T), strict=True):
        torch.testing.assert_close(getattr(rows, name)[0, 0], expected_T, rtol=1e-5, atol=1e-6)
    columns_S = functions.column_sums(torch.zeros_like(q_BTHK), k_BSGK, rows.lse_BHT)[0, 1]
    torch.testing.assert_close(columns_S, (1 / n_T).flip(0).cumsum(0).flip(0), rtol=1e-5, atol=1e-6)


@BOTH
def test_a_planted_sink_is_found(functions: Any) -> None:
    q_BTHK, k_BSGK = drawn(Shape("planted", T=40, S=40, H=2, G=2))
    q_BTHK, k_BSGK = 0.1 * q_BTHK, 0.1 * k_BSGK
    q_BTHK[..., 0] = 10.0
    k_BSGK[:, [0], 0, 0], k_BSGK[:, [7], 1, 0] = 10.0, 10.0
    rows = functions.row_stats(q_BTHK, k_BSGK)
    columns_BHS = functions.column_sums(q_BTHK, k_BSGK, rows.lse_BHT)
    assert columns_BHS.argmax(-1).tolist() == [[0, 7]]
    assert columns_BHS[0, 0, 0] > 39.9 and columns_BHS[0, 1, 7] > 32.9
    sharp, blunt = rows.focus_BHT[0, :, 7:].amax(-1)[0], rows.focus_BHT[0, 1, 6]
    assert sharp < 1.01 and blunt > 6
    assert functions.mean_first_mass(q_BTHK, k_BSGK, rows.lse_BHT)[0, :, 0].round(decimals=1).tolist()[0] == 1.0


@BOTH
@pytest.mark.parametrize("window", [None, 6])
def test_they_are_what_the_block_statistics_say(functions: Any, window: int | None) -> None:
    q_BTHK, k_BSGK = drawn(Shape("groups", B=2, T=20, S=29, H=4, G=2))
    stats = attention_stats(q_BTHK, k_BSGK, window=window, block=8)
    lse_BHT = functions.row_stats(q_BTHK, k_BSGK, window=window).lse_BHT
    seen_S = torch.tensor([len(range(max(s, 9), min(s + (window or 29), 29))) for s in range(29)])
    columns_BHS = functions.column_sums(q_BTHK, k_BSGK, lse_BHT, window=window).cpu()
    torch.testing.assert_close(columns_BHS / seen_S.clamp(min=1), stats.importance_BHS.cpu(), rtol=1e-5, atol=1e-6)
    first_BHT1 = functions.first_mass(q_BTHK, k_BSGK, lse_BHT, window=window)
    torch.testing.assert_close(first_BHT1[..., 0], stats.first_mass_BHT, rtol=1e-5, atol=1e-6)


def test_entropy_is_the_lse_less_the_logit_of_the_mean_key() -> None:
    q_BTHK, k_BSGK = drawn(Shape("mean key", B=2, T=33, S=33, H=2, G=2))
    q, k = q_BTHK.transpose(1, 2), k_BSGK.transpose(1, 2)
    mean_BHTK = F.scaled_dot_product_attention(q, k, k, is_causal=True)
    rows = kernels.row_stats(q_BTHK, k_BSGK)
    expected_BHT = rows.lse_BHT - (q * mean_BHTK).sum(-1) / math.sqrt(16)
    torch.testing.assert_close(rows.entropy_BHT, expected_BHT, rtol=1e-4, atol=1e-5)


def test_tiles_move_nothing_but_the_last_bits_and_calls_not_even_those() -> None:
    q_BTHK, k_BSGK = drawn(Shape("tiles", T=70, S=75, window=40), torch.bfloat16)
    lse_BHT = exact_lse(q_BTHK, k_BSGK, window=40)
    calls = [partial(f, window=40) for f in (kernels.column_sums, kernels.first_mass, kernels.mean_first_mass)]
    for call in calls:
        assert torch.equal(call(q_BTHK, k_BSGK, lse_BHT), call(q_BTHK, k_BSGK, lse_BHT))
    rows = vars(kernels.row_stats(q_BTHK, k_BSGK, window=40))
    for tiles in (Tiles(16, 32, 4, 2), Tiles(64, 16, 8, 3)):
        torch.testing.assert_close(calls[0](q_BTHK, k_BSGK, lse_BHT, tiles=tiles), calls[0](q_BTHK, k_BSGK, lse_BHT))
        for name, found in vars(kernels.row_stats(q_BTHK, k_BSGK, window=40, tiles=tiles)).items():
            torch.testing.assert_close(found, rows[name])


@BOTH
def test_what_is_hidden_may_be_anything(functions: Any) -> None:
    q_BTHK, k_BSGK = drawn(Shape("hidden", T=36, S=36))
    before = functions.row_stats(q_BTHK, k_BSGK, window=20)
    columns_BHS = functions.column_sums(q_BTHK[:, :30], k_BSGK[:, :30], before.lse_BHT[..., :30], window=20)
    k_BSGK[:, 30:] = 1e9
    after = functions.row_stats(q_BTHK, k_BSGK, window=20)
    for name in ROWS:
        assert torch.equal(getattr(after, name)[..., :30], getattr(before, name)[..., :30]), name
    found_BHS = functions.column_sums(q_BTHK, k_BSGK, after.lse_BHT, window=20)
    torch.testing.assert_close(found_BHS[..., :10], columns_BHS[..., :10])


@BOTH
def test_large_logits_give_finite_sharp_rows(functions: Any) -> None:
    q_BTHK, k_BSGK = (1e3 * t for t in drawn(Shape("large", B=2)))
    rows = functions.row_stats(q_BTHK, k_BSGK)
    assert all(getattr(rows, name).isfinite().all() for name in ROWS)
    assert rows.lse_BHT.max() > 1e6 and (rows.entropy_BHT >= 0).all()
    torch.testing.assert_close(rows.largest_BHT, rows.lse_BHT)
    torch.testing.assert_close(rows.focus_BHT, torch.ones_like(rows.focus_BHT), rtol=1e-3, atol=0)


def test_the_order_in_memory_does_not_matter() -> None:
    q_BTHK, k_BSGK = drawn(Shape("memory", T=20, S=20, H=4, G=2))
    lse_BHT = exact_lse(q_BTHK, k_BSGK)
    fused_BTMK = torch.cat([q_BTHK, k_BSGK], dim=2)
    layouts = [
        (q_BTHK.transpose(1, 2).contiguous().transpose(1, 2), k_BSGK.transpose(1, 2).contiguous().transpose(1, 2)),
        fused_BTMK.split([4, 2], dim=2),
        (q_BTHK.transpose(2, 3).contiguous().transpose(2, 3), k_BSGK.repeat_interleave(2, dim=3)[..., ::2]),
    ]
    expected = kernels.row_stats(q_BTHK, k_BSGK).entropy_BHT, kernels.column_sums(q_BTHK, k_BSGK, lse_BHT)
    for q, k in layouts:
        lse = lse_BHT.transpose(1, 2).contiguous().transpose(1, 2)
        found = kernels.row_stats(q, k).entropy_BHT, kernels.column_sums(q, k, lse)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert torch.equal(kernels.first_mass(q, k, lse), kernels.first_mass(q_BTHK, k_BSGK, lse_BHT))


@BOTH
def test_inputs_that_are_learned_are_taken(functions: Any) -> None:
    q_BTHK, k_BSGK = (t.requires_grad_() for t in drawn(Shape("learned", T=9, S=9)))
    lse_BHT = functions.row_stats(q_BTHK, k_BSGK).lse_BHT.detach().requires_grad_()
    assert functions.column_sums(q_BTHK, k_BSGK, lse_BHT).shape == (1, 2, 9)
    assert functions.mean_first_mass(q_BTHK, k_BSGK, lse_BHT).shape == (1, 2, 1)


@BOTH
@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_empty_inputs_give_empty_results(functions: Any, empty: str) -> None:
    B, T = (0, 3) if empty == "batch" else (2, 0)
    q_BTHK, k_BSGK = torch.zeros(B, T, 4, 16, device=DEVICE), torch.zeros(B, 5, 2, 16, device=DEVICE)
    lse_BHT = functions.row_stats(q_BTHK, k_BSGK).lse_BHT
    assert lse_BHT.shape == (B, 4, T)
    assert functions.first_mass(q_BTHK, k_BSGK, lse_BHT, n_first=2).shape == (B, 4, T, 2)
    columns_BHS = functions.column_sums(q_BTHK, k_BSGK, lse_BHT)
    assert columns_BHS.shape == (B, 4, 5) and not columns_BHS.any()


@BOTH
def test_mistakes_are_told(functions: Any) -> None:
    q, k = torch.zeros(1, 3, 4, 16, device=DEVICE), torch.zeros(1, 3, 2, 16, device=DEVICE)
    lse = torch.zeros(1, 4, 3, device=DEVICE)
    with pytest.raises(ValueError, match=r"\(3, 4, 16\).*expected \[B,T,H,K\], \[B,S,G,K\]"):
        functions.row_stats(q[0], k)
    with pytest.raises(ValueError, match="G dividing H"):
        functions.row_stats(q[:, :, :3], k)
    with pytest.raises(ValueError, match=r"3 queries and 2 keys.*at least as many"):
        functions.column_sums(q, k[:, :2], lse)
    with pytest.raises(ValueError, match="window=0"):
        functions.row_stats(q, k, window=0)
    with pytest.raises(ValueError, match=r"lse_BHT of shape \(1, 3, 4\).*\(1, 4, 3\)"):
        functions.column_sums(q, k, lse.transpose(1, 2))
    for n_first in (0, 4):
        with pytest.raises(ValueError, match=f"n_first={n_first}: expected 1 to 64, and no more than the 3 keys"):
            functions.first_mass(q, k, lse, n_first=n_first)
    for skip in (-1, 3):
        with pytest.raises(ValueError, match=f"skip={skip} with 3 queries up to position 2"):
            functions.mean_first_mass(q, k, lse, skip=skip)


def test_what_the_kernels_do_not_serve_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = torch.zeros(1, 3, 4, 16, device=DEVICE), torch.zeros(1, 3, 2, 16, device=DEVICE)
    with pytest.raises(ValueError, match=r"types torch.float64, torch.float64: .* torch.bfloat16, torch.float16"):
        kernels.row_stats(q.double(), k.double())
    with pytest.raises(ValueError, match=r"types torch.float32, torch.float16"):
        kernels.row_stats(q, k.half())
    with pytest.raises(ValueError, match="heads of 272 channels: the kernels take 256"):
        kernels.row_stats(q.repeat(1, 1, 1, 17), k.repeat(1, 1, 1, 17))
    with pytest.raises(ValueError, match="meta: the kernels run on one CUDA device"):
        kernels.column_sums(q, k, torch.zeros(1, 4, 3, device="meta"))
    monkeypatch.setattr(kernels.triton, "JITFunction", object)
    with pytest.raises(ValueError, match=r"tensors on cpu: .*attention_stats\.identities"):
        kernels.row_stats(q.cpu(), k.cpu())


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 300])
def test_the_tiles_of_the_table_keep_the_contract_over_many_blocks(window: int | None) -> None:
    shape = Shape("long", T=769, S=1001, H=4, G=2, K=128, window=window, tiles=None)
    test_the_kernels_keep_the_contract(torch.bfloat16, shape)
