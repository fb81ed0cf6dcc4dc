"""What only a CUDA device can show; run with `-m gpu`."""

from functools import partial

import pytest
import torch

from gatelab.config import Execution, override
from gatelab.ops.contract import check
from gatelab.ops.gated_attention import IMPLEMENTATIONS, gated_attention
from gatelab.ops.gated_attention.cases import CASES, inputs
from gatelab.studies.quickstart import toy
from gatelab.train.group import Group
from gatelab.train.loop import train

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("impl", sorted(set(IMPLEMENTATIONS) - {"reference"}))
def test_every_implementation_keeps_the_contract_in_bfloat16(case, impl):
    arguments = inputs(case, seed=0, dtype=torch.bfloat16, device="cuda")
    reference = partial(gated_attention, impl="reference")
    broken = [v for v in check(partial(gated_attention, impl=impl), reference, arguments) if not v.holds]
    assert not broken


@pytest.mark.parametrize("compiled", ["off", "on"])
def test_a_gpu_trains_as_a_cpu_does_in_float32(compiled):
    run = override(toy, {"train.tokens": 8 * 64 * 50, "train.precision": "float32"})
    on_cpu = [s.loss[0] for s in train(Group([run], Execution(device="cpu")))]
    on_gpu = [s.loss[0] for s in train(Group([run], Execution(device="cuda", compile=compiled)))]
    assert max(abs(a - b) for a, b in zip(on_cpu, on_gpu, strict=True)) < 1e-3
