"""docs/gates.md says what the tables say: every entry is there, every number of weights is counted, every identity holds."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gatelab import catalogue
from gatelab.config import PRESETS, REFUSALS, GateSpec, SinkLogit
from gatelab.nn.attention import GatedAttention

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "gates.md"
TEXT = PAGE.read_text(encoding="utf-8")
RECORDS = [r for records in catalogue.gate_catalogue().values() for r in records]

B, T, D, H, G, K = 2, 5, 12, 4, 2, 6


def of(kind: str) -> list[dict[str, Any]]:
    return [r for r in RECORDS if r["kind"] == kind]


def millions(n: int) -> str:
    """As the page writes a number of weights: 201.3M, 1.57M, 0.197M, 768."""
    if n < 10_000:
        return f"{n:,}"
    return f"{n / 1e6:.{1 if n >= 10_000_000 else 2 if n >= 1_000_000 else 3}f}M"


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def code(text: str) -> str:
    return f"`{text}`"


def table(*rows: tuple[object, ...]) -> str:
    """Rows of Markdown, the first of them the head."""
    head, *body = rows
    return "\n".join([row(*head), row(*("---" for _ in head)), *(row(*r) for r in body)])


def tables() -> dict[str, str]:
    """What the page has to say of each table, as it says it."""
    paper = [r for r in of("preset") if r["name"].startswith("paper/")]
    others = [r for r in of("preset") if r not in paper]

    def weights(r: dict[str, Any]) -> str:
        return millions(r["weights"])

    def printed(r: dict[str, Any]) -> str:
        return "" if r["printed_millions"] is None else f"{r['printed_millions']:g}"

    return {
        "sites": table(
            ("site", "paper", "gates", "what", "token", "elementwise", "headwise"),
            *((code(r["name"]), *list(r.values())[2:]) for r in of("site")),
        ),
        "words": table(
            ("word", "axis", "means"),
            *((code(r["name"]), r["kind"], r["means"]) for k in ("granularity", "sharing", "form", "word") for r in of(k)),
        ),
        "activations": table(
            ("activation", "act(z)", "range"), *((code(r["name"]), r["formula"], r["range"]) for r in of("activation"))
        ),
        "sources": table(
            ("source", "z is a linear map of", "sites"),
            *((code(r["name"]), r["what"], r["sites"]) for r in of("source")),
        ),
        "paper": table(
            ("preset", "changes", "becomes", "adds a layer", "of 24 layers", "printed, M", "where"),
            *(
                (code(r["name"]), code(r["changes"]), r["formula"], r["adds"], weights(r), printed(r),
                 r["source"].removeprefix("arXiv 2505.06708, "))
                for r in paper
            ),
        ),
        "notes": table(
            ("preset", "what is uncertain or differs"), *((code(r["name"]), r["note"]) for r in paper if r["note"])
        ),
        "others": table(
            ("preset", "changes", "becomes", "adds a layer", "of 24 layers", "source"),
            *((code(r["name"]), code(r["changes"]), r["formula"], r["adds"], weights(r), r["source"]) for r in others),
        ),
        "known": table(
            ("preset", "printed by its authors", "what is uncertain or differs"),
            *((code(r["name"]), r["results"], r["note"]) for r in others if r["results"] or r["note"]),
        ),
        "normalisers": table(
            ("normaliser", "weight of a key", "of 24 layers", "source"),
            *((code(r["name"]), r["formula"], weights(r), r["source"]) for r in of("normaliser")),
        ),
        "maps": table(
            ("output map", "y becomes", "source"),
            *((code(r["name"]), r["formula"], r["source"]) for r in of("output-map")),
        ),
        "experts": table(
            ("experts", "what", "adds a layer"),
            *((code(r["name"]), r["formula"], r["adds"]) for r in of("kv-experts")),
        ),
        "refusals": table(
            ("what", "for example", "because"),
            *((r["name"], code(r["example"]), r["because"]) for r in of("refusal")),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", tables())
def test_the_page_has_every_row_of_the_table(name: str):
    missing = [line for line in tables()[name].splitlines() if line not in TEXT.splitlines()]
    assert not missing, "docs/gates.md lacks:\n" + "\n".join(missing)


def test_the_page_has_no_row_of_something_that_is_gone():
    names = {r["name"] for r in RECORDS} | {r["example"] for r in of("refusal")}
    shown = re.findall(r"^\| `([^`]+)` \|", TEXT, flags=re.MULTILINE)
    assert set(shown) <= names


def test_every_number_of_weights_on_the_page_is_counted_or_printed():
    counted = {millions(r["weights"]) for r in RECORDS if "weights" in r}
    printed = {f"{p.printed:g}M" for p in PRESETS.values() if p.printed}
    found = re.findall(r"\b\d+(?:\.\d+)?M\b", TEXT)
    scale = {"125M", "60M", "0.6M"}  # sizes of models
    assert found and set(found) <= counted | printed | scale


def test_the_printed_results_are_those_of_the_presets():
    """Table by table on the page; a result in the table of presets is the same number."""
    results = dict(
        re.findall(r"^\| `(paper/[\w-]+)` \|(?: [^|]* \|)* (\d\.\d{3}) \| \d\d\.\d\d \|", TEXT, flags=re.MULTILINE)
    )
    printed = {n: re.match(r"PPL (\d\.\d{3})", p.results) for n, p in PRESETS.items() if n.startswith("paper/")}
    printed = {name: found[1] for name, found in printed.items() if found}
    assert results == printed


def test_every_gate_on_the_page_is_one_unless_it_is_shown_as_impossible():
    refused = {r["example"] for r in of("refusal")}
    sites = "|".join(r["name"] for r in of("site"))
    slugs = set(re.findall(rf"`(?:model\.gate=)?((?:{sites})-[a-z][^` ]*)`", TEXT))
    assert len(slugs) > 20
    for slug in slugs - refused - {r["name"] for r in RECORDS}:
        for part in slug.split("+"):
            assert GateSpec.parse(part).slug == part, slug


def test_every_refusal_is_told_with_its_example():
    assert [r["name"] for r in of("refusal")] == list(REFUSALS)
    for record in of("refusal"):
        with pytest.raises(ValueError, match="impossible"):
            GateSpec.parse(record["example"])


def test_what_the_page_links_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("http") or (PAGE.parent / target).exists(), target
    for path in re.findall(r"`((?:tests|gatelab|docs)/[\w/.]+)`", TEXT):
        assert (ROOT / path).exists(), path


def test_the_picture_names_every_site_and_is_text():
    picture = (ROOT / "docs" / "gates.svg").read_text(encoding="utf-8")
    assert all(f">{r['name']}" in picture for r in of("site"))
    assert "prefers-color-scheme: dark" in picture and "<title" in picture and "<desc" in picture


def layer(gate: str | None, n_kv_heads: int = G, **options: Any) -> GatedAttention:
    torch.manual_seed(3)
    made = GatedAttention(d_model=D, n_heads=H, n_kv_heads=n_kv_heads, head_dim=K, gate=gate, qk_norm=True, **options)
    for name, parameter in made.named_parameters():
        torch.manual_seed(len(name) + sum(map(ord, name)))
        torch.nn.init.normal_(parameter, std=0.5)
    return made.double()


def hidden() -> Tensor:
    torch.manual_seed(4)
    return torch.randn(B, T, D, dtype=torch.float64)


def open_from_zero() -> tuple[Tensor, Tensor]:
    plain = layer(None)
    gated = layer("sdpa-elementwise-two_sigmoid-init=1")
    gated.load_state_dict(plain.state_dict(), strict=False)
    gated.gates["sdpa"].start()
    assert torch.equal(gated(hidden()), plain(hidden()))
    return gated.float()(hidden().float()), plain.float()(hidden().float())


def tied_rows() -> tuple[Tensor, Tensor]:
    headwise, elementwise = layer("sdpa-headwise"), layer("sdpa-elementwise")
    weights = headwise.state_dict()
    weights["gates.sdpa.g_proj.weight"] = weights["gates.sdpa.g_proj.weight"].repeat_interleave(K, dim=0)
    elementwise.load_state_dict(weights)
    return elementwise(hidden()), headwise(hidden())


def bias_alone() -> tuple[Tensor, Tensor]:
    static, biased = layer("sdpa-elementwise-static"), layer("sdpa-elementwise-bias")
    weights = static.state_dict()
    constant_HK = weights.pop("gates.sdpa.constant_HK")
    zeros = torch.zeros(H * K, D, dtype=torch.float64)
    biased.load_state_dict(
        weights | {"gates.sdpa.g_proj.weight": zeros, "gates.sdpa.g_proj.bias": constant_HK.flatten()}
    )
    return static(hidden()), biased(hidden())


def linear_skip() -> tuple[Tensor, Tensor]:
    plain, added = layer(None), layer("sdpa-elementwise-identity-add")
    added.load_state_dict(plain.state_dict(), strict=False)
    skip = added.o_proj.weight @ added.gates["sdpa"].g_proj.weight
    return added(hidden()), plain(hidden()) + hidden() @ skip.T


def sink_logit() -> tuple[Tensor, Tensor]:
    sink, gated = layer(None, softmax=SinkLogit()), layer("sdpa-headwise-lse")
    weights = sink.state_dict()
    logit_H = weights.pop("sink.sink_logit_H")
    gated.load_state_dict(weights | {"gates.sdpa.constant_HK": -logit_H[:, None]})
    return sink(hidden()), gated(hidden())


def one_expert() -> tuple[Tensor, Tensor]:
    routed, gated = layer(None, kv_experts="v-1top1"), layer("value-headwise")
    weights = routed.state_dict()
    router, maps = weights.pop("v_proj.router.weight"), weights.pop("v_proj.proj.weight")
    gated.load_state_dict(weights | {"gates.value.g_proj.weight": router, "v_proj.weight": maps})
    return routed(hidden()), gated(hidden())


def scaled_scores() -> tuple[Tensor, Tensor]:
    scores, values = layer("scores-headwise", n_kv_heads=H), layer("value-headwise", n_kv_heads=H)
    values.load_state_dict({n.replace("gates.scores", "gates.value"): w for n, w in scores.state_dict().items()})
    return scores(hidden()), values(hidden())


IDENTITIES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "2σ from zero weights is no gate, bit for bit": open_from_zero,
    "headwise is elementwise with the rows of a head tied": tied_rows,
    "static is elementwise with zero weights and a bias": bias_alone,
    "additive identity at G1 is a linear map of x that joins before W_O": linear_skip,
    "a sink logit is a headwise gate σ(lse − s)": sink_logit,
    "one expert of values is a headwise gate at G2": one_expert,
    "scaling scores is gating values where H = G": scaled_scores,
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_the_identity_holds_and_its_sides_depend_on_the_input(name: str):
    assert f"| {name} |" in TEXT
    one, other = IDENTITIES[name]()
    assert one.std() > 0.01
    if name.endswith("bit for bit"):
        assert torch.equal(one, other)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_scaling_scores_is_more_than_gating_values_where_heads_share_them():
    """A score gate has a score for each query head, so it can differ within the group that shares a value."""
    scores, values = layer("scores-headwise"), layer("value-headwise")
    assert scores.gates["scores"].shape.heads == H and values.gates["value"].shape.heads == G
