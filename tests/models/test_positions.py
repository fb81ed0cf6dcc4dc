"""Rotary positions beyond the trained ones: by the papers' frequencies, the same in parts, refused where there are none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import save_model, save_tokenizer

from gatelab.config.base import ConfigError, validate
from gatelab.models.external import Extension, Loading, load_external
from gatelab.models.external import extend_positions as extend

transformers = pytest.importorskip("transformers")

ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "head_dim": 8, "max_position_embeddings": 64}


def frequencies(kind: str, factor: float) -> tuple[np.ndarray, float]:
    """Rotary frequencies of a head of 8 channels and what the rotated vectors are scaled by, by the papers' formulas."""
    d, base, limit = 8, 500.0, 64
    pairs = np.arange(d // 2)
    plain = base ** (-2 * pairs / d)
    if kind == "linear":
        return plain / factor, 1.0
    if kind == "dynamic":
        return (base * (factor**2 - factor + 1) ** (d / (d - 2))) ** (-2 * pairs / d), 1.0
    turns = limit * plain / (2 * np.pi)
    # The ramp runs over whole channels, between those with 32 turns and 1 turn in the trained length.
    low, high = (d * np.log(limit / (n * 2 * np.pi)) / (2 * np.log(base)) for n in (32, 1))
    kept = 1 - np.clip((pairs - max(np.floor(low), 0)) / (np.ceil(high) - max(np.floor(low), 0)), 0, 1)
    assert (turns < 32).all()
    return plain * kept + plain / factor * (1 - kept), 0.1 * np.log(factor) + 1


@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic"])
@pytest.mark.parametrize("asked", [{"length": 192}, {"factor": 3.0}])
def test_extended_positions_rotate_by_the_papers_frequencies(
    tmp_path: Path, kind: str, asked: dict[str, float]
) -> None:
    save_model(tmp_path, "LlamaForCausalLM", **ROPE)
    save_tokenizer(tmp_path)
    loaded = load_external(tmp_path, Loading(extension=Extension(kind=kind, **asked)))
    frequency, scale = frequencies(kind, 3.0)
    rotary = loaded.model.rotary_emb
    np.testing.assert_allclose(rotary.inv_freq.double().numpy(), frequency, rtol=1e-5)
    assert rotary.attention_scaling == pytest.approx(scale)
    assert loaded.max_tokens == 192
    assert f"its positions were extended from 64 to 192 tokens ({kind})" in loaded.notes
    assert torch.equal(loaded.model.norm.weight, load_external(tmp_path).model.norm.weight)


def test_dynamic_scaling_is_that_of_transformers_at_the_full_length_and_the_same_in_parts(tmp_path: Path) -> None:
    save_model(tmp_path, "LlamaForCausalLM", **ROPE)
    save_tokenizer(tmp_path)
    model = load_external(tmp_path, Loading(extension=Extension(kind="dynamic", length=192))).model
    theirs = transformers.AutoModel.from_pretrained(
        tmp_path, rope_parameters=ROPE["rope_parameters"] | {"rope_type": "dynamic", "factor": 3.0}
    )
    ids_BT = torch.randint(300, (1, 192))
    with torch.no_grad():
        whole = model(ids_BT, use_cache=False).last_hidden_state
        torch.testing.assert_close(whole, theirs(ids_BT, use_cache=False).last_hidden_state)
        cache = transformers.DynamicCache(config=model.config)
        parts = [model(ids_BT[:, i : i + 64], past_key_values=cache).last_hidden_state for i in range(0, 192, 64)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


def test_layers_that_look_no_further_than_a_window_keep_their_positions() -> None:
    config = transformers.Gemma3TextConfig(num_hidden_layers=6, max_position_embeddings=64)
    extended = extend(config, Extension(length=128))
    assert extended.rope_parameters["full_attention"]["rope_type"] == "yarn"
    assert extended.rope_parameters["sliding_attention"] == config.rope_parameters["sliding_attention"]
    assert (config.max_position_embeddings, extended.max_position_embeddings) == (64, 128)


def test_positions_that_cannot_be_extended_are_refused() -> None:
    twice = Extension(factor=2.0)
    with pytest.raises(
        ValueError, match=r"'gpt2' are not one decoder's rotary ones to extend; take at most 1024 tokens"
    ):
        extend(transformers.GPT2Config(), twice)
    for family in ("T5Config", "BloomConfig"):
        with pytest.raises(ValueError, match=r"are not one decoder's rotary ones to extend$"):
            extend(getattr(transformers, family)(), twice)
    llama = transformers.LlamaConfig(**ROPE)
    for extension in (Extension(length=64), Extension(length=3), Extension(factor=1.0), Extension(factor=-2.0)):
        with pytest.raises(ValueError, match=r"positions for 64 tokens.*leave the extension out"):
            extend(llama, extension)
    with pytest.raises(ValueError, match=r"already scaled .yarn. to reach 128 tokens"):
        extend(extend(llama, twice), twice)


def test_an_extension_is_a_length_or_a_factor() -> None:
    for wrong in ({}, {"length": 128, "factor": 2.0}):
        with pytest.raises(ConfigError, match="one of length and factor"):
            validate(Extension, wrong)
