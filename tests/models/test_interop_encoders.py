"""BERT and RoBERTa as encoders of ours: equal hidden states, segments included, and what is left out is said."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import changed, save_model, save_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gatelab.config import ModelConfig
from gatelab.models import build_model
from gatelab.models.interop import import_model, load_model

pytest.importorskip("transformers")

IDS = torch.randint(2, 300, (2, 11), generator=torch.Generator().manual_seed(1))
TYPES = (torch.arange(11) > 5).long().expand(2, -1)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", {}),
    "bert-masked": ("BertForMaskedLM", {"type_vocab_size": 3}),
    "bert-classes": ("BertForSequenceClassification", {}),
    "roberta": ("RobertaModel", {"pad_token_id": 1, "type_vocab_size": 2}),
    "roberta-masked": ("RobertaForMaskedLM", {"pad_token_id": 1, "type_vocab_size": 1}),
}


def saved(folder: Path, architecture: str, **changes: Any) -> nn.Module:
    model = save_model(folder, architecture, **changes)
    save_tokenizer(folder)
    return model.eval()


@torch.no_grad()
def hidden(model: nn.Module, types_BT: Tensor | None) -> Tensor:
    """The last hidden state of a model of transformers, with its head or without."""
    bare = getattr(model, model.base_model_prefix, model)
    return bare(input_ids=IDS, token_type_ids=types_BT).last_hidden_state


@pytest.mark.parametrize("name", MODELS)
def test_an_imported_encoder_gives_the_hidden_states_of_transformers(name: str, tmp_path: Path) -> None:
    architecture, changes = MODELS[name]
    theirs = saved(tmp_path / "in", architecture, **changes)
    imported = import_model(tmp_path / "in", tmp_path / "out")
    ours, expected_BTD = load_model(imported.path), hidden(theirs, None)
    torch.testing.assert_close(ours.hidden(IDS), expected_BTD, rtol=0, atol=1e-4)
    if changes.get("type_vocab_size", 2) > 1:
        segments_BTD = hidden(theirs, TYPES)
        torch.testing.assert_close(ours.hidden(IDS, token_types_BT=TYPES), segments_BTD, rtol=0, atol=1e-4)
        assert (segments_BTD - expected_BTD).abs().max() > 0.1
    assert any("its head here is the table of its embeddings" in note for note in imported.notes)
    assert torch.equal(ours(IDS), ours.head(ours.hidden(IDS)))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("bert", r"its pooler was left out, 2 tensors such as bert.pooler.dense.bias \[16\]"),
        ("bert-masked", r"its head for words was left out, 5 tensors such as cls.predictions.bias \[300\]"),
        ("bert-classes", r"its head of another task was left out, 2 tensors such as classifier.bias \[2\]"),
        ("roberta-masked", r"its head for words was left out, 5 tensors such as lm_head.bias \[300\]"),
    ],
)
def test_what_was_left_out_is_said(name: str, sentence: str, tmp_path: Path) -> None:
    architecture, changes = MODELS[name]
    saved(tmp_path / "in", architecture, **changes)
    notes = import_model(tmp_path / "in", tmp_path / "out").notes
    assert any(re.search(sentence, note) for note in notes), notes
    stored = json.loads((tmp_path / "out" / "model.json").read_text())["notes"]
    assert any(re.search(sentence, note) for note in stored)


def test_the_longest_text_of_a_roberta_is_ours_too(tmp_path: Path) -> None:
    saved(tmp_path / "in", "RobertaModel", pad_token_id=1)
    config = import_model(tmp_path / "in", tmp_path / "out").config
    assert config.max_seq_len == 62  # of 64 rows, the first two are padding's
    ours = load_model(tmp_path / "out")
    assert ours.hidden(torch.full((1, 62), 7)).isfinite().all()
    with pytest.raises(ValueError, match="63 tokens are more than max_seq_len=62"):
        ours.hidden(torch.full((1, 63), 7))


def test_early_names_and_a_stored_buffer_of_positions_are_understood(tmp_path: Path) -> None:
    saved(tmp_path / "in", "BertModel")
    import_model(tmp_path / "in", tmp_path / "new")
    file = tmp_path / "in" / "model.safetensors"
    held = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in load_file(file).items()
    }
    save_file(held | {"embeddings.position_ids": torch.arange(64)[None]}, file, metadata={"format": "pt"})
    import_model(tmp_path / "in", tmp_path / "old")
    new, old = (load_file(tmp_path / n / "weights.safetensors") for n in ("new", "old"))
    assert new.keys() == old.keys() and all(torch.equal(new[n], old[n]) for n in new)


def test_a_pickled_encoder_is_read_where_that_is_allowed(tmp_path: Path) -> None:
    theirs = saved(tmp_path / "in", "BertForMaskedLM")
    (tmp_path / "in" / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "in" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="a pickle can run any code"):
        import_model(tmp_path / "in", tmp_path / "out")
    import_model(tmp_path / "in", tmp_path / "out", allow_pickle=True)
    torch.testing.assert_close(load_model(tmp_path / "out").hidden(IDS), hidden(theirs, None), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act='gelu_new' of this bert cannot be expressed exactly"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"num_hidden_layers": 1}, r"tensor bert.encoder.layer.1.* has no place"),
    ],
)
def test_another_bert_is_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    saved(tmp_path / "in", "BertModel")
    changed(**changes)(tmp_path / "in")
    with pytest.raises(ValueError, match=sentence):
        import_model(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_kinds_of_tokens_are_the_encoder_s_and_have_the_tokens_shape() -> None:
    sizes = {"vocab_size": 9, "max_seq_len": 8, "d_model": 8, "n_layers": 1, "n_heads": 2, "arch": "encoder"}
    plain, with_kinds = (build_model(ModelConfig(**sizes, n_token_types=n)) for n in (0, 2))
    ids_BT = torch.zeros(1, 4, dtype=torch.long)
    for model, types_BT in ((plain, ids_BT), (with_kinds, ids_BT[:, :3])):
        with pytest.raises(ValueError, match=r"token_types of shape .* give one for each token"):
            model.hidden(ids_BT, token_types_BT=types_BT)
    assert torch.equal(with_kinds.hidden(ids_BT), with_kinds.hidden(ids_BT, token_types_BT=ids_BT))
    with pytest.raises(ValueError, match="n_token_types=2 belongs to arch=encoder"):
        ModelConfig(**sizes | {"arch": "decoder"}, n_token_types=2)
