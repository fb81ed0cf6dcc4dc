"""What only a CUDA device can show; run with `-m gpu`."""

from functools import partial

import pytest
import torch

from gatelab.config import NORMALISERS, Execution, ModelConfig, MoE, override
from gatelab.models import build_model
from gatelab.ops.contract import check
from gatelab.ops.expert_ffn import IMPLEMENTATIONS as EXPERTS
from gatelab.ops.expert_ffn import cases as expert_cases
from gatelab.ops.expert_ffn import expert_ffn
from gatelab.ops.gated_attention import IMPLEMENTATIONS, gated_attention
from gatelab.ops.gated_attention.cases import CASES, exempt, inputs
from gatelab.studies.quickstart import toy
from gatelab.train.group import Group
from gatelab.train.loop import train

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("impl", sorted(set(IMPLEMENTATIONS) - {"reference"}))
def test_every_implementation_keeps_the_contract_in_bfloat16(case, impl):
    if impl == "sdpa" and not case.is_softmax:
        pytest.skip("sdpa computes a softmax, and this is none")
    arguments = inputs(case, seed=0, dtype=torch.bfloat16, device="cuda")
    reference = partial(gated_attention, impl="reference")
    found = check(partial(gated_attention, impl=impl), reference, arguments)
    assert not [v for v in found if not v.holds and v.tensor not in exempt(case, torch.bfloat16)]


@pytest.mark.parametrize("compiled", ["off", "on"])
def test_a_gpu_trains_as_a_cpu_does_in_float32(compiled):
    run = override(toy, {"train.tokens": 8 * 64 * 50, "train.precision": "float32"})
    on_cpu = [s.loss[0] for s in train(Group([run], Execution(device="cpu")))]
    on_gpu = [s.loss[0] for s in train(Group([run], Execution(device="cuda", compile=compiled)))]
    assert max(abs(a - b) for a, b in zip(on_cpu, on_gpu, strict=True)) < 1e-3


@pytest.mark.parametrize("case", expert_cases.CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("impl", sorted(set(EXPERTS) - {"reference"}))
def test_every_implementation_of_the_experts_keeps_the_contract_in_bfloat16(case, impl):
    arguments = expert_cases.inputs(case, seed=0, dtype=torch.bfloat16, device="cuda")
    broken = [
        v
        for v in check(partial(expert_ffn, impl=impl), partial(expert_ffn, impl="reference"), arguments)
        if not v.holds
    ]
    assert not broken


MODELS = {
    "gated": {"gate": "sdpa-elementwise"},
    "many gates": {"gate": "sdpa-headwise-hybrid+value-elementwise-rank=8+scores-headwise-forget-bias+out-elementwise"},
    "lse": {"gate": "sdpa-headwise-lse"},
    "experts": {"moe": MoE(n_experts=4, top_k=2, d_expert=64)},
    "switch": {"kv_experts": "kv-4top2"},
    "windows": {"window": 16, "global_every": 2, "registers": 4},
    "relative": {"positions": "relative"},
    **{kind: {"softmax": kind} for kind in NORMALISERS},
}


@pytest.mark.parametrize("arch", ["decoder", "encoder", "encoder-decoder"])
@pytest.mark.parametrize("name", MODELS)
def test_models_compute_the_same_on_a_gpu(name, arch):
    """In float32 as on a CPU, and in bfloat16 without a not-a-number."""
    if "forget" in str(MODELS[name]) and arch != "decoder":
        pytest.skip("forgetting needs a causal order")
    config = ModelConfig(
        arch=arch, vocab_size=64, max_seq_len=48, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, init_std=0.1,
        **MODELS[name],
    )  # fmt: skip
    tokens = torch.randint(0, 64, (2, 48), generator=torch.Generator().manual_seed(0))
    gradients = {}
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.float32), ("cuda", torch.bfloat16)):
        model = build_model(config).to(device)
        model.compute_dtype = dtype
        inputs = [tokens.to(device)] * (2 if arch == "encoder-decoder" else 1)
        model(*inputs).float().square().mean().backward()
        gradients[device, dtype] = torch.cat([p.grad.flatten().cpu() for p in model.parameters()])
    plain, on_gpu, low = gradients.values()
    assert (plain - on_gpu).norm() < 1e-3 * plain.norm()
    assert low.isfinite().all()


@pytest.mark.parametrize(
    "changes", [{"gate": "sdpa-elementwise"}, {"softmax": "sink-logit"}, MODELS["experts"]], ids=str
)
def test_a_compiled_model_computes_the_same_as_an_eager_one(changes):
    config = ModelConfig(vocab_size=64, max_seq_len=64, d_model=128, n_layers=1, n_heads=2, n_kv_heads=1, **changes)
    tokens = torch.randint(0, 64, (4, 64), device="cuda")
    model = build_model(config).cuda()
    eager = model(tokens)
    compiled = torch.compile(model, fullgraph=True)(tokens)
    assert (eager - compiled).norm() < 1e-4 * eager.norm()
