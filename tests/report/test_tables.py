"""Tables show the findings' numbers, and numbers are written as a reader wants them."""

import csv
import html
import io
import json
import math
import re
from dataclasses import replace
from functools import partial

import pytest
from synthetic import ARMS

from gatelab.report.claims import spans_of
from gatelab.report.markup import Html, decimal, duration, number, probability, quantity, span, tag
from gatelab.report.measured import Measured, measure
from gatelab.report.tables import curves_csv, effects_table, runs_table, shown_runs
from gatelab.store import RunFolder


def as_number(text):
    return float(text.replace("−", "-").replace(",", ""))


def test_the_table_of_effects_holds_the_findings_numbers(reported):
    rows = [row for row in reported.page.rows if len(row) == 11 and row[-1].endswith(("lower", "higher", "unclear"))]
    order = [f for primary in (True, False) for f in reported.findings if f.primary == primary]
    assert len(rows) == len(order)
    for row, finding in zip(rows, order, strict=True):
        bounds = [x for x in (finding.low, finding.high) if not math.isnan(x)]
        scale = max(abs(finding.effect), *map(abs, bounds), 1e-9)
        assert row[0] == ARMS[finding.arm][0]
        assert as_number(row[2]) == pytest.approx(finding.baseline_mean, rel=0.01)
        assert as_number(row[4]) == pytest.approx(finding.effect, abs=0.01 * scale)
        shown = [as_number(x) for x in row[5].split(" to ")] if bounds else []
        assert shown == pytest.approx(bounds, abs=0.01 * scale)
        assert bounds or row[5] == "–"  # an exact test of regimes has no interval of means
        assert int(row[8]) == finding.n_pairs
        assert row[10].endswith(finding.verdict)


def test_primary_effects_come_before_exploratory_ones(reported):
    heads = [row[0] for row in reported.page.rows if len(row) == 1 and row[0].startswith(("Primary", "Exploratory"))]
    assert heads == [f"{kind}, {cell}" for kind in ("Primary", "Exploratory") for cell in ("bigram-backcopy", "stdlib")]


def test_what_cannot_be_tested_has_dashes_and_its_word(reported):
    f = reported.findings[0]
    nothing = replace(f, low=math.nan, high=math.nan, p=math.nan, q=math.nan, detectable=math.nan, verdict="untestable")
    html = effects_table([nothing], {}, {})
    assert "untestable" in html and html.count(">–<") == 4
    assert "nan" not in html


def test_shares_and_pairing_are_shown_as_given(reported):
    share = next(s for s in reported.shares if s["cell"] == "stdlib" and s["arm"] == "none")
    event = "puts more than 0.3 of its attention on the first token, stdlib"
    (row,) = (row for row in reported.page.rows if row and row[0] == event)
    assert row[1] == f"{share['k']} of {share['n']} ({share['low']:.0%} to {share['high']:.0%})"
    gain = reported.pairing[0]
    (row,) = (row for row in reported.page.rows if row and row[0] == "held-out loss, bigram-backcopy")
    correlation, ratio = row[1].split("; ")
    assert as_number(correlation) == pytest.approx(gain["correlation"], abs=0.005)
    assert as_number(ratio.split("\u00a0")[0]) == pytest.approx(gain["gain"], rel=0.05)
    assert row[1].endswith(f"(n = {gain['n']})")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123456, "0.0123"),
        (-3.14159, "−3.14"),
        (1234.5, "1,234"),
        (0.0, "0"),
        (5.2e-9, "5.2e−09"),
        (math.nan, "–"),
    ],
)
def test_numbers_have_three_significant_digits_and_a_true_minus(value, text):
    assert number(value) == text


def test_no_negative_zero():
    assert decimal(-0.0004, 2) == "0.00"


def test_small_probabilities_are_not_spelt_out():
    assert probability(0.00004) == "< 0.001"
    assert probability(0.0432) == "0.043"
    assert probability(None) == "–"


def test_quantities_and_times_are_rounded_to_what_one_reads():
    assert [quantity(n) for n in (812, 101_568, 3_400_000, 2e9)] == ["812", "102 k", "3.4 M", "2 G"]
    assert [duration(s) for s in (4.25, 200, 7500)] == ["4.25 s", "3 min 20 s", "2 h 5 min"]
    assert (span([1000, 1000]), span([1000, 2000]), span([])) == ("1 k", "1 k to 2 k", "–")


def test_text_is_escaped_and_markup_is_not():
    assert tag("b", "a<b&c", Html("<i></i>"), title='"<') == '<b title="&quot;&lt;">a&lt;b&amp;c<i></i></b>'
    assert tag("td", 0, None, ["x", 1], hidden=True, id=None) == "<td hidden>0x1</td>"


def test_curves_are_written_as_the_csv_module_writes_them():
    points = [(0, 1e-7), (5, -2.0), (7, math.nan), (8, math.inf), (1_000_000, 0.1 + 0.2), (1e6, 1e22)]
    curves = {
        ("a, b", 'say "x"', 3, "loss"): points,
        ("plain", "none", 0, "loss"): [],
        ("plain", "none", 0, "val_loss"): points,
    }
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["cell", "arm", "seed", "metric", "step", "value"])
    writer.writerows([*key, step, value] for key, points in curves.items() for step, value in points)
    assert curves_csv(Measured({}, [], curves, {}, {}, {})) == out.getvalue()
    assert curves_csv(Measured({}, [], {}, {}, {}, {})) == "cell,arm,seed,metric,step,value\n"


def test_every_runs_configuration_is_told_in_full(reported, tmp_path):
    measured, folder = measure(reported.folder), RunFolder(tmp_path / "odd")
    folder.create({"data": {"name": "é", "seed": None}, "list": []})
    odd = replace(measured.runs[0], folder=folder)
    runs = [run for run in (*measured.runs, odd) if run.config]
    text = runs_table(replace(measured, runs=runs), {})
    told = [html.unescape(each) for each in re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)]
    assert told == [json.dumps(run.config, indent=1, ensure_ascii=False) for run in runs]
    assert len({run.config.get("seed") for run in runs}) > 2


def test_of_many_runs_the_first_of_each_cell_and_arm_and_what_is_not_done_are_shown(reported):
    run = measure(reported.folder).runs[0]
    many = [
        replace(
            run,
            entry={**run.entry, "cell": "c", "arm": arm, "seed": seed},
            state="failed" if (arm, seed) == ("b", 5) else "done",
        )
        for arm in ("a", "b")
        for seed in range(400)
    ]
    of = partial(replace, measure(reported.folder))
    assert [r.key for r in shown_runs(of(runs=many))] == [("c", "a", 0), ("c", "b", 0), ("c", "b", 5)]
    assert shown_runs(of(runs=many[:600])) == many[:600]


@pytest.mark.parametrize(
    ("seeds", "said"),
    [([0, 1, 2], "0, 1, 2"), ([*range(64)], "0 to 63"), ([*range(7), 9, *range(64, 66)], "0 to 6, 9, 64 to 65")],
)
def test_many_seeds_are_told_in_spans(seeds: list[int], said: str) -> None:
    assert spans_of(seeds) == said
