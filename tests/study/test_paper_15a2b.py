"""The paper's mixture of experts as a study: the numbers that are printed of it, and that its steps can be laid out."""

import pytest

from gatelab import lab
from gatelab.config.presets import PRESETS
from gatelab.models.ladder import PRINTED_EXCEPTIONS
from gatelab.models.sizes import count_parameters
from gatelab.study.study import load_study
from gatelab.train.planner import Job, best_step

STUDY = load_study("paper-15a2b")
# Table 1, in millions; of row 4 what its formula gives.
ADDED = {
    "none": 0, "kv8": 50, "q48": 201, "more-experts": 453, "g1-elementwise": 201, "g2-elementwise": 25, "g3-elementwise": 25,
    "g4-elementwise": 201, "g5": 100, "g1-headwise": 1.6, "g2-headwise": 0.2, "g1-shared": 201, "g2-shared": 25,
    "g1-additive-silu": 201, "g1-silu": 201,
}  # fmt: skip


@pytest.fixture(scope="module")
def jobs() -> dict[str, Job]:
    return {name.removeprefix("15a2b / "): job for name, job in lab.step_jobs(STUDY).items()}


def test_arms_are_the_rows_of_table_1_on_top_of_the_baseline(jobs: dict[str, Job]):
    assert list(jobs) == list(ADDED)
    base = count_parameters(jobs["none"].model)
    for name, job in jobs.items():
        assert (count_parameters(job.model) - base) / 1e6 == pytest.approx(ADDED[name], rel=0.02, abs=0.05)
        preset = f"paper/{'base' if name == 'none' else name}"
        assert preset in PRINTED_EXCEPTIONS or PRESETS[preset].printed == ADDED[name]
    sources = [PRESETS[f"paper/{name}"].source for name in list(ADDED)[1:]]
    assert [s.rpartition("row ")[2] for s in sources] == [str(n) for n in range(2, 16)]


def test_a_run_is_100_000_steps_of_1024_sequences_from_2e3_to_3e5(jobs: dict[str, Job]):
    run = STUDY.cells["15a2b"]
    assert (run.train.steps, run.train.batch_size, run.train.seq_len) == (100_000, 1024, 4096)
    assert run.optim.warmup * run.train.steps == 1000
    assert (run.optim.schedule, run.optim.lr, run.optim.lr * run.optim.final) == ("cosine", 2e-3, pytest.approx(3e-5))
    assert {(j.tokens, j.context) for j in jobs.values()} == {(1024 * 4096, 4096)}


@pytest.mark.parametrize("arm", ["none", "g1-elementwise"])
def test_its_steps_fit_from_8_to_1024_gpus_and_go_faster_on_more(arm: str, jobs: dict[str, Job]):
    plans = [best_step(jobs[arm], 8 << i) for i in range(8)]
    assert all(p.fits and not p.recompute for p in plans)
    assert (speeds := [p.tokens_per_s for p in plans]) == sorted(speeds)


@pytest.mark.parametrize("arm", ADDED)
def test_every_arm_can_be_laid_out(arm: str, jobs: dict[str, Job]):
    assert best_step(jobs[arm], 64, device="h200").fits
