"""Gates whose scores were planted to follow the token, its position, the layer, the head or nothing."""

from collections.abc import Callable

import numpy as np
import planting
import pytest
import tiny
import torch
from planting import T, looked_at, set_tap, tokens, values
from torch import Tensor, nn

from gatelab.models import build_model
from gatelab.nn.attention import GatedAttention
from gatelab.ops.attention_stats import block as block_module
from gatelab.probes import capture
from gatelab.probes.gate_variance import explained

BATCH = 64
EXPLAINED = "gate_variance_explained"


def planted(scores: Callable[[int, tuple[int, ...]], Tensor], gate: str = "sdpa-headwise-identity") -> nn.Module:
    """A model whose gates have the scores of (layer, shape of the logits)."""
    model = planting.model(gate=gate)
    for layer, block in enumerate(model.blocks):
        (module,) = block.attention.gates.values()
        set_tap(module.tap_logits, lambda g, layer=layer: g.copy_(scores(layer, tuple(g.shape)).expand_as(g)))
    return model


def both(rows: list, layer: int | None = 0) -> tuple[float, float]:
    """What the token's id explains in a layer, and what its position does."""
    return tuple(values(rows, EXPLAINED, domain=domain)[layer, None] for domain in ("token", "position"))


@pytest.mark.parametrize("gate", ["sdpa-headwise-identity", "sdpa-elementwise-identity", "value-headwise-identity"])
def test_a_gate_that_follows_the_token_is_explained_by_it(gate: str) -> None:
    ids_BT, score_V = tokens(BATCH), torch.randn(17)
    model = planted(lambda layer, shape: score_V[ids_BT][..., None, None], gate)
    rows = looked_at(model, "gate_variance", tokens_BT=ids_BT)
    site = gate.partition("-")[0]
    assert values(rows, EXPLAINED, domain="token", site=site) == pytest.approx(
        {(layer, head): 1.0 for layer in (0, 1) for head in (None, 0, 1)} | {(None, None): 1.0}, rel=1e-5
    )
    assert both(rows)[1] < 0.05
    expected = score_V[ids_BT].double().var(correction=0).item()
    assert values(rows, "gate_variance") == pytest.approx(
        {(0, None): expected, (1, None): expected, (None, None): expected}, rel=1e-5
    )
    # Nothing differs between layers or heads.
    assert values(rows, EXPLAINED, domain="layer")[None, None] == pytest.approx(0.0, abs=1e-9)
    assert values(rows, EXPLAINED, domain="head")[None, None] == pytest.approx(0.0, abs=1e-9)


def test_a_gate_that_follows_the_octave_is_explained_by_it_and_not_by_the_token() -> None:
    octave_T = (torch.arange(T) + 1).log2().floor()
    rows = looked_at(planted(lambda layer, shape: octave_T[:, None, None]), "gate_variance", tokens_BT=tokens(BATCH))
    token, position = both(rows)
    assert position == pytest.approx(1.0) and token < 0.05
    assert both(rows, None) == pytest.approx((token, position), abs=0.05)


def test_what_varies_within_an_octave_is_not_explained_by_position() -> None:
    sign_T = torch.arange(T) % 2 * 2.0 - 1
    sign_T[0] = sign_T[-1] = 0.0  # octaves of one position
    rows = looked_at(planted(lambda layer, shape: sign_T[:, None, None]), "gate_variance", tokens_BT=tokens(BATCH))
    assert both(rows)[1] < 0.05


@pytest.mark.parametrize("n_ids", [17, 400])
def test_noise_is_explained_by_nothing_however_many_ids(n_ids: int) -> None:
    """With 400 ids of about three tokens each, groups alone would explain a third of the variance (η²)."""
    model = planting.model(gate="sdpa-headwise-identity", vocab_size=400)
    ids_BT = torch.randint(0, n_ids, (BATCH, T))
    for block in model.blocks:
        set_tap(block.attention.gates["sdpa"].tap_logits, lambda g: g.normal_())
    rows = looked_at(model, "gate_variance", tokens_BT=ids_BT)
    assert max(both(rows)) < 0.08
    assert values(rows, "gate_variance")[None, None] == pytest.approx(1.0, abs=0.1)
    for domain in ("layer", "head"):
        assert values(rows, EXPLAINED, domain=domain)[None, None] < 0.01


def test_half_of_the_variance_is_half_explained() -> None:
    ids_BT, score_V = tokens(256), torch.randn(17)
    score_V = (score_V - score_V[ids_BT].mean()) / score_V[ids_BT].std()
    noise_BT = torch.randn(256, T)
    rows = looked_at(
        planted(lambda layer, shape: (score_V[ids_BT] + noise_BT)[..., None, None]), "gate_variance", tokens_BT=ids_BT
    )
    assert both(rows)[0] == pytest.approx(0.5, abs=0.05)


def test_without_ids_the_token_explains_nothing() -> None:
    rows = looked_at(planted(lambda layer, shape: torch.randn(shape)), "gate_variance")
    assert {r.domain for r in rows if r.metric == EXPLAINED} == {"position", "layer", "head"}


def test_ids_that_one_pass_lacks_are_not_used() -> None:
    model = planted(lambda layer, shape: torch.randn(shape))
    with capture(model, ["gate_variance"]) as recorder:
        recorder.tokens_BT = tokens()
        model(recorder.tokens_BT)
        recorder.tokens_BT = None
        model(tokens())
    assert "token" not in {r.domain for r in recorder.rows()}


@pytest.mark.parametrize(("domain", "other"), [("layer", "head"), ("head", "layer")])
def test_constants_of_layers_or_heads_are_told_apart(domain: str, other: str) -> None:
    constant = {"layer": torch.tensor([[0.2, 0.2], [0.8, 0.8]]), "head": torch.tensor([[0.2, 0.8], [0.2, 0.8]])}
    rows = looked_at(
        planted(lambda layer, shape: constant[domain][layer][:, None]), "gate_variance", tokens_BT=tokens()
    )
    assert values(rows, EXPLAINED, domain=domain) == pytest.approx({(None, None): 1.0})
    assert values(rows, EXPLAINED, domain=other) == pytest.approx({(None, None): 0.0}, abs=1e-9)
    # A head that does not vary has no shares of its variance.
    assert not values(rows, EXPLAINED, domain="token") and not values(rows, EXPLAINED, domain="position")
    assert values(rows, "gate_variance") == pytest.approx({(0, None): 0, (1, None): 0, (None, None): 0}, abs=1e-12)


def test_the_shares_of_layers_heads_and_tokens_are_of_one_variance() -> None:
    noise = torch.randn(2, 2, T, 2, 1) * torch.tensor([0.5, 1.5])[:, None]
    scores_LBTH1 = noise + torch.tensor([[0.0, 1.0], [3.0, -2.0]])[:, None, None, :, None]
    rows = looked_at(planted(lambda layer, shape: scores_LBTH1[layer]), "gate_variance")
    g = scores_LBTH1.squeeze(-1).double().numpy()
    between_layers, total = g.mean(axis=(1, 2, 3)).var(), g.var()
    between_heads = g.mean(axis=(1, 2)).var(axis=1).mean()
    assert values(rows, EXPLAINED, domain="layer")[None, None] == pytest.approx(between_layers / total, rel=1e-5)
    assert values(rows, EXPLAINED, domain="head")[None, None] == pytest.approx(between_heads / total, rel=1e-5)
    within = values(rows, "gate_variance")[None, None]
    assert within == pytest.approx(total - between_layers - between_heads, rel=1e-5)


def test_an_equal_score_everywhere_varies_by_nothing() -> None:
    rows = looked_at(planted(lambda layer, shape: torch.tensor(0.3)), "gate_variance", tokens_BT=tokens())
    assert not values(rows, EXPLAINED) and set(values(rows, "gate_variance").values()) == {0.0}


def test_channels_are_averaged_first() -> None:
    """Channels that cancel leave a mean that does not vary."""
    sign_K = torch.tensor([1.0, -1.0] * 4)
    noise_BTH1 = torch.randn(2, T, 2, 1)
    rows = looked_at(
        planted(lambda layer, shape: 0.5 + noise_BTH1 * sign_K, "sdpa-elementwise-identity"), "gate_variance"
    )
    assert values(rows, "gate_variance")[None, None] == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("gate", ["sdpa-headwise-static", None])
def test_a_gate_that_is_a_constant_has_no_rows(gate: str | None) -> None:
    assert looked_at(planting.model(gate=gate), "gate_variance", tokens_BT=tokens()) == []


def test_passes_are_one_set_of_tokens() -> None:
    """A score a pass, the same at all of its tokens, varies between passes alone."""
    scores = iter([0.2, 0.2, 0.6, 0.6])  # two layers in two passes
    model = planted(lambda layer, shape: torch.tensor(next(scores)))
    with capture(model, ["gate_variance"]) as recorder:
        model(tokens())
        model(tokens())
    assert values(recorder.rows(), "gate_variance")[0, None] == pytest.approx(0.04, rel=1e-5)


def test_each_site_and_stack_is_told_by_itself() -> None:
    model = build_model(tiny.model(arch="encoder-decoder", gate="sdpa-headwise+value-headwise", init="fan-in"))
    with torch.no_grad(), capture(model, ["gate_variance"]) as recorder:
        model(torch.randint(0, 17, (2, 9)), torch.randint(0, 17, (2, 6)))
    rows = recorder.rows()
    assert {(r.site, r.stack) for r in rows} == {(s, k) for s in ("sdpa", "value") for k in (None, "encoder")}
    assert len([r for r in rows if r.domain == "layer"]) == 4


@pytest.mark.parametrize("n_groups", [1, 2, 5, 30])
def test_the_explained_share_is_epsilon_squared(n_groups: int) -> None:
    scores_NH, group_N = torch.randn(60, 3, dtype=torch.float64), torch.randint(0, n_groups, (60,)) * 7 - 1
    scores_NH[:, 0] += group_N
    expected_H = []
    for y in scores_NH.T.numpy():
        groups = [y[group_N.numpy() == g] for g in np.unique(group_N.numpy())]
        within, total = sum(((g - g.mean()) ** 2).sum() for g in groups), ((y - y.mean()) ** 2).sum()
        expected_H.append(max(0.0, 1 - within / (60 - len(groups)) / (total / 59)))
    np.testing.assert_allclose(explained(scores_NH, group_N).numpy(), expected_H, rtol=1e-9, atol=1e-12)
    assert n_groups == 1 or expected_H[0] > 0.5


def test_what_rounding_leaves_of_equal_scores_is_not_explained() -> None:
    scores_NH = 0.3 * (1 + torch.tensor([6e-8, 1e-3]) * torch.randn(60, 2)).double()
    assert explained(scores_NH, torch.arange(60) % 3).isnan().tolist() == [True, False]


def test_scores_that_are_groups_of_their_own_are_not_explained() -> None:
    assert explained(torch.randn(9, 2).double(), torch.arange(9)).isnan().all()


def test_gates_alone_ask_for_no_attention_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the weights of a layer were computed")

    monkeypatch.setattr(block_module, "attention_weights", refuse)
    model = planting.model(gate="sdpa-elementwise", init="fan-in")
    assert any(isinstance(module, GatedAttention) for module in model.modules())
    with torch.no_grad(), capture(model, ["gate_scores", "gate_variance", "massive"]) as recorder:
        model(tokens())
    assert {r.source for r in recorder.rows()} == {"gate_scores", "gate_variance", "massive"}
    with pytest.raises(AssertionError, match="were computed"), capture(model, ["gate_variance", "position"]):
        model(tokens())
