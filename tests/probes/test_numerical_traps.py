"""Where rounding, equal values, zeros and constants would have fooled the statistics."""

import planting
import pytest
import torch
from torch import Tensor, nn

from gatelab.config.gate import GateSpec
from gatelab.nn.attention import GatedAttention
from gatelab.ops.attention_stats import Places, Rank, Scores, Stretch, by_octave, one_pass
from gatelab.probes import capture
from gatelab.probes.residual import ResidualView


def gathered(x_BTD: Tensor, n: int) -> ResidualView:
    """The residual stream in stretches of n tokens."""
    view = ResidualView(0, None)
    for piece_BTD in x_BTD.split(n, dim=1):
        view.add(piece_BTD)
    return view


def test_the_median_in_stretches_stands_between_the_counts_edges() -> None:
    values = [torch.full((1, n, 4), value) for n, value in ((40, 0.25), (11, 0.5), (49, 1.0))]
    assert gathered(torch.cat(values, dim=1), 30).median_B.item() == pytest.approx(0.5, rel=5e-4)
    x_BTD = torch.randn(8, 200, 16).bfloat16()
    torch.testing.assert_close(gathered(x_BTD, 60).median_B, gathered(x_BTD, 200).median_B, rtol=5e-4, atol=0)


def test_the_median_of_zeros_is_zero() -> None:
    assert gathered(torch.zeros(1, 60, 16), 20).median_B.item() == 0.0


@pytest.mark.parametrize("value", [0.1, 0.3, 7.7])
@pytest.mark.parametrize("n", [20, 60])
def test_equal_values_have_no_kurtosis(value: float, n: int) -> None:
    assert gathered(torch.full((1, 60, 16), value), n).kurtosis_B.isnan().all()


def test_sums_over_an_octave_lose_nothing_at_length() -> None:
    mean_BN = by_octave(torch.full((1, 131_072), 0.1))
    torch.testing.assert_close(mean_BN[~mean_BN.isnan()], torch.full((18,), 0.1), rtol=1e-6, atol=0)
    q_BTHK, k_BSGK = torch.zeros(1, 1, 1, 4), torch.zeros(1, 100_003, 1, 4)
    one_pass([places := Places()], Stretch(q_BTHK=q_BTHK, k_BSGK=k_BSGK))
    expected_N = [min(2 ** (n + 1) - 1, 100_003) - (2**n - 1) for n in range(17)]
    torch.testing.assert_close(places.position_BHN[0, 0] * 100_003, torch.tensor(expected_N).float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("S", [4096, 32_768])
def test_the_rank_does_not_grow_with_length_by_rounding(S: int) -> None:
    q_BTHK, k_BSGK = 1 + 0.01 * torch.randn(1, 65, 1, 4), 0.3 * torch.randn(1, S, 1, 4)
    stretch = Stretch(q_BTHK=q_BTHK, k_BSGK=k_BSGK, is_causal=False)
    one_pass([rank := Rank()], stretch, block=65)
    singular_R = torch.linalg.svdvals(next(stretch.blocks(65)).weights_BHTS[0, 0, 1:].double())
    expected = torch.special.entr(singular_R / singular_R.sum()).sum().exp().item()
    assert rank.effective_BH.item() == pytest.approx(expected, rel=1e-4)


def test_a_constant_gate_counts_once_also_when_the_last_stretch_is_one_token() -> None:
    spec, logits_BTHK = GateSpec.parse("sdpa-elementwise-static"), torch.randn(1, 1, 4, 8)
    q_BTHK, k_BSGK, scores = torch.randn(2, 13, 4, 8), torch.randn(2, 13, 2, 8), Scores()
    for t, u in ((0, 12), (12, 13)):
        piece = {"q_BTHK": q_BTHK[:, t:u], "k_BSGK": k_BSGK[:, :u], "gates": {"sdpa": (spec, logits_BTHK)}}
        one_pass([scores], Stretch(**piece, n_tokens=13))
    assert scores.sites["sdpa"].n == 8


class TwoWidths(nn.Module):
    """Somebody's module, whose layers have other numbers of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.a = GatedAttention(d_model=16, n_heads=2, gate="sdpa-headwise")
        self.b = GatedAttention(d_model=16, n_heads=4, gate="sdpa-headwise")

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.b(self.a(x_BTD))


def test_layers_may_have_other_numbers_of_heads() -> None:
    model = TwoWidths()
    with torch.no_grad(), capture(model, ["gate_variance"]) as recorder:
        model(torch.randn(2, 9, 16))
    assert {r.domain for r in recorder.rows() if r.layer is None} >= {"layer", "head"}


def test_queries_whose_weights_are_all_zero_are_at_no_distance() -> None:
    rows = planting.looked_at(planting.model(softmax="softpick"), "position")
    assert not planting.values(rows, "attention_distance")


def test_a_gate_that_varies_by_rounding_alone_is_explained_by_nothing() -> None:
    model = planting.model(gate="sdpa-headwise-identity")
    for block in model.blocks:
        planting.set_tap(block.attention.gates["sdpa"].tap_logits, lambda g: g.copy_(0.3 + 3e-8 * torch.randn_like(g)))
    rows = planting.looked_at(model, "gate_variance", tokens_BT=planting.tokens())
    assert not planting.values(rows, "gate_variance_explained")
