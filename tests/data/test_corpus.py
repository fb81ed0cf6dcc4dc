import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from gatelab.config import Text
from gatelab.data import ByteTokenizer, DataError, cache, check_lengths, corpus, open_source
from gatelab.data.files import find
from gatelab.data.prepare import prepare, survey

BYTES = ByteTokenizer()


def write_documents(folder, n=60, length=200):
    """n documents, each telling its number over and over, so that any piece of one says where it is from."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (folder / f"{i:03}.txt").write_text(f"<{i:03}>" * (length // 5))
    return str(folder)


def open_text(tmp_path, **settings):
    return open_source(Text(**settings), cache=tmp_path / "cache")


def texts(source, part, seq_len=50):
    """All tokens of one epoch of training, or of the held-out windows, as text."""
    if part == "train":
        n = max(1, (source.n_train_tokens - seq_len) // seq_len)
        batch = source.train_batch(0, 0, n, seq_len)
    else:
        batch = source.heldout_batch(0, source.heldout_sequences(seq_len), seq_len)
    return " ".join(BYTES.decode(row) for row in batch.targets_BT)


def test_sequences_start_with_bos_and_targets_follow(tmp_path):
    batch = open_text(tmp_path, paths=write_documents(tmp_path / "d")).train_batch(0, 0, 4, 32)
    assert np.all(batch.inputs_BT[:, 0] == BYTES.bos_id)
    assert np.array_equal(batch.inputs_BT[:, 1:], batch.targets_BT[:, :-1])
    assert batch.segment_ids_BT is None and batch.domain_BT is None


def test_without_bos_the_first_token_is_context(tmp_path):
    source = open_text(tmp_path, paths=write_documents(tmp_path / "d"), bos=False)
    batch = source.train_batch(0, 0, 4, 32)
    assert source.bos_id is None and batch.inputs_BT.max() < BYTES.bos_id + 2 and BYTES.bos_id not in batch.inputs_BT
    assert np.array_equal(batch.inputs_BT[:, 1:], batch.targets_BT[:, :-1])


def test_heldout_documents_are_never_in_training(tmp_path):
    source = open_text(tmp_path, paths=write_documents(tmp_path / "d", 200), val_share=0.2)
    held = {f"<{i:03}>" for i in range(200) if f"<{i:03}>" in texts(source, "heldout")}
    trained = {f"<{i:03}>" for i in range(200) if f"<{i:03}>" in texts(source, "train")}
    assert 20 < len(held) < 60 and not held & trained
    assert len(held | trained) >= 198  # an epoch leaves up to two windows out


def test_documents_stay_on_their_side_when_others_come(tmp_path):
    held = []
    for n in (150, 200):
        source = open_text(tmp_path, paths=write_documents(tmp_path / f"d{n}", n), val_share=0.2)
        held.append({i for i in range(150) if f"<{i:03}>" in texts(source, "heldout")})
    assert held[0] == held[1]


def test_one_long_document_gives_its_end_to_the_held_out_side(tmp_path):
    lines = [f"line {i:04}\n" for i in range(1000)]
    (tmp_path / "book.txt").write_text("".join(lines))
    source = open_text(tmp_path, paths=str(tmp_path / "book.txt"), val_share=0.1)
    assert (source.n_train_tokens, source.n_heldout_tokens) == (9001, 1001)
    assert "line 0900" in texts(source, "heldout") and "line 0899" not in texts(source, "heldout")
    assert "its last 10%" in source.description


def test_validation_paths_are_held_out_and_left_out_of_training(tmp_path):
    folder = write_documents(tmp_path / "d")
    source = open_text(tmp_path, paths=folder, val_paths=f"{folder}/007.txt")
    assert source.n_heldout_tokens == 201 and source.n_train_tokens == 59 * 201
    assert "<007>" not in texts(source, "train")
    with pytest.raises(DataError, match="nothing is left to train on"):
        open_text(tmp_path, paths=folder, val_paths=folder)


def test_every_window_of_an_epoch_is_seen_once(tmp_path):
    (tmp_path / "numbers.txt").write_text("".join(f"{i:05}" for i in range(3000)))
    source = open_text(tmp_path, paths=str(tmp_path / "numbers.txt"))
    n = (source.n_train_tokens - 20) // 20
    windows = [w.tobytes() for step in range(n) for w in source.train_batch(1, step, 1, 20).targets_BT]
    assert len(set(windows)) == n
    again = {w.tobytes() for w in source.train_batch(1, 1, n, 20).targets_BT}
    assert len(again & set(windows)) < n  # another epoch cuts elsewhere


def test_batch_is_a_function_of_seed_and_step(tmp_path):
    folder = write_documents(tmp_path / "d")
    source, other = open_text(tmp_path, paths=folder), open_text(tmp_path, paths=folder)
    batch = source.train_batch(1, 9, 4, 32).inputs_BT
    other.train_batch(1, 0, 4, 32)
    assert np.array_equal(batch, other.train_batch(1, 9, 4, 32).inputs_BT)
    assert not np.array_equal(batch, source.train_batch(1, 10, 4, 32).inputs_BT)
    assert not np.array_equal(batch, source.train_batch(2, 9, 4, 32).inputs_BT)


def test_heldout_sequences_begin_again_after_the_last(tmp_path):
    source = open_text(tmp_path, paths=write_documents(tmp_path / "d"), val_share=0.2)
    n = source.heldout_sequences(32)
    assert n == source.n_heldout_tokens // 32
    twice = source.heldout_batch(0, 2 * n, 32).targets_BT
    assert len({row.tobytes() for row in twice}) <= n
    assert np.array_equal(twice[:n], twice[n:])
    assert np.array_equal(source.heldout_batch(3, 2, 32).targets_BT, twice[6:8])


def test_document_mask_numbers_the_documents_of_a_row(tmp_path):
    source = open_text(tmp_path, paths=write_documents(tmp_path / "d", length=20), document_mask=True)
    batch = source.train_batch(0, 0, 8, 100)
    assert batch.segment_ids_BT.dtype == np.int32 and np.all(batch.segment_ids_BT[:, 0] == 0)
    is_end = batch.inputs_BT[:, :-1] == BYTES.eos_id
    assert is_end.sum() >= 8 * 4
    assert np.array_equal(np.diff(batch.segment_ids_BT, axis=1), is_end)
    assert batch.targets_BT.min() >= 0  # the token after an end of document is predicted too


def test_bytes_per_token_counts_the_ends_of_documents(tmp_path):
    folder = write_documents(tmp_path / "d")
    assert open_text(tmp_path, paths=folder).bytes_per_token == pytest.approx(200 / 201)
    bpe = open_text(tmp_path, paths=folder, tokenizer="bpe:300")
    assert bpe.bytes_per_token > 1 and bpe.n_train_tokens < open_text(tmp_path, paths=folder).n_train_tokens


def test_bpe_is_trained_on_the_training_documents_alone(tmp_path):
    folder = write_documents(tmp_path / "d")
    (tmp_path / "val.txt").write_text("zyzzyva " * 200)
    source = open_text(tmp_path, paths=folder, val_paths=str(tmp_path / "val.txt"), tokenizer="bpe:400")
    (file,) = (tmp_path / "cache" / "corpora").glob("*/tokenizer.json")
    assert not [token for token in json.loads(file.read_text())["model"]["vocab"] if "zy" in token]
    assert source.vocab_size == len(json.loads(file.read_text())["model"]["vocab"])


def test_tokenizer_file_is_used_and_must_know_its_ids(tmp_path):
    folder = write_documents(tmp_path / "d")
    trained = open_text(tmp_path, paths=folder, tokenizer="bpe:300")
    (file,) = (tmp_path / "cache" / "corpora").glob("*/tokenizer.json")
    loaded = open_text(tmp_path, paths=folder, tokenizer=str(file))
    assert loaded.digest == trained.digest
    (tmp_path / "plain.json").write_text(file.read_text().replace("<|endoftext|>", "<|other|>"))
    with pytest.raises(DataError, match=r"name its id in data\.eos_id"):
        open_text(tmp_path, paths=folder, tokenizer=str(tmp_path / "plain.json"))
    assert open_text(tmp_path, paths=folder, tokenizer=str(tmp_path / "plain.json"), eos_id=0).digest == loaded.digest


def test_digest_tells_contents_and_settings_but_not_places(tmp_path):
    here, there = write_documents(tmp_path / "here"), write_documents(tmp_path / "there" / "deep")
    digest = open_text(tmp_path, paths=here).digest
    assert len(digest) == 64
    assert open_source(Text(paths=there), cache=tmp_path / "other-cache").digest == digest
    assert open_text(tmp_path, paths=here, tokenizer="bpe:300").digest != digest
    assert open_text(tmp_path, paths=here, val_share=0.3).digest != digest
    (tmp_path / "here" / "000.txt").write_text("<999>" * 40)  # the same length, the same second
    assert open_text(tmp_path, paths=here).digest != digest


def test_text_that_has_not_changed_is_not_read_again(tmp_path, monkeypatch):
    folder = write_documents(tmp_path / "d")
    monkeypatch.setattr(cache, "_SETTLED_NS", 0)
    first = open_text(tmp_path, paths=folder)

    def forbidden(*_):
        raise AssertionError("the text was read again")

    monkeypatch.setattr(corpus, "survey", forbidden)
    assert open_text(tmp_path, paths=folder).digest == first.digest


def test_damaged_cache_is_built_again(tmp_path):
    folder = write_documents(tmp_path / "d")
    first = open_text(tmp_path, paths=folder)
    (prepared,) = (tmp_path / "cache" / "corpora").iterdir()
    os.truncate(prepared / "train.bin", 100)
    second = open_text(tmp_path, paths=folder)
    assert (second.digest, second.n_train_tokens) == (first.digest, first.n_train_tokens)
    assert (prepared / "train.bin").stat().st_size == 2 * first.n_train_tokens


def test_two_processes_prepare_one_good_cache(tmp_path):
    folder = write_documents(tmp_path / "d", 400, 2000)
    program = (
        "import sys, pathlib; from gatelab.config import Text; from gatelab.data import open_source\n"
        "source = open_source(Text(paths=sys.argv[1], tokenizer='bpe:500'), cache=pathlib.Path(sys.argv[2]))\n"
        "print(source.digest, source.train_batch(0, 0, 8, 64).inputs_BT.sum())"
    )
    command = [sys.executable, "-c", program, folder, str(tmp_path / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1] != ""
    assert len(list((tmp_path / "cache" / "corpora").iterdir())) == 1  # and no draft is left


def test_text_that_changes_while_it_is_prepared_is_refused(tmp_path):
    folder = write_documents(tmp_path / "d")
    seen = survey((folder,), find((folder,)), "text")
    (tmp_path / "d" / "030.txt").write_text("other")
    with pytest.raises(DataError, match=r"030\.txt' changed while it was being read"):
        prepare(Text(paths=folder), [seen], tmp_path / "cache" / "key")
    assert not list((tmp_path / "cache").iterdir())


def test_full_disk_is_said_and_leaves_nothing_behind(tmp_path):
    folder = write_documents(tmp_path / "d")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be written .*; free space there, or name another folder .*CACHE"):
            open_text(tmp_path, paths=folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "cache" / "corpora").iterdir())
    assert open_text(tmp_path, paths=folder).n_train_tokens > 0


def test_text_shorter_than_the_context_is_refused_with_its_length(tmp_path):
    (tmp_path / "short.txt").write_text("word " * 100)
    source = open_text(tmp_path, paths=str(tmp_path / "short.txt"), val_share=0.2)
    check_lengths(source, 101)
    with pytest.raises(DataError, match=r"held-out text has 101 tokens, .* takes 102; .*train\.seq_len to at most 101"):
        check_lengths(source, 102)
    with pytest.raises(DataError, match=r"training text has 401 tokens, .* takes 402; give more text, or set"):
        check_lengths(source, 402)
    without = open_text(tmp_path, paths=str(tmp_path / "short.txt"), val_share=0.2, bos=False)
    check_lengths(without, 100)
    with pytest.raises(DataError, match="takes 102"):
        check_lengths(without, 101)
    assert (source.heldout_sequences(101), without.heldout_sequences(101)) == (1, 0)


def test_settings_that_contradict_the_tokenizer_are_refused(tmp_path):
    folder = write_documents(tmp_path / "d", 3)
    with pytest.raises(DataError, match=r"data\.vocab_size=9 is for token shards"):
        open_text(tmp_path, paths=folder, vocab_size=9)
    with pytest.raises(DataError, match=r"fixed with data\.tokenizer=byte"):
        open_text(tmp_path, paths=folder, bos_id=9)
    with pytest.raises(DataError, match=r"data\.tokenizer='no\.json': no such file"):
        open_text(tmp_path, paths=folder, tokenizer="no.json")


def test_one_byte_of_text_cannot_be_divided(tmp_path):
    (tmp_path / "one.txt").write_text("x")
    with pytest.raises(DataError, match="1 bytes of text are too few to hold some of it out"):
        open_text(tmp_path, paths=str(tmp_path / "one.txt"))


def test_data_is_free_of_torch_and_of_slow_imports():
    program = (
        "import sys, gatelab.data; print([m for m in ('torch', 'tokenizers', 'pyarrow', 'scipy') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
