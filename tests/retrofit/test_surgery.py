"""First keys are measured as whole matrices have them, a planted sink is found, and what is put in its place computes the same."""

import math

import pytest
import torch
from planted import BOS, D, G, H, K, config, sunk, texts
from torch import Tensor

from gatelab.config import GateSpec
from gatelab.models import build_model
from gatelab.models.model import Model
from gatelab.retrofit.sinks import first_keys, openness_logits
from gatelab.retrofit.starts import attention_layers
from gatelab.retrofit.surgery import VARIANTS, operated, variants

HEADWISE, ELEMENTWISE = GateSpec.parse("sdpa-headwise-bias"), GateSpec.parse("sdpa-elementwise-bias")
ALL = ((0, 1, 2, 3),)


def matrices(q_BTHK: Tensor, k_BSGK: Tensor) -> Tensor:
    """Causal weights in float64, [B, H, T, S]."""
    T, S = q_BTHK.shape[1], k_BSGK.shape[1]
    k_BSHK = k_BSGK.double().repeat_interleave(q_BTHK.shape[2] // k_BSGK.shape[2], dim=2)
    logits = torch.einsum("bthk,bshk->bhts", q_BTHK.double(), k_BSHK) / math.sqrt(q_BTHK.shape[3])
    return logits.masked_fill(~torch.ones(T, S, dtype=torch.bool).tril(), -math.inf).softmax(dim=-1)


def test_the_openness_is_what_the_first_key_leaves():
    q, k, v = torch.randn(2, 9, H, K), torch.randn(2, 9, G, K), torch.randn(2, 9, G, K)
    first_BHT = matrices(q, k)[..., 0]
    expected_BTH = torch.logit(1 - first_BHT[..., 1:]).transpose(1, 2)
    torch.testing.assert_close(openness_logits(q, k, v).double(), expected_BTH, rtol=1e-4, atol=1e-4)


def test_it_is_exact_where_the_first_mass_rounds_to_one():
    q, k, v = torch.zeros(1, 5, 1, K), torch.zeros(1, 5, 1, K), torch.randn(1, 5, 1, K)
    q[..., 0], k[:, 0, :, 0] = 1.0, 200.0 * math.sqrt(K)
    expected_T = torch.arange(1, 5).double().log() - 200
    torch.testing.assert_close(openness_logits(q, k, v)[0, :, 0].double(), expected_T, rtol=1e-5, atol=1e-5)


def test_first_keys_are_those_of_whole_matrices():
    model, ids = build_model(config(n_layers=2, positions="rope"), seed=1).eval(), torch.randint(0, 23, (16, 12))
    found = first_keys(model, ids)
    n_test = 4
    seen: dict[str, Tensor] = {}
    layer = attention_layers(model)[1]
    for name in ("q", "k", "v"):
        tap = getattr(layer, f"tap_{name}")
        tap.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        model(ids)
    key = found.layers[1]
    mass_H = matrices(seen["q"], seen["k"])[:n_test, :, 1:, 0].mean(dim=(0, 2))
    torch.testing.assert_close(key.fit.mass_H, mass_H, rtol=1e-4, atol=1e-5)
    v = seen["v"].double()
    torch.testing.assert_close(key.value_GK, v[:, 0].mean(dim=0), rtol=1e-4, atol=1e-5)
    drain_BG = v[:, 0].norm(dim=-1) / v[:, 1:].norm(dim=-1).median(dim=1).values
    torch.testing.assert_close(key.drain_H, drain_BG.mean(dim=0).repeat_interleave(H // G), rtol=1e-4, atol=1e-5)
    spread_G = (v[:, 0] - v[:, 0].mean(dim=0)).square().sum(dim=(0, 2))
    constancy_G = 1 - spread_G / v[:, 0].square().sum(dim=(0, 2))
    torch.testing.assert_close(key.constancy_G, constancy_G, rtol=1e-4, atol=1e-5)
    assert (found.n_train, found.n_test) == (12 * 11, 4 * 11)


def test_a_planted_sink_is_found_and_nothing_else():
    found = first_keys(sunk(heads=(1, 2), slope=6.0), texts(64, 4))
    key = found.layers[0]
    assert torch.allclose(key.constancy_G, torch.ones(G, dtype=torch.float64), atol=1e-6)
    # Other heads give the first key what uniform attention does.
    uniform = sum(1 / (i + 1) for i in range(1, 4)) / 3
    assert torch.allclose(key.fit.mass_H[[0, 3]], torch.tensor(uniform, dtype=torch.float64), atol=1e-5)
    assert found.heads(mass=uniform + 0.01, drain=0.3)[0] == tuple(
        h for h in (1, 2) if key.fit.mass_H[h] > uniform + 0.01
    )
    assert key.fit.mass_H[[1, 2]].max() > uniform + 0.05
    assert found.heads(mass=0.0, drain=1e-6) == ((),)


def two_tokens() -> Tensor:
    """Sequences of BOS and two tokens: queries that see one other key, and queries that see two."""
    return texts(200, 3)


@pytest.mark.parametrize("gate", [HEADWISE, ELEMENTWISE], ids=str)
@pytest.mark.parametrize("heads", [ALL, ((0,),), ((1, 2),)], ids=str)
def test_surgery_with_the_gate_that_it_was_changes_nothing(gate: GateSpec, heads: tuple[tuple[int, ...], ...]):
    """Of one other key LSE − z₀ is linear in x, all first values are one: the operated model is the model, to rounding."""
    model, ids = sunk(value=0.7), texts(64, 2)
    found = first_keys(sunk(value=0.7), torch.cat([ids[:, :1], ids[:, 1:], ids[:, 1:]], dim=1))
    # Fitted where one other key is seen alone, so that the fit is exact.
    exact = exactly_fitted(model, found)
    after = operated(model, gate, exact, heads, value="mean")
    torch.testing.assert_close(after(ids), model(ids), rtol=1e-4, atol=1e-5)
    dropped = operated(model, gate, exact, heads, value="none")
    assert (dropped(ids) - model(ids))[:, 1].abs().max() > 1e-3
    assert after.config.first_hidden_from == heads and after.config.gate == (gate,)


def exactly_fitted(model: Model, found):
    """The gate of one other key, −q·k₀ / √K: by hand."""
    q_HKD = attention_layers(model)[0].q_proj.weight.detach().double().view(H, K, D)
    state_D = model.blocks[0].attention_norm(model.embedding.weight[BOS]).detach().double()
    key_GK = (attention_layers(model)[0].k_proj.weight.detach().double() @ state_D).view(G, K)
    weight_HD = -torch.einsum("hkd,hk->hd", q_HKD, key_GK.repeat_interleave(H // G, dim=0)) / math.sqrt(K)
    weight_FH = found.layers[0].fit.weight_FH["token"]
    weight_FH.zero_()
    weight_FH[:D] = weight_HD.T
    return found


def test_the_fit_is_the_planted_gate():
    """BOS and one more token alone would have no spread in ln n; with two the intercept lies between 0 and ln 2."""
    model = sunk(slope=3.0)
    found = first_keys(model, two_tokens())
    fitted_FH = found.layers[0].fit.weight_FH["token"].clone()
    planted_FH = exactly_fitted(model, found).layers[0].fit.weight_FH["token"]
    x_ND = model.blocks[0].attention_norm(model.embedding.weight[1:]).detach().double()
    between = x_ND @ (fitted_FH[:D] - planted_FH[:D]) + fitted_FH[-1]
    assert ((between > -0.05) & (between < math.log(2) + 0.05)).all()
    assert (found.layers[0].fit.r2_H["token", "logit"] > 0.5).all()


def test_heads_that_keep_their_sink_are_exactly_what_they_were():
    """Hidden from no head of a second layer: that layer's gate stands at ½ and W_O is doubled."""
    model, ids = build_model(config(n_layers=2), seed=2).eval(), texts(16, 8)
    found = first_keys(model, ids)
    after = operated(model, HEADWISE, found, ((0, 2), ()), value="none")
    inner = torch.randn(2, 5, D)
    was, now = (attention_layers(m)[1](inner) for m in (model, after))
    assert torch.equal(was, now)


def test_what_is_compared_differs_only_in_gate_and_value():
    model, ids = sunk(value=0.5), texts(16, 8)
    made = dict(variants(model, HEADWISE, first_keys(model, ids), ((0, 1),)))
    assert list(made) == [f"gate {reads}, value {value}" for reads, value in VARIANTS]
    hidden_alone = made["gate open, value none"]
    assert hidden_alone.config.first_hidden_from == ((0, 1),)
    # The gate is open: what is left is attention without the first key.
    by_hand = build_model(config(first_hidden_from=((0, 1),)))
    by_hand.load_state_dict(model.state_dict())
    torch.testing.assert_close(hidden_alone(ids), by_hand(ids))
    constant = attention_layers(made["gate constant, value none"])[0].gates["sdpa"]
    assert not constant.g_proj.weight.any() and constant.g_proj.bias[:2].all() and not constant.g_proj.bias[2:].any()


def test_a_model_with_biases_keeps_them():
    model, ids = build_model(config(bias=True, init="fan-in"), seed=4).eval(), texts(16, 8)
    found = first_keys(model, ids)
    after = operated(model, HEADWISE, found, ((0,),), value="mean", reads="open")
    # With its gate open and v̄ in both biases the layer is attention without the first key, in head 0.
    by_hand = build_model(config(bias=True, first_hidden_from=((0,),)))
    by_hand.load_state_dict(model.state_dict())
    torch.testing.assert_close(after(ids), by_hand(ids), rtol=1e-4, atol=1e-5)


def test_no_sinks_and_too_short_texts_are_refused():
    model = sunk()
    found = first_keys(model, texts(16, 8))
    with pytest.raises(ValueError, match="no head takes the first key for a sink"):
        operated(model, HEADWISE, found, ((),), value="mean")
    for ids in (texts(7, 8), texts(16, 2)):
        with pytest.raises(ValueError, match="8 at least"):
            first_keys(model, ids)


def test_rows_name_every_head():
    rows = first_keys(sunk(), texts(16, 8)).rows("it")
    by_metric = {m: [r for r in rows if r.metric == m] for m in {r.metric for r in rows}}
    assert set(by_metric) >= {"sink_gate_r2", "first_token_mass", "value_drain", "sink_value_constancy"}
    assert {r.head for r in by_metric["sink_value_constancy"]} == set(range(H))
