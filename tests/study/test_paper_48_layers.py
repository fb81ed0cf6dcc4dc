"""The paper's 48-layer models as a study: the numbers that are printed of them, and that their steps can be laid out."""

import pytest

from gatelab import lab
from gatelab.models.sizes import count_parameters
from gatelab.study.study import load_study
from gatelab.train.planner import Job, best_step

STUDY = load_study("paper-48-layers")
# Table 2, rows 5 to 14: highest rate, sequences a step, steps of the budget, and the arms that it has.
ROWS = {
    "400b": (4e-3, 1024, 95_367, ("none", "g1-elementwise", "g1-headwise")),
    "400b-8e-3": (8e-3, 1024, 95_367, ("none", "sandwich", "g1-elementwise")),
    "1t": (5.3e-3, 4096, 59_604, ("none", "g1-elementwise")),
    "1t-8e-3": (8e-3, 4096, 59_604, ("none", "g1-elementwise")),
}


@pytest.fixture(scope="module")
def jobs() -> dict[str, Job]:
    return lab.step_jobs(STUDY)


def test_runs_are_the_ten_rows_of_table_2(jobs: dict[str, Job]):
    assert {cell: tuple(arm.name for arm in STUDY.arms_of(cell)) for cell in STUDY.cells} == {
        cell: arms for cell, (*_, arms) in ROWS.items()
    }
    assert len(jobs) == 10
    for cell, (lr, batch, steps, _) in ROWS.items():
        run = STUDY.cells[cell]
        assert (run.optim.lr, run.train.batch_size, run.train.seq_len, run.train.steps) == (lr, batch, 4096, steps)
        assert run.optim.warmup * run.train.steps == pytest.approx(1000)
        assert (run.optim.schedule, run.optim.lr * run.optim.final) == ("cosine", pytest.approx(3e-5))
        assert {job.tokens for name, job in jobs.items() if name.startswith(f"{cell} / ")} == {batch * 4096}


def test_gates_are_paid_for_by_the_feed_forward_layers(jobs: dict[str, Job]):
    base = jobs["400b / none"].model
    assert base.d_ff == 4608 and count_parameters(base) == pytest.approx(1.71e9, rel=0.01)
    # A gate of q·D (or q) outputs takes so many rows of width d; each channel of SwiGLU has three.
    for arm, rows in {"g1-elementwise": 16 * 128, "g1-headwise": 16}.items():
        model = jobs[f"400b / {arm}"].model
        assert model.d_ff % 8 == 0 and abs(base.d_ff - rows / 3 - model.d_ff) <= 4
        assert count_parameters(model) == pytest.approx(count_parameters(base), rel=1e-3)
    assert jobs["400b-8e-3 / sandwich"].model.norm_position == "sandwich"


@pytest.mark.parametrize("name", ["400b / none", "400b / g1-elementwise", "1t / g1-elementwise"])
def test_its_steps_fit_from_8_to_1024_gpus_and_go_faster_on_more(name: str, jobs: dict[str, Job]):
    plans = [best_step(jobs[name], 8 << i) for i in range(8)]
    assert all(p.fits and not p.recompute for p in plans)
    assert (speeds := [p.tokens_per_s for p in plans]) == sorted(speeds)


def test_every_run_can_be_laid_out(jobs: dict[str, Job]):
    assert all(best_step(job, 64, device="h200").fits for job in jobs.values())
