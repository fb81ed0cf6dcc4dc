"""Measures of evidence and of texts: what they add to the library's own numbers is nothing, and nothing is left out unsaid."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from fake_passes import Fake, OfBytes, V

from gatelab.analysis.shares import exact_interval
from gatelab.cli.scores import write
from gatelab.data import DataError
from gatelab.evals.changes import interval, share_interval
from gatelab.evals.deletion import TASK_NOISE, faithfulness
from gatelab.evals.found import Found
from gatelab.evals.harness.passes import Written
from gatelab.evals.harness.tokens import Tokens
from gatelab.evals.long_ppl import perplexity
from gatelab.evals.middle import DocumentRecall, document_attention, reweighting_effect
from gatelab.evals.next_token import next_token
from gatelab.evals.own_asking import OwnAsking
from gatelab.evals.own_evidence import by_evidence
from gatelab.evals.own_found import note_refused
from gatelab.evals.own_lines import abstention_rows
from gatelab.evals.own_posed import posed_in_ids, posed_in_words
from gatelab.evals.own_reading import Reading, Text, by_position, by_reading, texts_of, window_of
from gatelab.evals.own_rows import rows_of_said
from gatelab.evals.own_text import ask_prompts
from gatelab.evals.question import of_item, of_prompt
from gatelab.models import build_model
from gatelab.models.decoder import Decoder
from gatelab.record import Item, Row
from gatelab.tasks import VOCAB_SIZE, Knobs, TaskError, open_task
from gatelab.tasks.in_words import words_of
from gatelab.tasks.middle import MIDDLE
from gatelab.tasks.options import copied_choice
from gatelab.tasks.prompt import PromptTask, Setting, fitted_prompt, in_turn


def silent(what: str, n: int, total: int) -> None:
    pass


def words(name: str, length: int = 900, **knobs: int) -> PromptTask:
    return words_of(open_task(name), Knobs(**knobs), length=length, depth=None)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return build_model(tiny.model(vocab_size=VOCAB_SIZE, max_seq_len=64, gate="sdpa-headwise"), seed=1)


@pytest.mark.parametrize("name", ["middle/kv", "cite", "multiquery"])
def test_a_prompt_is_a_question_with_the_same_spans(name: str):
    task = MIDDLE.get(name) or words(name)
    prompt = fitted_prompt(task, Setting(length=900), 1, len)
    question = of_prompt(prompt, lambda text: list(text.encode()))
    text = bytes(question.ids).decode()
    assert text == prompt.whole
    assert [text[s:e] for s, e in question.evidence] == [text[s:e] for s, e in sorted(prompt.evidence)]
    assert sorted(question.documents) == sorted({*prompt.evidence, *prompt.distractors})
    assert bytes(question.answer).decode() == "".join(prompt.answers)
    said = " ".join(text[s:e] for s, e in question.kept)
    assert all(asked in said for asked in (["Key:", "Extract"] if name == "middle/kv" else ["The code"]))
    # Neither documents nor noise are kept.
    kept = {i for s, e in question.kept for i in range(s, e)}
    assert not kept & {i for s, e in question.documents for i in range(s, e)} and len(kept) < len(text) / 2


def test_found_is_the_librarys_numbers_at_each_depth_and_of_all_together(decoder: Decoder):
    task, found = open_task("needle"), Found([], [], [])
    posed = {d: posed_in_ids(task, Knobs(64, d, 4), 3) for d in (0.0, 1.0)}
    by_evidence(found, decoder, TASK_NOISE, posed, "mine", "found/needle", 64, silent)
    questions = [of_item(task.item(Knobs(64, d, 4), i)) for d in (0.0, 1.0) for i in range(3)]
    seen = document_attention(decoder, questions, dummy=TASK_NOISE)
    wanted = {None: seen, 0.0: seen[:3], 1.0: seen[3:]}
    got = {(r.depth, r.metric, r.stage, r.domain, r.layer, r.bin): r.value for r in found.rows}
    for depth, part in wanted.items():
        used = [
            replace(row, domain=form)
            for form in ("mass", "gated-value")
            for row in reweighting_effect(
                decoder, [f.question for f in part], dummy=TASK_NOISE, form=form, found=part
            ).rows()
        ]
        for r in (*DocumentRecall(part).rows(), *used):
            at = depth, r.metric, r.stage, r.domain, r.layer, r.bin
            # The same items at two depths have no interval together.
            if depth is None and r.metric.endswith(("_low", "_high")):
                assert at not in got
            else:
                assert got[at] == pytest.approx(r.value), r
    assert {(r.run, r.task, r.length) for r in found.rows} == {("mine", "found/needle", 64)}
    assert [len([i for i in found.items if i.factors["asked_depth"] == d]) for d in (0.0, 1.0)] == [3, 3]
    lines = {(one["depth"], one["metric"]): one for one in found.records}
    assert lines["all", "recall@3 raw, mass"]["chance"] == pytest.approx(3 / 5)
    assert (
        lines[1.0, "answer, reweighted by mass"]["copying"] == pytest.approx(1 / 5)
        and lines["all", "answer, untouched"]["items"] == 6
    )


def test_deletion_is_the_librarys_numbers_and_what_has_no_room_is_refused(decoder: Decoder):
    task, found = open_task("needle"), Found([], [], [])
    posed = posed_in_ids(task, Knobs(64, 0.5, 2), 2) + posed_in_ids(open_task("absent"), Knobs(64), 4)
    by_evidence(found, decoder, TASK_NOISE, {0.5: posed}, "mine", "deletion/needle", 64, silent)
    of = {r.metric: r.value for r in found.rows}
    n = sum("refused" not in i.factors for i in found.items)
    assert (of["items"], of["items_refused"]) == (n, 6 - n) and 2 <= n < 6
    refused = [i.factors["refused"] for i in found.items if "refused" in i.factors]
    assert all("no evidence" in reason for reason in refused)
    one = faithfulness(decoder, [posed[1].question], noise=TASK_NOISE, seed=1).deleted[0]
    (item,) = (i for i in found.items if i.item == 1 and i.factors.get("log_p") == one.log_p)
    assert item.score == pytest.approx(one.evidence_drop - one.control_drop)


def test_a_model_that_is_no_number_is_said_and_written_and_never_right(tmp_path: Path):
    broken = build_model(tiny.model(vocab_size=VOCAB_SIZE, max_seq_len=64), seed=1)
    for parameter in broken.parameters():
        parameter.data.fill_(float("nan"))
    found = Found([], [], [])
    for name in ("found/needle", "deletion/needle"):
        posed = {0.5: posed_in_ids(open_task("needle"), Knobs(64, 0.5, 4), 2)}
        by_evidence(found, broken, TASK_NOISE, posed, "mine", name, 64, silent)
    reading = Reading("texts", 40, tuple(Text(i, f"{i}", tuple(range(1 + i, 41 + i))) for i in range(2)), None)
    made = by_position(next_token(broken), reading, run="mine", progress=silent)
    found.rows, found.items = found.rows + made.rows, found.items + made.items
    (of_found,) = (one for one in found.records if one["task"] == "gatelab/found/needle")
    assert (of_found["metric"], of_found["value"], of_found["not finite"]) == ("none", None, 1)
    assert not any(item.correct for item in found.items)
    write(tmp_path, [found], {})
    said = [json.loads(line)["factors"] for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert {f["log_p"] for f in said if "log_p" in f} == {f["loss"] for f in said if "loss" in f} == {"nan"}
    assert perplexity(1e3) == float("inf")


def test_a_question_without_a_number_is_counted_and_the_others_are_reweighted(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
):
    def broken(model, questions, *, dummy):
        (seen,) = document_attention(model, questions, dummy=dummy)
        if questions[0].index == 1:
            seen.raw_LD["mass"][1, 2] = float("nan")
        return [seen]

    monkeypatch.setattr("gatelab.evals.own_evidence.document_attention", broken)
    found, posed = Found([], [], []), posed_in_ids(open_task("needle"), Knobs(64, 0.5, 4), 3)
    by_evidence(found, decoder, TASK_NOISE, {0.5: posed}, "mine", "found/needle", 64, silent)
    questions = [p.question for p in posed]
    whole = {
        form: reweighting_effect(decoder, questions, dummy=TASK_NOISE, form=form) for form in ("mass", "gated-value")
    }
    gain = {form: [after - before for before, after in used.log_p] for form, used in whole.items()}
    of = {(r.metric, r.stage, r.domain): r.value for r in found.rows if r.source == "middle"}
    assert of["reweighting_gain", None, "mass"] == pytest.approx((gain["mass"][0] + gain["mass"][2]) / 2)
    assert of["reweighting_gain", None, "gated-value"] == pytest.approx(sum(gain["gated-value"]) / 3)
    assert (
        of["reweighting_nan", None, "mass"] == pytest.approx(1 / 3) and of["reweighting_nan", None, "gated-value"] == 0
    )
    # Who is asked untouched answers all the same; what cannot be reweighted is not right.
    right = [after for _, after in whole["mass"].is_right]
    assert of["reweighted_answer", "reweighted", "mass"] == pytest.approx((right[0] + right[2]) / 3)
    lines = {one["metric"]: one for one in found.records}
    assert lines["reweighting_gain by mass, nats"]["not finite"] == pytest.approx(1 / 3)
    assert lines["answer, reweighted by mass"]["value"] is not None and lines["answer, untouched"]["not finite"] is None
    (lost,) = (item for item in found.items if item.item == 1)
    assert "log_p_by_mass" not in lost.factors and "log_p_by_gated-value" in lost.factors and "log_p" in lost.factors


@pytest.mark.parametrize(("others", "n_few"), [((2, 2), 2), ((2, 4), 1), ((4, 4), 0)])
def test_of_three_documents_recall_at_3_is_no_question(decoder: Decoder, others: tuple[int, int], n_few: int):
    found = Found([], [], [])
    posed = [posed_in_ids(open_task("needle"), Knobs(64, 0.5, n), 2)[i] for i, n in enumerate(others)]
    by_evidence(found, decoder, TASK_NOISE, {0.5: posed}, "mine", "found/needle", 64, silent)
    of = {(r.metric, r.stage): r.value for r in found.rows if r.domain in (None, "mass") and r.layer is None}
    assert of["document_recall_few", None] == n_few / 2 and ("reweighting_gain", None) in of
    recalled = [one["metric"] for one in found.records if one["metric"].startswith("recall@3")]
    if n_few == 2:
        assert recalled == ["recall@3: no question"] and not any(m == "document_recall" for m, _ in of)
    else:
        assert "recall@3 raw, mass" in recalled and of["document_recall_chance", None] == 3 / 5
        last = document_attention(decoder, [posed[1].question], dummy=TASK_NOISE)
        if n_few:
            assert of["document_recall", "raw"] == DocumentRecall(last).recall("raw")[0]
    assert [note for note in found.notes if "recall@3" in note] == (
        [
            f"gatelab/found/needle: {n_few} of 2 questions left out of recall@3, with 3 documents or fewer, which are all among 3 "
            "whatever is attended; ask for more with --distractors, or for longer items"
        ]
        if n_few
        else []
    )


def test_a_reference_that_is_no_number_is_named(tmp_path: Path):
    broken = build_model(tiny.model(vocab_size=V, max_seq_len=64), seed=1)
    for i in range(2):
        (tmp_path / f"{i}.txt").write_text("the gate may close, and may open. " * 4)
    tokens = Tokens(OfBytes(), V)
    asking = OwnAsking(("long_ppl",), lengths=(40,), limit=2, text=str(tmp_path), window=8)

    def read(asking: OwnAsking) -> Found:
        found = Found([], [], [])
        by_reading(found, next_token(broken), tokens, "mine", asking, ["long_ppl"], silent)
        return found

    assert not any("no number" in note for note in read(asking).notes)
    broken.head.weight.data.fill_(float("nan"))
    found = read(asking)
    wanted = "long_ppl: 100.0% of the tokens are no key tokens because what mine says of them is no number"
    assert any(note.startswith(wanted) for note in found.notes) and "0 key tokens of mine" in " ".join(found.notes)
    (line,) = found.records
    assert (line["metric"], line["value"], line["not finite"]) == ("none", None, 1)
    # The key set's file says it to who scores another model on it.
    (tmp_path / "keys.json").write_text(found.files["keys-40.json"])
    again = read(replace(asking, keys=tmp_path / "keys.json"))
    assert any(note.startswith(wanted) for note in again.notes)


@pytest.mark.parametrize(("n", "said"), [(1, "1 item refused"), (2, "2 items refused")])
def test_refused_items_are_counted_in_words(n: int, said: str):
    items = [Item("", 0, "cite", i, None, 0.0, "", "", {"refused": "too long"}) for i in range(n)]
    found = Found([], items, [])
    note_refused(found)
    assert found.notes == [f"gatelab/cite: {said}, as in: too long"]


def test_items_that_do_not_fit_or_have_one_document_are_refused_with_their_reason():
    tokens = Tokens(OfBytes(), V)
    posed = posed_in_words(tokens, None, words("needle", 300), Setting(length=300), 2, chat=False, progress=silent)
    assert all("has gold documents alone; ask for more with --distractors" in p.problem for p in posed)
    posed = posed_in_words(tokens, None, MIDDLE["middle/kv"], Setting(length=100), 1, chat=False, progress=silent)
    assert "its shortest item has" in posed[0].problem
    with pytest.raises(ValueError, match="positions for 80 tokens"):
        posed_in_words(tokens, 80, MIDDLE["middle/kv"], Setting(length=100), 1, chat=False, progress=silent)


def test_shares_have_exact_intervals_and_other_scores_those_over_items():
    for k, n in ((0, 4), (3, 7), (9, 9)):
        assert share_interval([True] * k + [False] * (n - k)) == pytest.approx(exact_interval(k, n))
    few, many = [0.0, 0.5], [0.25, 0.5, 0.5, 0.75, 0.25, 0.5]
    assert share_interval(many) == interval(many)
    assert interval(few)[0] < 0 and interval(few)[1] > 1 and share_interval(few) == (0, 1)


def test_blind_copying_chooses_among_what_was_said():
    assert copied_choice([["a"], ["b"], ["c"]], {"a", "b"}) == 1 / 2
    assert copied_choice([["a"], ["b"]], {"b"}) == 0 and copied_choice([["a"], ["b"]], set()) == 1 / 2
    assert copied_choice([["a", "c"], ["a", "b"]], {"a", "c"}) == 1
    single = fitted_prompt(words("needle"), Setting(length=900), 0, len)
    assert single.choice_floor == 1
    among = fitted_prompt(words("needle", distractors=3), Setting(length=900), 0, len)
    assert among.choice_floor == 1 / 4
    assert fitted_prompt(words("absent"), Setting(length=900), 0, len).choice_floor == 1 / 2
    # Eight of the twenty values and more that stand there are options.
    pairs = fitted_prompt(MIDDLE["middle/kv"], Setting(length=2000), 0, len)
    assert pairs.choice_floor == 1 / 8


def test_abstention_is_precision_and_recall_of_saying_none():
    def row(metric: str, value: float) -> Row:
        return Row("", 0, "tasks", metric, value, "share")

    of = {r.metric: r.value for r in abstention_rows(row, [(True, True), (True, False), (False, True), (True, True)])}
    assert (of["abstention_precision"], of["abstention_recall"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert {r.metric for r in abstention_rows(row, [(False, True)])} == {
        f"abstention_recall{e}" for e in ("", "_low", "_high")
    }


class Denier(Fake):
    """Says in every text that there is no answer."""

    def write(self, prompts, n_tokens, sampling, stop_ids, is_done, beginning=None):
        return [Written(list(b" none."), True) for _ in prompts]

    def next(self, row):
        return torch.tensor([*list(row)[1:], 0])


def test_who_always_says_none_abstains_fully_and_is_right_half_the_time():
    task, passes = words("absent", 600), Denier()
    setting = Setting(length=600)
    said = ask_prompts(passes, passes.tokens, task, setting, 12, batch_size=4)
    of = {r.metric: r.value for r in rows_of_said(said, task, setting, run="x")}
    assert of["abstention_recall"] == 1 and of["abstention_precision"] == of["exact_match"]
    assert of["exact_match_low"] < of["exact_match"] < of["exact_match_high"] and of["choice_floor"] == 1 / 2


def test_a_turn_of_a_conversation_says_the_prompt_and_its_spans_move_along():
    prompt = fitted_prompt(words("multiquery"), Setting(length=900), 0, len)
    turned = in_turn(prompt, lambda text: f"<user>{text}<model>\n")
    for name in ("evidence", "distractors", "kept"):
        mine, theirs = ([p.whole[s:e] for s, e in getattr(p, name)] for p in (prompt, turned))
        assert mine == theirs
    assert turned.parts[1:] == prompt.parts[1:] and turned.answers[0] == prompt.answers[0].strip()
    assert turned.options[0] == turned.answers and turned.read(0).endswith("<model>\n")
    with pytest.raises(TaskError, match="changes the text; leave --chat out"):
        in_turn(prompt, str.upper)


def test_documents_are_beginnings_of_files_and_short_ones_are_refused(tmp_path: Path):
    for name, n in (("a", 500), ("b", 20), ("c", 100), ("d", 300)):
        (tmp_path / f"{name}.txt").write_text(name * n)
    tokens = Tokens(OfBytes(), V)
    reading = texts_of(str(tmp_path), 2, 100, tokens, None)
    assert [bytes(ids).decode() for ids in reading.ids] == ["a" * 100, "c" * 100]
    assert [(t.name, t.problem is None, t.is_cut) for t in reading.texts] == [
        ("a.txt", True, True),
        ("b.txt", False, False),
        ("c.txt", True, False),
    ]
    with pytest.raises(DataError, match="none of its 4 documents has 600 tokens"):
        texts_of(str(tmp_path), 2, 600, tokens, None)
    with pytest.raises(ValueError, match="positions for 50 tokens"):
        texts_of(str(tmp_path), 2, 60, tokens, 50)

    class Blanks(OfBytes):
        """A run of blanks is one token."""

        def _ids(self, text: str) -> list[int]:
            return super()._ids(" ".join(text.split(" " * 500)))

    (tmp_path / "a.txt").write_text("".join(letter + " " * 500 for letter in "abcdef"))
    (text,) = texts_of(str(tmp_path / "a.txt"), 1, 8, Tokens(Blanks(), V), None).texts
    assert bytes(text.ids) == b"a b c d " and text.is_cut
    assert [window_of(n) for n in (4, 1024, 65536)] == [1, 128, 4096]
