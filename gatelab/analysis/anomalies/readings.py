"""Readings: the numbers of a run that rules look at, and the SQL that takes them from a study's rows.

Each query runs over a digest's `main_rows` as `final`, one step a run and metric, its last, without interventions; it gives (run,
part, value). A `part` names a domain or a task: readings with parts are families, `new_tokens:code`. docs/metrics.md has
the definitions.
"""

import re
from dataclasses import dataclass
from math import nextafter

from ...record import Metric
from ...study.metrics import SOLVED

LOWER, HIGHER, NEUTRAL = "lower-is-better", "higher-is-better", "neutral"
SINK = 0.3  # first-token mass above which a run shows a sink, as in study/metrics.py


@dataclass(frozen=True)
class Reading:
    """A metric for the analysis, and the query that gives (run, part, value)."""

    metric: Metric
    sql: str


def _model(metric: str, threshold: float | None = None) -> str:
    at = "threshold IS NULL" if threshold is None else f"threshold = {threshold}"
    return f"""SELECT run, NULL, value FROM final WHERE metric = '{metric}' AND is_model AND {at} AND domain IS NULL
               AND bin IS NULL AND stage IS NULL AND task IS NULL"""


def _most_of_a_layer(metric: str, threshold: float) -> str:
    return f"""SELECT run, NULL, max(value) FROM final WHERE metric = '{metric}' AND layer IS NOT NULL AND head IS NULL
               AND threshold = {threshold} AND domain IS NULL GROUP BY run"""


def _spikes() -> str:
    """Steps that pass both thresholds. Rows of older versions count the steps of each by itself: no more pass both than the
    fewer of the two, and fewer than three are none; of other runs they do not tell, and there is no value."""
    return """SELECT run, NULL, coalesce(max(value) FILTER (threshold IS NULL), CASE WHEN min(value) < 3 THEN 0 END)
              FROM final WHERE metric = 'loss_spikes' AND is_model GROUP BY run"""


def _spread(metric: str, over: str) -> str:
    """ln of the standard deviation: over a layer's heads, its mean over layers; or over layers. None where a run has one."""
    heads = f"""SELECT run, layer, ln(stddev_samp(value)) AS spread FROM final WHERE metric = '{metric}' AND head IS NOT NULL
                AND threshold IS NULL AND domain IS NULL GROUP BY run, layer HAVING stddev_samp(value) > 0"""
    layers = f"""SELECT run, NULL, ln(stddev_samp(value)) FROM final WHERE metric = '{metric}' AND layer IS NOT NULL AND
                 head IS NULL AND threshold IS NULL AND domain IS NULL GROUP BY run HAVING stddev_samp(value) > 0"""
    return layers if over == "layers" else f"SELECT run, NULL, avg(spread) FROM ({heads}) GROUP BY run"


def _by_task(value: str) -> str:
    """A value of `exact_match` by length: `first` and `last` are those at the shortest and the longest asked."""
    return f"""SELECT run, task, {value} FROM (SELECT run, task, first(accuracy ORDER BY length) AS first,
               last(accuracy ORDER BY length) AS last, count(*) AS n_lengths FROM (SELECT run, task, length,
               avg(value) AS accuracy FROM final WHERE metric = 'exact_match' AND is_model AND bin IS NULL
               GROUP BY run, task, length) GROUP BY run, task)"""


_ALL = (
    Reading(Metric("val_loss", "nats", LOWER, "held-out loss", equivalence=0.01), _model("val_loss")),
    Reading(
        Metric("first_token_mass", "share", NEUTRAL, "first-token mass", bimodal=True, threshold=SINK),
        _model("first_token_mass"),
    ),
    Reading(Metric("massive_ratio", "ratio", NEUTRAL, "largest activation over the median"), _model("massive_ratio")),
    Reading(Metric("massive_max", "1", NEUTRAL, "largest activation, mean over layers"), _model("massive_max")),
    Reading(
        Metric("value_drain", "ratio", NEUTRAL, "value norm of the first token over the median"), _model("value_drain")
    ),
    Reading(Metric("loss_spikes", "count", LOWER, "loss spikes by height and deviation"), _spikes()),
    Reading(
        Metric("gate_shut", "share", NEUTRAL, "share of shut scores in the layer most shut"),
        _most_of_a_layer("gate_below", 0.1),
    ),
    Reading(
        Metric("gate_open", "share", NEUTRAL, "share of open scores in the layer most open"),
        _most_of_a_layer("gate_above", 0.9),
    ),
    Reading(
        Metric("gate_dead", "share", NEUTRAL, "share of heads whose gate is shut and stays so"),
        _model("gate_dead", 0.1),
    ),
    Reading(
        Metric("sink_elsewhere", "share", NEUTRAL, "share of heads with a sink that is not the first token"),
        _model("sink_elsewhere", 0.3),
    ),
    Reading(
        Metric("new_places", "share", NEUTRAL, "attention on one octave of positions, above uniform"),
        """SELECT p.run, 'from ' || (2 ** p.bin - 1)::BIGINT, p.value - u.value FROM final p JOIN final u ON p.run = u.run
           AND p.bin = u.bin AND p.metric = 'position_mass' AND u.metric = 'position_mass_uniform' AND p.bin > 0
           AND p.is_model AND u.is_model AND p.domain IS NULL AND u.domain IS NULL""",
    ),
    Reading(
        Metric("new_tokens", "share", NEUTRAL, "attention on keys of one domain, above uniform"),
        """SELECT k.run, k.domain, k.value - u.value FROM final k JOIN final u ON k.run = u.run AND k.domain = u.domain
           AND k.metric = 'key_mass' AND u.metric = 'key_mass_uniform' AND k.is_model AND u.is_model""",
    ),
    Reading(
        Metric(
            "accuracy",
            "share",
            HIGHER,
            "accuracy at the shortest length",
            bimodal=True,
            threshold=nextafter(SOLVED, 0),
            graded=True,
        ),
        _by_task("first"),
    ),
    Reading(
        Metric("longer", "share", HIGHER, "accuracy between the shortest and the longest length"),
        _by_task("CASE WHEN n_lengths > 1 THEN last - first END"),
    ),
    Reading(
        Metric("mass_spread_heads", "ln", NEUTRAL, "spread of first-token mass over heads"),
        _spread("first_token_mass", "heads"),
    ),
    Reading(
        Metric("mass_spread_layers", "ln", NEUTRAL, "spread of first-token mass over layers"),
        _spread("first_token_mass", "layers"),
    ),
    Reading(
        Metric("massive_spread_layers", "ln", NEUTRAL, "spread of the largest activation over layers"),
        _spread("massive_max", "layers"),
    ),
)

READINGS: dict[str, Reading] = {r.metric.name: r for r in _ALL}

# What the queries above name. A table of it alone is made once: thousands of runs hold millions of rows of their training. It is
# in the order of its metrics, so that a query reads the part that it asks for.
NAMED = sorted({name for r in _ALL for name in re.findall(r"metric = '(\w+)'", r.sql)})
FINAL = f"""
    CREATE OR REPLACE TEMP TABLE final AS SELECT run, metric, value, layer, head, bin, stage, task, domain, threshold, length,
    layer IS NULL AND head IS NULL AS is_model FROM main_rows WHERE intervention IS NULL AND metric IN {tuple(NAMED)}
    QUALIFY step = max(step) OVER (PARTITION BY run, metric) ORDER BY metric
"""

# Not a row: 1 of a run that diverged or has a loss spike, 0 of one that has neither; none where spikes were not counted.
UNSTABLE = Metric("unstable", "share", LOWER, "instability")
