import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import attempt_path, make_study, plant_attempt, set_age, wait_until

from gatelab.store import RunFolder, StoreError, read_json, write_json
from gatelab.study import ledger
from gatelab.study.executor import Ended
from gatelab.study.place import FOLDER, check_place

HOUR = 3600.0
KILLED = Ended("me", None, "SIGKILL")


def test_state_follows_done_then_lease_then_last_outcome(run: RunFolder) -> None:
    assert ledger.state_of(run) == "planned"
    mine = ledger.claim(run, "me")
    assert mine is not None and ledger.state_of(run) == "running"
    for outcome in ("failed", "oom", "timeout", "stopped", "disk-full", "lost"):
        ledger.end(run, mine, outcome, message="why")
        assert ledger.state_of(run) == outcome
        mine = ledger.claim(run, "me")
        assert mine is not None
    assert ledger.reset(run) and ledger.state_of(run) == "planned"
    run.mark_done("diverged", {})
    assert ledger.state_of(run) == "diverged"


def test_a_done_run_cannot_be_claimed(run: RunFolder) -> None:
    run.mark_done("done", {})
    assert ledger.claim(run, "me") is None
    assert ledger.last_attempt(run) is None


def test_a_run_that_somebody_had_since_its_state_was_read_cannot_be_claimed_for_that_state(run: RunFolder) -> None:
    plant_attempt(run, "failed")
    assert ledger.claim(run, "me", known=0) is None
    assert ledger.claim(run, "me", known=1).number == 2


def test_a_living_owner_keeps_its_run(run: RunFolder) -> None:
    assert ledger.claim(run, "me") is not None
    assert ledger.claim(run, "you") is None


def test_release_lets_the_next_one_in_under_the_next_number(run: RunFolder) -> None:
    first = ledger.claim(run, "me", micro_batch=4)
    ledger.end(run, first, "stopped", message="asked to stop", exit_code=6)
    second = ledger.claim(run, "you")
    assert (second.number, second.owner) == (2, "you")
    kept = run.attempts()[0]
    assert (kept["outcome"], kept["message"], kept["micro_batch"], kept["exit_code"]) == (
        "stopped",
        "asked to stop",
        4,
        6,
    )
    assert kept["ended"] >= kept["started"]


def test_a_dead_process_of_this_machine_loses_its_lease_at_once(run: RunFolder) -> None:
    host, machine = ledger.here()
    child = subprocess.Popen([sys.executable, "-c", ""])
    wait_until(lambda: ledger.process_start(child.pid) is None, "the child is a zombie")
    plant_attempt(run, host=host, machine=machine, pid=child.pid, process="1")
    assert ledger.state_of(run) == "lost"
    assert ledger.claim(run, "me").number == 2
    assert run.attempts()[0]["outcome"] == "lost"
    child.wait()


def test_a_reused_pid_is_not_taken_for_the_owner(run: RunFolder) -> None:
    host, machine = ledger.here()
    facts = {"host": host, "machine": machine, "pid": os.getpid()}
    plant_attempt(run, **facts, process=ledger.process_start(os.getpid()))
    assert ledger.state_of(run) == "running"
    plant_attempt(run, **facts, process="another start time")
    assert ledger.state_of(run) == "lost"


@pytest.mark.parametrize("age_s", [HOUR, -HOUR], ids=["slept", "future"])
def test_an_owner_of_this_machine_is_judged_by_its_process_not_by_its_beats(run: RunFolder, age_s: float) -> None:
    mine = ledger.claim(run, "me")
    set_age(attempt_path(run, mine.number), age_s)
    assert ledger.state_of(run) == "running"


@pytest.mark.parametrize(("age_s", "state"), [(0.0, "running"), (HOUR, "lost"), (-HOUR, "lost")])
def test_a_foreign_owner_is_judged_by_its_beats(run: RunFolder, age_s: float, state: str) -> None:
    attempt = plant_attempt(run)
    set_age(attempt_path(run, attempt.number), age_s)
    assert ledger.state_of(run) == state
    assert (ledger.claim(run, "me") is None) == (state == "running")


@pytest.mark.parametrize("skew_s", [HOUR, -HOUR])
def test_the_clock_of_the_judge_does_not_matter(run: RunFolder, skew_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_attempt(run)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + skew_s)
    assert ledger.state_of(run) == "running"


def test_judging_leaves_no_file_behind(run: RunFolder) -> None:
    plant_attempt(run)
    before = sorted(os.listdir(run.path / "attempts"))
    ledger.state_of(run)
    assert sorted(os.listdir(run.path / "attempts")) == before


_CLAIMANT = """
import sys, time
from pathlib import Path
from gatelab.store import RunFolder
from gatelab.study import ledger
from gatelab.study.place import check_place
run, name = RunFolder(Path(sys.argv[1])), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
attempt = ledger.claim(run, name)
print(attempt.number if attempt else 0, flush=True)
sys.stdin.readline()
"""


def test_of_several_claimants_of_a_dead_owners_run_exactly_one_wins(run: RunFolder) -> None:
    set_age(attempt_path(run, plant_attempt(run).number), HOUR)
    command = [sys.executable, "-c", _CLAIMANT, str(run.path)]
    claimants = [
        subprocess.Popen([*command, f"claimant {i}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for i in range(5)
    ]
    assert [c.stdout.readline() for c in claimants] == ["ready\n"] * 5
    for claimant in claimants:
        claimant.stdin.write("go\n")
        claimant.stdin.flush()
    won = [int(c.stdout.readline()) for c in claimants]
    assert sorted(won) == [0, 0, 0, 0, 2]
    assert ledger.last_attempt(run).owner == f"claimant {won.index(2)}"
    for claimant in claimants:
        claimant.communicate("leave\n")


def test_a_slow_claimant_cannot_displace_the_one_that_was_faster(run: RunFolder) -> None:
    dead = plant_attempt(run)
    slow = ledger._begin(dead, "slow", "running", driver=None)
    set_age(attempt_path(run, dead.number), HOUR)
    assert ledger.claim(run, "fast") is not None
    assert not ledger._publish(run, slow)
    assert ledger.last_attempt(run).owner == "fast"


def test_a_displaced_owner_hears_it_at_its_next_beat(run: RunFolder) -> None:
    mine = ledger.claim(run, "me")
    assert ledger.beat(run, mine)
    plant_attempt(run)
    assert not ledger.beat(run, mine)


def test_a_displaced_owner_does_not_overwrite_how_its_attempt_was_closed(run: RunFolder) -> None:
    mine = ledger.claim(run, "me")
    ledger.conclude(run, "me", "lost", KILLED, message="the worker was ended by SIGKILL", known=0)
    ledger.end(run, mine, "failed", message="too late")
    assert run.attempts()[0]["outcome"] == "lost"


def test_a_beat_is_a_touch_by_the_file_systems_clock(run: RunFolder) -> None:
    mine = ledger.claim(run, "me")
    path = attempt_path(run, mine.number)
    set_age(path, HOUR)
    ledger.beat(run, mine)
    assert abs(FOLDER.age_s(path)) < ledger.STALE_S


def test_the_driver_closes_an_attempt_that_was_left_open(run: RunFolder) -> None:
    ledger.claim(run, "me")
    ledger.conclude(run, "me", "lost", KILLED, message="the worker was ended by SIGKILL", known=0)
    (attempt,) = run.attempts()
    assert (attempt["outcome"], attempt["signal"], attempt["exit_code"]) == ("lost", "SIGKILL", None)


def test_the_driver_records_a_task_that_never_began(run: RunFolder) -> None:
    ledger.conclude(run, "me", "failed", Ended("me", 1, None), message="exit code 1", known=0)
    (attempt,) = run.attempts()
    assert (attempt["owner"], attempt["outcome"], attempt["exit_code"]) == ("me", "failed", 1)


def test_an_owner_killed_after_the_result_is_not_called_lost(run: RunFolder) -> None:
    ledger.claim(run, "me")
    run.mark_done("diverged", {})
    ledger.conclude(run, "me", "lost", KILLED, message="the worker was ended by SIGKILL", known=0)
    assert run.attempts()[0]["outcome"] == "running" and not ledger.close_done(run)  # it lives: it is this process
    path = attempt_path(run, 1)
    write_json(path, read_json(path) | {"process": "another"})
    assert ledger.close_done(run) and run.attempts()[0]["outcome"] == "diverged"


def test_the_driver_leaves_alone_what_somebody_else_had_meanwhile(run: RunFolder) -> None:
    plant_attempt(run, "failed")
    ledger.conclude(run, "me", "lost", KILLED, message="", known=0)
    assert [a["owner"] for a in run.attempts()] == ["other"]


def test_resets_forget_for_the_policies_and_keep_the_record(run: RunFolder) -> None:
    plant_attempt(run, "oom")
    ledger.reset(run)
    plant_attempt(run, "lost")
    assert [a.outcome for a in ledger.attempts_since_reset(run)] == ["lost"]
    assert [a["outcome"] for a in run.attempts()] == ["oom", "reset", "lost"]


def test_only_the_owner_notes_where_it_resumed(run: RunFolder) -> None:
    ledger.note_resume(run, 120)  # a plain call without a worker: there is no attempt to write it into
    assert run.attempts() == []
    ledger.claim(run, "me")
    ledger.note_resume(run, 120)
    assert run.attempts()[-1]["resumed_from_step"] == 120
    plant_attempt(run)
    with pytest.raises(ValueError, match="not leased by this process"):
        ledger.note_resume(run, 130)


def test_a_claim_removes_what_killed_writers_left_half_written(run: RunFolder) -> None:
    halves = [run.path / ".progress.json.0a1b2c3d.tmp", run.path / "attempts" / ".0001.json.dead.tmp"]
    kept = run.path / ".run.json.0a1b2c3d.tmp"
    for path in [*halves, kept]:
        path.write_text("{")
    assert ledger.claim(run, "me") is not None
    assert not any(p.exists() for p in halves) and kept.exists()


def test_a_claim_on_a_full_disk_leaves_nothing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="No space left"):
        ledger.claim(run, "me")
    assert os.listdir(run.path / "attempts") == []


@pytest.mark.parametrize("call", ["link", "replace"])
def test_a_place_without_links_or_renames_is_refused_in_one_sentence(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str(target))

    check_place(tmp_path / "new" / "study")
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(StoreError, match=r"new/study: leases need a file system with hard links and renames"):
        check_place(tmp_path / "new" / "study")
    assert os.listdir(tmp_path) == []


def test_a_newer_version_may_add_to_an_attempt(run: RunFolder) -> None:
    path = attempt_path(run, plant_attempt(run, "failed").number)
    path.write_text(path.read_text().replace("{", '{"new": 1,', 1))
    assert ledger.state_of(run) == "failed" and read_json(path)["new"] == 1


def test_the_study_layer_starts_without_torch(tmp_path: Path) -> None:
    modules = "ledger, executor, worker, local, preload, drive, remaining"
    code = f"import sys; from gatelab.study import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_thousand_finished_runs_are_told_without_their_attempts(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", 1)
    (_, run) = next(folder.planned())
    run.mark_done("done", {})
    (run.path / "attempts" / "0001.json").write_text("unreadable, and not needed")
    assert ledger.state_of(run) == "done"
