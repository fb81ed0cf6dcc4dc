"""The harness's RULER with a tokenizer of few tokens a word: what would never end is refused, or left out of `ruler` and told."""

import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from gatelab.config import ConfigError
from gatelab.evals.harness.shortest import that_end
from gatelab.evals.harness.tasks import Asking, find

MADE = {"niah_single_1", "niah_multikey_2", "niah_multikey_3", "ruler_vt", "ruler_cwe", "ruler_fwe"}


def of_letters(n: int):
    """Counts a token for every n letters."""
    return lambda text: len(text) // n


def left(tmp_path: Path, name: str, letters: int, length: int = 4096) -> tuple[set[str], list[str]]:
    for folder in ("files", "draft"):
        (tmp_path / folder).mkdir()
    asking = Asking((name,), tmp_path / "files", lengths=(length,))
    manager = find(asking, print, draft=tmp_path / "draft", tokenizer=tmp_path)
    found, notes = that_end(asking, manager, of_letters(letters))
    return set(found.names), notes


def test_ruler_stands_offline_for_what_needs_no_file_and_says_where_the_rest_is(tmp_path: Path):
    names, (note,) = left(tmp_path, "ruler", 4)
    assert names == MADE and "gatelab/ruler asks all thirteen" in note


def test_of_ruler_what_would_not_end_is_left_out_and_told(tmp_path: Path):
    # Five lines of filler and a chain are about 900 letters: more than 470 tokens of one letter.
    names, notes = left(tmp_path, "ruler", 1, 16_384)
    assert names == MADE - {"ruler_vt"}
    assert "without ruler_vt: its worked example has up to" in notes[0] and "ask gatelab/ruler/vt" in notes[0]


def test_by_its_own_name_it_is_refused(tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"--tasks ruler_vt: its worked example has up to \d+ of this tokenizer's tokens"
    ):
        left(tmp_path, "ruler_vt", 1)


def test_a_length_that_is_too_short_for_one_item_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"--lengths 1024: its shortest item has up to .* may not come to an end"):
        left(tmp_path, "ruler_vt", 2, 1024)


def test_common_words_of_an_empty_list_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"would ask for the words of an empty list; .* gatelab/ruler/cwe"):
        left(tmp_path, "ruler_cwe", 1, 1024)


def test_an_ordinary_tokenizer_is_asked_all_and_no_draw_is_spent(tmp_path: Path):
    random.seed(3), np.random.seed(3)
    expected = random.random(), np.random.rand()
    random.seed(3), np.random.seed(3)
    assert left(tmp_path, "ruler_vt", 4, 1024) == ({"ruler_vt"}, [])
    assert (random.random(), np.random.rand()) == expected


def test_the_generator_ends_where_it_is_let_through():
    """With the shortest worked example that is let through: twice as many letters a token as would be refused."""
    from types import SimpleNamespace

    from lm_eval.tasks.ruler.vt_utils import sys_vartrack_w_noise_random

    def tokenizer(text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[0] * (len(text) // 2))

    (made,) = sys_vartrack_w_noise_random(tokenizer, 1, 500, incremental=5)
    assert made["length"] <= 500
