"""`gatelab eval` on our own tasks: checkpoints and runs in words, a run on tasks in ids; what is refused."""

import gzip
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from checkpoints import save_model, save_tokenizer
from command import gatelab
from prompt_cases import ROWS

from gatelab import lab
from gatelab.config import AskConfig, ModelConfig, ProbeConfig, Run, Tasks, Text, TrainConfig
from gatelab.evals.own_lines import lines_of
from gatelab.models.interop import import_model
from gatelab.record import Row
from gatelab.study.study import Arm, Study

ASKED = "gatelab/needle,gatelab/ruler/niah_single_1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("own")
    (place / "model").mkdir()
    save_tokenizer(place / "model")
    save_model(place / "model", "LlamaForCausalLM", max_position_embeddings=1024)
    import_model(place / "model", place / "ours")
    for name, rows in ROWS.items():
        path = place / "files" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (place / "essays").mkdir()
    for i in range(2):
        (place / "essays" / f"{i}.txt").write_text(" ".join(f"Gate {i} {j} was closed. Why?" for j in range(60)))
    (place / "essays" / "picture.png").write_bytes(b"\0\1\2")
    yield place


def run_on(data: Tasks | Text) -> Run:
    return Run(
        model=ModelConfig(d_model=16, n_layers=2, n_heads=2, gate="sdpa-headwise", max_seq_len=1024),
        data=data,
        train=TrainConfig(tokens=64 * 4, batch_size=2, seq_len=64),
        probe=ProbeConfig(times=1, sequences=1, eval_sequences=1),
        ask=AskConfig(items=0),
    )


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[str, Path]:
    """Finished runs, on the bytes of a text and on the ids of tasks."""
    (place / "text.txt").write_text("a gate may close and a sink may stay. " * 60)
    text = Text(paths=(str(place / "text.txt"),), val_share=0.3, tokenizer="byte")
    cells = {"text": run_on(text), "ids": run_on(Tasks(names=("bracket", "needle"), hardness=2))}
    study = Study(name="two", question="?", cells=cells, arms=(Arm("gated", {}),), seeds=(0,), match=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATELAB_CACHE", str(place / "cache"))
        folder, _ = lab.run(study, place / "study")
    return {entry["cell"]: run.path for entry, run in folder.planned()}


def test_ours_and_theirs_score_alike(place: Path):
    found = {}
    for name in ("model", "ours"):
        status, out, err = gatelab("eval", place / name, "--tasks", ASKED, "--lengths", "900", "--limit", 2, "--json")
        assert status == 0, err
        rows = [json.loads(line) for line in out.splitlines()]
        found[name] = {(r["task"], r["metric"]): r["value"] for r in rows}
        assert {(r["source"], r["length"]) for r in rows} == {("tasks", 900)}
    assert found["model"] == pytest.approx(found["ours"], rel=1e-3)
    of = found["ours"]
    assert of["needle", "items"] == of["ruler/niah_single_1", "items"] == 2 and of["needle", "choice_chance"] == 1 / 8
    assert of["needle", "answer_floor"] == of["ruler/niah_single_1", "answer_floor"] == 1


def test_a_run_on_text_is_asked_in_its_bytes_and_chance_and_copying_stand_beside_a_score(runs: dict[str, Path]):
    words = (
        "eval",
        runs["text"],
        "--tasks",
        "gatelab/multikey,gatelab/middle/kv",
        "--lengths",
        "700,1000",
        "--limit",
        2,
    )
    status, out, err = gatelab(*words, "--depths", "0,1")
    assert status == 0, err
    shown = [line.split() for line in out.splitlines() if line.startswith("gatelab/")]
    assert [line[:4] for line in shown if line[1] in ("exact_match", "best_subspan_em")] == [
        [f"gatelab/{task}", metric, length, depth]
        for task, metric in (("multikey", "exact_match"), ("middle/kv", "best_subspan_em"))
        for length in ("700", "1,000")
        for depth in ("0", "1")
    ]
    assert all(word in out for word in ("chance", "copying", "refused", "tied", "not finite", "'<|bos|>'"))


def test_a_run_on_tasks_is_asked_in_their_ids_at_multiples_of_its_length(runs: dict[str, Path], tmp_path: Path):
    words = ("eval", runs["ids"], "--tasks", "gatelab/bracket,gatelab/track", "--limit", 3, "--out", tmp_path / "out")
    status, out, err = gatelab(*words, "--json")
    assert status == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    # Over all lengths there is an effective one, where the run is above chance at its own.
    assert {r.get("length") for r in rows if r["task"] == "bracket"} - {None} == {64, 128, 256, 512}
    assert {"exact_match", "answer_floor", "answer_chance", "choice", "items"} <= {r["metric"] for r in rows}
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    # The hardness of training is asked, of what was trained: two brackets are open.
    assert {len(i["answer"].split()) for i in items if i["task"] == "bracket"} == {2}
    assert len(items) == 2 * 4 * 3
    about = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert about["gatelab"]["tasks"] == ["bracket", "track"] and "ids" in about["notes"][0]
    status, out, err = gatelab(
        "eval", runs["ids"], "--tasks", "gatelab/needle", "--limit", 1, "--lengths", "48", "--depths", "1"
    )
    assert status == 0 and "needle" in out, err


def test_lengths_of_ours_may_be_short_beside_a_benchmark_of_the_harness(place: Path):
    names = "piqa,gatelab/needle"
    (place / "files" / "piqa").mkdir(exist_ok=True)
    row = {"goal": "shut the gate", "sol1": "lift the latch", "sol2": "push it to", "label": 1}
    (place / "files" / "piqa" / "validation.jsonl").write_text(f"{json.dumps(row)}\n")
    words = (
        "--tasks",
        names,
        "--lengths",
        "256",
        "--limit",
        1,
        "--no-untrained",
        "--data-dir",
        place / "files",
        "--json",
    )
    status, out, err = gatelab("eval", place / "ours", *words)
    assert status == 0, err
    assert {(r["task"], r.get("length")) for r in map(json.loads, out.splitlines())} >= {
        ("piqa", None),
        ("needle", 256),
    }


def test_positions_are_stretched_by_yarn_for_all_kinds_of_models(place: Path, runs: dict[str, Path], tmp_path: Path):
    found = {}
    for name, length in (("model", 2000), ("ours", 2000)):
        words = ("eval", place / name, "--tasks", "gatelab/needle", "--lengths", length, "--limit", 1, "--no-untrained")
        status, _, err = gatelab(*words)
        assert status == 1 and "this model has positions for 1024 tokens" in err
        status, _, err = gatelab(*words, "--yarn", 2, "--out", tmp_path / name)
        assert status == 0, err
        about = json.loads((tmp_path / name / "eval.json").read_text())
        assert about["yarn"] == 2 and "its positions were extended from 1024 to 2048 tokens (yarn)" in about["notes"]
        rows = [json.loads(line) for line in (tmp_path / name / "rows.jsonl").read_text().splitlines()]
        assert {(r["intervention"], r["dose"]) for r in rows} == {("yarn", 2.0)}
        found[name] = {r["metric"]: r["value"] for r in rows}
    assert found["model"] == pytest.approx(found["ours"], rel=1e-3, abs=1e-4)
    words = ("eval", runs["ids"], "--tasks", "gatelab/needle", "--lengths", "64,128", "--limit", 4, "--no-untrained")
    margins = {}
    for yarn in ((), ("--yarn", 2)):
        status, out, err = gatelab(*words, *yarn, "--json")
        assert status == 0, err
        rows = [json.loads(line) for line in out.splitlines()]
        margins[yarn] = [r["value"] for r in rows if r["metric"] == "answer_margin"]
    assert len(margins[()]) == 2 and margins[()] != margins["--yarn", 2]
    status, out, _ = gatelab(*words, "--yarn", 2)
    assert "its positions were extended from 64 to 128 tokens (yarn)" in " ".join(out.split())


def test_positions_that_do_not_turn_are_not_stretched(place: Path):
    (place / "learned").mkdir()
    save_tokenizer(place / "learned")
    save_model(place / "learned", "GPT2LMHeadModel", max_position_embeddings=256, bos_token_id=0, eos_token_id=1)
    words = ("--tasks", "gatelab/needle", "--lengths", "200", "--yarn", 4)
    status, _, err = gatelab("eval", place / "learned", *words)
    says = "positions of a model of type 'gpt2' are not one decoder's rotary ones to extend; take at most 256 tokens"
    assert status == 1 and says in err, err


def test_distractors_and_hardness_are_asked_for_in_words_and_in_ids(place: Path, runs: dict[str, Path], tmp_path: Path):
    knobs = ("--limit", 1, "--distractors", 2, "--hardness", 3)
    for model, length, kind in ((place / "model", "900", "words"), (runs["ids"], "64", "ids")):
        words = ("eval", model, "--tasks", "gatelab/track,gatelab/needle", "--lengths", length, *knobs)
        status, out, err = gatelab(*words, "--out", tmp_path / kind)
        assert status == 0 and "our tasks with distractors=2, hardness=3" in " ".join(out.split()), err
        about = json.loads((tmp_path / kind / "eval.json").read_text())["gatelab"]
        assert (about["distractors"], about["hardness"]) == (2, 3)
        items = [json.loads(line) for line in (tmp_path / kind / "items.jsonl").read_text().splitlines()]
        (needle,) = (i for i in items if i["task"] == "needle")
        # Its value has three tokens.
        assert len(needle["answer"].split()) == 3
        factors = needle["factors"]
        assert (factors["n_distractors"] if kind == "words" else len(factors["distractors"])) == 2


def test_attention_to_documents_and_the_worth_of_evidence_are_asked_of_anybodys_model(place: Path, tmp_path: Path):
    names = "gatelab/found/kv,gatelab/deletion/kv,gatelab/found/cite"
    found, notes = {}, {}
    for name in ("model", "ours"):
        words = ("eval", place / name, "--tasks", names, "--lengths", "1000", "--depths", "0,1", "--limit", 2)
        status, out, err = gatelab(*words, "--out", tmp_path / name)
        assert status == 0, err
        assert all(word in out for word in ("recall@3 calibrated, gated-value", "evidence_excess, nats", "all", "low"))
        assert ("answer, reweighted" in out) == (name == "ours")
        rows = [json.loads(line) for line in (tmp_path / name / "rows.jsonl").read_text().splitlines()]
        at = ("task", "metric", "stage", "domain", "depth", "layer", "bin")
        found[name] = {tuple(r.get(a) for a in at): r["value"] for r in rows if "reweight" not in r["metric"]}
        assert {r["source"] for r in rows} == {"middle", "deletion", "tasks"}
        notes[name] = json.loads((tmp_path / name / "eval.json").read_text())["notes"]
    assert any("gatelab convert MODEL OUT --to gatelab" in note for note in notes["model"])
    same = {k: v for k, v in found["ours"].items() if not k[1].startswith("answer_") and v == v}
    assert {k: found["model"][k] for k in same} == pytest.approx(same, rel=1e-2, abs=1e-3)
    items = [json.loads(line) for line in (tmp_path / "ours" / "items.jsonl").read_text().splitlines()]
    (one,) = (i for i in items if (i["task"], i["item"], i["factors"]["asked_depth"]) == ("found/kv", 0, 1))
    assert one["factors"]["gold"] == [len(one["factors"]["documents"]) - 1] and one["correct"] is False
    cited = [i for i in items if i["task"] == "found/cite"]
    assert len(cited) == 4 and all(len(i["factors"]["documents"]) == 8 for i in cited)


def test_a_run_on_tasks_is_looked_at_in_their_ids(runs: dict[str, Path]):
    words = ("eval", runs["ids"], "--tasks", "gatelab/found/needle,gatelab/deletion/needle", "--distractors", 3)
    status, out, err = gatelab(*words, "--lengths", "64", "--limit", 2, "--json")
    assert status == 0, err
    of = {(r["task"], r["metric"], r.get("stage"), r.get("domain")): r["value"] for r in map(json.loads, out.splitlines())
          if "layer" not in r}  # fmt: skip
    assert of["found/needle", "document_recall_chance", None, None] == 3 / 4
    assert ("deletion/needle", "evidence_excess", None, None) in of
    assert of["found/needle", "answer_floor", None, None] == 1 / 4
    status, _, err = gatelab(*words, "--lengths", "64", "--chat")
    assert status == 2 and "reads the ids of tasks, and no words; leave it out" in err
    for name in ("found/kv", "long_ppl", "citations/one"):
        status, _, err = gatelab("eval", runs["ids"], "--tasks", f"gatelab/{name}")
        assert status == 2 and f"--tasks gatelab/{name}: is text" in err


def test_texts_are_read_and_a_key_set_serves_another_model(place: Path, tmp_path: Path):
    (tmp_path / "texts").mkdir()
    for i in range(3):
        said = " ".join(f"{i} the gate {(7 * i + 3 * j) % 11} may close, {j}." for j in range(40 if i else 2))
        (tmp_path / "texts" / f"{i}.txt").write_text(said)
    words = ("--tasks", "gatelab/long_ppl,gatelab/position_loss", "--text", tmp_path / "texts")
    first = (*words, "--lengths", "160", "--limit", 2, "--window", 16, "--out", tmp_path / "first")
    status, out, err = gatelab("eval", place / "model", *first)
    assert status == 0 and "nats after positions 127 to 158" in out, err
    keys = json.loads((tmp_path / "first" / "keys-160.json").read_text())
    assert (keys["window"], keys["stride"], len(keys["documents"])) == (16, 4, 2) and keys["bos_id"] is not None
    items = [json.loads(line) for line in (tmp_path / "first" / "items.jsonl").read_text().splitlines()]
    assert [i["factors"].get("cut") for i in items if i["task"] == "position_loss"] == [None, True, True]
    assert "0.txt has" in items[0]["factors"]["refused"]
    assert "1 item refused, as in: 0.txt has" in " ".join(out.split())
    # An untrained model is sure of nothing: no token is key, which is said and not an error.
    assert sum(len(d["positions"]) for d in keys["documents"]) == 0 and "0 key tokens" in out
    keys["documents"] = [d | {"positions": [40, 90]} for d in keys["documents"]]
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    status, out, err = gatelab("eval", place / "ours", *words, "--keys", tmp_path / "keys.json", "--json")
    assert status == 0, err
    of = {r["metric"]: r["value"] for r in map(json.loads, out.splitlines()) if r["task"] == "long_ppl"}
    assert of["key_share"] == pytest.approx(4 / 318) and of["plain_ppl_low"] < of["plain_ppl"] < of["plain_ppl_high"]
    (tmp_path / "texts" / "2.txt").unlink()
    status, _, err = gatelab("eval", place / "ours", *words, "--keys", tmp_path / "keys.json")
    assert status == 1 and "1 documents of 160 tokens, and --keys" in err and "was chosen on 2" in err
    (tmp_path / "texts" / "2.txt").write_text("a third text, as long as it needs to be, " * 40)
    (tmp_path / "texts" / "1.txt").write_text("another text, as long as it needs to be, " * 40)
    status, _, err = gatelab("eval", place / "ours", *words, "--keys", tmp_path / "keys.json")
    assert status == 1 and "is not the one of 160 that the key set was made of" in err


def test_ours_are_asked_in_a_chat_template(place: Path, tmp_path: Path):
    shutil.copytree(place / "model", tmp_path / "chatty")
    (tmp_path / "chatty" / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    names = "gatelab/needle,gatelab/citations/one,gatelab/absent"
    words = ("--tasks", names, "--lengths", "1000", "--limit", 2, "--chat", "--new-tokens", 8)
    status, out, err = gatelab("eval", tmp_path / "chatty", *words, "--out", tmp_path / "out")
    assert status == 0 and "as a turn of the user, chat template" in " ".join(out.split()), err
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["gatelab"]["chat"] is True
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    of = {(r["source"], r["task"], r["metric"]): r["value"] for r in rows}
    assert of["tasks", "needle", "choice_floor"] == 1 and of["tasks", "absent", "choice_floor"] == 1 / 2
    assert of["citations", "citations/one", "citation_recall"] == 0
    assert of["tasks", "citations/one", "citation_f1_high"] == pytest.approx(0.8419, abs=1e-4)
    status, _, err = gatelab("eval", place / "model", *words)
    assert status == 1 and "--chat: this model's tokenizer has no chat template" in err


def test_pairs_of_the_papers_own_file_are_asked_where_it_is_there(place: Path, tmp_path: Path):
    ids = [str(uuid.UUID(int=n + 1, version=4)) for n in range(12)]
    records = [ids[i : i + 2] for i in range(0, 12, 2)]
    row = json.dumps({"ordered_kv_records": records, "key": ids[4], "value": ids[5]})
    path = tmp_path / "lost_in_the_middle" / "kv-retrieval-75_keys.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(f"{row}\n{row}\n".encode()))
    words = ("eval", place / "model", "--tasks", "gatelab/middle/kv", "--limit", 3, "--new-tokens", 4)
    status, out, err = gatelab(*words, "--lengths", 1024, "--data-dir", tmp_path, "--out", tmp_path / "out")
    assert status == 0 and "the pairs of the file in --data-dir, 6 in its first item, and none drawn" in out, err
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert [(i["answer"], i["factors"]["n_pairs"], i["factors"]["depth"]) for i in items] == [(ids[5], 6, 2 / 5)] * 2
    # An item of the file is asked whole, or not at all.
    status, out, err = gatelab(*words, "--lengths", 128, "--data-dir", tmp_path)
    assert status == 1 and "every item was refused, so nothing is scored, as in: middle/kv 0: its shortest item" in err
    assert "2 items refused" in out
    path.unlink()
    (tmp_path / "middle").mkdir()
    (tmp_path / "middle" / "kv.jsonl").write_text(json.dumps({**json.loads(row), "key": "x"}) + "\n")
    status, _, err = gatelab(*words, "--lengths", 128, "--data-dir", tmp_path)
    assert status == 1 and f"{tmp_path / 'middle' / 'kv.jsonl'}: row 1: its key and value are no pair" in err
    (tmp_path / "middle" / "kv.jsonl").unlink()
    status, out, _ = gatelab(*words, "--lengths", 512, "--data-dir", tmp_path, "--json")
    assert status == 0 and {json.loads(line)["value"] for line in out.splitlines() if '"items"' in line} >= {3.0}


def test_files_and_essays_of_the_user_are_asked(place: Path, tmp_path: Path):
    names = (
        "gatelab/ruler/qa_1,gatelab/ruler/qa_2,gatelab/middle/qa,gatelab/middle/qa_random,gatelab/ruler/niah_multivalue,"
        "gatelab/middle/qa_aware"
    )
    words = ("eval", place / "model", "--tasks", names, "--lengths", "1024", "--limit", 1, "--new-tokens", 20)
    given = (
        "--data-dir",
        place / "files",
        "--haystack",
        place / "essays",
        "--layout",
        "original",
        "--out",
        tmp_path / "out",
    )
    status, _, err = gatelab(*words, *given)
    assert status == 0, err
    items = {i["task"]: i for i in map(json.loads, (tmp_path / "out" / "items.jsonl").read_text().splitlines())}
    assert items["ruler/qa_1"]["answer"] == "Keeper0x | Keeper0x himself" and items["middle/qa"]["correct"] is False
    # Ten paragraphs are more than there is room for: refused, not cut.
    assert (
        "its shortest item has" in items["ruler/qa_2"]["factors"]["refused"] and items["ruler/qa_2"]["correct"] is None
    )
    assert items["ruler/niah_multivalue"]["factors"]["layout"] == "original"
    assert items["middle/qa_aware"]["answer"] == items["middle/qa"]["answer"]


def rows_of(*words: object) -> list[dict]:
    status, out, err = gatelab("eval", *words, "--json")
    assert status == 0, err
    return [json.loads(line) for line in out.splitlines()]


def test_three_lengths_have_an_effective_length_and_eleven_depths_their_ends(place: Path, runs: dict[str, Path]):
    depths = ",".join(str(b / 10) for b in range(11))
    for model, lengths, kinds in (
        (place / "model", "500,600", ("exact_match", "choice")),
        (runs["ids"], "64,128", ("choice",)),
    ):
        rows = rows_of(model, "--tasks", "gatelab/needle", "--lengths", lengths, "--depths", depths, "--limit", 2)
        found = {(r["metric"], r.get("length"), r.get("domain")) for r in rows if "depth" not in r}
        for metric in ("primacy", "recency_low", "u_index", "worst_depth_high"):
            assert {(metric, int(n), kind) for n in lengths.split(",") for kind in kinds} <= found
        assert not [r for r in rows if r["metric"] == "effective_length"]
    words = (runs["ids"], "--tasks", "gatelab/bracket", "--lengths", "16,32,64", "--limit", 20)
    rows = rows_of(*words)
    by_length = {r["length"]: r["value"] for r in rows if r["metric"] == "choice"}
    assert set(by_length) == {16, 32, 64}
    # Untrained, it is at chance.
    assert not [r for r in rows if r["metric"] == "effective_length" and r["domain"] == "choice"]
    status, out, _ = gatelab("eval", *words)
    assert status == 0 and "effective length of choice" not in " ".join(out.split())


def test_an_untrained_model_stands_beside_a_score(place: Path, runs: dict[str, Path]):
    words = ("--tasks", "gatelab/multikey,gatelab/ruler/fwe", "--lengths", "900", "--limit", 2, "--new-tokens", 4)
    for given, metrics in (
        ((), {"choice_untrained"}), (("--no-untrained",), set()),
        (("--untrained",), {"choice_untrained", "exact_match_untrained", "found_untrained"}),
    ):  # fmt: skip
        rows = rows_of(place / "model", *words, *given)
        assert {r["metric"] for r in rows if r["metric"].endswith("_untrained")} == metrics
    # A run of no training to speak of is nearly what it began with, and a run on ids is asked all.
    rows = {
        (r["metric"], r["length"]): r["value"]
        for r in rows_of(runs["ids"], "--tasks", "gatelab/needle", "--lengths", "64")
    }
    assert {m for m, _ in rows if m.endswith("_untrained")} == {"choice_untrained", "exact_match_untrained"}
    status, out, _ = gatelab("eval", runs["ids"], "--tasks", "gatelab/needle", "--lengths", "64", "--limit", 2)
    assert status == 0 and "untrained: the same model before training, weights drawn from seed 0" in " ".join(
        out.split()
    )


def test_parts_of_an_answer_stand_beside_guesses_of_them_and_pairs_are_told_apart(runs: dict[str, Path]):
    words = ("--tasks", "gatelab/cite,gatelab/mqar", "--lengths", "96", "--limit", 4)
    rows = [Row(**{"run": "", "step": 0} | r) for r in rows_of(runs["ids"], *words)]
    lines = {(x["task"], x["metric"]): x for x in lines_of(rows)}
    f1 = lines["gatelab/cite", "citation_f1"]
    assert (f1["chance"], f1["copying"]) == pytest.approx((1 / 896, 1 / 8))
    assert f1["low"] <= f1["value"] <= f1["high"] and f1["untrained"] is not None
    whole = lines["gatelab/cite", "exact_match"]
    assert (whole["chance"], whole["copying"]) == pytest.approx((1 / 896 / 1024, 1 / 128))
    for metric in ("answer_exact", "citation_precision", "citation_recall"):
        own = lines["gatelab/cite", metric]
        assert own["copying"] == pytest.approx(1 / 16 if metric == "answer_exact" else 1 / 8)
        assert None not in (own["chance"], own["low"], own["high"], own["untrained"])
    pairs = [f"query_accuracy{words}" for words in ("", ", 4 pairs", ", 8 pairs", ", 16 pairs")]
    assert [metric for task, metric in lines if task == "gatelab/mqar"] == [
        "exact_match",
        pairs[0],
        "choice",
        *pairs[1:],
    ]
    copying = [lines["gatelab/mqar", metric]["copying"] for metric in pairs]
    assert copying == pytest.approx([1 / 16, 1 / 4, 1 / 8, 1 / 16], rel=0.05)
    assert all(lines["gatelab/mqar", metric][c] is not None for metric in pairs for c in ("low", "chance", "untrained"))
    stated = rows_of(runs["ids"], *words, "--distractors", 3)
    assert not [r for r in stated if "bin" in r]


def test_questions_lie_where_their_publishers_put_them(place: Path, tmp_path: Path):
    """Files of papers, and those of other tasks under the names of their releases."""
    names = {
        "squad_v11_1k/validation_1k": "ruler/qa_1", "lost_in_the_middle/nq-open-oracle": "middle/qa_random",
        "qasper_yesno/questions": "citations/qasper", "qasper_yesno/papers": "citations/papers",
    }  # fmt: skip
    for name, own in names.items():
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS[own]))
    asked = "gatelab/ruler/qa_1,gatelab/middle/qa_random,gatelab/citations/qasper"
    given = ("--lengths", "1024", "--limit", 2, "--new-tokens", 8, "--no-untrained")
    rows = rows_of(place / "model", "--tasks", asked, "--data-dir", tmp_path, *given)
    of = {(r["source"], r["task"], r["metric"]): r["value"] for r in rows}
    assert {of["tasks", n.removeprefix("gatelab/"), "items"] for n in asked.split(",")} == {2}
    assert ("citations", "citations/qasper", "citation_recall") in of and of[
        "tasks", "citations/qasper", "choice_chance"
    ] == 0.5
    words = ("--tasks", "gatelab/citations/qasper", "--data-dir", tmp_path)
    status, out, err = gatelab("eval", place / "model", *words, *given)
    assert status == 0 and "citations/qasper: 4 of 12 questions left out, whose evidence is no" in " ".join(
        out.split()
    ), err
    questions = tmp_path / "qasper_yesno/questions.jsonl"
    questions.write_text(
        "".join(f"{json.dumps(row | {'evidence': ['Table 1']})}\n" for row in ROWS["citations/qasper"])
    )
    status, _, err = gatelab("eval", place / "no-model", *words)
    assert (
        status != 0
        and f"{questions} and" in err
        and "12 of 12 have no evidence that is a paragraph" in " ".join(err.split())
    )
    (tmp_path / "qasper_yesno/papers.jsonl").unlink()
    status, _, err = gatelab("eval", place / "no-model", "--tasks", "gatelab/citations/qasper", "--data-dir", tmp_path)
    said = f"no file {tmp_path}/citations/papers.jsonl, nor qasper_yesno/papers.jsonl; expected JSON lines with title, full_text"
    assert status == 2 and said in " ".join(err.split()) and "no-model" not in err


def test_summaries_are_scored_by_rouge_beside_guesses_and_ask_for_its_package(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    import importlib.util

    from gatelab.evals import own_asking

    words = ("--tasks", "gatelab/summary", "--data-dir", place / "files", "--lengths", 260, "--limit", 7)
    words = (*words, "--new-tokens", 8)
    plain = importlib.util.find_spec
    monkeypatch.setattr(own_asking, "find_spec", lambda name: None if name == "rouge_score" else plain(name))
    status, _, err = gatelab("eval", place / "no-model", *words)
    assert status == 1 and "gatelab/summary/qmsum needs rouge_score: pip install 'gatelab[eval]'" in " ".join(
        err.split()
    )
    monkeypatch.undo()
    pytest.importorskip("rouge_score")
    of = {r["metric"]: r["value"] for r in rows_of(place / "model", *words, "--untrained")}
    assert of["items"] == 6 and of["items_refused"] == 1 and 0 <= of["rouge_l"] <= of["rouge_l_high"]
    assert 0 < of["answer_floor"] < of["answer_chance"] < 1 and "rouge_l_untrained" in of


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("--tasks", "gatelab/nedle"), 2, "--tasks gatelab/nedle: no such task of ours; did you mean 'gatelab/needle'?"),
        (("--tasks", "gatelab/ruler/niah_singel_1"), 2, "did you mean 'gatelab/ruler/niah_single_1'?"),
        (("--tasks", "gatelab/ruler/niah_single_2"), 2, "give plain text with --haystack FILE or FOLDER"),
        (("--tasks", "gatelab/ruler/qa_1"), 2, "needs a file of JSON lines with question, answers, context; give"),
        (("--tasks", "gatelab/middle/qa", "--data-dir", "nowhere"), 2, "no file nowhere/middle/qa.jsonl"),
        (("--tasks", "gatelab/aggregate", "--depths", "0.5"), 2, "its evidence has no one place"),
        (("--tasks", "gatelab/needle", "--depths", "2"), 2, "--depths 2: expected numbers from 0 to 1"),
        (("--tasks", "gatelab/needle", "--depths", "deep"), 2, "--depths deep: expected numbers"),
        (("--tasks", "gatelab/needle", "--lengths", "many"), 2, "--lengths many: expected numbers of tokens"),
        (("--tasks", "gatelab/needle", "--limit", "0"), 2, "--limit 0: expected 1 or more"),
        (("--tasks", "gatelab/needle", "--hardness", "9"), 2, "needle: hardness=9 (tokens of the value): expected 1 to 8"),
        (("--tasks", "gatelab/needle", "--distractors", "-1"), 2, "--distractors -1: expected 0 or more"),
        (("--tasks", "gatelab/needle,gatelab/middle", "--hardness", "2"), 2, "middle/kv, gatelab/middle/qa: hardness=2"),
        (("--tasks", "piqa", "--hardness", "2"), 2, "--hardness: is for tasks named gatelab/"),
        (("--tasks", "gatelab/needle,gatelab/long_ppl", "--chat"), 2, "long_ppl: reads texts as they are; leave --chat out"),
        (("--tasks", "gatelab/position_loss", "--depths", "1"), 2, "position_loss: reads texts as they are; leave --depths out"),
        (("--tasks", "gatelab/found/kvv"), 2, "did you mean 'gatelab/found/kv'?"),
        (("--tasks", "gatelab/longppl"), 2, "did you mean 'gatelab/long_ppl'?"),
        (("--tasks", "gatelab/found/qa"), 2, "middle/qa: needs a file of JSON lines with question, answers, ctxs"),
        (("--tasks", "gatelab/citations/qa", "--data-dir", "nowhere"), 2, "no file nowhere/middle/qa.jsonl"),
        (("--tasks", "gatelab/deletion/needle", "--hardness", "9"), 2, "needle: hardness=9"),
        (("--tasks", "gatelab/deletion/kv", "--distractors", "9"), 2, "deletion/kv: distractors=9, and text of others"),
        (("--tasks", "gatelab/needle", "--text", "a.txt"), 2, "--text: is for gatelab/long_ppl and gatelab/position_loss"),
        (("--tasks", "gatelab/position_loss", "--window", "8"), 2, "--window: is for gatelab/long_ppl; leave it out"),
        (("--tasks", "gatelab/long_ppl", "--window", "0"), 2, "--window 0: expected 1 or more"),
        (("--tasks", "gatelab/long_ppl", "--window", "90", "--lengths", "100"), 2, "--window 90 of texts of 100 tokens"),
        (("--tasks", "gatelab/long_ppl", "--keys", "k.json", "--lengths", "9"), 2, "--keys has its own length"),
        (("--tasks", "gatelab/long_ppl", "--keys", "k.json", "--limit", "9"), 2, "--keys has its own documents"),
        (("--tasks", "gatelab/needle", "--lengths", "²"), 2, "--lengths ²: expected numbers of tokens"),
        (("--tasks", "gatelab/found/kv", "--haystack", "nowhere"), 2, "no haystack of essays; leave --haystack out"),
        (("--tasks", "gatelab/needle", "--layout", "original"), 2, "--layout original is of RULER's tasks alone"),
        (("--tasks", "gatelab/long_ppl", "--keys", "nowhere.json"), 2, "nowhere.json is no key set"),
        (("--tasks", "gatelab/position_loss", "--text", "nowhere"), 1, "'nowhere': no such file or folder"),
        (("--tasks", "gatelab/middle/qa_aware", "--data-dir", "nowhere"), 2, "no file nowhere/middle/qa.jsonl"),
        (("--tasks", "gatelab/summary/qmsum"), 2, "needs a file of JSON lines with meeting_transcripts, specific_query_list"),
        (("--tasks", "gatelab/citations/qasper", "--data-dir", "nowhere"), 2, "nor qasper_yesno/questions.jsonl; expected"),
        (("--tasks", "gatelab/summary/qmsum", "--depths", "0"), 2, "its evidence has no one place"),
        (("--tasks", "piqa", "--no-untrained"), 2, "--no-untrained: is for tasks named gatelab/"),
        (("--tasks", "gatelab/found/kv", "--untrained"), 2, "no score beside which an untrained model stands"),
        (("--tasks", "gatelab/needle", "--shots", "2"), 2, "--shots: is for the harness's tasks"),
        (("--tasks", "piqa", "--depths", "1"), 2, "--depths: is for tasks named gatelab/"),
        (("--tasks", "gatelab/ruler/niah_single_2", "--haystack", "nowhere"), 1, "nowhere"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_said_before_a_model_is_opened(
    words: tuple[str, ...], status: int, says: str, place: Path
):
    found, out, err = gatelab("eval", place / "no-model", *words)
    assert found == status and says in err and out == "" and "Traceback" not in err and "no-model" not in err


def test_models_that_cannot_be_asked(place: Path, runs: dict[str, Path]):
    status, _, err = gatelab("eval", place / "model", "--tasks", "gatelab/needle", "--lengths", "1025")
    assert status == 1 and "--lengths 1025, and this model has positions for 1024 tokens" in err
    status, out, err = gatelab("eval", place / "model", "--tasks", "gatelab/needle", "--limit", 1, "--no-untrained")
    assert status == 0 and "asked at 1024 tokens, all that the model has positions for" in " ".join(out.split()), err
    status, _, err = gatelab("eval", runs["ids"], "--tasks", "gatelab/needle,gatelab/middle/kv")
    assert status == 2 and "--tasks gatelab/middle/kv: is text" in err
    status, _, err = gatelab("eval", runs["ids"], "--tasks", "gatelab/needle", "--allow-pickle")
    assert status == 2 and "--allow-pickle is for checkpoints of others" in err
    status, _, err = gatelab("eval", runs["ids"], "--tasks", "gatelab/cite", "--lengths", "24")
    assert status == 1 and "take a length of at least" in err
    status, _, err = gatelab("eval", place / "nowhere", "--tasks", "gatelab/needle")
    assert status == 1 and "nowhere: no such folder or file" in err


def test_rows_of_a_file_that_are_not_as_described_are_said_with_the_file(place: Path, tmp_path: Path):
    for name, row in (
        ("ruler/qa_1", {"question": "?"}),
        ("middle/qa", {"question": "?", "answers": [], "ctxs": 3}),
        ("ruler/qa_1", {"question": "?", "answers": "Paris", "context": "Paris."}),
        ("middle/qa", {"question": "?", "answers": "Paris", "ctxs": [{"title": "", "text": "Paris.", "isgold": True}]}),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
        status, _, err = gatelab("eval", place / "model", "--tasks", f"gatelab/{name}", "--data-dir", tmp_path)
        assert status in (1, 2) and f"{name}.jsonl" in err and "Traceback" not in err


def test_names_of_the_harness_and_ours_share_a_command(place: Path):
    pytest.importorskip("lm_eval")
    from evals.benchmark_files import write_files

    write_files(place / "files")
    words = ("eval", place / "ours", "--tasks", "piqa,gatelab/needle", "--data-dir", place / "files", "--limit", 2)
    status, out, err = gatelab(*words, "--lengths", "1024", "--json")
    assert status == 0, err
    assert {json.loads(line)["source"] for line in out.splitlines()} == {"harness", "tasks"}
    status, out, err = gatelab(*words, "--lengths", "1024", "--out", place / "both")
    assert status == 0 and "acc_norm" in out and "gatelab/needle" in out, err
    about = json.loads((place / "both" / "eval.json").read_text())
    assert about["tasks"] == ["piqa"] and about["gatelab"]["tasks"] == ["needle"] and "lm_eval" in about["packages"]
    status, _, err = gatelab(
        "eval", place / "no-model", "--tasks", "gatelab/needle,pica", "--data-dir", place / "files"
    )
    assert status == 2 and "did you mean 'piqa'?" in err and "no-model" not in err


def test_our_tasks_need_no_harness(place: Path, monkeypatch: pytest.MonkeyPatch):
    import importlib.util

    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else plain(name))
    status, _, err = gatelab("eval", place / "model", "--tasks", "gatelab/bracket", "--lengths", "500", "--limit", 1)
    assert status == 0, err
    status, _, err = gatelab("eval", place / "model", "--tasks", "gatelab/bracket,piqa")
    assert status == 1 and "gatelab eval needs lm_eval" in err


def test_reads_behind_a_shut_gate_are_asked_of_a_gated_run(place: Path, runs: dict[str, Path]):
    words = ("--tasks", "gatelab/skipped_reads", "--text", place / "essays", "--lengths", "64", "--limit", 2)
    status, out, err = gatelab("eval", runs["text"], *words)
    assert status == 0 and "bytes unread, scores below 0.5" in out and "nats more, as many at random" in out, err
    status, out, err = gatelab("eval", runs["text"], *words, "--json")
    assert status == 0, err
    rows = [r for r in map(json.loads, out.splitlines()) if r["source"] == "skipped-reads"]
    assert {(r["task"], r["length"]) for r in rows} == {("skipped_reads", 64)}
    of = {(r["metric"], r.get("threshold"), r.get("intervention")): r["value"] for r in rows}
    assert of["kv_bytes", None, None] == 65 / 2 * 2 * 2 * 16 * 4 and of["reads_skipped", 0.01, "skip"] == 0
    status, _, err = gatelab("eval", place / "ours", *words)
    assert status == 1 and "has no gate after attention that is known here" in err and "Traceback" not in err
