from itertools import pairwise

import pytest
import tiny

from gatelab.config import Continuation, OptimConfig
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


# One layer a stack, d_model 4, one head of 4 channels, ReLU FFN of 8, 10 ids, no norms at the ends of the arithmetic.
SMALL = {"d_model": 4, "n_heads": 1, "n_layers": 1, "d_ff": 8, "mlp": "relu", "norm": "rms", "vocab_size": 13}


def test_an_encoder_sees_all_keys() -> None:
    run = tiny.run(model=tiny.model(**SMALL, max_seq_len=8, arch="encoder"))
    multiplying = 4 * 4 * 4 + 2 * 4 * 8 + 13 * 4 + 3 * 4
    assert flops_per_token(run) == 6 * multiplying + 3 * 2 * 2 * 4 * 8


def test_each_stack_is_counted_with_the_tokens_that_it_reads() -> None:
    """Of eight tokens the encoder reads 2 and the decoder the last of them and 6 more."""
    run = tiny.run(model=tiny.model(**SMALL, max_seq_len=8, arch="encoder-decoder"), objective=Continuation(share=0.25))
    encoder = 4 * 4 * 4 + 2 * 4 * 8 + 3 * 4
    decoder = 4 * 4 * 4 + 2 * 4 * 8 + 2 * 4 * 4 + 4 * 4 + 13 * 4  # cross-attention's q and o; four norms, the head
    context = 2 * 4 * 4  # cross-attention's k and v
    pairs = 2 * 2 + 7 * 7 / 2 + 7 * 2
    whole = 6 * (2 * (encoder + context) + 7 * decoder) + 3 * 2 * 2 * 4 * pairs
    assert flops_per_token(run) * 8 == pytest.approx(whole, rel=1e-12)
    assert run_flops(run) == pytest.approx(whole * 4 * run.train.steps, rel=1e-12)


def test_only_the_experts_that_a_token_chooses_are_counted() -> None:
    shape = {k: v for k, v in SMALL.items() if k not in ("d_ff", "mlp")}
    experts = {"n_experts": 8, "top_k": 2, "d_expert": 4, "n_shared": 1}
    run = tiny.run(model=tiny.model(**shape, d_ff=None, max_seq_len=8, moe=experts))
    multiplying = 4 * 4 * 4 + 3 * 3 * 4 * 4 + 8 * 4 + 13 * 4 + 3 * 4  # two experts and the shared one, the router
    assert flops_per_token(run) == 6 * multiplying + 3 * 2 * 2 * 4 * 4
    assert state_bytes(run) == 16 * (multiplying + 6 * 3 * 4 * 4 + 13 * 4)
