"""What the laboratory costs: a quickstart run against a bare loop over the same torch calls, and its peak memory.

Both sides train the same model on the same batches in one process, taking turns, so that a busy machine slows both.
The bare loop is what one would write by hand: batch, forward, loss, backward, clip, step. The laboratory's side is all
of `carry_out`: rows, probes, held-out losses, checkpoints. Goals: at most 1.3 times the bare loop, peak memory of one
run under 1 GiB.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from gatelab.config import Execution, Run, canonical, fingerprint
from gatelab.store import RunFolder
from gatelab.studies.quickstart import text, toy
from gatelab.study.carry_out import carry_out
from gatelab.train.group import Group, resolve
from gatelab.train.schedule import learning_rate

CELLS = {"bigram-backcopy": toy, "text": text}


def bare(run: Run) -> tuple[float, float]:
    """CPU seconds and final loss of the loop that one would write by hand."""
    member = Group([run], Execution(device="cpu")).members[0]
    model, optimizer, source = member.model, member.optimizer, member.source
    t = run.train
    start = time.process_time()
    for step in range(t.steps):
        batch = source.train_batch(run.seed, step, t.batch_size, t.seq_len)
        inputs, targets = torch.from_numpy(batch.inputs_BT), torch.from_numpy(batch.targets_BT)
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.optim.clip or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.optim, step, t.steps)
        optimizer.step()
        last = loss.item()
    return time.process_time() - start, last


def laboratory(run: Run) -> tuple[float, float]:
    """CPU seconds and final loss of the same run, carried out whole."""
    digest = Group([run], Execution(device="cpu")).members[0].source.digest
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch) / fingerprint(run, digest))
        folder.create(canonical(run))
        start = time.process_time()
        carry_out([folder], Execution(device="cpu"), should_stop=lambda: False)
        spent = time.process_time() - start
        rows = folder.rows_path.read_text().splitlines()
    last = next(line for line in reversed(rows) if '"metric":"loss"' in line)
    return spent, float(last.split('"value":')[1].split(",")[0])


def compare(name: str, repeats: int = 3) -> None:
    """Alternate the two sides and print the ratio of their medians; refuses when they do not compute the same."""
    run = resolve(CELLS[name])
    times: dict[str, list[float]] = {"bare": [], "laboratory": []}
    for _ in range(repeats):
        spent, loss = bare(run)
        times["bare"].append(spent)
        whole, lab_loss = laboratory(run)
        times["laboratory"].append(whole)
        if abs(loss - lab_loss) > 1e-4:
            sys.exit(f"{name}: the two sides end at losses {loss} and {lab_loss}; no ratio is printed over that")
    ratio = statistics.median(times["laboratory"]) / statistics.median(times["bare"])
    shown = {k: f"{statistics.median(v):.2f} s ({min(v):.2f} to {max(v):.2f})" for k, v in times.items()}
    print(f"{name}: bare {shown['bare']}, laboratory {shown['laboratory']}, ratio {ratio:.3f} (goal 1.3)", flush=True)


def peak(name: str) -> None:
    """Peak resident memory of one run in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--one", name], check=True, capture_output=True, text=True)
    print(f"{name}: peak memory {int(done.stdout) / 1024:.0f} MiB (goal 1024)")


def main() -> None:
    """Both cells; with `--one CELL`, only carry that run out and print the peak memory in KiB."""
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--one"]:
        laboratory(resolve(CELLS[sys.argv[2]]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    print(f"CPU, one thread, torch {torch.__version__}, float32; CPU seconds, median of 3 (least to most)")
    for name in CELLS:
        compare(name)
        peak(name)


if __name__ == "__main__":
    main()
