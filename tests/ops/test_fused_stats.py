"""What statistics get from the kernels' functions, in closed form, is what they get from blocks of the weights."""

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
    identities,
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
