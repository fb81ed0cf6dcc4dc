"""Knobs of single tasks of a mixture: how they are written, what is refused, and that runs without them keep their names."""

import re

import jsonschema
import pytest

from gatelab.config import (
    ConfigError,
    Run,
    TaskKnobs,
    Tasks,
    canonical,
    fingerprint,
    override,
    parse_assignments,
    validate,
)

BOTH = ("mqar", "track")
KNOBS = {"mqar": {"distractors": 3}, "track": {"hardness": 1, "distractors": 1}}
TABLE = Tasks(names=BOTH, knobs=KNOBS)


def test_a_table_words_and_values_are_one_and_the_same():
    words = "track:hardness=1:distractors=1,mqar:distractors=3"
    (given,) = parse_assignments([f"data.knobs={words}"])["data.knobs"]
    assert override(Run(data=Tasks(names=BOTH)), {"data.knobs": given}).data == TABLE
    assert Tasks(names=BOTH, knobs={n: TaskKnobs(**k) for n, k in KNOBS.items()}) == TABLE
    assert Tasks(names=BOTH, knobs=tuple(words.split(","))) == TABLE and hash(TABLE) == hash(
        Tasks(names=BOTH, knobs=words)
    )
    assert TABLE.knobs == (("mqar", TaskKnobs(distractors=3)), ("track", TaskKnobs(hardness=1, distractors=1)))
    assert canonical(TABLE)["knobs"] == KNOBS and validate(Tasks, canonical(TABLE)) == TABLE
    assert override(Run(data=TABLE), {"optim.lr": 1e-3}).data == TABLE
    assert override(Run(data=TABLE), {"data.knobs": "mqar:distractors=7"}).data.knobs_of("mqar").distractors == 7


def test_schema_is_of_the_table_that_is_written():
    whole = Run.model_json_schema()
    schema = {"$defs": whole["$defs"], **whole["properties"]["data"]}
    written = canonical(Run(data=TABLE))["data"]
    jsonschema.validate(written, schema)
    written["knobs"] = [["mqar", {"distractors": 3}]]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written, schema)


def test_a_knob_given_twice_is_refused():
    with pytest.raises(ValueError, match="distractors is there twice; give each knob of a task once"):
        Tasks(names=BOTH, knobs="mqar:distractors=3:distractors=4")


def test_several_values_are_several_cells():
    values = parse_assignments(["data.knobs=[(mqar:distractors=3,track:hardness=1),mqar:distractors=7]"])["data.knobs"]
    made = [override(Run(data=Tasks(names=BOTH)), {"data.knobs": v}).data for v in values]
    assert [d.knobs_of("mqar").distractors for d in made] == [3, 7]
    assert [d.knobs_of("track").hardness for d in made] == [1, None]


def test_a_task_has_its_own_and_of_all_what_it_has_none_of():
    mixed = Tasks(
        names=("needle", *BOTH), distractors=2, hardness=1, knobs={"track": {"hardness": 3}, "mqar": {"distractors": 0}}
    )
    assert mixed.knobs_of("needle") == TaskKnobs(distractors=2, hardness=1)
    assert mixed.knobs_of("track") == TaskKnobs(distractors=2, hardness=3)
    assert mixed.knobs_of("mqar") == TaskKnobs(distractors=0, hardness=1)


# Names that these runs had before tasks could have knobs of their own.
@pytest.mark.parametrize(
    ("data", "name"),
    [
        (Tasks(), "595e006fe30b"),
        (Tasks(names=BOTH, hardness=2), "9127f429e2b3"),
        (Tasks(names=("cite",), distractors=3, targets="all", shortest=32), "ac4a62f42f89"),
    ],
)
def test_runs_without_them_keep_their_fingerprints(data, name):
    assert fingerprint(Run(data=data), "") == fingerprint(Run(data=data.model_copy(update={"knobs": ()})), "") == name
    assert "knobs" not in canonical(Run(data=data))["data"]


def test_other_knobs_are_another_run_and_their_order_and_what_states_nothing_is_not():
    names = {
        fingerprint(Run(data=Tasks(names=BOTH, knobs=k)), "")
        for k in (KNOBS, dict(reversed(KNOBS.items())), KNOBS | {"mqar": {"distractors": 3, "depth": None}})
    }
    assert names == {fingerprint(Run(data=TABLE), "")}
    assert fingerprint(Run(data=Tasks(names=BOTH, knobs={"mqar": {}})), "") == fingerprint(
        Run(data=Tasks(names=BOTH)), ""
    )
    assert fingerprint(Run(data=Tasks(names=BOTH, knobs="mqar:distractors=4")), "") not in names


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("mqar:distractor=7", "data.knobs: mqar: no knob 'distractor'; expected one of depth, distractors, hardness; did you mean"),
        ("trackk:hardness=1", "knobs: trackk is not one of names=mqar,track; name it there, or leave its knobs out; did you mean"),
        ("mqar", "data.knobs: 'mqar': expected a task and its knobs, as in mqar:distractors=3"),
        ("mqar:hardness=0", "data.knobs: mqar: hardness='0': input should be greater than or equal to 1"),
        ("mqar:depth=x", "data.knobs: mqar: depth='x': input should be a valid number"),
        ("mqar:hardness=1,mqar:distractors=2", "data.knobs: mqar is there twice; give all of its knobs at once"),
        (5, "data.knobs: 5: expected a task and its knobs"),
        ({"mqar": 3}, "data.knobs: mqar=3: expected its knobs by name, as in {'distractors': 3}"),
    ],
)  # fmt: skip
def test_what_is_no_task_or_no_knob_is_refused(given, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        override(Run(data=Tasks(names=BOTH)), {"data.knobs": given})
