"""Asking: an oracle is right everywhere, a model that knows nothing scores chance everywhere, ties and nan are never right."""

import math
from pathlib import Path

import pytest
import tiny
import torch
from task_solvers import LEARNERS, SOLVERS
from torch import Tensor

from gatelab.config import Answers, ModelConfig, OptimConfig, Run, Tasks, TrainConfig
from gatelab.data import objective_heldout, open_source
from gatelab.evals.answers import Answer, choice_rows, items_of, load_rows, rows_of
from gatelab.evals.next_token import next_token
from gatelab.evals.tasks import Reader, ask, ask_items, ask_text, at_lengths, choices, hidden, loads_of, reader_of
from gatelab.models import build_model
from gatelab.tasks import TASKS, VOCAB_SIZE, Knobs, TaskError, TaskItem, open_task
from gatelab.tasks.guesses import guesses_of
from gatelab.tasks.metrics import Verdict
from gatelab.tasks.options import options_of
from gatelab.tasks.text import as_text, tokenised
from gatelab.train.group import Group
from gatelab.train.loop import train

T = 96


def knobs(name: str, **changes: int) -> Knobs:
    return Knobs(**{"length": T, **changes})


def model(seed: int = 0, **changes: int):
    return build_model(tiny.model(**{"vocab_size": VOCAB_SIZE, "max_seq_len": 2 * T, **changes}), seed=seed)


def oracle(name: str) -> Reader:
    """Reads the tokens before the question's end, solves them, and is sure of what it found."""
    task, solve = open_task(name), SOLVERS.get(name)
    asked = {item.tokens: item for item in (task.item(knobs(name), i) for i in range(8))}
    if solve is None:
        lessons = [task.item(Knobs(length=12, distractors=0, split="train"), i) for i in range(3000)]
        solve = LEARNERS[name](lessons)

    def read(tokens_BT: Tensor, at_BA: Tensor) -> Tensor:
        logits_BAV = torch.zeros(*at_BA.shape, VOCAB_SIZE)
        for b, tokens in enumerate(tokens_BT.tolist()):
            item = asked[tuple(tokens)]
            blind = TaskItem(name, 0, item.tokens, item.asked, (0,) * len(item.answer), (), (), None, 0.0)
            for a, token in enumerate(solve(blind)):
                logits_BAV[b, a, token] = 9.0
        return logits_BAV

    return read


@pytest.mark.parametrize("name", TASKS)
def test_an_oracle_is_always_right(name: str):
    answers = ask(oracle(name), open_task(name), knobs(name), 8)
    assert all(a.verdict == Verdict(True, 1.0) and a.given == a.item.answer and a.margin == 9 for a in answers)
    rows = {r.metric: r.value for r in rows_of(answers, open_task(name), knobs(name), run="r", step=3)}
    assert rows["exact_match"] == rows["edit_similarity"] == 1 and rows["answer_margin"] == 9
    assert all(
        v == 1 for metric, v in rows.items() if metric.endswith(("_precision", "_recall", "_f1", "answer_exact"))
    )


@pytest.mark.parametrize("name", TASKS)
def test_an_untrained_model_scores_chance(name: str):
    task = open_task(name)
    items = [task.item(knobs(name), i) for i in range(6)]
    credit = []
    for seed in range(12):
        reader = reader_of(model(seed))
        answers = ask(reader, task, knobs(name), 4)
        assert not any(a.verdict.is_right for a in answers)
        verdicts = choices(reader, items)
        assert not any(v.is_nan for v in verdicts)
        credit.append(sum(v.credit for v in verdicts) / len(verdicts))
    mean = sum(credit) / len(credit)
    # Choices of one model lean one way, so models count and not items: their spread says how sure the mean is.
    spread = (sum((c - mean) ** 2 for c in credit) / (len(credit) - 1)) ** 0.5
    assert abs(mean - 1 / 8) <= 4 * max(spread, 0.06) / len(credit) ** 0.5


@pytest.mark.parametrize("name", TASKS)
def test_a_model_that_finds_everything_equally_likely_scores_chance_and_is_never_right(name: str):
    def flat(tokens_BT: Tensor, at_BA: Tensor) -> Tensor:
        return torch.zeros(*at_BA.shape, VOCAB_SIZE)

    task = open_task(name)
    answers = ask(flat, task, knobs(name), 3)
    assert all(a.verdict.is_tied and not a.verdict.is_right and a.margin == 0 for a in answers)
    assert [v.credit for v in choices(flat, [a.item for a in answers])] == pytest.approx([1 / 8] * 3)


def test_no_number_is_never_right_and_is_counted():
    def broken(tokens_BT: Tensor, at_BA: Tensor) -> Tensor:
        return torch.full((*at_BA.shape, VOCAB_SIZE), math.nan)

    task = open_task("needle")
    answers = ask(broken, task, knobs("needle"), 3)
    assert all(a.verdict == Verdict(False, 0.0, is_nan=True) and math.isnan(a.margin) for a in answers)
    rows = {r.metric: r.value for r in rows_of(answers, task, knobs("needle"), run="r", step=0)}
    assert rows["answer_nan"] == 1 and rows["exact_match"] == 0 and "answer_margin" not in rows
    assert choices(broken, [answers[0].item])[0].is_nan
    assert items_of(answers, knobs("needle"), run="r", step=0)[0].as_dict()["score"] == "nan"


def test_one_token_that_is_no_number_spoils_the_answer_though_the_right_one_is_best():
    task, right = open_task("needle"), {}

    def nearly(tokens_BT: Tensor, at_BA: Tensor) -> Tensor:
        logits_BAV = torch.zeros(*at_BA.shape, VOCAB_SIZE)
        for b, tokens in enumerate(tokens_BT.tolist()):
            logits_BAV[b, 0, right[tuple(tokens)]] = 5.0
        logits_BAV[:, :, 7] = math.nan
        return logits_BAV

    right.update({task.item(knobs("needle"), i).tokens: task.item(knobs("needle"), i).answer[0] for i in range(2)})
    assert all(a.verdict.is_nan and not a.verdict.is_right for a in ask(nearly, task, knobs("needle"), 2))


def test_after_a_wrong_token_a_model_goes_on_from_what_it_said():
    """It says the token it read plus one, forever; the answer's own later tokens have no part in that."""

    def plus_one(tokens_BT: Tensor, at_BA: Tensor) -> Tensor:
        read_BA = tokens_BT.gather(1, at_BA)
        return torch.nn.functional.one_hot((read_BA + 1) % VOCAB_SIZE, VOCAB_SIZE).float()

    task = open_task("needle")
    (answer,) = ask(plus_one, task, knobs("needle", hardness=4), 1)
    start = answer.item.tokens[answer.item.asked[0]]
    assert answer.given == tuple(start + i for i in (1, 2, 3, 4)) and not answer.verdict.is_right
    (answer,) = ask(plus_one, open_task("mqar"), knobs("mqar"), 1)
    assert answer.given == tuple(answer.item.tokens[p] + 1 for p in answer.item.asked)


@pytest.mark.parametrize(("name", "n_passes"), [("mqar", 1), ("multivalue", 4)])
def test_only_what_a_model_said_otherwise_is_read_again(name: str, n_passes: int):
    """An answer of sixteen tokens that the item does not go on with, beside one of four that it does."""
    reads, reader = [], reader_of(model())

    def counted(tokens_BT: Tensor, at_BA: Tensor) -> Tensor:
        reads.append(len(tokens_BT))
        return reader(tokens_BT, at_BA)

    assert not any(a.verdict.is_right for a in ask(counted, open_task(name), knobs(name), 3))
    assert reads == [3] * n_passes


def test_of_items_that_are_wrong_only_later_each_goes_on_from_its_own():
    """Each says the right tokens up to one, 5 there, and after it the token it read plus one."""
    task = open_task("multivalue")
    items = [task.item(knobs("multivalue"), i) for i in range(4)]

    def read(tokens_BT: Tensor, at_BA: Tensor) -> Tensor:
        logits_BAV = torch.zeros(*at_BA.shape, VOCAB_SIZE)
        for b, tokens in enumerate(tokens_BT.tolist()):
            (n, item) = next(
                (n, i) for n, i in enumerate(items) if i.tokens[: i.asked[0] + 1] == tuple(tokens[: i.asked[0] + 1])
            )
            for a, at in enumerate(at_BA[b].tolist()):
                place = item.asked.index(at)
                logits_BAV[b, a, item.answer[place] if place < n else 5 if place == n else tokens[at] + 1] = 9.0
        return logits_BAV

    for n, answer in enumerate(ask_items(read, items)):
        assert answer.given == (*answer.item.answer[:n], 5, 6, 7, 8)[:4]


def test_a_margin_is_that_of_the_least_sure_token_by_plain_arithmetic():
    task, net = open_task("needle"), model()
    (answer,) = ask(reader_of(net), task, knobs("needle", hardness=3), 1)
    with torch.no_grad():
        log_p_TV = net(torch.tensor([answer.item.tokens]))[0].double().log_softmax(dim=-1)
    margins, log_p = [], 0.0
    for p, right in zip(answer.item.asked, answer.item.answer, strict=True):
        wrong = [float(log_p_TV[p, t]) for t in range(VOCAB_SIZE) if t != right]
        margins.append(float(log_p_TV[p, right]) - max(wrong))
        log_p += float(log_p_TV[p, right])
    assert answer.margin == pytest.approx(min(margins), abs=1e-5) and answer.log_p == pytest.approx(log_p, abs=1e-4)


def test_how_many_items_go_through_at_once_does_not_matter(monkeypatch: pytest.MonkeyPatch):
    task, reader = open_task("multivalue"), reader_of(model())
    whole = ask(reader, task, knobs("multivalue"), 5)
    monkeypatch.setattr("gatelab.evals.tasks._TOKENS", T)
    parts = ask(reader, task, knobs("multivalue"), 5)
    assert [a.given for a in parts] == [a.given for a in whole]
    assert [a.margin for a in parts] == pytest.approx([a.margin for a in whole], abs=1e-5)


def test_options_of_many_items_go_through_at_once_and_are_those_of_each(monkeypatch: pytest.MonkeyPatch):
    task, net = open_task("multivalue"), model()
    items, reads = [task.item(knobs("multivalue"), i) for i in range(24)], []

    def counted(tokens_BT: Tensor, at_BA: Tensor) -> Tensor:
        reads.append(len(tokens_BT))
        return reader_of(net)(tokens_BT, at_BA)

    whole = choices(counted, items)
    assert reads == [8 * 24] and {v.is_right for v in whole} == {True, False}
    best = []
    for item in items:  # by definition, an option a pass
        sums = []
        for option in options_of(item):
            ids = [*item.tokens[: item.asked[0] + 1], *option]
            with torch.no_grad():
                log_p_TV = net(torch.tensor([ids]))[0].double().log_softmax(dim=-1)
            sums.append(sum(float(log_p_TV[at, t]) for at, t in zip(item.asked, option, strict=True)))
        best.append(max(sums) == sums[0])
    assert [v.is_right for v in whole] == best
    monkeypatch.setattr("gatelab.evals.tasks._TOKENS", 10 * 8 * T)
    assert choices(counted, items) == whole and reads[1:] == [80, 80, 32]


def answer_of(item: TaskItem, given: tuple[int, ...]) -> Answer:
    return Answer(item, given, -1.0, -0.5, Verdict(given == item.answer, float(given == item.answer)))


def test_rows_of_sets_and_citations_by_plain_arithmetic():
    task = open_task("multivalue")
    item = task.item(knobs("multivalue"), 0)
    backwards = answer_of(item, item.answer[::-1])
    rows = {r.metric: r for r in rows_of([backwards], task, knobs("multivalue"), run="r", step=4)}
    assert rows["exact_match"].value == 0 and rows["answer_f1"].value == 1
    assert (rows["answer_f1"].task, rows["answer_f1"].length, rows["answer_f1"].step) == ("multivalue", T, 4)
    cite = open_task("cite")
    item = cite.item(knobs("cite"), 0)
    wrong_document = answer_of(item, (item.answer[0], item.answer[1] + 1))
    rows = {r.metric: r.value for r in rows_of([wrong_document], cite, knobs("cite"), run="r", step=0)}
    assert rows["answer_exact"] == 1 and rows["citation_f1"] == 0 and rows["exact_match"] == 0


def test_a_record_of_an_item_says_where_its_evidence_is():
    task, k = open_task("needle"), knobs("needle", distractors=2)
    (record,) = items_of(ask(reader_of(model()), task, k, 1), k, run="r", step=2)
    item = task.item(k, 0)
    assert record.factors["evidence"] == [list(item.evidence[0])] and len(record.factors["distractors"]) == 2
    assert record.factors["depth"] == item.depth and record.factors["length"] == T
    assert record.answer == str(item.answer[0]) and record.correct is False


def test_a_task_is_asked_at_multiples_of_the_length_of_training():
    rows, items = at_lengths(model(), "bracket", Knobs(length=24), 2, run="r", step=1)
    assert [r.length for r in rows if r.metric == "exact_match"] == [24, 48, 96, 192]
    assert len(items) == 8


def test_what_a_model_cannot_read_is_refused():
    with pytest.raises(ValueError, match=r"items of 400 tokens.*positions for 192; ask shorter ones"):
        ask(reader_of(model()), open_task("needle"), Knobs(length=400), 1)
    with pytest.raises(ValueError, match=r"no id of this model, whose vocabulary has 17"):
        ask(reader_of(build_model(tiny.model(max_seq_len=T))), open_task("needle"), knobs("needle"), 1)
    both = build_model(tiny.model(arch="encoder-decoder", vocab_size=VOCAB_SIZE, max_seq_len=T))
    with pytest.raises(ValueError, match=r"items of 256 tokens, and this model has positions for .*max_seq_len=129"):
        ask(reader_of(both), open_task("needle"), Knobs(length=256), 1)
    with pytest.raises(TaskError):
        ask(reader_of(model()), open_task("cite"), Knobs(length=20), 1)
    with pytest.raises(TaskError, match="n_items=-1: ask at least one"):
        ask(reader_of(model()), open_task("needle"), knobs("needle"), -1)
    with pytest.raises(ValueError, match="model is a NoneType: expected a model of Gatelab"):
        reader_of(None)
    with pytest.raises(ValueError, match="no answers"):
        rows_of([], open_task("needle"), knobs("needle"), run="r", step=0)


def of_bytes(text: str) -> list[int]:
    return list(text.encode())


def test_text_is_asked_in_a_models_own_tokens():
    net = build_model(tiny.model(vocab_size=259, max_seq_len=600))
    task = open_task("needle")
    text = as_text(task, task.item(Knobs(length=40), 0))
    item = tokenised(text, of_bytes, bos_id=256)
    verdict, margin, given = ask_text(next_token(net), item)
    with torch.no_grad():
        log_p_TV = net(torch.tensor([item.ids]))[0].double().log_softmax(dim=-1)
    ((start, end),) = item.answers
    right = [float(log_p_TV[p - 1, item.ids[p]]) for p in range(start, end)]
    best = [max(float(log_p_TV[p - 1, t]) for t in range(259) if t != item.ids[p]) for p in range(start, end)]
    assert margin == pytest.approx(min(r - b for r, b in zip(right, best, strict=True)), abs=1e-5)
    assert given == tuple(log_p_TV[start - 1 : end - 1].argmax(dim=-1).tolist()) and not verdict.is_right


def test_text_that_a_tokenizer_spoils_is_refused_by_its_problem():
    task = open_task("needle")
    text = as_text(task, task.item(Knobs(length=40), 0))
    item = tokenised(text, of_bytes, max_tokens=10)
    net = build_model(tiny.model(vocab_size=259, max_seq_len=600))
    with pytest.raises(ValueError, match=r"needle 0: the item has .* the model reads 10"):
        ask_text(next_token(net), item)


@pytest.mark.slow
def test_a_model_trained_on_a_task_learns_it():
    run = Run(
        model=ModelConfig(d_model=32, n_layers=1, n_heads=2, d_ff=64),
        data=Tasks(names=("bracket",), hardness=1, distractors=1),
        optim=OptimConfig(lr=1e-2),
        train=TrainConfig(tokens=32 * 12 * 60, batch_size=32, seq_len=12),
    )
    group, k = Group([run]), Knobs(length=12, hardness=1, distractors=1)
    reader = reader_of(group.members[0].model)

    def solved() -> float:
        answers = ask(reader, open_task("bracket"), k, 100)
        return sum(a.verdict.is_right for a in answers) / len(answers)

    assert solved() <= 0.3  # one of four kinds at most
    for step in train(group):
        assert not step.diverged[0]
    assert solved() == 1.0


def test_an_encoder_is_asked_with_its_answers_hidden_as_it_is_trained():
    encoder = build_model(tiny.model(arch="encoder", vocab_size=VOCAB_SIZE + 1, max_seq_len=T))
    for name in ("multivalue", "multiquery", "mqar"):
        items = [open_task(name).item(knobs(name), i) for i in range(3)]
        blind = [hidden(item) for item in items]
        trained = objective_heldout(open_source(Tasks(names=(name,))), Answers(), 0, 3, T)
        assert [item.tokens for item in blind] == [tuple(row) for row in trained.inputs_BT.tolist()]
        n_hidden = {"multivalue": 3, "multiquery": 3, "mqar": 0}[name]  # the last token is not read, and mqar's none
        assert all(item.tokens.count(VOCAB_SIZE) == n_hidden for item in blind)
        answers = ask_items(reader_of(encoder), blind)
        with torch.no_grad():
            logits_TV = encoder(torch.tensor([blind[0].tokens]))[0]
        assert answers[0].given == tuple(logits_TV[list(blind[0].asked)].argmax(dim=-1).tolist())
    rows, _ = at_lengths(encoder, "bracket", Knobs(length=20), 2, run="r", step=0, times=(1, 2))
    assert {r.length for r in rows} == {20, 40}


def test_every_row_is_defined_in_the_metrics_page():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    section = page.partition("## Tasks (")[2].partition("\n## ")[0]
    for name in ("cite", "multivalue", "needle", "multikey", "bracket", "select", "conflict", "mqar"):
        task = open_task(name)
        reader, items = reader_of(model()), [task.item(knobs(name), 0)]
        rows = rows_of(ask_items(reader, items), task, knobs(name), run="r", step=0)
        rows += choice_rows(choices(reader, items), items, task, knobs(name), run="r", step=0)
        assert {r.value for r in rows if r.metric == "choice_chance"} == {1 / 8}
        parts = {f"{metric}_{end}" for metric in guesses_of(task, items[0]) for end in ("chance", "floor")}
        assert parts <= {r.metric for r in rows}
        for row in rows:
            metric = row.metric.rpartition("_")[0] if row.metric in parts else row.metric
            assert f"`{metric}`" in section if row.metric in parts else f"| `{metric}` | {row.unit} |" in section, (
                metric
            )


def test_each_key_of_mqar_counts_and_a_tie_does_not():
    task, k = open_task("mqar"), knobs("mqar", distractors=3)
    item = task.item(k, 0)

    def read(tokens_BT: Tensor, at_BA: Tensor) -> Tensor:
        """Right after the first two keys, tied with another value after the third, wrong after the last."""
        logits_BAV = torch.zeros(1, 4, VOCAB_SIZE)
        for a, token in enumerate(item.answer[:3]):
            logits_BAV[0, a, token] = 9.0
        logits_BAV[0, 2, item.answer[2] ^ 1] = logits_BAV[0, 3, item.answer[3] ^ 1] = 9.0
        return logits_BAV

    (answer,) = ask_items(read, [item])
    assert answer.rights == (True, True, False, False) and not answer.verdict.is_right
    rows = {r.metric: r.value for r in rows_of([answer], task, k, run="r", step=0)}
    assert (rows["exact_match"], rows["query_accuracy"]) == (0, 0.5)
    assert rows["query_accuracy_chance"] == 1 / 1024 and rows["query_accuracy_floor"] == 1 / 4
    (broken,) = ask_items(lambda t, at: torch.full((1, 4, VOCAB_SIZE), math.nan), [item])
    assert broken.rights == (False,) * 4


def test_a_task_is_asked_at_as_many_pairs_as_have_room():
    task = open_task("mqar")
    assert [k.distractors for k in loads_of(task, Knobs(length=64))] == [3, 7, 15]
    assert [k.distractors for k in loads_of(task, Knobs(length=128))] == [3, 7, 15, 31]
    assert loads_of(open_task("cite"), Knobs(length=128)) == []
    k = loads_of(task, Knobs(length=64))[1]
    rows = load_rows(ask(reader_of(model()), task, k, 3), task, k, run="r", step=5)
    assert {r.metric for r in rows} == {f"query_accuracy{end}" for end in ("", "_chance", "_floor")}
    assert {(r.bin, r.length, r.step) for r in rows} == {(8, 64, 5)}
