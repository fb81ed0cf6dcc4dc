"""Objectives: values by kind, and the arithmetic of their counts, against T5's formula written separately."""

from typing import get_args

import numpy as np
import pytest

from gatelab.config import Config, ConfigError, canonical, validate
from gatelab.config.architecture import ARCHITECTURES
from gatelab.config.base import members
from gatelab.config.objective import Answers, Continuation, MaskedTokens, NextToken, Objective, SpanCorruption


class Holder(Config):
    objective: Objective = NextToken()


def t5_counts(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """`random_spans_noise_mask` of T5, and its lists kept non-empty as its docstring asks."""
    n_noise = int(np.clip(np.rint(length * density), 1, length - 1))
    n_spans = int(np.maximum(np.rint(n_noise / mean_span), 1))
    return n_noise, min(n_spans, length - n_noise)


@pytest.mark.parametrize("density", [0.15, 0.5, 0.9, 0.01])
@pytest.mark.parametrize("mean_span", [1.0, 3.0, 10.0])
def test_counts_of_spans_are_those_of_t5(density: float, mean_span: float):
    objective = SpanCorruption(share=density, mean_span=mean_span)
    for length in range(2, 200):
        assert objective.counts(length) == t5_counts(length, density, mean_span)


def test_t5s_own_setting_has_the_lengths_that_t5_computes():
    # 568 raw tokens give T5 an input of 512 and a target of 114, both with one end-of-sequence token; here the end of
    # the target is the final sentinel, and the input has none.
    assert SpanCorruption().lengths(568) == (511, 114)


def test_lengths_and_extra_ids_agree_with_the_counts():
    for seq_len in range(2, 100):
        objective = SpanCorruption(share=0.3, mean_span=2.0)
        n_taken, n_spans = objective.counts(seq_len)
        assert objective.lengths(seq_len) == (seq_len - n_taken + n_spans, n_taken + n_spans + 1)
        assert objective.extra_ids(seq_len) == n_spans + 2
        assert MaskedTokens().lengths(seq_len) == NextToken().lengths(seq_len) == (seq_len, None)
        n_read, n_said = Continuation(share=0.7).lengths(seq_len)
        assert 1 <= n_read < seq_len and n_read + n_said == seq_len + 1
    assert (MaskedTokens().extra_ids(8), NextToken().extra_ids(8), Continuation().extra_ids(8)) == (1, 0, 0)


def test_a_mask_chooses_its_share_of_what_may_be_chosen_and_at_least_one():
    assert MaskedTokens().n_chosen(100, has_bos=False) == 15
    assert MaskedTokens(share=1).n_chosen(100, has_bos=True) == 99
    assert MaskedTokens(share=0.01).n_chosen(2, has_bos=True) == 1


def test_every_kind_has_its_architecture():
    kinds = [member.model_fields["kind"].default for member in members(Objective)]
    assert sorted(kind for a in ARCHITECTURES.values() for kind in a.objectives) == sorted(kinds)
    assert len(kinds) == len(get_args(get_args(Objective)[0])) == 5


@pytest.mark.parametrize(
    "objective", [NextToken(), MaskedTokens(share=0.4), Answers(), SpanCorruption(mean_span=2.5), Continuation()]
)
def test_the_stored_form_gives_the_objective_back(objective: Config):
    assert validate(Holder, canonical(Holder(objective=objective))).objective == objective


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"kind": "mask"}, "did you mean 'masked'?"),
        ({"kind": "masked", "keep": 0.6, "random": 0.5}, "keep=0.6 and random=0.5 are shares of the chosen tokens"),
        ({"kind": "masked", "share": 0}, "objective.share=0"),
        ({"kind": "masked", "keep": -0.1}, "objective.keep=-0.1"),
        ({"kind": "masked", "mean_span": 3}, "objective.mean_span: no such key"),
        ({"kind": "span-corruption", "share": 1}, "objective.share=1"),
        ({"kind": "span-corruption", "mean_span": 0.5}, "objective.mean_span=0.5"),
        ({"kind": "continuation", "share": 1.0}, "objective.share=1.0"),
        ({"kind": "continuation", "share": float("nan")}, "objective.share=nan"),
    ],
)
def test_an_impossible_objective_is_refused_in_one_sentence(fields: dict, says: str):
    with pytest.raises(ConfigError) as caught:
        validate(Holder, {"objective": fields})
    (problem,) = caught.value.problems
    assert says in problem


def test_keep_and_random_may_be_all_of_the_chosen():
    assert MaskedTokens(keep=0.9, random=0.1).random == 0.1


@pytest.mark.parametrize("seq_len", [1, 0, -3])
def test_a_sequence_that_cannot_be_cut_is_refused(seq_len: int):
    for refuse in (SpanCorruption().counts, SpanCorruption().lengths, SpanCorruption().extra_ids):
        with pytest.raises(ValueError, match=f"seq_len={seq_len}: 'span-corruption' .* at least 2 tokens"):
            refuse(seq_len)
    with pytest.raises(ValueError, match=r"'continuation' .* at least 2"):
        Continuation().lengths(seq_len)
    with pytest.raises(ValueError, match=r"'masked' .* at least 2"):
        MaskedTokens().n_chosen(seq_len, has_bos=False)
