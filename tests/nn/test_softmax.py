"""The parameters of a normaliser, as a module."""

import pytest
import torch

from gatelab.config.normaliser import NORMALISERS, Heads, SinkLogit
from gatelab.nn.softmax import LearnedNormaliser

HEADS = Heads(n_heads=4, n_kv_heads=2, head_dim=8, layer=1, max_seq_len=16)


@pytest.mark.parametrize("kind", NORMALISERS)
def test_it_holds_what_the_normaliser_names_and_nothing_else(kind: str) -> None:
    normaliser = NORMALISERS[kind]()
    module = LearnedNormaliser(normaliser, HEADS)
    expected = {name: p.shape for name, p in normaliser.learned(HEADS).items()}
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == expected
    assert {name: id(value) for name, value in module.learned().items()} == {
        name: id(value) for name, value in module.named_parameters()
    }


def test_parameters_start_where_the_normaliser_says() -> None:
    assert LearnedNormaliser(SinkLogit(init=-1.5), HEADS).sink_logit_H.tolist() == [-1.5] * 4
    differential = LearnedNormaliser(NORMALISERS["differential"](), Heads(4, 2, 2000)).learned()
    assert (differential["gain_2K"] == 1).all()
    assert differential["lambda_q1_K"].std().item() == pytest.approx(0.1, rel=0.1)
    assert not torch.equal(differential["lambda_q1_K"], differential["lambda_k1_K"])


def test_a_sink_logit_keeps_its_name() -> None:
    assert list(LearnedNormaliser(SinkLogit(), HEADS).state_dict()) == ["sink_logit_H"]
