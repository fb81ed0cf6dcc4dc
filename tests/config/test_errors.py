"""Every mistake at once: its path, what came, what is allowed, the nearest match."""

import pytest
from pydantic import ValidationError

from gatelab.config import BigramBackcopy, ConfigError, ModelConfig, Run, nearest, override, validate
from gatelab.config.base import explain


def problems(value: dict) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(Run, value)
    return caught.value.problems


def test_all_mistakes_are_listed_at_once():
    found = problems(
        {"model": {"d_modle": 3, "norm": "batch"}, "optim": {"lr": "fast"}, "data": {"kind": "txt"}, "seed": -1}
    )
    assert len(found) == 5
    assert [p.partition(":")[0].partition("=")[0] for p in found] == [
        "model.norm", "model.d_modle", "data", "optim.lr", "seed",
    ]  # fmt: skip


def test_an_unknown_key_names_the_nearest_and_all_that_are_allowed():
    (problem,) = problems({"model": {"d_modle": 3}})
    assert "did you mean 'd_model'?" in problem
    assert all(name in problem for name in ModelConfig.model_fields)


def test_a_key_in_the_wrong_part_is_answered_with_its_own():
    (problem,) = problems({"train": {"lr": 3e-3}})
    assert problem.startswith("train.lr: no such key; ") and problem.endswith("; did you mean 'optim.lr'?")
    (problem,) = problems({"train": {"tokns": 3}})
    assert problem.endswith("; did you mean 'tokens'?")
    (problem,) = problems({"train": {"xyzzyq": 3}})
    assert "did you mean" not in problem


def test_the_tag_of_a_union_is_no_part_of_the_path_and_chooses_what_is_allowed():
    (problem,) = problems({"data": {"kind": "bigram-backcopy", "paths": "x"}})
    assert problem == "data.paths: no such key; allowed here: bos, kind, n_triggers, process_seed, vocab_size"
    (problem,) = problems({"data": {"kind": "text", "val_share": 2}})
    assert problem.startswith("data.val_share=2: ")


def test_a_union_without_its_kind_lists_the_kinds():
    (problem,) = problems({"data": {"vocab_size": 8}})
    assert problem.endswith("say its kind, one of 'bigram-backcopy', 'text', 'tasks'")


def test_a_place_in_a_sequence_is_no_part_of_the_path():
    (problem,) = problems({"optim": {"betas": [0.9, "x"]}})
    assert problem.startswith("optim.betas='x': ")


def test_one_number_where_two_are_wanted_shows_how_to_write_two():
    (problem,) = problems({"optim": {"betas": 0.9}})
    assert problem == "optim.betas=0.9: expected several parts in brackets, as in (a,b)"


def test_none_for_a_number_is_answered_with_null():
    with pytest.raises(ConfigError, match="write null"):
        override(Run(), {"optim.clip": "none"})
    assert override(Run(), {"optim.clip": None}).optim.clip is None


def test_a_long_value_is_cut():
    (problem,) = problems({"optim": {"lr": "x" * 10_000}})
    assert len(problem) < 250 and "10002 characters" in problem


def test_a_word_that_is_not_close_to_anything_gets_no_guess():
    assert nearest("xyzzy", ["lr", "betas"]) == ""
    assert nearest("beta", ["lr", "betas"]) == "; did you mean 'betas'?"


def test_a_configuration_built_in_python_is_explained_in_the_same_words():
    with pytest.raises(ConfigError) as caught:
        ModelConfig(d_modle=3, n_layers="many")
    assert [s.partition(";")[0] for s in caught.value.problems] == [
        "ModelConfig: n_layers='many': input should be a valid integer, unable to parse string as an integer",
        "ModelConfig: d_modle: no such key",
    ]
    with pytest.raises(ConfigError, match=r"ModelConfig: n_layer: no such key; .*; did you mean 'n_layers'"):
        ModelConfig(n_layer=1)
    with pytest.raises(ValidationError) as of_pydantic:
        ModelConfig.model_validate({"d_modle": 3})
    assert explain(of_pydantic.value)[0].startswith("ModelConfig: d_modle: no such key")


def test_a_config_error_is_a_value_error_that_prints_its_problems():
    error = ConfigError(["one", "two"])
    assert isinstance(error, ValueError)
    assert str(error) == "one\ntwo"


def test_a_stream_with_impossible_numbers_is_refused():
    with pytest.raises(ConfigError, match="vocab_size=4"):
        validate(BigramBackcopy, {"vocab_size": 4})


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"gate": "out-headwise"}, "model.gate: out-headwise is impossible: "),
        ({"gate": "nowhere-headwise"}, "model.gate: 'nowhere-headwise': no site 'nowhere'; "),
        ({"kv_experts": "v-2top8"}, "model.kv_experts='v-2top8': 8 of 2 experts "),
        ({"cross_gate": "out-headwise"}, "model.cross_gate: gate out-headwise is impossible: "),
    ],
)
def test_a_sentence_says_its_path_once(model: dict, says: str):
    (problem,) = problems({"model": model})
    assert problem.startswith(says)
