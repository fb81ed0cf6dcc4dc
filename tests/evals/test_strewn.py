"""Means over all items are of items like those of training, whatever is told by depth: strewn pieces are asked strewn, and rows by
depth are of items that have evidence."""

from dataclasses import replace
from statistics import fmean

import pytest
import tiny
import torch
from fake_passes import Fake
from torch import Tensor

from gatelab.config import AskConfig, Run, Tasks, TrainConfig
from gatelab.evals import asking, own_ids
from gatelab.evals.asking import asked, headline
from gatelab.evals.harness.passes import Written
from gatelab.evals.inside import with_inside
from gatelab.evals.own_asking import OwnAsking, prepare
from gatelab.evals.own_ids import evaluate_ids
from gatelab.evals.own_rows import rows_of_said
from gatelab.evals.own_text import ask_prompts
from gatelab.evals.strips import with_strips
from gatelab.evals.tasks import Reader
from gatelab.models import build_model
from gatelab.record import Row
from gatelab.tasks import TASKS, VOCAB_SIZE, Knobs, TaskItem, open_task
from gatelab.tasks.in_words import words_of
from gatelab.tasks.metrics import effective_length, guessing
from gatelab.tasks.prompt import Setting
from gatelab.tasks.vocabulary import NONE

T = 96
TOGETHER = {"multivalue": 4, "multiquery": 4, "track": 3, "select": 3, "identifier": 2}


def run(*names: str, items: int = 22, depth: float | None = None, times: tuple[int, ...] = (1,)) -> Run:
    return Run(
        model=tiny.model(vocab_size=VOCAB_SIZE, max_seq_len=T),
        data=Tasks(names=names, depth=depth),
        train=TrainConfig(tokens=T, batch_size=1, seq_len=T),
        ask=AskConfig(items=items, times=times),
    )


def right_where(is_known: object) -> Reader:
    """Says the answers of the items, of `made`, of which it `is_known`, and NONE to all others."""

    def read(tokens_BT: Tensor, at_BA: Tensor) -> Tensor:
        logits_BAV = torch.zeros(*at_BA.shape, VOCAB_SIZE)
        for b, tokens in enumerate(map(tuple, tokens_BT.tolist())):
            item = read.made.get(tokens)
            known = item is not None and is_known(item)
            for a in range(at_BA.shape[1]):
                logits_BAV[b, a, item.answer[a] if known else NONE] = 9.0
        return logits_BAV

    read.made = {}
    return read


def are_strewn(item: TaskItem) -> bool:
    starts = [start for start, _ in item.evidence]
    width = item.evidence[0][1] - item.evidence[0][0]
    return starts != list(range(starts[0], starts[0] + width * len(starts), width))


def value_of(rows: list[Row], task: str, metric: str = "exact_match") -> float:
    (row,) = (r for r in rows if (r.task, r.metric, r.bin, r.depth) == (task, metric, None, None))
    return row.value


def by_bin(rows: list[Row], task: str, metric: str = "exact_match") -> dict[int, float]:
    return {r.bin: r.value for r in rows if r.task == task and r.metric == metric and r.bin is not None}


@pytest.mark.parametrize("name", [n for n in TASKS if open_task(n).has_depth])
def test_an_item_says_how_many_of_its_pieces_a_depth_puts_side_by_side(name: str) -> None:
    assert open_task(name).item(Knobs(T), 0).n_together == TOGETHER.get(name, 1)
    assert open_task("cite").item(Knobs(T, hardness=3), 0).n_together == 3


def test_who_knows_strewn_items_alone_is_right_in_all_and_at_no_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    read, names = right_where(are_strewn), ("select", "track", "multivalue", "multiquery", "needle")
    monkeypatch.setattr(asking, "reader_of", lambda model, objective: read)
    r = run(*names)
    items = [item for name in names for item in asking.questions(r, name, T)]
    read.made = {item.tokens: item for item in items}
    rows, records = asked(build_model(r.model), r, fingerprint="f", step=1, is_whole=True)
    for name in names[:-1]:
        strewn = fmean(are_strewn(item) for item in headline(name, Knobs(T), 22))
        assert value_of(rows, name) == strewn > 0.6, f"{name}: a few lie side by side by chance"
        assert set(by_bin(rows, name)) == set(range(11)) and set(by_bin(rows, name).values()) == {0}
        own = [x for x in records if x.task == name]
        assert [x.item for x in own] == list(range(33)), "no number is that of two items"
        assert [x.factors.get("is_beside", False) for x in own] == [False] * 22 + [True] * 11
        depths = [x.factors["knobs"]["asked_depth"] for x in own]
        assert depths == [None] * 22 + [b / 10 for b in range(11)]
    assert len([x for x in records if x.task == "needle"]) == 22, "one piece needs no second set"
    rows, records = asked(build_model(r.model), r, fingerprint="f", step=1, is_whole=False)
    assert {len([x for x in records if x.task == name]) for name in names} == {22}
    assert {name for name in names if by_bin(rows, name)} == {"needle"}


@pytest.mark.parametrize(("items", "n"), [(0, 0), (5, 5), (22, 11), (110, 55)])
def test_half_as_many_are_asked_beside_and_one_of_each_depth_at_least(items: int, n: int) -> None:
    assert asking._n_beside("select", Knobs(T), items) == n
    assert asking._n_beside("select", Knobs(T, depth=0.5), items) == asking._n_beside("cite", Knobs(T), items) == 0


def test_a_stated_depth_is_that_of_training_and_of_all_that_is_asked() -> None:
    r = run("select", depth=0.5)
    rows, records = asked(build_model(r.model), r, fingerprint="f", step=1, is_whole=True)
    assert {x.factors["knobs"]["asked_depth"] for x in records} == {0.5} and len(records) == 22
    assert by_bin(rows, "select") == {} and not any("is_beside" in x.factors for x in records)


def test_one_piece_lies_at_eleven_depths_as_often_as_in_training() -> None:
    """Mean and spread of its depth are those of items whose evidence lies anywhere."""
    for name in ("needle", "multikey", "cite", "find", "associate"):
        asked_at = [item.depth for item in headline(name, Knobs(T), 110)]
        trained = open_task(name).batch(Knobs(T, split="train"), 0, 2000).depth_B
        assert fmean(asked_at) == pytest.approx(0.5, abs=0.02) and trained.mean() == pytest.approx(0.5, abs=0.03)
        assert fmean((d - 0.5) ** 2 for d in asked_at) == pytest.approx(((trained - 0.5) ** 2).mean(), abs=0.02)


def test_rows_by_depth_are_of_items_with_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is right in those alone that have none is right in half, and at no depth."""
    read = right_where(lambda item: not item.evidence)
    monkeypatch.setattr(asking, "reader_of", lambda model, objective: read)
    r = run("absent", "conflict", items=44)
    for name in r.data.names:
        items = asking.questions(r, name, T)
        read.made |= {item.tokens: item for item in items}
    rows, _ = asked(build_model(r.model), r, fingerprint="f", step=1, is_whole=True)
    for name in r.data.names:
        items = asking.questions(r, name, T)
        assert value_of(rows, name) == fmean(not item.evidence for item in items) == pytest.approx(0.5, abs=0.15)
        bins = {b for b in range(11) if any(item.evidence for item in items[b::11])}
        assert by_bin(rows, name) == dict.fromkeys(bins, 0)


def test_of_conflict_the_floor_is_what_saying_what_was_learned_scores() -> None:
    items = [open_task("conflict").item(Knobs(T), i) for i in range(400)]
    score = fmean(item.answer == (item.factors["memory"],) for item in items)
    assert {item.floor for item in items} == {0.5} and score == pytest.approx(0.5, abs=0.05)
    guess = guessing(0.001, fmean(item.floor for item in items))
    assert effective_length({128: score, 256: score, 512: score}, dict.fromkeys((128, 256, 512), guess),
                            dict.fromkeys((128, 256, 512), score - 0.1)) is None  # fmt: skip
    rows, _ = asked(build_model(run("conflict").model), run("conflict"), fingerprint="f", step=0, is_whole=False)
    assert value_of(rows, "conflict", "answer_floor") == 0.5


def own(names: tuple[str, ...], **given: object) -> OwnAsking:
    return OwnAsking(names=names, lengths=(T,), limit=22, untrained=False, **given)


def test_eval_asks_a_run_what_it_was_asked_as_it_was_trained() -> None:
    names = ("select", "needle", "absent", "conflict")
    r = run(*names)
    model = build_model(r.model)
    rows, _ = asked(model, r, fingerprint="f", step=1, is_whole=True)
    about = own(names)
    found = evaluate_ids(model, r, "mine", about, prepare(about)).rows
    for name in names:
        for metric in ("exact_match", "answer_margin", "answer_floor", "edit_similarity", "copied_from_start"):
            assert value_of(found, name, metric) == value_of(rows, name, metric)


def test_eval_at_depths_keeps_items_with_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    read = right_where(lambda item: not item.evidence)
    monkeypatch.setattr(own_ids, "reader_of", lambda model, objective: read)
    r = run("absent", "conflict")
    depths = tuple(b / 10 for b in range(11))
    for name in r.data.names:
        made = [open_task(name).item(Knobs(T, depth=d), i) for d in depths for i in range(22)]
        read.made |= {item.tokens: item for item in made}
    about = own(("absent", "conflict"), depths=depths)
    found = evaluate_ids(build_model(r.model), r, "mine", about, prepare(about))
    for name, n_pieces in (("absent", 8), ("conflict", 4)):
        n = sum(bool(open_task(name).item(Knobs(T, depth=0.5), i).evidence) for i in range(22))
        at = {m: {x.value for x in found.rows if (x.task, x.metric, x.depth) == (name, m, 0.5)} for m in
              ("exact_match", "items", "answer_floor", "abstention_precision")}  # fmt: skip
        assert at == {
            "exact_match": {0}, "items": {n}, "answer_floor": {1 / n_pieces}, "abstention_precision": set()
        }  # fmt: skip
        assert 0 < n < 22 and {x.item for x in found.items if x.task == name and not x.factors["evidence"]} == set()
        (u,) = (x for x in found.rows if (x.task, x.metric, x.domain) == (name, "u_index", "exact_match"))
        assert u.value == 0
    choice_floors = {x.value for x in found.rows if x.metric == "choice_floor" and x.task == "conflict"}
    assert choice_floors == {1 / 4}, "what was learned stands nowhere in the text"


class Silent(Fake):
    """Writes nothing, and finds every option alike."""

    def next(self, row: list[int]) -> Tensor:
        return torch.zeros(len(row))

    def write(self, prompts, n_tokens, sampling, stop_ids, is_done, beginning=None):
        return [Written([], True) for _ in prompts]


@pytest.mark.parametrize(("name", "n_pieces"), [("absent", 8), ("conflict", 4)])
def test_in_words_rows_at_a_depth_are_of_items_with_evidence_too(name: str, n_pieces: int) -> None:
    passes = Silent()
    for depth in (None, 0.5):
        task = words_of(open_task(name), Knobs(), length=1200, depth=depth)
        setting = Setting(length=1200, depth=depth)
        said = ask_prompts(passes, passes.tokens, task, setting, 8, batch_size=8)
        rows = {x.metric: x.value for x in rows_of_said(said, task, setting, run="r")}
        there = [s.index for s in said if s.prompt.evidence]
        if depth is None:
            assert len(said) == rows["items"] == 8 and len(there) < 8 and rows["answer_floor"] == 0.5
            assert rows["choice_floor"] == 0.5 and ("abstention_recall" in rows) == (name == "absent")
        else:
            assert len(there) == len(said) == rows["items"] > 0 and rows["answer_floor"] == pytest.approx(1 / n_pieces)
            assert rows["choice_floor"] < 0.5 and "abstention_precision" not in rows


def test_what_is_asked_beside_is_neither_looked_into_nor_among_the_worst() -> None:
    r = run("select")
    model = build_model(r.model)
    _, items = asked(model, r, fingerprint="f", step=1, is_whole=True)
    items = [replace(x, score=-99.0) if "is_beside" in x.factors else x for x in items]
    seen = with_inside(model, r, with_strips(model, r, items))
    assert [x.item for x in seen if "inside" in x.factors] == list(range(22))
    kept = [x.item for x in seen if "strips" in x.factors]
    assert len(kept) == 16 and max(kept) < 22
