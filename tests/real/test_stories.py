"""stories260K: a trained decoder of 5 layers, 8 query and 4 key/value heads, small enough to look at in a second."""

import pytest
from matrices import agree, eager, ids_of, observed, of_model

from gatelab.models.external import External

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big "
    'red ball. She wanted to play with it, but it was too high. Her mom said, "Lily, let\'s go to the park." Lily was sad '
    "and did not know what to do. She asked her mom if she could help. "
)


def test_rows_equal_those_of_eager_matrices_at_its_full_length(stories: External) -> None:
    assert stories.max_tokens == 512
    ids_BT = ids_of(stories, 512, STORY * 10)
    assert ids_BT.shape == (1, 512)
    agree(observed(stories, ids_BT), eager(stories, ids_BT, is_causal=True), stack=None)


@pytest.mark.parametrize("length", [64, 512])
def test_by_the_documented_threshold_its_first_token_is_no_sink(stories: External, length: int) -> None:
    """A sink rate above 0 at 0.3 would say that one is (docs/metrics.md; its source takes 64 tokens)."""
    ids_BT = ids_of(stories, length, STORY * 10)
    assert stories.tokenizer.convert_ids_to_tokens(ids_BT[0, 0].item()) == "<s>"
    rows = observed(stories, ids_BT)
    assert of_model(rows, "sink_rate", 0.3) == 0.0
    assert max(numbers["importance"].max() for numbers in eager(stories, ids_BT, is_causal=True)) < 0.3
