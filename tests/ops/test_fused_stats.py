"""What statistics get from the kernels' functions, in closed form, is what they get from blocks of the weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gatelab.config.gate import GateSpec
from gatelab.config.normaliser import SinkLogit
from gatelab.ops.attention_stats import (
    Columns,
    Effect,
    FirstKey,
    LargestLogit,
    Places,
    Rank,
    Scores,
    Spread,
    Stretch,
    ValueNorms,
    along_batch,
    identities,
    n_bytes_of,
    one_pass,
)
from gatelab.ops.attention_stats import fused as fused_module

B, H, G, K = 2, 4, 2, 8
KINDS = (FirstKey, Columns, Spread, LargestLogit, Effect, Places, Rank, Scores, ValueNorms)


def stretches(lengths: tuple[int, ...], **rule: Any) -> list[Stretch]:
    """A sequence in pieces, each with the keys before it."""
    generator = torch.Generator().manual_seed(3)
    T = sum(lengths)
    q, k, v = (2 * torch.randn(B, T, n, K, generator=generator) for n in (H, G, G))
    logits = torch.randn(B, T, H, K, generator=generator)
    spec, out, t = GateSpec.parse("sdpa-elementwise"), [], 0
    for n in lengths:
        # A window's cache keeps no more than the window.
        first = max(0, t + 1 - rule["window"]) if rule.get("window") else 0
        piece = {"q_BTHK": q[:, t : t + n], "k_BSGK": k[:, first : t + n], "v_BSGK": v[:, first : t + n]}
        out.append(Stretch(**piece, **rule, start_key=first, n_tokens=T, gates={"sdpa": (spec, logits[:, t : t + n])}))
        t += n
    return out


def numbers(statistic: object) -> dict[str, Tensor]:
    """Every property that is a tensor."""
    names = [n for n, value in vars(type(statistic)).items() if isinstance(value, property)]
    return {n: value for n in names if isinstance(value := getattr(statistic, n), torch.Tensor)}


@pytest.mark.parametrize("sink", [False, True], ids=["plain", "sink-logit"])
@pytest.mark.parametrize("window", [None, 2, 7])
@pytest.mark.parametrize("lengths", [(21,), (1, 20), (8, 5, 8)])
def test_closed_forms_are_those_of_the_blocks(lengths: tuple[int, ...], window: int | None, sink: bool) -> None:
    rule: dict[str, Any] = {"window": window}
    if sink:
        rule |= {"normaliser": SinkLogit(), "learned": {"sink_logit_H": torch.randn(H)}}
    by_blocks, fused = [kind() for kind in KINDS], [kind() for kind in KINDS]
    for stretch in stretches(lengths, **rule):
        one_pass(by_blocks, stretch, block=4)
        for statistic in fused:
            statistic.add(stretch.fused(identities))
    for kind, a, b in zip(KINDS, by_blocks, fused, strict=True):
        for (name, want), have in zip(numbers(a).items(), numbers(b).values(), strict=True):
            torch.testing.assert_close(
                have.double(), want.double(), rtol=2e-3 if kind is Rank else 1e-4, atol=2e-4, equal_nan=True,
                msg=lambda m, n=f"{kind.__name__}.{name}": f"{n}: {m}",
            )  # fmt: skip
    sites = [s.sites["sdpa"] for s in (by_blocks[7], fused[7])]
    torch.testing.assert_close(sites[0].histogram_BN, sites[1].histogram_BN)


def test_the_kernels_serve_a_plain_causal_softmax_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_module, "functions", lambda: identities)
    assert not fused_module.serves(stretches((5,))[0])  # on a CPU
    monkeypatch.setattr(Tensor, "is_cuda", True)
    assert fused_module.serves(stretches((5,))[0])
    assert fused_module.serves(stretches((5,), window=3)[0])
    for rule in ({"window": 1}, {"softcap": 3.0}, {"is_causal": False}, {"bias_BHTS": torch.zeros(1, 1, 1, 5)}):
        assert not fused_module.serves(stretches((5,), **rule)[0])


def layers(n: int, **rule: Any) -> list[Stretch]:
    """Whole sequences of several layers, without gates and with their outputs known."""
    generator = torch.Generator().manual_seed(4)
    draw = [[2 * torch.randn(B, 21, heads, K, generator=generator) for heads in (H, G, G, H)] for _ in range(n)]
    return [Stretch(q_BTHK=q, k_BSGK=k, v_BSGK=v, y_BTHK=y, **rule) for q, k, v, y in draw]


DOCUMENTS = torch.tensor([[0] * 9 + [1] * 12, [0] * 21])


RULES = {
    "causal": {},
    "window": {"window": 7},
    "open": {"is_causal": False},
    "documents": {"segment_ids_BT": DOCUMENTS},
}


@pytest.mark.parametrize(
    ("rule", "fused"), [*((rule, False) for rule in RULES), ("causal", True), ("window", True)], ids=str
)
def test_layers_along_the_batch_have_the_numbers_that_each_has_alone(rule: str, fused: bool) -> None:
    members = layers(3, **RULES[rule])
    assert len({member.likeness for member in members}) == 1

    def gathered(stretch: Stretch) -> list[Any]:
        statistics = [kind() for kind in KINDS if kind is not Scores]
        if fused:
            for statistic in statistics:
                statistic.add(stretch.fused(identities))
        else:
            one_pass(statistics, stretch, block=4)
        return statistics

    together, alone = gathered(along_batch(members)), [gathered(member) for member in members]
    for i, statistic in enumerate(together):
        found = {"largest_BH": statistic.largest_BH} if isinstance(statistic, LargestLogit) else numbers(statistic)
        assert found
        for name, value in found.items():
            wanted = torch.cat([getattr(own[i], name) for own in alone])
            torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_one_layer_along_the_batch_is_itself() -> None:
    (alone,) = layers(1)
    assert along_batch([alone]) is alone


def test_what_has_something_of_its_own_is_like_nothing() -> None:
    (plain,) = layers(1)
    gate = GateSpec.parse("sdpa-elementwise")
    for own in (
        {"gates": {"sdpa": (gate, torch.zeros(B, 21, H, K))}},
        {"normaliser": SinkLogit(), "learned": {"sink_logit_H": torch.zeros(H)}},
        {"bias_BHTS": torch.zeros(1, H, 21, 21)},
        {"mask_BTS": torch.ones(1, 21, 21, dtype=torch.bool)},
        {"weights_BHTS": torch.full((B, H, 21, 21), 1 / 21)},
    ):
        assert replace(plain, **own).likeness is None


def test_layers_of_another_rule_shape_or_type_are_not_alike() -> None:
    (plain,) = layers(1)
    others = [
        replace(plain, **changes)
        for changes in (
            {"window": 7},
            {"is_causal": False},
            {"softcap": 3.0},
            {"segment_ids_BT": DOCUMENTS},
            {"y_BTHK": None},
            {"q_BTHK": plain.q_BTHK.bfloat16()},
            {"k_BSGK": plain.k_BSGK[:, :, :1]},
        )
    ]
    kinds = {stretch.likeness for stretch in (plain, *others)}
    assert len(kinds) == 1 + len(others) and None not in kinds
    hash(plain.likeness)


def test_bytes_are_those_of_the_stretch_and_without_kernels_of_a_blocks_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (plain,) = layers(1)
    held = 4 * B * 21 * (2 * H + 2 * G) * K
    assert n_bytes_of(plain, block=5) == held + 3 * 4 * B * H * 5 * 21
    assert n_bytes_of(plain) == held + 3 * 4 * B * H * 21 * 21
    monkeypatch.setattr(fused_module, "functions", lambda: identities)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    assert n_bytes_of(plain) == held
