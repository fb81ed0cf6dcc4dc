"""Checkpoints of transformers as models of ours: equal logits for each family, and refusals that name what is wrong."""

import json
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Change, changed, cut, pickled, save_model, save_tokenizer, write_gguf
from safetensors.torch import load_file, save_file
from torch import Tensor

from gatelab.models import build_model
from gatelab.models.interop import FAMILIES, NOT_OURS, import_model, load_model
from gatelab.models.interop.tensors import Origin, Tensors, make, write
from gatelab.train.checkpoint import load_weights

pytest.importorskip("transformers")

ROPE = {"rope_type": "default", "rope_theta": 100.0}
YARN = {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    **ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 24}
ALTERNATING = {"use_sliding_window": True, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
NEXT = {
    "head_dim": 6, "num_experts": 0, "layer_types": ["full_attention"] * 2, "attn_output_gate": True,
    "rope_parameters": {**ROPE, "partial_rotary_factor": 1 / 3},
}  # fmt: skip
GPT_OSS = {
    "head_dim": 6, "num_hidden_layers": 4, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 3,
    "rope_parameters": {**YARN, "truncate": False},
}  # fmt: skip
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"rope_parameters": ROPE, "rms_norm_eps": 1e-4}),
    "llama-wide-heads": ("LlamaForCausalLM", {"head_dim": 6}),
    "llama-tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama-biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama-attention-biases": ("LlamaForCausalLM", {"attention_bias": True}),
    "llama-linear": ("LlamaForCausalLM", {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 3.0}}),
    "llama-yarn": ("LlamaForCausalLM", {"rope_parameters": YARN}),
    "llama-llama3": ("LlamaForCausalLM", {"rope_parameters": LLAMA3}),
    "llama-dynamic": ("LlamaForCausalLM", {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 3.0}}),
    "mistral": ("MistralForCausalLM", {"sliding_window": 3}),
    "mistral-full": ("MistralForCausalLM", {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen2-windows": ("Qwen2ForCausalLM", ALTERNATING),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 6}),
    "qwen3-biases": ("Qwen3ForCausalLM", {"head_dim": 6, "attention_bias": True}),
    "qwen3-windows": ("Qwen3ForCausalLM", {"head_dim": 6, **ALTERNATING}),
    "qwen3-next": ("Qwen3NextForCausalLM", NEXT),
    "olmo": ("OlmoForCausalLM", {}),
    "olmo2": ("Olmo2ForCausalLM", {"eos_token_id": 1}),
    "olmo2-biases": ("Olmo2ForCausalLM", {"eos_token_id": 1, "attention_bias": True}),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 3}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", {"head_dim": 6, **EXPERTS}),
    "qwen3-moe-normed": ("Qwen3MoeForCausalLM", {"head_dim": 6, **EXPERTS, "norm_topk_prob": True}),
    "qwen2-moe": ("Qwen2MoeForCausalLM", {**SHARED, "tie_word_embeddings": True}),
    "qwen2-moe-windows": ("Qwen2MoeForCausalLM", {**SHARED, **ALTERNATING, "qkv_bias": False}),
    "qwen3-next-experts": ("Qwen3NextForCausalLM", {**NEXT, **SHARED, "norm_topk_prob": False}),
    # A limit that some of these products reach.
    "gpt-oss": ("GptOssForCausalLM", {**GPT_OSS, "swiglu_limit": 1.5}),
    "gpt-oss-full": (
        "GptOssForCausalLM",
        {**GPT_OSS, "layer_types": ["full_attention"] * 4, "attention_bias": False, "tie_word_embeddings": True},
    ),
    "eurobert": ("EuroBertForMaskedLM", {"pad_token_id": 0}),
}
T5 = {"d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 3, "vocab_size": 300, "num_decoder_layers": 3}
IDS = torch.randint(300, (2, 11), generator=torch.Generator().manual_seed(1))


def saved(folder: Path, architecture: str, **changes: Any) -> torch.nn.Module:
    model = save_model(folder, architecture, **changes)
    save_tokenizer(folder)
    return model


def logits(model: torch.nn.Module, *ids: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(*ids)
    return getattr(found, "logits", found)


@pytest.mark.parametrize("name", PEERS)
def test_an_imported_model_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    architecture, changes = PEERS[name]
    theirs = saved(tmp_path / "in", architecture, **changes).eval()
    imported = import_model(tmp_path / "in", tmp_path / "out")
    ours = load_model(imported.path)
    expected_BTV = logits(theirs, IDS)
    assert expected_BTV.std() > 0.1
    torch.testing.assert_close(logits(ours, IDS), expected_BTV, rtol=0, atol=1e-4)
    assert imported.n_weights == sum(p.numel() for p in ours.parameters())
    assert (tmp_path / "out" / "tokenizer.json").read_text() == (tmp_path / "in" / "tokenizer.json").read_text()


@pytest.mark.parametrize("mlp", ["relu", "gelu", "gated-silu"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_an_imported_t5_gives_the_logits_of_transformers(mlp: str, is_tied: bool, tmp_path: Path) -> None:
    import transformers

    config = transformers.T5Config(**T5, feed_forward_proj=mlp, tie_word_embeddings=is_tied, decoder_start_token_id=0)
    theirs = transformers.T5ForConditionalGeneration(config)
    if not is_tied:
        theirs.lm_head.weight = torch.nn.Parameter(torch.empty(300, 16))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    theirs.eval().save_pretrained(tmp_path / "in")
    save_tokenizer(tmp_path / "in")
    ours = load_model(import_model(tmp_path / "in", tmp_path / "out").path)
    with torch.no_grad():
        expected_BTV = theirs(input_ids=IDS, decoder_input_ids=IDS[:, :5]).logits
    torch.testing.assert_close(logits(ours, IDS, IDS[:, :5]), expected_BTV, rtol=0, atol=1e-4)


def test_weights_of_16_bits_are_stored_as_they_are(tmp_path: Path) -> None:
    theirs = saved(tmp_path / "in", "LlamaForCausalLM", dtype=torch.bfloat16)
    import_model(tmp_path / "in", tmp_path / "out")
    stored = load_file(tmp_path / "out" / "weights.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    assert torch.equal(stored["blocks.1.mlp.w3.weight"], theirs.model.layers[1].mlp.up_proj.weight)


@pytest.mark.parametrize("name", ["qwen3-next", "mixtral"])
def test_rows_that_are_split_or_joined_keep_their_type(name: str, tmp_path: Path) -> None:
    saved(tmp_path / "in", PEERS[name][0], dtype=torch.bfloat16, **PEERS[name][1])
    import_model(tmp_path / "in", tmp_path / "out")
    stored = load_file(tmp_path / "out" / "weights.safetensors")
    moved = {n: t.dtype for n, t in stored.items() if not (name == "qwen3-next" and "norm" in n)}
    assert set(moved.values()) == {torch.bfloat16} and len(moved) > 10


def test_sharded_weights_are_read_as_those_in_one_file(folder: Path, copy: Path, tmp_path: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="8KB")
    assert len(list(copy.glob("*.safetensors"))) > 3
    import_model(folder, tmp_path / "whole")
    import_model(copy, tmp_path / "sharded")
    whole, sharded = (load_file(tmp_path / n / "weights.safetensors") for n in ("whole", "sharded"))
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[n], sharded[n]) for n in whole)


def test_a_gguf_file_is_imported_with_its_tokenizer(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    import transformers

    write_gguf(tmp_path / "small.gguf", folder)
    imported = import_model(tmp_path / "small.gguf", tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="small.gguf", dtype=torch.float32)
    torch.testing.assert_close(logits(load_model(imported.path), IDS), logits(theirs.eval(), IDS), rtol=0, atol=1e-4)
    assert "stored as F32" in imported.notes[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.decode(tokenizer("a gate may close").input_ids).endswith("a gate may close")


def test_build_model_and_load_weights_take_an_imported_model_as_a_run_of_ours(folder: Path, tmp_path: Path) -> None:
    imported = import_model(folder, tmp_path / "out")
    model = build_model(imported.config).eval()
    assert load_weights(model, tmp_path / "out" / "weights.safetensors") == 0
    assert torch.equal(logits(model, IDS), logits(load_model(imported.path), IDS))


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    alive, most, n, shape = 0, 0, 40, (64, 64)

    def read(name: str) -> Tensor:
        nonlocal alive, most
        made, alive = torch.randn(shape), alive + 1
        most = max(most, alive)
        weakref.finalize(made, died)
        return made

    def died() -> None:
        nonlocal alive
        alive -= 1

    names = [f"t{i}" for i in range(n)]
    source = Tensors("big", dict.fromkeys(names, shape), dict.fromkeys(names, torch.float32), read)
    plan = {name: Origin(name, shape, change) for name, change in zip(names, [None, lambda w: w * 2] * n, strict=False)}
    assert write(tmp_path / "w.safetensors", plan, source, metadata={}) == n * 64 * 64
    assert most <= 2 and alive == 0


def test_what_is_written_is_what_the_library_of_safetensors_reads(tmp_path: Path) -> None:
    held = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.randn(2, 2).double()}
    source = Tensors("x", {n: tuple(t.shape) for n, t in held.items()}, {n: t.dtype for n, t in held.items()}, held.get)
    plan = {n: Origin(n, tuple(t.shape)) for n, t in held.items()} | {"zero": Origin(None, (4,))}
    plan["turned"] = Origin("a", (3, 5), lambda w: w.T * 3)
    write(tmp_path / "w.safetensors", plan, source, metadata={"format": "pt"})
    found = load_file(tmp_path / "w.safetensors")
    expected = held | {"zero": torch.zeros(4), "turned": held["a"].T * 3}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in expected.items())


def edited(change: Callable[[dict[str, Tensor]], Any]) -> Change:
    def spoil(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file({n: t.contiguous() for n, t in held.items()}, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def header_of(text: bytes) -> Change:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)

    return spoil


def no_shard(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))


def outside(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../gone.safetensors"}}))


Q = "model.layers.0.self_attn.q_proj.weight"
SPOILT: dict[str, tuple[Change, str]] = {
    "missing": (edited(lambda w: w.pop(Q)), rf"tensor {re.escape(Q)} \[16, 16\] is missing"),
    "renamed": (
        edited(lambda w: w.update({Q.replace("q_proj", "q_prj"): w.pop(Q)})),
        r"is missing; did you mean 'model.layers.0.self_attn.q_prj.weight'\?",
    ),
    "extra": (edited(lambda w: w.update(more=torch.zeros(3))), r"tensor more \[3\] has no place in this configuration"),
    "shape": (edited(lambda w: w.update({Q: torch.zeros(32, 16)})), r"has shape \[32, 16\].* says \[16, 16\]"),
    "gated": (
        edited(lambda w: w.update({Q.replace("0", i): torch.zeros(20, 16) for i in "01"})),
        r"q_proj.weight has shape \[20, 16\], .*; model.layers.0.self_attn has the shapes of gated layout qwen-gated-headwise "
        r"\(headwise_attn_output_gate\), of which its config.json says nothing",
    ),
    "nan": (edited(lambda w: w[Q][0].fill_(float("nan"))), r"q_proj.weight \[16, 16\] holds 16 values that are NaN"),
    "quantised": (edited(lambda w: w.update({Q: torch.zeros(16, 16, dtype=torch.int8)})), "is stored as I8"),
    "layers": (changed(num_hidden_layers=1), r"tensor model.layers.1.* has no place"),
    "heads": (changed(num_key_value_heads=4), r"k_proj.weight has shape \[8, 16\], and .* says \[16, 16\]"),
    "tied": (changed(tie_word_embeddings=True), r"ties lm_head.weight \[300, 16\] to model.embed_tokens.weight"),
    "cut": (cut("model.safetensors"), "cut or damaged"),
    "long header": (header_of(b"{" + b" " * 50), "cannot be read"),
    "overlap": (
        header_of(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}1234'
        ),
        "cannot be read",
    ),
    "pickled": (pickled, "a pickle can run any code"),
    "shard": (no_shard, "gone.safetensors is missing, and its index names it"),
    "outside": (outside, "names files outside of its folder"),
    "activation": (changed(hidden_act="gelu"), r"hidden_act='gelu' of this llama cannot be expressed .*'silu'"),
    "longrope": (
        changed(
            rope_parameters={**ROPE, "rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0]}
        ),
        "rope_parameters=.*longrope.* cannot be expressed: .*'llama3'",
    ),
    "gate": (changed(headwise_attn_output_gate=True), "headwise_attn_output_gate=True of this llama asks for a gate"),
    "quantization": (changed(quantization_config={"quant_method": "fp8"}), "quantization_config"),
    "family": (changed(model_type="gpt_neox"), "models of type 'gpt_neox' are not imported; those of .*llama"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_checkpoint_is_refused_in_one_line_and_leaves_no_folder(name: str, copy: Path, tmp_path: Path) -> None:
    spoil, sentence = SPOILT[name]
    spoil(copy)
    with pytest.raises(ValueError, match=sentence) as refused:
        import_model(copy, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of a model of the hub, us/tiny, in the cache of a machine without a network; still empty."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    own = tmp_path / "hub" / "models--us--tiny"
    (own / "refs").mkdir(parents=True)
    (own / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    return own / "snapshots" / "0123456789abcdef0123456789abcdef01234567"


def test_a_model_of_the_hub_is_imported_from_the_cache_and_its_commit_noted(
    cache: Path, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, cache)
    imported = import_model("us/tiny", tmp_path / "out")
    assert "it is commit 0123456789ab of the hub's us/tiny" in imported.notes
    expected_BTV = logits(load_model(import_model(folder, tmp_path / "same").path), IDS)
    assert torch.equal(logits(load_model(tmp_path / "out"), IDS), expected_BTV)


def test_a_model_of_the_hub_whose_weights_are_not_in_the_cache_is_a_sentence(
    cache: Path, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, cache)
    (cache / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"us/tiny: .* not wholly in the cache"):
        import_model("us/tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_code_that_a_checkpoint_brings_is_not_run_and_that_is_noted(copy: Path, tmp_path: Path) -> None:
    changed(auto_map={"AutoModelForCausalLM": "code.Model"})(copy)
    (copy / "code.py").write_text("raise SystemExit('run')")
    assert "brings code of its own, which was not run" in import_model(copy, tmp_path / "out").notes[-1]


def test_a_folder_that_is_there_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ValueError, match="is there already and is left alone"):
        import_model(folder, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_a_family_that_is_not_ours_is_refused_with_the_reason(copy: Path, tmp_path: Path) -> None:
    changed(model_type="smollm3", pad_token_id=0)(copy)
    with pytest.raises(ValueError, match=r"'smollm3' cannot be expressed exactly: some of its layers have no rotary"):
        import_model(copy, tmp_path / "out")
    assert not set(NOT_OURS) & set(FAMILIES)


def test_positions_that_stretch_with_the_length_are_plain_within_the_trained_one_and_noted(tmp_path: Path) -> None:
    saved(tmp_path / "in", "LlamaForCausalLM", rope_parameters={**ROPE, "rope_type": "dynamic", "factor": 3.0})
    notes = import_model(tmp_path / "in", tmp_path / "out").notes
    assert any("stretched (dynamic) beyond 64 tokens" in note for note in notes)


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "qwen3-next-experts"])
def test_experts_that_are_stored_joined_are_those_that_are_stored_apart(name: str, tmp_path: Path) -> None:
    architecture, changes = PEERS[name]
    model = saved(tmp_path / "apart", architecture, **changes)
    save_tokenizer(tmp_path / "joined")
    model.save_pretrained(tmp_path / "joined", save_original_format=False)
    assert any("gate_up_proj" in n for n in load_file(tmp_path / "joined" / "model.safetensors"))
    shutil.copytree(tmp_path / "apart", tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    for place in ("apart", "joined", "pickled"):
        import_model(tmp_path / place, tmp_path / f"{place}-out", allow_pickle=place == "pickled")
    apart, *others = (load_file(tmp_path / f"{n}-out" / "weights.safetensors") for n in ("apart", "joined", "pickled"))
    for other in others:
        assert apart.keys() == other.keys() and all(torch.equal(apart[n], other[n]) for n in apart)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"decoder_sparse_step": 2}, "decoder_sparse_step=2"),
        ({"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\]"),
        ({"shared_expert_intermediate_size": 18}, "multiples of moe_intermediate_size=12 can"),
    ],
)
def test_experts_that_are_not_ours_are_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    saved(tmp_path / "in", "Qwen2MoeForCausalLM", **SHARED)
    changed(**changes)(tmp_path / "in")
    with pytest.raises(ValueError, match=sentence):
        import_model(tmp_path / "in", tmp_path / "out")


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "in", *PEERS["mixtral"][:1], **PEERS["mixtral"][1])
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    edited(lambda w: w.pop(name))(tmp_path / "in")
    with pytest.raises(ValueError, match=rf"tensor {re.escape(name)} \[16, 24\] is missing"):
        import_model(tmp_path / "in", tmp_path / "out")


def test_of_attention_that_is_nearly_gated_the_nearest_layout_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "in", "Qwen3ForCausalLM", head_dim=6)
    gate = "model.layers.0.self_attn.gate_proj.weight"
    edited(lambda w: w.update({gate: torch.zeros(23, 16)}))(tmp_path / "in")
    sentence = (
        rf"tensor {re.escape(gate)} \[23, 16\] has no place .*; the nearest layout of model.layers.0.self_attn is afmoe"
    )
    with pytest.raises(ValueError, match=sentence):
        import_model(tmp_path / "in", tmp_path / "out")


def test_windows_that_do_not_alternate_as_ours_are_refused(tmp_path: Path) -> None:
    kinds = ["full_attention", "full_attention", "sliding_attention"]
    changes = {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 3, "layer_types": kinds}
    saved(tmp_path / "in", "Qwen3ForCausalLM", **changes)
    with pytest.raises(ValueError, match=r"layer_types=.* every n-th"):
        import_model(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layer_types": ["linear_attention", "full_attention"]}, "layer_types=.* DeltaNet"),
        ({"num_experts": 4, "decoder_sparse_step": 2}, "decoder_sparse_step=2 .*layers without experts"),
        ({"num_experts": 4, "mlp_only_layers": [1]}, r"mlp_only_layers=\[1\] .*layers without experts"),
        ({"num_experts": 4, "shared_expert_intermediate_size": 700}, "shared_expert_intermediate_size=700"),
        ({"attn_output_gate": False}, "attn_output_gate=False"),
    ],
)
def test_what_of_qwen3_next_is_not_ours_is_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    saved(tmp_path / "in", "Qwen3NextForCausalLM", **NEXT)
    changed(**changes)(tmp_path / "in")
    with pytest.raises(ValueError, match=sentence):
        import_model(tmp_path / "in", tmp_path / "out")


def test_a_value_that_is_not_finite_is_counted() -> None:
    held = torch.tensor([1.0, float("inf"), float("nan")])
    with pytest.raises(ValueError, match=r"x: tensor t \[3\] holds 2 values"):
        make(Origin("t", (3,)), Tensors("x", {"t": (3,)}, {"t": torch.float32}, lambda name: held))
