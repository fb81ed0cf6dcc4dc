"""What there is: gates and what they are made of, probes; and what this machine can do. Lists of plain records.

Notable: the number of weights beside a gate is counted on a model of the paper's shape, never written down.
"""

import os
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .config import (
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
    ModelConfig,
    MoE,
    nearest,
    override,
)  # fmt: skip
from .models.sizes import count_parameters, parameter_shapes

Record = dict[str, Any]

# The mixture of experts of arXiv 2505.06708, on which weights are counted; its vocabulary is not printed and adds nothing.
PAPER_SHAPE = ModelConfig(
    d_model=2048, n_layers=24, n_heads=32, n_kv_heads=4, head_dim=128, qk_norm="rms",
    moe=MoE(n_experts=128, top_k=8, d_expert=768), vocab_size=151_936, max_seq_len=4096,
).resolved(151_936, 4096)  # fmt: skip

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
        hint = nearest(name, [r["name"] for r in entries] + slugs)
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


def added_weights(change: Change) -> int:
    """Weights that a change of the model (`gate`, `preset`, …) adds to a model of the paper's shape."""
    return count_parameters(_changed(change)) - count_parameters(PAPER_SHAPE)


def refusal(slug: str) -> str:
    """Why a gate cannot be; an empty string when it can."""
    try:
        GateSpec.parse(slug)
    except ValueError as error:
        return str(error).partition("is impossible: ")[2] or str(error)
    return ""


def gate_weights(spec: GateSpec) -> str:
    """The formula of a gate's weights in a layer: d = d_model, H heads, G key/value heads, K = head_dim."""
    site = SITES[spec.site]
    width = {"K": "K", "D": "d"}[site.width] if spec.granularity == "elementwise" else "1"
    out = "·".join(n for n in (site.heads, width) if n != "1") or "1"
    if not spec.has_projection:
        return out
    kind, inner = spec.source_kind, spec.mlp if spec.rank is None else spec.rank
    bias = f" + {out}" if spec.bias else ""
    if kind == "head_slice":
        # Each head's d/heads channels, so d in all.
        if inner is None:
            return f"{_times('d', width)}{bias}"
        m = _share(inner, f"d/{site.heads}")
        rest = f"2·{site.heads}" if width == "1" else f"{site.heads} + {site.heads}·{width}"
        return f"{m}·(d + {rest}){bias}"
    wide = {"value": "G·K", "output": "H·K", "hybrid": "(d + H·K)", "first": _share(spec.source.partition(":")[2], "d")}
    d_in = wide.get(kind, "d")
    if inner is None:
        return f"{_times(d_in, out)}{bias}"
    m = _share(inner, d_in)
    return f"{m}·({d_in} + {out})" + (f" + {m}" if spec.mlp is not None else "") + bias


def equation(spec: GateSpec) -> str:
    """The gate in one line: what becomes of the tensor, and what z is."""
    tensor, act = SITES[spec.site].tensor, ACTIVATIONS[spec.activation].formula
    each = {"H": "_h", "G": "_g", "1": ""}[SITES[spec.site].heads] if spec.granularity == "headwise" else ""
    score = f"mean over heads of {act}" if spec.sharing == "shared" else act
    score = f"({score})" if " " in score else score
    if spec.form == "forget":
        return f"P = softmax(logits + Σ ln {score} over the tokens after the key), z = {_logits(spec)}"
    sign = {"mul": "·" if each else "⊙", "add": "+"}[spec.form]
    return f"{tensor}{each} {sign} {score}, z = {_logits(spec)}"


_GRAIN = ("elementwise", "headwise")


def _logits(spec: GateSpec) -> str:
    if not spec.has_projection:
        return "θ" if spec.source == "static" else "lse + θ"
    first = f"x[:{_share(spec.source.partition(':')[2], 'd')}]"
    read = {"value": "V", "output": "y", "hybrid": "[x, y]", "head_slice": "x_h", "first": first}.get(
        spec.source_kind, "x"
    )
    if spec.rank is not None:
        read = f"{read} W_down"
    if spec.mlp is not None:
        read = f"relu({read} W_down + b_down)"
    return f"{read} W_g" + (" + b" if spec.bias else "")


def _times(left: str, right: str) -> str:
    return left if right == "1" else right if left == "1" else f"{left}·{right}"


def _share(channels: int | str, of: str) -> str:
    """A number, or a share of `of` channels, as it stands in a formula."""
    above, slash, below = str(channels).partition("/")
    return f"{'' if above == '1' else above + '·'}{of}/{below}" if slash else above


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


def _changed(change: Change) -> ModelConfig:
    return override(PAPER_SHAPE, change).resolved(0, 0)


def _parameters(change: Change) -> dict[str, tuple[int, ...]]:
    """Name and shape of what the first layer has, and the base has not or has in another shape."""
    base, prefix = parameter_shapes(PAPER_SHAPE), "blocks.0."
    own = {n: s for n, s in parameter_shapes(_changed(change)).items() if n.startswith(prefix) and base.get(n) != s}
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


def size_records(name: str | None = None, change: Change | None = None) -> list[Record]:
    """One record a size of the ladder; or of one size alone, and when it is changed of the changed one, and of that with
    the d_ff that brings its weights nearest to the size's, where there is one and the change says nothing of widths.

    Operations are of training, a source token of max_seq_len of them; activations and logits what a sequence of these
    keeps in bfloat16, estimates (`train.cost.training_bytes`). Paths of a change are those of a model, `model.` or not.

    Raises:
        ConfigError: no such size, with the nearest; every mistake of the change.
    """
    from .models.ladder import SIZES
    from .models.sizes import match_parameters

    if name is None:
        return [_size_record(size, SIZES[size].model) for size in SIZES]
    if name not in SIZES:
        raise ConfigError([f"no size {name!r}: expected one of {', '.join(SIZES)}{nearest(name, list(SIZES))}"])
    base = SIZES[name].model
    records = [_size_record(name, base)]
    if not change:
        return records
    change = {path.removeprefix("model."): value for path, value in change.items()}
    # A mixture's d_ff is resolved to the width of an expert, which the change may be about.
    given = base.model_copy(update={"d_ff": None}) if base.moe is not None or "moe" in change else base
    changed = override(given, change).resolved(base.vocab_size, base.max_seq_len)
    words = (f"{path}={'null' if value is None else value}" for path, value in change.items())
    word = " ".join([name, *words])
    records.append(_size_record(word, changed, base))
    about = {path.partition(".")[0] for path in change}
    if records[-1]["over"] and not about & {"d_ff", "moe", "d_model", "n_layers", "n_encoder_layers"}:
        try:
            match = match_parameters(base, changed)
        except ValueError:  # no width is narrow enough
            return records
        records.append(_size_record(f"{word}, d_ff matched", match.config, base))
    return records


def _size_record(word: str, model: ModelConfig, base: ModelConfig | None = None) -> Record:
    from .models.ladder import PRINTED, SIZES
    from .models.sizes import count_active
    from .train.cost import model_flops_per_token, training_bytes

    n, size, printed = count_parameters(model), SIZES.get(word), PRINTED.get(word)
    memory = training_bytes(model, 1, model.max_seq_len)
    return {
        "name": word,
        "arch": model.arch,
        "n_layers": model.n_layers,
        "n_encoder_layers": model.depth(model.architecture.stacks[0]) if len(model.architecture.stacks) > 1 else None,
        "d_model": model.d_model,
        "n_heads": model.n_heads,
        "n_kv_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "d_ff": model.d_ff,
        "vocab_size": model.vocab_size,
        "seq_len": model.max_seq_len,
        "n_parameters": n,
        "n_active": count_active(model),
        "over": None if base is None else n - count_parameters(base),
        "flops_per_token": model_flops_per_token(model, model.max_seq_len),
        "state_bytes": memory.states,
        "activation_bytes": memory.activations,
        "recomputed_bytes": memory.recomputed,
        "logit_bytes": memory.logits,
        "what": None if size is None else size.what,
        "source": None if size is None else size.source,
        "printed": None if printed is None else {"n_parameters": printed.total, "n_active": printed.active},
        "differences": {} if printed is None else printed.differences | printed.active_differences,
    }


def probe_records() -> list[dict[str, Any]]:
    """One record a metric: probe, metric, unit."""
    from .probes import PROBES

    return [{"probe": name, "metric": m, "unit": u} for name, p in PROBES.items() for m, u in p.metrics.items()]


def machine_records() -> list[dict[str, Any]]:
    """One record a fact about this machine and installation."""
    from .data.cache import default_cache
    from .study.local import gpus, n_cores

    facts: dict[str, Any] = {"python": sys.version.split()[0], "platform": platform.platform()}
    for package in (
        "gatelab",
        "torch",
        "numpy",
        "pydantic",
        "duckdb",
        "altair",
        "tokenizers",
        "triton",
        "transformers",
    ):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    facts["cores"] = n_cores()
    facts["gpus"] = ", ".join(gpus()) or "none"
    facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    cache = default_cache()
    there = next(p for p in (cache, *cache.parents) if p.exists())
    facts["cache"] = _home(cache)
    facts["free_disk_gib"] = round(shutil.disk_usage(there).free / 2**30, 1)
    facts["writable_here"] = "yes" if os.access(Path.cwd(), os.W_OK) else "no: runs need --out elsewhere"
    return [{"fact": name, "value": str(value)} for name, value in facts.items()]


def _home(path: Path) -> str:
    """The path with the home folder as ~, which is all that another reader needs to know."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
