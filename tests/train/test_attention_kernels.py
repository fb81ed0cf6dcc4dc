"""Which kernels an operator takes inside: those that its own functions name, for the shapes and settings of a model."""

from typing import Any

import pytest
import tiny
import torch

from gatelab.config import Execution
from gatelab.config.model import ModelConfig
from gatelab.ops.gated_attention import flash
from gatelab.train.attention_kernels import attention_kernels
from gatelab.train.group import Group


def kernels(names: str, **changes: Any) -> dict[str, str]:
    # A meta tensor is on no CPU, and holds nothing.
    fields = {"d_model": 128, "n_heads": 1, "n_layers": 2, "max_seq_len": 64} | changes
    config = ModelConfig(**fields).resolved(32, fields["max_seq_len"])
    return attention_kernels(config, names, dtype=torch.bfloat16, device=torch.device("meta"))


def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def test_flash_takes_another_kernel_where_cudnn_is_off_or_sums_have_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    hopper(monkeypatch)
    assert kernels("flash-lean") == {"flash-lean": "cudnn"}
    assert kernels("flash", d_model=256) == {"flash": "flash"}  # a head of 256 channels
    with monkeypatch.context() as m:
        m.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        assert kernels("flash-lean") == {"flash-lean": "flash"}
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: False)
    assert kernels("flash-lean") == {"flash-lean": "flash"}


def test_short_may_take_torchs_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    hopper(monkeypatch)
    assert kernels("short", d_model=64) == {"short": "own, back own"}
    assert kernels("short", d_model=64, max_seq_len=4096) == {"short": "own, back cudnn"}
    assert kernels("short", d_model=64, max_seq_len=4096, window=8) == {"short": "own, back own"}


def test_stacks_that_see_both_ways_may_take_others(monkeypatch: pytest.MonkeyPatch) -> None:
    hopper(monkeypatch)
    # 64 keys, nothing of which is hidden, are not cuDNN's.
    assert kernels("flash", arch="encoder-decoder") == {"flash": "cudnn+flash"}
    # Layers with a window are another's.
    assert kernels("flash-lean+sdpa", window=8, global_every=2) == {"flash-lean": "cudnn"}


def test_a_run_records_them_beside_the_name() -> None:
    run = tiny.run()
    assert Group([run], Execution(device="cpu", attention="flash")).facts()["attention_kernels"] == {"flash": "cpu"}
    assert Group([run], Execution(device="cpu")).facts()["attention_kernels"] == {}
    assert flash.KEEPS_OUTPUT.keys() == {"flash", "flash-lean"}
