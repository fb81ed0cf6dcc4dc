"""What arms take beside their baseline in arithmetic: known ratios, of experts those that are chosen, and where it is said."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

from gatelab.analysis.arithmetic import a_token, beside_baseline, joined
from gatelab.analysis.atlas import Atlas
from gatelab.config import MoE, override
from gatelab.report.arithmetic import arms_table, times
from gatelab.study.plan import make_plan
from gatelab.study.study import Arm, Study

PLAN = [
    {"cell": cell, "arm": arm, "seed": seed, "tokens": 10, "flops": flops, "n_parameters": 1000, "remainder": 0}
    for seed in (0, 1)
    for cell, arm, flops in (("a", "none", 1000), ("a", "gate", 1020), ("b", "none", 500), ("b", "gate", 500))
] + [{"cell": "looked at", "arm": "gate", "seed": 0, "tokens": 0, "flops": 0, "n_parameters": 1000, "remainder": 0}]


def text(html: object) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", str(html)))


def test_the_least_and_the_most_over_cells_of_what_trains():
    assert beside_baseline(PLAN, "none") == {"gate": (1.0, 1.02)}
    assert beside_baseline([e for e in PLAN if e["arm"] == "gate"], "none") == {}
    assert joined({"a": (1.0, 1.1)}, {"a": (0.9, 1.0), "b": (2.0, 2.0)}) == {"a": (0.9, 1.1), "b": (2.0, 2.0)}
    assert (times((1.0, 1.02)), times((1.0, 1.0)), times(None)) == ("1.000 to 1.020\u00a0×", "1.000\u00a0×", "–")


def test_it_is_the_plans_own_figure_of_a_gate_counted_by_hand():
    run = tiny.run(model=tiny.model(vocab_size=None, max_seq_len=None, gate="none"))
    arms = (Arm("none", {}), Arm("gate", {"model.gate": "sdpa-headwise"}))
    plan = make_plan(Study("s", "?", {"c": run}, arms, seeds=1, match=None)).entries(Path("x"))
    # One weight a head and channel of the source, in each layer: six operations a token each.
    c, of = run.model, a_token(plan)
    assert of["c", "gate"] - of["c", "none"] == pytest.approx(6 * c.n_layers * c.n_heads * c.d_model)


def test_of_experts_those_that_are_chosen_count():
    moe = MoE(n_experts=4, top_k=1, d_expert=8)
    run = tiny.run(model=tiny.model(vocab_size=None, max_seq_len=None, gate="none", d_ff=None, moe=moe))
    more = override(run, {"model.moe.n_experts": 8})
    few, many = (
        make_plan(Study("s", "?", {"c": r}, (Arm("none", {}),), seeds=1)).entries(Path("x"))[0] for r in (run, more)
    )
    assert many["n_parameters"] > 1.2 * few["n_parameters"]
    # The router alone grows.
    router = 6 * run.model.n_layers * run.model.d_model * 4
    assert (many["flops"] - few["flops"]) / few["tokens"] == pytest.approx(router)


def test_the_table_of_a_study_and_what_trains_nothing_has_none():
    said = text(arms_table(PLAN, "none", {"none": "no gate", "gate": "a gate"}))
    assert "arithmetic beside the baseline no gate 1 k 50 to 100 1 a gate 1 k 50 to 102 1.000 to 1.020 ×" in said
    assert arms_table([e for e in PLAN if not e["tokens"]], "none", {"gate": "a gate"}) is None


def test_a_study_page_has_it_beside_the_pairing(reported):
    assert "What the arms take" in reported.page.text and "arithmetic beside the baseline" in reported.page.text


def test_the_atlas_joins_the_studies():
    sheets = [
        SimpleNamespace(arithmetic={"g": (1.0, 1.01)}),
        SimpleNamespace(arithmetic={"g": (1.02, 1.02), "h": (1.1, 1.1)}),
    ]
    assert Atlas(sheets, []).arithmetic == {"g": (1.0, 1.02), "h": (1.1, 1.1)}
