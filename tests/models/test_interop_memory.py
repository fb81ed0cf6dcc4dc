"""Converting takes little more memory than the largest tensor: sharded models of 200 MB, in a process of their own each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import save_tokenizer
from safetensors.torch import save_file

pytest.importorskip("transformers")

SHARDS = 6
WIDTHS = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 8192}
CONFIGS = {
    "gpt_oss": {
        "model_type": "gpt_oss", "num_hidden_layers": 4, "intermediate_size": 768, "num_local_experts": 8,
        "num_experts_per_tok": 2, "attention_bias": False,
    },
    "llama": {"model_type": "llama", "num_hidden_layers": 14, "intermediate_size": 1536},
    "mixtral": {
        "model_type": "mixtral", "num_hidden_layers": 4, "intermediate_size": 768, "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "qwen3": {
        "model_type": "qwen3", "num_hidden_layers": 13, "intermediate_size": 1536, "use_qk_norm": False,
        "elementwise_attn_output_gate": True,
    },
}  # fmt: skip
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 24}
# Peak of resident memory over what was there once a small model had gone the same way, and all code was loaded with it.
MEASURE = """
import sys
from pathlib import Path
from gatelab.models.interop import export_model, import_model, open_folder, relayout
def convert(source, out):
    {"import": lambda: import_model(source, out), "export": lambda: export_model(open_folder(source), out),
     "relayout": lambda: relayout(source, out, "olmo-core")}[route]()
def resident(word):
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith(word))
route, (small, small_out, source, out) = sys.argv[1], map(Path, sys.argv[2:])
convert(small, small_out)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
convert(source, out)
print(resident("VmHWM") - before)
"""


def save_sharded(folder: Path, family: str, **widths: int) -> int:
    """A random model in shards, and how many bytes its weights have."""
    config = {**WIDTHS, **CONFIGS[family], **widths, "tie_word_embeddings": False, "max_position_embeddings": 64}
    config |= {"hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1e4}
    D, V, F, K = config["hidden_size"], config["vocab_size"], config["intermediate_size"], config["head_dim"]
    H, G = config["num_attention_heads"], config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (V, D), "lm_head.weight": (V, D), "model.norm.weight": (D,)}
    is_gated = "elementwise_attn_output_gate" in config
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{n}_proj.weight": (G * K, D) for n in "kv"}
        shapes[f"{at}self_attn.q_proj.weight"] = (H * K * (1 + is_gated), D)
        shapes[f"{at}self_attn.o_proj.weight"] = (D, H * K)
        shapes |= {f"{at}{n}_layernorm.weight": (D,) for n in ("input", "post_attention")}
        if family == "gpt_oss":
            experts = {"gate_up_proj": (8, D, 2 * F), "gate_up_proj_bias": (8, 2 * F), "down_proj": (8, F, D)}
            router = {"router.weight": (8, D), "router.bias": (8,), "experts.down_proj_bias": (8, D)}
            shapes |= {f"{at}mlp.{n}": s for n, s in ({f"experts.{n}": s for n, s in experts.items()} | router).items()}
            shapes[f"{at}self_attn.sinks"] = (H,)
        elif family == "mixtral":
            shapes[f"{at}block_sparse_moe.gate.weight"] = (8, D)
            for expert in range(8):
                for word, shape in (("w1", (F, D)), ("w2", (D, F)), ("w3", (F, D))):
                    shapes[f"{at}block_sparse_moe.experts.{expert}.{word}.weight"] = shape
        else:
            shapes |= {f"{at}mlp.{n}_proj.weight": (F, D) for n in ("gate", "up")} | {
                f"{at}mlp.down_proj.weight": (D, F)
            }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_tokenizer(folder)
    names, where, n_bytes = list(shapes), {}, 0
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        held = {name: torch.randn(shapes[name]) for name in names[shard::SHARDS]}
        save_file(held, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(held, file)
        n_bytes += sum(t.numel() * t.element_size() for t in held.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return n_bytes


def peak_of(route: str, place: Path, source: str, out: str) -> int:
    """Bytes that a conversion of `source` to `out` takes; the small model's folders begin with `small-`."""
    folders = [str(place / name) for name in (f"small-{source}", f"small-{out}", source, out)]
    words = [sys.executable, "-c", MEASURE, route, *folders]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of resident memory")
@pytest.mark.parametrize("family", CONFIGS)
def test_a_sharded_model_is_converted_in_no_more_than_1_2_of_its_size(family: str, tmp_path: Path) -> None:
    n_bytes = save_sharded(tmp_path / "in", family)
    save_sharded(tmp_path / "small-in", family, **SMALL)
    assert 1.9e8 < n_bytes < 2.6e8
    peaks = {"import": peak_of("import", tmp_path, "in", "ours"), "export": peak_of("export", tmp_path, "ours", "out")}
    if family == "qwen3":
        peaks["relayout"] = peak_of("relayout", tmp_path, "in", "olmo")
    shares = {route: peak / n_bytes for route, peak in peaks.items()}
    print({route: round(share, 3) for route, share in shares.items()}, round(n_bytes / 1e6), "MB")
    assert max(shares.values()) <= 1.2, shares
