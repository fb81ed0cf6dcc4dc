"""What is said of several lengths and depths together, and of answers in words beside being right, by known answers."""

import pytest
from prompt_cases import TASKS_OF_PROMPTS, setting

from gatelab.evals.own_across import by_depth, by_length
from gatelab.evals.own_worth import worth_of
from gatelab.record import Row
from gatelab.tasks import Knobs, open_task
from gatelab.tasks.in_words import words_of
from gatelab.tasks.metrics import position_curve
from gatelab.tasks.prompt import Prompt, Setting
from gatelab.tasks.vocabulary import word

DEPTHS = [b / 10 for b in range(11)]


def prompt(name: str, index: int = 0, **knobs: int) -> Prompt:
    task = words_of(open_task(name), Knobs(**knobs), length=400, depth=None)
    return task.make(Setting(length=400), index, 128)


def worth(of: Prompt, *written: str, is_sure: bool = True) -> dict[str, float]:
    return {m: v for (m, n), v in worth_of(of, written, is_sure=is_sure).items() if n is None}


def test_a_score_of_three_lengths_has_an_effective_length_and_one_of_two_has_none():
    def rows(values: dict[int, float], metric: str = "exact_match") -> list[Row]:
        return [Row("r", 0, "tasks", metric, v, "share", task="needle", length=n, depth=0.5) for n, v in values.items()]

    made, lines = by_length([*rows({64: 0.4, 128: 0.5, 256: 0.44, 512: 0.1}), *rows({64: 1, 128: 1}, "choice")])
    assert made == [
        Row("r", 0, "tasks", "effective_length", 256, "tokens", task="needle", depth=0.5, domain="exact_match")
    ]
    (line,) = lines
    assert (line["metric"], line["value"], line["depth"]) == ("effective length of exact_match, tokens", 256, 0.5)
    assert by_length(rows({64: 0, 128: 0, 256: 0})) == ([], [])
    # Eight options: a little above chance is not to be, where the interval holds chance.
    scores, chance = (
        {512: 0.125, 1024: 0.12, 2048: 0.13, 4096: 0.125},
        rows(dict.fromkeys((512, 1024, 2048), 1 / 8), "choice_chance"),
    )
    assert by_length([*rows(scores, "choice"), *rows({2048: 0.05}, "choice_low"), *chance]) == ([], [])
    assert by_length(rows({64: 0, 128: 0, 256: 0}, "answer_floor")) == ([], [])


def test_ends_and_middle_are_told_of_the_items_that_all_eleven_depths_have():
    # Right at the ends alone; item 9 was refused at one depth.
    scores = {d: {"exact_match": {i: float(d in (0, 1)) for i in range(4)} | ({9: 1.0} if d else {})} for d in DEPTHS}
    rows, lines = by_depth("r", "needle", 256, scores)
    found = {r.metric: r.value for r in rows}
    assert {(r.task, r.length, r.depth, r.domain) for r in rows} == {("needle", 256, None, "exact_match")}
    expected = position_curve(
        [d for d in DEPTHS for _ in range(4)], [float(d in (0, 1)) for d in DEPTHS for _ in range(4)]
    )
    for name, of in (("primacy", expected.primacy), ("recency", expected.recency), ("u_index", expected.u_index),
                     ("worst_depth", expected.worst)):  # fmt: skip
        assert found[name] == of.value and found[f"{name}_low"] == found[f"{name}_high"] == of.value
    assert (found["u_index"], found["worst_depth"]) == (1, 0)
    assert (lines[0]["metric"], lines[0]["items"], len(lines)) == ("primacy of exact_match", 4, 4)


def test_a_margin_has_ends_and_middle_too_in_nats():
    """All is right, and the less surely so the nearer the middle."""
    scores = {d: {"exact_match": dict.fromkeys(range(3), 1.0), "answer_margin": dict.fromkeys(range(3), 10 * abs(d - 0.5))}
              for d in DEPTHS}  # fmt: skip
    rows, lines = by_depth("r", "needle", 256, scores)
    found = {(r.domain, r.metric): (r.value, r.unit) for r in rows}
    assert found["exact_match", "u_index"] == (0, "share")
    assert found["answer_margin", "u_index"] == (pytest.approx(5 - (1 + 0 + 1) / 3), "nats")
    assert "u_index of answer_margin" in {x["metric"] for x in lines}


def test_an_effective_length_is_above_the_greater_guess_of_its_own_score():
    def rows(values: dict[int, float], metric: str) -> list[Row]:
        return [Row("r", 0, "tasks", metric, v, "share", task="cite", length=n) for n, v in values.items()]

    scores = rows({64: 0.5, 128: 0.2, 256: 0.13}, "citation_f1")
    beside = [
        *rows(dict.fromkeys((64, 128, 256), 1e-6), "answer_chance"),
        *rows(dict.fromkeys((64, 128, 256), 0.4), "answer_floor"),
    ]
    assert [made.value for made in by_length([*scores, *beside])[0]] == [64], "its whole answer's, where it has none"
    own = [
        *rows({64: 0.12, 128: 0.12, 256: 0.12}, "citation_f1_floor"),
        *rows({64: 0, 128: 0, 256: 0}, "citation_f1_chance"),
    ]
    low = rows({64: 0.1}, "citation_f1_low")
    (made,) = by_length([*scores, *beside, *own])[0]
    assert made.value == 64 and by_length([*scores, *beside, *own, *low]) == ([], [])
    pairs = [Row("r", 0, "tasks", "query_accuracy", 1.0, "share", task="mqar", length=n, bin=4) for n in (64, 128, 256)]
    assert by_length(pairs) == ([], []), "numbers of pairs are no lengths"


@pytest.mark.parametrize("depths", [[None], DEPTHS[:-1], [*DEPTHS, 0.55]])
def test_other_depths_have_no_such_numbers(depths: list):
    assert by_depth("r", "needle", 256, {d: {"exact_match": {0: 1.0}} for d in depths}) == ([], [])


def test_answers_of_sets_have_precision_recall_and_edits():
    of = prompt("multivalue")
    right = [a.strip() for answer in of.answers for a in answer.split()]
    assert len(right) == 4
    all_right = worth(of, *of.answers)
    assert all_right["answer_f1"] == all_right["edit_similarity"] == 1 and all_right["copied_from_start"] == 0
    turned = worth(of, " ".join(right[::-1])) if len(of.answers) == 1 else worth(of, *reversed(of.answers))
    assert turned["answer_f1"] == 1 and turned["edit_similarity"] < 1
    one = worth(of, right[0]) if len(of.answers) == 1 else worth(of, of.answers[0], *([""] * (len(of.answers) - 1)))
    assert (one["answer_precision"], one["answer_recall"]) == (1, 1 / 4) and one["edit_similarity"] == 1 / 4
    assert set(worth(of, *of.answers, is_sure=False).values()) == {0}, "what was tied was not known"
    assert "answer_f1" in worth(prompt("multiquery"), *prompt("multiquery").answers)
    assert "answer_f1" not in worth(prompt("needle"), " 12.")


def test_parts_of_answers_in_words_are_told_beside_guesses():
    of = prompt("cite")
    value, document = of.answers[0].split()
    assert worth(of, f" {value} {int(document) + 1}") | {"copied_from_start": 0} == {
        "answer_exact": 1, "citation_precision": 0, "citation_recall": 0, "citation_f1": 0, "edit_similarity": 1 / 2,
        "copied_from_start": 0,
    }  # fmt: skip
    assert worth(of, f" 1 {document}")["citation_f1"] == 1 and of.guesses["citation_f1"][1] == pytest.approx(1 / 8)
    pairs = prompt("mqar", distractors=3)
    assert worth(pairs, *pairs.answers[:3], " 1.")["query_accuracy"] == 3 / 4
    assert worth(pairs, *pairs.answers, is_sure=False)["query_accuracy"] == 0
    assert set(pairs.guesses) == {"query_accuracy"} and prompt("needle").guesses == {}


def test_words_that_go_on_behind_an_answer_do_not_count():
    of = prompt("needle")
    assert worth(of, f"{of.answers[0]}. The code")["edit_similarity"] == 1


def test_copying_the_beginning_is_seen():
    of = prompt("select")
    start = of.parts[0].split()[:3]
    assert worth(of, " ".join(start) + " and more")["copied_from_start"] == 1
    assert worth(of, f" {start[0]} other words")["copied_from_start"] == 0
    ruler = TASKS_OF_PROMPTS["ruler/niah_single_1"].make(setting("ruler/niah_single_1"), 0, 5)
    copied = " ".join(ruler.parts[0].split()[:6])
    assert worth(ruler, copied) == {"copied_from_start": 1} and worth(ruler, *ruler.answers) == {"copied_from_start": 0}


def test_errors_are_told_of_words_as_they_are_of_tokens():
    of = prompt("multikey")
    near = next(word(t) for t in of.factors["neighbours"])
    assert worth(of, f" {near}")["error_neighbour"] == 1 and worth(of, " 1.")["error_elsewhere"] == 1
    contradicted = next(p for i in range(9) if (p := prompt("conflict", i)).factors["says"])
    learned = word(contradicted.factors["memory"])
    assert worth(contradicted, f" {learned}")["memorization_ratio"] == 1
    assert worth(contradicted, *contradicted.answers)["memorization_ratio"] == 0
    brackets = prompt("bracket")
    closing = brackets.answers[0].split()
    assert worth(brackets, " ".join([*closing[:2], "x"]))["first_error"] == 2
    chosen = prompt("select")
    assert set(worth_of(chosen, chosen.answers, is_sure=True).values()) == {0, 1}
    half = " ".join(chosen.answers[0].split()[:4])
    found = {n: v for (m, n), v in worth_of(chosen, (half,), is_sure=True).items() if m == "sentence_recall"}
    assert found == {0: 1, 1: 0, 2: 0}
