"""Objectives on batches: the source's tokens can be put together again, and draws belong to rows, not to batches."""

from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest

from gatelab.config import BigramBackcopy, Tasks, Text
from gatelab.config.objective import Answers, Continuation, MaskedTokens, NextToken, Objective, SpanCorruption
from gatelab.data import IGNORED, Batch, DataError, Source, open_source
from gatelab.data import joined as joined_batches
from gatelab.data.objectives import _smallest, objective_batch, objective_batches, objective_heldout
from gatelab.data.order import HELDOUT, HELDOUT_OBJECTIVE, TRAIN, TRAIN_OBJECTIVE, uniform_rows
from gatelab.data.tokens import Corpus, Tokens, TokenSource

STREAM = open_source(BigramBackcopy())
WITHOUT_BOS = open_source(BigramBackcopy(bos=False))
TASKS = open_source(Tasks(names=("needle",), hardness=3))
V, MASK, BOS = 65, 65, 64
DRAWN = [MaskedTokens(share=0.3), SpanCorruption(share=0.3, mean_span=2.0), Continuation(share=0.4)]


def text(*, bos: bool = False, document_mask: bool = False) -> TokenSource:
    """Ids 0 … 18 in a fixed order of no meaning; 0 ends documents, 19 is BOS."""
    tokens = np.arange(2000) ** 2 % 19
    corpus = Corpus(
        train=Tokens([tokens[:1500]]), heldout=Tokens([tokens[1500:]]), vocab_size=20, bos_id=19, eos_id=0,
        digest="", description="", bytes_per_token=None,
    )  # fmt: skip
    return TokenSource(corpus, Text(bos=bos, document_mask=document_mask))


def rows(batch: Batch) -> dict[str, list]:
    arrays = {f.name: getattr(batch, f.name) for f in fields(Batch)}
    return {name: None if array is None else array.tolist() for name, array in arrays.items()}


def joined(inputs: list[int], targets: list[int], first_sentinel: int) -> list[int]:
    """The sequence that one row of span corruption came from, token by token."""
    spans: dict[int, list[int]] = {}
    for token in targets:
        if token >= first_sentinel:
            spans[token] = said = []
        else:
            said.append(token)
    out = []
    for token in inputs:
        out += spans[token] if token >= first_sentinel else [token]
    return out


def test_the_next_token_is_the_sources_own_batch():
    class Once:
        batch = STREAM.train_batch(0, 0, 2, 8)

        def train_batch(self, *where: int) -> Batch:
            return self.batch

        heldout_batch = train_batch

    assert objective_batch(Once(), NextToken(), 0, 0, 2, 8) is Once.batch
    assert objective_heldout(Once(), NextToken(), 0, 2, 8) is Once.batch


@pytest.mark.parametrize("objective", DRAWN, ids=lambda o: o.kind)
@pytest.mark.parametrize("source", [STREAM, text(), text(bos=True)], ids=["stream", "text", "text-bos"])
def test_rows_do_not_depend_on_how_they_are_cut_into_batches(source, objective):
    whole = rows(objective_batch(source, objective, 3, 0, 12, 20))
    heldout = rows(objective_heldout(source, objective, 0, 12, 20))
    for size in (1, 3, 4):
        for step in range(12 // size):
            part = slice(step * size, (step + 1) * size)
            for name, array in rows(objective_batch(source, objective, 3, step, size, 20)).items():
                assert array == (None if whole[name] is None else whole[name][part])
            for name, array in rows(objective_heldout(source, objective, step, size, 20)).items():
                assert array == (None if heldout[name] is None else heldout[name][part])


@pytest.mark.parametrize("objective", DRAWN[:2], ids=lambda o: o.kind)
def test_a_batch_is_a_function_of_its_seed_and_step_and_heldout_ones_are_apart(objective):
    # One and the same sequence everywhere, so that nothing but the objective draws.
    tokens = Tokens([np.arange(40)])
    source = TokenSource(Corpus(tokens, tokens, 50, None, None, "", "", None), Text(bos=False))

    def inputs(seed: int, step: int) -> list:
        return objective_batch(source, objective, seed, step, 4, 39).inputs_BT.tolist()

    assert inputs(2, 5) == inputs(2, 5)
    heldout = objective_heldout(source, objective, 5, 4, 39).inputs_BT.tolist()
    assert len({str(row) for row in inputs(0, 5) + inputs(0, 6) + inputs(3, 5) + heldout}) == 16


def test_what_is_masked_does_not_depend_on_the_tokens():
    other = open_source(BigramBackcopy(process_seed=1))
    for objective in (MaskedTokens(random=0, keep=0), SpanCorruption()):
        one, two = (objective_batch(s, objective, 0, 2, 4, 40) for s in (STREAM, other))
        assert not np.array_equal(one.inputs_BT, two.inputs_BT)
        assert np.array_equal(one.inputs_BT >= V, two.inputs_BT >= V)
        assert np.array_equal(one.targets_BT == IGNORED, two.targets_BT == IGNORED)


MANY = [(NextToken(), source) for source in (STREAM, text(document_mask=True))] + [
    *((objective, source) for objective in DRAWN for source in (STREAM, WITHOUT_BOS, text(), text(bos=True))),
    (MaskedTokens(share=1, keep=0.3, random=0.5), text(bos=True, document_mask=True)),
    (SpanCorruption(share=0.9), TASKS),
    *((objective, TASKS) for objective in (MaskedTokens(), Answers(), Continuation())),
]


@pytest.mark.parametrize(("objective", "source"), MANY)
@pytest.mark.parametrize("seq_len", [24, 33])
def test_a_stack_reads_what_each_of_its_seeds_reads(objective: Objective, source: Source, seq_len: int):
    seeds = [0, 5, -1, 5, 2**40]
    for step in (0, 3):
        alone = [objective_batch(source, objective, seed, step, 3, seq_len) for seed in seeds]
        together, expected = objective_batches(source, objective, seeds, step, 3, seq_len), joined_batches(alone)
        for name in (f.name for f in fields(Batch)):
            np.testing.assert_array_equal(getattr(together, name), getattr(expected, name), strict=True)


def test_answers_are_refused_where_every_token_of_one_seed_is_a_target():
    asked = STREAM.train_batch(0, 0, 2, 8)
    partly = replace(asked, targets_BT=np.where(np.arange(8) < 7, asked.targets_BT, IGNORED))
    for others, is_fine in ((partly, True), (asked, False)):
        whole = joined_batches([partly, others, partly])
        source = SimpleNamespace(vocab_size=V, train_batches=lambda *_, whole=whole: whole)
        if is_fine:
            assert objective_batches(source, Answers(), [0, 1, 2], 0, 2, 8).inputs_BT.shape == (6, 8)
        else:
            with pytest.raises(DataError, match="every token of this data is"):
                objective_batches(source, Answers(), [0, 1, 2], 0, 2, 8)


def test_draws_of_objectives_are_apart_from_those_of_sources():
    draws = [uniform_rows(0, key, 0, 300, 50).ravel() for key in (TRAIN, HELDOUT, TRAIN_OBJECTIVE, HELDOUT_OBJECTIVE)]
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.03


def test_draws_are_the_same_on_every_machine():
    masked = objective_batch(STREAM, MaskedTokens(share=0.3), 5, 2, 1, 20)
    spans = objective_heldout(STREAM, SpanCorruption(share=0.3, mean_span=2.0), 2, 1, 20)
    assert np.nonzero(masked.targets_BT[0] != IGNORED)[0].tolist() == PINNED_CHOSEN
    assert np.nonzero(spans.inputs_BT[0] >= V)[0].tolist() == PINNED_SENTINELS


@pytest.mark.parametrize("source", [STREAM, text(), text(bos=True)], ids=["stream", "text", "text-bos"])
def test_masked_tokens_and_targets_give_the_sequence_back(source):
    for seq_len in (*range(2, 17), 64):
        plain = source.train_batch(1, 3, 5, seq_len)
        batch = objective_batch(source, MaskedTokens(keep=0, random=0), 1, 3, 5, seq_len)
        chosen_BT = batch.targets_BT != IGNORED
        assert np.array_equal(np.where(chosen_BT, batch.targets_BT, batch.inputs_BT), plain.inputs_BT)
        assert np.array_equal(chosen_BT, batch.inputs_BT == source.vocab_size)
        eligible = seq_len - (source.bos_id is not None)
        assert chosen_BT.sum(1).tolist() == [max(1, round(0.15 * eligible))] * 5
        assert batch.inputs_BT.dtype == batch.targets_BT.dtype == np.int64


def test_every_token_but_bos_is_masked_equally_often():
    chosen_BT = objective_batch(STREAM, MaskedTokens(share=0.25), 0, 0, 8000, 13).targets_BT != IGNORED
    assert not chosen_BT[:, 0].any()
    assert np.abs(chosen_BT[:, 1:].mean(0) - 0.25).max() < 0.02  # four standard errors
    assert np.abs(np.corrcoef(chosen_BT[:, 1:].T) - np.eye(12)).max() < 0.2  # −1/11, as without replacement
    assert objective_batch(text(), MaskedTokens(), 0, 0, 400, 8).targets_BT[:, 0].max() > 0


def test_equal_draws_do_not_change_how_many_are_chosen():
    integers = np.array([[2, 1, 2, 2, 0], [2**32 - 1] * 5])
    assert _smallest(integers, 3).tolist() == [[0, 1, 4], [0, 1, 2]]
    assert _smallest(integers, 0).shape == (2, 0) and _smallest(integers, 5).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_chosen_tokens_are_masked_kept_or_replaced_in_their_shares():
    plain = STREAM.train_batch(0, 0, 400, 65).inputs_BT
    batch = objective_batch(STREAM, MaskedTokens(share=0.5, keep=0.2, random=0.3), 0, 0, 400, 65)
    chosen_BT = batch.targets_BT != IGNORED
    shown, was = batch.inputs_BT[chosen_BT], plain[chosen_BT]
    assert np.array_equal(batch.inputs_BT[~chosen_BT], plain[~chosen_BT])
    assert np.mean(shown == MASK) == pytest.approx(0.5, abs=0.02)
    replaced = shown[(shown != MASK) & (shown != was)]
    assert len(replaced) / len(shown) == pytest.approx(0.3 * 64 / 65, abs=0.02)
    everything = objective_batch(STREAM, MaskedTokens(share=1, keep=0, random=1), 0, 0, 400, 65).inputs_BT[:, 1:]
    count = np.bincount(everything.ravel(), minlength=V)
    assert len(count) == V and np.abs(count / count.mean() - 1).max() < 0.25


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_all_chosen_tokens_may_be_kept_or_masked(keep):
    plain = STREAM.train_batch(0, 0, 4, 16).inputs_BT
    batch = objective_batch(STREAM, MaskedTokens(share=1, keep=keep, random=0), 0, 0, 4, 16)
    assert np.array_equal(batch.targets_BT[:, 1:], plain[:, 1:])
    assert np.array_equal(batch.inputs_BT[:, 1:], plain[:, 1:] if keep else np.full((4, 15), MASK))


def test_masked_batches_keep_segments_and_domains():
    plain = text(document_mask=True).train_batch(0, 0, 3, 40)
    assert plain.segment_ids_BT.max() > 0
    batch = objective_batch(text(document_mask=True), MaskedTokens(), 0, 0, 3, 40)
    assert np.array_equal(batch.segment_ids_BT, plain.segment_ids_BT)
    stream = objective_batch(STREAM, MaskedTokens(), 0, 0, 3, 40)
    assert np.array_equal(stream.domain_BT, STREAM.train_batch(0, 0, 3, 40).domain_BT)
    assert stream.decoder_inputs_BT is None


@pytest.mark.parametrize("source", [STREAM, text(), text(bos=True)], ids=["stream", "text", "text-bos"])
@pytest.mark.parametrize(
    "objective", [SpanCorruption(), SpanCorruption(share=0.5, mean_span=1.0), SpanCorruption(share=0.9)]
)
def test_spans_and_what_is_left_give_the_sequence_back(source, objective):
    for seq_len in (*range(2, 17), 64):
        plain = source.train_batch(1, 3, 5, seq_len)
        batch = objective_batch(source, objective, 1, 3, 5, seq_len)
        for tokens, inputs, targets in zip(plain.inputs_BT, batch.inputs_BT, batch.targets_BT, strict=True):
            assert joined(inputs.tolist(), targets.tolist(), source.vocab_size) == tokens.tolist()


@pytest.mark.parametrize("seq_len", [*range(2, 17), 64])
def test_span_corruption_has_the_shapes_counts_and_sentinels_it_announces(seq_len):
    objective = SpanCorruption(share=0.4, mean_span=2.0)
    (n_taken, n_spans), (S, T) = objective.counts(seq_len), objective.lengths(seq_len)
    for source in (STREAM, text()):
        batch = objective_batch(source, objective, 0, 1, 6, seq_len)
        size = source.vocab_size
        assert batch.inputs_BT.shape == (6, S)
        assert batch.targets_BT.shape == batch.decoder_inputs_BT.shape == (6, T)
        for array, n in ((batch.inputs_BT, n_spans), (batch.targets_BT, n_spans + 1)):
            assert array.dtype == np.int64
            # Each row's sentinels, in order, each once.
            assert array[array >= size].reshape(6, n).tolist() == [list(range(size, size + n))] * 6
        assert np.all((batch.targets_BT < size).sum(1) == n_taken)
        assert np.array_equal(batch.decoder_inputs_BT[:, 1:], batch.targets_BT[:, :-1])
        start = size + objective.extra_ids(seq_len) - 1 if source.bos_id is None else source.bos_id
        assert np.all(batch.decoder_inputs_BT[:, 0] == start) and start not in batch.targets_BT
        assert np.all(batch.inputs_BT[:, 0] < size)  # the first token always stays
        assert batch.domain_BT is None and batch.segment_ids_BT is None


def test_every_division_into_spans_is_equally_likely():
    # Nine tokens, five of them taken in two spans: 4 divisions of the taken ones and 3 of the four that stay.
    objective = SpanCorruption(share=5 / 9, mean_span=2.5)
    assert objective.counts(9) == (5, 2)
    inputs_BT = objective_batch(STREAM, objective, 0, 0, 6000, 9).inputs_BT
    targets_BT = objective_batch(STREAM, objective, 0, 0, 6000, 9).targets_BT
    clear, taken = np.argmax(inputs_BT == V, axis=1), np.argmax(targets_BT == V + 1, axis=1) - 1
    share = np.bincount(clear * 10 + taken) / 6000
    assert [c * 10 + t for c in (1, 2, 3) for t in (1, 2, 3, 4)] == np.nonzero(share)[0].tolist()
    assert np.abs(share[share > 0] - 1 / 12).max() < 0.015


def test_a_single_span_lies_at_the_end():
    batch = objective_batch(STREAM, SpanCorruption(), 0, 0, 50, 30)
    assert np.all(batch.inputs_BT[:, -1] == V) and batch.inputs_BT.shape == (50, 27)


@pytest.mark.parametrize("source", [STREAM, text(), text(bos=True)], ids=["stream", "text", "text-bos"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_continuation_says_the_rest_and_the_token_after_it(source, share):
    for seq_len in (*range(2, 17), 64):
        plain = source.train_batch(1, 3, 5, seq_len)
        batch = objective_batch(source, Continuation(share=share), 1, 3, 5, seq_len)
        n_read = min(max(round(share * seq_len), 1), seq_len - 1)
        whole = np.concatenate([plain.inputs_BT, plain.targets_BT[:, -1:]], axis=1)
        assert np.array_equal(np.concatenate([batch.inputs_BT, batch.targets_BT], axis=1), whole)
        assert batch.inputs_BT.shape[1] == n_read
        assert np.array_equal(batch.decoder_inputs_BT[:, 0], batch.inputs_BT[:, -1])
        assert np.array_equal(batch.decoder_inputs_BT[:, 1:], batch.targets_BT[:, :-1])


def test_the_domain_of_a_continuation_is_that_of_the_decoders_queries():
    batch = objective_batch(STREAM, Continuation(share=0.3), 0, 0, 16, 40)
    assert batch.domain_BT.shape == batch.targets_BT.shape
    assert np.array_equal(batch.domain_BT == 1, batch.decoder_inputs_BT < 3) and batch.domain_BT.any()


def test_batches_do_not_share_memory_with_each_other_or_the_source():
    batch = objective_batch(STREAM, Continuation(), 0, 0, 2, 8)
    batch.inputs_BT[:] = -1
    assert batch.decoder_inputs_BT.min() >= 0
    assert all(getattr(batch, f"{name}_BT").flags.c_contiguous for name in ("inputs", "targets", "decoder_inputs"))


@pytest.mark.parametrize("objective", [SpanCorruption(), Continuation()], ids=lambda o: o.kind)
def test_encoder_decoders_refuse_a_document_mask(objective):
    for call in (
        lambda: objective_batch(text(document_mask=True), objective, 0, 0, 2, 16),
        lambda: objective_heldout(text(document_mask=True), objective, 0, 2, 16),
    ):
        with pytest.raises(DataError, match=f"{objective.kind!r} .* set data.document_mask=false"):
            call()


@pytest.mark.parametrize("objective", DRAWN, ids=lambda o: o.kind)
def test_one_token_is_too_short(objective):
    with pytest.raises(ValueError, match=r"seq_len=1: .* at least 2 tokens"):
        objective_batch(STREAM, objective, 0, 0, 2, 1)


def test_a_word_is_no_objective():
    with pytest.raises(TypeError, match="objective='masked': expected a value"):
        objective_batch(STREAM, "masked", 0, 0, 2, 8)


PINNED_CHOSEN = [6, 8, 10, 14, 15, 19]
PINNED_SENTINELS = [1, 7, 16]
