"""Runs on meshes of two GPUs, over NCCL, train as on one; run with `-m gpu` where there are two."""

from dataclasses import asdict
from pathlib import Path

import meshes
import pytest
import torch
from test_mesh import on_mesh

from gatelab.config import Execution
from gatelab.train.group import Group
from gatelab.train.loop import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's compiler uses what torch deprecated
]
CASES = [
    "plain: gpu",
    "sdpa-headwise: gpu shard=zero2",
    "sdpa-headwise: gpu shard=zero3 compiled",
    "sdpa-elementwise: gpu tp=2",
    "sdpa-elementwise: gpu tp=2 compiled",
    "encoder: gpu tp=2",
    "encoder-decoder: gpu shard=zero3",
    "shared-experts: gpu ep=2",
    "biased-experts: gpu ep=2 shard=zero3 micro",
]
NEAR = 1e-3  # kernels that sum in no fixed order


def test_two_gpus_train_as_one(tmp_path: Path) -> None:
    found = on_mesh(tmp_path, 2, CASES)
    for case in CASES:
        group = Group([meshes.run_of(case.partition(":")[0])], Execution(device="cuda", compile="off"))
        steps = [asdict(step) for step in train(group)]
        assert [s["loss"] for s in found[case]["steps"]] == [pytest.approx(s["loss"], abs=NEAR) for s in steps], case
        norms = [pytest.approx(s["grad_norm"], rel=NEAR) for s in steps]
        assert [s["grad_norm"] for s in found[case]["steps"]] == norms, case
        weights = {n: p.double().sum().item() for n, p in group.members[0].model.named_parameters()}
        assert found[case]["weights"] == pytest.approx(weights, abs=1e-2), case
