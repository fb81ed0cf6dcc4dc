"""Queries and gates of a fused projection as modules of their own: the same model, seen apart by LoRA, Muon and quantisation."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gatelab.config import ModelConfig
from gatelab.models import build_model
from gatelab.models.layouts import LAYOUTS, Apart, Geometry, geometry_of, put_together, read, take_apart, views

G = Geometry(d_model=12, n_heads=6, n_kv_heads=2, head_dim=4)
FUSED = [
    (slug, module, grain)
    for slug, layout in LAYOUTS.items()
    for grain in layout.granularities
    for module in layout.modules(grain)
    if len(layout.parts(module, grain)) > 1
]
IDS = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))


def fused_linear(slug: str, module: str, grain: str | None, *, bias: bool = False) -> nn.Linear:
    torch.manual_seed(1)
    n_rows = LAYOUTS[slug].shapes(G, grain)[0][module + ".weight"][0]
    return nn.Linear(G.d_model, n_rows, bias=bias)


@pytest.mark.parametrize(("slug", "module", "grain"), FUSED)
def test_views_are_the_canonical_parts_in_the_memory_of_the_projection(
    slug: str, module: str, grain: str | None
) -> None:
    layout, fused = LAYOUTS[slug], fused_linear(slug, module, grain)
    always, _ = layout.shapes(G, grain)
    tensors = {name: torch.randn(shape) for name, shape in always.items()}
    tensors[module + ".weight"] = fused.weight.detach()
    canonical = read(slug, tensors, G)
    found = views(slug, module, tensors[module + ".weight"], G, grain)
    assert found.keys() == set(layout.parts(module, grain))
    for part, view in found.items():
        assert torch.equal(view.flatten(0, 1), canonical.weights()[part])
        view.fill_(7.0)
        assert int((tensors[module + ".weight"] == 7.0).sum()) == view.numel()
        view.zero_()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("slug", "module", "grain"), FUSED)
def test_a_projection_taken_apart_computes_the_same_and_goes_together_bit_for_bit(
    slug: str, module: str, grain: str | None, bias: bool
) -> None:
    fused, x = fused_linear(slug, module, grain, bias=bias), torch.randn(3, 5, G.d_model)
    parts = Apart(fused, slug, module, G, grain)
    torch.testing.assert_close(parts(x), fused(x))
    back = parts.together()
    assert torch.equal(back.weight, fused.weight)
    assert back.bias is None if fused.bias is None else torch.equal(back.bias, fused.bias)


def test_what_does_not_fit_is_refused() -> None:
    rows = torch.zeros(48, 12)
    assert views("qwen3-next", "q_proj", rows, G, "elementwise").keys() == {"q", "gate"}
    with pytest.raises(ValueError, match=r"q_proj of shape \(47, 12\): expected 48 rows, as qwen3-next has them"):
        views("qwen3-next", "q_proj", rows[1:], G, "elementwise")
    with pytest.raises(ValueError, match="megatron has no projection 'q_proj'; it has linear_qkv"):
        views("megatron", "q_proj", rows, G, "elementwise")
    with pytest.raises(ValueError, match="no module has projections of qwen3-next with 6 query and 2 kv heads of 4"):
        take_apart(nn.Linear(3, 3), "qwen3-next", G)


def next_model() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3NextConfig(
        vocab_size=50,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=4,
        num_experts=0,
        layer_types=["full_attention"] * 2,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
    )
    torch.manual_seed(0)
    model = transformers.Qwen3NextForCausalLM(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def halves(q_proj: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of queries and of gates, as Qwen3-Next has them."""
    by_head = q_proj.unflatten(0, (6, 2, 4))
    return by_head[:, 0], by_head[:, 1]


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(IDS).logits


# peft 0.21 asks transformers 5.23 for a property that is to be renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_on_the_gates_of_qwen3_next_leaves_its_queries_bit_for_bit() -> None:
    peft = pytest.importorskip("peft")
    model = next_model()
    before, expected_BTV = {n: p.clone() for n, p in model.named_parameters()}, logits(model)
    names = take_apart(model, "qwen3-next", geometry_of(model.config.to_dict()))
    assert names == [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]
    torch.testing.assert_close(logits(model), expected_BTV)
    config = peft.LoraConfig(r=2, target_modules=r".*q_proj\.g", init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    trained = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert len(trained) == 4 and all(".q_proj.g.lora_" in n for n in trained)
    with_lora_BTV = logits(adapted)
    assert (with_lora_BTV - expected_BTV).abs().max() > 0.1
    with pytest.raises(ValueError, match=r"q_proj.g is a Linear: expected nn.Linear; merge and unload its adapters"):
        put_together(adapted)
    merged = adapted.merge_and_unload()
    assert put_together(merged) == names
    torch.testing.assert_close(logits(merged), with_lora_BTV, rtol=1e-4, atol=1e-4)
    after = dict(merged.named_parameters())
    assert after.keys() == before.keys()
    for name, weight in before.items():
        if not name.endswith("q_proj.weight"):
            assert torch.equal(after[name], weight), name
            continue
        (q, gate), (new_q, new_gate) = halves(weight), halves(after[name])
        assert torch.equal(new_q, q) and not torch.equal(new_gate, gate)


def test_lora_on_our_gates_alone_is_what_its_merged_weights_compute_packed_or_not() -> None:
    peft = pytest.importorskip("peft")
    model = build_model(
        ModelConfig(
            vocab_size=50, max_seq_len=16, d_model=12, n_layers=2, n_heads=6, n_kv_heads=2, gate="sdpa-headwise"
        )
    ).eval()
    with torch.no_grad():
        plain_BTV = model(IDS)
    config = peft.LoraConfig(r=2, target_modules=r".*gates\.sdpa\.g_proj", init_lora_weights=False)
    adapted = peft.inject_adapter_in_model(config, model)
    assert all("g_proj.lora_" in n for n, p in adapted.named_parameters() if p.requires_grad)
    with torch.no_grad():
        apart_BTV = adapted(IDS)
        adapted.is_packed = True
        packed_BTV = adapted(IDS)
        for module in list(adapted.modules()):
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.merge()
        merged_BTV = adapted(IDS)
    assert (apart_BTV - plain_BTV).abs().max() > 1e-3
    torch.testing.assert_close(packed_BTV, apart_BTV)
    torch.testing.assert_close(merged_BTV, apart_BTV)


def after_one_step(projection: nn.Module, x: Tensor, target: Tensor) -> dict[str, Any]:
    matrices = {n: p for n, p in projection.named_parameters() if p.dim() == 2}
    optimiser = torch.optim.Muon(matrices.values(), lr=0.1, weight_decay=0.0)
    before = {n: p.detach().clone() for n, p in matrices.items()}
    (projection(x) - target).square().mean().backward()
    optimiser.step()
    return {n: p.detach() - before[n] for n, p in matrices.items()}


def test_muon_steps_gates_as_a_matrix_of_their_own_where_they_are_apart() -> None:
    """The gates' gradient is a thousandth here: fused, what Muon makes orthogonal is the queries' alone."""
    fused = fused_linear("qwen-gated-elementwise", "q_proj", "elementwise")
    parts = Apart(fused, "qwen-gated-elementwise", "q_proj", G, "elementwise")
    x, gap = torch.randn(40, G.d_model), torch.randn(40, 48)
    views("qwen-gated-elementwise", "q_proj", gap.T, G, "elementwise")["gate"].mul_(1e-3)
    target = fused(x).detach() + gap
    own = after_one_step(parts, x, target)
    joined = views("qwen-gated-elementwise", "q_proj", after_one_step(fused, x, target)["weight"], G, "elementwise")
    sizes = {part: joined[part].square().mean().sqrt() for part in ("q", "gate")}
    assert sizes["gate"] < 0.2 * sizes["q"]
    own_sizes = {part: own[f"{part}.weight"].square().mean().sqrt() for part in ("q", "g")}
    torch.testing.assert_close(own_sizes["g"], own_sizes["q"], rtol=0.2, atol=0)


def test_one_scale_a_tensor_keeps_the_digits_of_small_gates_where_they_are_apart() -> None:
    fused = fused_linear("qwen3-next", "q_proj", "elementwise")
    with torch.no_grad():
        views("qwen3-next", "q_proj", fused.weight, G, "elementwise")["gate"].mul_(0.01)
    parts = Apart(fused, "qwen3-next", "q_proj", G, "elementwise")

    def rounded(weight: Tensor) -> Tensor:
        scale = weight.abs().max() / 127
        return (weight / scale).round() * scale

    gate = parts.g.weight.detach()
    together = views("qwen3-next", "q_proj", rounded(fused.weight.detach()), G, "elementwise")["gate"].flatten(0, 2)
    errors = {"fused": (together - gate).norm() / gate.norm(), "apart": (rounded(gate) - gate).norm() / gate.norm()}
    assert errors["apart"] < 0.01 < 0.1 < errors["fused"]
