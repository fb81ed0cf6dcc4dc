"""Run and its fingerprint: what determines a result is in the name, and nothing else."""

import json

import pytest

from gatelab.config import (
    BigramBackcopy,
    ConfigError,
    Continuation,
    Execution,
    MaskedTokens,
    ModelConfig,
    NextToken,
    OptimConfig,
    ProbeConfig,
    Run,
    SpanCorruption,
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

PACKED = {"kind": "text", "document_mask": True}
LONG = {"kind": "span-corruption", "share": 0.9, "mean_span": 1.0}  # the decoder reads 9 tokens of 8


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
        {"optim__qk_clip": 100.0},
    ],
)
def test_what_determines_the_result_is_in_the_name(change: dict):
    assert name(**change) != name()


def of(arch: str, **changes: object) -> Run:
    """A run of the same tokens and another architecture, not resolved."""
    return Run(
        **{"model": {"arch": arch, "d_model": 16, "n_heads": 2}, "data": TOY.data, "train": TOY.train, **changes}
    )


ARCHITECTURES = {"decoder": NextToken(), "encoder": MaskedTokens(), "encoder-decoder": SpanCorruption()}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_objective_of_an_architecture_has_one_name_stated_or_not(arch: str):
    stated = of(arch, objective=ARCHITECTURES[arch].kind)
    assert stated.objective == stated.resolved_objective == of(arch).resolved_objective == ARCHITECTURES[arch]
    assert of(arch).objective is None
    assert fingerprint(stated.resolved(17), "") == fingerprint(of(arch).resolved(17), "")


def test_every_other_objective_has_a_name_of_its_own():
    objectives = [
        None,
        SpanCorruption(share=0.5),
        SpanCorruption(mean_span=2.0),
        Continuation(),
        Continuation(share=0.25),
    ]
    assert len({fingerprint(of("encoder-decoder", objective=o), "") for o in objectives}) == len(objectives)
    assert fingerprint(of("encoder", objective=MaskedTokens(share=0.3)), "") != fingerprint(of("encoder"), "")


def test_an_objective_is_stored_with_its_kind():
    run = of("encoder-decoder", objective=Continuation(share=0.25))
    assert canonical(run)["objective"] == {"kind": "continuation", "share": 0.25}
    assert validate(Run, json.loads(json.dumps(canonical(run)))) == run
    assert canonical(of("encoder"))["objective"] is None


@pytest.mark.parametrize(
    "arch, objective, vocab_size, max_seq_len",
    [
        ("decoder", None, 17, 8),
        ("encoder", MaskedTokens(share=0.5), 18, 8),
        # Half of 8 tokens in two spans: two sentinels, the final one, the start.
        ("encoder-decoder", SpanCorruption(share=0.5, mean_span=2.0), 21, 8),
        ("encoder-decoder", SpanCorruption(share=0.9, mean_span=1.0), 20, 9),
        ("encoder-decoder", Continuation(share=0.1), 17, 8),
    ],
)
def test_a_model_has_room_for_what_its_objective_makes(arch, objective, vocab_size: int, max_seq_len: int):
    model = of(arch, objective=objective).resolved(17).model
    assert (model.vocab_size, model.max_seq_len, model.head_dim) == (vocab_size, max_seq_len, 8)


def test_a_resolved_run_is_resolved_to_itself():
    run = of("encoder-decoder").resolved(17)
    assert run.resolved(17) == run


def test_a_vocabulary_without_room_for_the_objectives_ids_is_refused():
    with pytest.raises(
        ConfigError, match=r"model.vocab_size=17 is less than the data's 17 ids and the 1 that 'masked' adds"
    ):
        override(of("encoder"), {"model.vocab_size": 17}).resolved(17)
    with pytest.raises(ConfigError, match=r"model.vocab_size=16 is less than the data's 17 ids; leave it out"):
        override(of("decoder"), {"model.vocab_size": 16}).resolved(17)


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
        (
            {"objective": "maskd"},
            "'next-token', 'masked', 'answers', 'span-corruption', 'continuation'; did you mean 'masked'?",
        ),
        ({"objective": "masked"}, "'masked' does not train arch='decoder', which takes 'next-token'; change one"),
        ({"model.arch": "encoder-decoder", "objective": "next-token"}, "takes 'span-corruption' or 'continuation'"),
        ({"model.arch": "encoder", "objective": {"kind": "masked", "shar": 0.3}}, "did you mean 'share'?"),
        ({"model.arch": "encoder", "objective": {"kind": "masked", "share": 0}}, "objective.share=0"),
        ({"model.arch": "encoder-decoder", "data": PACKED}, "two sequences of 'span-corruption' are not cut alike"),
        ({"model.registers": 2, "data": PACKED}, "model.registers=2 belong to no document"),
        (
            {"model.arch": "encoder-decoder", "objective": LONG, "model.max_seq_len": 8},
            "of 9 tokens, longer than the rope",
        ),
        ({"model.arch": "encoder-decoder", "objective": "continuation", "probe.skip_queries": 5}, "no query of the 5"),
        ({"optim.qk_clip": 0}, "optim.qk_clip=0"),
        ({"optim.qk_clip": 100, "model.qk_norm": "rms"}, "which model.qk_norm='rms' scales back"),
        ({"optim.qk_clip": 100, "model.gate": "query-headwise-add"}, "gate query-headwise-add adds to the queries"),
        (
            {"optim.qk_clip": 100, "model.arch": "encoder-decoder", "model.cross_gate": "query-headwise-add"},
            "gate query-headwise-add adds to the queries",
        ),
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


def test_a_key_without_a_position_does_not_go_with_packed_documents_under_rope():
    fields = {"data.kind": "text", "data.document_mask": True, "model.softmax": "key-bias"}
    with pytest.raises(
        ConfigError, match=r"model.softmax=key-bias .* set data.document_mask=false, or model.positions"
    ):
        override(Run(), fields)
    assert override(Run(), {**fields, "model.positions": "learned"}).data.document_mask
    assert override(Run(), {**fields, "data.document_mask": False}).model.positions == "rope"


@pytest.mark.parametrize("written", [True, "true", "True", False, "false", "auto"])
def test_packed_is_auto_or_said(written: object) -> None:
    wanted = {"true": True, "false": False}.get(str(written).lower(), written)
    execution = validate(Execution, {"packed": written})
    assert execution.packed is wanted or execution.packed == wanted == "auto"
    assert Execution.model_validate_json(execution.model_dump_json()) == execution
    assert Execution().packed == "auto"


def test_packed_otherwise_is_refused() -> None:
    with pytest.raises(ConfigError, match="packed='maybe': expected one of 'auto', 'True', 'False'"):
        validate(Execution, {"packed": "maybe"})
