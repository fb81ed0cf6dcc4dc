"""Anomalies: named rules over the readings of a study, each a test whose false-alarm rate is simulated in the tests.

A new rule is a function of (evidence, cell, arm) and its line in `RULES`. All tests of a screen are one family for
Benjamini and Hochberg's procedure.
"""

from .alarm import Alarm, Rule
from .evidence import Evidence
from .gates import dead_heads, gate_collapse
from .losses import gain_vanishes, sign_flip, worse_at_length, worse_than_none
from .readings import FINAL, READINGS, UNSTABLE, Reading
from .screen import screen
from .seeds import instability, two_regimes
from .sinks import massive_without_sink, new_bias, removed_but_worse, sink_stays, sink_without_massive

_SIZES = ("first_token_mass", "massive_ratio")
_MEANS = ("val_loss", "massive_max", "value_drain")
_SPLIT = ("val_loss", "first_token_mass", "massive_max")
_ENDS = ("gate_shut", "gate_open")
_BIASES = ("sink_elsewhere", "new_places", "new_tokens")

# fmt: off
RULES = (
    Rule("sign-flip", "the effect is zero, or has the sign of the family's", sign_flip, _MEANS, 2, also=Evidence.elsewhere),
    Rule("worse-than-none", "the gate is not worse", worse_than_none, ("val_loss", "accuracy"), 2),
    Rule("sink-stays", "a quarter of gated runs at most keeps the baseline's sink", sink_stays, ("first_token_mass",), 3),
    Rule("removed-but-worse", "it is no worse there", removed_but_worse, ("first_token_mass", "val_loss"), 3, needs_all=True),
    Rule("massive-without-sink", "a quarter of gated runs at most is so", massive_without_sink, _SIZES, 3, needs_all=True),
    Rule("sink-without-massive", "a quarter of gated runs at most is so", sink_without_massive, _SIZES, 3, needs_all=True),
    Rule("new-bias", "the bias is larger than the baseline's by 0.05 at most", new_bias, _BIASES, 3),
    Rule("gate-collapse", "a quarter of runs at most has a collapsed layer", gate_collapse, _ENDS, 3, is_paired=False),
    Rule("dead-heads", "a quarter of runs at most has dead heads", dead_heads, ("gate_dead",), 3, is_paired=False),
    Rule("two-regimes", "the arm's seeds are one group, flat at most", two_regimes, _SPLIT, 5),
    Rule("instability", "a seed is as likely to be unstable with the baseline", instability, ("unstable",), 5),
    Rule("worse-at-length", "length costs the gate no more", worse_at_length, ("val_loss", "longer"), 2, also=Evidence.source),
    Rule("gain-vanishes", "no gain, or the bound at its own rate", gain_vanishes, ("val_loss",), 2, also=Evidence.at_other_rates),
)
# fmt: on

__all__ = ["FINAL", "READINGS", "RULES", "UNSTABLE", "Alarm", "Evidence", "Reading", "Rule", "screen"]
