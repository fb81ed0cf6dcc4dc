"""examples/probe_checkpoint.py does what it says on a model that has never been seen: facts, heads in order, one edit."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from checkpoints import WORDS, save_model, save_tokenizer

from gatelab.record import Row

transformers = pytest.importorskip("transformers")

EXAMPLE = Path(__file__).parent.parent / "examples" / "probe_checkpoint.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("probe_checkpoint", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random decoder with two query heads a key/value head, its tokenizer, and a text beside it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    save_model(folder, "LlamaForCausalLM")
    save_tokenizer(folder)
    (folder.parent / "text.txt").write_text(WORDS)
    return folder


def probed(example: ModuleType, folder: Path, **options: int):
    return example.main(folder, text=str(folder.parent / "text.txt"), length=24, documents=2, **options)


def test_it_is_under_sixty_lines() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 60


def test_it_prints_three_facts_then_heads_then_the_edit(
    example: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    look = probed(example, folder, heads=3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == look.facts[:3] and lines[1].startswith("The first token takes")
    (at,) = [i for i, line in enumerate(lines) if line == "The heads whose first key takes most:"]
    assert [line.startswith("  layer ") for line in lines[at + 1 : at + 5]] == [True, True, True, False]
    assert lines[-5:] == look.effects.lines()[1:] and "control" in lines[-1]


def test_its_heads_are_those_of_the_eager_matrices(example: ModuleType, folder: Path) -> None:
    found = example.strongest(probed(example, folder).rows, 8)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(WORDS, add_special_tokens=False).input_ids
    ids_BT = torch.tensor([[0, *ids[i * 23 : (i + 1) * 23]] for i in range(8)])
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        maps = model(ids_BT, output_attentions=True).attentions
    mass = {(layer, h): maps[layer][:, h, 1:, 0].mean().item() for layer in range(2) for h in range(4)}
    assert [at[:2] for at in found] == sorted(mass, key=mass.__getitem__, reverse=True)
    assert all(value == pytest.approx(mass[layer, h], abs=1e-5) for layer, h, value in found)


def test_the_edit_changes_the_loss_and_dose_zero_does_not(example: ModuleType, folder: Path) -> None:
    (curve,) = probed(example, folder).effects.curves
    assert curve.intervention.word == "zero-value@first" and curve.control.word == "zero-value@other-first"
    assert [c.dose for c in curve.changes] == [0, 0.25, 0.5, 1]
    assert curve.changes[0].mean == 0 and all(abs(c.mean) > 1e-6 for c in curve.changes[1:])


def test_heads_of_other_stacks_and_domains_are_not_counted(example: ModuleType) -> None:
    def row(value: float, layer: int | None, head: int | None, **at: str) -> Row:
        return Row("x", 0, "sinks", "first_token_mass", value, "share", layer=layer, head=head, **at)

    rows = [
        row(0.2, 0, 1), row(0.4, 1, 0), row(0.9, None, None), row(0.8, 1, None),
        row(0.7, 0, 0, stack="cross"), row(0.6, 0, 1, domain="code"),
    ]  # fmt: skip
    assert example.strongest(rows, 5) == [(1, 0, 0.4), (0, 1, 0.2)]


def test_a_model_that_predicts_no_next_token_is_refused_in_one_sentence(example: ModuleType, tmp_path: Path) -> None:
    save_model(tmp_path / "bert", "BertModel")
    save_tokenizer(tmp_path / "bert")
    with pytest.raises(ValueError, match="predicts no next token"):
        example.main(tmp_path / "bert", length=20)


def test_a_folder_without_a_tokenizer_is_refused(example: ModuleType, folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="has no tokenizer"):
        example.main(copy, length=20)
