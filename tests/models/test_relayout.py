"""Folders of checkpoints from one layout of gated attention to another: every pair through a third and back, bit for bit, and
refused where the other layout cannot say what is there.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gatelab.models.interop import relayout
from gatelab.models.layouts import LAYOUTS, Geometry

H, G, K, D = 6, 2, 4, 12
GEOMETRY = Geometry(d_model=D, n_heads=H, n_kv_heads=G, head_dim=K)
SIZES = {
    "hidden_size": D, "num_attention_heads": H, "num_key_value_heads": G, "head_dim": K, "num_hidden_layers": 3,
}  # fmt: skip
SAID: dict[str, dict[str, Any]] = {
    "afmoe": {"model_type": "afmoe", "layer_types": ["sliding_attention"] * 3},
    "gatelab": {"gate": "sdpa-elementwise"},
    "laguna": {"gating": "per-element"},
    "megatron": {"attention_output_gate": True, "layernorm_zero_centered_gamma": False},
    "megatron-headwise": {"use_head_wise_attn_gate": True, "layernorm_zero_centered_gamma": True},
    "olmo-core": {"gate": {"granularity": "elementwise"}},
    "qwen-gated-elementwise": {"model_type": "qwen3", "elementwise_attn_output_gate": True},
    "qwen-gated-headwise": {"model_type": "qwen3", "headwise_attn_output_gate": True},
    "qwen3-next": {"model_type": "qwen3_next", "partial_rotary_factor": 1.0},
    "step": {"use_head_wise_attn_gate": True, "model_type": "step3p5"},
}
ELEMENTWISE = [s for s in LAYOUTS if "elementwise" in LAYOUTS[s].granularities and s != "laguna"]
HEADWISE = ["megatron-headwise", "qwen-gated-headwise", "step"]
Tensors = dict[str, torch.Tensor]


def save(folder: Path, slug: str, *, dtype: torch.dtype = torch.float32, **said: Any) -> Tensors:
    """A folder of three attention layers in a layout, among other tensors."""
    layout = LAYOUTS[slug]
    grain = "headwise" if slug in HEADWISE else "elementwise"
    always = layout.shapes(GEOMETRY, grain)[0]
    gains = {name + ".weight": (K,) for name in layout.norms}
    draw = torch.Generator().manual_seed(3)
    held: Tensors = {"model.embed_tokens.weight": torch.randn(7, D, generator=draw)}
    for layer in range(3):
        at = f"model.layers.{layer}."
        held[at + "input_layernorm.weight"] = torch.randn(D, generator=draw)
        for name, shape in (always | gains).items():
            values = torch.randn(shape, generator=draw)
            if name in gains:
                is_offset = (SAID[slug] | said).get("layernorm_zero_centered_gamma", layout.gains[0] == "1+w")
                # Offsets that 1 + w does not round.
                values = (1 + 0.1 * values.clamp(-3, 3)) - int(is_offset)
            held[f"{at}self_attn.{name}"] = values
        held[at + "mlp.gate_proj.weight"] = torch.randn(5, D, generator=draw)
    held = {name: t.to(dtype) for name, t in held.items()}
    folder.mkdir()
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    config = SIZES | SAID[slug] | said
    (folder / "config.json").write_text(json.dumps({n: v for n, v in config.items() if v is not None}))
    return held


def held_in(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def in_factors(folder: Path, held: Tensors) -> Tensors:
    """The tensors with q/k-gains as what they multiply by, in float32."""
    offset = int(json.loads((folder / "config.json").read_text())["layernorm_zero_centered_gamma"])
    return {n: t.float() + offset if "q_layernorm" in n or "k_layernorm" in n else t for n, t in held.items()}


def same(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(
        left[n].dtype == right[n].dtype and torch.equal(left[n].view(torch.uint8), right[n].view(torch.uint8))
        for n in left
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layouts", [ELEMENTWISE, HEADWISE], ids=["elementwise", "headwise"])
def test_every_pair_of_layouts_comes_back_through_a_third(
    layouts: list[str], dtype: torch.dtype, tmp_path: Path
) -> None:
    for first, second, third in itertools.permutations(layouts, 3):
        # Of the pairs each once, with the third that follows in the list.
        if layouts.index(third) != (layouts.index(second) + 1) % len(layouts):
            continue
        place = tmp_path / f"{first}-{second}-{third}"
        place.mkdir()
        given = save(place / "in", first, dtype=dtype)
        for i, slug in enumerate((second, third, first)):
            relayout(place / ("in" if i == 0 else str(i - 1)), place / str(i), slug)
        found = held_in(place / "2")
        if first.startswith("megatron"):
            # It has gains in the convention that they come in, and says which.
            found, given = (in_factors(place / name, held) for name, held in (("2", found), ("in", given)))
        assert same(found, given), (first, second, third)


def test_only_attention_is_rewritten_and_that_is_said(tmp_path: Path) -> None:
    given = save(tmp_path / "in", "qwen-gated-elementwise", model_type="qwen3")
    (tmp_path / "in" / "tokenizer.json").write_text("{}")
    made = relayout(tmp_path / "in", tmp_path / "out", "megatron")
    assert (made.source, made.target, made.n_layers, made.n_others) == ("qwen-gated-elementwise", "megatron", 3, 7)
    assert "7 other tensors, the norms of the blocks among them, are as they were" in made.notes[0]
    found = held_in(tmp_path / "out")
    others = {n: t for n, t in given.items() if "self_attn" not in n}
    assert same({n: found[n] for n in others}, others)
    assert found["model.layers.2.self_attn.linear_qkv.weight"].shape == ((2 * H + 2 * G) * K, D)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["attention_output_gate"] and config["layernorm_zero_centered_gamma"] is False
    assert "elementwise_attn_output_gate" not in config and config["model_type"] == "qwen3"
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_the_type_of_a_code_that_would_misread_the_rows_is_taken_out(tmp_path: Path) -> None:
    """The same names and shapes: transformers would load them as Qwen3-Next's and get most heads wrong."""
    given = save(tmp_path / "in", "qwen3-next")
    relayout(tmp_path / "in", tmp_path / "out", "qwen-gated-elementwise")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "model_type" not in config and config["elementwise_attn_output_gate"] is True
    name = "model.layers.0.self_attn.q_proj.weight"
    moved = held_in(tmp_path / "out")[name]
    assert moved.shape == given[name].shape and not torch.equal(moved, given[name])
    # Both are the same rows: by kv head all queries then all gates, by query head one after the other.
    by_group = moved.view(G, 2, H // G, K, D).transpose(1, 2).reshape(-1, D)
    assert torch.equal(by_group, given[name])


def test_a_share_of_turning_channels_that_the_type_alone_said_is_stated(tmp_path: Path) -> None:
    save(tmp_path / "quarter", "qwen3-next", partial_rotary_factor=None, head_dim=None, hidden_size=D)
    with pytest.raises(ValueError, match="head_dim"):
        relayout(tmp_path / "quarter", tmp_path / "out", "olmo-core")
    save(tmp_path / "half", "qwen3-next", partial_rotary_factor=0.5)
    relayout(tmp_path / "half", tmp_path / "out", "olmo-core")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["partial_rotary_factor"] == 0.5
    with pytest.raises(ValueError, match="qwen-gated-elementwise turns all 4 channels of a head, and here 2 turn"):
        relayout(tmp_path / "half", tmp_path / "paper", "qwen-gated-elementwise")
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    save(tmp_path / "mixed", "afmoe", layer_types=kinds)
    relayout(tmp_path / "mixed", tmp_path / "each", "gatelab")
    assert json.loads((tmp_path / "each" / "config.json").read_text())["partial_rotary_factors"] == [0.0, 1.0, 1.0]
    assert not (tmp_path / "paper").exists()


def test_what_a_nested_config_says_stays_nested(tmp_path: Path) -> None:
    given = save(tmp_path / "in", "qwen3-next")
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    nested = {
        "model_type": "qwen3_5",
        "text_config": config | {"model_type": "qwen3_5_text"},
        "vision_config": {"a": 1},
    }
    (tmp_path / "in" / "config.json").write_text(json.dumps(nested))
    relayout(tmp_path / "in", tmp_path / "out", "olmo-core")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["vision_config"] == {"a": 1} and "model_type" not in {**said, **said["text_config"]}
    assert said["text_config"]["gate"] == {"granularity": "elementwise"}
    relayout(tmp_path / "out", tmp_path / "back", "qwen3-next")
    assert same(held_in(tmp_path / "back"), given)


def test_elementwise_gates_become_headwise_only_where_their_rows_agree(tmp_path: Path) -> None:
    save(tmp_path / "in", "afmoe")
    with pytest.raises(
        ValueError, match=r"model.layers.0.self_attn: step: .* cannot be made headwise: .* head 0 differ"
    ):
        relayout(tmp_path / "in", tmp_path / "out", "step")
    assert not (tmp_path / "out").exists()
    given = save(tmp_path / "headwise", "qwen-gated-headwise")
    made = relayout(tmp_path / "headwise", tmp_path / "wide", "afmoe")
    assert any("repeated for every channel" in note and "(in 3 of 3 layers)" in note for note in made.notes)
    relayout(tmp_path / "wide", tmp_path / "back", "qwen-gated-headwise")
    assert same(held_in(tmp_path / "back"), given)


def test_shapes_that_two_layouts_have_are_refused_until_one_is_named(tmp_path: Path) -> None:
    save(tmp_path / "in", "qwen3-next", model_type="mine")
    with pytest.raises(
        ValueError, match=r"fit qwen-gated-elementwise and qwen3-next; .*name the layout with --from-layout"
    ):
        relayout(tmp_path / "in", tmp_path / "out", "afmoe")
    for name in ("qwen-gated-elementwise", "qwen3-next"):
        relayout(tmp_path / "in", tmp_path / name, "olmo-core", from_layout=name)
    by_group, by_head = (held_in(tmp_path / name) for name in ("qwen-gated-elementwise", "qwen3-next"))
    gate = "model.layers.0.self_attn.w_g.weight"
    assert not torch.equal(by_group[gate], by_head[gate])
    with pytest.raises(ValueError, match="named as step, and the config and the tensors are those of qwen-gated-"):
        relayout(tmp_path / "in", tmp_path / "out", "afmoe", from_layout="step")


def test_what_is_no_gated_checkpoint_is_refused(tmp_path: Path) -> None:
    given = save(tmp_path / "in", "afmoe")
    with pytest.raises(ValueError, match="is in layout afmoe already"):
        relayout(tmp_path / "in", tmp_path / "out", "afmoe")
    with pytest.raises(ValueError, match=r"layout 'step3': expected one of .* did you mean 'step'"):
        relayout(tmp_path / "in", tmp_path / "out", "step3")
    gate = "model.layers.1.self_attn.gate_proj.weight"
    bad = given[gate].clone()
    bad[2, 3] = float("nan")
    spoilt = {
        "layers.1.self_attn: .* holds 1 values that are NaN or infinite": given | {gate: bad},
        r"layers.1.self_attn: no layout has these tensors; the nearest is afmoe: gate_proj.weight has shape \(23, 12\)": given
        | {gate: given[gate][:-1].clone()},
        "has no attention layer": {n: t for n, t in given.items() if "self_attn" not in n},
    }
    for sentence, held in spoilt.items():
        save_file(held, tmp_path / "in" / "model.safetensors")
        with pytest.raises(ValueError, match=sentence):
            relayout(tmp_path / "in", tmp_path / "out", "olmo-core")
    (tmp_path / "in" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no \*\.safetensors; name a folder"):
        relayout(tmp_path / "in", tmp_path / "out", "olmo-core")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
