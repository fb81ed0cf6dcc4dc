"""Models of the hub: from the cache where they are there, one sentence where they are not to be had. Nothing is fetched."""

import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import changed

from gatelab.models.external import is_hub_id, load_external
from gatelab.models.external.hub import _why

huggingface_hub = pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a machine without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def in_cache(cache: Path, folder: Path) -> Path:
    """The folder as the cache keeps the model us/tiny."""
    own = cache / "models--us--tiny"
    (own / "refs").mkdir(parents=True)
    (own / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(folder, own / "snapshots" / COMMIT))


def test_a_hub_id_is_read_from_the_cache_and_its_commit_noted(cache: Path, folder: Path) -> None:
    in_cache(cache, folder)
    for source in ("us/tiny", f"us/tiny@{COMMIT}"):
        loaded = load_external(source)
        assert loaded.name == source
        assert "it is commit 0123456789ab of the hub's us/tiny" in loaded.notes
        assert torch.equal(loaded.model.norm.weight, load_external(folder).model.norm.weight)


def test_a_hub_id_that_is_not_to_be_had_is_a_sentence(cache: Path, folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"us/tiny: .* not wholly in the cache .*HF_HUB_OFFLINE.*`hf download us/tiny`"
    ):
        load_external("us/tiny")
    with pytest.raises(ValueError, match="`hf download us/tiny --revision step8`"):
        load_external("us/tiny@step8")
    snapshot = in_cache(cache, folder)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="not wholly in the cache"):
        load_external("us/tiny")
    changed(model_type="theirs", auto_map={"AutoModel": "code.Model"})(snapshot)
    with pytest.raises(ValueError, match=r"us/tiny: .*'theirs' needs code of its own"):
        load_external("us/tiny")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("RepositoryNotFoundError", "no public model of the hub; name a local folder"),
        ("GatedRepoError", "ask for an agreement"),
        ("RevisionNotFoundError", "has no such revision"),
    ],
)
def test_what_the_hub_answers_becomes_a_sentence(error: str, sentence: str) -> None:
    kind = getattr(huggingface_hub.errors, error)
    raised = kind.__new__(kind)
    outer = OSError("transformers says it at length")
    outer.__cause__ = raised
    assert sentence in _why(outer, "us/tiny", "hf download us/tiny")
    assert _why(KeyError("another kind"), "us/tiny", "") is None


def test_a_path_is_never_taken_for_a_hub_id(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert is_hub_id("org/name") and is_hub_id("org/name@step1000") and is_hub_id("HuggingFaceTB/SmolLM2-135M")
    for path in ("runs/none", "org", "/org/name", "./org/name", "../org/name", "a/b/c", "org/na me", str(folder)):
        assert not is_hub_id(path)
    for name in ("runs/none", "x" * 300, "no\nname"):
        with pytest.raises(ValueError, match=f"^{name}: no such folder or file"):
            load_external(name)
