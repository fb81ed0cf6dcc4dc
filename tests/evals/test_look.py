"""gatelab probe FOLDER_OR_GGUF: a checkpoint in, rows and three facts out, and one sentence for what cannot be used."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import WORDS, save_model, save_tokenizer, without, write_gguf

from gatelab import lab
from gatelab.cli import _status
from gatelab.data import DataError
from gatelab.evals.checkpoint import Reading, facts
from gatelab.record import Row

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, its tokenizer and a text."""
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    save_model(folder, "LlamaForCausalLM")
    save_tokenizer(folder)
    (folder.parent / "text.txt").write_text(WORDS)
    return folder


def test_a_folder_is_probed_on_the_standard_library(folder: Path) -> None:
    look = lab.probe_checkpoint(folder, Reading(length=20))
    assert look.description.startswith("small: 8 sequences of 20 tokens of the Python")
    assert look.description.endswith("each begins with '<s>', float32 on cpu")
    assert {r.run for r in look.rows} == {"small"} and {r.layer for r in look.rows} == {None, 0, 1}
    assert {r.length for r in look.rows if r.metric == "first_token_mass"} == {20}
    assert len(look.facts) == 4 and look.unobserved == []
    assert look.facts[3].startswith("The strongest keys are most often")


def test_rows_are_those_of_the_text_behind_the_tokenizers_first_token(folder: Path) -> None:
    rows = lab.probe_checkpoint(folder, Reading(str(folder.parent / "text.txt"), 30)).rows
    found = next(r.value for r in rows if (r.metric, r.layer, r.head) == ("first_token_mass", 1, 2))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(WORDS, add_special_tokens=False).input_ids
    ids_BT = torch.tensor([[0, *ids[i * 29 : (i + 1) * 29]] for i in range(8)])
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        weights = model(ids_BT, output_attentions=True).attentions[1]
    assert found == pytest.approx(weights[:, 2, 1:, 0].mean().item(), abs=1e-5)


def test_a_short_text_is_one_short_sequence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a gate may close")
    look = lab.probe_checkpoint(folder, Reading(str(tmp_path / "short.txt")))
    n = len(transformers.AutoTokenizer.from_pretrained(folder)("a gate may close").input_ids)
    assert look.description == f"small: 1 sequence of {n} tokens of short.txt, float32 on cpu"


def test_an_encoder_and_an_encoder_decoder_are_probed(tmp_path: Path) -> None:
    save_model(tmp_path / "bert", "BertModel")
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    save_model(tmp_path / "t5", "T5Model", **sizes)
    for name, stacks in (("bert", {"encoder", None}), ("t5", {None, "encoder", "cross"})):
        save_tokenizer(tmp_path / name)
        look = lab.probe_checkpoint(tmp_path / name, Reading(length=20))
        assert {r.stack for r in look.rows} == stacks and len(look.facts) >= 3


def test_facts_name_the_planted_sink_and_the_planted_activation() -> None:
    def row(metric: str, value: float, **at: Any) -> Row:
        return Row("x", 0, "", metric, value, "", **at)

    sinks = [row("sink_importance", 0.2 + 0.2 * (layer == 3 and h == 1), layer=layer, head=h) for layer, h in
             [(2, 0), (2, 1), (3, 0), (3, 1)]]  # fmt: skip
    rows = [
        row("first_token_mass", 0.467), row("first_token_uniform", 0.01), *sinks,
        row("sink_position", 0.75, layer=3, head=1, key=17), row("sink_position", 0.5, layer=2, head=1, key=3),
        row("massive_max", 400.0, layer=5), row("massive_ratio", 800.0, layer=5),
        row("massive_max", 3.0, layer=6), row("massive_ratio", 9.0, layer=6),
    ]  # fmt: skip
    first, sink, massive = facts(rows)
    assert first == "The first token takes 46.7% of the attention; uniform attention would give it 1.0%."
    assert "head 1 of layer 3" in sink and "40.0%" in sink and "75% of the sequences the key at position 17" in sink
    assert massive == "The largest activation is 400, after layer 5: 800 times the median there."
    assert facts([]) == []


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ((0, 1, 2), "of the first token's 50.0% of the attention they let 20.0% through"),
        ((2,), "of the first token's 80.0% of the attention in their layers they let 20.0% through"),
    ],
)
def test_what_gates_let_through_is_told_beside_the_mass_of_their_layers(layers: tuple[int, ...], says: str) -> None:
    def rows(metric: str, values: dict[int | None, float], **at: Any) -> list[Row]:
        of_layers = [Row("x", 0, "", metric, v, "", layer=layer, **at) for layer, v in values.items()]
        return [*of_layers, *(replace(r, head=0, value=1.0) for r in of_layers if r.layer is not None)]

    (said,) = facts([
        *rows("first_token_mass", {None: 0.5, 0: 0.2, 1: 0.5, 2: 0.8}),
        *rows("effective_sink", {None: 0.2} | dict.fromkeys(layers, 0.2), site="sdpa"),
        *rows("gate_mean", {None: 0.4}, site="sdpa"),
        *rows("gate_below", {None: 0.1}, site="sdpa", threshold=0.1),
    ])  # fmt: skip
    assert said == f"The gates' mean score is 0.40, 10% are shut; {says}."


def test_the_command_prints_facts_first_or_records(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _status(["probe", str(folder), "--length", "20"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[1].startswith("The first token takes") and "massive_max" in said.out
    assert said.err == ""
    assert _status(["probe", str(folder), "--length", "20", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {r["metric"] for r in records} >= {"first_token_mass", "sink_rate", "massive_max"}


def test_what_is_not_observed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "x", "DiffLlamaModel", head_dim=4)
    save_tokenizer(tmp_path / "x", begins=False)
    assert _status(["probe", str(tmp_path / "x"), "--length", "20"]) == 0
    said = capsys.readouterr()
    assert "not observed: DiffLlamaAttention, it calls attention more than once in a pass (2 layers" in said.err
    assert "they begin with ordinary tokens" in said.out and "first_token_mass" not in said.out


def test_a_checkpoint_that_cannot_be_used_is_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    without("tokenizer*")(copy)
    assert _status(["probe", str(copy), "--length", "20"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and "has no tokenizer" in said.err


def test_lengths_and_texts_that_cannot_be_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--length 65: this model has positions for 64 tokens"):
        lab.probe_checkpoint(folder, Reading(length=65))
    for length in (1, 0, -3):
        with pytest.raises(ValueError, match=f"--length {length}: .*take more"):
            lab.probe_checkpoint(folder, Reading(length=length))
    short = tmp_path / "short.txt"
    short.write_text("a")
    with pytest.raises(DataError, match="has 1 tokens, and attention takes two"):
        lab.probe_checkpoint(folder, Reading(str(short)))
    short.write_text("a gate may close")
    with pytest.raises(DataError, match=r"--length 60: .*take at most"):
        lab.probe_checkpoint(folder, Reading(str(short), 60))
    with pytest.raises(DataError, match="no such file"):
        lab.probe_checkpoint(folder, Reading(str(tmp_path / "none.txt")))


def test_a_gguf_file_is_probed(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    write_gguf(tmp_path / "small.gguf", folder)
    look = lab.probe_checkpoint(tmp_path / "small.gguf", Reading(length=20))
    assert {r.layer for r in look.rows} == {None, 0} and len(look.facts) == 4
