"""Run and its fingerprint: what determines a result is in the name, and nothing else."""

import json

import pytest

from gatelab.config import (
    BigramBackcopy,
    ConfigError,
    Execution,
    ModelConfig,
    OptimConfig,
    ProbeConfig,
    Run,
    Text,
    TrainConfig,
    canonical,
    fingerprint,
    keys,
    override,
    validate,
)  # fmt: skip

TOY = Run(
    model=ModelConfig(d_model=16, n_heads=2).resolved(17, 8),
    data=BigramBackcopy(vocab_size=16),
    train=TrainConfig(tokens=1000, batch_size=4, seq_len=8),
)


def name(**changes: object) -> str:
    return fingerprint(override(TOY, {k.replace("__", "."): v for k, v in changes.items()}), "")


def test_steps_are_the_whole_ones_within_the_budget():
    assert TrainConfig(tokens=1000, batch_size=4, seq_len=8).steps == 31
    assert TrainConfig(tokens=32, batch_size=4, seq_len=8).steps == 1


def test_probes_look_before_training_and_after_the_last_step():
    run = override(TOY, {"probe.times": 4})
    assert run.probe_steps() == [0, 8, 16, 23, 31]
    assert override(run, {"train.tokens": 32}).probe_steps() == [0, 1]


def test_the_name_of_a_run_never_changes():
    """A change here renames every stored run: then raise SCHEMA, too."""
    assert name() == "5a8b7838e179"
    assert fingerprint(Run(), "digest") == "06d45d41557b"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"optim__lr": 2e-3},
        {"model__gate": "sdpa-headwise"},
        {"model__softmax": "sink-logit"},
        {"train__tokens": 2000},
        {"train__precision": "bfloat16"},
        {"data__n_triggers": 4},
        {"data__process_seed": 1},
        {"probe__times": 5},
        {"init_from": "0123456789ab"},
    ],
)
def test_what_determines_the_result_is_in_the_name(change: dict):
    assert name(**change) != name()


def test_a_default_spelled_out_is_the_same_run():
    assert name(optim__lr=OptimConfig().lr, train__precision="auto", model__gate="none") == name()


def test_the_content_of_a_text_is_in_the_name_and_its_place_is_not():
    text = Run(model=TOY.model, train=TOY.train)
    moved = override(text, {"data.paths": "/elsewhere/a.txt", "data.val_paths": "b.txt", "data.tokenizer": "my.json"})
    assert fingerprint(text, "one") == fingerprint(moved, "one") != fingerprint(text, "two")
    assert fingerprint(override(text, {"data.document_mask": True}), "one") != fingerprint(text, "one")


def test_every_kind_is_in_the_name(monkeypatch):
    """A kind is its own class's default, and defaults are left out: two kinds of equal settings must still differ."""
    hashed = []
    monkeypatch.setattr("gatelab.config.run.digest", lambda content: hashed.append(content["run"]) or "0" * 64)
    name(model__softmax="sink-logit")
    assert hashed[0]["model"]["softmax"]["kind"] == "sink-logit"
    assert hashed[0]["data"]["kind"] == "bigram-backcopy"


def test_how_a_run_is_carried_out_is_no_part_of_it():
    assert not {k for k in keys(Run) if k.rpartition(".")[2] in Execution.model_fields}


def test_the_stored_form_gives_the_run_back():
    run = Run(data=Text(paths=("a", "b")), optim=OptimConfig(betas=(0.8, 0.9), clip=None), probe=ProbeConfig(times=2))
    assert validate(Run, json.loads(json.dumps(canonical(run)))) == run


@pytest.mark.parametrize(
    "change, says",
    [
        ({"train.tokens": 31}, "less than one step"),
        ({"train.tokens": 10**400}, "train.tokens=1000"),
        ({"train.tokens": 1e30}, "too large"),
        ({"train.seq_len": 1}, "train.seq_len=1"),
        ({"optim.betas": (0.9, 1.0)}, "less than 1"),
        ({"optim.lr": float("nan")}, "finite"),
        ({"optim.lr": -1}, "greater than 0"),
        ({"optim.schedule": "wsd", "optim.warmup": 0.6, "optim.decay": 0.6}, "sum to more than 1"),
        ({"model.max_seq_len": 4}, "longer than the rope positions"),
        ({"model.positions": "learned", "model.max_seq_len": 4}, "longer than the learned positions"),
        ({"probe.skip_queries": 8}, "leaves no query"),
        ({"probe.times": 0}, "probe.times=0"),
        ({"probe.thresholds": (0.1, 2)}, "less than or equal to 1"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"init_from": "../../x"}, "init_from"),
    ],
)
def test_a_run_that_cannot_be_is_refused(change: dict, says: str):
    with pytest.raises(ConfigError) as caught:
        override(TOY, change)
    (problem,) = caught.value.problems
    assert says in problem


@pytest.mark.parametrize(
    "change, says",
    [
        ({"paths": ""}, "no path was given"),
        ({"paths": "a,,b"}, "an empty one"),
        ({"paths": ()}, "no path was given"),
        ({"tokenizer": "bpe:12"}, "N from 300"),
        ({"tokenizer": "words"}, "'byte', 'bpe:N'"),
        ({"val_share": 0}, "val_share=0"),
        ({"val_share": 1}, "val_share=1"),
    ],
)
def test_a_text_that_cannot_be_is_refused(change: dict, says: str):
    with pytest.raises(ConfigError) as caught:
        validate(Text, change)
    (problem,) = caught.value.problems
    assert says in problem


def test_paths_may_be_joined_by_commas():
    assert Text(paths="a.txt,b.txt").paths == ("a.txt", "b.txt")


def test_the_json_schema_has_every_key():
    schema = Run.model_json_schema()
    parts = {schema["properties"]["optim"]["$ref"].rpartition("/")[2]: OptimConfig}
    assert set(schema["properties"]) == set(Run.model_fields)
    assert all(set(schema["$defs"][part]["properties"]) == set(kind.model_fields) for part, kind in parts.items())
