"""The ladders of Bigram-Backcopy: rates by doublings, widths with rates of 1/width, on seeds of their own, one stack a shape."""

from math import log2

import pytest

from gatelab.config import canonical
from gatelab.studies import backcopy_key, backcopy_phases, backcopy_rates, backcopy_widths
from gatelab.study.grouping import shape_of
from gatelab.study.plan import make_plan


def shapes_of(study):
    shapes: dict[str, int] = {}
    for p in make_plan(study).runs:
        shape = shape_of(canonical(p.run))
        shapes[shape] = shapes.get(shape, 0) + 1
    return list(shapes.values())


def test_rates_double_and_the_runs_of_a_gate_are_one_stack():
    study = backcopy_rates.study
    rates = [cell.optim.lr for cell in study.cells.values()]
    assert rates == [5e-4 * 2**k for k in range(12)] and shapes_of(study) == [12 * 16] * 3
    before = {p.run.seed for s in (backcopy_key, backcopy_phases) for p in make_plan(s.study).runs}
    assert len(study.seeds) == 16 and min(study.seeds) > max(before)


def test_rates_go_with_one_over_the_width():
    study = backcopy_widths.study
    for cell in study.cells.values():
        assert log2(cell.optim.lr * cell.model.d_model / (2e-3 * 64)) == pytest.approx(
            round(log2(cell.optim.lr * cell.model.d_model / 0.128))
        )
    assert len(study.cells) == 12 and sorted({c.model.d_model for c in study.cells.values()}) == [32, 64, 128, 256]
    assert shapes_of(study) == [3 * 16] * 12
    middle = study.cells["width-64-lr0.002"]
    assert middle == backcopy_phases.study.cells["1-layer-bos-lr0.002"]
