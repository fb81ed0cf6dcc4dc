"""Somebody's checkpoint is loaded as it is stored; what cannot be is one sentence, and runs no code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import Change, changed, cut, pickled, save_model, save_tokenizer, without, write_gguf
from safetensors.torch import load_file, save_file

from gatelab.models.external import Loading, checkpoint, gguf, load_external, open_external

transformers = pytest.importorskip("transformers")

T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name.removeprefix("model."): value for name, value in model.state_dict().items()}


def test_a_decoder_is_loaded_with_and_without_its_head(folder: Path) -> None:
    own = save_model(folder.parent / "again", "LlamaForCausalLM")
    bare, whole = load_external(folder), load_external(folder, Loading(head=True))
    assert type(bare.model).__name__ == "LlamaModel" and type(whole.model).__name__ == "LlamaForCausalLM"
    for name, value in weights(whole.model).items():
        assert torch.equal(value, weights(own)[name])
        assert name == "lm_head.weight" or torch.equal(value, weights(bare.model)[name])
    assert not bare.model.training and bare.name == "small" and bare.max_tokens == 64


def test_an_encoder_and_an_encoder_decoder_are_loaded(tmp_path: Path) -> None:
    save_model(tmp_path / "bert", "BertForMaskedLM")
    save_model(tmp_path / "t5", "T5ForConditionalGeneration", **T5)
    for name in ("bert", "t5"):
        save_tokenizer(tmp_path / name)
    assert type(load_external(tmp_path / "bert").model).__name__ == "BertModel"
    assert type(load_external(tmp_path / "t5").model).__name__ == "T5Model"
    both = load_external(tmp_path / "t5", Loading(head=True))
    assert type(both.model).__name__ == "T5ForConditionalGeneration"
    with pytest.raises(ValueError, match="'bert' predicts no next token"):
        open_external(tmp_path / "bert", Loading(head=True))


def test_weights_are_counted_and_typed_before_they_are_read(folder: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "tied", "LlamaForCausalLM", tie_word_embeddings=True, dtype=torch.bfloat16)
    save_tokenizer(tmp_path / "tied")
    for place, loading, dtype in (
        (folder, Loading(), torch.float32),
        (folder, Loading(head=True, dtype="bfloat16"), torch.bfloat16),
        (tmp_path / "tied", Loading(head=True, dtype="auto"), torch.bfloat16),
        (tmp_path / "tied", Loading(), torch.float32),
    ):
        opened = open_external(place, loading)
        model = opened.load().model
        assert opened.n_weights == sum(p.numel() for p in model.parameters())
        assert {p.dtype for p in model.parameters()} == {dtype} and opened.dtype == str(dtype).removeprefix("torch.")


def test_where_the_configuration_states_no_type_that_of_the_stored_weights_is_taken(tmp_path: Path) -> None:
    save_model(tmp_path, "LlamaForCausalLM", dtype=torch.float16)
    save_tokenizer(tmp_path)
    changed(dtype=None, torch_dtype=None)(tmp_path)
    assert open_external(tmp_path, Loading(dtype="auto")).dtype == "float16"


def test_notes_say_what_comes_first_in_a_text(folder: Path, copy: Path) -> None:
    assert load_external(folder).notes == ("its tokenizer begins every text with '<s>'",)
    save_tokenizer(copy, begins=False)
    assert "puts nothing before a text" in load_external(copy).notes[0]


def test_stored_weights_that_a_model_reads_past_are_said_and_heads_that_were_not_asked_for_are_not(copy: Path) -> None:
    assert not [note for note in load_external(copy).notes if "not read" in note]  # lm_head is left out
    held = load_file(copy / "model.safetensors")
    gates = {f"model.layers.{i}.self_attn.g_proj.weight": torch.zeros(4, 16) for i in (0, 1)}
    save_file(held | gates, copy / "model.safetensors", metadata={"format": "pt"})
    for head in (False, True):
        (note,) = (n for n in load_external(copy, Loading(head=head)).notes if "not read" in n)
        assert note.startswith("2 of its weights are not read, such as model.layers.0.self_attn.g_proj.weight")


def test_a_gguf_file_is_loaded(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    stored = write_gguf(tmp_path / "small.gguf", folder)
    opened = open_external(tmp_path / "small.gguf", Loading(dtype="bfloat16"))
    loaded = opened.load()
    assert opened.n_weights == sum(weight.size for weight in stored.values())
    expected = torch.from_numpy(stored["blk.0.ffn_up"]).bfloat16()
    assert torch.equal(loaded.model.layers[0].mlp.up_proj.weight, expected)
    assert (loaded.name, loaded.max_tokens) == ("small.gguf", 64)
    assert loaded.notes[0] == "its weights are stored as F32"


def test_a_gguf_file_is_parsed_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    write_gguf(tmp_path / "small.gguf", folder)
    real, read = gguf.GGUFReader, []

    def counted(path: Path, *mode: str) -> object:
        read.append(path)
        return real(path, *mode)

    monkeypatch.setattr(gguf, "GGUFReader", counted)
    open_external(tmp_path / "small.gguf").with_head().load()
    assert len(read) == 1 and gguf.GGUFReader is counted


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return Path.touch, (self.path,)


def test_pickled_weights_are_opened_only_when_asked_for(folder: Path, copy: Path) -> None:
    model = save_model(copy, "LlamaForCausalLM")
    without("*.safetensors")(copy)
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"weights are pickled .pytorch_model.bin.*--allow-pickle"):
        load_external(copy)
    found = weights(load_external(copy, Loading(allow_pickle=True, head=True)).model)
    assert all(torch.equal(found[name], value) for name, value in weights(model).items())


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(copy: Path, tmp_path: Path, is_zip: bool) -> None:
    without("*.safetensors")(copy)
    trace = tmp_path / "it-ran"
    torch.save({"x": Evil(trace)}, copy / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match="its pickle holds more than weights or is damaged, so it was not opened"):
        load_external(copy, Loading(allow_pickle=True))
    assert not trace.exists()


OWN_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaModel
Path({trace!r}).touch()
class TheirConfig(LlamaConfig):
    model_type = "theirs"
class TheirModel(LlamaModel):
    config_class = TheirConfig
"""


def test_a_checkpoints_own_code_is_run_only_when_asked_for(copy: Path, tmp_path: Path) -> None:
    trace = tmp_path / "it-ran"
    (copy / "modeling_theirs.py").write_text(OWN_CODE.format(trace=str(trace)))
    auto_map = {"AutoConfig": "modeling_theirs.TheirConfig", "AutoModel": "modeling_theirs.TheirModel"}
    changed(model_type="theirs", auto_map=auto_map)(copy)
    with pytest.raises(ValueError, match="'theirs' needs code of its own, which is run only with --trust-remote-code"):
        load_external(copy)
    assert not trace.exists()
    loaded = load_external(copy, Loading(trust_remote_code=True))
    assert trace.exists() and type(loaded.model).__name__ == "TheirModel"
    assert loaded.model(torch.tensor([[1, 2, 3]])).last_hidden_state.shape == (1, 3, 16)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("tokenizer*"), "has no tokenizer"),
        (pickled, "weights are pickled .pytorch_model.bin."),
        (without("*.safetensors"), "holds no weights"),
        (without("config.json"), "holds no config.json; name the folder that does"),
        (changed(model_type="theirs"), "'theirs' is not known"),
        (changed(num_hidden_layers=3), "9 weights are missing, such as layers.2.* copy the file"),
        (
            changed(hidden_size=24),
            r"weight embed_tokens.weight has shape \[300, 16\], and its configuration says \[300, 24\]; and 19 more; .* take both",
        ),
        (
            changed(num_attention_heads=0),
            "what its configuration describes cannot be read|configuration cannot be read",
        ),
        (changed(num_attention_heads=3), r"configuration cannot be read \(.*: .*\b16\b.* not a multiple .*3"),
        (cut("model.safetensors"), "weights cannot be read .* a file was cut or damaged, so copy it again"),
        (cut("config.json"), "is no JSON object"),
        (cut("tokenizer.json"), "tokenizer cannot be read"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_sentence(copy: Path, change: Change, sentence: str) -> None:
    change(copy)
    with pytest.raises(ValueError, match=sentence) as raised:
        load_external(copy)
    assert str(raised.value).startswith(str(copy)) and len(str(raised.value).splitlines()) == 1


def test_a_gguf_file_that_is_cut_or_one_of_several_is_refused(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    path = tmp_path / "small.gguf"
    write_gguf(path, folder)
    content = path.read_bytes()
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(content[: max(5, int(share * len(content)))])
        with pytest.raises(ValueError, match="not a whole GGUF file"):
            load_external(path)
    (tmp_path / "small-00001-of-00003.gguf").write_bytes(content)
    with pytest.raises(ValueError, match="is one of 3 parts; join them"):
        load_external(tmp_path / "small-00001-of-00003.gguf")
    import gguf as written

    writer = written.GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 2)
    writer.add_tensor("token_embd.weight", np.ones((3, 4), dtype=np.float32))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    with pytest.raises(ValueError, match="is one of 2 parts; join them"):
        load_external(path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="is no GGUF file"):
        load_external(tmp_path / "x.gguf")
    with pytest.raises(ValueError, match=r"holds no config\.json; name its x.gguf"):
        load_external(tmp_path)


def test_without_transformers_or_gguf_it_says_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(ValueError, match=r"needs gguf: pip install 'gatelab\[hf\]'"):
        load_external(tmp_path / "x.gguf")
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs transformers"):
        load_external(folder)


def test_a_device_that_is_not_there_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cuda: this torch sees no CUDA device"):
        open_external(folder, Loading(device="cuda"))
    assert open_external(folder, Loading(device="auto")).device == "cpu"
