"""Initial values are paired: keyed by seed and name, so that arms share what they have in common."""

import itertools
import math

import pytest
import tiny
import torch
from torch import Tensor

from gatelab.models import build_model
from gatelab.ops.gate_apply import gate_scores


def weights(seed: int = 0, **changes: object) -> dict[str, Tensor]:
    return dict(build_model(tiny.model(**changes), seed=seed).named_parameters())


ARMS = [
    {"gate": "sdpa-headwise"},
    {"gate": "sdpa-elementwise+value-headwise"},
    {"softmax": "sink-logit"},
    {"norm_position": "sandwich"},
    {"qk_norm": "rms"},
    {"n_layers": 3},
    {"positions": "learned"},
    {"positions": "relative"},
    {"registers": 2},
    {"norm": "gated-rms", "norm_rank": 3},
    {"softmax": "key-bias"},
    {"softmax": "differential"},
    {"gate": "sdpa-headwise-head_slice-mlp=1/2-bias+key-elementwise-rank=2+scores-headwise-forget-bias"},
    {"arch": "encoder-decoder", "gate": "sdpa-headwise", "n_encoder_layers": 1},
]


@pytest.mark.parametrize("arm", ARMS, ids=str)
@pytest.mark.parametrize("init", ["normal", "fan-in"])
def test_shared_parameters_are_equal_across_arms(init: str, arm: dict[str, object]) -> None:
    baseline, other = weights(init=init, bias=True), weights(init=init, bias=True, **arm)
    assert baseline.keys() < other.keys()
    assert all(torch.equal(baseline[n], other[n]) for n in baseline)


NARROWED = {"w1": ("out", {"d_ff": 10}), "w3": ("out", {"d_ff": 10}), "w2": ("in", {"d_ff": 10})}
FEWER_HEADS = {
    f"{p}_proj": (side, {"n_heads": 1, "head_dim": 8}) for p, side in zip("qkvo", ("out",) * 3 + ("in",), strict=True)
}


@pytest.mark.parametrize("layer", [*NARROWED, *FEWER_HEADS])
@pytest.mark.parametrize("init", ["normal", "fan-in"])
def test_a_narrower_layer_is_a_slice_of_the_wider_one(init: str, layer: str) -> None:
    side, changes = {**NARROWED, **FEWER_HEADS}[layer]
    part = "mlp" if layer in NARROWED else "attention"
    name = f"blocks.1.{part}.{layer}.weight"
    wide, narrow = weights(init=init)[name], weights(init=init, **changes)[name]
    assert wide.shape != narrow.shape
    cut = wide[:, : narrow.shape[1]] if side == "in" else wide[: narrow.shape[0]]
    if init == "normal":
        assert torch.equal(narrow, cut)
    else:
        torch.testing.assert_close(narrow, cut * math.sqrt(wide.shape[1] / narrow.shape[1]))


def test_other_names_and_other_seeds_give_other_values() -> None:
    matrices = {n: p for n, p in weights().items() if p.ndim == 2}
    square = [p for p in matrices.values() if p.shape == (16, 16)]
    assert len(square) == 8 and len({tuple(p.flatten().tolist()) for p in square}) == 8
    other = weights(seed=1)
    assert not any(torch.equal(p, other[n]) for n, p in matrices.items())


def test_the_same_seed_gives_the_same_values() -> None:
    assert all(torch.equal(p, q) for p, q in zip(weights(3).values(), weights(3).values(), strict=True))


@pytest.mark.parametrize("init", ["normal", "fan-in"])
@pytest.mark.parametrize(
    "kind", [*ARMS, {"kv_experts": "kv-3top2"}, {"moe": {"n_experts": 3, "top_k": 2, "d_expert": 8, "n_shared": 1}, "d_ff": None}],
    ids=str,
)  # fmt: skip
def test_nothing_is_left_to_torch_s_own_generator(init: str, kind: dict[str, object]) -> None:
    drawn = []
    for torch_seed in (1, 2):
        torch.manual_seed(torch_seed)
        drawn.append(weights(init=init, **kind))
    assert all(torch.equal(p, drawn[1][n]) for n, p in drawn[0].items())


def test_architectures_share_values_where_they_share_names() -> None:
    decoder, encoder = weights(gate="sdpa-headwise"), weights(gate="sdpa-headwise", arch="encoder")
    assert decoder.keys() == encoder.keys() and all(torch.equal(decoder[n], encoder[n]) for n in decoder)


@pytest.mark.parametrize("init", ["normal", "fan-in"])
def test_fewer_experts_are_the_first_of_more(init: str) -> None:
    few, more = ({"n_experts": n, "top_k": 2, "d_expert": 8, "bias": True, "router_bias": True} for n in (3, 5))
    of_few, of_more = weights(moe=few, d_ff=None, init=init), weights(moe=more, d_ff=None, init=init)
    for name, kind in itertools.product(("w1", "w2", "w3", "router"), ("weight", "bias")):
        full = f"blocks.1.mlp.{name}.{kind}"
        assert of_more[full].shape[0] == 5 and torch.equal(of_few[full], of_more[full][:3])
        assert bool(of_more[full].any()) == (kind == "weight" or init == "fan-in")


def test_biases_of_narrower_experts_are_slices_of_the_wider_ones() -> None:
    wide, narrow = ({"n_experts": 3, "top_k": 2, "d_expert": n, "bias": True} for n in (8, 5))
    of_wide, of_narrow = (weights(moe=moe, d_ff=None, init="fan-in") for moe in (wide, narrow))
    for name in ("w1", "w3"):
        full = f"blocks.0.mlp.{name}.bias"
        assert of_narrow[full].shape == (3, 5) and torch.equal(of_narrow[full], of_wide[full][:, :5])


def test_tied_embeddings_are_one_table_drawn_as_the_embedding() -> None:
    model = build_model(tiny.model(tied_embeddings=True, gate="sdpa-headwise"))
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.embedding.weight, weights()["embedding.weight"])


def test_normal_draws_have_the_stated_spread_and_no_bias() -> None:
    drawn = weights(init_std=0.05, d_model=64, n_heads=4, d_ff=256, bias=True)
    for name, parameter in drawn.items():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert abs(parameter.std().item() / 0.05 - 1) < 0.05 and abs(parameter.mean()) < 0.005, name


def test_fan_in_draws_have_the_spread_of_torch_layers() -> None:
    drawn = weights(init="fan-in", d_model=64, n_heads=4, d_ff=256, bias=True)
    for name, fan_in in (("w1", 64), ("w2", 256)):
        for kind in ("weight", "bias"):
            parameter = drawn[f"blocks.0.mlp.{name}.{kind}"]
            bound = fan_in**-0.5
            assert parameter.abs().max() <= bound and parameter.abs().max() > 0.9 * bound
            assert abs(parameter.std().item() / (bound / math.sqrt(3)) - 1) < 0.15
    assert abs(drawn["embedding.weight"].std().item() - 1) < 0.05


@pytest.mark.parametrize(
    ("gate", "value"),
    [
        ("sdpa-headwise-bias-init=0.9", 0.9),
        ("sdpa-elementwise-static-init=0.25", 0.25),
        ("sdpa-headwise-static", 0.5),
        ("sdpa-headwise-two_sigmoid-bias-init=1", 1.0),
        ("value-headwise-softplus-bias-init=1", 1.0),
        ("sdpa-headwise-init=0.5", 0.5),
        ("sdpa-headwise-two_sigmoid-first:3-init=1", 1.0),
        ("query-elementwise-ns_sigmoid-head_slice-mlp=3-bias-init=0.6", 0.6),
        ("key-elementwise-tanh-rank=2-init=0", 0.0),
        ("out-elementwise-silu-bias-init=2", 2.0),
    ],
)
@pytest.mark.parametrize("init", ["normal", "fan-in"])
def test_a_gate_starts_where_its_spec_says(init: str, gate: str, value: float) -> None:
    model = build_model(tiny.model(gate=gate, init=init))
    for block in model.blocks:
        (module,) = block.attention.gates.values()
        scores_BTHK = gate_scores(module.logits(torch.randn(2, 3, 16)), module.spec)
        torch.testing.assert_close(scores_BTHK, torch.full_like(scores_BTHK, value))


@pytest.mark.parametrize(
    "gate", ["sdpa-headwise-bias-around=0.9", "sdpa-elementwise-head_slice-mlp=4-bias-around=0.25"]
)
@pytest.mark.parametrize("init", ["normal", "fan-in"])
def test_a_gate_around_a_value_has_random_weights_and_a_bias_there(init: str, gate: str) -> None:
    plain = gate[: gate.index("-around")]
    around, random = (build_model(tiny.model(gate=g, init=init)) for g in (gate, plain))
    value = float(gate.partition("around=")[2])
    for block, other in zip(around.blocks, random.blocks, strict=True):
        module, drawn = block.attention.gates["sdpa"], other.attention.gates["sdpa"]
        assert torch.equal(module.g_proj.weight, drawn.g_proj.weight) and module.g_proj.weight.all()
        bias = module.g_proj.bias
        torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, value))


def test_a_gate_that_says_nothing_starts_with_random_weights_and_no_bias() -> None:
    gate = build_model(tiny.model(gate="sdpa-elementwise-bias")).blocks[0].attention.gates["sdpa"]
    assert gate.g_proj.weight.all() and not gate.g_proj.bias.any()


@pytest.mark.parametrize(("init", "std"), [("normal", 0.05), ("fan-in", 1.0)])
def test_registers_and_relative_positions_are_drawn_as_embeddings(init: str, std: float) -> None:
    sizes = {"d_model": 64, "n_heads": 16, "init": init, "init_std": 0.05}
    for name, fields in (("registers_RD", {"registers": 9}), ("relative.table.weight", {"positions": "relative"})):
        drawn, other = weights(**sizes, **fields)[name], weights(1, **sizes, **fields)[name]
        assert abs(drawn.std().item() / std - 1) < 0.1 and not torch.equal(drawn, other)
        assert drawn.unique().numel() == drawn.numel()


def test_a_sink_logit_starts_where_it_is_told() -> None:
    model = build_model(tiny.model(softmax={"kind": "sink-logit", "init": -1.5}))
    assert model.blocks[0].attention.sink.sink_logit_H.tolist() == [-1.5, -1.5]


def test_the_first_drawn_numbers_are_these() -> None:
    """Fixed for good: every stored run names its result by its seed."""
    first = weights()["blocks.0.attention.q_proj.weight"][0, :3]
    torch.testing.assert_close(first, torch.tensor([-0.0213884749, -0.0038018280, -0.0179101508]))


EXPERTS = {
    "n_layers": 2,
    "mlp": "swiglu",
    "d_ff": None,
    "moe": {"n_experts": 4, "top_k": 2, "d_expert": 8, "n_shared": 1},
}


@pytest.mark.parametrize(
    ("changes", "writers"),
    [
        ({"n_layers": 3}, {"blocks.": 6}),
        (EXPERTS, {"blocks.": 4}),
        (
            {"arch": "encoder-decoder", "n_layers": 2, "n_encoder_layers": 3},
            {"encoder_blocks.": 6, "blocks.": 6},
        ),
    ],
    ids=str,
)
def test_scaled_divides_what_writes_to_the_residual_stream(changes: dict[str, object], writers: dict[str, int]) -> None:
    plain, scaled = weights(**changes), weights(init="scaled", **changes)
    seen = set()
    for name, weight in plain.items():
        stack = next((s for s in writers if name.startswith(s)), None)
        writes = name.rsplit(".", 1)[0].endswith((".o_proj", ".w2")) and stack is not None
        seen |= {stack} if writes else set()
        torch.testing.assert_close(scaled[name], weight / math.sqrt(writers[stack]) if writes else weight)
    assert seen == set(writers)
