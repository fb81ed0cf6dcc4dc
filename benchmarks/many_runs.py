"""How fast a study of a thousand finished runs is looked at: `gatelab status` and `report` as whole processes. Goal: 3 s each.

Ten small runs are really carried out, one a cell and arm; the others are copies of them under their own names, with every value of
their rows moved by about a hundredth of itself, since a page of equal runs would have nothing to say. Beside the rows lies what
workers keep of them; a folder of before they did has the rows alone. With `--keep DIR` the study stays there, and is measured
again without being made.
"""

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from gatelab import Arm, BigramBackcopy, Execution, ModelConfig, OptimConfig, ProbeConfig, Run, Study, TrainConfig, lab
from gatelab.analysis.run_digest import keep_digests
from gatelab.store import RunFolder, StudyFolder, write_json

GATELAB = str(Path(sys.executable).with_name("gatelab"))
SEEDS = 100
_toy = Run(
    model=ModelConfig(d_model=32, n_layers=2, n_heads=2),
    data=BigramBackcopy(),
    optim=OptimConfig(lr=2e-3),
    train=TrainConfig(tokens=8 * 64 * 200, batch_size=8, seq_len=64),
    probe=ProbeConfig(times=4),
)
_study = Study(
    name="many-runs",
    question="How long does a page of a thousand runs take?",
    cells={"wide": _toy, "deep": _toy.model_copy(update={"model": ModelConfig(d_model=32, n_layers=3, n_heads=2)})},
    arms=(
        Arm("none", {"model.gate": "none"}),
        Arm("sdpa-headwise", {"model.gate": "sdpa-headwise"}),
        Arm("sdpa-elementwise", {"model.gate": "sdpa-elementwise"}),
        Arm("value-headwise", {"model.gate": "value-headwise"}),
        Arm("sink-logit", {"model.softmax": "sink-logit"}, control=True),
    ),
    seeds=SEEDS,
    execution=Execution(device="cpu", slots=1),
)


def fill(scratch: Path) -> StudyFolder:
    """The study's folder, every run in it finished."""
    carried, _ = lab.run(_study, scratch / "carried", assignments={"seed": [0]})
    first = {(e["cell"], e["arm"]): run for e, run in carried.planned()}
    folder = lab.save_plan(lab.plan(_study), scratch / "many")
    draw = random.Random(0)
    for entry, run in folder.planned():
        _copy(first[entry["cell"], entry["arm"]], run, draw)
    return folder


def _copy(source: RunFolder, run: RunFolder, draw: random.Random) -> None:
    shutil.copytree(source.path, run.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("run.json", "digest-*"))
    lines = []
    for line in source.rows_path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line) | {"run": run.fingerprint}
        if isinstance(row["value"], float):
            row["value"] *= 1 + draw.gauss(0, 0.01)
        lines.append(json.dumps(row) + "\n")
    run.rows_path.write_text("".join(lines), encoding="utf-8")
    write_json(run.path / "done.json", source.done())


def seconds(words: list[str], repeats: int) -> list[tuple[float, float]]:
    """Wall and CPU seconds of the command; the machine may have other work. Modules are compiled once, as on a user's."""
    times, environ = [], {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(repeats):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([GATELAB, *words], check=True, capture_output=True, env=environ)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        times.append((time.perf_counter() - start, cpu))
    return times


def measure(folder: StudyFolder) -> None:
    """Print the first time of each, and the median and spread of five more; and of the page when it must read rows."""
    path = folder.path
    runs = [run for _, run in folder.planned()]
    keep_digests([run for run in runs if not any(run.path.glob("digest-*"))])  # which the last measurement took away
    seconds(["report", str(path)], 1)
    n_rows = sum(run.rows_path.read_bytes().count(b"\n") for run in runs)
    print(f"{len(runs)} runs, {n_rows:,} rows")
    for word in ("status", "report"):
        _forget(path.glob("digest-*"))
        (first,), times = seconds([word, str(path)], 1), seconds([word, str(path)], 5)
        wall, cpu = zip(*times, strict=True)
        spread = f"{min(wall):.2f} to {max(wall):.2f}; of a CPU {statistics.median(cpu):.2f}"
        print(f"gatelab {word}: first {_said(first)}, then {statistics.median(wall):.2f} s ({spread}; goal 3)")
    os.utime(runs[0].rows_path)
    _forget(runs[0].path.glob("digest-*"))
    time.sleep(3)  # what has just been written is read again each time
    print(f"gatelab report, when a run's rows are others: {_said(*seconds(['report', str(path)], 1))}")
    _forget(path.rglob("digest-*"))
    print(f"gatelab report, first, of rows alone: {_said(*seconds(['report', str(path)], 1))}")
    print(f"the page: {(path / 'report.html').stat().st_size / 2**20:.1f} MiB")


def _forget(paths: Iterable[Path]) -> None:
    for path in list(paths):
        path.unlink()


def _said(times: tuple[float, float]) -> str:
    return f"{times[0]:.2f} s (of a CPU {times[1]:.2f})"


def main() -> None:
    """Of a study made here, or of the one that an earlier call has kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="where the study is made and stays; one there is measured"
    )
    kept = parser.parse_args().keep
    if kept is None:
        with tempfile.TemporaryDirectory() as scratch:
            measure(fill(Path(scratch)))
    else:
        measure(StudyFolder.open(kept / "many") if (kept / "many").exists() else fill(kept))


if __name__ == "__main__":
    main()
