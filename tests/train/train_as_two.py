"""Two processes that share groups; each writes what it saw as JSON into the folder that is named."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import kinds
import tiny
from ranks import as_two_ranks

from gatelab.config import Execution, OptimConfig, Run
from gatelab.train.group import Group
from gatelab.train.loop import train


def seen(runs: list[Run], micro_batch: int) -> dict[str, object]:
    """The steps of a group, and a sum of all weights after them."""
    group = Group(runs, Execution(micro_batch=micro_batch))
    steps = [asdict(step) for step in train(group)]
    group.ranks.wait()
    agreed = [group.ranks.any_says(said) for said in (False, group.ranks.rank == 1, True)]
    weights = sum(p.double().sum().item() for m in group.members for p in m.model.parameters())
    return {
        "steps": steps,
        "weights": weights,
        "agreed": agreed,
        "writer": group.ranks.is_writer,
        "rank": group.ranks.rank,
    }


def live() -> None:
    """Two dense runs, one sequence at a time; then experts in two stacks whose queries are clipped, both at once and one
    sequence at a time."""
    dense = seen([tiny.run(steps=4, seed=s) for s in (0, 1)], 1)
    clipped = kinds.run("encoder-decoder-experts", steps=4, optim=OptimConfig(lr=1e-2, qk_clip=1.0))
    found = {"dense": dense, "whole": seen([clipped], 0), "parts": seen([clipped], 1)}
    Path(sys.argv[1], f"{dense['rank']}.json").write_text(json.dumps(found))


as_two_ranks(live)
