import argparse
import inspect

import numpy as np
import pytest

from gatelab.data import ByteTokenizer, DataError, LoadedTokenizer
from gatelab.data import tokenizer as module
from gatelab.data.tokenizer import cut_before, train_bpe

TEXTS = ["def f(x):\n\treturn x + 1\n", "naïve café, 東京 🙂\r\n", "  indented  twice\n\n\n", "\x00\x7f", "a"]
TRAINING = [inspect.getsource(argparse).encode()]


@pytest.fixture
def bpe(tmp_path):
    train_bpe(TRAINING, 300, tmp_path / "tokenizer.json")
    return LoadedTokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_and_bpe_give_the_text_back(bpe, text):
    for tokenizer in (ByteTokenizer(), bpe):
        (ids,) = tokenizer.encode([text.encode()])
        assert tokenizer.decode(ids) == text
        assert ids.max() < tokenizer.vocab_size


def test_bpe_has_its_specials_first_and_merges_what_is_frequent(bpe):
    assert (bpe.eos_id, bpe.bos_id, bpe.vocab_size) == (0, 1, 300)
    assert len(bpe.encode([b"self.self.self."])[0]) < 8


def test_bpe_of_the_same_text_is_the_same_file(tmp_path):
    for name in ("a", "b"):
        train_bpe(TRAINING, 300, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_text_that_spells_a_special_token_stays_text(bpe):
    (ids,) = bpe.encode([b"x<|endoftext|>y<|bos|>"])
    assert ids.min() > 2
    assert bpe.decode(ids) == "x<|endoftext|>y<|bos|>"


def test_long_documents_are_encoded_in_pieces_that_join_again(bpe, monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 50)
    text = "東京の猫 and the cat\n" * 30 + "東" * 200
    (ids,) = bpe.encode([text.encode()])
    assert bpe.decode(ids) == text


def test_cuts_fall_on_line_ends_or_else_on_characters():
    assert cut_before(b"one\ntwo three", 9) == 4
    document = "東京".encode()
    assert [cut_before(document, where) for where in range(1, 6)] == [0, 0, 3, 3, 3]


def test_ids_of_a_tokenizer_file_may_be_named(tmp_path):
    train_bpe(TRAINING, 300, tmp_path / "t.json")
    assert LoadedTokenizer(tmp_path / "t.json", bos_id=7).bos_id == 7
    with pytest.raises(DataError, match=r"eos_id=300 is no id of .*; they go up to 299"):
        LoadedTokenizer(tmp_path / "t.json", eos_id=300)


def test_file_that_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(DataError, match=r"t\.json' is not a tokenizer\.json"):
        LoadedTokenizer(tmp_path / "t.json")


def test_byte_ids_are_bytes():
    assert ByteTokenizer().encode([b"\x00\xff"])[0].tolist() == [0, 255]
    assert ByteTokenizer().decode(np.array([104, 256, 105, 257])) == "hi"
