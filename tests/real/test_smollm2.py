"""SmolLM2-135M-Instruct: a pretrained decoder of 30 layers, 9 query and 3 key/value heads, as 4-bit GGUF weights."""

import pytest
import torch
from matrices import agree, eager, ids_of, observed, of_model, prose

from gatelab.models.external import Checkpoint, External
from gatelab.models.footprint import Prefill, needed


def test_what_it_is_and_needs_is_known_before_its_weights_are_read(smollm2_opened: Checkpoint) -> None:
    assert (smollm2_opened.n_weights, smollm2_opened.max_tokens) == (134_515_008, 8192)
    need = needed(smollm2_opened.config, smollm2_opened.n_weights, Prefill(8192, chunk=1024))
    assert (need.weights, need.cache) == (538_060_032, 4 * 30 * 2 * 3 * 64 * 8192)


def test_it_is_what_its_package_says(smollm2: External) -> None:
    config = smollm2.model.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
    assert sum(p.numel() for p in smollm2.model.parameters()) == 134_515_008
    assert all(p.dtype == torch.float32 for p in smollm2.model.parameters())
    assert smollm2.max_tokens == 8192


def test_its_tokenizer_puts_nothing_before_a_text(smollm2: External) -> None:
    ids = smollm2.tokenizer("Hello world").input_ids
    assert ids == [19556, 905] and not set(ids) & set(smollm2.tokenizer.all_special_ids)


def test_it_says_that_its_weights_are_dequantised_and_that_no_token_of_its_own_comes_first(smollm2: External) -> None:
    notes = " ".join(smollm2.notes)
    assert "stored as Q4_1 and were dequantised" in notes
    assert "puts nothing before a text" in notes and "chat template" in notes


def test_rows_equal_those_of_eager_matrices_at_512_tokens(smollm2: External) -> None:
    ids_BT = ids_of(smollm2, 512)
    assert ids_BT.shape == (1, 512)
    agree(observed(smollm2, ids_BT), eager(smollm2, ids_BT, is_causal=True), stack=None)


def test_it_has_sinks_by_the_documented_threshold_at_2048_tokens(smollm2: External) -> None:
    rows = observed(smollm2, ids_of(smollm2, 2048), probes=("sinks",))
    assert {r.length for r in rows if r.metric == "first_token_mass"} == {2048}
    assert of_model(rows, "sink_rate", 0.3) > 0.2
    assert of_model(rows, "first_token_mass") > 10 * of_model(rows, "first_token_uniform")


@pytest.mark.slow
def test_it_is_probed_at_its_full_length(smollm2: External) -> None:
    ids_BT = ids_of(smollm2, 8192, prose() * 4)
    assert ids_BT.shape == (1, 8192)
    rows = observed(smollm2, ids_BT, probes=("sinks",))
    assert {r.length for r in rows if r.metric == "first_token_mass"} == {8192}
    assert of_model(rows, "first_token_mass") > 10 * of_model(rows, "first_token_uniform")
