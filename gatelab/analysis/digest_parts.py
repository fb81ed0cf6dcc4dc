"""What a digest takes of the rows of runs, as SQL: of each run by itself, so that one is taken without the others."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..study.metrics import MAIN_ROWS, STUDY_METRICS
from .anomalies.readings import NAMED, READINGS


@dataclass(frozen=True)
class Table:
    """Values of a run by their places, of the rows that fulfil `where`; at the last step of a run and metric, unless the step is
    a place. A run and metric is one record of lists, a list a place."""

    metrics: tuple[str, ...]
    places: tuple[str, ...]
    where: str

    def sql(self, name: str) -> str:
        """The query that makes it of `found`, in order; of two values in one place the larger comes last."""
        order = ", ".join((*self.places, "value"))
        last = "" if "step" in self.places else "QUALIFY step = max(step) OVER (PARTITION BY run, metric)"
        return f"""
            SELECT '{name}' AS part, run, metric, list(value ORDER BY {order}) AS heights,
                {", ".join(f"list({place} ORDER BY {order}) AS {place}s" for place in self.places)}
            FROM (SELECT DISTINCT run, metric, step, {order} FROM found WHERE metric IN ({_quoted(self.metrics)})
                AND domain IS NULL AND intervention IS NULL AND threshold IS NULL AND {self.where} {last}) GROUP BY ALL
        """


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


TABLES = {
    "curves": Table(
        ("loss", "val_loss", "first_token_mass", "first_token_uniform"), ("step",),
        "layer IS NULL AND head IS NULL AND bin IS NULL",
    ),
    # Of the probe: a training may have rows of its own, step by step.
    "heads": Table(("first_token_mass",), ("layer", "head"), "head IS NOT NULL AND source = 'sinks'"),
    "layers": Table(("massive_max", "massive_ratio", "gate_mean"), ("layer",), "layer IS NOT NULL AND head IS NULL"),
    "histograms": Table(("gate_histogram",), ("layer", "bin"), "layer IS NOT NULL AND bin IS NOT NULL"),
}  # fmt: skip

# Readings that rules look at, over the looks of a run; `curves` has the held-out loss and first-token mass.
COURSES = ("massive_ratio", "massive_max", "value_drain", "gate_shut", "gate_open", "gate_dead", "sink_elsewhere", "new_places",
           "new_tokens", "accuracy", "longer")  # fmt: skip
# The layer that is furthest, over the looks of a run; that of shut scores is a reading.
FURTHEST = {"first_token_mass": "max", "massive_ratio": "max", "value_drain": "min"}
PLACES = {name: table.places for name, table in TABLES.items()} | {"courses": ("step",)}

_JUDGED = {*STUDY_METRICS, *NAMED}
# Of the values that a run has of a study metric that of the whole model, on its own data.
WHOLE_MODEL = """layer IS NULL AND head IS NULL AND domain IS NULL AND intervention IS NULL AND bin IS NULL AND stage IS NULL
    AND (site IS NULL OR site = 'sdpa')"""
_FOUND = sorted(_JUDGED.union(*(table.metrics for table in TABLES.values())))
_PLACE = "run, step, source, metric, value"
_COORDINATES = "layer, head, site, stage, bin, threshold, length, domain, task, intervention"
# Columns of rows, in which a digest looks for what it takes.
NAMES = (*f"{_PLACE}, {_COORDINATES}".split(", "), "stack")
# What the queries over `main_rows` tell rows apart by, besides the step. Of rows that are alike in it all or none are taken by a
# query, so the last step of those that it takes is the last step of one such kind.
_KIND = (
    "run, metric, source, site, stage, layer IS NULL, head IS NULL, bin IS NULL, threshold IS NULL, domain IS NULL,"
    " intervention IS NULL"
)
_EACH = " UNION ALL ".join(
    [
        *(f"SELECT '{name}' AS name, look, part::VARCHAR AS part, value FROM ({READINGS[name].sql}) AS one(look, part, value)"
          for name in COURSES),
        *(f"SELECT 'furthest', run, '{metric}', {furthest}(value) FROM final WHERE metric = '{metric}' AND layer IS NOT NULL AND"
          " threshold IS NULL AND domain IS NULL AND bin IS NULL GROUP BY run" for metric, furthest in FURTHEST.items()),
    ]
)  # fmt: skip
# A reading's query takes one value a run and part of `final`: here a look at a run is its `run`.
_LOOKS = f"""
    CREATE TEMP TABLE looks AS SELECT row_number() OVER () AS look, * FROM
        (SELECT DISTINCT run, step FROM found WHERE source <> 'train' AND metric IN ({_quoted(NAMED)}));
    CREATE TEMP TABLE final AS SELECT look AS run, metric, value, layer, head, bin, stage, task, domain, threshold, length,
        layer IS NULL AND head IS NULL AS is_model FROM found JOIN looks USING (run, step)
        WHERE intervention IS NULL AND source <> 'train' AND head IS NULL AND metric IN ({_quoted(NAMED)});
"""
_COURSES = f"""SELECT 'courses' AS part, run, metric, list(value ORDER BY step, value) AS heights,
    list(step ORDER BY step, value) AS steps FROM (SELECT looks.run, step, name || coalesce(':' || part, '') AS metric, value
    FROM ({_EACH}) JOIN looks USING (look) WHERE value IS NOT NULL) GROUP BY ALL"""

EMPTY = """CREATE TABLE digest (part VARCHAR, run VARCHAR, step BIGINT, source VARCHAR, metric VARCHAR, value DOUBLE, layer BIGINT,
    head BIGINT, site VARCHAR, stage VARCHAR, bin BIGINT, threshold DOUBLE, length BIGINT, domain VARCHAR, task VARCHAR,
    intervention VARCHAR, heights DOUBLE[], steps BIGINT[], layers BIGINT[], heads BIGINT[], bins BIGINT[])"""
# Into `digest`, of a table `rows` with the columns `NAMES`, which is gone after it.
TAKE = f"""
    {MAIN_ROWS.strip()};
    CREATE TEMP TABLE found AS SELECT {_PLACE}, {_COORDINATES} FROM main_rows WHERE metric IN ({_quoted(_FOUND)});
    {_LOOKS}
    INSERT INTO digest BY NAME
        SELECT 'main' AS part, * FROM found WHERE metric IN ({_quoted(sorted(_JUDGED))})
            QUALIFY step = max(step) OVER (PARTITION BY {_KIND})
        UNION ALL BY NAME {" UNION ALL BY NAME ".join(table.sql(name) for name, table in TABLES.items())}
        UNION ALL BY NAME {_COURSES}
        UNION ALL BY NAME SELECT 'tasks' AS part, {_PLACE}, {_COORDINATES} FROM rows WHERE source = 'tasks'
        UNION ALL BY NAME SELECT 'reached' AS part, run, max(step) AS step FROM rows GROUP BY run;
    DROP TABLE final; DROP TABLE looks; DROP TABLE found;
    DROP VIEW main_rows; DROP TABLE main_sites; DROP VIEW stack_rows; DROP TABLE decoders; DROP TABLE rows
"""
# Of `digest`, and of `planned` with the cell, arm, seed and run of each entry of a plan; `final` is the last step of a run that
# is done, by its plan, NULL of others. What such a run has of an earlier step is no final value: its later rows are gone. It is in
# `short` and no view of final values; of its tasks it is asked at the last step in full, so then none of its answers are there.
VIEWS = f"""
    CREATE TEMP VIEW main_rows AS SELECT cell, arm, seed, {_PLACE}, {_COORDINATES} FROM digest JOIN planned USING (run)
        WHERE part = 'main' AND (final IS NULL OR step >= final);
    CREATE TEMP VIEW task_rows AS SELECT * EXCLUDE (final, last) FROM (
        SELECT cell, arm, seed, {_PLACE}, {_COORDINATES}, final, max(step) OVER (PARTITION BY run) AS last
        FROM digest JOIN planned USING (run) WHERE part = 'tasks') WHERE final IS NULL OR last >= final;
    CREATE TEMP VIEW reached AS SELECT cell, arm, seed, run, step FROM digest JOIN planned USING (run) WHERE part = 'reached';
    CREATE TEMP VIEW short AS
        SELECT run, metric, threshold, max(step) AS step, any_value(final) AS final FROM digest JOIN planned USING (run)
        WHERE part = 'main' AND source <> 'tasks' AND {WHOLE_MODEL} GROUP BY ALL HAVING max(step) < any_value(final)
        UNION ALL SELECT run, '', NULL, step, final FROM reached JOIN planned USING (run) WHERE step < final
        UNION ALL SELECT run, 'tasks', NULL, max(step) AS step, any_value(final) AS final FROM digest JOIN planned USING (run)
        WHERE part = 'tasks' GROUP BY run HAVING max(step) < any_value(final);
    CREATE TEMP VIEW tables AS SELECT part AS name, cell, arm, seed, metric, heights, steps, layers, heads, bins
        FROM digest JOIN planned USING (run) WHERE part IN ({_quoted(PLACES)})
        AND (list_contains(['curves', 'courses'], part) OR run NOT IN (SELECT run FROM short WHERE metric = ''))
"""
