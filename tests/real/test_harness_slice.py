"""A few items of four benchmarks, asked of a real checkpoint by HFLM and by us: what every test run has time for of
test_harness_smollm2.py."""

import pytest

pytest.importorskip("lm_eval")

from bench_slice import agrees, of_hflm, slice_of

from gatelab.evals.harness.external import ExternalPasses
from gatelab.models.external import Loading, load_external


def test_items_are_scored_and_written_as_hflm_does(smollm2_opened, tmp_path):
    found = load_external(smollm2_opened.source.title, Loading(head=True))
    asked = slice_of(tmp_path, limit=1, shots=1, new_tokens=8)
    expected = of_hflm(found, asked, batch_size=4)
    # Of up to a hundred tokens in float32.
    agrees(found, ExternalPasses(found.model), asked, expected, batch_size=4, off=2e-3)
    scores = [log_p for log_p, _ in expected[0]]
    assert scores[0] == max(scores[:4]) and scores[4] == max(scores[4:8]) and all(expected[1])
