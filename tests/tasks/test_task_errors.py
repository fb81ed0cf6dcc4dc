"""Which error an answer is, by known answers: of the text or of the weights, of a neighbour or of nobody, where it begins, what is
left out."""

import pytest

from gatelab.tasks import Knobs, open_task
from gatelab.tasks.errors import errors_of, means

FACTS = {"says": True, "memory": 7}


def test_the_memorization_ratio_is_memory_over_memory_and_text():
    given = [(5,), (5,), (7,), (9,), ()]
    of = means([errors_of("conflict", g, (5,), factors=FACTS) for g in given])
    assert of["context_answers", None] == 2 / 5 and of["memory_answers", None] == 1 / 5
    assert of["memorization_ratio", None] == pytest.approx(1 / 3)
    assert errors_of("conflict", (7,), (7,), factors={"says": False, "memory": 7}) == {}, "nothing is contradicted"
    assert ("memorization_ratio", None) not in means([errors_of("conflict", (9,), (5,), factors=FACTS)])


@pytest.mark.parametrize(
    ("said", "kind"), [(5, None), (6, "error_neighbour"), (8, "error_other_value"), (9, "error_elsewhere")]
)
def test_an_error_of_pairs_is_a_neighbours_another_pairs_or_nobodys(said: int, kind: str | None):
    found = errors_of("multikey", (said,), (5,), factors={"neighbours": [6]}, others={6, 8})
    assert {name for (name, _), value in found.items() if value} == ({kind} if kind else set()) and len(found) == 3


@pytest.mark.parametrize(
    ("given", "n"), [((1, 2, 3), None), ((9, 2, 3), 0), ((1, 2, 9), 2), ((1,), 1), ((), 0), ((1, 2, 3, 4), None)]
)
def test_the_first_error_of_brackets_is_behind_so_many_right_ones(given: tuple[int, ...], n: int | None):
    found = errors_of("bracket", given, (1, 2, 3), factors={})
    assert found == ({} if n is None else {("first_error", None): n})


def test_a_sentence_is_recalled_where_all_of_it_is_said_in_one_stretch():
    right = (1, 2, 3, 4, 5, 6)
    said = errors_of("select", (3, 4, 1, 2, 5, 9), right, factors={}, n_pieces=3)
    assert said == {("sentence_recall", 0): 1, ("sentence_recall", 1): 1, ("sentence_recall", 2): 0}
    assert set(errors_of("select", (), right, factors={}, n_pieces=3).values()) == {0}


def test_items_have_the_factors_that_errors_are_told_by():
    pairs = open_task("multikey").item(Knobs(length=64), 0)
    others = {token for rival in pairs.rivals for token in rival}
    near, far = pairs.factors["neighbours"][0], next(v for v in others if v not in pairs.factors["neighbours"])
    for said, kind in ((near, "error_neighbour"), (far, "error_other_value")):
        assert errors_of("multikey", (said,), pairs.answer, factors=pairs.factors, others=others)[kind, None] == 1
    chosen = open_task("select").item(Knobs(length=96), 0)
    found = errors_of("select", chosen.answer, chosen.answer, factors=chosen.factors, n_pieces=len(chosen.evidence))
    assert len(found) == len(chosen.evidence) == 3 and set(found.values()) == {1}
    conflicts = [open_task("conflict").item(Knobs(length=64), i) for i in range(20)]
    told = [errors_of("conflict", (i.factors["memory"],), i.answer, factors=i.factors) for i in conflicts]
    assert means(told)["memorization_ratio", None] == 1 and sum(map(bool, told)) == sum(
        i.factors["says"] for i in conflicts
    )


def test_other_tasks_have_none():
    assert errors_of("needle", (1,), (2,), factors={}) == {}
