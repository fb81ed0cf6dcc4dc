"""A checkpoint's page has the numbers of its rows, says what is not there, and cannot be broken by names."""

import csv
import json
import math
import re
import subprocess
import sys
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
from looked import PROBES, affected, looked
from reading import Page

from gatelab.record import Row
from gatelab.report.charts import short
from gatelab.report.checkpoint import Seen, census, heads_of, write_checkpoint_page
from gatelab.report.checkpoint.along import uniform_first

FACTS = ("The first token takes 35.1%.", "One key gets 99.0%.", "The largest activation is 9,000.", "A fourth fact.")
MISSING = (("layers.2.mixer", "Mixer", "it has no attention"), ("layers.3.mixer", "Mixer", "it has no attention"))


def page_of(tmp_path, rows, **given):
    seen = Seen("small", "small: 8 sequences of 512 tokens of a text; each begins with '<s>'", FACTS, rows, **given)
    return Page(write_checkpoint_page(tmp_path / "small.html", seen))


def spec_of(page, words):
    """The specification of the chart whose description begins with `words`."""
    places = {a["id"]: a["aria-label"] for _, a in page.elements if a.get("class") == "chart"}
    found = [chart["spec"] for chart in page.charts if places[chart["id"]].startswith(words)]
    assert len(found) == 1, f"{words}: {list(places.values())}"
    return found[0]


def data_of(spec):
    """(kind of mark, record) of all data of a chart; data that all of its layers share stand above them."""
    for part in spec.get("layer", [spec]):
        for record in part.get("data", spec.get("data", {})).get("values", []):
            yield part["mark"]["type"], record


def columns_of(spec):
    """{(layer, across): value} of a map."""
    return {(r["l"], i): v for _, r in data_of(spec) if "i" in r for i, v in zip(r["i"], r["v"], strict=True)}


def lines_of(spec):
    """{line: {x: y}} of the thick lines of a chart."""
    out = {}
    for mark, r in data_of(spec):
        if "s" in r and mark == "line":
            out.setdefault(r["s"], {}).update(zip(r["x"], r["y"], strict=True))
    return out


def heads(rows, metric, stack=None, **at):
    return {
        (r.layer, r.head): short(r.value)
        for r in rows
        if (r.metric, r.stack) == (metric, stack)
        and r.head is not None
        and all(getattr(r, k) == v for k, v in at.items())
    }


def layers(rows, metric, **at):
    return {
        r.layer: short(r.value)
        for r in rows
        if r.metric == metric and r.layer is not None and r.head is None and r.bin is None
        and all(getattr(r, k) == v for k, v in at.items())
    }  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return looked(4, 6, 2, is_gated=True, has_slot=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("page")
    return page_of(folder, rows, tokens={0: "<s>", 13: "\n"}, effects=affected(), unobserved=MISSING, notes=("4-bit.",))


@pytest.fixture(scope="module")
def ungated(tmp_path_factory):
    """Of a smaller model without gates, of which nothing else is known."""
    return page_of(tmp_path_factory.mktemp("ungated"), looked(2, 4, 2))


def test_maps_have_every_heads_number(page, rows):
    for words, metric in (
        ("First-token mass by layer", "first_token_mass"),
        ("Importance of the strongest key", "sink_importance"),
        ("Gate openness", "gate_openness"),
        ("Mass on the slot", "sink_slot_mass"),
        ("Relative entropy", "attention_entropy_relative"),
        ("Value drain", "value_drain"),
        ("Logit gap", "sink_logit_gap"),
    ):
        assert columns_of(spec_of(page, words)) == heads(rows, metric)
    assert len(heads(rows, "value_drain")) == 8 and len(heads(rows, "first_token_mass")) == 24


def test_the_shares_maps_are_on_one_scale_and_bars_are_the_layers_means(page, rows):
    for words in ("First-token mass by layer", "Importance of the strongest key", "Gate openness"):
        spec = spec_of(page, words)
        assert spec["layer"][0]["encoding"]["color"]["field"] == "v"
        assert spec["layer"][0]["encoding"]["color"]["scale"]["domain"] == [0, 1]
    bars = spec_of(page, "First-token mass by layer")["layer"][2]["data"]["values"]
    assert {bar["l"]: bar["v"] for bar in bars} == layers(rows, "first_token_mass", domain=None)
    widths = {bar["l"]: bar["b"] - bar["a"] for bar in bars}
    assert widths[1] / widths[0] == pytest.approx(bars[1]["v"] / bars[0]["v"], rel=1e-3)


def test_profiles_by_depth_are_those_of_the_rows_with_the_writing_layer_marked(page, rows):
    for words, metric in (
        ("Largest |x| by layer", "massive_max"),
        ("Largest |x| over the median by layer", "massive_ratio"),
        ("Kurtosis", "residual_kurtosis"),
        ("Outlier channels", "outlier_channels"),
    ):
        (line,) = lines_of(spec_of(page, words)).values()
        assert line == layers(rows, metric)
    marks = [
        r for part in spec_of(page, "Largest |x| by layer")["layer"] for r in part["data"]["values"] if "words" in r
    ]
    assert {(m["x"], m["words"]) for m in marks} == {(1, "written by 1"), (2, "last after 2")}
    assert "Block 1 writes the largest activation" in page.text and "block 3 begins to remove it." in page.text
    assert "position 0 in 100% of the sequences and channel 7 in 88%" in page.text
    assert "massive by the rule" in page.text and "not massive" not in page.text
    norms = {(r.layer, r.bin): short(r.value) for r in rows if r.metric == "residual_norm"}
    assert columns_of(spec_of(page, "Norm of the residual stream")) == norms


def test_an_activation_that_is_not_massive_is_said_not_to_be(tmp_path):
    small = [replace(r, value=r.value / 1000) if r.metric == "massive_max" else r for r in looked(3, 4, 2)]
    assert "not massive by the rule" in page_of(tmp_path, small).text


@pytest.mark.parametrize(("last", "words"), [(1, "block 2 begins to remove it."), (2, "no block removes it.")])
def test_the_block_after_which_the_largest_falls_below_half_begins_to_remove_it(tmp_path, last, words):
    made = [replace(r, value=float(last)) if r.metric == "massive_layer_last" else r for r in looked(3, 4, 2)]
    assert f"and {words}" in page_of(tmp_path, made).text


def test_the_key_of_a_dashed_line_shows_its_dashes(page):
    for words in ("Mean, shut and open", "Share of heads with a sink"):
        line = next(
            part["encoding"] for part in spec_of(page, words)["layer"] if part["mark"].get("strokeCap") == "butt"
        )
        start = next(i for i, (_, a) in enumerate(page.elements) if a.get("aria-label", "").startswith(words))
        swatches = [a["style"] for _, a in page.elements[start:] if a.get("class") == "swatch"]
        colours, dashes = (line[name]["scale"]["range"] for name in ("color", "strokeDash"))
        for colour, (drawn, left), style in zip(colours, dashes, swatches[: len(colours)], strict=True):
            dashed = f"repeating-linear-gradient(90deg,{colour} 0 {drawn}px,transparent {drawn}px {drawn + left}px)"
            assert style == f"background:{dashed if left else colour}"
        assert [left > 0 for _, left in dashes][:2] == [False, True]


def test_gates_have_ridges_lines_and_what_they_depend_on(page, rows):
    spec = spec_of(page, "Gate scores by layer")
    shares = {r["l"]: r["s"] for _, r in data_of(spec) if "s" in r}
    for layer, found in shares.items():
        of_layer = {r.bin: short(r.value) for r in rows if r.metric == "gate_histogram" and r.layer == layer}
        assert found == [of_layer[b] for b in (*range(50), 49)]
    assert set(shares) == {0, 1, 2, 3}
    lines = lines_of(spec_of(page, "Mean, shut and open"))
    assert lines["mean score"] == layers(rows, "gate_mean")
    assert lines["share shut, below 0.1"] == layers(rows, "gate_below")
    explained = lines_of(spec_of(page, "Variance explained"))
    assert explained["the token's id"] == layers(rows, "gate_variance_explained", domain="token")
    assert ["the layer", "the variance of all scores", "21.0%"] in page.rows
    assert "dead 10.0%, stuck open 2.5%" in page.text


def test_a_model_without_gates_says_so_in_one_line(ungated):
    assert "No gate on attention was read in this model." in ungated.text
    assert "Gate openness by layer" not in ungated.text
    assert "No head has a gate or a slot that was read." in ungated.text


def test_the_off_switches_are_the_census_of_the_rows(page, rows):
    found = heads_of(rows)
    counts = census(found)
    cells = {a["data-count"]: i for i, (_, a) in enumerate(page.elements) if "data-count" in a}
    assert (
        set(cells) >= {"0/gate", "0/slot", "0/drained", "0/writes", "0/diffuse", "0/other"} and "0/unknown" not in cells
    )
    table = {row[0].split("  ")[0]: row for row in page.rows if len(row) == 4}
    assert table["shut gate G"][2] == str(counts["gate"]) and table["none of these"][2] == str(counts["other"])
    assert table["sink with a drained value D"][3] == f"{100 * counts['drained'] / 24:.1f}%"
    assert "gate openness < 0.1" in page.text and "strongest key takes > 0.3" in page.text
    (data,) = (json.loads(s) for s in page.scripts if s.startswith('{"defaults"'))
    for stored, head in zip(data["groups"][0]["heads"], found, strict=True):
        assert dict(zip(data["fields"], stored, strict=True)) == pytest.approx(vars(head), rel=1e-8)


def test_sinks_anywhere_are_told_by_token_and_position(page, rows):
    assert ["'<s>'", "0", "41.0%"] in page.rows and ["'\\n'", "13", "12.0%"] in page.rows
    assert ["id 198", "198", "6.0%"] in page.rows, "a token without a text is told by its id"
    places = [r.key for r in rows if r.metric == "sink_position"]
    away = sum(key != 0 for key in places)
    assert f"In {away} of 24 heads ({100 * away / 24:.1f}%)" in page.text
    assert [str(places.count(0)), f"{100 * places.count(0) / 24:.1f}%"] in [row[1:3] for row in page.rows]
    rate = next(r.value for r in rows if (r.metric, r.threshold, r.layer) == ("sink_rate_any", 0.3, None))
    assert f"{100 * rate:.1f}%" in next(row for row in page.rows if row[0] == "above 0.3")


def test_curves_along_the_sequence_stand_beside_uniform_attention(page, rows):
    for words, metric in (("Mass by distance", "distance_mass"), ("Mass by position of the key", "position_mass")):
        lines = lines_of(spec_of(page, words))
        for line, name in (("mean over layers", metric), ("uniform", f"{metric}_uniform")):
            of = {r.bin: short(r.value) for r in rows if r.metric == name and r.layer is None and r.bin < 9}
            assert lines[line] == of
    assert "The last octave, from 511, is left out" in page.text, "one position of 512 is no octave"


@pytest.mark.parametrize("length", [512, 700, 2])
def test_the_uniform_reference_is_the_mean_over_the_positions_there_are(length):
    bins = [n for n in range(1, 11) if 2**n - 1 < length]
    weights = 1 / (np.arange(length) + 1)
    expected = [(n, pytest.approx(weights[2**n - 1 : 2 ** (n + 1) - 1].mean())) for n in bins]
    assert uniform_first(bins, length, is_causal=True) == expected
    assert {v for _, v in uniform_first(bins, length, is_causal=False)} == {1 / length}


def test_interventions_have_their_intervals_and_controls_in_grey(page):
    spec = spec_of(page, "Change in loss of each intervention")
    estimates = [r for mark, r in data_of(spec) if mark == "point"]
    found = {r["label"]: (r["v"], r["a"], r["b"]) for r in estimates}
    assert found["zero-value@first, dose 1"] == (1, 0.8, 1.3)
    assert found["control of gate-open@sdpa, dose 1"] == (0.2, 0.16, 0.26)
    colours = {r["label"].startswith("control of "): r["c"] for r in estimates}
    assert colours == {False: "#d55e00", True: "#7a828a"}
    response = lines_of(spec_of(page, "Change in loss by dose, gate-open@sdpa"))
    assert response == {
        "control": {0.25: 0.0125, 0.5: 0.05, 1: 0.2},
        "intervention": {0: 0, 0.25: 0.125, 0.5: 0.5, 1: 2},
    }
    assert ["gate-open@sdpa", "0.5", "0.500", "0.400", "0.650"] in page.rows


def test_a_change_without_an_interval_or_a_dose_is_a_dot(tmp_path, ungated):
    effects = [
        Row("made", 0, "x", metric, value, "nats", intervention="clip")
        for metric, value in (("loss_change", 0.7), ("loss_change_low", math.nan), ("loss_change_high", math.nan))
    ]
    page = page_of(tmp_path, looked(2, 4, 2), effects=effects)
    spec = spec_of(page, "Change in loss of each intervention")
    (record,) = [r for mark, r in data_of(spec) if mark == "point"]
    assert (record["label"], record["v"]) == ("clip", 0.7) and "a" not in record
    assert "Change in loss by dose" not in "".join(a.get("aria-label", "") for _, a in page.elements)
    assert "Interventions" not in ungated.text


def test_head_notes_and_what_is_missing_come_first(page):
    text = page.text
    places = [
        text.index(words) for words in ("small", "8 sequences of 512", *FACTS, "4-bit.", "Not observed", "Where heads")
    ]
    assert places == sorted(places)
    assert ["Mixer", "it has no attention", "layers.2.mixer, layers.3.mixer"] in page.rows


def test_many_unobserved_modules_are_named_under_their_reason(tmp_path, ungated):
    many = [(f"layers.{i}.mixer", "Mixer", "it has no attention") for i in range(24)]
    page = page_of(tmp_path, looked(26, 4, 2, gaps=tuple(range(24))), unobserved=many)
    (row,) = (row for row in page.rows if row[0] == "Mixer")
    assert row[2].startswith("24, from layers.0.mixer to layers.23.mixer") and "layers.11.mixer" in row[2]
    assert "Every attention layer that ran was observed." in ungated.text


def test_a_layer_without_rows_is_a_gap_and_not_a_zero(tmp_path):
    page = page_of(tmp_path, looked(5, 4, 2, gaps=(2,)))
    spec = spec_of(page, "First-token mass by layer")
    assert {layer for layer, _ in columns_of(spec)} == {0, 1, 3, 4}
    assert spec["layer"][0]["encoding"]["y"]["scale"]["domain"] == [4.5, -0.5]
    (entropy,) = lines_of(spec_of(page, "Entropy by layer")).values()
    assert set(entropy) == {0, 1, 3, 4}
    pieces = [r["x"] for mark, r in data_of(spec_of(page, "Entropy by layer")) if mark == "line"]
    assert pieces == [[0, 1], [3, 4]], "no line is drawn through the gap"


@pytest.mark.parametrize(
    "probes", [(), *((probe,) for probe in PROBES), ("massive", "gate_scores"), ("sinks", "shape")]
)
def test_a_page_of_some_probes_has_their_sections_alone(tmp_path, probes):
    made = looked(3, 4, 2, is_gated=True, has_slot=True, probes=probes)
    page = page_of(tmp_path, made)
    sections = [a["id"] for tag, a in page.elements if tag == "section"]
    links = [a["href"][1:] for tag, a in page.elements if tag == "a"]
    assert links == sections and sections[-1] == "how"
    assert ("activations" in sections) == bool({"massive", "anywhere"} & set(probes))
    assert ("switches" in sections) == bool({"sinks", "anywhere"} & set(probes))
    assert ("positions" in sections) == ("position" in probes)
    if probes == ("sinks",):
        assert "Not measured: entropy, so none is called diffuse; the strongest key" in page.text
    if not probes:
        assert "No probe measured anything." in page.text


def test_every_stack_has_its_own_maps(tmp_path):
    made = [*looked(2, 4, 2), *looked(3, 4, 4, stack="encoder"), *looked(2, 4, 4, stack="cross", probes=("sinks",))]
    page = page_of(tmp_path, made)
    words = [a["aria-label"] for _, a in page.elements if a.get("class") == "chart"]
    assert sum(w.startswith("First-token mass by layer and head") for w in words) == 3
    assert page.text.count("cross-attention") >= 2 and page.text.count("encoder") >= 3
    maps = [
        c["spec"] for c in page.charts if c["spec"].get("description", "").startswith("First-token mass by layer and")
    ]
    assert [columns_of(m) for m in maps] == [
        heads(made, "first_token_mass", stack) for stack in (None, "encoder", "cross")
    ]


def test_names_cannot_become_markup(tmp_path):
    name = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'" + "long" * 40
    page = Page(
        write_checkpoint_page(
            tmp_path / "x.html",
            Seen(
                name, name, [name] * 4, looked(2, 4, 2), [(name, name, name)], [name], {0: name},
                affected((name,)),
            ),
        )
    )  # fmt: skip
    assert [tag for tag, _ in page.elements if tag in ("script", "img")] == ["script"] * 6
    assert page.text.count(name) >= 11


def test_the_page_asks_nothing_of_the_network(page):
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy and "http" not in policy
    links = [a[k] for _, a in page.elements for k in ("src", "href") if k in a]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    own = "".join(s for s in page.scripts if len(s) < 500_000)
    assert not re.search(r"https?://", own)


def test_headings_do_not_skip_a_level_and_charts_and_sliders_are_named(page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    places = {a["id"]: a["aria-label"] for _, a in page.elements if a.get("class") == "chart"}
    assert {chart["id"] for chart in page.charts} | {"switches-0-1", "switches-0-2"} == set(places)
    assert all(len(words) > 20 for words in places.values())
    tags = [tag for tag, _ in page.elements]
    assert tags.count("figure") == tags.count("figcaption") == len(places)
    sliders = [a for tag, a in page.elements if tag == "input"]
    assert [a["data-threshold"] for a in sliders] == ["openness", "slot", "mass", "drain", "entropy"]
    assert tags.count("label") == len(sliders)


def test_csv_holds_every_row_in_full(tmp_path, rows):
    effects, odd = affected(), Row("made", 0, "x", "first_token_mass", math.nan, "share", layer=9, head=0)
    page_of(tmp_path, [*rows, odd], effects=effects)
    with open(tmp_path / "small.csv", encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == [f.name for f in fields(Row)]
    assert len(found) == len(rows) + 1 + len(effects)
    for row, got in zip([*rows, odd, *effects], found, strict=True):
        assert {k: v for k, v in got.items() if v} == {
            f.name: str(getattr(row, f.name)) for f in fields(Row) if getattr(row, f.name) not in (None, "")
        }


def test_same_look_in_same_bytes_out(tmp_path, rows):
    seen = Seen("x", "a look", FACTS, rows, effects=affected())
    first = write_checkpoint_page(tmp_path / "x.html", seen).read_bytes()
    assert write_checkpoint_page(tmp_path / "x.html", seen).read_bytes() == first


def test_a_page_of_a_thousand_heads_is_small(tmp_path):
    path = write_checkpoint_page(
        tmp_path / "x.html", Seen("x", "a look", FACTS, looked(32, 32, 8, is_gated=True, length=131_072))
    )
    assert path.stat().st_size < 5_000_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [*rows, replace(rows[0], run="other")], "rows of 2 looks"),
        (lambda rows: [*rows, replace(rows[0], step=7)], "a page shows one"),
        (lambda rows: [*rows, replace(rows[0], intervention="clip")], "rows hold the intervention 'clip'"),
        (lambda rows: [*rows, replace(rows[0], length=9)], "two rows of first_token_mass are of the same place"),
    ],
)
def test_rows_that_are_not_of_one_look_are_refused(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        page_of(tmp_path, change(looked(2, 4, 2)))
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_the_page_and_an_effect_of_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"does not end in \.html"):
        write_checkpoint_page(tmp_path / "page.csv", Seen("x", "a look", FACTS, looked(2, 4, 2)))
    for path, words in ((tmp_path / "none" / "x.html", "which is no folder"), (tmp_path / "x.html", "is a folder")):
        (tmp_path / "x.html").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=words):
            write_checkpoint_page(path, Seen("x", "a look", FACTS, looked(2, 4, 2)))
    assert [p.name for p in tmp_path.iterdir()] == ["x.html"]
    with pytest.raises(ValueError, match="effects hold a row of 'loss_change' without an intervention"):
        Seen("x", "a look", FACTS, [], effects=[Row("x", 0, "x", "loss_change", 0.1, "nats")])


def test_a_tiny_llamas_page_has_its_rows(tmp_path):
    transformers = pytest.importorskip("transformers")
    import torch

    from gatelab.probes.external import observe

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 64}  # fmt: skip
    model = transformers.LlamaModel(transformers.LlamaConfig(**sizes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad(), observe(model) as recorder:
        recorder.tokens_BT = torch.randint(0, 40, (2, 33))
        model(input_ids=recorder.tokens_BT)
    rows = recorder.rows("llama")
    page = page_of(tmp_path, rows, unobserved=[(u.module, u.class_name, u.why) for u in recorder.unobserved])
    assert columns_of(spec_of(page, "First-token mass by layer")) == heads(rows, "first_token_mass", domain=None)
    assert len(columns_of(spec_of(page, "Value drain"))) == 6 and len(heads_of(rows)) == 12
    (largest,) = lines_of(spec_of(page, "Largest |x| by layer")).values()
    assert largest == layers(rows, "massive_max")
    sections = [a["id"] for tag, a in page.elements if tag == "section"]
    assert sections == ["maps", "switches", "anywhere", "gates", "activations", "positions", "how"]


def test_importing_the_page_loads_nothing_heavy():
    code = (
        "import gatelab.report.checkpoint, sys;"
        "print([m for m in ('torch', 'altair', 'duckdb', 'scipy', 'numpy', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
