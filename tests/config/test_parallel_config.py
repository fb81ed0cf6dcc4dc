"""Meshes that do not fit are refused by name, before anything starts."""

import pytest

from gatelab.config import ConfigError, Execution, ModelConfig, MoE, ParallelConfig, override, parse_assignments
from gatelab.lab import plan, single

EXPERTS = MoE(n_experts=4, top_k=2, d_expert=8)


def resolved(**changes: object) -> ModelConfig:
    config = ModelConfig(**{"d_model": 24, "n_heads": 6, "n_kv_heads": 2, "n_layers": 1, **changes})
    return config.resolved(17, 8)


def test_a_mesh_asks_for_the_processes_it_needs() -> None:
    assert Execution().parallel.is_plain and Execution().processes == 1
    assert Execution(parallel={"dp": 2, "tp": 3}).processes == 6
    assert override(Execution(), {"parallel.tp": 2, "parallel.shard": "zero3"}, "execution.").processes == 2
    assert Execution(processes=4, parallel={"tp": 2}).parallel.data_ranks(4) == 2
    assert Execution(parallel={"ep": 4}).processes == 4


@pytest.mark.parametrize(
    ("mesh", "processes", "words"),
    [
        ({"dp": 2, "tp": 2}, 3, "dp=2 tp=2 does not make 3 processes; dp × tp must be their number"),
        ({"tp": 2}, 3, "tp=2 does not make 3 processes"),
        ({"ep": 2}, 3, "ep=2 does not divide the 3 data ranks"),
    ],
)
def test_a_mesh_has_as_many_processes_as_there_are(mesh: dict, processes: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Execution(processes=processes, parallel=mesh)


@pytest.mark.parametrize(
    ("mesh", "model", "batch", "words"),
    [
        ({"tp": 4}, {"d_ff": 24}, 4, "tp=4 does not divide model.n_heads=6; take a divisor"),
        ({"tp": 3}, {"d_ff": 24}, 4, "tp=3 and model.n_kv_heads=2: ranks must share kv heads evenly"),
        ({"tp": 2}, {"d_ff": 25}, 4, "tp=2 does not divide model.d_ff=25"),
        (
            {"tp": 2},
            {"moe": EXPERTS.model_copy(update={"d_expert": 9})},
            4,
            "tp=2 does not divide model.moe.d_expert=9",
        ),
        ({"tp": 2}, {"softmax": "differential"}, 4, "softmax=differential pairs heads that other ranks hold"),
        ({"tp": 2, "ep": 2}, {"moe": EXPERTS}, 4, "tp=2 and ep=2: experts are shared by one of the two"),
        ({"ep": 2}, {}, 4, "ep=2 shares experts, and this model has none"),
        ({"ep": 3}, {"moe": EXPERTS}, 6, "ep=3 does not divide model.moe.n_experts=4"),
        ({"dp": 8}, {}, 4, "batch_size=4 has fewer sequences than 8 data ranks; take fewer processes"),
        ({"dp": 3}, {}, 4, "batch_size=4 does not divide among 3 processes"),
    ],
)
def test_what_does_not_divide_is_said_in_one_sentence(mesh: dict, model: dict, batch: int, words: str) -> None:
    parallel = ParallelConfig(**mesh)
    with pytest.raises(ConfigError, match=words) as error:
        parallel.check(resolved(**model), batch, parallel.fewest)
    assert len(error.value.problems) == 1


def test_what_divides_passes() -> None:
    ParallelConfig(tp=2, shard="zero3").check(resolved(), 4, 4)
    ParallelConfig(tp=6).check(resolved(d_ff=24), 1, 6)
    ParallelConfig(ep=2).check(resolved(moe=EXPERTS), 4, 4)


def test_a_plan_refuses_a_mesh_that_does_not_fit() -> None:
    words = {"model.n_heads": [4], "model.d_model": [16], "data": ["bigram-backcopy"], "execution.parallel.tp": [3]}
    with pytest.raises(ConfigError, match=r"execution.parallel.tp=3 does not divide model.n_heads=4"):
        plan(single(words))


def test_a_mesh_may_be_said_without_its_first_word() -> None:
    words = ["model.n_heads=4", "model.d_model=16", "data=bigram-backcopy"]
    short, long = (
        plan(single(parse_assignments([*words, *mesh]))).study
        for mesh in (["parallel.dp=2", "parallel.tp=2"], ["execution.parallel.dp=2", "execution.parallel.tp=2"])
    )
    assert short == long and short.execution.parallel == ParallelConfig(dp=2, tp=2)
    with pytest.raises(ConfigError, match=r"execution\.parallel\.dp: given twice"):
        parse_assignments(["parallel.dp=2", "execution.parallel.dp=4"])
    with pytest.raises(ConfigError, match=r"execution\.parallel\.dpp: no such key.*did you mean 'parallel\.dp'"):
        plan(single(parse_assignments([*words, "parallel.dpp=2"])))
