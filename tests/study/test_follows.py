"""Cells that go on from the weights of others, carried out."""

from pathlib import Path

import tiny

from gatelab import lab
from gatelab.config import Execution, override
from gatelab.store import StudyFolder
from gatelab.study.study import Arm, Study

run = tiny.run(model=tiny.model(max_seq_len=8))
ARMS = (Arm("none", {"model.gate": "none"}), Arm("gated", {"model.gate": "sdpa-headwise-two_sigmoid-init=1"}))
study = Study(
    name="x",
    question="?",
    cells={"looked-at": override(run, {"train.tokens": 0}), "trained": run},
    arms=ARMS,
    seeds=1,
    match=None,
    follows={"looked-at": ("trained", "none")},
    execution=Execution(device="cpu", slots=2),
)


def losses(folder: StudyFolder) -> dict[tuple[str, str], float]:
    """The last held-out loss of each cell and arm."""
    return {(o.cell, o.arm): o.value for o in lab.outcomes(folder) if o.metric == "val_loss"}


def test_without_training_the_weights_are_those_of_the_source_and_a_gate_that_starts_open_changes_nothing(
    tmp_path: Path,
):
    folder, summary = lab.run(study, tmp_path / "out")
    assert summary.is_complete
    found = losses(folder)
    assert found["looked-at", "none"] == found["trained", "none"] == found["looked-at", "gated"]
    assert found["trained", "gated"] != found["trained", "none"]
