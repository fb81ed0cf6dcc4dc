"""`gatelab retrofit`: from a checkpoint to a folder that transformers loads, with what was measured; one sentence a mistake."""

import json
import shutil
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest
import torch
from checkpoints import save_model, save_tokenizer, write_gguf

from gatelab import lab
from gatelab.cli import _status
from gatelab.models.interop import load_model

transformers = pytest.importorskip("transformers")

WORDS = ["train.tokens=128", "train.batch_size=2", "train.seq_len=16", "heldout=6"]
SURGERY = ["--start", "surgery", "start.mass=0.05", "start.drain=10", "start.documents=12"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrofit") / "small"
    save_model(folder, "LlamaForCausalLM", tie_word_embeddings=True)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    words = "a gate may close and a sink may stay where the first token stands"
    path.write_text("\n".join(json.dumps({"text": f"{i} {words} {i} " * 3}) for i in range(60)))
    return str(path)


def answer(*words: str) -> tuple[int, str]:
    """Status, and what was said on stderr. Of an assignment that is made twice the last counts."""
    keys = [word.partition("=")[0] if "=" in word else None for word in words]
    kept = [
        word for i, (word, key) in enumerate(zip(words, keys, strict=True)) if key is None or key not in keys[i + 1 :]
    ]
    said = StringIO()
    with redirect_stderr(said):
        status = _status(["retrofit", *kept])
    return status, said.getvalue()


@pytest.fixture(scope="module")
def made(source: Path, text: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One retrofit a start."""
    place = tmp_path_factory.mktemp("made")
    common = ["--real", text, *WORDS]
    for name, words in {
        "identity": ["--gate", "sdpa-elementwise"],
        "surgery": ["--gate", "sdpa-headwise-bias", *SURGERY, "--text", text, "distil=0.5", "penalty=0.001"],
        "random": ["--gate", "sdpa-headwise", "--start", "random", "train.tokens=0"],
    }.items():
        status, said = answer(str(source), "--out", str(place / name), *common, *words)
        assert status == 0, said
    return {path.name: path for path in place.iterdir()}


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["identity", "surgery", "random"])
def test_the_folder_is_a_model_that_transformers_loads(made: dict[str, Path], name: str, tmp_path: Path):
    lab.export(made[name], tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    ours, ids = load_model(made[name]), torch.randint(0, 300, (2, 12))
    torch.testing.assert_close(theirs(ids).logits, ours(ids), rtol=1e-4, atol=1e-4)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")("a gate").input_ids[0] == 0
    assert "A gate, sdpa-" in (tmp_path / "hf" / "README.md").read_text()


def test_every_arm_has_its_losses_and_what_the_probes_saw(made: dict[str, Path]):
    rows = rows_of(made["identity"])
    arms = ("original", "control", "start", "retrofit")
    for metric in ("heldout_loss", "first_token_mass", "massive_max"):
        found = {(r["run"], r["domain"]) for r in rows if r["metric"] == metric and "layer" not in r and "domain" in r}
        assert found == {(arm, t) for arm in arms for t in ("self", "real")}, metric
    loss = {(r["run"], r["domain"]): r["value"] for r in rows if r["metric"] == "heldout_loss"}
    assert loss["start", "self"] == loss["original", "self"] and loss["start", "real"] == loss["original", "real"]
    assert loss["retrofit", "self"] != loss["control", "self"] != loss["original", "self"]
    changed = {(r["run"], r["intervention"]) for r in rows if r["metric"] == "loss_change"}
    assert {("retrofit", "beside control"), ("retrofit", "beside original"), ("control", "beside original")} <= changed
    shift = [r["value"] for r in rows if r["metric"] == "gate_shift" and "layer" not in r]
    assert shift[0] == 0 and shift[-1] > 0
    stored = json.loads((made["identity"] / "retrofit.json").read_text())
    assert stored["retrofit"]["gate"] == "sdpa-elementwise" and (stored["text"], len(stored["losses"])) == ("self", 4)
    assert [len(v) for v in stored["losses"]["control"].values()] == [6, 6]


def test_surgery_hides_the_first_key_and_says_what_it_was_worth(made: dict[str, Path]):
    model, stored = load_model(made["surgery"]), json.loads((made["surgery"] / "retrofit.json").read_text())
    heads = stored["heads"]
    assert any(heads) and model.config.first_hidden_from == tuple(tuple(h) for h in heads) and model.config.bias
    rows = rows_of(made["surgery"])
    mass = {
        (r["layer"], r["head"]): r["value"]
        for r in rows
        if (r["run"], r["metric"], r.get("domain")) == ("retrofit", "first_token_mass", "real") and "head" in r
    }
    assert {place for place, value in mass.items() if value == 0} == {(i, h) for i, hs in enumerate(heads) for h in hs}
    assert {"gate open, value none", "gate token, value none", "gate token, value mean"} <= set(stored["losses"])
    assert stored["losses"]["gate token, value mean"]["real"] == pytest.approx(stored["losses"]["start"]["real"])
    assert {r["metric"] for r in rows if r["run"] == "retrofit" and r["source"] == "train"} == {
        "loss", "output_divergence", "residual_square", "grad_norm",
    }  # fmt: skip
    assert {r["head"] for r in rows if r["metric"] == "sink_gate_r2"} == {0, 1, 2, 3}
    assert json.loads((made["surgery"] / "model.json").read_text())["notes"][-1].startswith("The first key is hidden")


def test_without_training_there_is_no_control(made: dict[str, Path]):
    assert set(json.loads((made["random"] / "retrofit.json").read_text())["losses"]) == {"original", "start"}


def test_a_gguf_file_is_retrofitted_and_told_as_json(source: Path, text: str, tmp_path: Path, capsys):
    pytest.importorskip("gguf")
    write_gguf(tmp_path / "tiny.gguf", source)
    words = ["--gate", "sdpa-headwise", "--real", text, "--text", text, "--json", *WORDS, "control=false"]
    status, said = answer(str(tmp_path / "tiny.gguf"), "--out", str(tmp_path / "out"), *words)
    assert status == 0, said
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {r["run"] for r in records} == {"original", "start", "retrofit"}
    assert load_model(tmp_path / "out").config.gate[0].slug == "sdpa-headwise-init=0.5"


def test_a_folder_of_ours_is_read_and_a_summary_is_shown(source: Path, text: str, tmp_path: Path, capsys):
    lab.import_checkpoint(source, tmp_path / "ours")
    words = ["--gate", "sdpa-headwise-bias", "--real", text, "--text", text, *WORDS, *SURGERY]
    status, said = answer(str(tmp_path / "ours"), "--out", str(tmp_path / "out"), *words)
    assert status == 0, said
    shown = capsys.readouterr().out
    assert "The first key is hidden from" in shown and "beside control" in shown
    assert "step 4 of 4" in said


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--gate", "sdpa-headwize"], 2, "no word 'headwize'"),
        (["--gate", "sdpa-headwise+out-elementwise"], 2, "expected the slug of one gate"),
        (["--gate", "key-headwise"], 2, "a retrofit gates the attention output"),
        (["--gate", "sdpa-headwise-ns_sigmoid"], 1, "ns_sigmoid cannot; the activations sigmoid, two_sigmoid"),
        (["--gate", "sdpa-headwise", "--start", "surgery"], 2, "take sdpa-headwise-bias"),
        (["--gate", "sdpa-headwise", "train.seq_len=128", "train.tokens=0"], 1, "has positions for 64 tokens"),
        (["--gate", "sdpa-headwise", "train.seq_len=64"], 1, "take at most 63 of the text self"),
        (["--gate", "sdpa-headwise", "train.sequence=3"], 2, "no such key"),
        (["--gate", "sdpa-headwise", "gate=sdpa-elementwise"], 2, "gate is stated as --gate; leave it out"),
        (["--gate", "sdpa-headwise", "start=random"], 2, "start is stated as --start"),
        (
            ["--gate", "sdpa-headwise", "start.drain=0.1"],
            2,
            "start.drain belongs to --start surgery, and this is identity",
        ),
        (["--gate", "sdpa-headwise-first:40"], 2, "reads 40 channels, and d_model=16 has no more"),
        (
            ["--gate", "sdpa-headwise", "optim.lr=1e30"],
            1,
            "control: grad_norm is nan at step 2 of 4, so that training is lost",
        ),
        (["--gate", "sdpa-headwise", "seed=0..2"], 2, "a retrofit takes one value"),
        (["--gate", "sdpa-headwise", "train.batch_size=1000"], 2, "is less than one step"),
        (
            ["--gate", "sdpa-headwise", "train.batch_size=1000000000", "train.tokens=99999999999"],
            1,
            "GiB at least on cpu",
        ),
        (["--gate", "sdpa-headwise", "--text", "no-such-file.txt"], 1, "no such file or folder"),
        (["--gate", "sdpa-headwise", "heldout=100000"], 1, "were left where 100000 were wanted"),
        (["--gate", "sdpa-headwise-bias", *SURGERY, "start.mass=1"], 1, "no head takes the first key for a sink"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    source: Path, text: str, tmp_path: Path, words: list[str], status: int, said: str
):
    found = answer(str(source), "--out", str(tmp_path / "out"), "--real", text, *WORDS, *words)
    assert found[0] == status and said in found[1], found[1]
    assert not (tmp_path / "out").exists() and "Traceback" not in found[1]
    assert [p.name for p in tmp_path.iterdir()] == []


def test_a_model_that_is_gated_already_is_refused(made: dict[str, Path], text: str, tmp_path: Path):
    words = ["--gate", "sdpa-headwise", "--out", str(tmp_path / "out"), "--real", text]
    assert answer(str(made["random"]), *words) == (
        1,
        f"gatelab: {made['random']}: is gated already (sdpa-headwise); take a model without a gate, or train this one on\n",
    )


def test_a_model_without_a_tokenizer_and_a_destination_that_is_there_are_refused(
    source: Path, text: str, tmp_path: Path
):
    lab.import_checkpoint(source, tmp_path / "ours")
    words = ["--gate", "sdpa-headwise", "--real", text, *WORDS]
    (tmp_path / "ours" / "tokenizer.json").write_text('{"version":')
    status, said = answer(str(tmp_path / "ours"), "--out", str(tmp_path / "out"), *words)
    assert status == 1 and f"{tmp_path / 'ours'}: its tokenizer cannot be read" in said
    (tmp_path / "ours" / "tokenizer.json").unlink()
    status, said = answer(str(tmp_path / "ours"), "--out", str(tmp_path / "out"), *words)
    assert status == 1 and "has no tokenizer" in said
    shutil.copytree(source, tmp_path / "taken")
    status, said = answer(str(source), "--out", str(tmp_path / "taken"), *words)
    assert status == 1 and "is there already" in said


def test_a_destination_is_refused_before_a_checkpoint_is_imported(source: Path, text: str, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    words = ["--gate", "sdpa-headwise", "--real", text, *WORDS]
    for out, why in {
        source / "out": f"lies inside {source}, which is read; name a folder outside of it",
        tmp_path / "file": "is there already and is left alone; name a new or empty folder",
    }.items():
        # Nothing else is said: importing would be told.
        assert answer(str(source), "--out", str(out), *words) == (1, f"gatelab: {out}: {why}\n")
    assert not (source / "out").exists()


def test_too_little_memory_is_said_before_a_weight_is_read(
    source: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gatelab.retrofit.job.available", lambda *_: 10_000)
    status, said = answer(
        str(source), "--gate", "sdpa-headwise", "--out", str(tmp_path / "out"), "--real", text, *WORDS
    )
    assert status == 1 and "lower train.batch_size or train.seq_len" in said
