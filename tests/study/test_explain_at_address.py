"""The causes of an anomaly of a study on an object store: cards name its address, and rows of edits are its own."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from planted_store import plant

from gatelab import lab
from gatelab.analysis.run_digest import carry_out
from gatelab.config import Execution
from gatelab.store import StoreError, StudyFolder
from gatelab.study.carry_up import Carrier
from gatelab.study.plan import make_plan
from gatelab.study.study import Arm, Study

ADDRESS = "planted://bucket/study"
BASE = tiny.run(steps=2)
STUDY = Study(
    name="small",
    question="?",
    cells={"toy": BASE.model_copy(update={"model": BASE.model.model_copy(update={"gate": ()})})},
    arms=(Arm("none", {}), Arm("gated", {"model.gate": "sdpa-headwise"})),
    seeds=2,
)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of the store with the study, all of whose runs a worker has carried out and up."""
    place = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patched:
        for name, value in plant(place).items():
            patched.setenv(name, value)
        lab.save_plan(make_plan(STUDY), ADDRESS)
        worker = StudyFolder.at(ADDRESS, place / "worker")
        worker.refresh()
        for _, run in worker.planned():
            carry_out([run], Execution(), should_stop=lambda: False)
            Carrier(run, run.objects, 1).finish()
        yield place / "store" / "bucket" / "study"


@pytest.fixture
def there(bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyFolder:
    """As a machine sees it that has never seen it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return StudyFolder.open(ADDRESS)


def to_do(folder: StudyFolder) -> list[str]:
    return [word for card in lab.explain(folder, "toy") for d in card.decisions for word in d.to_do]


def test_cards_name_the_address_and_nothing_of_the_mirror(there: StudyFolder):
    words = to_do(there)
    assert not [word for word in words if str(there.path) in word]
    commands = {word.partition("    #")[0] for word in words if word.startswith("gatelab find")}
    assert commands == {f"gatelab find {ADDRESS} --explain toy --edit"}
    # Neither the weights nor the rows of edits of a mirror are the study's.
    assert not [word for word in words if word.startswith("gatelab probe")]
    assert any(f"--out {ADDRESS}-looks && gatelab find {ADDRESS}-looks --explain toy" in word for word in words)


def test_a_page_reads_what_the_worker_left(there: StudyFolder):
    assert len(list(there.path.glob("runs/*/digest-*.ndjson"))) == 4


def test_rows_of_edits_are_the_studys_and_are_seen_from_another_machine(
    there: StudyFolder, bucket: Path, tmp_path: Path
):
    assert not list(there.path.glob("runs/*/weights.safetensors"))
    assert lab.edit(there, "toy", [0]) == 2
    rows = [json.loads(line) for line in (bucket / lab.FILE).read_text().splitlines()]
    assert {row["run"] for row in rows} == {e["fingerprint"] for e, _ in there.planned() if e["seed"] == 0}
    os.environ["XDG_CACHE_HOME"] = str(tmp_path / "another")
    another = StudyFolder.open(ADDRESS)
    assert (another.path / lab.FILE).read_bytes() == (bucket / lab.FILE).read_bytes()
    assert lab.edit(another, "toy", [0]) == 0
    assert lab.edit(another, "toy") == 2
    assert not [word for word in to_do(another) if word.startswith(f"gatelab find {ADDRESS} ")]
    there.refresh(None)
    assert len((there.path / lab.FILE).read_text().splitlines()) == 2 * len(rows)


def test_what_cannot_be_explained_is_told_of_the_address(there: StudyFolder):
    with pytest.raises(StoreError, match=f"no finished run of it here to edit; `gatelab status {ADDRESS}` lists them"):
        lab.edit(there, "toy", [7])
    with pytest.raises(StoreError, match="no such cell; expected toy"):
        lab.explain(there, "nope")
    with pytest.raises(StoreError, match=f"{ADDRESS}: no claims are registered; `gatelab find {ADDRESS} --register`"):
        lab.confirm(there)
