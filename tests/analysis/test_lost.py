"""Runs that are lost, told from their held-out loss before the first and after the last step, and cells that are lost of an arm."""

from math import inf, nan

import duckdb
import pytest

from gatelab.analysis.lost import is_lost, lost_cells, said


@pytest.mark.parametrize(
    ("status", "end", "lost"),
    [("done", 3.9, False), ("done", 4.0, False), ("done", 4.1, True), ("done", nan, True), ("done", inf, True),
     ("diverged", 3.0, True)],
)  # fmt: skip
def test_a_run_is_lost_that_diverged_or_ends_above_its_untrained_weights(status, end, lost):
    assert is_lost(status, 4.0, end) is lost


def runs(arm: str, endings: list[tuple[str, list[int], list[float | None]]], **entry):
    """(entries with states, rows of the held-out loss by step), a seed each."""
    entries = [({"cell": "c0", "arm": arm, "seed": s} | entry, None, state) for s, (state, *_) in enumerate(endings)]
    rows = [
        ("curves", "c0", arm, s, "val_loss", heights, steps) for s, (_, steps, heights) in enumerate(endings) if steps
    ]
    return entries, rows


def counted(*groups):
    connection = duckdb.connect()
    connection.execute(
        "CREATE TABLE tables (name VARCHAR, cell VARCHAR, arm VARCHAR, seed BIGINT, metric VARCHAR, heights DOUBLE[],"
        " steps BIGINT[])"
    )
    for _, rows in groups:
        for row in rows:
            connection.execute("INSERT INTO tables VALUES (?, ?, ?, ?, ?, ?, ?)", list(row))
    return lost_cells(connection, [e for entries, _ in groups for e in entries])


UP, DOWN = ("done", [0, 5, 10], [4.0, 2.0, 9.0]), ("done", [0, 5, 10], [4.0, 9.0, 2.0])


def test_most_ended_runs_of_an_arm_make_its_cell_lost():
    gone, never = ("diverged", [0], [4.0]), ("failed", [], [])
    found = counted(
        runs("none", [UP, UP, DOWN]), runs("half", [UP, DOWN]), runs("gone", [gone, UP, DOWN, never, never])
    )
    assert found == {("c0", "none"): "none 2 of 3", ("c0", "gone"): "gone 2 of 3"}
    assert said(found).endswith("own untrained weights): c0: none 2 of 3, gone 2 of 3") and said({}) == ""


def test_what_has_no_untrained_weights_to_compare_with_is_lost_where_it_diverged_alone():
    thinned = ("done", [5, 10], [2.0, 9.0])
    assert counted(runs("thinned", [thinned]), runs("longer", [UP], init_from="a" * 12)) == {}
    assert counted(runs("longer", [("diverged", [0], [2.0])], init_from="a" * 12)) == {
        ("c0", "longer"): "longer 1 of 1"
    }
    assert counted(runs("silent", [("done", [0, 10], [4.0, None])])) == {("c0", "silent"): "silent 1 of 1"}
