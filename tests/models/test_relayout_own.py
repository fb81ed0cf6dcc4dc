"""A decoder of ours that left as `GatelabForCausalLM`, in other layouts: what they hold is the model that was exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gatelab.config import ModelConfig
from gatelab.models import build_model
from gatelab.models.interop import export_model, import_model, relayout, stored

D, H, G, K = 16, 4, 2, 6
FIELDS: dict[str, dict[str, Any]] = {
    "headwise": {"gate": "sdpa-headwise", "qk_norm": "rms"},
    "bias": {"gate": "sdpa-headwise-bias", "qk_norm": "rms", "bias": True},
    "elementwise": {"gate": "sdpa-elementwise-silu", "norm": "layer"},
    "some rope": {"gate": "sdpa-elementwise", "rope_fraction": 1 / 3, "norm": "layer"},
    "no gate": {"norm": "layer", "positions": "none"},
}


def exported(folder: Path, fields: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The model's weights; `folder`/hf is the export."""
    config = ModelConfig(d_model=D, n_layers=2, n_heads=H, n_kv_heads=G, head_dim=K, d_ff=20, **fields).resolved(30, 8)
    torch.manual_seed(3)
    held = {name: torch.randn_like(p) for name, p in build_model(config).named_parameters()}
    save_file(held, folder / "weights.safetensors")
    assert export_model(stored("a model", config, folder / "weights.safetensors"), folder / "hf").family == "gatelab"
    return held


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", FIELDS)
def test_in_layout_gatelab_the_attention_has_our_names_and_bits(name: str, tmp_path: Path) -> None:
    held = exported(tmp_path, FIELDS[name])
    made = relayout(tmp_path / "hf", tmp_path / "out", "gatelab")
    assert (made.source, made.target, made.n_layers) == ("gatelab", "gatelab", 2)
    found, config = load_file(tmp_path / "out" / "model.safetensors"), config_of(tmp_path / "out")
    attention = {f"model.{n}": t for n, t in held.items() if ".attention." in n}
    assert attention and all(torch.equal(found[n], t) for n, t in attention.items())
    assert config["gate"] == FIELDS[name].get("gate", "none")
    # That code would look for other names.
    assert not {"auto_map", "architectures", "model_type", "gate_activation"} & config.keys()
    share = {"some rope": 1 / 3, "no gate": 0.0}.get(name, 1.0)
    assert config["partial_rotary_factor"] == pytest.approx(share)


def test_the_paper_s_layout_has_each_kv_head_s_queries_then_its_gates(tmp_path: Path) -> None:
    held = exported(tmp_path, FIELDS["headwise"])
    relayout(tmp_path / "hf", tmp_path / "qwen", "qwen-gated-headwise")
    found = load_file(tmp_path / "qwen" / "model.safetensors")
    for layer in range(2):
        q_HKD = held[f"blocks.{layer}.attention.q_proj.weight"].view(H, K, D)
        gate_HD = held[f"blocks.{layer}.attention.gates.sdpa.g_proj.weight"]
        r = H // G
        rows = [
            torch.cat([*q_HKD[g * r : (g + 1) * r].flatten(0, 1)[None], gate_HD[g * r : (g + 1) * r]]) for g in range(G)
        ]
        assert torch.equal(found[f"model.blocks.{layer}.attention.q_proj.weight"], torch.cat(rows))
    assert config_of(tmp_path / "qwen")["headwise_attn_output_gate"] is True
    for step, slug in (("megatron", "megatron-headwise"), ("back", "gatelab")):
        relayout(tmp_path / ("qwen" if step == "megatron" else "megatron"), tmp_path / step, slug)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(back[f"model.{n}"], t) for n, t in held.items() if ".attention." in n)


def test_it_is_not_imported_and_that_says_what_to_take(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    exported(tmp_path, FIELDS["headwise"])
    with pytest.raises(
        ValueError, match=r"hf: is an export of Gatelab, .*take the run or the model folder that it was made of"
    ):
        import_model(tmp_path / "hf", tmp_path / "ours")


def test_heads_that_do_not_see_the_first_key_are_refused(tmp_path: Path) -> None:
    exported(tmp_path, FIELDS["headwise"] | {"first_hidden_from": ((0,), ())})
    with pytest.raises(ValueError, match=r"hf: first_hidden_from=\[\[0\], \[\]\]: no layout says which heads"):
        relayout(tmp_path / "hf", tmp_path / "out", "qwen-gated-headwise")


def test_a_gate_that_is_none_is_named(tmp_path: Path) -> None:
    exported(tmp_path, FIELDS["headwise"])
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(config_of(path.parent) | {"gate": "channelwise"}))
    with pytest.raises(ValueError, match="hf: granularity='channelwise': expected one of 'elementwise', 'headwise'"):
        relayout(tmp_path / "hf", tmp_path / "out", "gatelab")
