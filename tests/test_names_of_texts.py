"""What files of text hold, in words, for the atlas: said in a file beside studies whose runs do not say it."""

from pathlib import Path

import pytest

from gatelab.lab.atlas import DATA, _names
from gatelab.lab.sources import Source
from gatelab.store import StoreError

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def test_it_lies_beside_the_studys_folder_or_its_packs(tmp_path):
    (tmp_path / DATA).write_text('{"a.bin": "old prose"}', encoding="utf-8")
    for source in (tmp_path / "one" / "folder.parquet", tmp_path / "two"):
        source.parent.mkdir(exist_ok=True)
        source.touch() if source.suffix else source.mkdir()
        assert _names(Source(source)) == {"a.bin": "old prose"}
    (tmp_path / "two" / "three").mkdir()
    assert _names(Source(tmp_path / "two" / "three")) == {}


@pytest.mark.parametrize("text", ["[]", '{"a.bin": 3}', "{"])
def test_one_that_says_something_else_is_named(tmp_path, text):
    (tmp_path / DATA).write_text(text, encoding="utf-8")
    (tmp_path / "one").mkdir()
    with pytest.raises(StoreError, match=DATA):
        _names(Source(tmp_path / "one"))


def test_the_results_here_name_the_texts_of_their_studies():
    names = _names(Source(RESULTS / "text-rates" / "folder.parquet"))
    assert names == dict.fromkeys(("train_a.bin.xz", "train_b.bin.xz"), "old English prose")
