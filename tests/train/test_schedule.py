from itertools import pairwise

import pytest
import tiny

from gatelab.config import OptimConfig
from gatelab.train.cost import flops_per_token, run_flops, state_bytes
from gatelab.train.schedule import learning_rate

STEPS = 100


def rates(steps: int = STEPS, **fields: object) -> list[float]:
    optim = OptimConfig(**{"lr": 2.0, "warmup": 0.0, **fields})
    return [learning_rate(optim, step, steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd"])
def test_warm_up_is_linear_and_ends_at_the_full_rate(schedule: str) -> None:
    found = rates(schedule=schedule, warmup=0.1)
    assert found[:11] == pytest.approx([2.0 * (i + 1) / 11 for i in range(11)])
    assert max(found) == 2.0


def test_constant_stays() -> None:
    assert rates(schedule="constant") == [2.0] * STEPS


def test_cosine_falls_from_the_rate_to_the_final_share() -> None:
    found = rates(101, schedule="cosine", final=0.1)
    assert (found[0], found[50], found[100]) == pytest.approx((2.0, 1.1, 0.2))
    assert found[25] == pytest.approx(0.2 + 1.8 * (1 + 0.5**0.5) / 2)
    assert all(a > b for a, b in pairwise(found))


def test_wsd_stays_and_then_falls_linearly_to_the_final_share() -> None:
    found = rates(schedule="wsd", decay=0.2, final=0.1)
    assert found[:80] == [2.0] * 80
    assert found[80:] == pytest.approx([0.2 + 1.8 * (19 - i) / 20 for i in range(20)])


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_a_final_share_of_zero_ends_at_zero(schedule: str) -> None:
    assert rates(schedule=schedule, final=0.0, warmup=0.05)[-1] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_very_short_runs_have_positive_rates(schedule: str, steps: int) -> None:
    assert all(0 < r <= 2.0 for r in rates(steps, schedule=schedule, warmup=0.5))


def test_the_operations_of_a_model_counted_by_hand() -> None:
    """One layer, d_model 4, one head, ReLU FFN of 8, 10 ids, context 6."""
    changes = {"d_model": 4, "n_heads": 1, "n_layers": 1, "d_ff": 8, "mlp": "relu", "norm": "rms"}
    run = tiny.run(model=tiny.model(**changes, vocab_size=10, max_seq_len=8, positions="learned"))
    multiplying = 4 * 4 * 4 + 2 * 4 * 8 + 10 * 4 + 3 * 4  # projections, FFN, head, norms
    attention = 3 * 2 * 2 * 4 * 4  # forward and backward, two products, two operations, four keys on average, width 4
    assert flops_per_token(run) == 6 * multiplying + attention
    assert run_flops(run) == flops_per_token(run) * run.train.steps * 32
    assert state_bytes(run) == 16 * (multiplying + 10 * 4 + 8 * 4)
