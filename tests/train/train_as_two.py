"""Two processes that share a group of two runs; each writes what it saw as JSON into the folder that is named."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import tiny
from ranks import as_two_ranks

from gatelab.config import Execution
from gatelab.train.group import Group
from gatelab.train.loop import train


def live() -> None:
    """Train with one sequence a forward pass, and agree on three things."""
    group = Group([tiny.run(steps=4, seed=s) for s in (0, 1)], Execution(micro_batch=1))
    steps = [asdict(step) for step in train(group)]
    group.ranks.wait()
    agreed = [group.ranks.any_says(said, group.device) for said in (False, group.ranks.rank == 1, True)]
    weights = sum(p.double().sum().item() for m in group.members for p in m.model.parameters())
    seen = {"steps": steps, "agreed": agreed, "weights": weights, "writer": group.ranks.is_writer}
    Path(sys.argv[1], f"{group.ranks.rank}.json").write_text(json.dumps(seen))


as_two_ranks(live)
