"""Turns, floors and goals: what is timed in which order, what a device must spend, and where a goal is judged."""

import math

import pytest
import torch

from gatelab.bench import timing
from gatelab.bench.floors import Rates, attention_ms, gate_bytes, measure_rates
from gatelab.bench.goals import GOALS, judged
from gatelab.bench.op_costs import gate_ms, op_ms, own_gate_ms, own_op_ms, ungated_ms
from gatelab.bench.plan import plan
from gatelab.bench.timing import OVER, Budget, Times, Timing, Work, take_turns, why_not

CPU = torch.device("cpu")
ROW = Timing("ops", "a shape", "sdpa-headwise", "gatelab flash", "forward + backward")


def test_works_take_turns_and_warm_ups_are_not_counted() -> None:
    ran, clock = [], iter(range(1000))
    works = {name: Work(lambda _, n=name: ran.append(n)) for name in "ab"}

    def measure(work: Work) -> float:
        work.run(work.before())
        return float(next(clock))

    turns = take_turns(works, CPU, budget=Budget.of(60.0), measure=measure)
    n = turns.rounds
    # Rounds go back and forth.
    assert ran == ["a", "a", "b", "b"] + [name for i in range(n) for name in ("ba" if i % 2 else "ab")]
    assert turns.times["a"].ms == tuple(float(2 + 2 * i + i % 2) for i in range(n))
    assert turns.times["b"].ms == tuple(float(3 + 2 * i - i % 2) for i in range(n))


def test_rounds_are_three_at_least_and_fifty_at_most() -> None:
    works = {"a": Work(lambda _: None)}
    for seconds, rounds in ((1e-9, 3), (600.0, 50)):
        assert take_turns(works, CPU, budget=Budget.of(seconds)).rounds == rounds


def test_what_raises_is_left_out_and_says_why() -> None:
    def fails(_: None) -> None:
        raise RuntimeError("no kernel\nand more")

    turns = take_turns({"bad": Work(fails), "good": Work(lambda _: None)}, CPU, budget=Budget.of(1.0))
    assert turns.failed == {"bad": "not run: no kernel"} and list(turns.times) == ["good"]
    assert take_turns({"bad": Work(fails)}, CPU, budget=Budget.of(1.0)).rounds == 0


def test_what_is_first_has_rounds_before_another_is_asked_and_stays_in_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_MOST", 3)
    ran: list[str] = []

    def asked() -> str:
        ran.append("asked")
        return ""

    works = {name: Work(lambda _, n=name: ran.append(n), is_first=name in "bc") for name in "abc"}
    works["a"] = timing.replace(works["a"], refused=asked)
    turns = take_turns(works, CPU, budget=Budget.of(60.0), measure=lambda work: work.run(None) or 1.0)
    assert ran == [*"bbcc", *"bc", *"cb", *"bc", "asked", *"aa", *"acb", *"bca", *"acb"]
    assert (len(turns.times["b"].ms), len(turns.times["a"].ms), turns.rounds) == (6, 3, 6)


def test_what_is_first_is_timed_however_long_another_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def compiled() -> str:
        now[0] += 1e3
        return ""

    works = {"peer": Work(lambda _: None, refused=compiled), "late": Work(lambda _: None)}
    works |= {"first": Work(lambda _: now.__setitem__(0, now[0] + 1.0), is_first=True)}
    turns = take_turns(works, CPU, budget=Budget.of(60.0))
    # Two runs to warm up; of the 58 s that are left a half, and after the peer the least.
    assert len(turns.times["first"].ms) == 29 + 3 and list(turns.times) == ["first", "peer"]
    assert turns.failed == {"late": timing.OVER}


def test_what_is_refused_is_not_run() -> None:
    def fails(_: None) -> None:
        raise AssertionError

    turns = take_turns({"wrong": Work(fails, refused=lambda: "FAIL output")}, CPU, budget=Budget.of(1.0))
    assert turns.failed == {"wrong": "FAIL output"} and not turns.times


def test_out_of_memory_is_said_in_few_words() -> None:
    def fails(_: None) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 137.00 GiB")

    turns = take_turns({"large": Work(fails)}, CPU, budget=Budget.of(1.0))
    assert turns.failed == {"large": "not run: out of memory"}


def test_when_the_time_is_over_the_first_is_still_timed() -> None:
    works = {name: Work(lambda _: None) for name in "ab"}
    turns = take_turns(works, CPU, budget=Budget.of(0.0))
    assert list(turns.times) == ["a"] and "more --seconds" in turns.failed["b"]


def test_what_must_take_longer_than_what_is_left_is_not_begun() -> None:
    def fails(_: None) -> None:
        raise AssertionError

    works = {"long": Work(fails, floor_ms=1e6), "short": Work(lambda _: None)}
    turns = take_turns(works, CPU, budget=Budget.of(3.0), share=0.5)
    assert list(turns.times) == ["short"]
    assert turns.failed["long"].startswith("not run: takes at least 5e+03 s, and 1.5 s of the 3 asked are left")


def test_what_turns_out_to_take_longer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def long(_: None) -> None:
        now[0] += 20.0

    turns = take_turns({"long": Work(long), "short": Work(lambda _: None)}, CPU, budget=Budget.of(60.0))
    # Its first run and its timed one are over, and three more of 20 s do not fit.
    assert turns.failed["long"].startswith("not run: takes at least 60 s, and 20 s of the 60 asked are left")
    assert list(turns.times) == ["short"] and now[0] == 40.0


def test_a_second_more_does_not_matter() -> None:
    assert Budget.of(0.0).lacks(0.9) == "" and Budget.of(100.0).lacks(99.0) == ""
    assert "give more --seconds" in Budget.of(0.0).lacks(1.1)


def test_what_comes_before_is_given_on_and_is_not_timed() -> None:
    given = []
    work = Work(given.append, before=lambda: 7)
    take_turns({"a": work}, CPU, budget=Budget.of(1e-9))
    assert set(given) == {7}


def test_a_ratio_is_the_median_of_ratios_within_rounds() -> None:
    # Of the medians it would be 30 / 10.
    times, base = Times((10.0, 30.0, 40.0), 300), Times((10.0, 10.0, 80.0), 100)
    row = ROW.timed(times, floor_ms=15.0).over(times, base, "ungated")
    assert (row.median_ms, row.least_ms, row.most_ms, row.of_floor) == (30.0, 10.0, 40.0, 2.0)
    assert (row.ratio, row.ratio_least, row.ratio_most, row.peak_ratio) == (1.0, 0.5, 3.0, 3.0)
    assert ROW.timed(times, scale=0.5).median_ms == 15.0
    # Of what came later it is over the rounds that it was in.
    assert ROW.over(Times((20.0, 40.0), None), base, "ungated").ratio == (20 / 10 + 40 / 80) / 2


def test_the_upper_quartile_is_no_outliers() -> None:
    assert Times((4.0, 1.0, 3.0, 2.0, 90.0), None).upper == 4.0 and Times((1.0, 2.0, 3.0, 4.0), None).upper == 3.25


def test_measured_rates_are_numbers_of_a_computer() -> None:
    rates = measure_rates(CPU, torch.float32)
    assert 1e7 < rates.bytes_per_s < 1e14 and 1e7 < rates.flops_per_s < 1e16


def test_the_floors_of_the_gate_are_those_of_the_tables() -> None:
    # 32,768 tokens, 16 heads of 128 in bfloat16 over 3.0 TB/s: 134 and 224 µs elementwise, 89 and 134 headwise.
    tensor, rates = 32_768 * 16 * 128 * 2, Rates(3.0e12, 774e12, 8192)

    def microseconds(granularity: str, work: str, more_passes: int = 0) -> int:
        return round(1e3 * rates.ms(gate_bytes(tensor, granularity, work, more_passes=more_passes), 0))

    assert [microseconds("elementwise", work) for work in ("forward", "backward")] == [134, 224]
    assert [microseconds("headwise", work) for work in ("forward", "backward")] == [89, 134]
    assert microseconds("headwise", "backward", -1) == 89  # with the log-sum-exp
    assert microseconds("headwise", "forward", -1) == 89
    assert microseconds("elementwise", "forward + backward", 1) == round(9 * 2**27 / 3.0e6)


def test_a_pass_that_only_the_candidate_makes_is_no_part_of_the_floor() -> None:
    """The issue's floors of an H100: 155 = 1.15 × 135 and 257 = 1.15 × 223 µs, elementwise."""
    shape = plan("ops", "cuda", {"device": "cuda", "tokens": 32_768, "length": 4096})
    rates = Rates(3.004e12, 789e12, 8192)

    def found(granularity: str, work: str, more_passes: int) -> list[int | None]:
        at = {"granularity": granularity, "more_passes": more_passes}
        row = Timing(**(vars(ROW) | {"gate": f"sdpa-{granularity}", "work": work, "at": at}))
        both = gate_ms(shape, rates, row), own_gate_ms(shape, rates, row)
        ungated = ungated_ms(shape, rates, work)
        assert op_ms(shape, rates, row) == ungated + both[0]
        assert own_op_ms(shape, rates, row) == (None if both[1] is None else ungated + both[1])
        return [None if ms is None else round(1e3 * ms) for ms in both]

    assert found("elementwise", "backward", 0) == [223, None] and found("elementwise", "backward", 1) == [223, 268]
    assert found("elementwise", "forward", 1) == found("elementwise", "forward", 0) == [134, None]
    # A headwise gate that goes in with the log-sum-exp moves less, and the floor is that.
    assert found("headwise", "backward", -1) == [89, None] and found("headwise", "backward", 0) == [134, None]


def test_the_floor_of_attention_is_its_products_or_its_memory() -> None:
    shape = {"B": 2, "T": 64, "H": 4, "G": 2, "K": 8, "itemsize": 2}
    pairs = sum(0.5 * 2 for _ in range(64) for _ in range(64)) / 2  # half of all, as it is counted everywhere
    products = 2 * 4 * pairs * 4 * 8  # B H, and two products of K channels, a multiplication and an addition each
    computing = Rates(math.inf, 1e9, 8)
    assert attention_ms(computing, **shape, work="forward") == pytest.approx(products / 1e6)
    assert attention_ms(computing, **shape, work="forward + backward") == pytest.approx(3.5 * products / 1e6)
    moving = Rates(1e9, math.inf, 8)
    tensors = 2 * 64 * 8 * 2 * (4 + 2 + 2 + 4)  # q, k, v and the output
    assert attention_ms(moving, **shape, work="forward") == pytest.approx(tensors / 1e6)


def of_layer(share: float) -> Timing:
    at = {"length": 4096, "granularity": "headwise", "head_dim": 64, "fastest_own": True}
    return Timing(**(vars(ROW) | {"median_ms": 1.0, "of_layer": share, "at": at}))


def test_a_goal_is_judged_on_the_gpus_it_was_set_for() -> None:
    for share, verdict in ((0.009, "met"), (0.011, "missed")):
        for device in ("NVIDIA H100 80GB HBM3", "NVIDIA H200"):
            row = judged([of_layer(share)], device)[0]
            assert (row.goal, row.met) == ("at most 1% of a layer", verdict)
    assert judged([of_layer(0.009)], "x86_64 CPU")[0].met == "—"


def test_a_row_may_have_two_goals() -> None:
    at = {"length": 4096, "granularity": "elementwise", "head_dim": 128, "fastest_own": True}
    row = Timing(**(vars(ROW) | {"median_ms": 1.0, "ratio": 1.04, "at": at}))
    assert judged([row], "NVIDIA H100")[0].met == "met"
    headwise = Timing(**(vars(row) | {"of_layer": 0.02, "at": at | {"granularity": "headwise"}}))
    found = judged([headwise], "NVIDIA H100")[0]
    assert found.goal == "at most 1.02 of the best ungated; at most 1% of a layer" and found.met == "missed; missed"


def test_the_gates_kernels_are_within_the_spread_of_the_compiled_ones_or_not() -> None:
    at = {"tokens": 32_768, "heads": 16, "head_dim": 128, "dtype": "bfloat16", "peer_upper_ms": 1.0}

    def met(median_ms: float, **more: object) -> dict[str, str]:
        fields = {
            "what": "gate",
            "is_own": True,
            "median_ms": median_ms,
            "of_floor": 1.0,
            "against": "torch.compile",
            "at": at,
        }
        row = judged([Timing(**(vars(ROW) | fields | more))], "NVIDIA H100")[0]
        return dict(zip(row.goal.split("; "), row.met.split("; "), strict=True))

    goal = "within the spread of torch.compile's"
    assert met(1.0)[goal] == "met" and met(1.01)[goal] == "missed"
    # What makes the output again is judged as the others are; a CPU has no compiled kernels.
    assert met(1.01, at=at | {"more_passes": 1})[goal] == "missed" and goal not in met(1.0, against="eager")
    assert met(1.0, of_floor=1.22)["at most 1.15 of the floor"] == "missed"


def test_what_was_not_timed_or_has_another_shape_has_no_goal() -> None:
    assert judged([ROW], "NVIDIA H100")[0].goal is None
    at = {"length": 1024, "granularity": "elementwise", "head_dim": 128, "fastest_own": True}
    assert judged([Timing(**(vars(ROW) | {"median_ms": 1.0, "at": at}))], "NVIDIA H100")[0].goal is None


def test_a_goal_without_its_number_is_not_judged() -> None:
    at = {"length": 8192}
    row = Timing("probe", "8,192", "none", "probes", "pass", "holds", median_ms=1.0, ratio=0.1, at=at)
    assert judged([row], "NVIDIA H200")[0].met == "—"


def test_mfu_has_the_goal_of_its_size_and_device() -> None:
    at = {"n_parameters": 33_300_992, "is_moe": False}
    row = Timing("train", "30m", "none", "alone", "step of a run", median_ms=1.0, mfu=0.35, is_own=True, at=at)
    assert [judged([row], name)[0].met for name in ("NVIDIA H100", "NVIDIA H200")] == ["met", "missed"]
    large = Timing(**(vars(row) | {"at": at | {"n_parameters": 1_236_000_000}}))
    assert judged([large], "NVIDIA H100")[0].goal == "MFU at least 50%"
    assert len({goal.text for goal in GOALS}) == len(GOALS)


def test_a_budget_that_is_made_longer_is_still_of_the_seconds_that_were_asked() -> None:
    over = Budget(0.0, 6.0).at_least(0.6)
    assert 0 < over.left <= 0.6 and over.asked == 6.0 and "of the 6 asked" in over.lacks(1e3)
    longer = Budget.of(1e3)
    assert longer.at_least(0.6) == longer


def test_a_budget_that_is_over_says_so() -> None:
    Budget.of(1e3).check()
    with pytest.raises(TimeoutError) as over:
        Budget(0.0, 6.0).check()
    assert why_not(over.value) == OVER == "not run: the time was over; give more --seconds"
