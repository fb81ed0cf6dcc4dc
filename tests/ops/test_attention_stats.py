"""The streamed statistics equal those of the whole matrix."""

import math

import pytest
import torch
from torch import Tensor

from gatelab.ops.attention_stats import AttentionStats, attention_stats

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
    found = attention_stats(q_BTHK, k_BSGK, segment_ids_BT=ids_BT, sink_logit_H=sink_H, block=block)
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
