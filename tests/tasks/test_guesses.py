"""What guessing scores by each measure of an answer, against guesses that are drawn."""

from statistics import fmean

import numpy as np
import pytest

from gatelab.tasks import TASKS, Knobs, TaskItem, open_task
from gatelab.tasks.cited import CITATIONS, judged
from gatelab.tasks.guesses import guesses_of
from gatelab.tasks.metrics import cited, effective_length, guessing, overlap
from gatelab.tasks.prompt import Setting
from gatelab.tasks.vocabulary import KEYS, N_KEYS, N_NUMBERS, N_VALUES, NUMBERS, VALUES

N = 1500  # items
KINDS = {"values": (VALUES, N_VALUES), "numbers": (NUMBERS, N_NUMBERS), "words": (KEYS, N_KEYS)}


def measured(name: str, given: tuple[int, ...], item: TaskItem) -> dict[str, float]:
    """By the same measures as an evaluation."""
    if name == "mqar":
        return {"query_accuracy": fmean(g == r for g, r in zip(given, item.answer, strict=True))}
    if name != "cite":
        share = overlap(given, item.answer)
        return {f"answer_{k}": getattr(share, k) for k in ("precision", "recall", "f1")}
    is_right, share = cited(given, item.answer)
    return {"answer_exact": float(is_right)} | {
        f"citation_{k}": getattr(share, k) for k in ("precision", "recall", "f1")
    }


def of(kind: str, item: TaskItem) -> list[int]:
    """Different tokens of a kind in what is read before the answer."""
    first, n = KINDS[kind]
    return sorted({t for t in item.tokens[: item.asked[0] + 1] if first <= t < first + n})


# The kinds of an answer's tokens: those of the first, and of the others.
CASES = [
    ("cite", "values", "numbers", {}), ("cite", "values", "numbers", {"hardness": 3, "distractors": 4}),
    ("multivalue", "values", "values", {}), ("multiquery", "values", "values", {}),
    ("mqar", "values", "values", {"distractors": 3}), ("aggregate", "words", "words", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "first", "others", "changes"), CASES)
def test_tokens_copied_blindly_score_what_is_told(name: str, first: str, others: str, changes: dict[str, int]):
    rng, task = np.random.default_rng(0), open_task(name)
    scores: dict[str, list[float]] = {}
    told: dict[str, list[float]] = {}
    for index in range(N):
        item = task.item(Knobs(128, **changes), index)
        n = len(item.answer)
        if name == "mqar":  # each key has its own answer
            given = tuple(int(rng.choice(of("values", item))) for _ in range(n))
        elif name == "cite":
            given = (int(rng.choice(of("values", item))), *rng.permutation(of("numbers", item))[: n - 1].tolist())
        else:
            given = tuple(rng.permutation(of(first, item))[:n].tolist())
        for metric, score in measured(name, given, item).items():
            scores.setdefault(metric, []).append(score)
        for metric, (_, copying) in guesses_of(task, item).items():
            told.setdefault(metric, []).append(copying)
    assert set(told) == set(scores)
    for metric, own in scores.items():
        error = np.std(own) / N**0.5
        assert fmean(told[metric]) == pytest.approx(fmean(own), abs=4 * error), metric


@pytest.mark.parametrize(("name", "first", "others", "changes"), CASES)
def test_tokens_drawn_at_random_score_what_is_told(name: str, first: str, others: str, changes: dict[str, int]):
    """Of one item many guesses, for a token is right one time in a thousand."""
    rng, task = np.random.default_rng(1), open_task(name)
    item = task.item(Knobs(128, **changes), 0)
    n = len(item.answer)
    kinds = [KINDS[first], *[KINDS[others]] * (n - 1)]
    n_guesses = 20_000
    given_NA = np.stack([start + rng.integers(0, size, n_guesses) for start, size in kinds], axis=1)
    scores: dict[str, list[float]] = {}
    for given in given_NA.tolist():
        for metric, score in measured(name, tuple(given), item).items():
            scores.setdefault(metric, []).append(score)
    for metric, (chance, _) in guesses_of(task, item).items():
        error = (chance / n_guesses) ** 0.5  # of shares this small, at most
        assert fmean(scores[metric]) == pytest.approx(chance, abs=4 * error), metric


def test_a_document_is_guessed_far_more_often_than_a_value_and_its_document():
    task = open_task("cite")
    item = task.item(Knobs(128), 0)
    guesses = guesses_of(task, item)
    assert guesses["citation_f1"] == pytest.approx((1 / N_NUMBERS, 1 / 8)) and guesses["citation_f1"][1] > item.floor
    assert guesses["answer_exact"] == pytest.approx((1 / N_VALUES, 1 / 16))
    pairs = open_task("mqar")
    item = pairs.item(Knobs(128), 0)
    assert guesses_of(pairs, item)["query_accuracy"] == pytest.approx((1 / N_VALUES, 1 / len(set(item.answer))))


def test_an_answer_that_is_one_whole_has_no_parts_to_guess():
    for name in TASKS:
        task = open_task(name)
        found = guesses_of(task, task.item(Knobs(128), 0))
        assert bool(found) == (task.answer != "sequence")
        assert all(0 <= chance <= 1 and 0 <= copying <= 1 for chance, copying in found.values())


@pytest.mark.parametrize("name", ["citations/one", "citations/three"])
def test_texts_that_cite_blindly_score_what_is_told(name: str):
    rng, size = np.random.default_rng(2), 8
    scores: dict[tuple[str, int], list[float]] = {}
    for index in range(N):
        prompt = CITATIONS[name].make(Setting(), index, size)
        for n, column in ((1, 0), (3, 1)):
            text = "0" + "".join(f"[{d + 1}]" for d in rng.permutation(size)[:n])
            share = judged(prompt, text).share
            for measure in ("precision", "recall", "f1"):
                scores.setdefault((f"citation_{measure}", column), []).append(getattr(share, measure))
    for (metric, column), own in scores.items():
        assert prompt.guesses[metric][column] == pytest.approx(fmean(own), abs=4 * np.std(own) / N**0.5), metric
    assert prompt.guesses["citation_f1"] == (prompt.chance, prompt.floor)
    n_gold = len(prompt.factors["gold"])
    assert prompt.guesses["answer_exact"] == (1 / N_VALUES, 1 / (2 * size - n_gold + 1))


def test_an_effective_length_is_of_what_is_above_the_greater_of_both_guesses():
    assert guessing(0.001, 0.25) == 0.25 and guessing(0.125, None) == 0.125 and guessing(None, None) is None
    assert guessing(0.001, 1.0) == 0.001, "of a needle alone copying is all that is asked"
    scores = {1: 0.27, 2: 0.25, 4: 0.25, 8: 0.25}
    beside = dict.fromkeys(scores, guessing(0.001, 0.25))
    assert effective_length(scores) == 8 and effective_length(scores, beside) == 1
    assert effective_length(scores, beside, {1: 0.2}) is None
