import hashlib

import numpy as np
import pytest

from gatelab.config import BigramBackcopy
from gatelab.data import DataError, check_lengths, open_source

SOURCE = open_source(BigramBackcopy())


def test_sequences_start_with_bos_and_targets_are_the_next_tokens():
    batch = SOURCE.train_batch(0, 0, 4, 16)
    assert batch.inputs_BT.shape == batch.targets_BT.shape == (4, 16)
    assert batch.inputs_BT.dtype == batch.targets_BT.dtype == np.int64
    assert np.all(batch.inputs_BT[:, 0] == 64) and (SOURCE.bos_id, SOURCE.vocab_size) == (64, 65)
    assert np.array_equal(batch.inputs_BT[:, 1:], batch.targets_BT[:, :-1])
    assert batch.targets_BT.max() < 64 and batch.targets_BT.min() >= 0
    assert batch.segment_ids_BT is None


def test_after_a_trigger_the_token_before_it_comes_again():
    batch = SOURCE.train_batch(0, 0, 64, 64)
    row, t = np.nonzero(batch.inputs_BT < 3)
    assert len(t) > 500
    assert np.array_equal(batch.targets_BT[row, t], batch.inputs_BT[row, t - 1])


def test_first_token_is_no_trigger_and_follows_the_marginal_of_the_others():
    first = SOURCE.train_batch(0, 0, 20_000, 1).targets_BT[:, 0]
    share = np.bincount(first, minlength=64) / len(first)
    rest = 1 / np.arange(4, 65)
    assert share[:3].sum() == 0
    assert np.abs(share[3:] - rest / rest.sum()).max() < 0.012


def test_other_tokens_follow_one_bigram_table_for_all_seeds():
    def table(seed):
        batch = SOURCE.train_batch(seed, 0, 2000, 64)
        pairs = np.zeros((65, 64))
        np.add.at(pairs, (batch.inputs_BT.ravel(), batch.targets_BT.ravel()), 1)
        return pairs[3:8] / pairs[3:8].sum(1, keepdims=True)

    assert np.abs(table(0) - table(1)).max() < 0.03
    marginal = 1 / np.arange(1, 65)
    # Rows scatter around the marginal as a Dirichlet of concentration 30 does, which is far more than 0.03.
    assert 0.03 < np.abs(table(0) - marginal / marginal.sum()).max() < 0.4


def test_domain_says_which_queries_stand_on_a_trigger():
    batch = SOURCE.train_batch(0, 3, 8, 64)
    assert SOURCE.domains == ("bigram", "backcopy")
    assert batch.domain_BT.dtype == np.int8
    assert np.array_equal(batch.domain_BT == 1, batch.inputs_BT < 3)
    assert not batch.domain_BT[:, :2].any()


def test_batch_is_a_function_of_seed_and_step():
    batch = SOURCE.train_batch(2, 5, 4, 32)
    assert np.array_equal(batch.inputs_BT, open_source(BigramBackcopy()).train_batch(2, 5, 4, 32).inputs_BT)
    assert np.array_equal(batch.inputs_BT, SOURCE.train_batch(2, 0, 24, 32).inputs_BT[20:])
    for other in (SOURCE.train_batch(2, 6, 4, 32), SOURCE.train_batch(3, 5, 4, 32), SOURCE.heldout_batch(5, 4, 32)):
        assert not np.array_equal(batch.inputs_BT, other.inputs_BT)


def test_heldout_sequences_do_not_depend_on_the_batch_size():
    assert np.array_equal(SOURCE.heldout_batch(0, 8, 16).inputs_BT[6:], SOURCE.heldout_batch(3, 2, 16).inputs_BT)
    assert SOURCE.heldout_sequences(16) is None
    check_lengths(SOURCE, 10**6)


def test_stream_is_the_same_on_every_machine():
    assert SOURCE.train_batch(0, 0, 1, 12).inputs_BT[0].tolist() == PINNED


def test_batches_of_many_runs_are_the_same_for_good() -> None:
    for (seeds, step, B, T, fields), pinned in MANY.items():
        batch = open_source(BigramBackcopy(**dict(fields))).train_batches(list(range(seeds)), step, B, T)
        arrays = (batch.inputs_BT, batch.targets_BT, batch.domain_BT)
        assert hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest() == pinned


@pytest.mark.parametrize(
    "fields", [{}, {"n_triggers": 0}, {"vocab_size": 300}, {"vocab_size": 4096}, {"vocab_size": 8}]
)
def test_the_table_of_draws_gives_what_a_search_gives(fields: dict[str, int]) -> None:
    source = open_source(BigramBackcopy(**fields))
    uniform_TB = np.random.default_rng(0).integers(0, 2**32, (12, 2000)) * 2.0**-32
    uniform_TB[:, :2] = 0.0, 1 - 2.0**-32
    assert np.array_equal(source._looked_up(uniform_TB), source._searched(uniform_TB))


def test_each_run_of_many_reads_its_own_stream() -> None:
    many = SOURCE.train_batches(list(range(40)), 2, 8, 16)
    for seed in (0, 17, 39):
        own = SOURCE.train_batch(seed, 2, 8, 16)
        assert np.array_equal(many.inputs_BT[8 * seed : 8 * seed + 8], own.inputs_BT)
        assert np.array_equal(many.domain_BT[8 * seed : 8 * seed + 8], own.domain_BT)


def test_without_bos_a_sequence_starts_with_an_ordinary_token() -> None:
    source = open_source(BigramBackcopy(bos=False))
    assert (source.bos_id, source.vocab_size) == (None, 65)
    batch = source.train_batch(0, 0, 400, 64)
    assert batch.inputs_BT.shape == (400, 64) and batch.inputs_BT.max() < 64
    assert np.array_equal(batch.inputs_BT[:, 1:], batch.targets_BT[:, :-1])
    assert batch.inputs_BT[:, 0].min() >= 3
    row, t = np.nonzero(batch.inputs_BT < 3)
    assert np.array_equal(batch.targets_BT[row, t], batch.inputs_BT[row, t - 1])
    share = np.bincount(source.train_batch(0, 0, 20_000, 1).inputs_BT[:, 0], minlength=64) / 20_000
    rest = 1 / np.arange(4, 65)
    assert np.abs(share[3:] - rest / rest.sum()).max() < 0.012
    check_lengths(source, 10**6)


def test_process_seed_draws_another_table():
    other = open_source(BigramBackcopy(process_seed=1))
    assert not np.array_equal(other.train_batch(0, 0, 4, 32).inputs_BT, SOURCE.train_batch(0, 0, 4, 32).inputs_BT)


@pytest.mark.parametrize("n_triggers", [0, 2])
@pytest.mark.parametrize("seq_len", [4, 64])
@pytest.mark.parametrize("bos", [True, False])
def test_oracle_loss_is_the_conditional_entropy_of_the_samples(n_triggers, seq_len, bos):
    source = open_source(BigramBackcopy(vocab_size=8, n_triggers=n_triggers, bos=bos))
    batch = source.train_batch(0, 0, 200_000 // seq_len, seq_len)
    bigram = batch.domain_BT == 0
    pairs = np.zeros((9, 8))
    np.add.at(pairs, (batch.inputs_BT[bigram], batch.targets_BT[bigram]), 1)
    p = pairs / np.maximum(pairs.sum(1, keepdims=True), 1)
    entropy = -np.sum(pairs * np.log(np.where(p > 0, p, 1))) / pairs.sum()
    oracle = source.oracle_loss(seq_len)
    assert oracle["bigram"] == pytest.approx(entropy, abs=0.01)
    assert oracle["backcopy"] == 0


def test_oracle_loss_of_long_sequences_reaches_its_limit():
    assert SOURCE.oracle_loss(20_000)["bigram"] == pytest.approx(SOURCE.oracle_loss()["bigram"], abs=1e-4)
    assert SOURCE.oracle_loss(64)["bigram"] > SOURCE.oracle_loss()["bigram"]  # the draw after BOS is the least certain


def test_process_of_triggers_only_is_refused():
    with pytest.raises(DataError, match="at most 7 can be triggers"):
        open_source(BigramBackcopy(vocab_size=8, n_triggers=8))


PINNED = [64, 40, 0, 40, 10, 2, 10, 5, 52, 2, 52, 15]
# Of (runs, step, batch size, length, configuration): made when every draw was a search.
OTHER = (("vocab_size", 300), ("n_triggers", 0), ("process_seed", 3))
MANY = {
    (256, 999, 8, 64, ()): "78e262acf3eab1f41ef85d6f8bf620d15bdaf778c551984fbc594cb54a5f08c2",
    (3, 7, 4, 37, OTHER): "77bbfffac5a3061a4f94e91f79d3847dab4f7a7bf8ef379f05baf01da83a08f3",
}
