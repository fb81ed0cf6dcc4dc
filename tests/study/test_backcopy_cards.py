"""The companion of the phase diagram: exactly its confirmed comparisons, alike but for seeds and looks; cells with some arms."""

import csv
from pathlib import Path

import pytest

from gatelab import Arm, Run, Study
from gatelab.config import ConfigError, canonical
from gatelab.studies import backcopy_key, backcopy_phases, backcopy_rates
from gatelab.studies.backcopy_cards import study
from gatelab.study.plan import make_plan

RESULT = Path(__file__).parents[2] / "docs" / "results" / "backcopy-phases" / "confirmed.csv"


def alike(run: Run) -> dict:
    """What a run is beside its seed and its looks."""
    return {key: part for key, part in canonical(run).items() if key not in ("seed", "probe")}


def test_its_comparisons_are_those_that_were_confirmed() -> None:
    with RESULT.open(encoding="utf-8") as lines:
        confirmed = {(line["cell"], line["arm"]) for line in csv.DictReader(lines)}
    runs = make_plan(study).runs
    assert {(p.cell, p.arm) for p in runs if p.arm != "none"} == confirmed and len(confirmed) == 12
    assert {p.cell for p in runs if p.arm == "none"} == {cell for cell, _ in confirmed}
    assert len(runs) == (12 + 7) * 16


def test_they_are_those_runs_on_other_seeds_looked_at_at_every_twentieth() -> None:
    before = {(p.cell, p.arm): alike(p.run) for p in make_plan(backcopy_phases.study).runs if p.seed == 0}
    runs = make_plan(study).runs
    assert all(alike(p.run) == before[p.cell, p.arm] for p in runs if p.seed == study.seeds[0])
    assert runs[0].run.probe_steps() == list(range(0, 1001, 50))
    used = {s for other in (backcopy_phases, backcopy_key, backcopy_rates) for s in other.study.seed_values}
    assert not {*used, *range(64, 80)} & set(study.seeds)


def small(**fields) -> Study:
    arms = (Arm("none", {}), *(Arm(f"gate-{g}", {"model.gate": f"sdpa-{g}"}) for g in ("headwise", "elementwise")))
    cells = {name: Run(optim={"lr": lr}) for name, lr in (("a", 1e-3), ("b", 2e-3))}
    return Study("small", "?", cells, arms, **{"seeds": 1, "only": {"a": ("gate-headwise",)}} | fields)


def test_a_cell_may_have_some_of_the_arms() -> None:
    def names(s: Study, cell: str) -> list[str]:
        return [a.name for a in s.arms_of(cell)]

    s = small()
    assert names(s, "a") == ["none", "gate-headwise"] and names(s, "b") == ["none", "gate-headwise", "gate-elementwise"]
    fewer = s.changed({"arm": ["gate-elementwise"]})
    assert names(fewer, "a") == ["none"] and names(fewer, "b") == ["none", "gate-elementwise"]
    twice = s.changed({"optim.weight_decay": [0.1, 0.2]})
    assert names(twice, "a, optim.weight_decay=0.2") == ["none", "gate-headwise"]
    assert s.changed({"cell": ["b"]}).only == {}
    other = s.changed({"model.gate": ["value-headwise"]})
    assert names(other, "a") == names(other, "b") == ["none", "value-headwise"]


@pytest.mark.parametrize(("only", "said"), [({"c": ()}, "no cell 'c'"), ({"a": ("gate",)}, "a has no arm 'gate'")])
def test_what_is_not_there_is_refused(only: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small(only=only)
