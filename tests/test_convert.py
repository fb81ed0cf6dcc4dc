"""`gatelab convert`: a run to transformers, a checkpoint to a model of ours and back, and what it says when it cannot."""

import json
import re
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import save_model, save_tokenizer
from safetensors.torch import load_file

from gatelab import lab
from gatelab.cli import _status
from gatelab.config import ModelConfig, OptimConfig, ProbeConfig, Run, Text, TrainConfig
from gatelab.data import ByteTokenizer
from gatelab.models import build_model
from gatelab.models.generate import generate
from gatelab.models.interop import FAMILIES, NOT_OURS, load_model
from gatelab.models.interop.destination import destination
from gatelab.models.interop.native import CLASSES
from gatelab.models.interop.tokenizer import byte_tokenizer
from gatelab.study.study import Arm, Study
from gatelab.train.checkpoint import load_weights

pytest.importorskip("transformers")

TEXT = "Nähe und Ferne: a gate may close,\n\tand a sink may stay. " * 40
ARMS = (
    Arm("plain", {"model.gate": "none"}),
    Arm("window", {"model.window": 5}),
    Arm("qk-norm", {"model.qk_norm": "rms"}),
    Arm("gated", {"model.gate": "sdpa-headwise"}),
)
WRITTEN = {"plain": "llama", "window": "mistral", "qk-norm": "qwen3", "gated": "gatelab"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Finished runs on bytes of a text and on a BPE, by arm and tokenizer."""
    place = tmp_path_factory.mktemp("runs")
    (place / "text.txt").write_text(TEXT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATELAB_CACHE", str(place / "cache"))
        cells = {
            tokenizer: Run(
                model=ModelConfig(d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, gate="none"),
                data=Text(paths=(str(place / "text.txt"),), val_share=0.3, tokenizer=tokenizer),
                optim=OptimConfig(lr=1e-2),
                train=TrainConfig(tokens=12 * 2 * 16, batch_size=2, seq_len=16),
                probe=ProbeConfig(times=1, sequences=2, eval_sequences=2),
            )
            for tokenizer in ("byte", "bpe:300")
        }
        folder, _ = lab.run(
            Study(name="text", question="?", cells=cells, arms=ARMS, seeds=(0,), match=None), place / "study"
        )
        yield {f"{entry['arm']} {entry['cell']}": run.path for entry, run in folder.planned()}


def gatelab(*words: object) -> tuple[int, str]:
    said = StringIO()
    with redirect_stderr(said):
        status = _status([str(word) for word in words])
    return status, said.getvalue()


def read(folder: Path) -> tuple[Any, Any]:
    """The model and the tokenizer as transformers loads them."""
    import transformers

    trust = {"trust_remote_code": (folder / "modeling_gatelab.py").exists()}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **trust)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder, **trust)


@pytest.mark.parametrize("arm", WRITTEN)
def test_a_run_on_bytes_writes_the_same_text_in_transformers(arm: str, runs: dict[str, Path], tmp_path: Path) -> None:
    status, said = gatelab("convert", runs[f"{arm} byte"], tmp_path / "out", "--to", "hf")
    assert status == 0 and WRITTEN[arm] in said and "with its tokenizer" in said
    model, tokenizer = read(tmp_path / "out")
    ids = tokenizer("a gäte").input_ids
    assert ids == [256, *"a gäte".encode()]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a gäte"
    config = json.loads((runs[f"{arm} byte"] / "run.json").read_text())["run"]
    ours = build_model(Run.model_validate(config).resolved(259).model).eval()
    load_weights(ours, runs[f"{arm} byte"] / "weights.safetensors")
    prompt = torch.tensor([ids])
    text = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False)
    expected = generate(ours, prompt, 8)
    assert torch.equal(text, expected[:, : text.shape[1]]) and text.shape[1] > prompt.shape[1]


def test_a_run_on_a_bpe_takes_the_tokenizer_that_was_trained_on_its_text(runs: dict[str, Path], tmp_path: Path) -> None:
    from gatelab.data import LoadedTokenizer

    lab.export(runs["plain bpe:300"], tmp_path / "out")
    model, tokenizer = read(tmp_path / "out")
    ids = tokenizer("a gate may close").input_ids
    own = LoadedTokenizer(tmp_path / "out" / "tokenizer.json")
    assert ids == [own.bos_id, *own.encode([b"a gate may close"])[0].tolist()] and len(ids) < 12
    assert (model.config.bos_token_id, model.config.eos_token_id) == (own.bos_id, own.eos_id)
    assert model.generation_config.eos_token_id == own.eos_id


def test_the_card_of_a_run_has_its_last_measurements(runs: dict[str, Path], tmp_path: Path) -> None:
    lab.export(runs["gated byte"], tmp_path / "out")
    rows = [json.loads(line) for line in (runs["gated byte"] / "rows.jsonl").read_text().splitlines()]
    loss = next(r["value"] for r in reversed(rows) if r["metric"] == "val_loss" and r.get("domain") is None)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| `val_loss` | {loss:.6g} | nats |" in card
    assert "| `gate` | `sdpa-headwise` |" in card and "12 steps, 384 tokens in sequences of 16, seed 0" in card


def test_our_byte_tokenizer_has_the_ids_of_bytes_for_every_text() -> None:
    library = byte_tokenizer()
    text = "".join(map(chr, range(0x20))) + " ~\x7f äß€😀  \n\r\n" + "x" * 300
    assert library.encode(text, add_special_tokens=False).ids == list(text.encode())
    assert library.decode(list(text.encode())) == text
    ours = ByteTokenizer()
    assert [library.token_to_id(w) for w in ("<|bos|>", "<|endoftext|>", "<|pad|>")] == [
        ours.bos_id,
        ours.eos_id,
        ours.pad_id,
    ]


def test_there_and_back_again_every_bit_is_the_same(tmp_path: Path) -> None:
    save_model(tmp_path / "in", "Qwen3ForCausalLM", head_dim=6)
    save_tokenizer(tmp_path / "in")
    status, said = gatelab("convert", tmp_path / "in", tmp_path / "ours", "--to", "gatelab")
    assert status == 0 and "decoder, 2 layers, width 16" in said
    assert load_model(tmp_path / "ours").config.qk_norm == "rms"
    status, said = gatelab("convert", tmp_path / "ours", tmp_path / "out", "--to", "hf")
    assert status == 0 and "qwen3 (native)" in said
    before, after = (load_file(tmp_path / n / "model.safetensors") for n in ("in", "out"))
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def test_a_checkpoint_goes_to_another_layout_of_gated_attention_and_back(tmp_path: Path) -> None:
    full = {"layer_types": ["full_attention"] * 2, "num_experts": 0, "head_dim": 8}
    save_model(tmp_path / "in", "Qwen3NextForCausalLM", **full)
    save_tokenizer(tmp_path / "in")
    status, said = gatelab("convert", tmp_path / "in", tmp_path / "out", "--layout", "megatron")
    assert status == 0 and "2 attention layers from qwen3-next to megatron" in said
    assert "Note: only attention was rewritten" in said and (tmp_path / "out" / "tokenizer.json").exists()
    words = ("--layout", "qwen3-next", "--from-layout", "megatron")
    status, said = gatelab("convert", tmp_path / "out", tmp_path / "back", *words)
    assert status == 0 and "from megatron to qwen3-next" in said
    before, after = (load_file(tmp_path / n / "model.safetensors") for n in ("in", "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def test_the_document_names_every_family_that_is_read_not_read_and_written() -> None:
    text = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    read, _, rest = text.partition("| not read |")
    refused, _, written = rest.partition("## What is written")
    assert re.findall(r"^\| `(\w+)` \|", read, re.M)[1:] == sorted(FAMILIES)
    assert {name for row in re.findall(r"^\| (`.+?) \|", refused, re.M) for name in re.findall(r"`(\w+)`", row)} == set(
        NOT_OURS
    )
    assert set(re.findall(r"`(\w+ForCausalLM)`", written)) == {*CLASSES.values(), "GatelabForCausalLM"}


def cut_model_json(ours: Path) -> None:
    path = ours / "model.json"
    path.write_text(path.read_text()[:40])


def other_schema(ours: Path) -> None:
    path = ours / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 0}))


def no_origin(ours: Path) -> None:
    path = ours / "model.json"
    content = json.loads(path.read_text())
    del content["from"]
    path.write_text(json.dumps(content))


def wider(ours: Path) -> None:
    path = ours / "model.json"
    content = json.loads(path.read_text())
    content["model"]["d_ff"] = 48
    path.write_text(json.dumps(content))


def unknown_key(ours: Path) -> None:
    path = ours / "model.json"
    content = json.loads(path.read_text())
    content["model"]["d_fff"] = 48
    path.write_text(json.dumps(content))


def no_weights(ours: Path) -> None:
    (ours / "weights.safetensors").unlink()


SPOILT = {
    cut_model_json: "cannot be read as JSON",
    other_schema: "schema 0 of another version of Gatelab",
    no_origin: "or edited",
    wider: "mlp.w1.weight has shape [24, 16], and its configuration says [48, 16]",
    unknown_key: "d_fff: no such key",
    no_weights: "holds no weights.safetensors",
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda f: f.__name__)
def test_a_spoilt_folder_of_ours_is_refused_and_nothing_is_written(spoil: Any, tmp_path: Path) -> None:
    save_model(tmp_path / "in", "LlamaForCausalLM")
    save_tokenizer(tmp_path / "in")
    lab.import_checkpoint(tmp_path / "in", tmp_path / "ours")
    spoil(tmp_path / "ours")
    status, said = gatelab("convert", tmp_path / "ours", tmp_path / "out", "--to", "hf")
    assert status in (1, 2) and SPOILT[spoil] in said and "Traceback" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "ours"]


def test_what_cannot_be_converted_is_said_in_a_sentence(runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["plain byte"]
    (tmp_path / "file").write_text("x")
    said = {
        ("convert", tmp_path / "nowhere", tmp_path / "out", "--to", "hf"): "no such folder or file",
        ("convert", tmp_path / "nowhere", tmp_path / "out", "--to", "gatelab"): "no such folder or file",
        (
            "convert",
            run,
            tmp_path / "out",
            "--to",
            "gatelab",
            "--allow-pickle",
        ): "is a run, of which nothing is pickled",
        ("convert", run.parent.parent, tmp_path / "out", "--to", "hf"): "is a whole study",
        ("convert", run, tmp_path / "file", "--to", "hf"): "is there already",
        ("convert", run, run / "out", "--to", "hf"): "lies inside",
        ("convert", "org/name", tmp_path / "out", "--to", "hf"): "is a checkpoint of transformers already",
        ("convert", run, tmp_path / "file" / "out", "--to", "hf"): "is a file",
        ("convert", run, run, "--to", "hf"): "is there already and is left alone",
        ("convert", run, tmp_path / "out", "--to", "hf", "--allow-pickle"): "--allow-pickle is for --to gatelab",
        ("convert", run, tmp_path / "out", "--to", "onnx"): "onnx",
        ("convert", run, tmp_path / "out"): "one of --to and --layout says what is wanted",
        ("convert", run, tmp_path / "out", "--to", "hf", "--layout", "step"): "one of --to and --layout",
        ("convert", run, tmp_path / "out", "--to", "hf", "--from-layout", "step"): "--from-layout goes with --layout",
        ("convert", run, tmp_path / "out", "--layout", "step"): "is a model of Gatelab",
        ("convert", tmp_path / "nowhere", tmp_path / "out", "--layout", "step"): "holds no config.json",
        ("convert", tmp_path / "nowhere", tmp_path / "out", "--layout", "stop"): "did you mean 'step'",
    }
    for words, sentence in said.items():
        status, text = gatelab(*words)
        assert status in (1, 2) and sentence in text, (words, text)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_destination_inside_the_source_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    refused = pytest.raises(ValueError, match=r"lies inside .*model, which is read; name a folder outside of it")
    with refused, destination(source / "sub", source):
        raise AssertionError("nothing is written")
    assert not list(source.iterdir())
