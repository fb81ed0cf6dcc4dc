"""Two commands that plan one study at an address of an object store at once: one of them begins or extends it, and the other finds
it so, goes on with both or says why not."""

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from planted_store import PlantedStore, plant

from gatelab import lab
from gatelab.config import BigramBackcopy, ModelConfig, Run, TrainConfig
from gatelab.mirror import Mirror
from gatelab.store import StoreError, StudyFolder
from gatelab.study.plan import make_plan
from gatelab.study.study import Arm, Study

ADDRESS = "planted://bucket/study"
FIRST = Study(
    name="first",
    question="?",
    cells={
        "toy": Run(
            model=ModelConfig(d_model=16, n_layers=1, n_heads=2, mlp="relu", d_ff=40),
            data=BigramBackcopy(vocab_size=16),
            train=TrainConfig(tokens=1000, batch_size=2, seq_len=8),
        )
    },
    arms=(Arm("none", {}), Arm("headwise", {"model.gate": "sdpa-headwise"})),
    seeds=2,
)
OTHER = replace(FIRST, name="other", seeds=3)


@pytest.fixture(autouse=True)
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in plant(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path / "store" / "bucket" / "study"


def on_machine(name: str) -> None:
    """Go on as another machine, whose mirror is its own."""
    os.environ["XDG_CACHE_HOME"] = str(Path(os.environ["SIGNALS"]).parent / name)


def begin(study: Study) -> StudyFolder:
    return lab.save_plan(make_plan(study), ADDRESS)


def just_before(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Do something between the moment that a command has seen that there is no study and the one that it writes its own."""
    push = Mirror.push

    def later(self: Mirror) -> None:
        monkeypatch.setattr(Mirror, "push", push)
        on_machine("two")
        do()
        on_machine("one")
        self.push()

    on_machine("one")
    monkeypatch.setattr(Mirror, "push", later)


def objects(bucket: Path) -> dict[str, bytes]:
    return {p.relative_to(bucket).as_posix(): p.read_bytes() for p in bucket.rglob("*") if p.is_file()}


def seeds(folder: StudyFolder) -> dict[str, list[int]]:
    """Of each arm in the plan."""
    found: dict[str, list[int]] = {}
    for entry, _ in folder.planned():
        found.setdefault(entry["arm"], []).append(entry["seed"])
    return {arm: sorted(of_arm) for arm, of_arm in found.items()}


def names(folder: StudyFolder) -> set[str]:
    return {entry["fingerprint"] for entry, _ in folder.planned()}


def test_who_comes_second_with_another_study_is_refused_and_changes_nothing(bucket, monkeypatch):
    there = {}
    just_before(monkeypatch, lambda: (begin(OTHER), there.update(objects(bucket))))
    with pytest.raises(StoreError) as refused:
        begin(FIRST)
    assert str(refused.value) == f"--out {ADDRESS}: holds the study 'other', not 'first'; name another folder"
    assert objects(bucket) == there and json.loads(there["study.json"])["name"] == "other"
    # Its mirror is that of the other's study, and of nothing else.
    assert StudyFolder.open(ADDRESS).study()["name"] == "other"


def test_who_comes_second_with_the_same_study_goes_on_with_it(bucket, monkeypatch):
    just_before(monkeypatch, lambda: begin(FIRST))
    mine = begin(FIRST)
    on_machine("three")
    assert names(mine) == names(StudyFolder.open(ADDRESS)) and len(names(mine)) == 4
    assert {n.split("/")[1] for n in objects(bucket) if n.startswith("runs/")} == names(mine)


def test_who_comes_second_with_other_seeds_keeps_those_of_the_first(bucket, monkeypatch):
    def finish() -> None:
        run = next(run for _, run in begin(replace(FIRST, seeds=(7,))).planned())
        (bucket / "runs" / run.fingerprint / "done.json").write_text('{"status": "done", "steps": 1}')

    just_before(monkeypatch, finish)
    mine = begin(FIRST)
    on_machine("three")
    assert seeds(StudyFolder.open(ADDRESS)) == seeds(mine) == {"none": [0, 1, 7], "headwise": [0, 1, 7]}


@pytest.fixture
def begun(bucket: Path) -> bytes:
    """The study's first plan, of two seeds, which both machines know."""
    for name in ("two", "one"):
        on_machine(name)
        begin(FIRST)
    return objects(bucket)["study.json"]


def test_of_two_that_extend_at_once_the_second_keeps_what_the_first_has_planned(bucket, begun, monkeypatch):
    just_before(monkeypatch, lambda: begin(replace(FIRST, seeds=(0, 1, 7, 8))))
    mine = begin(replace(FIRST, seeds=3))
    on_machine("three")
    there = StudyFolder.open(ADDRESS)
    assert seeds(there) == seeds(mine) == {"none": [0, 1, 2, 7, 8], "headwise": [0, 1, 2, 7, 8]}
    assert there.study()["seeds"] == [0, 1, 2, 7, 8]
    held = objects(bucket)
    assert held["study.json"] == begun and sorted(n for n in held if n.startswith("plans/")) == [
        "plans/0002.json", "plans/0003.json",
    ]  # fmt: skip
    assert {n.split("/")[1] for n in held if n.startswith("runs/")} == names(mine)
    # The other machine sees it too, and the same command again plans nothing new.
    on_machine("two")
    assert seeds(begin(replace(FIRST, seeds=(0, 1, 2, 7, 8)))) == seeds(mine)


def test_who_would_drop_what_another_has_planned_meanwhile_is_refused_and_changes_nothing(bucket, begun, monkeypatch):
    more = replace(FIRST, arms=(*FIRST.arms, Arm("value", {"model.gate": "value-headwise"})))
    there = {}
    just_before(monkeypatch, lambda: (begin(more), there.update(objects(bucket))))
    with pytest.raises(StoreError) as refused:
        begin(replace(FIRST, seeds=3))
    assert str(refused.value) == (
        f"--out {ADDRESS}: another command planned 2 runs there just now that this plan does not have (such as toy/value/0); name"
        " another --out, or give the same command again to go on without them"
    )
    assert objects(bucket) == there
    assert seeds(begin(replace(FIRST, seeds=3))) == {"none": [0, 1, 2], "headwise": [0, 1, 2]}


def test_one_after_the_other_the_last_plan_stands(bucket, begun):
    begin(replace(FIRST, seeds=4))
    on_machine("two")
    begin(FIRST)
    on_machine("one")
    assert seeds(StudyFolder.open(ADDRESS)) == {"none": [0, 1], "headwise": [0, 1]}


def test_an_extension_whose_answer_was_lost_is_ones_own(bucket, begun, monkeypatch):
    monkeypatch.setattr(PlantedStore, "lost", ["plans/0002.json$"])
    begin(replace(FIRST, seeds=3))
    assert seeds(StudyFolder.open(ADDRESS))["none"] == [0, 1, 2]
    assert [n for n in objects(bucket) if n.startswith("plans/")] == ["plans/0002.json"]


def test_a_command_that_only_writes_what_it_read_is_told_of_an_extension(bucket, begun):
    folder = StudyFolder.open(ADDRESS)
    study = folder.study()
    StudyFolder.create(folder.path, {**{k: v for k, v in study.items() if k != "schema"}, "question": "another"})
    on_machine("two")
    begin(replace(FIRST, seeds=3))
    with pytest.raises(StoreError, match="its plan was extended there just now; run the same command again"):
        folder.push()
    folder.refresh()
    assert folder.study()["question"] == "?" and seeds(folder)["none"] == [0, 1, 2]


def test_the_tenth_thousandth_plan_comes_after_the_one_before(bucket, begun):
    folder = StudyFolder.open(ADDRESS)
    for number in (9999, 10000):
        study = folder.study() | {"question": f"{number}"}
        (bucket / "plans").mkdir(exist_ok=True)
        (bucket / "plans" / f"{number}.json").write_text(json.dumps(study))
    assert StudyFolder.open(ADDRESS).study()["question"] == "10000"


def test_what_was_declared_with_the_plan_is_the_firsts(bucket, monkeypatch):
    just_before(monkeypatch, lambda: begin(replace(FIRST, seeds=(7, 8))))
    begin(FIRST)
    assert json.loads(objects(bucket)["screen.json"])["seeds"] == [7, 8]


def test_a_beginning_whose_answer_was_lost_is_ones_own(bucket, monkeypatch):
    monkeypatch.setattr(PlantedStore, "lost", ["study.json$"])
    assert len(names(begin(FIRST))) == 4


def test_of_two_of_one_machine_at_once_one_begins(bucket):
    said: list[str] = []
    together = threading.Barrier(2)

    def start(study: Study) -> None:
        plan = make_plan(study)
        together.wait()
        try:
            said.append(lab.save_plan(plan, ADDRESS).study()["name"])
        except StoreError as error:
            said.append(str(error))

    threads = [threading.Thread(target=start, args=(study,)) for study in (FIRST, OTHER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = json.loads(objects(bucket)["study.json"])["name"]
    lost = "other" if won == "first" else "first"
    assert set(said) == {won, f"--out {ADDRESS}: holds the study {won!r}, not {lost!r}; name another folder"}
    folder = StudyFolder.open(ADDRESS)
    assert {n.split("/")[1] for n in objects(bucket) if n.startswith("runs/")} == names(folder)
    assert len(names(folder)) == {"first": 4, "other": 6}[won]


def test_a_command_that_only_writes_what_it_read_is_told_of_a_study_that_was_begun(bucket):
    folder = StudyFolder.at(ADDRESS)
    folder.check()
    StudyFolder.create(folder.path, {"name": "mine", "plan": []})
    on_machine("two")
    begin(FIRST)
    with pytest.raises(StoreError, match="a study was begun there just now; run the same command again"):
        folder.push()
