"""The document around both pages: its scripts are the ones it allows, what is inlined stays inside, charts keep their order."""

import json
from base64 import b64encode
from hashlib import sha256

import pytest
from looked import looked
from reading import Page

from gatelab.report import document as made
from gatelab.report.book import Book
from gatelab.report.charts import Arms, Figure
from gatelab.report.checkpoint import Seen, write_checkpoint_page
from gatelab.report.document import Charts, document, inlined
from gatelab.report.markup import tag
from gatelab.report.measured import measure
from gatelab.report.parts import swatch
from gatelab.report.style import DASHED, SOLID, arm_colours

FIGURE = Figure({"mark": "bar", "description": "<b>"}, "a bar", 300)


@pytest.mark.parametrize(("n_charts", "n_scripts"), [(1, 4), (0, 3)])
def test_every_script_that_runs_is_allowed_by_its_hash(tmp_path, n_charts, n_scripts):
    path, charts = tmp_path / "x.html", Charts()
    body = tag("main", "body", [charts.place(FIGURE) for _ in range(n_charts)])
    path.write_text(document("x", body, charts, plain="no charts", script="let own = 1 < 2;"))
    page = Page(path)
    (policy,) = (a["content"] for _, a in page.elements if a.get("http-equiv"))
    kinds = [a.get("type") for name, a in page.elements if name == "script"]
    run = [text for text, kind in zip(page.scripts, kinds, strict=True) if kind is None]
    assert run[-1] == "let own = 1 < 2;" and len(run) == n_scripts, "without a chart there is no chart library"
    hashes = [f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in run]
    assert f"script-src {' '.join(hashes)};" in policy


def test_both_pages_have_one_head_and_one_library(tmp_path, reported):
    path = write_checkpoint_page(tmp_path / "x.html", Seen("x", "a look", [], looked(2, 4, 2)))
    heads, libraries = [], []
    for page in (reported.page, Page(path)):
        names = [name for name, _ in page.elements]
        head = [each for each in page.elements[: names.index("body")] if "http-equiv" not in each[1]]
        heads.append(head)
        libraries.append([text for text in page.scripts if len(text) > 500_000])
    assert heads[0] == heads[1] and [name for name, _ in heads[0]].count("link") == 1
    assert libraries[0] == libraries[1] and len(libraries[0]) == 1


def test_what_is_inlined_cannot_end_its_script(tmp_path):
    value = {"name": "</script><img src=x onerror=alert(1)>", "n": [1, None]}
    path = tmp_path / "x.html"
    path.write_text(f"<body>{inlined('data', value)}</body>")
    page = Page(path)
    assert [name for name, _ in page.elements] == ["body", "script"]
    assert json.loads(page.scripts[0]) == value
    with pytest.raises(ValueError, match="JSON compliant"):
        inlined("data", float("nan"))


def test_charts_are_named_and_kept_in_their_order():
    charts = Charts()
    first, second = charts.place(FIGURE, "<one>", "a caption"), charts.place(Figure({}, "two"))
    assert [(c["id"], c["fit"]) for c in charts.placed] == [("chart-1", 300), ("chart-2", None)]
    assert charts.placed[0]["spec"] is FIGURE.spec
    assert 'style="--wide:300px"' in first and "&lt;one&gt;" in first and "<figcaption>a caption" in first
    assert "style" not in second and "figcaption" not in second
    assert 'id="switches-0-1"' in Charts("switches-0").place(FIGURE)


def test_the_key_of_a_line_is_dashed_as_the_line_is(reported):
    assert 'style="background:#123456"' in swatch("#123456", SOLID)
    assert "#123456 0 6px,transparent 6px 9px" in swatch("#123456", DASHED)
    names = ["none", *(f"arm-{i}" for i in range(7))]
    arms = Arms({name: name for name in names}, arm_colours(names, "none"), "none")
    book = Book(measure(reported.folder), [], arms, {})
    assert ["transparent" in book.arm(name) for name in names] == [False] * 7 + [True]


@pytest.mark.parametrize("name", ["meta", "link", "br", "input"])
def test_void_elements_have_no_end(name):
    assert tag(name, class_="x") == f'<{name} class="x">'


def test_the_library_is_bundled_once_for_all_pages(tmp_path, monkeypatch):
    import vl_convert

    bundled = []
    monkeypatch.setenv("GATELAB_CACHE", str(tmp_path))
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda: bundled.append(1) or "let vega = 'é';")
    for n in range(3):
        made._library.cache_clear()  # as in a process of its own
        assert made._library() == "let vega = 'é';" and len(bundled) == 1 + (n == 2)
        if n == 1:
            (kept,) = tmp_path.rglob("*.js")
            kept.unlink()
    monkeypatch.setenv("GATELAB_CACHE", str(tmp_path / "a file"))
    (tmp_path / "a file").write_text("")
    made._library.cache_clear()
    assert made._library() == "let vega = 'é';", "a cache that cannot be written is no obstacle"
    made._library.cache_clear()
