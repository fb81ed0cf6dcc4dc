"""The streamed statistics equal those of the whole matrix."""

import math
from typing import Any

import definition
import pytest
import torch
from torch import Tensor

from gatelab.config.gate import GateSpec
from gatelab.config.normaliser import NORMALISERS, Heads, SinkLogit, Softmax
from gatelab.ops.attention_stats import (
    AttentionStats,
    Columns,
    FirstKey,
    LargestLogit,
    Spread,
    Stretch,
    attention_stats,
    one_pass,
)

B, T, H, G, K = 2, 13, 4, 2, 8


def drawn() -> tuple[Tensor, Tensor]:
    return 2 * torch.randn(B, T, H, K), 2 * torch.randn(B, T, G, K)


def from_the_whole_matrix(
    q_BTHK: Tensor, k_BSGK: Tensor, documents_BT: Tensor, sink_H: Tensor | None
) -> AttentionStats:
    """P by plain softmax in float64, then each statistic as docs/metrics.md says it."""
    logits_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK, k_BSGK.repeat_interleave(H // G, 2)).double() / math.sqrt(K)
    sees_BTS = torch.ones(T, T).tril().bool() & (documents_BT[:, :, None] == documents_BT[:, None])
    weights_BHTS = logits_BHTS.exp() * sees_BTS[:, None]
    slot_BHT = torch.zeros(B, H, T) if sink_H is None else sink_H.double().exp()[None, :, None].expand(B, H, T)
    total_BHT = weights_BHTS.sum(-1) + slot_BHT
    p_BHTS = weights_BHTS / total_BHT[..., None]
    first_BT = sees_BTS.int().argmax(dim=2)
    return AttentionStats(
        first_mass_BHT=torch.stack([p_BHTS[b, :, range(T), first_BT[b]] for b in range(B)]),
        importance_BHS=p_BHTS.sum(2) / sees_BTS.sum(1)[:, None],
        slot_mass_BHT=slot_BHT / total_BHT,
        first_uniform_BT=1 / sees_BTS.sum(2),
    )


DOCUMENTS = {
    "one": torch.zeros(B, T, dtype=torch.int32),
    "several": torch.tensor([[0] * 5 + [1] * 1 + [2] * 7, [0] * 13], dtype=torch.int32),
    "one-token-each": torch.arange(T, dtype=torch.int32).expand(B, T),
}


@pytest.mark.parametrize("block", [1, 4, 13, 256])
@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize("sink", [False, True], ids=["no-sink-logit", "sink-logit"])
def test_statistics_are_those_of_the_whole_matrix(sink: bool, documents: str, block: int) -> None:
    q_BTHK, k_BSGK = drawn()
    sink_H = torch.randn(H) if sink else None
    ids_BT = None if documents == "one" else DOCUMENTS[documents]
    found = attention_stats(
        q_BTHK,
        k_BSGK,
        normaliser=SinkLogit() if sink else Softmax(),
        learned={"sink_logit_H": sink_H} if sink else None,
        segment_ids_BT=ids_BT,
        block=block,
    )
    expected = from_the_whole_matrix(q_BTHK, k_BSGK, DOCUMENTS[documents], sink_H)
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), value.float(), msg=lambda m, n=name: f"{n}: {m}")


def test_statistics_are_float32_whatever_comes() -> None:
    q_BTHK, k_BSGK = (t.bfloat16() for t in drawn())
    found = attention_stats(q_BTHK, k_BSGK)
    assert {v.dtype for v in vars(found).values()} == {torch.float32}
    torch.testing.assert_close(found.importance_BHS, attention_stats(q_BTHK.float(), k_BSGK.float()).importance_BHS)


def test_equal_keys_give_every_visible_key_the_same_mass() -> None:
    q_BTHK, _ = drawn()
    found = attention_stats(q_BTHK, torch.ones(B, T, G, K), block=4)
    torch.testing.assert_close(found.first_mass_BHT, found.first_uniform_BT[:, None].expand(B, H, T))


# What the statistics must follow: masks, biases, gates on the scores, keys of another length.
SETTINGS: dict[str, dict[str, Any]] = {
    "window": {"window": 4},
    "bias": {"bias_BHTS": torch.randn(1, H, T, T)},
    "bias-a-key": {"bias_BHTS": torch.randn(1, H, 1, T)},
    "mask": {"mask_BTS": torch.rand(B, T, T) > 0.3},
    "both-ways": {"is_causal": False, "window": 5},
    "scaled": {"score_gate": "scores-headwise", "score_logits_BSH": torch.randn(B, T, H)},
    "added": {"score_gate": "scores-headwise-tanh-add", "score_logits_BSH": torch.randn(B, T, H)},
    "forgotten": {"score_gate": "scores-headwise-forget", "score_logits_BSH": torch.randn(B, T, H), "window": 6},
    "cross": {"is_causal": False, "n_keys": 7},
    "cross-masked": {"is_causal": False, "n_keys": 7, "mask_BTS": torch.rand(B, T, 7) > 0.3},
    "cached": {"n_keys": 17},
}


def sees(arguments: dict[str, Any], n_keys: int) -> Tensor:
    """Which keys each of T queries sees, one pair at a time."""
    sees_BTS = torch.ones(B, T, n_keys, dtype=torch.bool)
    if arguments["mask_BTS"] is not None:
        sees_BTS &= arguments["mask_BTS"]
    for t in range(T):
        for s in range(n_keys):
            behind = t + n_keys - T - s
            is_out = arguments["window"] is not None and abs(behind) >= arguments["window"]
            if is_out or (arguments["is_causal"] and behind < 0):
                sees_BTS[:, t, s] = False
    return sees_BTS


def by_definition(arguments: dict[str, Any]) -> AttentionStats:
    """From the weights of the NumPy definition; the slot's mass is not compared."""
    _, weights_BHTS, _ = definition.attention(**arguments)
    weights_BHTS = torch.from_numpy(weights_BHTS)
    n_keys = weights_BHTS.shape[3]
    sees_BTS = sees(arguments, n_keys)
    return AttentionStats(
        first_mass_BHT=weights_BHTS[..., 0],
        importance_BHS=weights_BHTS.sum(2) / sees_BTS.sum(1).clamp(min=1)[:, None],
        slot_mass_BHT=torch.tensor(0.0),
        first_uniform_BT=sees_BTS[..., 0] / sees_BTS.sum(2),
    )


def arguments_of(setting: str) -> tuple[dict[str, Any], int]:
    """All arguments beside q and k, and the number of keys; every query sees a key."""
    given = {"is_causal": True, "window": None, "mask_BTS": None, "bias_BHTS": None}
    given |= {"score_gate": None, "score_logits_BSH": None, **SETTINGS[setting]}
    n_keys = given.pop("n_keys", T)
    if given["mask_BTS"] is not None:
        given["mask_BTS"] = given["mask_BTS"].clone()
        given["mask_BTS"][..., 0] = True
    if given["score_gate"] is not None:
        given["score_gate"] = GateSpec.parse(given["score_gate"])
    return given, n_keys


@pytest.mark.parametrize("block", [1, 5, 256])
@pytest.mark.parametrize("kind", ["softmax", "key-bias", "sigmoid", "differential"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_argument_of_the_op_is_followed(setting: str, kind: str, block: int) -> None:
    given, n_keys = arguments_of(setting)
    heads = Heads(H, G, K, layer=1)
    learned = {n: torch.randn(p.shape) for n, p in NORMALISERS[kind]().learned(heads).items()}
    qk = {"q_BTHK": 2 * torch.randn(B, T, H, K), "k_BSGK": 2 * torch.randn(B, n_keys, G, K)}
    weighing = {"normaliser": NORMALISERS[kind](), "learned": learned, "heads": heads}
    found = attention_stats(**qk, **weighing, **given, block=block)
    expected = by_definition({**qk, **weighing, **given, "v_BSGK": qk["k_BSGK"], "gate": None})
    for name in ("first_mass_BHT", "importance_BHS", "first_uniform_BT"):
        value = getattr(expected, name).float()
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("block", [5, 256])
@pytest.mark.parametrize("kind", ["softmax", "sink-logit", "sigmoid", "differential"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_statistics_of_one_pass_are_those_of_the_whole_matrix(setting: str, kind: str, block: int) -> None:
    given, n_keys = arguments_of(setting)
    learned = {n: torch.randn(p.shape) for n, p in NORMALISERS[kind]().learned(Heads(H, G, K)).items()}
    qk = {"q_BTHK": 2 * torch.randn(B, T, H, K), "k_BSGK": 2 * torch.randn(B, n_keys, G, K)}
    v_BSGK = torch.randn(B, n_keys, G, K)
    weighing = {"normaliser": NORMALISERS[kind](), "learned": learned, "heads": Heads(H, G, K)}
    first, columns, spread, largest = taken = FirstKey(), Columns(), Spread(), LargestLogit()
    stretch = Stretch(**qk, v_BSGK=v_BSGK, **weighing, **given)
    one_pass(taken, stretch, block=block)
    fetched_BTHK = torch.cat([part.y_BTHK for part in stretch.blocks(block)], dim=1)

    _, weights_BHTS, _ = definition.attention(**qk, v_BSGK=v_BSGK, **weighing, **given, gate=None)
    weights_BHTS = torch.from_numpy(weights_BHTS)
    sees_BTS = sees(given, n_keys)
    n_seen_BT = sees_BTS.sum(2)
    logits_BHTS = torch.einsum("bthk,bshk->bhts", qk["q_BTHK"], qk["k_BSGK"].repeat_interleave(H // G, 2)) / K**0.5
    p_BHTS = weights_BHTS.abs() / weights_BHTS.abs().sum(-1, keepdim=True)
    shares_BTS, many_BT = sees_BTS / n_seen_BT[..., None], (n_seen_BT > 1).double()
    expected = {
        "n_seen": (first.n_seen_BT, n_seen_BT),
        "uniform": (columns.uniform_BS, shares_BTS.sum(1) / sees_BTS.sum(1).clamp(min=1)),
        "queries": (columns.n_queries_BS, sees_BTS.sum(1)),
        "mass": (columns.mass_BHS, (weights_BHTS * many_BT[:, None, :, None]).sum(2)),
        "uniform mass": (columns.uniform_mass_BS, (shares_BTS * many_BT[..., None]).sum(1)),
        "entropy": (spread.entropy_BHT, torch.special.entr(p_BHTS).sum(-1)),
        "focus": (spread.focus_BHT, 1 / p_BHTS.square().sum(-1)),
        "largest": (largest.largest_BH, logits_BHTS.masked_fill(~sees_BTS[:, None], -math.inf).amax((2, 3))),
        "output": (
            fetched_BTHK,
            stretch.normaliser.finish(
                torch.einsum("bhts,bshk->bthk", weights_BHTS, v_BSGK.repeat_interleave(H // G, 2).double()),
                learned,
                Heads(H, G, K),
            ),
        ),
    }
    for name, (found, value) in expected.items():
        torch.testing.assert_close(
            found.float(), value.float(), rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_documents_number_the_tokens_of_self_attention() -> None:
    q_BTHK, k_BSGK = drawn()
    with pytest.raises(ValueError, match="13 queries and 12 keys; give mask_BTS"):
        attention_stats(q_BTHK, k_BSGK[:, :12], is_causal=False, segment_ids_BT=DOCUMENTS["several"])
