"""What a gate, and a rival of gates, can be made of: the list of everything, and one thing in detail."""

import re
from typing import Any

from ..config import (  # fmt: skip
    ACTIVATIONS,
    NORMALISERS,
    OUTPUT_MAPS,
    PRESETS,
    REFUSALS,
    SITES,
    SOURCES,
    Change,
    ConfigError,
    GateSpec,
    MoE,
    nearest,
    override,
)
from ..models.sizes import parameter_shapes
from .weights import PAPER_SHAPE, added_weights, changed, equation, gate_weights

Record = dict[str, Any]

# A gate that each refusal refuses.
_REFUSED = {
    "headwise out": "out-headwise",
    "shared out": "out-elementwise-shared",
    "shared headwise": "sdpa-headwise-shared",
    "source at site": "key-headwise-output",
    "static bias": "sdpa-headwise-static-bias",
    "static rank": "sdpa-elementwise-static-rank=8",
    "elementwise lse": "sdpa-elementwise-lse",
    "lse start": "sdpa-headwise-lse-init=0.5",
    "rank and mlp": "sdpa-elementwise-rank=8-mlp=8",
    "low-rank slice": "key-headwise-head_slice-rank=8",
    "init and around": "sdpa-headwise-init=1-around=1",
    "static around": "key-headwise-static-around=0.5",
    "forget elsewhere": "sdpa-headwise-forget",
    "forget activation": "scores-headwise-forget-silu",
    "static scores": "scores-headwise-static",
}
_WORDS = {
    ("granularity", "elementwise"): "one score a channel",
    ("granularity", "headwise"): "one score a head",
    ("sharing", "specific"): "each head has its own scores; the default",
    ("sharing", "shared"): "the scores are averaged over the heads, after the activation; the weights stay",
    ("form", "mul"): "the tensor times the scores; the default",
    ("form", "add"): "the tensor plus the scores",
    ("form", "forget"): "at the scores: Σ ln act(z) of the tokens after the key, up to the query, is added to a logit",
    (
        "word",
        "rank=<n>",
    ): "W_g is a product of two factors with n channels between them; n is a number or a share, as 1/16",
    ("word", "mlp=<n>"): "a hidden layer of n ReLU channels, with bias, before W_g",
    ("word", "bias"): "z has a bias",
    ("word", "init=<value>"): "the gate starts at this value, with zero weights",
    ("word", "around=<value>"): "the gate starts around this value, with random weights",
}
_GRAIN = ("elementwise", "headwise")


def gate_catalogue() -> dict[str, list[Record]]:
    """Everything a gate, and a rival of gates, can be made of: title -> records with the same keys, `kind` among them.

    Weights are those of the paper's shape, `PAPER_SHAPE`, counted by `models.sizes`.
    """
    return {
        "sites: the tensor that is gated, and whose token the gate belongs to": [
            {"name": name, "kind": "site", "paper": s.paper, "gates": s.tensor, "what": s.what, "token": s.side}
            | {g: gate_weights(GateSpec(site=name, granularity=g)) if g in s.granularities else "" for g in _GRAIN}
            for name, s in SITES.items()
        ],
        "words of a gate": [{"name": name, "kind": kind, "means": means} for (kind, name), means in _WORDS.items()],
        "activations": [
            {"name": name, "kind": "activation", "formula": a.formula, "range": a.range} for name, a in ACTIVATIONS.items()
        ],
        "sources: what z is a linear map of": [
            {"name": "first:<n>" if name == "first" else name, "kind": "source", "what": what, "sites": ", ".join(sites)}
            for name, (what, sites) in SOURCES.items()
        ],
        "output maps: model.output_map, without weights, before the gate": [
            {"name": name, "kind": "output-map", "formula": m.formula, "source": m.source} for name, m in OUTPUT_MAPS.items()
        ],
        "normalisers: model.softmax; x a row's logits, p their softmax": [
            {"name": name, "kind": "normaliser", "formula": n.formula, "weights": added_weights({"softmax": name}),
             "source": n.source}
            for name, n in NORMALISERS.items()
        ],
        "experts of keys and values: model.kv_experts (arXiv 2312.07987)": [
            {"name": "v-<n>top<m>", "kind": "kv-experts", "formula": "v_g = Σ over the m best of σ(x w_e) · x W_e",
             "adds": "(n − 1)·d·G·K + n·d·G"},
            {"name": "kv-<n>top<m>", "kind": "kv-experts", "formula": "keys in the same way, with scores of their own",
             "adds": "2·((n − 1)·d·G·K + n·d·G)"},
        ],
        "presets: model.preset, or model.gate where only one gate changes": [_preset_record(name) for name in PRESETS],
        "what cannot be": [
            {"name": name, "kind": "refusal", "example": _REFUSED[name], "because": refusal(_REFUSED[name])}
            for name in REFUSALS
        ],
    }  # fmt: skip


def gate_detail(name: str) -> list[Record]:
    """What a name or a slug stands for, one record a meaning: a preset, gates (joined by `+`), or an entry of the
    catalogue. `parameters` are those of the first layer, with their shapes, that a model without it does not have.

    Raises:
        ConfigError: for a gate that cannot be, with its sentence; for a name that is nothing, with the nearest.
    """
    entries = [r for records in gate_catalogue().values() for r in records]
    found = [r for r in entries if r["name"] == name and r["kind"] != "preset"]
    if name in PRESETS:
        return [*found, _preset_record(name) | {"parameters": _parameters({"preset": name})}]
    if found:
        return found
    if re.fullmatch(r"k?v-\d+top\d+", name):
        change: Change = {"kv_experts": name}
        return [
            {"name": name, "kind": "kv-experts", "weights": added_weights(change), "parameters": _parameters(change)}
        ]
    if name.partition("-")[0] not in SITES:
        slugs = [f"{site}-{grain}" for site, s in SITES.items() for grain in s.granularities]
        like = [preset for preset in PRESETS if name in preset]
        hint = nearest(name.lower(), [r["name"] for r in entries] + slugs)
        hint = f"; presets with it in their name: {', '.join(like)}" if like else hint
        raise ConfigError(
            [f"{name!r}: neither a preset, nor a gate such as sdpa-headwise, nor a word of `gatelab gates`{hint}"]
        )
    change = {"gate": name}
    gates = override(PAPER_SHAPE, change).gate
    slug = "+".join(g.slug for g in gates)
    return [
        {
            "name": slug,
            "kind": "gate",
            "formula": "; ".join(equation(g) for g in gates),
            "token": ", ".join(SITES[g.site].side for g in gates),
            "adds": " + ".join(gate_weights(g) for g in gates),
            "weights": added_weights(change),
            "presets": ", ".join(n for n, p in PRESETS.items() if p.of(PAPER_SHAPE) == {"gate": slug}),
            "parameters": _parameters(change),
        }
    ]


def refusal(slug: str) -> str:
    """Why a gate cannot be; an empty string when it can."""
    try:
        GateSpec.parse(slug)
    except ValueError as error:
        return str(error).partition("is impossible: ")[2] or str(error)
    return ""


def _preset_record(name: str) -> Record:
    preset = PRESETS[name]
    changes = preset.of(PAPER_SHAPE)
    adds = preset.adds or ("0" if changes["gate"] == "none" else gate_weights(GateSpec.parse(changes["gate"])))
    return {
        "name": name,
        "kind": "preset",
        "formula": preset.formula,
        "adds": adds,
        "weights": added_weights({"preset": name}),
        "printed_millions": preset.printed,
        "results": preset.results,
        "source": preset.source,
        "changes": _shown(changes),
        "note": preset.note,
    }


def _parameters(change: Change) -> dict[str, tuple[int, ...]]:
    """Name and shape of what the first layer has, and the base has not or has in another shape."""
    base, prefix = parameter_shapes(PAPER_SHAPE), "blocks.0."
    own = {n: s for n, s in parameter_shapes(changed(change)).items() if n.startswith(prefix) and base.get(n) != s}
    return {n.removeprefix(prefix): s for n, s in own.items()}


def _shown(changes: Change) -> str:
    """As the words of a command line: model.gate=…"""
    words = {}
    for key, value in changes.items():
        if isinstance(value, MoE):
            before = PAPER_SHAPE.moe.model_dump()
            words |= {f"{key}.{k}": v for k, v in value.model_dump().items() if v != before[k]}
        else:
            words[key] = value["kind"] if isinstance(value, dict) else value
    return " ".join(f"model.{key}={value}" for key, value in words.items())
