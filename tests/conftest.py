"""Every test computes with one torch thread, from the same seed."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)
