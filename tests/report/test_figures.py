"""What the specifications hold: the findings' numbers, one scale for all maps, one colour an arm."""

import json
import math
from itertools import pairwise

import altair as alt
import pytest
from jsonschema import ValidationError
from synthetic import ARMS, CELLS, SEEDS

from gatelab.report.charts import Arms, Figure, Line, short, shorts
from gatelab.report.figures import curves, forest, gate_histogram, map_top, mass_map
from gatelab.report.measured import mean_curve, mean_table, thin
from gatelab.report.style import RAMP, arm_colours
from gatelab.report.tasks.figures import depth_chart, depth_map, lengths_chart
from gatelab.report.tasks.scores import SCORES

NAMES = list(ARMS)
TEST_ARMS = Arms({name: f"the {name}" for name in NAMES}, arm_colours(NAMES, "none"), "none")


def find(value, key):
    """Every value under `key`, however deep."""
    if isinstance(value, dict):
        yield from ([value[key]] if key in value else [])
        for inner in value.values():
            yield from find(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from find(inner, key)


def marks(spec, kind):
    return [layer for layer in spec["layer"] if layer["mark"]["type"] == kind]


def test_all_maps_of_a_page_share_one_scale(reported):
    maps = [chart["spec"] for chart in reported.page.charts]
    scales = [
        layer["encoding"]["color"]["scale"]
        for spec in maps
        for layer in marks(spec, "rect")
        if "color" in layer["encoding"]
    ]
    drawn = len(CELLS) * len(ARMS) + len(CELLS) * len(ARMS) * len(SEEDS) - 1
    assert len(scales) == drawn
    assert {json.dumps(s) for s in scales} == {json.dumps({"clamp": True, "domain": [0, 1.0], "range": list(RAMP)})}


def test_an_arm_has_the_same_colour_in_every_chart(reported):
    scales = {
        json.dumps(e["scale"]) for c in reported.page.charts for e in find(c["spec"], "color") if field(e) == "arm"
    }
    assert len(scales) == 1
    assert len(set(json.loads(scales.pop())["range"])) == len(ARMS)


def field(encoding):
    return encoding.get("field") if isinstance(encoding, dict) else None


def test_arms_beyond_the_palette_differ_by_their_dashes():
    many = [f"arm-{i}" for i in range(12)]
    looks = arm_colours(["none", *many], "none")
    assert len({(colour, tuple(dash)) for colour, dash in looks.values()}) == 13


def test_dashes_are_drawn_only_where_colours_do_not_suffice():
    def drawn(names):
        arms = Arms({name: name for name in names}, arm_colours(names, "none"), "none")
        spec = curves([], {}, arms, alt_text="nothing", y_title="loss").spec
        return list(find(spec, "strokeDash")), set(find(spec, "strokeCap"))

    assert drawn(NAMES) == ([], {"round"})
    dashes, ends = drawn(["none", *(f"arm-{i}" for i in range(7))])
    assert len(dashes) == 2 and ends == {"butt"}, "round ends would fill the gaps"


def test_the_forest_holds_the_findings_numbers(reported):
    found = [f for f in reported.findings if f.metric == "val_loss" and f.cell == "stdlib"]
    spec = forest(found, TEST_ARMS).spec
    (points,) = (layer["data"]["values"] for layer in marks(spec, "point"))
    for point, finding in zip(points, found, strict=True):
        for name in ("effect", "low", "high"):
            assert point[name] == pytest.approx(getattr(finding, name), rel=1e-4)
    (ticks,) = (layer["data"]["values"] for layer in marks(spec, "tick"))
    assert [t["difference"] for t in ticks] == pytest.approx([d for f in found for d in f.differences], rel=1e-4)
    (band,) = (layer["data"]["values"] for layer in marks(spec, "rect"))
    assert band == [{"x": -0.01, "x2": 0.01}]


def test_an_arm_without_a_finding_keeps_its_row(reported):
    found = [f for f in reported.findings if f.metric == "val_loss" and f.cell == "stdlib"]
    spec = forest(found[:1], TEST_ARMS, absent=["sink-logit"]).spec
    (words,) = (layer["data"]["values"] for layer in marks(spec, "text"))
    assert words == [{"label": "the sink-logit", "text": "no finished pair", "x": 0}]


def test_map_tops_round_up():
    assert map_top([0.013]) == 0.02
    assert map_top([0.3, 0.55]) == 0.6
    assert map_top([]) == map_top([0.97]) == 1.0


def test_a_map_writes_its_numbers_only_where_there_is_room():
    few = mass_map({(0, h): 0.5 for h in range(4)}, 1.0, "few", side=36).spec
    many = mass_map({(layer, h): 0.5 for layer in range(28) for h in range(16)}, 1.0, "many", side=36).spec
    assert marks(few, "text") and not marks(many, "text")
    assert many["width"]["step"] * 16 <= 350


def test_a_histogram_ends_where_its_last_bin_ends():
    bins = dict.fromkeys(range(50), 0.02)
    spec = gate_histogram({"headwise": bins}, {"headwise": 0.5}, TEST_ARMS, "gates", top=0.1, is_log=False).spec
    (line,) = marks(spec, "line")[0]["data"]["values"]
    assert line["x"][0] == 0 and line["x"][-1] == 1
    assert line["y"] == [0.02] * 51


def test_a_logarithmic_histogram_has_no_zeros():
    spec = gate_histogram({"headwise": {0: 1.0, 1: 0.0}}, {}, TEST_ARMS, "gates", top=1, is_log=True).spec
    assert min(marks(spec, "line")[0]["data"]["values"][0]["y"]) == 1e-4


def test_curves_without_points_are_still_a_chart():
    assert curves([], {}, TEST_ARMS, alt_text="nothing", y_title="loss").spec["layer"]


def test_thinned_curves_keep_their_mean_and_their_shape():
    points = [(float(s), 1 / s) for s in range(1, 5001)]
    thinned = thin(points, 5000)
    assert len(thinned) <= 200
    assert thinned[:10] == points[:10], "the early steps, where a logarithmic axis has room, are kept"
    assert thinned[-1][1] == pytest.approx(1 / 5000, rel=0.05)
    assert all(a > b for (_, a), (_, b) in pairwise(thinned))


def test_thinning_a_curve_that_was_cut_gives_the_same_bins():
    points = [(float(s), math.sin(s)) for s in range(1, 3001)]
    whole, part = thin(points, 3000), thin(points[:1500], 3000)
    assert part[:-1] == whole[: len(part) - 1]


def test_short_curves_are_kept_without_what_is_not_a_number():
    assert thin([(1, 2.0), (2, math.nan), (3, math.inf), (4, 1.0)], 4) == [(1, 2.0), (4, 1.0)]


def test_a_mean_curve_ends_with_the_first_seed_that_ends():
    assert mean_curve([[(1, 2.0), (2, 4.0)], [(1, 4.0)]]) == [(1, 3.0)]
    assert mean_curve([]) == []


def test_a_mean_table_averages_what_is_there():
    assert mean_table([{0: 1.0, 1: 2.0}, {0: 3.0}]) == {0: 2.0, 1: 2.0}


def check(figure: Figure) -> None:
    """Against the schema of Vega-Lite that Altair has with it."""
    alt.Chart.from_dict({**json.loads(json.dumps(figure.spec)), "$schema": alt.SCHEMA_URL})


def test_a_chart_that_is_no_vega_lite_is_found_out():
    spec = curves([], {}, TEST_ARMS, alt_text="nothing", y_title="loss").spec
    spec["layer"][0]["encoding"]["x"]["scale"]["nicer"] = True
    with pytest.raises(ValidationError, match="nicer"):
        check(Figure(spec, ""))


def test_every_chart_of_the_page_is_vega_lite(reported):
    for chart in reported.page.charts:
        check(Figure(chart["spec"], ""))


@pytest.mark.parametrize(
    "arms", [TEST_ARMS, Arms({n: n for n in "abcdefghi"}, arm_colours(list("abcdefghi"), "a"), "a")]
)
def test_charts_with_all_their_parts_are_vega_lite(arms):
    first, second = list(arms.labels)[:2]
    points = [(1, 0.5), (2, 0.25), (4, 0.9)]
    lines = [Line(first, 0, points), Line(second, 0, points[:2], "diverged")]
    means = {first: points, second: []}
    shares = {first: {0: 0.25, 3: 0.75}}
    for along in ("step", "log step", "layer"):
        check(
            curves(
                lines, means, arms, alt_text="x", y_title="y", along=along, marks=lines, reference=[(0, 1.0), (4, 1.0)]
            )
        )
    for is_log in (True, False):
        check(gate_histogram(shares, {first: 0.4}, arms, "x", top=1.0, is_log=is_log))
    check(lengths_chart(lines, means, {"chance": points, "copying": points, "untrained": points}, arms, SCORES[0], "x"))
    check(depth_chart({first: [0.5] * 11}, {first: [(0.25, 0.75)] * 10 + [(math.nan, math.nan)]}, arms, SCORES[2], "x"))
    check(depth_map({(1, 0): 0.5, (8, 10): 0.9}, "x"))
    check(mass_map({(0, 0): 0.5, (1, 3): 0.9}, 1.0, "x", side=36))


def test_many_numbers_are_shortened_as_one_is():
    values = [0.0, -0.0, 1.0, 123456.0, 99999.5, 1e-7, -2.34567891, 1e22, 5.0000049, math.nan, math.inf, -math.inf, 3]
    assert repr(shorts(values)) == repr([short(v) for v in values])
    assert shorts([]) == []
