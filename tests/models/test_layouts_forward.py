"""What a layout's own code computes from its tensors is what the canonical form says, and what our layer computes.

Each peer's split is written in NumPy as that code reshapes and chunks it, in float64; where transformers has the module, it is
run and compared with a GatedAttention that was given the converted tensors.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_layouts import HEADS, geometry, tensors_of

from gatelab.models.layouts import LAYOUTS, Geometry, geometry_of, read, recognise, write
from gatelab.nn.attention import GatedAttention

Arrays = dict[str, np.ndarray]


def projected(name: str, t: Arrays, x_TD: np.ndarray) -> np.ndarray:
    return x_TD @ t[name + ".weight"].T + t.get(name + ".bias", 0.0)


def qwen_gated(t: Arrays, x: np.ndarray, g: Geometry, *, gate_rows: int) -> Arrays:
    """The official code: one view by kv head, then a split of its last axis."""
    grouped = projected("q_proj", t, x).reshape(len(x), g.n_kv_heads, -1)
    n_query = g.n_heads // g.n_kv_heads * g.head_dim
    q, gate = np.split(grouped, [n_query], axis=-1)
    return _heads(t, x, g, q.reshape(len(x), g.n_heads, g.head_dim), gate.reshape(len(x), g.n_heads, gate_rows))


def qwen_next(t: Arrays, x: np.ndarray, g: Geometry) -> Arrays:
    """transformers: one view by head to twice its width, then two chunks."""
    q, gate = np.split(projected("q_proj", t, x).reshape(len(x), -1, 2 * g.head_dim), 2, axis=-1)
    return _heads(t, x, g, q, gate.reshape(len(x), -1).reshape(len(x), g.n_heads, g.head_dim))


def separate(
    t: Arrays, x: np.ndarray, g: Geometry, *, names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
) -> Arrays:
    """A gate of its own, viewed as so many channels a head as there are."""
    gate_name = next(
        n.removesuffix(".weight") for n in t if n.removesuffix(".weight").endswith(("g_proj", "gate_proj", "w_g"))
    )
    gate = projected(gate_name, t, x).reshape(len(x), g.n_heads, -1)
    q = projected(names[0], t, x).reshape(len(x), g.n_heads, g.head_dim)
    return _heads(t, x, g, q, gate, names=names)


def megatron(t: Arrays, x: np.ndarray, g: Geometry) -> Arrays:
    """One view by query group, then a split in the order query, gate, key, value."""
    per = g.n_heads // g.n_kv_heads
    mixed = projected("linear_qkv", t, x).reshape(len(x), g.n_kv_heads, (2 * per + 2) * g.head_dim)
    edges = np.cumsum([per * g.head_dim, per * g.head_dim, g.head_dim])
    q, gate, k, v = np.split(mixed, edges, axis=-1)
    shape = (len(x), g.n_heads, g.head_dim)
    return {"q": q.reshape(shape), "gate": gate.reshape(shape), "k": k, "v": v}


def megatron_headwise(t: Arrays, x: np.ndarray, g: Geometry) -> Arrays:
    """The gate rows are cut off the end first; the rest is the usual grouped view."""
    per = g.n_heads // g.n_kv_heads
    both = projected("linear_qkv", t, x)
    mixed, gate = both[:, : -g.n_heads], both[:, -g.n_heads :]
    mixed = mixed.reshape(len(x), g.n_kv_heads, (per + 2) * g.head_dim)
    q, k, v = np.split(mixed, [per * g.head_dim, (per + 1) * g.head_dim], axis=-1)
    return {"q": q.reshape(len(x), g.n_heads, g.head_dim), "gate": gate[..., None], "k": k, "v": v}


def _heads(
    t: Arrays,
    x: np.ndarray,
    g: Geometry,
    q: np.ndarray,
    gate: np.ndarray,
    names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj"),
) -> Arrays:
    k, v = (projected(n, t, x).reshape(len(x), g.n_kv_heads, g.head_dim) for n in names[1:])
    return {"q": q, "gate": gate, "k": k, "v": v}


def olmo(t: Arrays, x: np.ndarray, g: Geometry) -> Arrays:
    return separate(t, x, g, names=("w_q", "w_k", "w_v"))


FORWARDS: dict[tuple[str, str], Callable[[Arrays, np.ndarray, Geometry], Arrays]] = {
    ("afmoe", "elementwise"): separate,
    ("gatelab", "elementwise"): separate,
    ("gatelab", "headwise"): separate,
    ("laguna", "elementwise"): separate,
    ("laguna", "headwise"): separate,
    ("megatron", "elementwise"): megatron,
    ("megatron-headwise", "headwise"): megatron_headwise,
    ("olmo-core", "elementwise"): olmo,
    ("olmo-core", "headwise"): olmo,
    ("qwen-gated-elementwise", "elementwise"): lambda t, x, g: qwen_gated(t, x, g, gate_rows=g.head_dim),
    ("qwen-gated-headwise", "headwise"): lambda t, x, g: qwen_gated(t, x, g, gate_rows=1),
    ("qwen3-next", "elementwise"): qwen_next,
    ("step", "headwise"): separate,
}


def canonically(slug: str, tensors: dict[str, torch.Tensor], x: np.ndarray, g: Geometry) -> Arrays:
    own, out = read(slug, tensors, g), {}
    biases = own.biases()
    for part, weight in own.weights().items():
        bias = biases[part].numpy() if part in biases else 0.0
        out[part] = np.einsum("td,hkd->thk", x, weight.numpy()) + bias
    return out


def test_every_gated_layout_has_a_forward_of_its_own_here():
    assert set(FORWARDS) == {(s, grain) for s, layout in LAYOUTS.items() for grain in layout.granularities if grain}


@pytest.mark.parametrize("heads", HEADS, ids=lambda h: f"{h[0]}/{h[1]}")
@pytest.mark.parametrize(("slug", "grain"), FORWARDS)
def test_canonical_q_gate_k_and_v_are_those_of_the_layout_s_own_forward(slug: str, grain: str, heads: tuple[int, int]):
    g, x = geometry(heads), np.random.default_rng(0).standard_normal((3, 12))
    tensors = tensors_of(slug, grain, g, dtype=torch.float64)
    theirs = FORWARDS[slug, grain]({n: t.numpy() for n, t in tensors.items()}, x, g)
    ours = canonically(slug, tensors, x, g)
    for part in ("q", "gate", "k", "v"):
        np.testing.assert_allclose(ours[part], theirs[part], rtol=1e-12, atol=1e-12, err_msg=part)


@pytest.mark.parametrize(("heads", "n_right"), [((8, 2), 2), ((16, 8), 8), ((6, 1), 1), ((4, 4), 4)])
def test_the_wrong_row_order_leaves_one_right_head_a_kv_head(heads: tuple[int, int], n_right: int):
    g, x = geometry(heads), np.random.default_rng(0).standard_normal((3, 12))
    tensors = tensors_of("qwen-gated-elementwise", "elementwise", g, biases=False, dtype=torch.float64)
    theirs = FORWARDS["qwen-gated-elementwise", "elementwise"]({n: t.numpy() for n, t in tensors.items()}, x, g)
    misread = canonically("qwen3-next", tensors, x, g)
    is_right = [np.allclose(misread["q"][:, h], theirs["q"][:, h]) for h in range(g.n_heads)]
    assert sum(is_right) == n_right


def _shared(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 24,
        "intermediate_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 32,
        "max_position_embeddings": 32,
        "attn_implementation": "eager",
        **more,
    }


# Family, its classes' prefix, the layer that is taken, settings of its config, and the layout and activation expected.
MODULES = [
    ("qwen3_next", "Qwen3Next", 3, {}, "qwen3-next", "sigmoid"),
    ("qwen3_next", "Qwen3Next", 3, {"attention_bias": True}, "qwen3-next", "sigmoid"),
    ("afmoe", "Afmoe", 0, {"num_dense_layers": 4}, "afmoe", "sigmoid"),
    ("afmoe", "Afmoe", 3, {"num_dense_layers": 4, "attention_bias": True}, "afmoe", "sigmoid"),
    ("laguna", "Laguna", 0, {"gating": "per-head"}, "laguna", "softplus"),
    ("laguna", "Laguna", 1, {"gating": "per-element"}, "laguna", "softplus"),
    ("step3p7", "Step3p7", 1, {"layer_types": ["full_attention", "sliding_attention"] * 2}, "step", "sigmoid"),
]


@pytest.mark.parametrize(("family", "prefix", "layer", "settings", "slug", "activation"), MODULES)
def test_a_module_of_transformers_and_our_layer_with_its_converted_tensors_compute_the_same(
    family: str, prefix: str, layer: int, settings: dict[str, Any], slug: str, activation: str
):
    pytest.importorskip("transformers")
    from importlib import import_module

    code = import_module(f"transformers.models.{family}.modeling_{family}")
    names = import_module(f"transformers.models.{family}.configuration_{family}")
    config = getattr(names, prefix + ("TextConfig" if family == "step3p7" else "Config"))(**_shared(**settings))
    more = (config.num_attention_heads,) if family == "laguna" else ()
    module = getattr(code, prefix + "Attention")(config, layer, *more).double().eval()
    generator = torch.Generator().manual_seed(1)
    for name, weight in module.named_parameters():
        around = 1.0 if "norm" in name and slug not in ("qwen3-next", "step") else 0.0
        weight.data = around + 0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    tensors = {n: t.detach() for n, t in module.state_dict().items()}
    said = config.to_dict()
    layout = recognise(said, {n: tuple(t.shape) for n, t in tensors.items()}, layer=layer)
    g = geometry_of(said, layer=layer)
    assert (layout.slug, layout.activations) == (slug, (activation,))
    own = read(layout, tensors, g)

    x_BTD = torch.randn(2, 5, 24, generator=generator, dtype=torch.float64)
    rotary = getattr(code, prefix + "RotaryEmbedding")(config)
    kind = (config.layer_types[layer],) if family in ("laguna", "step3p7") else ()
    cos, sin = rotary(x_BTD, torch.arange(5)[None].expand(2, 5), *kind)
    mask = torch.full((5, 5), float("-inf"), dtype=torch.float64).triu(1).expand(2, 1, 5, 5)
    with torch.no_grad():
        theirs = module(x_BTD, position_embeddings=(cos, sin), attention_mask=mask)[0]

    has_bias = own.q_bias_HK is not None
    words = ["sdpa", own.granularity, *([] if activation == "sigmoid" else [activation])]
    rope = said["rope_parameters"]
    theta = rope.get(kind[0], {}).get("rope_theta") if kind else rope["rope_theta"]
    ours = GatedAttention(
        d_model=24, n_heads=6, n_kv_heads=2, head_dim=8, gate="-".join(words) + ("-bias" if own.gate_bias_HK is not None else ""),
        qk_norm=True, rope_theta=theta if g.rotary_dim else None, rope_fraction=(g.rotary_dim or 8) / 8,
        norm_eps=config.rms_norm_eps, bias=has_bias,
    ).double()  # fmt: skip
    ours.load_state_dict(write("gatelab", own))
    with torch.no_grad():
        torch.testing.assert_close(ours(x_BTD), theirs, rtol=1e-5, atol=1e-6)
        # Removing the gate changes the answer, so that the comparison saw it.
        ours.gates["sdpa"].g_proj.weight.zero_()
        assert (ours(x_BTD) - theirs).abs().max() > 0.01
