"""What the atlas says of registered anomalies, and its columns of sizes."""

from types import SimpleNamespace

import pytest

from gatelab.analysis.atlas import Atlas, Place, Sheet
from gatelab.report.atlas_guide import guide, registered
from gatelab.report.atlas_map import sizes


def sheet(letter="A", *, n_claims=0, n_read=0, n_confirmed=0, n_parameters=10):
    claim = SimpleNamespace(rule="gate-collapse")
    return Sheet(
        letter, f"study {letter}", "?", [0, 1, 2], 3, 3, set(), {}, {}, set(), {"toy": Place("decoder", "toy", n_parameters)}, {},
        "no gate", n_claims, [SimpleNamespace(claim=claim)] * n_confirmed, [], n_read=n_read,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sheets", "words"),
    [
        ([{"n_claims": 4, "n_read": 4, "n_confirmed": 3}], "3 of 4 registered anomalies were confirmed on fresh seeds"),
        (
            [
                {"n_claims": 4, "n_read": 4, "n_confirmed": 3},
                {"n_claims": 7},
            ],  # the fresh seeds of the second are not run
            "3 of 4 registered anomalies were confirmed on fresh seeds (7 more wait for their runs)",
        ),
    ],
)
def test_registered_anomalies_are_counted_of_those_that_were_read(sheets, words):
    atlas = Atlas([sheet(letter, **of) for letter, of in zip("AB", sheets, strict=False)], [])
    assert registered(atlas) == words and f"Gates misbehave: {words}: gate-collapse (3)" in guide(atlas)


def test_models_a_few_weights_apart_share_a_column():
    atlas = Atlas([sheet("A", n_parameters=1_330_000), sheet("B", n_parameters=1_331_000), sheet("C")], [])
    assert sizes(atlas) == ["10", "1.33 M"]
    assert "Of 2 fields of data and size 2 were run with some arm; of the 0 that are blank" in guide(atlas)
