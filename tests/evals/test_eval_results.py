"""What the harness returns, as rows: names, units, lengths, filters, and counts of a group over its items."""

from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval")

from gatelab.evals.harness.language_model import Remark
from gatelab.evals.harness.results import of_results, records


def task(kind: str = "generate_until") -> SimpleNamespace:
    return SimpleNamespace(OUTPUT_TYPE=kind, multiple_input=0)


def sample(item: int, **metrics: object) -> dict:
    return {
        "doc_id": item, "doc": {}, "target": "seven", "filtered_resps": ["eight"], "filter": "none",
        "metrics": list(metrics), **metrics,
    }  # fmt: skip


RESULTS = {
    "results": {
        "a": {"alias": "a", "sample_len": 3, "exact_match,strict": 0.5, "exact_match_stderr,strict": 0.1}
        | {"bits_per_byte,none": 1.5},
        "b": {"4096,none": 0.25, "4096_stderr,none": "N/A", "8192,none": -1, "8192_stderr,none": "N/A"},
        "ab": {"exact_match,strict": 0.4},
    },
    "samples": {"a": [sample(i, exact_match=1.0) for i in range(3)], "b": [sample(0, **{"4096": 0.25, "8192": -1})]},
    "n-shot": {"a": 5}, "versions": {"a": 1.0},
}  # fmt: skip
LOADED = SimpleNamespace(tasks={"a": task(), "b": task()}, group_map={"ab": ["a", "b"]})


def test_rows_have_units_lengths_and_filters() -> None:
    rows = of_results("m", RESULTS, LOADED, {}).rows
    found = {(r.task, r.metric, r.stage, r.length): (r.value, r.unit) for r in rows if not r.metric.startswith("items")}
    assert found == {
        ("a", "exact_match", "strict", None): (0.5, "share"),
        ("a", "exact_match_stderr", "strict", None): (0.1, "share"),
        ("a", "bits_per_byte", None, None): (1.5, "bits/byte"),
        ("b", "found", None, 4096): (0.25, "share"),
        ("ab", "exact_match", "strict", None): (0.4, "share"),
    }


def test_a_group_counts_each_item_once() -> None:
    remarks = {("a", 1): Remark(n_cut=4, lost_beginning=True), ("b", 0): Remark(is_not_finite=True)}
    rows = of_results("m", RESULTS, LOADED, remarks).rows
    shares = {(r.task, r.metric): r.value for r in rows if r.metric.startswith("items")}
    assert shares["ab", "items"] == 4
    assert (
        shares["ab", "items_cut"] == shares["ab", "items_without_beginning"] == shares["ab", "items_not_finite"] == 0.25
    )
    assert shares["a", "items_cut"] == pytest.approx(1 / 3) and shares["b", "items_cut"] == 0


def test_items_keep_what_was_remarked_and_lines_their_errors() -> None:
    made = of_results("m", RESULTS, LOADED, {("a", 1): Remark(n_cut=4)})
    first, second, _, last = made.items
    assert first.correct and (first.answer, first.given) == ("seven", "eight") and "n_cut" not in first.factors
    assert second.factors["n_cut"] == 4
    assert last.correct is None and last.score == 0.25 and last.factors["metrics"] == {"4096": 0.25, "8192": -1}
    lines = {(line["task"], line["metric"]): line for line in records(made.rows, ["a", "b"], RESULTS)}
    assert set(lines) == {("a", "exact_match (strict)"), ("a", "bits_per_byte"), ("b", "found at 4096")}
    strict = lines["a", "exact_match (strict)"]
    assert (strict["value"], strict["±"], strict["shots"], strict["items"]) == (0.5, 0.1, 5, 3)
