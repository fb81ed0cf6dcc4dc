"""Citations in text, counted by hand."""

from pathlib import Path

import pytest

from gatelab.tasks.citations import citations_of, cited_text, rows_of, table, without_citations
from gatelab.tasks.metrics import Share

DOCUMENTS = range(1, 9)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("It is 7 [3].", (3,)),
        ("It is 7 [3][5], and 9 [5].", (3, 5)),
        ("It is 7 [3, 5; 2].", (3, 5, 2)),
        ("No markers: (3), [a], [3a], [], x[i].", ()),
        ("", ()),
        ("It is [ 12 ].\nMore [4].", (12, 4)),
        (f"Looping [{'9' * 5000}] and [2].", (2,)),
    ],
)
def test_markers_are_numbers_in_brackets_each_once_in_order(text: str, numbers: tuple[int, ...]):
    assert citations_of(text) == numbers


def test_only_the_first_line_and_the_first_so_many_may_count():
    text = "\nIt is 7 [3][3][5][1][2].\nAlso [8]."
    assert citations_of(text, most=3, is_first_line=True) == (3, 5, 1)
    assert citations_of(text, is_first_line=True) == (3, 5, 1, 2) and citations_of(text) == (3, 5, 1, 2, 8)
    with pytest.raises(ValueError, match="most=0: expected a number of citations from 1"):
        citations_of(text, most=0)


def test_the_answer_is_judged_without_its_markers():
    assert without_citations("It is 7 [3] [5], it says [1, 2].") == "It is 7, it says."
    assert without_citations("[7]") == ""
    # A marker is no answer.
    assert not cited_text("I do not know [7].", [7], DOCUMENTS, lambda said: "7" in said).is_answer_right


def scored(text: str, gold: list[int]):
    return cited_text(text, gold, DOCUMENTS, lambda said: "blue" in said)


def test_precision_and_recall_counted_by_hand():
    assert scored("blue [2][5]", [2]).share == Share(1 / 2, 1.0, 2 / 3)
    assert scored("blue [2]", [2, 4]).share == Share(1.0, 1 / 2, 2 / 3)
    assert scored("blue [2][4][6]", [4, 2]).share == Share(2 / 3, 1.0, 4 / 5)
    assert scored("blue [3]", [2]).share == Share(0.0, 0.0, 0.0)
    assert scored("blue", [2]).share == Share(0.0, 0.0, 0.0)
    strange = scored("blue [2][99]", [2])
    assert strange.share == Share(1 / 2, 1.0, 2 / 3) and strange.n_unknown == 1


def test_the_table_has_four_cells_and_a_right_citation_is_all_gold_and_nothing_else():
    texts = [scored("blue [2]", [2]), scored("blue [2][3]", [2]), scored("red [2]", [2]), scored("red", [2])]
    assert table(texts) == {(True, True): 0.25, (True, False): 0.25, (False, True): 0.25, (False, False): 0.25}
    rows = rows_of(texts, task="cite", run="r", step=2, length=64)
    values = {r.metric if r.domain is None else r.domain: r.value for r in rows}
    assert values == {
        "answer_exact": 0.5,
        "citation_precision": (1 + 1 / 2 + 1 + 0) / 4,
        "citation_recall": 3 / 4,
        "citation_f1": pytest.approx((1 + 2 / 3 + 1 + 0) / 4),
        "citation_none": 1 / 4,
        "citation_unknown": 0.0,
        "answer right, citation right": 0.25,
        "answer right, citation wrong": 0.25,
        "answer wrong, citation right": 0.25,
        "answer wrong, citation wrong": 0.25,
    }
    assert {(r.source, r.task, r.length, r.step, r.unit) for r in rows} == {("citations", "cite", 64, 2, "share")}


@pytest.mark.parametrize("gold", [[], [9], [2, 11]])
def test_gold_documents_have_to_be_there(gold: list[int]):
    with pytest.raises(ValueError, match="expected one at least, each among"):
        scored("blue [2]", gold)


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="no items"):
        rows_of([], task="cite", run="r", step=0)


def test_every_row_is_defined_in_the_metrics_page():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    section = page.partition("(`gatelab.tasks.citations`")[2].partition("\n## ")[0]
    for row in rows_of([scored("blue [2]", [2])], task="cite", run="r", step=0):
        assert f"| `{row.metric}` | {row.unit} |" in section, row.metric
