"""Planted answers give the tables that arithmetic gives: values of a run, shares, steps, curves, citations, worst items."""

from dataclasses import replace
from pathlib import Path

import planted_tasks as planted
import pytest
from scipy.stats import beta

from gatelab.analysis.task_items import _asked, asked_items, citations, depth_curves, lower_ends, worst_items
from gatelab.analysis.task_study import TaskStudy, task_study
from gatelab.analysis.tasks import effective_lengths, final_values, reached, solved, sooner, task_rows, u_index
from gatelab.store import StoreError, StudyFolder
from gatelab.study.metrics import SOLVED, STUDY_METRICS

DONE = {(planted.CELL, arm, seed) for arm in planted.ARMS for seed in planted.SEEDS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return planted.make_study(tmp_path_factory.mktemp("tasks") / "planted")


@pytest.fixture(scope="module")
def study(folder: StudyFolder) -> TaskStudy:
    return task_study(folder, DONE)


def test_a_runs_values_are_those_of_its_last_asking(folder: StudyFolder) -> None:
    values = final_values(task_rows(folder))
    for (arm, seed), (_, last) in planted.LEARNED.items():
        assert values[planted.CELL, arm, seed, "task_accuracy@1x"] == last
        assert values[planted.CELL, arm, seed, "task_margin@1x"] == pytest.approx(4 * last - 2)
        u = last if arm == "none" else 0
        assert values[planted.CELL, arm, seed, "task_u_index@1x"] == pytest.approx(u)
    assert not [key for key in values if key[3].endswith("@8x")], "it was asked at twice the length at most"


def test_nine_in_ten_are_a_solved_task_and_no_rounding_undoes_it() -> None:
    metric = STUDY_METRICS["task_accuracy@1x"].metric
    for n in (10, 20, 30, 110, 1000):
        assert n * 9 // 10 / n > metric.threshold and n * 9 // 10 / n >= SOLVED
        assert (n * 9 // 10 - 1) / n <= metric.threshold


def test_shares_of_seeds_have_exact_intervals(study: TaskStudy) -> None:
    found = {(s.arm, s.times, s.stretch): s for s in study.solved}
    assert set(found) == {(a, t, s) for a in planted.ARMS for t, s in ((1, "none"), (2, "none"), (2, "yarn"))}
    none, gated = found["none", 1, "none"], found["sdpa-headwise", 1, "none"]
    assert (none.k, none.n, gated.k, gated.n) == (1, 3, 3, 3)
    assert (none.low, none.high) == pytest.approx((beta.ppf(0.025, 1, 3), beta.ppf(0.975, 2, 2)))
    assert (gated.low, gated.high) == pytest.approx((0.025 ** (1 / 3), 1.0))
    assert found["none", 2, "none"].k == 0 and found["sdpa-headwise", 2, "yarn"].k == 3


def test_the_effective_length_is_each_seeds_own_and_takes_three_lengths(study: TaskStudy) -> None:
    assert study.effective == {}, "two lengths were asked"
    at = {1: 1.0, 2: 0.9, 4: 0.85, 8: 0.1}
    base = next(r for r in study.rows if r.metric == "exact_match" and r.bin is None and r.step == 100)
    rows = [replace(base, times=t, value=v * scale, seed=s) for t, v in at.items() for s, scale in ((0, 1), (1, 0))]
    rows += [replace(base, times=8, value=0.9, stretch="yarn", seed=0)] + [
        replace(base, times=t, value=0.9, stretch="yarn", seed=0) for t in (2, 4)
    ]
    key = (planted.CELL, base.arm, "cite")
    assert effective_lengths(rows) == {(*key, "none"): {0: 4, 1: None}, (*key, "yarn"): {0: 8}}
    assert effective_lengths(rows, done={(planted.CELL, base.arm, 1)}) == {(*key, "none"): {1: None}}


def test_an_effective_length_is_not_one_of_guessing(study: TaskStudy) -> None:
    """Accuracy is 0.26 and 0.25 among four chains; what is above 0.25 is kept at the length of training alone."""
    base = next(r for r in study.rows if r.metric == "exact_match" and r.bin is None and r.step == 100)
    at = {1: (0.26, 0.6), 2: (0.25, 0.55), 4: (0.25, 0.4), 8: (0.25, 0.26)}
    rows = [replace(base, times=t, value=v, seed=s) for t, values in at.items() for s, v in enumerate(values)]
    key = (planted.CELL, base.arm, base.task, "none")
    assert effective_lengths(rows) == {key: {0: 8, 1: 2}}
    beside = {"answer_floor": 0.25, "answer_chance": 0.001}
    rows += [replace(r, metric=metric, value=v) for r in rows for metric, v in beside.items()]
    assert effective_lengths(rows) == {key: {0: 1, 1: 2}}
    lows = {((planted.CELL, base.arm, s), base.task, 1, "none"): low for s, low in ((0, 0.18), (1, 0.5))}
    assert effective_lengths(rows, lows=lows) == {key: {0: None, 1: 2}}
    whole = [replace(r, value=1.0) if r.metric == "answer_floor" else r for r in rows]
    assert effective_lengths(whole, lows=lows) == {key: {0: 8, 1: 2}}, "where copying is all, chance is what counts"


def test_lower_ends_are_those_of_exact_intervals_over_items(folder: StudyFolder) -> None:
    items = asked_items(folder, DONE)
    lows = lower_ends(items)
    assert set(lows) == {(key, "cite", t, "none") for key in DONE for t in (1, 2)}
    assert lows[(planted.CELL, "none", 0), "cite", 1, "none"] == pytest.approx(beta.ppf(0.025, 16, 7))
    assert lows[(planted.CELL, "none", 0), "cite", 2, "none"] == 0


def test_a_seed_that_never_gets_there_is_censored_and_not_slow(study: TaskStudy) -> None:
    found = {r.arm: r for r in study.reached}
    none, gated = found["none"], found["sdpa-headwise"]
    assert none.steps == {0: 100, 1: None, 2: None} and none.median is None and none.until == 100 and none.k == 1
    assert gated.steps == {0: 50, 1: 100, 2: 50} and gated.median == 50 and gated.k == 3
    assert sooner(gated, none) == (3, 0, 0) and sooner(none, gated) == (0, 3, 0) and sooner(none, none) == (0, 0, 3)


def test_a_median_between_a_step_and_a_censored_one_is_not_known(study: TaskStudy) -> None:
    rows = [r for r in study.rows if r.arm == "none" and r.seed < 2]
    (found,) = reached(rows)
    assert found.steps == {0: 100, 1: None} and found.median is None


def test_runs_that_are_not_done_do_not_count(study: TaskStudy) -> None:
    few = {key for key in DONE if key[2] == 0}
    assert {s.n for s in solved(study.rows, done=few)} == {1}
    assert all(set(r.steps) == {0} for r in reached(study.rows, done=few))


def test_the_u_index_needs_ends_and_middle() -> None:
    full = dict.fromkeys(range(11), 0.5)
    assert u_index(full | {0: 1.0, 10: 0.8, 4: 0.2}) == pytest.approx(0.9 - (0.2 + 0.5 + 0.5) / 3)
    assert u_index({b: v for b, v in full.items() if b != 10}) is None


def test_curves_over_depth_are_of_items_and_their_ends_stand_out(study: TaskStudy) -> None:
    none = study.curves[planted.CELL, "none", "cite", 1, "none"]
    assert none.bins == pytest.approx([0.0 if b in planted.MIDDLE else 1.0 for b in range(11)])
    assert (none.u_index.value, none.u_index.low, none.u_index.high) == pytest.approx((1, 1, 1))
    assert none.ranges[0] == (1, 1)
    gated = study.curves[planted.CELL, "sdpa-headwise", "cite", 1, "none"]
    assert gated.bins[5] == 0.5 and gated.ranges[5] == (0, 1) and gated.u_index.value == pytest.approx(1 / 6)


def test_answers_and_citations_are_counted_apart(study: TaskStudy) -> None:
    none = study.citations[planted.CELL, "none", "cite", 1, "none"]
    # Of 22 items six lie in the middle, and of those item 5 has its value right.
    assert none == pytest.approx(
        {(True, True): 16 / 22, (True, False): 1 / 22, (False, True): 0, (False, False): 5 / 22}
    )
    gated = study.citations[planted.CELL, "sdpa-headwise", "cite", 1, "none"]
    assert gated[True, True] == 21 / 22 and gated[True, False] == 1 / 22


def test_a_citation_of_all_documents_and_one_more_is_wrong(folder: StudyFolder) -> None:
    right = next(a for a in asked_items(folder, DONE) if a.is_right)
    (found,) = citations([right, replace(right, given=(*right.given, right.given[-1] + 1))]).values()
    assert found == {(True, True): 1 / 2, (True, False): 1 / 2, (False, True): 0, (False, False): 0}


def test_what_is_asked_beside_is_in_curves_over_depth_alone(folder: StudyFolder) -> None:
    items = asked_items(folder, DONE)
    beside = [replace(a, index=a.index + 100, is_beside=True, is_right=False, given=(1, 2), margin=-9.0) for a in items]
    for of in (lower_ends, citations, worst_items):
        assert of([*items, *beside]) == of(items)
    strewn = [replace(a, bin=None) for a in items]
    (curve, *_) = depth_curves([*strewn, *beside]).values()
    assert depth_curves(strewn) == {} and set(curve.bins) == {0}


def test_an_item_without_evidence_has_no_depth(folder: StudyFolder) -> None:
    _, own = next(folder.planned())
    record = next(iter(own.items()))
    for evidence, b in (([[1, 9]], 0), ([], None)):
        of = {**record, "factors": {**record["factors"], "evidence": evidence}}
        assert _asked((planted.CELL, "none", 0), of, planted.LENGTH).bin == b


def test_the_worst_item_is_the_one_that_all_get_wrong(study: TaskStudy, folder: StudyFolder) -> None:
    first, second, third = study.worst
    assert (first.asked.index, first.n_wrong, first.margin) == (5, 6, -2) and first.asked.times == 1
    assert {w.n_wrong for w in (second, third)} == {3} and set(first.said) == set(planted.LEARNED)
    assert first.asked.item().answer == first.asked.answer
    items = asked_items(folder, DONE)
    right = [replace(a, is_right=True) for a in items]
    assert worst_items(right) == []
    (least,) = worst_items(
        [replace(a, margin=-9.0 if a.index == 16 else a.margin) for a in items if a.index in (15, 16)], 1
    )
    assert least.asked.index == 16, "of items that as many runs get wrong the one of the lowest margin comes first"
    only_long = [a if a.times == 2 else replace(a, is_right=True) for a in items]
    assert {w.asked.times for w in worst_items(only_long)} == {2}


def test_a_study_that_asks_nothing_has_none(tmp_path: Path) -> None:
    folder = planted.make_study(tmp_path / "study")
    for _, run in folder.planned():
        run.rows_path.write_text("")
    assert task_study(folder, DONE) is None


def test_a_file_of_items_that_is_cut_is_told(tmp_path: Path) -> None:
    folder = planted.make_study(tmp_path / "study")
    path = next(run for _, run in folder.planned()).items_path
    path.write_text(path.read_text()[:-40])
    with pytest.raises(StoreError, match=r"items.jsonl, line 44: not readable as JSON"):
        task_study(folder, DONE)


def test_an_item_without_what_a_run_writes_is_told(tmp_path: Path) -> None:
    folder = planted.make_study(tmp_path / "study")
    path = next(run for _, run in folder.planned()).items_path
    path.write_text(path.read_text().replace('"knobs"', '"nobs"', 1))
    with pytest.raises(StoreError, match=r"items.jsonl: an item has no 'knobs', which `gatelab run` writes"):
        task_study(folder, DONE)
