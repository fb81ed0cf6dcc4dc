"""Other ways to have a gate's effect: the arm that a study would need is written as one that is then known."""

from ast import literal_eval

import pytest

from gatelab.analysis.other_ways import STATIC
from gatelab.config import GateSpec

BASE = {"gate": "none", "n_layers": 4}


def written(arm: str) -> dict[str, str]:
    return literal_eval(arm[arm.index("{") : arm.index("}") + 1])


@pytest.mark.parametrize(
    ("gate", "start"),
    [
        ("sdpa-headwise", "random"),
        ("sdpa-headwise-bias-around=0.5", 0.5),
        ("sdpa-headwise-bias-around=0.95", 0.95),
        ("sdpa-elementwise-around=0.5", 0.5),
        ("value-elementwise-silu-bias-around=0.2", 0.2),
        ("sdpa-elementwise-bias-init=0.3", 0.3),
    ],
)
def test_a_gate_that_is_the_same_for_every_token_begins_where_the_gate_does(gate, start):
    own = BASE | {"gate": gate}
    slug = written(STATIC.arm(own))["model.gate"]
    spec = GateSpec.parse(slug)
    assert (spec.source, spec.around, spec.init, spec.site) == ("static", None, start, GateSpec.parse(gate).site)
    assert STATIC.is_it(BASE | {"gate": slug}, own, BASE)


def test_where_no_gate_is_so_it_is_said():
    assert STATIC.arm(BASE | {"gate": ["sdpa-headwise", "value-headwise"]}) == "an arm with one gate that can be so"
