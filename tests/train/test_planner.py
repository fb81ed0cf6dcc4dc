"""Plans against measured steps, against counts made by hand, and what cannot be laid out."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import tiny

from gatelab.cli import _status
from gatelab.config import ConfigError, ModelConfig
from gatelab.config.moe import MoE
from gatelab.models.ladder import SIZES
from gatelab.models.sizes import count_parameters, parameter_shapes
from gatelab.train.planner import DEVICES, Job, Layout, Mesh, StepPlan, Transfer, best_step, plan_step, spread_of
from gatelab.train.planner.devices import ATTENTION, EXPERTS, LAUNCHED, UNEVEN, WAIT, attention_seconds, experts_rate
from gatelab.train.planner.measured import MEASURED, Measured

EVEN = tiny.model(vocab_size=16)  # every parameter has a number of rows that 4 divides
SHARED = tiny.model(vocab_size=16, d_ff=None, moe=MoE(n_experts=4, top_k=2, d_expert=8))


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def step(model: ModelConfig = EVEN, mesh: Mesh | None = None, *, sequences: int = 8, **how: object) -> StepPlan:
    return plan_step(Job(model, 16 * sequences, 16), mesh, **how)


def n_of(model: ModelConfig) -> tuple[int, int]:
    """Weights of the blocks, and all others."""
    blocks = sum(prod(s) for name, s in parameter_shapes(model).items() if name.startswith("blocks."))
    return blocks, count_parameters(model) - blocks


@pytest.mark.parametrize("m", MEASURED, ids=[f"{m.device} {m.name} {m.mesh} {m.attention}" for m in MEASURED])
def test_a_measured_step_is_planned_within_15_percent_of_its_memory_and_20_of_its_time_or_said_to_miss(m: Measured):
    plan = plan_step(m.job, m.mesh, device=m.device, micro_batch=m.micro_batch)
    assert (plan.memory.total / 2**30 != pytest.approx(m.gib, rel=0.15)) == ("memory" in m.misses)
    assert (1e3 * plan.seconds.total != pytest.approx(m.ms, rel=0.20)) == ("time" in m.misses)
    if m.mesh.gpus == 1:
        assert plan.seconds.exposed == plan.seconds.hidden == 0


@pytest.mark.parametrize("size", ["64x2x4x256", "moe-80m"])
def test_plans_are_as_far_off_as_the_command_line_says(size: str, capsys: pytest.CaptureFixture[str]):
    """The shares of the measured, as two decimals, are also those of benchmarks/results/planner_2026-11.md."""
    assert _status(["plan", "--size", size, "--tokens", "4096", "--context", "64", "--gpus", "1,2"]) == 0
    said = capsys.readouterr().out
    for is_mesh in (False, True):
        own = [
            (m, plan_step(m.job, m.mesh, device=m.device, micro_batch=m.micro_batch))
            for m in MEASURED
            if (m.mesh.gpus > 1) == is_mesh and (m.job.model.moe is not None) == size.startswith("moe")
        ]
        times = sorted(1e3 * p.seconds.total / m.ms for m, p in own)
        memories = sorted(p.memory.total / 2**30 / m.gib for m, p in own)
        assert (
            f"{'on two H200s' if is_mesh else 'on one GPU'} were planned at {times[0]:.2f} to {times[-1]:.2f} of their time and "
            f"{memories[0]:.2f} to {memories[-1]:.2f} of their memory" in said
        )


def test_a_speed_is_a_range_down_to_the_worst_share_of_its_kind():
    plan = plan_step(Job(SIZES["1b"].model, 65_536, 4096), Mesh(2, shard="none"), device="h200", micro_batch=8)
    spread = spread_of(plan)
    assert (spread.is_timed, spread.worst) == (True, 0.87)
    assert spread.seconds == (plan.seconds.total, plan.seconds.total / 0.87)
    assert spread.mfu == (plan.mfu * 0.87, plan.mfu)
    assert spread.tokens_per_s == pytest.approx([65_536 / s for s in spread.seconds[::-1]])
    assert spread.record()["range"]["seconds"] == [0.494, 0.568] and spread.record()["timed"] == "timed"


@pytest.mark.parametrize(
    ("size", "mesh", "device", "is_timed"),
    [
        ("1b", Mesh(1), "h100", True),
        ("1b", Mesh(1, shard="none"), "h200", True),
        ("1b", Mesh(1), "a100", False),
        ("1b", Mesh(1, tp=2, shard="none"), "h200", True),
        ("1b", Mesh(1, tp=2), "h100", False),
        ("1b", Mesh(2, shard="zero2"), "h200", False),
        ("1b", Mesh(2, shard="zero3"), "h200", True),
        ("1b", Mesh(4, shard="zero3"), "h200", False),
        ("moe-480m", Mesh(2, ep=2, shard="zero3"), "h200", True),
        ("moe-480m", Mesh(2, shard="zero3"), "h200", False),
        ("1b", Mesh(32, tp=2), "h200", False),
    ],
)
def test_a_mesh_that_was_not_timed_is_marked_and_has_two_digits(size: str, mesh: Mesh, device: str, is_timed: bool):
    model = SIZES[size].model.model_copy(update={"max_seq_len": 4096})
    spread = spread_of(plan_step(Job(model, 1 << 20, 4096), mesh, device=device, micro_batch=1))
    record = spread.record()
    assert (spread.is_timed, record["timed"]) == (is_timed, "timed" if is_timed else "not timed")
    n_digits = 3 if is_timed else 2
    ends = [x for both in record["range"].values() for x in both]
    speeds = [record["mfu"], record["tokens_per_s"], *record["seconds"].values(), *ends]
    assert all(x == float(f"{x:.{n_digits}g}") for x in speeds)


def test_two_constants_are_set_by_two_of_the_measured_steps_which_they_meet():
    own = [m for m in MEASURED if m.sets]
    assert len(own) == 2
    for m in own:
        assert 1e3 * plan_step(m.job, device=m.device).seconds.total == pytest.approx(m.ms, rel=0.01)


def test_one_gpu_has_sixteen_bytes_a_weight_and_one_of_four_a_quarter():
    n = count_parameters(EVEN)
    alone, shared = step().memory, step(mesh=Mesh(4)).memory
    assert (alone.weights, alone.moments) == (4 * n, 8 * n)
    assert (shared.weights, shared.moments, shared.gradients) == (n, 2 * n, n)
    assert step(mesh=Mesh(4, shard="none")).memory.weights == 4 * n


def test_gathers_and_scatters_by_hand():
    blocks, rest = n_of(EVEN)
    three, two = (step(mesh=Mesh(4, shard=s)).traffic for s in ("zero3", "zero2"))
    # Forward and backward in bfloat16; what is no block's once, in float32.
    assert three["all-gather"] == 3 / 4 * (2 * 2 * blocks + 4 * rest)
    assert two["all-gather"] == 3 / 4 * (2 * blocks + 4 * rest)
    assert three["reduce-scatter"] == two["reduce-scatter"] == 3 / 4 * 4 * (blocks + rest)
    assert three["all-reduce"] == three["all-to-all"] == 0
    halves = step(mesh=Mesh(4), micro_batch=1).traffic
    assert halves["all-gather"] == 2 * three["all-gather"]


def test_copies_exchange_their_gradients_when_all_are_there():
    plan = step(mesh=Mesh(4, shard="none"))
    (only,) = plan.transfers
    assert only.kind == "all-reduce" and not only.hides
    assert only.n_bytes == 2 * 3 / 4 * 4 * count_parameters(EVEN)


def test_tensor_ranks_sum_each_half_of_a_block_forward_and_backward():
    tokens, D = 8 * 16, EVEN.d_model
    plan = step(mesh=Mesh(1, 2))
    # Then the gradient of what the head reads, in bfloat16, and that of its weight, in float32.
    head = 2 * tokens * D + 4 * EVEN.vocab_size * D
    assert plan.traffic["all-reduce"] == 2 * 1 / 2 * ((2 * 2 * EVEN.n_layers) * tokens * D * 2 + head)
    again = step(mesh=Mesh(1, 2), recompute=True)
    assert again.traffic["all-reduce"] - head == 1.5 * (plan.traffic["all-reduce"] - head)


def test_tokens_travel_to_their_experts_and_back_forward_and_backward():
    tokens, m = 4 * 16, SHARED
    plan = step(m, Mesh(2, ep=2))
    assert plan.traffic["all-to-all"] == 1 / 2 * 4 * tokens * m.moe.top_k * m.d_model * 2 * m.n_layers
    # Each of several micro-batches is first run forward to count the choices of all.
    assert step(m, Mesh(2, ep=2), micro_batch=1).traffic["all-to-all"] == 1.5 * plan.traffic["all-to-all"]


def test_shared_experts_order_their_rows_once_more_and_wait_once_a_layer_and_forward_pass():
    tokens, m = 4 * 16, SHARED
    apart, shared = (step(m, Mesh(2, ep=ep, shard="none")) for ep in (1, 2))
    moves = 22 * 2 * m.moe.top_k * m.d_model * tokens * m.n_layers
    # What the busier rank's rows keep between the products is moved as often as all that is kept.
    more = (UNEVEN - 1) * 4.2 * 2 * m.moe.top_k * 4 * m.moe.d_expert * tokens * m.n_layers
    assert shared.seconds.passes - apart.seconds.passes == pytest.approx((moves + more) / shared.device.copy)
    assert shared.seconds.experts == pytest.approx(UNEVEN * apart.seconds.experts)
    assert shared.seconds.launches == apart.seconds.launches == LAUNCHED * m.n_layers
    assert (apart.seconds.waits, shared.seconds.waits) == (0, WAIT * m.n_layers)
    # Four micro-batches, each run forward once more to count the choices of all.
    assert step(m, Mesh(2, ep=2), micro_batch=1).seconds.waits == pytest.approx(4 * 2 * WAIT * m.n_layers)


def test_the_busier_of_two_ranks_keeps_more_rows():
    tokens, m = 4 * 16, SHARED
    apart, shared = (step(m, Mesh(2, ep=ep, shard="none")).memory for ep in (1, 2))
    # What experts read, and three tensors of their channels.
    rows = tokens * m.n_layers * m.moe.top_k * 2 * (m.d_model + 3 * m.moe.d_expert)
    assert shared.activations - apart.activations == pytest.approx((UNEVEN - 1) * rows, abs=4)
    # Of layers that are computed again one is there at a time.
    again = [step(m, Mesh(2, ep=ep, shard="none"), recompute=True).memory.activations for ep in (1, 2)]
    assert again[1] - again[0] == pytest.approx((UNEVEN - 1) * rows / m.n_layers, abs=4)


@pytest.fixture(scope="module")
def played() -> dict:
    """Steps of two ranks that share experts, one GPU playing both, all but the wire."""
    return json.loads((RESULTS / "expert_parts_h200_2026-11.json").read_text())


@pytest.fixture(scope="module")
def shared_step(played: dict) -> StepPlan:
    model = SIZES[played["size"]].model.model_copy(update={"max_seq_len": played["context"]})
    tokens = 2 * played["sequences"] * played["context"]
    return plan_step(Job(model, tokens, played["context"]), Mesh(2, ep=2, shard="none"), device="h200", micro_batch=8)


@pytest.mark.parametrize("arm", ["ep", "ep busier"])
def test_a_played_step_of_shared_experts_is_planned_within_its_goals(arm: str, played: dict, shared_step: StepPlan):
    found, wire = played["arms"][arm], played["split"][f"wire of {arm}"]
    s = shared_step.seconds
    assert 1e3 * (s.total - s.exposed) == pytest.approx(found["ms"], rel=0.20)
    # The wire of both is arithmetic, at a link's stated rate.
    assert 1e3 * s.total == pytest.approx(found["ms"] + wire, rel=0.20)
    assert 1e3 * s.exposed == pytest.approx(wire, rel=0.20)
    assert shared_step.memory.total / 2**30 == pytest.approx(found["peak_gib"], rel=0.15)


def test_what_meshes_with_experts_add_is_what_the_played_steps_say(played: dict, shared_step: StepPlan):
    arms = played["arms"]
    still = {name: a["ms"] - a["busy_ms"] for name, a in arms.items()}
    n_layers = SIZES[played["size"]].model.n_layers
    assert 1e3 * LAUNCHED * n_layers == pytest.approx(still["blocks"] - still["captured"], rel=0.05)
    for name in ("ep", "ep busier"):
        assert 1e3 * WAIT * arms[name]["waits"] == pytest.approx(still[name] - still["blocks"], rel=0.10)
    shares = arms["ep busier"]["busier_shares"]
    assert 2 * sum(shares) / len(shares) == pytest.approx(UNEVEN, abs=0.01)
    for arm, even in (("captured", UNEVEN), ("ep busier", 1)):
        grouped = [k["ms"] for k in arms[arm]["profile"]["kernels"] if "GroupProblemShape" in k["name"]]
        assert 1e3 * shared_step.seconds.experts / even == pytest.approx(sum(grouped), rel=0.03)


def test_experts_rates_are_those_of_two_profiles_and_lie_between_them_elsewhere():
    (few, low), (many, high) = EXPERTS.items()
    assert [experts_rate(n) for n in (few // 2, few, many, 2 * many)] == [low, low, high, high]
    assert low < experts_rate(768) < high


def test_experts_fewer_than_ranks_are_gathered_with_what_fills_them_up():
    at_4, at_8 = (step(SHARED, Mesh(dp)) for dp in (4, 8))
    sent = [next(t.n_bytes for t in p.transfers if t.what == "experts' weights") for p in (at_4, at_8)]
    assert sent[1] / sent[0] == (7 * 1) / (3 * 1)  # each rank gives one expert's rows, there or not


def test_the_first_rank_of_uneven_rows_keeps_one_more():
    model = tiny.model(vocab_size=17)
    more = step(model, Mesh(4)).memory.weights - step(EVEN, Mesh(4)).memory.weights
    assert more == 4 * 2 * EVEN.d_model  # of embedding and head


def test_computing_blocks_again_takes_less_memory_and_more_time():
    job = Job(SIZES["8b"].model, 8 * 4096, 4096)
    plain, again = (plan_step(job, Mesh(8), recompute=r) for r in (False, True))
    assert again.memory.activations < plain.memory.activations / 5
    assert plain.seconds.computing < again.seconds.computing < 4 / 3 * plain.seconds.computing


def test_rates_of_attention_are_those_measured_at_their_lengths_and_lie_between_them_elsewhere():
    for K, table in ATTENTION.items():
        for length, (forward, backward) in table.items():
            f, b = attention_seconds(3e12, DEVICES["h100"], head_dim=K, length=length)
            assert (f, b) == pytest.approx((1 / forward, 2.5 / backward))
    between = attention_seconds(3e12, DEVICES["h100"], head_dim=128, length=1500)[0]
    assert 1 / 511 < between < 1 / 433
    assert attention_seconds(3e12, DEVICES["h100"], head_dim=128, length=64)[0] == pytest.approx(1 / 433)


def test_a_transfer_takes_the_slowest_link_on_its_way():
    d = DEVICES["h100"]
    ring = Transfer("all-gather", "weights", 8, 1, 450e9, hides=True)
    assert ring.seconds(d) == 1
    assert replace(ring, size=16).seconds(d) == pytest.approx(450 / 400)  # eight cards side by side
    assert replace(ring, stride=8).seconds(d) == pytest.approx(450 / 50)  # one GPU of a machine
    sent = Transfer("all-to-all", "tokens", 16, 1, 50e9, hides=False)
    assert sent.seconds(d) == pytest.approx(8 / 15)  # of 15 others 8 are in the other machine


def test_nothing_hides_what_tensor_ranks_send():
    plan = step(mesh=Mesh(2, 2))
    open_ = sum(t.seconds(plan.device) for t in plan.transfers if not t.hides)
    hideable = sum(t.seconds(plan.device) for t in plan.transfers if t.hides)
    assert plan.seconds.exposed >= open_
    assert plan.seconds.exposed + plan.seconds.hidden == pytest.approx(open_ + hideable)
    assert plan.seconds.one_by_one == pytest.approx(plan.seconds.computing + open_ + hideable)


BAD = {
    "heads": (EVEN, Mesh(1, 3), {}, "tp=3 does not divide model.n_heads=2"),
    "experts": (SHARED, Mesh(3, ep=3), {"sequences": 9}, "ep=3 does not divide model.moe.n_experts=4"),
    "no experts": (EVEN, Mesh(2, ep=2), {}, "this model has none"),
    "too few sequences": (EVEN, Mesh(16), {}, "8 has fewer sequences than 16"),
    "micro-batch": (EVEN, Mesh(2), {"micro_batch": 3}, "micro_batch=3 does not divide the 4 sequences"),
    "no rank": (EVEN, Mesh(0), {}, "dp=0 tp=1 ep=1: expected 1 or more"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_divide_is_one_clear_message(name: str):
    model, mesh, how, said = BAD[name]
    with pytest.raises(ConfigError) as error:
        step(model, mesh, **how)
    assert said in str(error.value)


def test_tokens_are_whole_sequences():
    with pytest.raises(ConfigError, match="tokens=100 is not a number of whole sequences of context=16"):
        plan_step(Job(EVEN, 100, 16))


def test_what_is_stated_stays_and_the_rest_is_the_fastest_that_fits():
    job = Job(SIZES["8b"].model, 1 << 20, 4096)
    free = best_step(job, 16)
    stated = best_step(job, 16, Layout(tp=4, shard="zero2", recompute=True, micro_batch=2))
    assert free.fits and free.seconds.total <= stated.seconds.total
    assert (stated.mesh, stated.recompute, stated.micro_batch) == (Mesh(4, 4, shard="zero2"), True, 2)
    assert best_step(job, 16, Layout(dp=2)).mesh.tp == 8
    with pytest.raises(ConfigError, match="tp=3 does not divide 16 GPUs"):
        best_step(job, 16, Layout(tp=3))


def test_where_nothing_fits_the_plan_says_so():
    plan = best_step(Job(SIZES["70b"].model, 1 << 20, 4096), 8)
    assert not plan.fits and plan.memory.total > DEVICES["h100"].memory
    assert not plan.record()["fits"]


def test_what_the_trainer_cannot_do_is_never_chosen():
    job = Job(SIZES["70b"].model, 1 << 22, 4096)
    assert not any(best_step(job, n).recompute for n in (8, 32, 1024))
    long = Job(SIZES["70b"].model.model_copy(update={"max_seq_len": 16_384}), 1 << 22, 16_384)
    assert not best_step(long, 64).fits and best_step(long, 64, Layout(recompute=True)).fits
    assert best_step(job, 1024).fits


@pytest.mark.parametrize("size", ["paper/1.7b-28l", "paper/1.7b-48l", "paper/15a2b"])
def test_the_papers_models_fit_from_8_to_1024_gpus_and_go_faster_on_more(size: str):
    plans = [best_step(Job(SIZES[size].model, 1024 * 4096, 4096), 8 << i) for i in range(8)]
    assert all(p.fits for p in plans)
    speeds = [p.tokens_per_s for p in plans]
    assert speeds == sorted(speeds)
    assert all(0 < p.mfu < 0.7 for p in plans)
