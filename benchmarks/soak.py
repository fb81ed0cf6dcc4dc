"""A study on two slots whose workers and drivers are killed at random, and the audit of what it leaves.

    python benchmarks/soak.py [--minutes 15] [--runs 200] [--seed 0] [--pace 3] [--results FOLDER]

Goal: every run ends done or rightly failed, none twice, none lost; rows and weights are those of undisturbed runs to the byte; no
process, half-written file, lease, shared memory or semaphore is left. Exit status 1 where the audit finds something.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import audit
from chaos import Chaos
from soak_study import DAMAGED, ENDS

from gatelab import lab
from gatelab.config import parse_assignments
from gatelab.store import RunFolder, StudyFolder, write_json, write_text
from gatelab.study import ledger
from gatelab.study.leftovers import OLD_S

GATELAB = str(Path(sys.executable).with_name("gatelab"))
STUDY = Path(__file__).with_name("soak_study.py")
A_SEED = 20  # runs
NAME = "soak_cpu_2026-11"


class Soak:
    """Its folders and processes.

    Args:
        changes: words of the command line, for all runs.
    """

    def __init__(self, scratch: Path, changes: list[str]):
        self.scratch, self.mark, self._changes = scratch, f"GATELAB_SOAK={scratch}", changes
        self.temporary, sources = scratch / "tmp", scratch / "sources" / DAMAGED
        self.temporary.mkdir()
        sources.mkdir(parents=True)
        (sources / "weights.safetensors").write_bytes(b"no weights")
        RunFolder(sources).mark_done("done", {"steps": 0})
        (scratch / "drivers").mkdir()

    def plan(self, name: str, seeds: list[int]) -> StudyFolder:
        """A study with these seeds, ready to be driven; the damaged run lies there."""
        words = {**parse_assignments(self._changes), "seed": seeds}
        return lab.save_plan(lab.plan(str(STUDY), words), self.scratch / name, beside=self.scratch / "sources")

    def start(self, folder: StudyFolder, number: int) -> "subprocess.Popen[bytes]":
        """A driver; what it says is kept."""
        seeds = ",".join(map(str, folder.study()["seeds"]))
        words = [GATELAB, "run", str(STUDY), "--out", str(folder.path), *self._changes, f"seed=[{seeds}]"]
        said = self.scratch / "drivers" / f"{folder.path.name}-{number:03d}.txt"
        with said.open("wb") as file:
            # A session of its own: a Ctrl-C here is not one there.
            return subprocess.Popen(words, stdout=file, stderr=file, env=self.environ(), start_new_session=True)

    def environ(self) -> dict[str, str]:
        name, _, value = self.mark.partition("=")
        return os.environ | {name: value, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}

    def crashes(self) -> list[str]:
        """Drivers that ended with a traceback, which is a mistake of ours whatever was killed."""
        said = {path.stem: path.read_text(errors="replace") for path in (self.scratch / "drivers").iterdir()}
        return [f"driver {name}: {text.strip().splitlines()[-1]}" for name, text in said.items() if _is_crash(text)]


def _is_crash(said: str) -> bool:
    """A Ctrl-C while Python still loads the command is nobody's to catch."""
    is_early = said.endswith("KeyboardInterrupt\n") and " in _status\n" not in said
    return "Traceback (most" in said and not is_early


def ends_of(folder: StudyFolder) -> audit.Ends:
    """What each run must come to."""
    return {entry["fingerprint"]: ENDS.get(entry["cell"], "done") for entry, _ in folder.planned()}


def soak(scratch: Path, *, runs: int, seconds: float, pace_s: float, seed: int, changes: list[str]) -> dict[str, Any]:
    """Carry out a sample undisturbed, all of it disturbed, and audit; returns what the page shows."""
    before = audit.shared()
    made = Soak(scratch, changes)
    n_seeds = max(1, round(runs / A_SEED))
    seeds = list(range(n_seeds))
    whole, folder = made.plan("whole", sorted({0, n_seeds - 1})), made.plan("soaked", seeds)
    start = time.monotonic()
    made.start(whole, 0).wait()
    undisturbed_s = time.monotonic() - start
    ends = ends_of(folder)

    def is_over() -> bool:
        return not any(audit.wrong_ends(folder, ends))

    look = [GATELAB, "status", str(folder.path), "--json"]
    chaos = Chaos(folder, lambda number: made.start(folder, number), look, made.mark, seed)
    start = time.monotonic()
    chaos.act(seconds, pace_s, is_over)
    disturbed_s, n_ended = time.monotonic() - start, len(ends) - sum(1 for _ in audit.wrong_ends(folder, ends))
    chaos.calm(is_over)
    took_s = time.monotonic() - start
    left = [*audit.left_in_folder(folder), *audit.leases_left(folder)]
    for half in audit.halves(folder):
        os.utime(half, (time.time() - 2 * OLD_S,) * 2)  # drivers leave alone what another may be writing just now
    made.start(folder, chaos.n_drivers + 1).wait()
    time.sleep(2)  # for a server that reaped the last worker to leave
    sample = list(whole.planned())
    checks = {
        "the undisturbed sample ended as it must": [*audit.wrong_ends(whole, ends_of(whole))],
        "every run ended as it must": [*audit.wrong_ends(folder, ends)],
        "no run was carried out twice": [*audit.done_twice(folder)],
        "every step and look has its rows once": [*audit.bad_rows(folder)],
        f"{len(sample)} runs are to the byte as undisturbed": [*audit.differing(folder, whole)],
        "no process is left": [*audit.orphans(made.mark)],
        "no half-written file or checkpoint is left": [*audit.left_in_folder(folder)],
        "every attempt is closed, in order": [*audit.leases_left(folder)],
        "no temporary file, shared memory or semaphore is left": [*audit.left_outside(made.temporary, before)],
        "no driver ended with a traceback, but by Ctrl-C as its Python began": made.crashes(),
        "no reader failed": chaos.failed_readers,
    }
    return {
        "runs": len(ends), "seed": seed, "pace_s": pace_s, "undisturbed_s": round(undisturbed_s, 1), "sample": len(sample),
        "disturbed_s": round(disturbed_s, 1), "took_s": round(took_s, 1), "ended": n_ended, "drivers": chaos.n_drivers,
        "acts": dict(chaos.done), "left": left, "load": [round(x, 1) for x in os.getloadavg()], **_attempts(folder),
        "checks": checks,
    }  # fmt: skip


def _attempts(folder: StudyFolder) -> dict[str, Any]:
    """How the runs came to their ends."""
    attempts = [run.attempts() for _, run in folder.planned()]
    states = Counter(ledger.state_of(run) for _, run in folder.planned())
    return {
        "states": dict(states),
        "outcomes": dict(Counter(a["outcome"] for of_run in attempts for a in of_run).most_common()),
        "most_attempts": max(map(len, attempts)),
        "tried_again": sum(len(of_run) > 1 for of_run in attempts),
        "resumed": sum(any(a["resumed_from_step"] for a in of_run) for of_run in attempts),
    }


def page(found: dict[str, Any], command: str) -> str:
    """The results as a page."""
    acts = "\n".join(f"| {name} | {n} |" for name, n in sorted(found["acts"].items(), key=lambda a: -a[1]))
    checks = "\n".join(
        f"| {name} | {f'{len(problems)} wrong, such as {problems[0]}' if problems else 'yes'} |"
        for name, problems in found["checks"].items()
    )
    n = found
    load = ", ".join(map(str, n["load"]))
    left = f", such as {n['left'][0]}" if n["left"] else ""
    return f"""# A soak: {n["runs"]} runs on two slots whose workers and drivers are killed, 2026-11

`{command}`, torch {version("torch")}.
Two CPU cores with other work on them (load {load} at the end), one thread a process. {n["took_s"]:.0f} s,
{n["disturbed_s"]:.0f} of them with something every {n["pace_s"]:g} s on average, or as soon after as it could be done, at whose end
{n["ended"]} runs had ended; the others were then driven to theirs. {n["sample"]} of the runs took {n["undisturbed_s"]:.0f} s
undisturbed, page and all. {n["drivers"]} drivers were started.

Runs: {_told(n["states"])}. Attempts: {_told(n["outcomes"])}. {n["tried_again"]} runs took more than one, at most
{n["most_attempts"]}; {n["resumed"]} went on from a checkpoint. Before the command was given a last time, when all had ended,
{len(n["left"])} half-written files, checkpoints and open attempts of killed processes were left{left}.

| what was done | times |
|---|---|
{acts}

| what the audit asks | |
|---|---|
{checks}
"""


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.items())


def main() -> int:
    """Soak, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15.0, help="of chaos; then the study is driven to its end")
    parser.add_argument("--runs", type=int, default=200, help=f"a multiple of {A_SEED}")
    parser.add_argument("--seed", type=int, default=0, help="of the chaos")
    parser.add_argument("--pace", type=float, default=3.0, help="mean seconds between two acts")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    parser.add_argument("--keep", type=Path, help="a new folder for the studies, which then stays")
    parser.add_argument("changes", nargs="*", help="key=value words for all runs")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if given.keep is not None:
        given.keep.mkdir(parents=True)
    place = tempfile.TemporaryDirectory(prefix="gatelab-soak-") if given.keep is None else nullcontext(given.keep)
    with place as at:
        found = soak(
            Path(at).resolve(),
            runs=given.runs,
            seconds=60 * given.minutes,
            pace_s=given.pace,
            seed=given.seed,
            changes=given.changes,
        )
    command = f"python benchmarks/soak.py --minutes {given.minutes:g} --runs {given.runs} --seed {given.seed} --pace {given.pace:g}"
    text = page(found, " ".join([command, *given.changes]))
    print(text)
    given.results.mkdir(parents=True, exist_ok=True)
    write_text(given.results / f"{NAME}.md", text)
    write_json(given.results / f"{NAME}.json", found)
    return 1 if any(found["checks"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
