"""What a stack reads is what each of its runs reads alone, however many share a source and a seed."""

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from gatelab.config import BigramBackcopy, MaskedTokens, Objective
from gatelab.data import Batch, objective_batch, open_source
from gatelab.train.feed import Feed

WITH, WITHOUT = (open_source(BigramBackcopy(vocab_size=16, bos=bos)) for bos in (True, False))
STACKS = {
    "seeds of one source": [(WITH, 0), (WITH, 3), (WITH, 7)],
    "a seed that comes again": [(WITH, 3), (WITH, 0), (WITH, 3)],
    "two sources in turns": [(WITH, 0), (WITHOUT, 0), (WITH, 1), (WITHOUT, 1), (WITH, 0)],
}


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("objective", [None, MaskedTokens()])
def test_each_run_reads_what_it_would_read_alone(name: str, objective: Objective | None) -> None:
    run = tiny.run(
        **({} if objective is None else {"model": tiny.model(arch="encoder", max_seq_len=8), "objective": objective})
    )
    stack = STACKS[name]
    feed = Feed([SimpleNamespace(run=run.model_copy(update={"seed": seed}), source=source) for source, seed in stack])
    for step in (0, 5):
        batch = feed.at(step)
        alone = [objective_batch(source, run.resolved_objective, seed, step, 4, 8) for source, seed in stack]
        for name in (f.name for f in fields(Batch)):
            parts = [getattr(own, name) for own in alone]
            if parts[0] is not None:
                np.testing.assert_array_equal(getattr(batch, name), np.concatenate(parts))
