"""Processes carry out the run of a folder, again and again: on other meshes, asked to stop, killed.

    carry_out_on_mesh.py FOLDER '[{"n": 2, "mesh": "shard=zero3", "rank": 1, "die_at": 7}, …]'

`die_at`: a rank kills itself in place of its n-th operation on a file, or halfway through a file of tensors; `die_past` [step,
seconds]: it is killed so long after there is a whole checkpoint of that step, whatever it does then; `stop_after`: it is
asked to stop after so many steps; `with`: other runs of its group. Prints how the ranks of each round ended.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import carrier
import meshes
from ranks import fork_ranks

from gatelab.store import RunFolder
from gatelab.train.checkpoint_folder import steps


def kill_past(step: int, seconds: float) -> None:
    """Let a child of this process kill it, at a moment that neither chooses."""
    doomed = os.getpid()
    if os.fork():
        return
    while os.getppid() == doomed and max(steps(Path(sys.argv[1])), default=0) < step:
        time.sleep(0.001)
    time.sleep(seconds)
    if os.getppid() == doomed:
        os.kill(doomed, signal.SIGKILL)
    os._exit(0)


def live(rounds: dict[str, Any]) -> None:
    """One rank's life."""
    from gatelab.config import canonical

    parallel = canonical(meshes.mesh(rounds["mesh"]))
    request = {"die_at": 0, "stop_after": 0, **rounds, "runs": [sys.argv[1], *rounds.get("with", ())]}
    if int(os.environ["RANK"]) != rounds.get("rank", 0):
        request |= {"die_at": 0, "stop_after": 0}
    elif "die_past" in rounds:
        kill_past(*rounds["die_past"])
    request["execution"] = {
        "processes": rounds["n"],
        "parallel": parallel,
        "checkpoint_s": rounds.get("checkpoint_s", 0),
    }
    carrier._live(request)


for one in json.loads(sys.argv[2]):
    ends = fork_ranks(lambda one=one: live(one), one["n"])
    run = RunFolder(Path(sys.argv[1]))
    kept = sorted(str(p.relative_to(run.path)) for p in run.path.glob("checkpoint/*/index.json"))
    print(json.dumps({"ends": ends, "kept": kept}), flush=True)
