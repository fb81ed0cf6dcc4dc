"""The probes in every kind of attention: encoders, cross-attention, windows, registers, rival normalisers."""

import pytest
import tiny
import torch

from gatelab.config import ModelConfig
from gatelab.models import build_model
from gatelab.models.model import Model
from gatelab.nn.attention import GatedAttention
from gatelab.probes.capture import capture
from gatelab.record import Row

B, T, S = 2, 6, 9


def looked_at(model: Model, *, domains: bool = False) -> list[Row]:
    torch.manual_seed(0)
    tokens_BT, source_BS = torch.randint(0, 17, (B, T)), torch.randint(0, 17, (B, S))
    with torch.no_grad(), capture(model, domains=("even", "odd") if domains else ()) as recorder:
        if domains:
            recorder.domain_BT = (torch.arange(T) % 2).expand(B, T)
        model(source_BS, tokens_BT) if model.config.arch == "encoder-decoder" else model(tokens_BT)
    return recorder.rows()


def build(**changes: object) -> Model:
    return build_model(tiny.model(n_heads=4, n_kv_heads=2, init_std=0.3, **changes))


def of(rows: list[Row], metric: str, **where: object) -> list[Row]:
    return [r for r in rows if r.metric == metric and all(getattr(r, k) == v for k, v in where.items())]


def test_an_encoder_decoder_is_seen_stack_by_stack() -> None:
    model = build(arch="encoder-decoder", n_encoder_layers=3, gate="sdpa-headwise", cross_gate="sdpa-elementwise")
    rows = looked_at(model)
    layers = {stack: len(of(rows, "first_token_mass", stack=stack, head=0)) for stack in (None, "cross", "encoder")}
    assert layers == {None: 2, "cross": 2, "encoder": 3}
    assert {r.layer for r in of(rows, "massive_max", stack="encoder")} == {None, 0, 1, 2}
    assert len(of(rows, "gate_mean", stack="cross", layer=None, site="sdpa")) == 1


def test_where_every_query_sees_every_key_the_masses_of_uniform_attention_are_known() -> None:
    model = build(arch="encoder-decoder")
    for layer in model.modules():
        if isinstance(layer, GatedAttention):
            torch.nn.init.zeros_(layer.q_proj.weight)  # all logits are 0
    rows = looked_at(model)
    for stack, n_keys in (("encoder", S), ("cross", S)):
        for metric in ("first_token_mass", "first_token_uniform"):
            (row,) = of(rows, metric, stack=stack, layer=0, head=None)
            assert row.value == pytest.approx(1 / n_keys)
    (causal,) = of(rows, "first_token_mass", stack=None, layer=0, head=None)
    assert causal.value == pytest.approx(sum(1 / n for n in range(2, T + 1)) / (T - 1))  # query 0 does not count


def test_a_planted_sink_is_found_in_cross_attention() -> None:
    model = build(arch="encoder-decoder", positions="none")
    cross = model.blocks[1].cross_attention

    def plant(_module: object, _inputs: object, k_BSGK: torch.Tensor) -> torch.Tensor:
        k_BSGK = torch.zeros_like(k_BSGK)
        k_BSGK[:, 0] = 1.0
        return k_BSGK

    cross.tap_k.register_forward_hook(plant)
    cross.tap_q.register_forward_hook(lambda _m, _i, q_BTHK: torch.full_like(q_BTHK, 20.0))
    rows = looked_at(model)
    assert of(rows, "first_token_mass", stack="cross", layer=1, head=None)[0].value > 0.99
    assert of(rows, "sink_rate", stack="cross", layer=1, head=None, threshold=0.3)[0].value == 1
    assert of(rows, "first_token_mass", stack="cross", layer=0, head=None)[0].value < 0.9


def test_registers_are_the_first_tokens_and_belong_to_no_domain() -> None:
    rows = looked_at(build(registers=2), domains=True)
    (length,) = {r.length for r in of(rows, "first_token_mass")}
    assert length == T + 2
    means = {r.domain: r.value for r in of(rows, "first_token_mass", layer=0, head=None)}
    assert set(means) == {None, "even", "odd"}


def test_a_window_hides_the_first_token() -> None:
    rows = looked_at(build(window=1))
    assert {r.value for r in of(rows, "first_token_mass")} == {0.0}


@pytest.mark.parametrize("kind", ["off-by-one", "key-bias", "clipped", "softpick", "sigmoid", "differential"])
def test_every_normaliser_is_looked_at(kind: str) -> None:
    rows = looked_at(
        build_model(ModelConfig.model_validate({**dict(tiny.model(n_heads=4, n_kv_heads=2)), "softmax": kind}))
    )
    assert len(of(rows, "first_token_mass", head=0)) == 2
    assert bool(of(rows, "sink_slot_mass")) == (kind in ("off-by-one", "key-bias"))


def test_a_gate_on_the_scores_changes_what_is_seen() -> None:
    plain, gated = (looked_at(build(gate=gate)) for gate in ("none", "scores-headwise-init=0.5"))
    for before, after in zip(
        of(plain, "first_token_mass", layer=0), of(gated, "first_token_mass", layer=0), strict=True
    ):
        assert after.value == pytest.approx(before.value / 2)
