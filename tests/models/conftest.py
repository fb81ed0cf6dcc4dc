"""A tiny checkpoint in a folder, and a copy of it to be changed."""

import shutil
from pathlib import Path

import pytest
from checkpoints import save_model, save_tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of transformers with its tokenizer."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    save_model(folder, "LlamaForCausalLM")
    save_tokenizer(folder)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))
