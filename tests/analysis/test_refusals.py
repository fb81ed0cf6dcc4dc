"""What may be compared: by what planted environments say of the code and torch, pair by pair."""

import pytest

from gatelab.analysis import Outcome
from gatelab.analysis.refusals import UNKNOWN, Refusals, refusals
from gatelab.store import RunFolder, write_json


def env(commit="", *, code="", torch="2.11.0", gatelab="", modified=False):
    git = {"commit": commit * 40, "modified": modified} if commit else None
    versions = {"torch": torch} | ({"gatelab": gatelab} if gatelab else {})
    return {"git": git, "versions": versions} | ({"code": code} if code else {})


OLD, NEW = env("a"), env("b")
# Begun under one version of the code, ended under another.
BOTH = env(code="c2") | {"earlier_code": ["c1"]}
SILENT = env()


@pytest.fixture
def judge(tmp_path):
    """{(cell, arm): environments by seed} as finished runs, and what may not be compared of them."""

    def judged(made, *, tokens=None, state="done") -> Refusals:
        runs = []
        for (cell, arm), environments in made.items():
            for seed, environment in enumerate(environments):
                folder = RunFolder(tmp_path / f"{cell}-{arm}-{seed}")
                folder.path.mkdir(exist_ok=True)
                if environment is not None:
                    write_json(folder.path / "environment.json", environment)
                entry = {"cell": cell, "arm": arm, "seed": seed, "tokens": (tokens or {}).get(arm, 16)}
                runs.append((entry, folder, state))
        return refusals(runs, "none")

    return judged


def test_runs_of_one_version_are_compared_and_nothing_is_said(judge):
    found = judge({("a", "none"): [OLD] * 3, ("a", "gated"): [OLD] * 3})
    assert (found.refused, found.unpaired, found.not_pooled, found.notes) == ({}, {}, "", [])
    assert found.versions == {"a" * 12}


def test_a_study_that_names_no_version_is_compared_and_one_sentence_says_so(judge):
    found = judge({("a", "none"): [SILENT] * 3, ("a", "gated"): [SILENT] * 3})
    assert (found.refused, found.unpaired, found.not_pooled) == ({}, {}, "")
    assert found.notes == [UNKNOWN] and found.versions == set()
    assert judge({("b", "none"): [None] * 2, ("b", "gated"): [None] * 2}).notes == [UNKNOWN]


def test_a_pair_of_two_versions_is_left_out_and_the_others_stand(judge):
    found = judge({("a", "none"): [OLD, OLD, NEW], ("a", "gated"): [OLD, OLD, OLD]})
    assert found.unpaired == {
        ("a", "gated", 2): f"seed 2 is of two versions of the code (none: {'b' * 12}; gated: {'a' * 12})"
    }
    assert found.refused == {} and found.not_pooled == ""
    assert found.notes == ["pairs are left out whose two runs are of two versions: a, gated: seed 2"]
    rows = [Outcome("a", arm, seed, "val_loss", 1.0) for arm in ("none", "gated") for seed in range(3)]
    assert [bool(o.unpaired) for o in found.marked(rows)] == [False] * 5 + [True]


def test_an_unknown_version_beside_known_ones_is_one_of_its_own(judge):
    found = judge({("a", "none"): [OLD, OLD, OLD], ("a", "gated"): [OLD, OLD, SILENT]})
    assert list(found.unpaired) == [("a", "gated", 2)] and "gated: not recorded" in found.unpaired["a", "gated", 2]
    assert found.versions == {"a" * 12, "not recorded"}


def test_two_seeds_with_a_commit_and_three_without_are_not_averaged_silently(judge):
    by_seed = [OLD, OLD, SILENT, SILENT, SILENT]
    found = judge({("a", "none"): by_seed, ("a", "gated"): by_seed})
    assert (found.refused, found.unpaired, found.not_pooled) == ({}, {}, "")
    assert found.notes == [
        "pairs of 2 versions of the code are compared together in 1 of 1 comparisons"
        f" ({'a' * 12}; not recorded); the two runs of each pair are of one"
    ]


def test_a_comparison_without_a_pair_of_one_version_is_refused(judge):
    found = judge({("a", "none"): [OLD] * 3, ("a", "gated"): [NEW] * 3, ("a", "late"): [OLD] * 3})
    assert found.refused == {
        ("a", "gated"): f"refused: no pair of its runs is of one version (none: {'a' * 12}; gated: {'b' * 12});"
        " carry the older ones out again"
    }
    assert found.unpaired == {} and found.not_pooled == ""


def test_unequal_tokens_refuse_the_comparison(judge):
    found = judge({("a", "none"): [OLD] * 2, ("a", "long"): [OLD] * 2}, tokens={"long": 32})
    assert found.refused == {
        ("a", "long"): "refused: seed 0 sees 32 tokens with long and 16 with none; give both as many"
    }


def test_the_hash_of_the_code_tells_more_than_the_commit(judge):
    """One code at two commits is one version; two states of uncommitted changes are two."""
    same = judge({("a", "none"): [env("a", code="1" * 12)] * 2, ("a", "gated"): [env("b", code="1" * 12)] * 2})
    assert (same.refused, same.notes) == ({}, []) and len(same.versions) == 1
    changed = [env("a", code=word * 12, modified=True) for word in "12"]
    other = judge({("b", "none"): changed[:1] * 2, ("b", "gated"): changed[1:] * 2})
    assert "code 111111111111; gated: aaaaaaaaaaaa with changes, code 222222222222" in other.refused["b", "gated"]


def test_machines_without_a_checkout_are_told_apart_by_the_hash(judge):
    found = judge({("a", "none"): [env(code="1" * 12)] * 2, ("a", "gated"): [env(code="1" * 12), env(code="2" * 12)]})
    assert list(found.unpaired) == [("a", "gated", 1)] and found.versions == {"code 111111111111", "code 222222222222"}


def test_two_versions_of_torch_in_a_pair_are_left_out_and_across_pairs_listed(judge):
    newer = env("a", torch="2.12.0")
    found = judge({("a", "none"): [OLD, OLD, newer], ("a", "gated"): [OLD, newer, newer]})
    assert found.unpaired == {("a", "gated", 1): "seed 1 is of two versions of torch (none: 2.11.0; gated: 2.12.0)"}
    assert found.notes[1] == (
        "pairs of 2 versions of torch are compared together in 1 of 1 comparisons"
        f" ({'a' * 12} with torch 2.11.0; {'a' * 12} with torch 2.12.0); the two runs of each pair are of one"
    )


def test_cells_are_pooled_where_a_seed_is_of_one_version_in_all_of_them(judge):
    grown = [OLD, OLD, NEW]  # seeds that were added later
    found = judge({(c, arm): grown for c in "ab" for arm in ("none", "gated")})
    assert found.not_pooled == "" and "in 2 of 2 comparisons" in found.notes[0]
    apart = judge({(f"{c} {x[0]}", arm): [x[1]] * 2 for x in (("old", OLD), ("new", NEW)) for c in "ab"
                   for arm in ("none", "gated")})  # fmt: skip
    assert apart.not_pooled == "the cells were made by 2 versions of the code" and apart.notes == []


def test_cells_of_other_seeds_and_versions_are_not_pooled(judge):
    found = judge({("a", "none"): [OLD], ("a", "gated"): [OLD],
                   ("b", "none"): [None, NEW], ("b", "gated"): [OLD, NEW]})  # fmt: skip
    assert list(found.unpaired) == [("b", "gated", 0)]
    assert found.not_pooled == "the cells were made by 2 versions of the code"


def test_runs_that_have_not_ended_are_of_no_version(judge):
    found = judge({("a", "none"): [OLD] * 2, ("a", "gated"): [NEW] * 2}, state="running")
    assert (found.refused, found.unpaired, found.made, found.notes) == ({}, {}, frozenset(), [])


def test_a_note_names_a_few_comparisons_and_counts_the_rest(judge):
    cells = [f"c{i}" for i in range(8)]
    made = {(c, arm): [OLD, OLD if arm == "none" else NEW] for c in cells for arm in ("none", "gated")}
    (note,) = judge(made).notes
    assert note.endswith("c5, gated: seed 1; and 2 comparisons more")


def test_a_run_that_went_on_under_other_code_is_of_neither(judge):
    found = judge({("a", "none"): [env(code="c2")] * 3, ("a", "gated"): [env(code="c2"), BOTH, env(code="c2")]})
    assert list(found.unpaired) == [("a", "gated", 1)] and "code c1 then c2" in found.unpaired["a", "gated", 1]
    assert judge({("b", "none"): [BOTH] * 3, ("b", "gated"): [BOTH] * 3}).unpaired == {}


def on(device, dtype, **more):
    return env("a", **more) | {"device": device, "compute_dtype": dtype}


CPU, GPU, GPU32 = on("cpu", "float32"), on("NVIDIA H200", "bfloat16"), on("NVIDIA H200", "float32")


def test_a_pair_of_two_precisions_is_left_out_and_named(judge):
    found = judge({("a", "none"): [GPU] * 3, ("a", "gated"): [GPU, CPU, GPU]})
    assert found.unpaired == {
        ("a", "gated", 1): "seed 1 is of two precisions (none: bfloat16; gated: float32)"
    } and not found.refused  # fmt: skip
    assert found.notes == ["pairs are left out whose two runs are of two precisions: a, gated: seed 1"]


def test_a_comparison_of_two_precisions_is_refused(judge):
    found = judge({("a", "none"): [CPU] * 2, ("a", "gated"): [GPU] * 2, ("a", "late"): [CPU] * 2})
    assert found.refused == {
        (
            "a",
            "gated",
        ): "refused: no pair of its runs is of one precision (none: float32; gated: bfloat16); carry one side out"
        " again on machines like the other's, or state train.precision for both"
    }
    # That of the code comes first.
    other = judge({("b", "none"): [CPU] * 2, ("b", "gated"): [on("NVIDIA H200", "bfloat16", code="c2")] * 2})
    assert "is of one version (none: aaaaaaaaaaaa; gated:" in other.refused["b", "gated"]


def test_a_cpu_beside_a_gpu_of_one_precision_is_compared_and_noted(judge):
    found = judge({("a", "none"): [CPU] * 3, ("a", "gated"): [CPU, GPU32, GPU32]})
    assert (found.refused, found.unpaired, found.not_pooled) == ({}, {}, "")
    assert found.notes == [
        "a run on a CPU and one on a GPU, of one precision, are compared as pairs: a, gated: seeds 1, 2"
    ]
    h100 = on("NVIDIA H100", "bfloat16")
    assert judge({("b", "none"): [GPU] * 2, ("b", "gated"): [h100] * 2}).notes == []


def test_a_precision_that_is_not_recorded_refuses_nothing(judge):
    found = judge({("a", "none"): [GPU] * 2, ("a", "gated"): [env("a")] * 2})
    assert (found.refused, found.unpaired, found.not_pooled, found.notes) == ({}, {}, "", [])


def test_an_arm_that_states_its_precision_is_what_is_asked(judge, tmp_path):
    """Of the configuration, which leaves it to the machine in the other arms."""
    for seed in range(2):
        RunFolder(tmp_path / f"a-float-{seed}").create({"train": {"precision": "float32"}})
        RunFolder(tmp_path / f"a-gated-{seed}").create({"train": {"precision": "auto"}})
    found = judge({("a", "none"): [GPU] * 2, ("a", "float"): [GPU32] * 2, ("a", "gated"): [GPU32] * 2})
    assert list(found.refused) == [("a", "gated")]
    assert (found.unpaired, found.not_pooled, found.notes) == ({}, "", [])


def test_pairs_and_cells_of_other_precisions_are_told_and_not_pooled(judge):
    grown = [GPU, GPU, CPU]
    found = judge({(c, arm): grown for c in "ab" for arm in ("none", "gated")})
    assert (found.unpaired, found.not_pooled) == ({}, "")
    assert found.notes == [
        "pairs of 2 precisions are compared together in 2 of 2 comparisons"
        f" ({'a' * 12} in bfloat16; {'a' * 12} in float32); the two runs of each pair are of one"
    ]
    apart = judge({(c, arm): [x] * 2 for c, x in (("c", GPU), ("d", CPU)) for arm in ("none", "gated")})
    assert apart.not_pooled == "the cells were made by 2 precisions" and apart.refused == {}
