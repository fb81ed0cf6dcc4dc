"""The catalogue of gates: nothing is left out, and each formula of weights counts what a model has."""

import json
import subprocess
import sys
from math import prod

import pytest

from gatelab import catalogue
from gatelab.config import (
    ACTIVATIONS,
    NORMALISERS,
    OUTPUT_MAPS,
    PRESETS,
    REFUSALS,
    SITES,
    SOURCES,
    ConfigError,
    GateSpec,
    ModelConfig,
    override,
)
from gatelab.models.sizes import count_parameters, gate_parameters

KINDS = {
    "site": SITES,
    "activation": ACTIVATIONS,
    "output-map": OUTPUT_MAPS,
    "normaliser": NORMALISERS,
    "preset": PRESETS,
    "refusal": REFUSALS,
}
ENTRIES = [record for records in catalogue.gate_catalogue().values() for record in records]
# Two shapes whose widths have no factor in common by chance: a formula with a letter too many misses one of them.
SHAPES = [
    {"d_model": 80, "n_layers": 3, "n_heads": 10, "n_kv_heads": 5, "head_dim": 14},
    {"d_model": 192, "n_layers": 2, "n_heads": 6, "n_kv_heads": 2, "head_dim": 44},
]
SLUGS = [
    *(f"{site}-{grain}{words}" for site, s in SITES.items() for grain in s.granularities for words in ("", "-bias")),
    "sdpa-elementwise-static", "value-headwise-static", "out-elementwise-static", "sdpa-headwise-lse",
    "sdpa-headwise-value", "value-elementwise-value-bias", "sdpa-elementwise-output-rank=3", "sdpa-headwise-hybrid",
    "sdpa-elementwise-hybrid-mlp=5-bias", "sdpa-elementwise-mlp=1/4", "query-elementwise-rank=3-bias",
    "sdpa-headwise-first:12", "key-elementwise-first:1/16-bias", "out-elementwise-first:3/8", "sdpa-headwise-head_slice",
    "sdpa-headwise-head_slice-mlp=1/2-bias", "sdpa-elementwise-head_slice-mlp=3", "sdpa-elementwise-head_slice-bias",
    "query-headwise-head_slice-mlp=1/4", "sdpa-elementwise-hybrid-rank=1/4",
]  # fmt: skip


def value_of(formula: str, c: ModelConfig) -> float:
    """A formula of weights a layer, in the letters of the documents."""
    letters = {"d": c.d_model, "H": c.n_heads, "G": c.n_kv_heads, "K": c.head_dim, "F": 24}
    return eval(formula.replace("·", "*"), {"__builtins__": {}}, letters)


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_of_every_table_is_listed_once(kind: str):
    assert [r["name"] for r in ENTRIES if r["kind"] == kind] == list(KINDS[kind])


def test_every_source_is_listed_and_every_record_has_a_kind():
    assert [r["name"].partition(":")[0] for r in ENTRIES if r["kind"] == "source"] == list(SOURCES)
    assert all(r["kind"] for r in ENTRIES)
    assert {r["kind"] for r in ENTRIES} >= {*KINDS, "source", "granularity", "sharing", "form", "kv-experts"}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slug", SLUGS)
def test_the_formula_of_a_gate_counts_its_weights(slug: str, shape: dict):
    model = ModelConfig(gate=slug, **shape).resolved(32, 8)
    assert value_of(catalogue.gate_weights(GateSpec.parse(slug)), model) * model.n_layers == gate_parameters(model)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PRESETS)
def test_the_formula_of_a_preset_counts_what_it_adds(name: str, shape: dict):
    base = ModelConfig(moe={"n_experts": 3, "top_k": 2, "d_expert": 24}, **shape)
    # The controls of heads need heads that can be doubled, and that can be half as many again.
    heads = {"paper/kv8": (12, 3), "paper/q48": (4, 2)}.get(name, (base.n_heads, base.n_kv_heads))
    base = base.model_copy(update={"n_heads": heads[0], "n_kv_heads": heads[1]})
    (record,) = [r for r in ENTRIES if r["kind"] == "preset" and r["name"] == name]
    plain, changed = (c.resolved(32, 8) for c in (base, override(base, {"preset": name})))
    final_norm = 32 * base.d_model if name == "gated-norm" else 0
    added = count_parameters(changed) - count_parameters(plain)
    assert value_of(record["adds"], plain) * base.n_layers + final_norm == added


def test_the_paper_printed_these_weights_except_where_the_page_says_so():
    loose = {"paper/more-experts", *(name for name in PRESETS if name.startswith("paper/switch-"))}
    printed = {r["name"]: r for r in ENTRIES if r["kind"] == "preset" and r["printed_millions"] is not None}
    assert len(printed) == 20
    for name, record in printed.items():
        millions = record["weights"] / 1e6
        # Two digits are printed of the small ones, and 100 of 100.66 was cut, not rounded.
        agrees = abs(millions - record["printed_millions"]) < max(0.05, 0.01 * millions)
        assert agrees == (name not in loose), name


def test_the_numbers_of_the_paper_come_out():
    weights = {r["name"]: r["weights"] for r in ENTRIES if r["kind"] == "preset"}
    assert weights["paper/g1-elementwise"] == 24 * 2048 * 32 * 128
    assert weights["paper/g2-headwise"] == 24 * 2048 * 4
    assert weights["paper/g5"] == 24 * 2048 * 2048
    assert weights["paper/kv8"] == 2 * 24 * 2048 * 4 * 128
    assert weights["paper/g1-input-independent"] == 24 * 32 * 128


def test_every_example_of_what_cannot_be_is_refused_by_its_own_sentence():
    for record in (r for r in ENTRIES if r["kind"] == "refusal"):
        own = REFUSALS[record["name"]][1].partition("{")[0]
        assert record["because"].startswith(own) and record["because"], record
        with pytest.raises(ValueError, match="impossible"):
            GateSpec.parse(record["example"])


def test_a_gate_in_detail_says_its_equation_and_the_shapes_in_a_layer():
    (record,) = catalogue.gate_detail("value-elementwise-silu-add-rank=8")
    assert record["formula"] == "v + (z σ(z)), z = x W_down W_g"
    assert record["token"] == "key"
    assert record["parameters"] == {
        "attention.gates.value.g_down.weight": (8, 2048),
        "attention.gates.value.g_proj.weight": (512, 8),
    }
    assert record["weights"] == 24 * sum(prod(s) for s in record["parameters"].values())


def test_two_gates_in_detail_add_up():
    (record,) = catalogue.gate_detail("sdpa-headwise+value-headwise")
    assert record["weights"] == sum(catalogue.added_weights({"gate": f"{s}-headwise"}) for s in ("sdpa", "value"))


def test_a_preset_in_detail_says_what_it_changes_in_words_that_make_it():
    (record,) = catalogue.gate_detail("paper/more-experts")
    assert record["changes"] == "model.moe.n_experts=132 model.moe.top_k=12"
    (record,) = catalogue.gate_detail("marin/truncated")
    assert record["changes"] == "model.gate=sdpa-headwise-two_sigmoid-first:1/16-init=1 model.output_map=xsa"


def test_a_word_with_two_meanings_has_two_records():
    assert [r["kind"] for r in catalogue.gate_detail("sigmoid")] == ["activation", "normaliser"]


@pytest.mark.parametrize(
    "name, says",
    [
        ("out-headwise", "use out-elementwise"),
        ("spda-headwise", "did you mean 'sdpa-headwise'?"),
        ("qwen3-nxt", "did you mean 'qwen3-next'?"),
        ("sdpa", ""),
        ("sdpa-headwise+sdpa-elementwise", "two gates at site 'sdpa'"),
        ("v-2top8", "take 2 at most"),
        ("", "neither a preset"),
    ],
)
def test_what_is_nothing_is_answered_with_what_is_near(name: str, says: str):
    if not says:
        assert catalogue.gate_detail(name)[0]["kind"] == "site"
        return
    with pytest.raises(ConfigError) as caught:
        catalogue.gate_detail(name)
    assert says in str(caught.value) and len(caught.value.problems) == 1


def test_the_catalogue_is_made_without_torch_and_is_json():
    code = (
        "import sys, json; from gatelab import catalogue; "
        "print(json.dumps(catalogue.gate_catalogue())); catalogue.gate_detail('qwen3-next'); "
        "print([m for m in ('torch', 'scipy', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    records, heavy = done.stdout.splitlines()
    assert sum(len(section) for section in json.loads(records).values()) == len(ENTRIES)
    assert heavy == "[]"


def test_the_command_shows_one_in_detail_and_all_as_records(capsys):
    from gatelab.cli.gates import gates

    assert gates("qwen3-next") == 0
    shown = capsys.readouterr().out
    assert "4096 × 2048" in shown and "201,326,592" in shown and "model.gate=sdpa-elementwise" in shown
    assert gates("paper/kv8", json_=True) == 0
    (record,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert record["kind"] == "preset" and record["parameters"]["attention.k_proj.weight"] == [1024, 2048]
    assert gates(json_=True) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(ENTRIES)


def test_the_list_shows_every_name_and_every_number_of_weights(capsys):
    from gatelab.cli.base import short_count
    from gatelab.cli.gates import gates

    assert gates() == 0
    shown = capsys.readouterr().out
    for record in ENTRIES:
        assert record["name"] in shown
        if "weights" in record:
            assert f"{record['weights']:,}" in shown or short_count(record["weights"]) in shown
