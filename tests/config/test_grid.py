"""The dotted grammar: what words mean, and what is said when they mean nothing."""

import pytest

from gatelab.config import (
    BigramBackcopy,
    ConfigError,
    Execution,
    ModelConfig,
    Run,
    SinkLogit,
    Text,
    accepts,
    cross,
    override,
    parse_assignments,
    together,
    vary,
)  # fmt: skip


@pytest.mark.parametrize(
    "text, values",
    [
        ("3", [3]),
        ("1e-3", [1e-3]),
        ("true", [True]),
        ("null", [None]),
        ("sdpa-headwise", ["sdpa-headwise"]),
        ("0..3", [0, 1, 2, 3]),
        ("-1..1", [-1, 0, 1]),
        ("[none,sdpa-headwise]", ["none", "sdpa-headwise"]),
        ("[1, 2]", [1, 2]),
        ("(0.9,0.95)", [(0.9, 0.95)]),
        ("(a.txt,b.txt)", [("a.txt", "b.txt")]),
        ("[(0.9,0.95),(0.8,0.9)]", [(0.9, 0.95), (0.8, 0.9)]),
        ("[[a,b],c]", [("a", "b"), "c"]),
        ("(0,)", [(0,)]),
        ("((0,),(a,))", [((0,), ("a",))]),
        ("'12'", ["12"]),
        ("a=b", ["a=b"]),
        ("__import__('os')", ["__import__('os')"]),
    ],
)
def test_words_are_values(text: str, values: list):
    assert parse_assignments([f"key={text}"]) == {"key": values}


@pytest.mark.parametrize(
    "word, says",
    [
        ("optim.lr", "expected key=value"),
        ("=3", "expected key=value"),
        ("optim..lr=3", "expected key=value"),
        ("seed=", "the value is missing"),
        ("seed=[]", "a list needs values"),
        ("seed=[1,]", "a list needs values"),
        ("seed=3..1", "write 1..3"),
        ("seed=0..999999999", "at most 10000"),
    ],
)
def test_a_word_without_meaning_is_refused(word: str, says: str):
    with pytest.raises(ConfigError) as caught:
        parse_assignments([word])
    (problem,) = caught.value.problems
    assert says in problem


def test_all_bad_words_are_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_assignments(["a", "b=[]", "c=1", "c=2", "d=2..1"])
    assert len(caught.value.problems) == 4


def test_the_verbs_of_grids():
    ab = vary("a", [1, 2])
    assert cross(ab, vary("b", [3, 4])) == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]
    assert cross() == [{}]
    assert together(ab, vary("b", [3, 4])) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    with pytest.raises(ValueError, match="2, 3 values"):
        together(ab, vary("b", [3, 4, 5]))


def test_an_override_changes_what_it_names_and_nothing_else():
    run = Run()
    changed = override(run, {"optim.lr": 3e-4, "model.gate": "sdpa-headwise"})
    assert (changed.optim.lr, changed.model.gate[0].slug) == (3e-4, "sdpa-headwise")
    assert override(changed, {"optim.lr": run.optim.lr, "model.gate": "none"}) == run
    assert override(run, {}) is run


def test_swapped_arguments_of_override_are_said():
    with pytest.raises(ConfigError, match=r"override\(dict, Run\): give a configuration, then values by key"):
        override({"optim.lr": 1.0}, Run())


def test_the_order_of_changes_does_not_matter():
    change = {"model.softmax.init": 1.5, "model.softmax": "sink-logit", "model.n_heads": 3, "model.d_model": 36}
    backwards = dict(reversed(change.items()))
    assert override(Run(), change) == override(Run(), backwards)
    assert override(Run(), change).model.softmax == SinkLogit(init=1.5)


@pytest.mark.parametrize("key", ["data", "data.kind"])
def test_another_kind_drops_the_fields_of_the_first(key: str):
    assert override(Run(data=Text(paths="a.txt")), {key: "bigram-backcopy"}).data == BigramBackcopy()
    assert override(Run(), {key: "bigram-backcopy", "data.n_triggers": 5}).data == BigramBackcopy(n_triggers=5)


def test_the_same_kind_keeps_its_fields():
    assert override(Run(data=Text(paths="a.txt")), {"data": "text"}).data == Text(paths="a.txt")


def test_a_whole_part_may_be_replaced_by_a_value():
    assert override(Run(), {"data": BigramBackcopy(n_triggers=5), "data.vocab_size": 16}).data == BigramBackcopy(
        n_triggers=5, vocab_size=16
    )


def test_a_run_accepts_the_keys_of_the_kinds_it_holds():
    assert accepts(Run(), "data.paths") and not accepts(Run(data=BigramBackcopy()), "data.paths")
    assert not accepts(Run(), "data.path") and not accepts(Run(), "optim.lr.x")


@pytest.mark.parametrize(
    "key, says",
    [
        ("optim.lrr", "did you mean 'optim.lr'?"),
        ("lr", "did you mean 'optim.lr'?"),
        ("train.lr", "did you mean 'optim.lr'?"),
        ("model.seq_len", "did you mean 'train.seq_len'?"),
        ("train.lrr", "did you mean 'optim.lr'?"),
        ("model.seqlen", "did you mean 'train.seq_len'?"),
        ("optm.betas", "did you mean 'optim.betas'?"),
        ("train.tokns", "did you mean 'train.tokens'?"),
        ("optim.zzz", "optim.schedule"),
    ],
)
def test_an_unknown_key_is_answered_with_those_that_exist(key: str, says: str):
    with pytest.raises(ConfigError) as caught:
        override(Run(), {key: 1})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{key}: no such key") and says in problem


def test_the_keys_of_an_execution_carry_its_name():
    with pytest.raises(ConfigError, match=r"^execution.slot: no such key; .*did you mean 'slots'"):
        override(Execution(), {"slot": 1}, "execution.")


def test_a_preset_is_the_fields_it_changes():
    changed = override(Run(), {"model.preset": "marin/two-sigmoid"})
    spelled = {"model.gate": "sdpa-headwise-two_sigmoid-init=1", "model.output_map": "xsa"}
    assert changed == override(Run(), spelled) != Run()
    assert override(ModelConfig(), {"preset": "marin/two-sigmoid"}) == changed.model


@pytest.mark.parametrize(
    "change",
    [
        {"model.preset": "qwen3-next", "model.gate": "none"},
        {"model.preset": "gpt-oss", "model.softmax": "softmax"},
        {"model.preset": "gpt-oss", "model.softmax.kind": "softmax"},
        {"model.preset": "xsa", "model.output_map": "none"},
        {"model.preset": "none"},
        {"model.preset": None},
        {"model.preset": "paper/base"},
    ],
)
@pytest.mark.parametrize("is_backwards", [False, True])
def test_what_is_stated_beside_a_preset_wins(change: dict, is_backwards: bool):
    change = dict(reversed(change.items())) if is_backwards else change
    assert override(Run(), change) == Run()


def test_the_settings_of_a_kind_that_a_preset_chooses_may_be_stated():
    changed = override(Run(), {"model.preset": "bondarenko/clipped-softmax", "model.softmax.gamma": -0.1})
    assert (changed.model.softmax.kind, changed.model.softmax.gamma) == ("clipped", -0.1)


def test_a_relative_control_changes_the_model_as_it_is_stated():
    change = {"model.preset": "paper/q48", "model.n_heads": 8, "model.d_model": 64, "model.gate": "value-headwise"}
    model = override(Run(), change).model
    assert (model.n_heads, model.head_dim, model.gate[0].slug) == (12, 8, "value-headwise")
    change = {"preset": "paper/more-experts", "moe": {"n_experts": 8, "top_k": 2, "d_expert": 32}, "moe.top_k": 3}
    moe = override(ModelConfig(), change).moe
    assert (moe.n_experts, moe.top_k, moe.d_expert) == (12, 7, 32)


def test_presets_are_the_values_of_an_axis():
    (path, names), *_ = parse_assignments(["model.preset=[none,paper/base,paper/g1-elementwise]"]).items()
    gates = [override(Run(), change).model.gate for change in vary(path, names)]
    assert [len(g) for g in gates] == [0, 0, 1] and gates[2][0].slug == "sdpa-elementwise"


def test_a_run_accepts_a_preset_where_it_has_a_model():
    assert accepts(Run(), "model.preset") and accepts(ModelConfig(), "preset")
    assert not accepts(Run(), "preset") and not accepts(Run(), "optim.preset")


@pytest.mark.parametrize(
    "change, says",
    [
        ({"model.preset": "qwen3-nxt"}, "did you mean 'qwen3-next'?"),
        ({"model.preset": 3}, "model.preset=3: no such preset"),
        ({"model.preset": ["xsa"]}, "no such preset"),
        ({"preset": "xsa"}, "did you mean 'model.preset'?"),
        ({"model.prest": "xsa"}, "did you mean 'model.preset'?"),
        ({"optim.preset": "xsa"}, "optim.preset: no such key"),
        ({"model.preset": "paper/kv8"}, "model.preset='paper/kv8': the kv heads are doubled"),
        ({"model.preset": "paper/q48", "model.n_heads": 7}, "not a multiple of n_heads=7"),
    ],
)
def test_a_preset_that_is_not_there_is_refused_in_one_sentence(change: dict, says: str):
    with pytest.raises(ConfigError) as caught:
        override(Run(), change)
    (problem,) = caught.value.problems
    assert says in problem


def test_a_wrong_preset_hides_no_other_mistake():
    with pytest.raises(ConfigError) as caught:
        override(Run(), {"model.preset": "qwen4", "optim.lrr": 1, "model.d_modle": 3})
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError) as caught:
        override(Run(), {"model.preset": "paper/q48", "model.gate": "sdpa", "model.d_model": "wide"})
    assert len(caught.value.problems) == 2
