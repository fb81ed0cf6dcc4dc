"""Our decoders in transformers: the same logits and the same greedy text, natively where it has the architecture, else by
the code that goes along; and what comes back from there is what left.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import save_model, save_tokenizer
from safetensors.torch import load_file, save_file
from torch import nn

from gatelab.config import ModelConfig
from gatelab.models import build_model
from gatelab.models.generate import generate
from gatelab.models.interop import Stored, export_model, import_model, load_model, open_folder, stored

pytest.importorskip("transformers")

LENGTH = 24
YARN = {"kind": "yarn", "factor": 4.0, "original_seq_len": 8}
LLAMA3 = {"kind": "llama3", "factor": 8.0, "original_seq_len": 16}
MOE = {"n_experts": 5, "top_k": 2, "d_expert": 12}
CLAMPED = {**MOE, "activation": {"kind": "clamped_swiglu", "limit": 1.5}, "bias": True, "router_bias": True}
REORDERED = {"norm_position": "reordered", "qk_norm": "rms-all-heads"}
NATIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "tied": ("llama", {"tied_embeddings": True}),
    "biases": ("llama", {"bias": True}),
    "linear": ("llama", {"rope_scaling": {"kind": "linear", "factor": 3.0}}),
    "ntk": ("llama", {"rope_scaling": {"kind": "ntk", "factor": 3.0}}),
    "yarn": ("llama", {"rope_scaling": YARN}),
    "untruncated yarn": ("llama", {"rope_scaling": {**YARN, "truncate": False, "attention_factor": 1.3}}),
    "llama3": ("llama", {"rope_scaling": LLAMA3}),
    "reordered norms": ("olmo2", REORDERED),
    "experts": ("mixtral", {"moe": MOE, "window": 3}),
    "experts and qk-norm": ("qwen3_moe", {"moe": {**MOE, "normalise_top_k": False}, "qk_norm": "rms", "bias": True}),
    "weighed shared experts": ("qwen2_moe", {"moe": {**MOE, "n_shared": 2, "shared_weight": "sigmoid"}}),
    "window": ("mistral", {"window": 3}),
    "odd width": ("mistral", {"d_model": 18}),
    "alternating windows": ("qwen2", {"window": 3, "global_every": 2}),
    "qk-norm": ("qwen3", {"qk_norm": "rms"}),
    "gate and qk-norm": ("qwen3_next", {"gate": "sdpa-elementwise", "qk_norm": "rms"}),
    "gate, qk-norm, some rope": (
        "qwen3_next",
        {"gate": "sdpa-elementwise", "qk_norm": "rms", "rope_fraction": 1 / 3, "tied_embeddings": True},
    ),
    "gate and weighed shared experts": (
        "qwen3_next",
        {"gate": "sdpa-elementwise", "qk_norm": "rms", "moe": {**MOE, "n_shared": 2, "shared_weight": "sigmoid"}},
    ),
    "sink logits and clamped experts": (
        "gpt_oss",
        {"softmax": "sink-logit", "moe": CLAMPED, "window": 3, "global_every": 2},
    ),
    "sink logits, clamped experts, some biases": (
        "gpt_oss",
        {"softmax": "sink-logit", "moe": {**CLAMPED, "bias": False}, "bias": True, "rope_scaling": YARN},
    ),
    "qk-norm and windows": ("qwen3", {"qk_norm": "rms", "window": 3, "global_every": 2}),
}
GATES = (
    "sdpa-headwise",
    "sdpa-elementwise",
    "sdpa-headwise-bias",
    "sdpa-elementwise-silu",
    "sdpa-headwise-two_sigmoid",
)
SHIPPED: dict[str, dict[str, Any]] = {
    **{gate: {"gate": gate} for gate in GATES},
    "gate with bias and qk-norm": {"gate": "sdpa-elementwise-bias", "qk_norm": "rms", "tied_embeddings": True},
    "gate and windows": {"gate": "sdpa-headwise", "window": 3, "global_every": 2},
    "gate and some rope": {"gate": "sdpa-headwise", "rope_fraction": 1 / 3, "head_dim": 6},
    "gate and yarn": {"gate": "sdpa-headwise", "rope_scaling": YARN},
    "no gain in qk-norm": {"qk_norm": "rms-no-gain"},
    "qk-norm and all biases": {"qk_norm": "rms", "bias": True},
    "gelu, layer norms, learned positions": {"mlp": "gelu", "norm": "layer", "positions": "learned", "bias": True},
    "relu, post norms, no positions": {"mlp": "relu", "norm_position": "post", "positions": "none"},
    "gate and llama3": {"gate": "sdpa-headwise", "rope_scaling": LLAMA3},
    "gate and reordered norms": {"gate": "sdpa-headwise", **REORDERED},
    "sandwich": {"gate": "sdpa-headwise", "norm_position": "sandwich"},
}
EVERY = {**{name: fields for name, (_, fields) in NATIVE.items()}, **SHIPPED}


def built(fields: dict[str, Any], folder: Path) -> tuple[nn.Module, Stored]:
    """A model with random weights everywhere, norms, biases and gates too, and what is stored of it."""
    sizes = {"vocab_size": 300, "max_seq_len": LENGTH, "d_model": 16, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2}
    config = ModelConfig.model_validate(
        {**sizes, "head_dim": 6, "d_ff": None if "moe" in fields else 20, **fields}
    ).resolved(300, LENGTH)
    model = build_model(config).eval()
    torch.manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    save_file({name: p.detach() for name, p in model.named_parameters()}, folder / "weights.safetensors")
    return model, stored("a model", config, folder / "weights.safetensors")


def in_transformers(folder: Path) -> nn.Module:
    """The model as AutoModelForCausalLM reads it; the code of the folder is run where there is some."""
    import transformers

    brings_code = (folder / "modeling_gatelab.py").exists()
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=brings_code, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
    return model.eval()


@pytest.mark.parametrize("name", EVERY)
def test_transformers_gives_our_logits_and_our_greedy_text(name: str, tmp_path: Path) -> None:
    ours, found = built(EVERY[name], tmp_path)
    exported = export_model(found, tmp_path / "out")
    assert exported.family == (NATIVE[name][0] if name in NATIVE else "gatelab")
    theirs, ids_BT = in_transformers(tmp_path / "out"), torch.randint(300, (2, 9))
    with torch.no_grad():
        expected_BTV = ours(ids_BT)
        torch.testing.assert_close(theirs(ids_BT).logits, expected_BTV, rtol=0, atol=1e-4)
    assert expected_BTV.std() > 0.1
    text_BT = theirs.generate(ids_BT, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids_BT))
    assert torch.equal(text_BT, generate(ours, ids_BT, 12))


def by_numpy(model: nn.Module, ids: list[int], is_headwise: bool) -> np.ndarray:
    """Logits [T, V] of a gated decoder with pre-norms and plain rotary positions, written out."""
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    c = model.config
    x_TD = w["embedding.weight"][ids]
    angles = np.outer(np.arange(len(ids)), c.rope_theta ** (-np.arange(0, c.head_dim, 2) / c.head_dim))[:, None]

    def normed(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps) * gain

    def turned(x_THK: np.ndarray) -> np.ndarray:
        left, right = np.split(x_THK, 2, axis=-1)
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)

    for i in range(c.n_layers):
        of = {name.removeprefix(f"blocks.{i}."): value for name, value in w.items() if name.startswith(f"blocks.{i}.")}
        n_TD = normed(x_TD, of["attention_norm.weight"])
        q, k, v = (
            (n_TD @ of[f"attention.{p}_proj.weight"].T).reshape(len(ids), -1, c.head_dim) for p in ("q", "k", "v")
        )
        q, k, y_THK = turned(q), turned(k), np.zeros_like(q)
        for h in range(c.n_heads):
            g = h * c.n_kv_heads // c.n_heads
            scores = q[:, h] @ k[:, g].T / np.sqrt(c.head_dim)
            p_TS = np.tril(np.exp(scores - scores.max(-1, keepdims=True)))
            y_THK[:, h] = p_TS / p_TS.sum(-1, keepdims=True) @ v[:, g]
        z = (n_TD @ of["attention.gates.sdpa.g_proj.weight"].T).reshape(len(ids), c.n_heads, 1 if is_headwise else -1)
        x_TD = x_TD + (y_THK / (1 + np.exp(-z))).reshape(len(ids), -1) @ of["attention.o_proj.weight"].T
        n_TD = normed(x_TD, of["mlp_norm.weight"])
        a, b = n_TD @ of["mlp.w1.weight"].T, n_TD @ of["mlp.w3.weight"].T
        x_TD = x_TD + (a / (1 + np.exp(-a)) * b) @ of["mlp.w2.weight"].T
    return normed(x_TD, w["final_norm.weight"]) @ w["head.weight"].T


@pytest.mark.parametrize("gate", ["sdpa-headwise", "sdpa-elementwise"])
def test_the_shipped_code_computes_the_formula(gate: str, tmp_path: Path) -> None:
    ours, found = built({"gate": gate}, tmp_path)
    export_model(found, tmp_path / "out")
    theirs = in_transformers(tmp_path / "out").double()
    ids = torch.randint(300, (1, 8))
    with torch.no_grad():
        found_TV = theirs(ids).logits[0].numpy()
    np.testing.assert_allclose(found_TV, by_numpy(ours, ids[0].tolist(), gate == "sdpa-headwise"), atol=2e-5)


@pytest.mark.parametrize("name", ["sdpa-headwise", "gate and windows", "gelu, layer norms, learned positions"])
def test_the_shipped_code_pads_on_the_left_saves_and_loads_and_runs_eagerly(name: str, tmp_path: Path) -> None:
    import transformers

    ours, found = built(SHIPPED[name], tmp_path)
    export_model(found, tmp_path / "out")
    model, ids_1T = in_transformers(tmp_path / "out"), torch.randint(300, (1, 7))
    alone_1T = generate(ours, ids_1T, 8)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids_1T], dim=1)
    mask = (torch.arange(10) >= 3).long()[None]
    text = model.generate(padded, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(text[:, 3:], alone_1T)
    model.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "again", trust_remote_code=True, attn_implementation="eager"
    )
    with torch.no_grad():
        torch.testing.assert_close(again(ids_1T).logits, ours(ids_1T), rtol=0, atol=1e-4)


def test_the_shipped_code_learns(tmp_path: Path) -> None:
    _, found = built({"gate": "sdpa-headwise"}, tmp_path)
    export_model(found, tmp_path / "out")
    model, ids = in_transformers(tmp_path / "out"), torch.randint(300, (2, 9))
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in model.parameters())


@pytest.mark.parametrize("name", NATIVE)
def test_what_left_natively_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    ours, found = built(EVERY[name], tmp_path)
    export_model(found, tmp_path / "out")
    save_tokenizer(tmp_path / "out")
    back = load_model(import_model(tmp_path / "out", tmp_path / "back").path)
    ids_BT = torch.randint(300, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(back(ids_BT), ours(ids_BT), rtol=0, atol=1e-5)


UNTRUNCATED = {
    "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16, "truncate": False,
    "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.2,
}  # fmt: skip
ROUND = {
    "llama": ("LlamaForCausalLM", {"attention_bias": True}),
    "mistral": ("MistralForCausalLM", {"sliding_window": 3}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 6}),
    "gpt_oss": (
        "GptOssForCausalLM",
        {
            "head_dim": 6,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": 3,
            "rope_parameters": UNTRUNCATED,
        },
    ),
}


@pytest.mark.parametrize("family", ROUND)
def test_an_imported_model_leaves_as_the_family_it_came_from_with_every_bit(family: str, tmp_path: Path) -> None:
    architecture, changes = ROUND[family]
    save_model(tmp_path / "in", architecture, dtype=torch.bfloat16, **changes)
    save_tokenizer(tmp_path / "in")
    import_model(tmp_path / "in", tmp_path / "ours")
    exported = export_model(open_folder(tmp_path / "ours"), tmp_path / "out")
    assert (exported.family, exported.has_tokenizer) == (family, True)
    before, after = (load_file(tmp_path / n / "model.safetensors") for n in ("in", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n].to(before[n].dtype)) for n in before)
    assert {after[n].dtype for n in after} == {torch.bfloat16}
    old, new = (json.loads((tmp_path / n / "config.json").read_text()) for n in ("in", "out"))
    assert new["dtype"] == "bfloat16"
    assert {k: new[k] for k in new.keys() & old.keys()} == {k: old[k] for k in new.keys() & old.keys()}
    assert f"It was in, a model of type {family}." in (tmp_path / "out" / "README.md").read_text()


REFUSED = {
    "arch=encoder": {"arch": "encoder"},
    "softmax=sink-logit": {"softmax": "sink-logit"},
    "moe=": {"moe": {"n_experts": 3, "top_k": 1, "d_expert": 8, "n_shared": 1}, "d_ff": None},
    "softmax=sink-logit.*": {"softmax": "sink-logit", "moe": {**CLAMPED, "normalise_top_k": False}},
    "moe=.*clamped": {"moe": CLAMPED},
    "moe=.*router_bias=True": {"moe": {**MOE, "router_bias": True}},
    "embedding_norm=layer": {"embedding_norm": "layer"},
    "residual_clip=2": {"residual_clip": 2.0},
    "registers=2": {"registers": 2},
    "gate=value-headwise": {"gate": "value-headwise"},
    "gate=sdpa-headwise-value": {"gate": "sdpa-headwise-value"},
    r"gate=sdpa-headwise\+value-headwise": {"gate": "sdpa-headwise+value-headwise"},
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_the_shipped_code_does_not_compute_is_refused_by_its_field(field: str, tmp_path: Path) -> None:
    _, found = built(REFUSED[field], tmp_path)
    with pytest.raises(ValueError, match=f"a model: model.{field}.* cannot be exported"):
        export_model(found, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_not_finite_leaves_no_folder(tmp_path: Path) -> None:
    _, found = built({}, tmp_path)
    held = load_file(tmp_path / "weights.safetensors")
    held["head.weight"][4, 2] = float("inf")
    save_file(held, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"tensor head.weight \[300, 16\] holds 1 values"):
        export_model(found, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_weights_of_another_configuration_are_refused_with_both_shapes(tmp_path: Path) -> None:
    _, found = built({}, tmp_path)
    config = found.config.model_copy(update={"d_ff": 24})
    with pytest.raises(ValueError, match=r"mlp.w1.weight has shape \[20, 16\], and its configuration says \[24, 16\]"):
        stored("a model", config, tmp_path / "weights.safetensors")


def test_the_card_tells_what_was_measured_and_how_it_is_loaded(tmp_path: Path) -> None:
    built({"gate": "sdpa-headwise"}, tmp_path)
    config = built({"gate": "sdpa-headwise"}, tmp_path)[1].config
    found = stored(
        "a model",
        config,
        tmp_path / "weights.safetensors",
        measured=(("val_loss", 3.25, "nats/token"),),
        facts=("Said so.",),
    )
    export_model(found, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `val_loss` | 3.25 | nats/token |" in card and "- Said so." in card
    assert "trust_remote_code=True" in card and "| `gate` | `sdpa-headwise` |" in card
