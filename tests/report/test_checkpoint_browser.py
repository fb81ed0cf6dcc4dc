"""A checkpoint's page in a real browser: it draws, it fits a phone, and the thresholds do in it what they do in Python."""

import json
import time

import pytest
from looked import affected, looked

from gatelab.record import Row
from gatelab.report.checkpoint import SWITCHES, Seen, Thresholds, census, heads_of, write_checkpoint_page


@pytest.fixture(scope="module")
def rows():
    made = looked(6, 8, 2, is_gated=True, has_slot=True, gaps=(2,))
    # A head whose strongest key has no value norm.
    return [r for r in made if (r.metric, r.layer, r.head) not in {("sink_value_drain", 4, h) for h in range(8)}]


@pytest.fixture(scope="module")
def path(tmp_path_factory, rows):
    name = "a-model-with-a-very-long-name-" * 6
    seen = Seen(
        name, name, ["A fact. " * 9] * 4, rows, [(f"{name}.{i}", "Mixer", "it has no attention") for i in range(5)],
        [name], {0: name, 13: "\n"}, affected((f"zero-value@{'l18h8,' * 20}", "gate-open")),
    )  # fmt: skip
    return write_checkpoint_page(tmp_path_factory.mktemp("page") / "x.html", seen)


def opened(browser, path, **how):
    data = browser.open(path, **how)
    deadline = time.monotonic() + 60
    while "switches" not in data:
        assert time.monotonic() < deadline, browser.console
        time.sleep(0.05)
        data = browser.run("{...document.documentElement.dataset}")
    return data


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (420, True), (1280, True), (420, False)])
def test_all_charts_draw_and_fit_the_window(browser, path, width, dark):
    data = opened(browser, path, width=width, dark=dark)
    drawn, of = data["drawn"].split("/")
    assert drawn == of and int(of) > 25
    assert json.loads(data["problems"]) == [] and browser.console == []
    assert json.loads(data["requests"]) == [] and browser.requests == [path.resolve().as_uri()]
    marks = (
        "[...document.querySelectorAll('.chart')].filter(c => !c.querySelector('.role-mark path[d]')).map(c => c.id)"
    )
    assert browser.run(marks) == []
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") <= width
    scale = "[...document.querySelectorAll('.chart svg')].map(s => s.clientWidth / s.viewBox.baseVal.width)"
    assert min(browser.run(scale)) > 0.9


COUNTED = """Object.fromEntries([...document.querySelectorAll('[data-count]')].map(
    c => [c.dataset.count, Number(c.textContent)]))"""


def move(browser, name, value):
    """Drag the slider of a threshold."""
    browser.run(
        f"(s => {{ s.value = {value}; s.dispatchEvent(new Event('input')); }})"
        f"(document.querySelector('input[data-threshold={name}]'))"
    )


@pytest.mark.parametrize(
    "at",
    [
        {}, {"mass": 0.5}, {"drain": 0.7, "openness": 0.02}, {"slot": 0.1}, {"entropy": 0.35, "mass": 0.9},
        {"openness": 0.0, "slot": 1.0, "mass": 0.0, "drain": 0.15}, {"mass": 1.0, "slot": 1.0, "entropy": 1.0},
    ],
)  # fmt: skip
def test_the_browser_classifies_as_python_does(browser, path, rows, at):
    opened(browser, path, width=1280)
    for name, value in at.items():
        move(browser, name, value)
    shown, found = browser.run(COUNTED), heads_of(rows)
    for name, n in census(found, Thresholds(**at)).items():
        assert shown[f"0/{name}"] == n
    for layer in (0, 1, 3, 4, 5):
        of_layer = census([h for h in found if h.layer == layer], Thresholds(**at))
        assert {name: shown[f"0/{name}/{layer}"] for name in SWITCHES} == of_layer
    share = browser.run("document.querySelector('[data-share=\"0/drained\"]').textContent")
    assert share == f"{100 * shown['0/drained'] / len(found):.1f}%"
    words = browser.run("document.querySelector('table.switches').innerText")
    assert all(f"{value:g}" in words for value in at.values())


def test_the_charts_follow_the_thresholds(browser, path, rows):
    opened(browser, path, width=1280)
    cells = """[...document.querySelectorAll('#switches-0-1 .mark-rect path')].filter(
        p => p.getAttribute('fill') === '#009e73').length"""
    assert browser.run(cells) == census(heads_of(rows))["gate"]
    move(browser, "openness", 1.0)
    assert browser.run(cells) == len(heads_of(rows)) == 40


def test_a_threshold_moves_by_keyboard_and_reset_takes_it_back(browser, path):
    opened(browser, path, width=1280)
    before = browser.run(COUNTED)
    browser.run("document.querySelector('input[data-threshold=mass]').focus()")
    for _ in range(20):
        for kind in ("keyDown", "keyUp"):
            browser._send(
                "Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39
            )
    value = "document.querySelector('output[data-at=mass]').textContent"
    assert browser.run(value) == "0.50" and browser.run(COUNTED) != before
    browser.run("document.querySelector('button[data-reset]').click()")
    assert browser.run(value) == "0.30" and browser.run(COUNTED) == before


def test_values_of_zero_and_of_one_layer_draw(browser, tmp_path):
    made = [Row("x", 0, "x", metric, 0.0, "1", layer=0, head=h, length=2)
            for metric in ("first_token_mass", "value_drain", "sink_logit_gap", "attention_focus") for h in range(2)]  # fmt: skip
    made += [
        Row("x", 0, "x", metric, 0.0, "1", layer=0) for metric in ("massive_max", "massive_ratio", "attention_focus")
    ]
    made += [Row("x", 0, "x", "residual_norm", 0.5, "1", layer=0, bin=b) for b in range(2)]
    made += [Row("x", 0, "x", "first_mass_by_query", 0.0, "share", layer=0, bin=1, length=2)]
    path = write_checkpoint_page(tmp_path / "x.html", Seen("x", "a look", [], made))
    data = opened(browser, path, width=420)
    drawn, of = data["drawn"].split("/")
    assert drawn == of and json.loads(data["problems"]) == [] and browser.console == []
