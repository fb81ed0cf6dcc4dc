"""Gradient norms by layer and the gates' share, against norms in NumPy over parameters chosen here by their names."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from gatelab import GatedAttention
from gatelab.models import build_model
from gatelab.probes.blocks import blocks
from gatelab.probes.training import gradient_rows
from gatelab.record import Row

V, T = 17, 8


def ids(seed: int = 1) -> Tensor:
    return torch.randint(0, V, (2, T), generator=torch.Generator().manual_seed(seed))


def random(model: nn.Module) -> nn.Module:
    """Parameters none of which is zero."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    return model


def backward(model: nn.Module, **given: Any) -> nn.Module:
    given = given or {"input_ids": ids()}
    output = model(**given) if "input_ids" in given else model(*given.values())
    output = output[0] if not isinstance(output, Tensor) else output
    (output.float() * torch.linspace(-1, 1, output.shape[-1])).square().mean().backward()
    return model


def by_name(model: nn.Module, pattern: str, rows: Callable[[np.ndarray], np.ndarray] = lambda g: g) -> float:
    """The 2-norm of the gradients of all parameters whose name matches, in float64; of some of their rows."""
    found = [
        rows(p.grad.double().numpy()).ravel()
        for name, p in model.named_parameters() if re.fullmatch(pattern, name) and p.grad is not None
    ]  # fmt: skip
    return float(np.linalg.norm(np.concatenate(found)))


def one(rows: list[Row], metric: str, **at: Any) -> float:
    """The value of the only row there; coordinates that are not given are None."""
    place = {"layer": None, "stack": None, "stage": None, "site": None} | at
    (value,) = [r.value for r in rows if r.metric == metric and all(getattr(r, k) == v for k, v in place.items())]
    return value


def own(**changes: Any) -> nn.Module:
    given = {"n_heads": 4, "n_kv_heads": 2, "gate": "sdpa-headwise+value-elementwise"} | changes
    return random(build_model(tiny.model(**given)))


def test_norms_of_a_gatelab_model_are_those_by_name() -> None:
    model = backward(own(), tokens=ids())
    rows = gradient_rows(model, "a", 3)
    for layer in (0, 1):
        here = rf"blocks\.{layer}\."
        whole = by_name(model, here + ".*")
        assert one(rows, "layer_grad_norm", layer=layer) == pytest.approx(whole, rel=1e-5)
        for stage in ("attention", "mlp"):
            want = by_name(model, here + stage + r"\..*")
            assert one(rows, "layer_grad_norm", layer=layer, stage=stage) == pytest.approx(want, rel=1e-5)
            assert 0 < want < whole
        for site in ("sdpa", "value"):
            want = by_name(model, here + rf"attention\.gates\.{site}\..*") / whole
            assert one(rows, "gate_grad_share", layer=layer, site=site) == pytest.approx(want, rel=1e-5)
    for site in ("sdpa", "value"):
        want = by_name(model, rf".*\.gates\.{site}\..*") / by_name(model, ".*")
        assert one(rows, "gate_grad_share", site=site) == pytest.approx(want, rel=1e-5)
    assert {(r.run, r.step, r.source) for r in rows} == {("a", 3, "gradients")}


def test_an_encoder_decoder_has_layers_and_gates_by_stack() -> None:
    both = {"arch": "encoder-decoder", "gate": "sdpa-headwise", "encoder_gate": "sdpa-headwise", "n_encoder_layers": 1}
    model = own(**both, cross_gate="sdpa-elementwise")
    rows = gradient_rows(backward(model, encoder=ids(), decoder=ids(2)))
    layers = [(r.stack, r.layer) for r in rows if r.metric == "layer_grad_norm" and r.stage is None]
    assert layers == [("encoder", 0), (None, 0), (None, 1)]
    total = by_name(model, ".*")
    shares = {
        "encoder": r"encoder_blocks\..*\.attention\.gates\..*",
        None: r"blocks\..*\.attention\.gates\..*",
        "cross": r"blocks\..*\.cross_attention\.gates\..*",
    }
    for stack, pattern in shares.items():
        want = by_name(model, pattern) / total
        assert one(rows, "gate_grad_share", stack=stack, site="sdpa") == pytest.approx(want, rel=1e-5)
    want = by_name(model, r"blocks\.1\.cross_attention\.gates\..*") / by_name(model, r"blocks\.1\..*")
    assert one(rows, "gate_grad_share", stack="cross", site="sdpa", layer=1) == pytest.approx(want, rel=1e-5)


class Layer(nn.Module):
    """Somebody's own, who calls attention a mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.ffn = nn.LayerNorm(16), nn.Linear(16, 16)
        self.mixer = GatedAttention(d_model=16, n_heads=4, n_kv_heads=2, gate="sdpa-headwise")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(self.mixer(self.norm(x)))


def test_layers_of_somebodys_own_are_what_stands_around_the_attention() -> None:
    model = random(nn.Sequential(nn.Embedding(V, 16), Layer(), Layer()))
    rows = gradient_rows(backward(model, tokens=ids()))
    for layer in (0, 1):
        here = rf"{layer + 1}\."
        assert one(rows, "layer_grad_norm", layer=layer) == pytest.approx(by_name(model, here + ".*"), rel=1e-5)
        mixer, ffn = (by_name(model, here + part + r"\..*") for part in ("mixer", "ffn"))
        assert one(rows, "layer_grad_norm", layer=layer, stage="attention") == pytest.approx(mixer, rel=1e-5)
        assert one(rows, "layer_grad_norm", layer=layer, stage="mlp") == pytest.approx(ffn, rel=1e-5)


def test_blocks_are_found_by_number_by_parent_or_alone() -> None:
    plain = nn.ModuleDict({"attention": GatedAttention(d_model=8, n_heads=2), "head": nn.Linear(8, 8)})
    assert [(b.name, b.layer) for b in blocks(plain)] == [("attention", 0)]
    listed = nn.ModuleDict({"layers": nn.ModuleList([GatedAttention(d_model=8, n_heads=2) for _ in range(2)])})
    assert [(b.name, b.layer) for b in blocks(listed)] == [("layers.0", 0), ("layers.1", 1)]
    named = nn.ModuleDict({"first": Layer(), "second": Layer()})
    assert [(b.name, b.layer) for b in blocks(named)] == [("first", 0), ("second", 1)]
    assert [(b.name, b.layer) for b in blocks(nn.DataParallel(own()))] == [
        ("module.blocks.0", 0),
        ("module.blocks.1", 1),
    ]
    assert blocks(nn.Linear(2, 2)) == []


SIZES = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
# family -> (its sizes, a layer's name, attention's and MLP's names in it).
FAMILIES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "Llama": (SIZES, "layers", "self_attn", "mlp"),
    "GPT2": ({"vocab_size": V, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}, "h", "attn", "mlp"),
    "OPT": (
        {"vocab_size": V, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 32, "word_embed_proj_dim": 16}, r"decoder\.layers", "self_attn", "fc[12]",
    ),
    "Bert": ({k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "head_dim")},
             r"encoder\.layer", "attention", "(intermediate|output)"),
    "Qwen3Next": (SIZES | EXPERTS | {
        "layer_types": ["full_attention", "full_attention"], "decoder_sparse_step": 1,
    }, "layers", "self_attn", "mlp"),
    "Step3p7Text": (SIZES | {"sliding_window": 20}, "layers", "self_attn", "mlp"),
}  # fmt: skip


def theirs(family: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**FAMILIES[family][0]))
    return backward(random(model).eval())


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_of_transformers_models_are_those_by_name(family: str) -> None:
    model = theirs(family)
    rows = gradient_rows(model)
    _, layers, attention, mlp = FAMILIES[family]
    for layer in (0, 1):
        here = rf"{layers}\.{layer}\."
        assert one(rows, "layer_grad_norm", layer=layer) == pytest.approx(by_name(model, here + ".*"), rel=1e-5)
        for stage, part in (("attention", attention), ("mlp", mlp)):
            want = by_name(model, here + part + r"\..*")
            assert one(rows, "layer_grad_norm", layer=layer, stage=stage) == pytest.approx(want, rel=1e-5)


def test_the_gate_inside_of_a_query_projection_is_its_rows() -> None:
    model = theirs("Qwen3Next")
    rows = gradient_rows(model)

    def gate(weight_ND: np.ndarray) -> np.ndarray:
        return weight_ND.reshape(4, 2, 8, 16)[:, 1]  # [H, (q, gate), K, D]

    for layer in (0, 1):
        here = rf"layers\.{layer}\."
        want = by_name(model, here + r"self_attn\.q_proj\.weight", gate) / by_name(model, here + ".*")
        assert one(rows, "gate_grad_share", layer=layer, site="sdpa") == pytest.approx(want, rel=1e-5)
    want = by_name(model, r".*self_attn\.q_proj\.weight", gate) / by_name(model, ".*")
    assert one(rows, "gate_grad_share", site="sdpa") == pytest.approx(want, rel=1e-5)


def test_a_gates_own_projection_is_the_gate() -> None:
    model = theirs("Step3p7Text")
    want = by_name(model, r".*\.self_attn\.g_proj\..*") / by_name(model, ".*")
    assert one(gradient_rows(model), "gate_grad_share", site="sdpa") == pytest.approx(want, rel=1e-5)


def test_what_is_frozen_has_no_rows() -> None:
    model = own()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("blocks.1.attention.") and "value" not in name
    rows = gradient_rows(backward(model, tokens=ids()))
    assert {(r.layer, r.stage) for r in rows if r.metric == "layer_grad_norm"} == {(1, None), (1, "attention")}
    assert {(r.layer, r.site) for r in rows if r.metric == "gate_grad_share"} == {(1, "sdpa"), (None, "sdpa")}


def test_a_gate_that_learns_nothing_has_no_share_and_one_that_learns_alone_has_all() -> None:
    model = backward(own(), tokens=ids())
    for name, parameter in model.named_parameters():
        if "gates.sdpa" in name or "gates.value" not in name:
            parameter.grad.zero_()
    rows = gradient_rows(model)
    assert one(rows, "gate_grad_share", site="sdpa") == 0
    assert one(rows, "gate_grad_share", site="value") == one(rows, "gate_grad_share", site="value", layer=0) == 1


def test_gradients_in_bfloat16_are_summed_in_float32() -> None:
    model = own(gate="none").to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    n = sum(p.numel() for p in model.blocks[0].parameters())
    want = float(torch.tensor(0.01, dtype=torch.bfloat16)) * n**0.5
    assert one(gradient_rows(model), "layer_grad_norm", layer=0) == pytest.approx(want, rel=1e-5)


def test_a_sparse_gradient_counts_in_the_total() -> None:
    model = random(nn.Sequential(nn.Embedding(V, 16, sparse=True), Layer()))
    rows = gradient_rows(backward(model, tokens=ids()))
    model[0].weight.grad = model[0].weight.grad.to_dense()
    want = by_name(model, r".*\.gates\..*") / by_name(model, ".*")
    assert one(rows, "gate_grad_share", site="sdpa") == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    "model, message",
    [
        (nn.Linear(2, 2), "Linear has no blocks that are known"),
        (nn.Sequential(Layer()), r"no parameter has a gradient; call this after loss.backward\(\)"),
    ],
)
def test_what_has_no_norms_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradient_rows(model)
