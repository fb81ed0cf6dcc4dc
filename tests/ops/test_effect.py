"""What the weights fetch and what gates let through: against plain arithmetic, whole and in stretches."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gatelab.config.gate import GateSpec
from gatelab.config.normaliser import NORMALISERS, Heads, SinkLogit
from gatelab.ops.attention_stats import N_BINS, Effect, Gates, Scores, SiteScores, Stretch, ValueNorms, one_pass
from gatelab.ops.gated_attention import attention_weights

B, T, H, G, K = 2, 13, 4, 2, 8
HEADWISE, ELEMENTWISE = GateSpec.parse("sdpa-headwise"), GateSpec.parse("sdpa-elementwise")


def drawn(S: int = T) -> dict[str, Tensor]:
    return {
        "q_BTHK": 2 * torch.randn(B, T, H, K),
        "k_BSGK": 2 * torch.randn(B, S, G, K),
        "v_BSGK": torch.randn(B, S, G, K),
    }


def gate_of(spec: GateSpec) -> Gates:
    return {spec.site: (spec, 2 * torch.randn(B, T, H, K if spec.granularity == "elementwise" else 1))}


def looked_at(qkv: dict[str, Tensor], *, block: int = 5, **given: Any) -> Effect:
    effect = Effect()
    one_pass([effect], Stretch(**qkv, **given), block=block)
    return effect


def of_first_key(qkv: dict[str, Tensor], first_BT: Tensor, **given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """In float64, from the whole matrix: what the first key writes, the output, both [B, T, H, K], and its mass."""
    wide = {name: value.double() for name, value in qkv.items()}
    weights_BHTS, _ = attention_weights(wide["q_BTHK"], wide["k_BSGK"], **given)
    v_BSHK = wide["v_BSGK"].repeat_interleave(H // G, dim=2)
    mass_BTH = torch.stack([weights_BHTS[b, :, range(T), first_BT[b]].T for b in range(B)])
    sink_BTHK = mass_BTH[..., None] * torch.stack([v_BSHK[b, first_BT[b]] for b in range(B)])
    return sink_BTHK, torch.einsum("bhts,bshk->bthk", weights_BHTS, v_BSHK), mass_BTH


NO_DOCUMENTS_BT = torch.zeros(B, T, dtype=torch.int64)
SETTINGS: dict[str, dict[str, Any]] = {
    "causal": {},
    "window": {"window": 4},
    "both-ways": {"is_causal": False},
    "sink-logit": {"normaliser": SinkLogit(), "learned": {"sink_logit_H": torch.tensor([-1.0, 0.0, 1.0, 4.0])}},
    "biased": {"bias_BHTS": torch.linspace(-2, 2, H * T * T).view(1, H, T, T).sin()},
}


@pytest.mark.parametrize("block", [1, 5, 256])
@pytest.mark.parametrize("gate", [HEADWISE, ELEMENTWISE, GateSpec.parse("sdpa-elementwise-shared-silu")], ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
def test_writes_are_those_of_the_whole_matrix(setting: str, gate: GateSpec, block: int) -> None:
    qkv, gates = drawn(), gate_of(gate)
    effect = looked_at(qkv, gates=gates, block=block, **SETTINGS[setting])
    sink_BTHK, y_BTHK, _ = of_first_key(qkv, NO_DOCUMENTS_BT, **SETTINGS[setting])
    logits_BTHK = gates["sdpa"][1].double()
    scores_BTHK = logits_BTHK.sigmoid()
    if gate.sharing == "shared":
        scores_BTHK = (logits_BTHK * scores_BTHK).mean(dim=2, keepdim=True)
    expected = {
        "write_BHT": sink_BTHK.norm(dim=-1) / y_BTHK.norm(dim=-1),
        "gated_write_BHT": (scores_BTHK * sink_BTHK).norm(dim=-1) / y_BTHK.norm(dim=-1),
        "openness_BHT": (scores_BTHK * y_BTHK**2).sum(-1) / (y_BTHK**2).sum(-1),
    }
    for name, value_BTH in expected.items():
        found_BHT = getattr(effect, name)
        torch.testing.assert_close(found_BHT, value_BTH.transpose(1, 2).float(), rtol=2e-4, atol=1e-5)


def test_the_first_key_is_that_of_the_document() -> None:
    ids_BT = torch.tensor([[0] * 5 + [1] + [2] * 7, [3] * 4 + [1] * 9])
    first_BT = torch.tensor([[0] * 5 + [5] + [6] * 7, [0] * 4 + [4] * 9])
    qkv = drawn()
    effect = looked_at(qkv, segment_ids_BT=ids_BT, gates=gate_of(HEADWISE))
    sink_BTHK, y_BTHK, _ = of_first_key(qkv, first_BT, mask_BTS=ids_BT[:, :, None] == ids_BT[:, None])
    expected_BHT = (sink_BTHK.norm(dim=-1) / y_BTHK.norm(dim=-1)).transpose(1, 2).float()
    torch.testing.assert_close(effect.write_BHT, expected_BHT, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(effect.write_BHT[0, :, [0, 5, 6]], torch.ones(H, 3))


def test_a_headwise_gate_scales_what_is_written_by_its_score() -> None:
    gates = gate_of(HEADWISE)
    effect = looked_at(drawn(), gates=gates)
    score_BHT = gates["sdpa"][1].sigmoid().squeeze(-1).transpose(1, 2)
    torch.testing.assert_close(effect.gated_write_BHT, score_BHT * effect.write_BHT)
    torch.testing.assert_close(effect.openness_BHT, score_BHT)


def test_an_output_of_zero_has_no_share() -> None:
    qkv = drawn()
    qkv["v_BSGK"][:, 0, 1] = 0.0  # query 0 sees this value alone
    effect = looked_at(qkv, gates=gate_of(ELEMENTWISE))
    for found_BHT in (effect.write_BHT, effect.gated_write_BHT, effect.openness_BHT):
        assert found_BHT[:, 2:, 0].isnan().all() and not found_BHT[:, :2].isnan().any()
        assert not found_BHT[:, 2:, 1:].isnan().any()


@pytest.mark.parametrize("at_once", [2, 5, 12])
@pytest.mark.parametrize("window", [None, 4])
def test_effects_of_stretches_are_those_of_the_whole(window: int | None, at_once: int) -> None:
    """Where a window's cache has given up the first key, nothing of it is written."""
    qkv, (spec, logits_BTHK) = drawn(), gate_of(ELEMENTWISE)["sdpa"]
    norms, effect, whole = ValueNorms(), Effect(), looked_at(qkv, window=window, gates={"sdpa": (spec, logits_BTHK)})
    for start in range(0, T, at_once):
        end = min(start + at_once, T)
        first = 0 if window is None else max(0, start - window + 1)
        stretch = Stretch(
            q_BTHK=qkv["q_BTHK"][:, start:end],
            k_BSGK=qkv["k_BSGK"][:, first:end],
            v_BSGK=qkv["v_BSGK"][:, first:end],
            window=window,
            start_key=first,
            n_tokens=T,
            gates={"sdpa": (spec, logits_BTHK[:, start:end])},
        )
        one_pass([norms, effect], stretch, block=3)
    for name in ("write_BHT", "gated_write_BHT", "openness_BHT"):
        torch.testing.assert_close(getattr(effect, name), getattr(whole, name), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norms.norm_BSG, qkv["v_BSGK"].norm(dim=-1))
    assert window is None or not effect.write_BHT[..., 4:].any()


@pytest.mark.parametrize("kind", sorted(kind for kind, n in NORMALISERS.items() if not n.is_softmax))
def test_what_another_normaliser_writes_is_not_told(kind: str) -> None:
    normaliser, heads = NORMALISERS[kind](), Heads(H, G, K)
    learned = {name: torch.randn(p.shape) for name, p in normaliser.learned(heads).items()}
    effect = looked_at(drawn(), normaliser=normaliser, learned=learned, heads=heads, gates=gate_of(HEADWISE))
    assert effect.write_BHT is None and effect.gated_write_BHT is None
    assert effect.openness_BHT.shape == (B, H, T)


@pytest.mark.parametrize(
    ("gate", "changes", "told"),
    [
        (None, {}, {"write"}),
        ("sdpa-headwise", {}, {"write", "gated_write", "openness"}),
        ("sdpa-headwise", {"v_BSGK": None}, {"openness"}),
        ("sdpa-elementwise", {"v_BSGK": None}, set()),
        ("sdpa-headwise", {"is_mapped": True}, {"write", "gated_write", "openness"}),
        ("sdpa-elementwise", {"is_mapped": True}, {"write"}),
        ("sdpa-headwise-add", {}, {"write", "openness"}),
        ("sdpa-headwise-lse", {}, {"write"}),
        ("value-headwise", {}, {"write"}),
    ],
)
def test_what_cannot_be_told_is_none(gate: str | None, changes: dict[str, Any], told: set[str]) -> None:
    gates = {} if gate is None else gate_of(GateSpec.parse(gate))
    effect = looked_at({**drawn(), **changes}, gates=gates)
    assert {name for name in ("write", "gated_write", "openness") if getattr(effect, f"{name}_BHT") is not None} == told


def scores_of(gates: Gates, *, ends: tuple[int, ...] = (T,), block: int = 5) -> dict[str, SiteScores]:
    qkv, scores, start = drawn(), Scores(), 0
    for end in ends:
        part = {site: (s, z if z.shape[1] == 1 else z[:, start:end]) for site, (s, z) in gates.items()}
        given = {"q_BTHK": qkv["q_BTHK"][:, start:end], "k_BSGK": qkv["k_BSGK"][:, :end]}
        one_pass([scores], Stretch(**given, gates=part, n_tokens=T), block=block)
        start = end
    return scores.sites


def same(found: SiteScores, expected: SiteScores) -> None:
    assert found.n == expected.n
    for name in ("sum_BH", "size_BH", "square_BH", "shut_BH", "open_BH", "histogram_BN", "mean_BTH", "mean_size_BTH"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("gate", ["sdpa-headwise", "sdpa-elementwise-tanh", "sdpa-elementwise-shared-silu"])
def test_scores_of_two_stretches_are_those_of_one(gate: str) -> None:
    gates = gate_of(GateSpec.parse(gate))
    whole = scores_of(gates, block=256)["sdpa"]
    for ends in ((6, T), (1, T), (2, 4, 6, T)):
        same(scores_of(gates, ends=ends)["sdpa"], whole)


@pytest.mark.parametrize(
    "gate", ["sdpa-headwise-identity", "sdpa-elementwise-identity", "sdpa-elementwise-shared-tanh"]
)
def test_sums_over_scores_are_those_of_the_scores(gate: str) -> None:
    spec = GateSpec.parse(gate)
    gates = gate_of(spec)
    found = scores_of(gates)["sdpa"]
    g_BTHK = gates["sdpa"][1].double()
    if spec.sharing == "shared":
        g_BTHK = g_BTHK.tanh().mean(dim=2, keepdim=True)
    flat_BHN = g_BTHK.transpose(1, 2).flatten(2)
    assert found.n == flat_BHN.shape[2]
    bins_BN = torch.stack([torch.histc(g_K[(g_K >= 0) & (g_K <= 1)], N_BINS, 0, 1) for g_K in g_BTHK.flatten(1)])
    outside_B1 = ((g_BTHK < 0) | (g_BTHK > 1)).flatten(1).sum(dim=1, keepdim=True)
    expected = {
        "sum_BH": flat_BHN.sum(-1),
        "size_BH": flat_BHN.abs().sum(-1),
        "square_BH": (flat_BHN**2).sum(-1),
        "shut_BH": (flat_BHN < 0.1).sum(-1),
        "open_BH": (flat_BHN > 0.9).sum(-1),
        "histogram_BN": torch.cat([bins_BN, outside_B1], dim=1),
        "mean_BTH": g_BTHK.mean(dim=3),
        "mean_size_BTH": g_BTHK.abs().mean(dim=3),
    }
    for name, value in expected.items():
        torch.testing.assert_close(
            getattr(found, name).double(), value.double(), rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_scores_that_are_no_numbers_are_in_no_bin() -> None:
    spec, logits_BTHK = gate_of(GateSpec.parse("sdpa-headwise-identity"))["sdpa"]
    logits_BTHK.fill_(0.5)
    logits_BTHK[0, :3, 0], logits_BTHK[1, 0, 1] = torch.nan, torch.inf
    logits_BTHK[:, -1, 3] = 1.0  # in the last bin
    histogram_BN = scores_of({"sdpa": (spec, logits_BTHK)})["sdpa"].histogram_BN
    assert histogram_BN[:, -1].tolist() == [3, 1] and histogram_BN[:, 25].tolist() == [T * H - 4, T * H - 2]
    assert histogram_BN[:, N_BINS - 1].tolist() == [1, 1]


@pytest.mark.parametrize("ends", [(T,), (6, T), (1, T)])
def test_the_scores_of_a_constant_gate_count_once(ends: tuple[int, ...]) -> None:
    spec, constant_HK = GateSpec.parse("sdpa-elementwise-static"), torch.randn(H, K)
    found = scores_of({"sdpa": (spec, constant_HK[None, None])}, ends=ends, block=4)["sdpa"]
    assert found.n == K and found.mean_BTH.shape == (1, 1, H)
    torch.testing.assert_close(found.sum_BH, constant_HK.sigmoid().double().sum(dim=1)[None])
