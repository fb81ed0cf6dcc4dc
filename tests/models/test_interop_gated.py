"""The gated checkpoints of arXiv 2505.06708, with random weights: imported, they give the logits of their modelling code.

Their configuration file has not been seen: what it says here is what that code reads.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import save_tokenizer
from safetensors.torch import save_file

from gatelab.models.interop import import_model, load_model

pytest.importorskip("transformers")

V, D, L, H, G, K, F = 300, 24, 2, 6, 2, 8, 20
EPS, THETA = 1e-6, 100.0
KINDS: dict[str, dict[str, Any]] = {
    "1B_baseline": {},
    "1B_gate_headwise": {"headwise_attn_output_gate": True},
    "1B_gate_elementwise": {"elementwise_attn_output_gate": True},
    "without q/k-norm": {"elementwise_attn_output_gate": True, "use_qk_norm": False},
    "baseline without q/k-norm": {"use_qk_norm": False},
    "biases": {"headwise_attn_output_gate": True, "qkv_bias": True},
    "baseline with biases": {"qkv_bias": True},
}
Arrays = dict[str, np.ndarray]


def config(**switches: Any) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "auto_map": {"AutoModelForCausalLM": "modeling_qwen3.Qwen3ForCausalLM"},
        "vocab_size": V,
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": L,
        "num_attention_heads": H,
        "num_key_value_heads": G,
        "head_dim": K,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "attention_bias": False,
        "qkv_bias": False,
        "use_qk_norm": True,
        "headwise_attn_output_gate": False,
        "elementwise_attn_output_gate": False,
        **switches,
    }


def weights(c: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random tensors of the shapes that the code makes, gains around 1."""
    n_gates = H if c["headwise_attn_output_gate"] else H * K if c["elementwise_attn_output_gate"] else 0
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (V, D),
        "model.norm.weight": (D,),
        "lm_head.weight": (V, D),
    }
    for layer in range(L):
        at = f"model.layers.{layer}"
        heads = {"q": (H * K + n_gates, D), "k": (G * K, D), "v": (G * K, D), "o": (D, H * K)}
        for name, shape in heads.items():
            shapes[f"{at}.self_attn.{name}_proj.weight"] = shape
            shapes |= {f"{at}.self_attn.{name}_proj.bias": shape[:1]} if c["qkv_bias"] else {}
        if c["use_qk_norm"]:
            shapes |= {f"{at}.self_attn.{name}_norm.weight": (K,) for name in "qk"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (F, D) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (D, F)
        shapes |= {f"{at}.{name}_layernorm.weight": (D,) for name in ("input", "post_attention")}
    draw = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=draw) * 0.3 + (len(shape) == 1 and "norm" in name)
        for name, shape in shapes.items()
    }


def by_the_code(c: dict[str, Any], held: dict[str, torch.Tensor], ids: list[int]) -> np.ndarray:
    """Logits [T, V] in float64, one head at a time, where the code views and splits."""
    w = {name: t.double().numpy() for name, t in held.items()}
    T, per_group = len(ids), H // G
    rows = {"headwise": 1, "elementwise": K}
    kind = next((word for word in rows if c[f"{word}_attn_output_gate"]), None)
    angles_TR = np.outer(np.arange(T), THETA ** (-np.arange(0, K, 2) / K))
    x_TD = w["model.embed_tokens.weight"][ids]

    def normed(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * gain

    def turned(x_TK: np.ndarray) -> np.ndarray:
        left, right = x_TK[:, : K // 2], x_TK[:, K // 2 :]
        cos, sin = np.cos(angles_TR), np.sin(angles_TR)
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=1)

    for layer in range(L):
        own = {n.removeprefix(f"model.layers.{layer}."): t for n, t in w.items() if f".layers.{layer}." in n}

        def projected(name: str, x: np.ndarray, own: Arrays = own) -> np.ndarray:
            return x @ own[f"self_attn.{name}_proj.weight"].T + own.get(f"self_attn.{name}_proj.bias", 0.0)

        def head(x: np.ndarray, which: str, own: Arrays = own) -> np.ndarray:
            return turned(normed(x, own[f"self_attn.{which}_norm.weight"]) if c["use_qk_norm"] else x)

        n_TD = normed(x_TD, own["input_layernorm.weight"])
        q, k, v = (projected(name, n_TD) for name in "qkv")
        each = q.shape[1] // G  # rows of a kv head: its queries' first, its gates' after them
        out_THK = np.zeros((T, H, K))
        for h in range(H):
            g, i = divmod(h, per_group)
            group = q[:, g * each : (g + 1) * each]
            q_TK, k_TK = head(group[:, i * K : (i + 1) * K], "q"), head(k[:, g * K : (g + 1) * K], "k")
            scores = q_TK @ k_TK.T / np.sqrt(K)
            p_TS = np.tril(np.exp(scores - scores.max(axis=1, keepdims=True)))
            out_THK[:, h] = p_TS / p_TS.sum(axis=1, keepdims=True) @ v[:, g * K : (g + 1) * K]
            if kind:
                first = per_group * K + i * rows[kind]
                out_THK[:, h] *= 1 / (1 + np.exp(-group[:, first : first + rows[kind]]))
        x_TD = x_TD + projected("o", out_THK.reshape(T, H * K))
        n_TD = normed(x_TD, own["post_attention_layernorm.weight"])
        a_TF = n_TD @ own["mlp.gate_proj.weight"].T
        hidden_TF = a_TF / (1 + np.exp(-a_TF)) * (n_TD @ own["mlp.up_proj.weight"].T)
        x_TD = x_TD + hidden_TF @ own["mlp.down_proj.weight"].T
    return normed(x_TD, w["model.norm.weight"]) @ w["lm_head.weight"].T


def save(folder: Path, kind: str, **switches: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    c = config(**KINDS[kind], **switches)
    held = weights(c)
    folder.mkdir()
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(c))
    save_tokenizer(folder)
    return c, held


@pytest.mark.parametrize("kind", KINDS)
def test_a_gated_checkpoint_of_the_paper_gives_the_logits_of_its_code(kind: str, tmp_path: Path) -> None:
    c, held = save(tmp_path / "in", kind)
    imported = import_model(tmp_path / "in", tmp_path / "out")
    gate = next((w for w in ("headwise", "elementwise") if c[f"{w}_attn_output_gate"]), None)
    assert [g.slug for g in imported.config.gate] == ([f"sdpa-{gate}" + "-bias" * c["qkv_bias"]] if gate else [])
    ids = [5, 0, 271, 33, 33, 8, 120]
    with torch.no_grad():
        found_TV = load_model(tmp_path / "out")(torch.tensor([ids]))[0].double().numpy()
    expected_TV = by_the_code(c, held, ids)
    assert expected_TV.std() > 0.1
    np.testing.assert_allclose(found_TV, expected_TV, rtol=0, atol=1e-4)
    assert any("not run: its logits are those of arXiv 2505.06708's code" in note for note in imported.notes)


def test_read_in_another_order_of_rows_it_is_another_model(tmp_path: Path) -> None:
    """Grouped by query head, as Qwen3-Next has them, the same tensors fit and most heads are wrong."""
    c, held = save(tmp_path / "in", "1B_gate_elementwise")
    ids = [5, 0, 271, 33]
    by_head = {
        n: t.unflatten(0, (H, 2, K)).unflatten(0, (G, H // G)).transpose(1, 2).flatten(0, 3) if "q_proj" in n else t
        for n, t in held.items()
    }
    assert not np.allclose(by_the_code(c, by_head, ids), by_the_code(c, held, ids), atol=0.1)


def test_both_switches_at_once_and_a_gate_that_the_weights_do_not_have_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "both", "1B_gate_headwise", elementwise_attn_output_gate=True)
    with pytest.raises(ValueError, match="headwise_attn_output_gate exclude each other"):
        import_model(tmp_path / "both", tmp_path / "out")
    save(tmp_path / "other", "1B_gate_headwise")
    changed = json.loads((tmp_path / "other" / "config.json").read_text()) | {"headwise_attn_output_gate": False}
    (tmp_path / "other" / "config.json").write_text(json.dumps(changed))
    q_proj = r"model.layers.0.self_attn.q_proj.weight has shape \[54, 24\], and its configuration says \[48, 24\]"
    with pytest.raises(ValueError, match=q_proj):
        import_model(tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()
