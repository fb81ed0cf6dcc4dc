"""What only a CUDA device can show; run with `-m gpu`."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatelab.config import NORMALISERS, Execution, GateSpec, ModelConfig, MoE, override
from gatelab.config.normaliser import Softmax
from gatelab.models import build_model
from gatelab.models.decoder import Decoder
from gatelab.nn.attention import GatedAttention
from gatelab.nn.cache import KVCache
from gatelab.ops.contract import check
from gatelab.ops.expert_ffn import IMPLEMENTATIONS as EXPERTS
from gatelab.ops.expert_ffn import cases as expert_cases
from gatelab.ops.expert_ffn import expert_ffn
from gatelab.ops.gated_attention import IMPLEMENTATIONS, OPERATORS, Call, gated_attention
from gatelab.ops.gated_attention.cases import Case, inputs
from gatelab.ops.gated_decode import IMPLEMENTATIONS as DECODERS
from gatelab.studies.quickstart import toy
from gatelab.train.group import Group
from gatelab.train.loop import train

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("n_keys", [48, 63, 64, 65, 128, 192, 200, 704])
@pytest.mark.parametrize("hidden", ["nothing", "later keys", "other documents"])
@pytest.mark.parametrize("impl", sorted({*IMPLEMENTATIONS, *OPERATORS} - {"reference", "hopper"}))
def test_rows_of_very_low_logits_have_gradients(impl, hidden, n_keys):
    """All logits around −120, below −ln of the largest float32: what fills a tile beyond the last key must not count."""
    if hidden == "other documents" and impl != "sdpa":
        pytest.skip("takes no mask")
    random = torch.Generator("cuda").manual_seed(0)
    q, k, v, dy = (0.1 * torch.randn(2, n_keys, 2, 64, generator=random, device="cuda") for _ in range(4))
    q[..., 0], k[..., 0] = 1.0, -120 * 8.0
    documents = None if hidden != "other documents" else torch.arange(n_keys, device="cuda").expand(2, -1) // 40
    gradients = {}
    for name, dtype in ((impl, torch.bfloat16), ("reference", torch.float32)):
        leaves = [t.to(torch.bfloat16).to(dtype).requires_grad_() for t in (q, k, v)]
        y = gated_attention(*leaves, is_causal=hidden != "nothing", segment_ids_BT=documents, impl=name)
        gradients[dtype] = torch.autograd.grad(y, leaves, dy.to(y.dtype))
    assert all(t.isfinite().all() for t in gradients[torch.bfloat16])
    # The first channel's is a sum of cancelling products of −960.
    for found, wanted in zip(gradients[torch.bfloat16], gradients[torch.float32], strict=True):
        assert (found[..., 1:] - wanted[..., 1:]).norm() < 0.05 * wanted[..., 1:].norm()


@pytest.mark.parametrize("compiled", ["off", "on"])
def test_a_gpu_trains_as_a_cpu_does_in_float32(compiled):
    run = override(toy, {"train.tokens": 8 * 64 * 50, "train.precision": "float32"})
    on_cpu = [s.loss[0] for s in train(Group([run], Execution(device="cpu")))]
    on_gpu = [s.loss[0] for s in train(Group([run], Execution(device="cuda", compile=compiled)))]
    assert max(abs(a - b) for a, b in zip(on_cpu, on_gpu, strict=True)) < 1e-3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stack_with_experts_trains_each_run_as_it_is_alone(precision):
    """By one captured step of all; in bfloat16 experts of all runs are those of one product."""
    model = {"moe": MoE(n_experts=4, top_k=2, d_expert=64), "d_ff": None, "d_model": 64, "n_heads": 2, "n_layers": 2}
    small = override(toy, {"train.tokens": 8 * 64 * 40, "train.precision": precision})
    model = small.model.model_copy(update=model)
    runs = [small.model_copy(update={"model": model, "seed": seed}) for seed in range(3)]
    group = Group(runs, Execution(device="cuda"))
    together = [s.loss for s in train(group)]
    assert group.is_stacked
    for m, run in enumerate(runs):
        alone = [s.loss[0] for s in train(Group([run], Execution(device="cuda", compile="off")))]
        assert max(abs(a[m] - b) for a, b in zip(together, alone, strict=True)) < (
            1e-3 if precision == "float32" else 5e-2
        )


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


BF16 = torch.bfloat16


def captured(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The work as a graph, after runs beside it in which every kernel is compiled."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


@pytest.fixture(params=sorted(OPERATORS))
def operator(request: pytest.FixtureRequest) -> str:
    """The name of each operator that this device and installation serve."""
    call = Call(64, 64, 64, (BF16,), torch.device("cuda"), GateSpec.parse("sdpa-elementwise"))
    why = OPERATORS[request.param].unserved(Softmax(), call)
    if why is not None:
        pytest.skip(f"{request.param} {why}")
    return request.param


def close(found: Tensor, expected: Tensor) -> bool:
    """As far as two runs of kernels that sum in no fixed order are, in bfloat16."""
    return ((found.float() - expected.float()).norm() <= 2e-3 * expected.float().norm()).item()


@pytest.mark.parametrize("gate", ["sdpa-headwise", "sdpa-elementwise"])
def test_a_captured_graph_gives_the_output_and_gradients_of_the_inputs_that_stand_in_it(operator, gate):
    case = Case("captured", T=200, H=4, G=2, K=64, gate=gate)
    names = ("q_BTHK", "k_BSGK", "v_BSGK", "gate_logits_BTHK")
    first, second = (inputs(case, seed=seed, dtype=BF16, device="cuda") for seed in (0, 1))
    given = [first[n] for n in names]
    results: list[Tensor] = []

    def work() -> None:
        z = gated_attention(*given, first["gate"], impl=operator)
        results[:] = [z, *torch.autograd.grad(z, given, first["grad_BTHK"])]

    graph = captured(work)
    with torch.no_grad():
        for name in (*names, "grad_BTHK"):
            first[name].copy_(second[name])
    graph.replay()
    replayed = [t.clone() for t in results]
    work()
    assert all(close(a, b) for a, b in zip(replayed, results, strict=True))
    plain = gated_attention(*given, first["gate"], impl="reference")
    assert ((replayed[0] - plain).norm() < 2e-2 * plain.norm()).item()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
@pytest.mark.parametrize("compiled", [False, True])
def test_a_captured_training_step_trains_as_an_eager_one_does(operator, compiled):
    config = ModelConfig(
        vocab_size=64, max_seq_len=128, d_model=128, n_layers=2, n_heads=2, n_kv_heads=1, gate="sdpa-elementwise"
    )
    one, other = torch.randint(0, 64, (2, 4, 129), generator=torch.Generator().manual_seed(0)).cuda()
    batches = 5 * [one, other]

    def made() -> Decoder:
        model = build_model(config, seed=0).cuda()
        model.compute_dtype = BF16
        for layer in model.modules():
            if isinstance(layer, GatedAttention):
                layer.impl = operator
        return model

    def step(model: nn.Module, tokens_BT: Tensor) -> Tensor:
        loss = F.cross_entropy(model(tokens_BT[:, :-1]).flatten(0, 1).float(), tokens_BT[:, 1:].flatten())
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-0.3)
        return loss.detach()

    eager, model = made(), made()
    expected = [step(eager, tokens_BT).item() for tokens_BT in batches]
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    called = torch.compile(model, fullgraph=True) if compiled else model
    tokens_BT, loss = one.clone(), torch.zeros((), device="cuda")
    graph = captured(lambda: loss.copy_(step(called, tokens_BT)))
    # The runs before the capture trained too.
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(start[name])
    found = []
    for batch in batches:
        tokens_BT.copy_(batch)
        graph.replay()
        found.append(loss.item())
    torch._dynamo.reset()
    assert expected[0] - expected[-2] > 0.2 and expected[1] - expected[-1] > 0.2
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 2e-2


@pytest.mark.parametrize("gate", [None, "sdpa-headwise", "sdpa-elementwise"])
def test_a_captured_decoding_step_is_that_of_its_cache_and_input(monkeypatch, gate):
    layer = GatedAttention(d_model=256, n_heads=4, n_kv_heads=2, gate=gate, max_seq_len=600).cuda()
    for p in layer.parameters():
        p.data = p.data.to(BF16)
    reference = GatedAttention(
        d_model=256, n_heads=4, n_kv_heads=2, gate=gate, max_seq_len=600, impl="reference"
    ).cuda()
    for p, own in zip(reference.parameters(), layer.parameters(), strict=True):
        p.data = own.data
    x_B1D, out_B1D = (torch.zeros(3, 1, 256, device="cuda", dtype=BF16) for _ in range(2))
    cache = KVCache(n_layers=1, batch=3, max_seq_len=600, n_kv_heads=2, head_dim=64, dtype=BF16, device="cuda")
    cache.length = 599
    split, called = DECODERS["split"], []
    monkeypatch.setitem(DECODERS, "split", lambda *given, **slots: called.append(1) or split(*given, **slots))
    with torch.no_grad():

        def step() -> torch.Tensor:
            cache.advance(0)
            return layer(x_B1D, cache=cache)

        graph = captured(lambda: out_B1D.copy_(step()))
        for _ in range(2):
            for t in (x_B1D, cache.k_LBSGK, cache.v_LBSGK):
                t.normal_()
            graph.replay()
            assert close(out_B1D, step())
            cache.advance(0)
            plain = reference(x_B1D, cache=cache)
            assert ((out_B1D - plain).norm() < 2e-2 * plain.norm()).item()
    assert len(called) == 5
