"""Texts: sets share no document, begin as the tokenizer begins them; what a model writes is drawn from its own distribution."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from planted import texts

from gatelab.config import validate
from gatelab.config.retrofit import Retrofit
from gatelab.data import DataError
from gatelab.models import build_model
from gatelab.retrofit.texts import beginnings, check_paths, cut, read_texts, written


class Letters:
    """One id a letter, and `before` each text."""

    def __init__(self, *before: int):
        self.before = before

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> SimpleNamespace:
        own = [ord(c) - ord("a") + 1 for c in text if c.isalpha()]
        return SimpleNamespace(input_ids=[*(self.before if add_special_tokens else ()), *own])


# All that is asked of a model where it does not write.
KNOWS = SimpleNamespace(config=SimpleNamespace(vocab_size=100))


@pytest.fixture
def lines(tmp_path: Path) -> str:
    """Documents of one letter each: aaaa…, bbbb…, of 40 letters."""
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(json.dumps({"text": chr(ord("a") + i) * 40}) for i in range(20)))
    return str(path)


def config(**changes: object) -> Retrofit:
    given = {"gate": "sdpa-headwise-bias", "train": {"tokens": 64, "batch_size": 2, "seq_len": 8}, "heldout": 3}
    return validate(Retrofit, given | changes)


def test_sequences_are_cut_from_the_start_and_begun_as_texts_are(lines: str):
    found = list(cut(lines, Letters(99), 9, seed=0))
    assert [len(document) for document in found] == [5] * 20
    assert found[0][0] == [99] + [1] * 8 and found[-1][-1] == [99] + [20] * 8


def test_a_long_document_counts_as_several(tmp_path: Path):
    (tmp_path / "book.txt").write_text("ab" * 200)
    found = list(cut(str(tmp_path / "book.txt"), Letters(), 10, seed=0))
    assert [len(document) for document in found] == [16, 16, 8]


def test_no_document_is_in_two_sets(lines: str):
    read = read_texts(KNOWS, Letters(), config(start={"kind": "surgery", "documents": 8}), text=lines, real=lines)
    sets = [read.heldout["real"], read.measured_NT[::2], read.train_NT]
    assert [len(s) for s in sets] == [3, 4, 8] and list(read.heldout) == ["real"]
    letters = [set(s.flatten().tolist()) for s in sets]
    assert not letters[0] & letters[1] and not letters[1] & letters[2] and not letters[0] & letters[2]
    # The other half of what first keys are measured on is trained on.
    assert torch.equal(read.measured_NT[1::2], read.train_NT[:4])


def test_another_text_is_held_out_too(lines: str, tmp_path: Path):
    (tmp_path / "other.jsonl").write_text("\n".join(json.dumps({"text": "z" * 40}) for _ in range(9)))
    read = read_texts(KNOWS, Letters(), config(), text=str(tmp_path / "other.jsonl"), real=lines)
    assert list(read.heldout) == ["text", "real"] and read.measured_NT is None
    assert set(read.train_NT.flatten().tolist()) == {26} == set(read.heldout["text"].flatten().tolist())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heldout": 30}, "20 documents of 9 tokens were left where 30 were wanted"),
        ({"heldout": 20}, "no sequence of 9 tokens left to train on"),
        ({"start": {"kind": "surgery", "documents": 28}}, "17 documents of 9 tokens were left where 20 were wanted"),
    ],
)
def test_a_text_that_is_too_short_is_refused(lines: str, changes: dict, said: str):
    with pytest.raises(DataError, match=said):
        read_texts(KNOWS, Letters(), config(**changes), text=lines, real=lines)


def test_a_tokenizer_of_another_model_and_shards_are_refused(lines: str, tmp_path: Path):
    with pytest.raises(ValueError, match="gives id 100, and the model knows 100 ids"):
        read_texts(KNOWS, Letters(100), config(), text=lines, real=lines)
    (tmp_path / "ids.bin").write_bytes(b"\1\0" * 100)
    for paths in (("self", str(tmp_path / "ids.bin")), (lines, str(tmp_path / "nothing.txt"))):
        with pytest.raises(DataError, match=r"is a shard of tokens|no such file or folder"):
            check_paths(*paths)
    check_paths("self", lines, "stdlib")


def test_what_begins_a_text_begins_what_is_written():
    real = texts(3, 5) + 4
    assert beginnings(Letters(7), real).tolist() == [[7]]
    assert beginnings(Letters(), real).tolist() == [[4], [4], [4]]


def test_a_row_is_written_alike_in_any_batch(monkeypatch: pytest.MonkeyPatch):
    model = build_model(tiny.model(vocab_size=23, max_seq_len=64, init_std=0.3)).eval()
    firsts = torch.tensor([[1], [2], [3]])
    together = written(model, firsts, 7, 10, seed=4)
    monkeypatch.setattr("gatelab.retrofit.texts._at_once", lambda *_: 2)
    assert torch.equal(written(model, firsts, 7, 10, seed=4), together)
    assert together[:, 0].tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert len({tuple(row) for row in together[:, 1:].tolist()}) == 7
    assert not torch.equal(written(model, firsts, 7, 10, seed=5), together)
    assert written(model, firsts, 0, 10, seed=4).shape == (0, 10)


def test_it_writes_from_its_own_distribution():
    model = build_model(tiny.model(vocab_size=23, max_seq_len=64, init_std=0.5)).eval()
    wrote = written(model, torch.tensor([[5]]), 4000, 2, seed=0)
    with torch.no_grad():
        p_V = model(torch.tensor([[5]]))[0, -1].softmax(dim=-1)
    count_V = torch.bincount(wrote[:, 1], minlength=23)
    # χ² of 22 degrees of freedom is below 50 but in one draw of two thousand; the seed is fixed.
    assert float(((count_V - 4000 * p_V).square() / (4000 * p_V)).sum()) < 50
    assert float(p_V.max()) > 2 / 23
