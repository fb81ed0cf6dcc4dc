"""Processes that train runs on meshes; each writes what it saw as JSON into the folder that is named.

train_on_mesh.py FOLDER PROCESSES 'CASE: dp=… tp=…' …
"""

import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

import meshes
from ranks import as_ranks

from gatelab.config import Execution
from gatelab.train import loop
from gatelab.train.group import Group
from gatelab.train.loop import train


def seen(case: str) -> dict[str, object]:
    """The steps of one case, the weights afterwards as one process has them, and the rows of a look."""
    from gatelab.evals.heldout import look

    name, _, words = case.partition(":")
    said = set(words.split())
    # As a GPU begins steps.
    loop.AHEAD["cpu"] = 1 if "ahead" in said else 0
    execution = Execution(
        device="cuda" if "gpu" in said else "cpu",
        micro_batch=1 if "micro" in said else 0,
        compile="on" if "compiled" in said else "off",
        recompute="layer" if "again" in said else "none",
        parallel=meshes.mesh(" ".join(said - {"gpu", "micro", "compiled", "again", "ahead"})),
    )
    group = Group([meshes.run_of(name)], execution)
    steps = [asdict(step) for step in train(group, () if "ahead" in said else None)]
    with group.whole():
        if not group.ranks.is_writer:
            return {"steps": steps}
        weights = {n: p.double().sum().item() for n, p in group.members[0].model.named_parameters()}
        rows = [asdict(row) for row in look(group, ["x"])[0]]
    return {"steps": steps, "weights": weights, "rows": rows}


def live() -> None:
    """Every case in turn; what fails is written down, so that the others are seen too."""
    import torch.distributed

    found = {}
    for case in sys.argv[3:]:
        try:
            found[case] = seen(case)
        except Exception:
            found[case] = {"error": traceback.format_exc()}
    Path(sys.argv[1], f"{torch.distributed.get_rank()}.json").write_text(json.dumps(found))


as_ranks(live, int(sys.argv[2]))
