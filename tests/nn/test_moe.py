"""The layer of experts: equal to transformers' and to its definition; its losses add up over the parts of a batch."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gatelab.config import ConfigError, validate
from gatelab.config.moe import ACTIVATIONS, MoE
from gatelab.nn.mlp import MLP
from gatelab.nn.moe import ExpertMLP, Routing, router_losses
from gatelab.ops.expert_ffn import reference
from gatelab.ops.expert_ffn.hidden import hidden as hidden_of

B, T, D, F = 2, 7, 16, 8


def layer(*, d_model: int = D, **options: object) -> ExpertMLP:
    torch.manual_seed(1)
    return ExpertMLP(d_model, MoE(**{"n_experts": 6, "top_k": 2, "d_expert": F, **options}))


def hidden(n: int = B) -> Tensor:
    return torch.randn(n, T, D)


def route(module: ExpertMLP, x_BTD: Tensor) -> Routing:
    routed: list[Routing] = []
    module(x_BTD, routed)
    (routing,) = routed
    return routing


def by_loops(module: ExpertMLP, x_BTD: Tensor) -> np.ndarray:
    """The definition in float64, one token at a time."""
    x = x_BTD.detach().double().flatten(0, 1).numpy()
    maps = (module.router, module.w1, module.w3, module.w2)
    router, w1, w3, w2 = (m.weight.detach().double().numpy() for m in maps)
    of_router, b1, b3, b2 = (
        np.zeros(m.weight.shape[:-1]) if m.bias is None else m.bias.detach().double().numpy() for m in maps
    )

    def swiglu(x_D: np.ndarray, a_FD: np.ndarray, b_FD: np.ndarray, c_DF: np.ndarray) -> np.ndarray:
        a = a_FD @ x_D
        return c_DF @ (a / (1 + np.exp(-a)) * (b_FD @ x_D))

    def expert(x_D: np.ndarray, e: int) -> np.ndarray:
        kind, a, b = module.moe.activation, w1[e] @ x_D + b1[e], w3[e] @ x_D + b3[e]
        if kind.kind == "swiglu":
            return w2[e] @ (a / (1 + np.exp(-a)) * b) + b2[e]
        a, b = np.minimum(a, kind.limit), np.clip(b, -kind.limit, kind.limit)
        return w2[e] @ ((b + 1) * a / (1 + np.exp(-kind.alpha * a))) + b2[e]

    y = np.zeros_like(x)
    for n, x_D in enumerate(x):
        p = np.exp(router @ x_D + of_router)
        p /= p.sum()
        best = np.argsort(-p)[: module.moe.top_k]
        total = p[best].sum() if module.moe.normalise_top_k else 1.0
        y[n] = sum(p[e] / total * expert(x_D, e) for e in best)
        if module.shared is not None:
            weigher = module.shared_router
            share = 1.0 if weigher is None else 1 / (1 + np.exp(-(weigher.weight.detach().double().numpy() @ x_D)))
            y[n] += share * swiglu(
                x_D,
                *(m.weight.detach().double().numpy() for m in (module.shared.w1, module.shared.w3, module.shared.w2)),
            )
    return y.reshape(x_BTD.shape)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("n_shared", [0, 2])
@pytest.mark.parametrize("top_k", [1, 2, 6])
def test_the_layer_is_the_definition(top_k: int, n_shared: int, normalise: bool) -> None:
    module = layer(top_k=top_k, n_shared=n_shared, normalise_top_k=normalise).double()
    x_BTD = hidden().double()
    np.testing.assert_allclose(module(x_BTD).detach().numpy(), by_loops(module, x_BTD), rtol=1e-11, atol=1e-12)


def test_a_weighed_shared_expert_is_the_definition() -> None:
    module = layer(n_shared=1, shared_weight="sigmoid").double()
    x_BTD = hidden().double()
    np.testing.assert_allclose(module(x_BTD).detach().numpy(), by_loops(module, x_BTD), rtol=1e-11, atol=1e-12)
    with pytest.raises(ConfigError, match="shared_weight=sigmoid weighs shared experts, and n_shared is 0"):
        validate(MoE, {"n_experts": 4, "top_k": 2, "d_expert": 8, "shared_weight": "sigmoid"})


def of_gpt_oss(**options: object) -> ExpertMLP:
    """With biases that are not 0, and limits that some products reach."""
    clamped = {"kind": "clamped_swiglu", "limit": 0.5}
    module = layer(**{"activation": clamped, "bias": True, "router_bias": True, **options})
    with torch.no_grad():
        for m in (module.router, module.w1, module.w3, module.w2):
            if m.bias is not None:
                m.bias.normal_(std=0.5)
    return module


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_with_and_without_biases_is_the_definition(activation: str, bias: bool) -> None:
    module = of_gpt_oss(activation=activation, bias=bias, router_bias=not bias).double()
    x_BTD = hidden().double()
    np.testing.assert_allclose(module(x_BTD).detach().numpy(), by_loops(module, x_BTD), rtol=1e-11, atol=1e-12)


def test_shared_experts_beside_others_of_another_kind_are_refused() -> None:
    for change in ({"bias": True}, {"activation": "clamped_swiglu"}):
        with pytest.raises(ConfigError, match="a shared expert is a swiglu without biases"):
            validate(MoE, {"n_experts": 4, "top_k": 2, "d_expert": 8, "n_shared": 1, **change})


def test_equals_gpt_oss() -> None:
    modeling = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    config = modeling.GptOssConfig(
        hidden_size=D, intermediate_size=F, num_local_experts=6, num_experts_per_tok=2, swiglu_limit=0.5
    )
    module, block = of_gpt_oss(), modeling.GptOssMLP(config)
    pairs = {
        block.router.weight: module.router.weight,
        block.router.bias: module.router.bias,
        block.experts.down_proj: module.w2.weight.transpose(1, 2),
        block.experts.down_proj_bias: module.w2.bias,
        block.experts.gate_up_proj: torch.stack([module.w1.weight, module.w3.weight], dim=2)
        .flatten(1, 2)
        .transpose(1, 2),
        block.experts.gate_up_proj_bias: torch.stack([module.w1.bias, module.w3.bias], dim=2).flatten(1, 2),
    }
    with torch.no_grad():
        for theirs, ours in pairs.items():
            theirs.copy_(ours)
    x_BTD, upstream = hidden().requires_grad_(), hidden()
    twin = x_BTD.detach().clone().requires_grad_()
    y_BTD, (truth_BTD, _) = module(x_BTD), block(twin)
    torch.testing.assert_close(y_BTD, truth_BTD, rtol=1e-5, atol=1e-5)
    y_BTD.backward(upstream)
    truth_BTD.backward(upstream)
    found = [x_BTD.grad, module.router.weight.grad, module.router.bias.grad, module.w1.bias.grad, module.w3.weight.grad]
    up, up_bias = block.experts.gate_up_proj.grad, block.experts.gate_up_proj_bias.grad
    theirs = [
        twin.grad,
        block.router.weight.grad,
        block.router.bias.grad,
        up_bias[:, ::2],
        up[..., 1::2].transpose(1, 2),
    ]
    for gradient, truth in zip(found, theirs, strict=True):
        assert truth.abs().max() > 1e-3
        torch.testing.assert_close(gradient, truth, rtol=1e-5, atol=1e-5)


def fill(block: nn.Module, module: ExpertMLP) -> None:
    """Our weights in transformers' layout: w1 and w3 joined in one matrix of each expert."""
    with torch.no_grad():
        block.gate.weight.copy_(module.router.weight)
        block.experts.gate_up_proj.copy_(torch.cat([module.w1.weight, module.w3.weight], dim=1))
        block.experts.down_proj.copy_(module.w2.weight)


def parity(block: nn.Module, module: ExpertMLP) -> None:
    fill(block, module)
    ours = hidden().requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    y_BTD, truth_BTD = module(ours), block(theirs)
    torch.testing.assert_close(y_BTD, truth_BTD, rtol=1e-5, atol=1e-5)
    upstream = hidden()
    y_BTD.backward(upstream)
    truth_BTD.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.router.weight.grad, block.gate.weight.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.w2.weight.grad, block.experts.down_proj.grad, rtol=1e-5, atol=1e-5)


def test_equals_mixtral() -> None:
    mixtral = pytest.importorskip("transformers.models.mixtral")
    config = mixtral.MixtralConfig(hidden_size=D, intermediate_size=F, num_local_experts=6, num_experts_per_tok=2)
    parity(mixtral.modeling_mixtral.MixtralSparseMoeBlock(config), layer())


@pytest.mark.parametrize("normalise", [True, False])
def test_equals_qwen3_moe(normalise: bool) -> None:
    qwen = pytest.importorskip("transformers.models.qwen3_moe")
    config = qwen.Qwen3MoeConfig(
        hidden_size=D, moe_intermediate_size=F, num_experts=6, num_experts_per_tok=3, norm_topk_prob=normalise
    )
    block = qwen.modeling_qwen3_moe.Qwen3MoeSparseMoeBlock(config)
    parity(block, layer(top_k=3, normalise_top_k=normalise))


def test_the_balance_loss_is_transformers_over_top_k() -> None:
    modeling = pytest.importorskip("transformers.models.qwen3_moe.modeling_qwen3_moe")
    module, x_BTD = layer(top_k=3), hidden()
    balance, _ = router_losses([route(module, x_BTD)], module.moe)
    logits_NX = module.router(x_BTD.flatten(0, 1))
    theirs = modeling.load_balancing_loss_func((logits_NX,), num_experts=6, top_k=3)
    torch.testing.assert_close(balance, theirs / 3)


def test_routing_counts_the_choices_and_sums_the_probabilities() -> None:
    module, x_BTD = layer(), hidden()
    routing = route(module, x_BTD)
    logits = module.router(x_BTD).double().flatten(0, 1)
    best = logits.topk(2).indices
    assert routing.counts_X.tolist() == [float((best == e).sum()) for e in range(6)]
    assert routing.counts_X.dtype == torch.float32 and not routing.counts_X.requires_grad
    assert routing.n_tokens == B * T and routing.counts_X.sum() == 2 * B * T
    torch.testing.assert_close(routing.probability_X.double(), logits.softmax(-1).sum(0))
    torch.testing.assert_close(routing.z.double(), logits.exp().sum(-1).log().square().sum())


def test_listing_the_routing_changes_no_output() -> None:
    module, x_BTD = layer(), hidden()
    routed: list[Routing] = []
    assert torch.equal(module(x_BTD, routed), module(x_BTD))
    module(x_BTD, routed)
    assert len(routed) == 2


def test_shared_experts_are_added() -> None:
    module, x_BTD = layer(n_shared=2), hidden()
    plain = layer()
    plain.load_state_dict(module.state_dict(), strict=False)
    assert module.shared.w1.weight.shape == (2 * F, D)
    torch.testing.assert_close(module(x_BTD), plain(x_BTD) + module.shared(x_BTD))


def test_all_experts_chosen_is_the_sum_weighted_by_the_softmax() -> None:
    module, x_BTD = layer(top_k=6), hidden()
    y_BTD = torch.zeros(B, T, D)
    for e, p_BT in enumerate(module.router(x_BTD).softmax(-1).unbind(-1)):
        expert = MLP(D, F, "swiglu", bias=False)
        expert.load_state_dict({f"{n}.weight": getattr(module, n).weight[e] for n in ("w1", "w2", "w3")})
        y_BTD = y_BTD + p_BT[..., None] * expert(x_BTD)
    torch.testing.assert_close(module(x_BTD), y_BTD)


@pytest.mark.parametrize("normalise", [True, False])
def test_one_expert_is_an_ordinary_mlp(normalise: bool) -> None:
    module, x_BTD = layer(n_experts=1, top_k=1, normalise_top_k=normalise), hidden()
    mlp = MLP(D, F, "swiglu", bias=False)
    mlp.load_state_dict({f"{n}.weight": getattr(module, n).weight[0] for n in ("w1", "w2", "w3")})
    torch.testing.assert_close(module(x_BTD), mlp(x_BTD))


def test_ties_choose_different_experts_with_equal_weights() -> None:
    module, x_BTD = layer(top_k=3), hidden()
    with torch.no_grad():
        module.router.weight.zero_()
        for experts in (module.w1, module.w2, module.w3):
            experts.weight.copy_(experts.weight[:1].expand_as(experts.weight))
    mlp = MLP(D, F, "swiglu", bias=False)
    mlp.load_state_dict({f"{n}.weight": getattr(module, n).weight[0] for n in ("w1", "w2", "w3")})
    torch.testing.assert_close(module(x_BTD), mlp(x_BTD))
    counts_X = route(module, x_BTD).counts_X
    assert counts_X.sum() == 3 * B * T and counts_X.max() <= B * T


def test_an_expert_that_nobody_chooses_gets_a_zero_gradient() -> None:
    module = layer()
    with torch.no_grad():
        module.router.weight[4] = -module.router.weight.sum(0)
        module.router.weight[5] = module.router.weight[4]
    x_BTD = hidden()
    chosen = module.router(x_BTD).topk(2).indices
    x_BTD = x_BTD[(chosen < 4).all(-1)][None]
    assert x_BTD.shape[1] > 2
    module(x_BTD).sum().backward()
    for experts in (module.w1, module.w2, module.w3):
        assert experts.weight.grad[4:].count_nonzero() == 0 and experts.weight.grad[:4].count_nonzero() > 0


def test_state_dict_goes_round_under_the_promised_names() -> None:
    module, other, x_BTD = layer(n_shared=1), ExpertMLP(D, layer(n_shared=1).moe), hidden()
    assert not torch.equal(module(x_BTD), other(x_BTD))
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(x_BTD), other(x_BTD))
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    shared = {"shared.w1.weight": (F, D), "shared.w2.weight": (D, F), "shared.w3.weight": (F, D)}
    experts = {"w1.weight": (6, F, D), "w3.weight": (6, F, D), "w2.weight": (6, D, F)}
    assert shapes == {"router.weight": (6, D), **experts, **shared}


@pytest.mark.parametrize("impl", ["reference", "grouped"])
def test_bfloat16_inputs_keep_their_type_and_are_routed_in_float32(impl: str) -> None:
    module = layer()
    module.impl = impl
    x_BTD = hidden(4).bfloat16()
    routed: list[Routing] = []
    y_BTD = module(x_BTD, routed)
    assert y_BTD.dtype == torch.bfloat16
    assert torch.equal(routed[0].counts_X, route(module, x_BTD.float()).counts_X)
    torch.testing.assert_close(routed[0].z, route(module, x_BTD.float()).z)
    truth, bfloat16_eps = by_loops(module, x_BTD), 2**-7
    assert np.linalg.norm(y_BTD.detach().double().numpy() - truth) < 2 * bfloat16_eps * np.linalg.norm(truth)


@pytest.mark.parametrize("kind", ["shared", "gpt-oss"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    sizes = {"n_experts": 4, "d_model": 8, "d_expert": 3}
    module = (of_gpt_oss(**sizes) if kind == "gpt-oss" else layer(n_shared=1, **sizes)).double()
    x_BTD = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)
    top = module.router(x_BTD).softmax(-1).topk(3).values
    assert (top[..., 1] - top[..., 2]).min() > 1e-3  # the step of 1e-6 leaves the choices as they are
    names = list(dict(module.named_parameters()))

    def outputs(x_BTD: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        routed: list[Routing] = []
        y_BTD = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x_BTD, routed))
        return y_BTD, *router_losses(routed, module.moe)

    assert torch.autograd.gradcheck(outputs, (x_BTD, *module.parameters()))


def test_a_uniform_router_has_balance_one_and_z_log_n_squared() -> None:
    module = layer(n_experts=8, top_k=3)
    nn.init.zeros_(module.router.weight)
    balance, z = router_losses([route(module, torch.randn(2, 8, D))] * 3, module.moe)
    assert balance.item() == 1.0
    torch.testing.assert_close(z, torch.tensor(math.log(8) ** 2))


def test_one_expert_for_all_tokens_has_balance_n() -> None:
    module = layer(n_experts=4, top_k=1)
    with torch.no_grad():
        module.router.weight.zero_()[2] = 100.0
    balance, _ = router_losses([route(module, torch.ones(2, 8, D))], module.moe)
    assert balance.item() == 4.0


def losses_and_gradients(
    layers: nn.ModuleList, parts: list[Tensor], counts_LX: Tensor | None, n_tokens_L: list[int] | None
) -> list[Tensor]:
    """Σ over the parts of balance and z, and of the gradients of 2 balance + 3 z."""
    layers.zero_grad()
    sums = torch.zeros(2, dtype=torch.float64)
    for x_BTD in parts:
        routed: list[Routing] = []
        for module in layers:
            x_BTD = x_BTD + module(x_BTD, routed)
        balance, z = router_losses(routed, layers[0].moe, counts_LX, n_tokens_L)
        (2 * balance + 3 * z).backward()
        sums += torch.stack([balance, z]).detach()
    return [sums, *(p.grad.clone() for m in layers for p in (m.router.weight, layers[0].w2.weight))]


@pytest.mark.parametrize("cuts", [(1, 1, 1, 1), (3, 1)], ids=str)
def test_losses_and_gradients_of_micro_batches_sum_to_those_of_the_batch(cuts: tuple[int, ...]) -> None:
    layers = nn.ModuleList([layer(), layer(), layer()]).double()
    with torch.no_grad():
        layers[1].router.weight.mul_(3)
        layers[2].router.weight.neg_()
    x_BTD = hidden(4).double()
    whole = losses_and_gradients(layers, [x_BTD], None, None)
    routed: list[Routing] = []
    y_BTD = x_BTD
    for module in layers:
        y_BTD = y_BTD + module(y_BTD, routed)
    counts_LX = torch.stack([r.counts_X for r in routed])
    parts = losses_and_gradients(layers, list(x_BTD.split(cuts)), counts_LX, [4 * T] * 3)
    for part, truth in zip(parts, whole, strict=True):
        assert truth.abs().max() > 1e-3
        torch.testing.assert_close(part, truth, rtol=1e-12, atol=1e-14)
    alone = [router_losses([route(layers[0], x)], layers[0].moe)[0] / len(cuts) for x in x_BTD.split(cuts)]
    assert not torch.isclose(sum(alone), router_losses([route(layers[0], x_BTD)], layers[0].moe)[0])


def test_layers_of_different_lengths_each_divide_by_their_own_tokens() -> None:
    module = layer().double()
    short, long = (route(module, x_BTD.double()) for x_BTD in (hidden(1), hidden(3)))
    each = torch.stack([torch.stack(router_losses([r], module.moe)) for r in (short, long)])
    both = router_losses([short, long], module.moe)
    torch.testing.assert_close(torch.stack(both), each.mean(dim=0))
    counts_LX = torch.stack([short.counts_X, long.counts_X])
    assert router_losses([short, long], module.moe, counts_LX, [T, 3 * T]) == both


def test_minimising_the_balance_loss_balances_the_experts() -> None:
    module, x_BTD = layer(n_experts=4), hidden(16) + 1.0
    optimizer = torch.optim.SGD([module.router.weight], lr=0.05)
    trace = []
    for _ in range(60):
        routing = route(module, x_BTD)
        balance, _ = router_losses([routing], module.moe)
        trace.append((balance.item(), routing.counts_X.max().item()))
        optimizer.zero_grad()
        balance.backward()
        optimizer.step()
    assert trace[-1][0] < trace[0][0] and trace[-1][1] < trace[0][1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
@pytest.mark.parametrize("impl", ["reference", "grouped"])
def test_compiled_in_one_graph_equals_eager(impl: str) -> None:
    module = layer(n_shared=1)
    module.impl = impl

    def step(x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        routed: list[Routing] = []
        y_BTD = module(x_BTD, routed)
        return y_BTD, *router_losses(routed, module.moe)

    x_BTD = hidden().bfloat16()
    for found, expected in zip(
        torch.compile(step, fullgraph=True, backend="aot_eager")(x_BTD), step(x_BTD), strict=True
    ):
        torch.testing.assert_close(found, expected)
    torch._dynamo.reset()


def test_mistakes_are_told() -> None:
    with pytest.raises(ConfigError, match=r"top_k=9 of n_experts=8.*take top_k from 1 to 8"):
        validate(MoE, {"n_experts": 8, "top_k": 9, "d_expert": F})
    for wrong in (
        {"top_k": 0},
        {"n_experts": 0},
        {"d_expert": 0},
        {"n_shared": -1},
        {"balance": -1e-3},
        {"z": math.inf},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            validate(MoE, {"n_experts": 8, "top_k": 2, "d_expert": F, **wrong})
    module = layer()
    routing = route(module, hidden())
    with pytest.raises(ValueError, match="routed is empty"):
        router_losses([], module.moe)
    with pytest.raises(ValueError, match="give both, or neither"):
        router_losses([routing], module.moe, n_tokens_L=[14])
    with pytest.raises(ValueError, match=r"shape \(6,\): expected \(1, 6\), layers and experts"):
        router_losses([routing], module.moe, routing.counts_X, [14])
    with pytest.raises(ValueError, match="2 entries for 1 layers; give one a layer"):
        router_losses([routing], module.moe, routing.counts_X[None], [14, 14])
    with pytest.raises(ValueError, match="'fast': expected one of auto, reference, grouped"):
        ExpertMLP(D, module.moe, impl="fast")(hidden())


def test_a_layer_that_is_computed_again_routes_with_the_same_gradients() -> None:
    module, x_BTD = layer(), hidden()

    def gradients(*, is_again: bool) -> list[Tensor]:
        routed: list[Routing] = []
        y_BTD = checkpoint(module, x_BTD, routed, use_reentrant=False) if is_again else module(x_BTD, routed)
        assert len(routed) == 1
        loss = y_BTD.square().sum() + sum(router_losses(routed, module.moe))
        return list(torch.autograd.grad(loss, list(module.parameters())))

    for again, once in zip(gradients(is_again=True), gradients(is_again=False), strict=True):
        torch.testing.assert_close(again, once)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("impl", "most"), [("grouped", 1023), ("grouped", 12), ("grouped", 1), ("reference", 1)])
def test_a_stack_is_each_layer_by_itself(impl: str, most: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By grouped products of the experts of all models, of two at a time (6 each), and of one; and by the reference, whose
    products are as many as one model's."""
    monkeypatch.setattr("gatelab.nn.moe.MOST_EXPERTS", most)
    options = {"bias": bias, "router_bias": True, "balance": 0.3, "z": 0.1}
    alone, stack = [layer(**options) for _ in range(3)], layer(**options)
    for i, module in enumerate(alone):
        for p in module.parameters():
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.3
    for name, p in stack.named_parameters():
        p.data = torch.stack([dict(module.named_parameters())[name].data for module in alone])
    for module in (stack, *alone):
        module.impl = impl
    x_BTD = hidden(3 * B)
    routed: list[Routing] = []
    given = [(x, route(module, x)) for module, x in zip(alone, x_BTD.chunk(3), strict=True)]
    expected = torch.cat([module(x) for module, (x, _) in zip(alone, given, strict=True)])
    asked: list[Tensor] = []
    monkeypatch.setattr(reference, "hidden", lambda a, b, kind: asked.append(a) or hidden_of(a, b, kind))
    found = stack(x_BTD, routed)
    torch.testing.assert_close(found, expected)
    assert len(asked) == (6 if impl == "reference" else 0)
    for p, *own in zip(stack.parameters(), *(module.parameters() for module in alone), strict=True):
        (found_grad,) = torch.autograd.grad(found.square().sum(), p, retain_graph=True)
        of_each = torch.autograd.grad(expected.square().sum(), own, retain_graph=True)
        torch.testing.assert_close(found_grad, torch.stack(of_each), rtol=1e-4, atol=1e-5)
    both = [router_losses([r], alone[0].moe) for _, r in given]
    for found, of_each in zip(router_losses(routed, stack.moe), zip(*both, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(of_each))
