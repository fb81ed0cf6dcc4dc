"""Presets: every name is a model that can be built, and what it says of itself is what it changes."""

import re

import pytest

from gatelab.config import PRESETS, ConfigError, GateSpec, ModelConfig, Run, canonical, fingerprint, override

BASE = ModelConfig(
    d_model=48, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=12, moe={"n_experts": 4, "top_k": 2, "d_expert": 16}
)

ONE_GATE = [
    name
    for name, p in PRESETS.items()
    if not callable(p.changes) and set(p.changes) == {"gate"} and "+" not in p.changes["gate"] and name != "paper/base"
]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_changes_the_fields_that_it_names_and_no_other(name: str):
    changed = override(BASE, {"preset": name})
    fields = {field for field in ModelConfig.model_fields if getattr(changed, field) != getattr(BASE, field)}
    assert fields <= set(PRESETS[name].of(BASE))
    assert changed != BASE or name == "paper/base"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_formula_and_a_source_and_each_number_its_place(name: str):
    preset = PRESETS[name]
    assert preset.formula and preset.source
    if name.startswith("paper/") and preset.results.startswith("PPL"):
        assert re.search(r"Table \d", preset.source)


def test_the_paper_has_its_whole_list():
    """arXiv 2505.06708: fifteen rows of Table 1, three of Table 3, two of Table 4 alone, five of Table 6."""
    sources = [p.source for name, p in PRESETS.items() if name.startswith("paper/")]
    assert {row for s in sources for row in re.findall(r"Table 1 row (\d+)", s)} == {str(n) for n in range(1, 16)}
    assert sum(s.endswith("Table 3") for s in sources) == 3
    assert sum("Table 4" in s for s in sources) == 2
    assert sum(s.endswith("Table 6") for s in sources) == 5


@pytest.mark.parametrize("name", ONE_GATE)
def test_one_gate_alone_may_stand_in_the_place_of_a_gate(name: str):
    slug = PRESETS[name].changes["gate"]
    assert GateSpec.parse(name) == GateSpec.parse(slug)
    assert GateSpec.parse(slug).slug == slug, "a preset states its gate as the gate prints itself"
    assert override(BASE, {"gate": name}) == override(BASE, {"preset": name})


@pytest.mark.parametrize("name", ["marin/two-sigmoid", "gpt-oss", "paper/q48", "fla/forgetting-gated"])
def test_what_changes_more_than_one_gate_says_how_to_use_it(name: str):
    with pytest.raises(ValueError, match=f"use it as model.preset={name}"):
        GateSpec.parse(name)


def test_half_as_many_heads_again_keep_their_width_and_their_groups():
    assert PRESETS["paper/q48"].of(BASE) == {"n_heads": 6, "n_kv_heads": 2, "head_dim": 12}
    paper = ModelConfig(d_model=2048, n_heads=32, n_kv_heads=4, head_dim=128)
    assert override(paper, {"preset": "paper/q48"}).n_heads == 48
    assert override(paper, {"preset": "paper/kv8"}).n_kv_heads == 8


def test_heads_of_their_own_keys_stay_so_with_half_as_many_again():
    plain = ModelConfig(d_model=48, n_heads=4)
    assert override(plain, {"preset": "paper/q48"}).model_dump(include={"n_heads", "n_kv_heads", "head_dim"}) == {
        "n_heads": 6, "n_kv_heads": None, "head_dim": 12,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name, model, says",
    [
        ("paper/kv8", ModelConfig(), "cannot be; state fewer in the base"),
        ("paper/more-experts", ModelConfig(), "this model has none; state moe"),
        ("vga/output", ModelConfig(arch="encoder-decoder"), "state another cross_gate"),
        ("forgetting-transformer", ModelConfig(arch="encoder"), "not causal"),
        ("bondarenko/linear", ModelConfig(d_model=50, n_heads=4, head_dim=12), "does not divide into 4 slices"),
    ],
)
def test_a_preset_that_a_model_cannot_have_is_refused_in_one_sentence(name: str, model: ModelConfig, says: str):
    with pytest.raises(ConfigError) as caught:
        override(model, {"preset": name})
    (problem,) = caught.value.problems
    assert says in problem


@pytest.mark.parametrize("name", ["qwen3-next", "marin/truncated", "paper/kv8", "gpt-oss", "paper/switch-v-8top2"])
def test_a_preset_is_stored_written_out_so_its_name_does_not_change_the_fingerprint(name: str):
    run = Run(model=BASE)
    by_name = override(run, {"model.preset": name})
    spelled = override(run, {f"model.{field}": value for field, value in PRESETS[name].of(BASE).items()})
    assert by_name == spelled and fingerprint(by_name, "") == fingerprint(spelled, "")
    assert "preset" not in canonical(by_name)["model"]


def test_what_changes_no_gate_does_not_claim_to():
    for name in ("gpt-oss", "xsa", "paper/clip-300"):
        with pytest.raises(ValueError, match=f"{name!r} changes no gate: use it as model.preset={name}"):
            GateSpec.parse(name)
