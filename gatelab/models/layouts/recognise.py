"""Which layout a checkpoint has: from the names in its config and the shapes of its tensors, which have to agree.

Notable: shapes decide the granularity, since flags are disputed (a bare `gating: true` is read both ways); the config decides
between layouts of the same shapes. Where neither does, nothing is guessed: a grouped checkpoint read in the wrong row order
runs, with most heads wrong.
"""

from dataclasses import replace
from typing import Any

from ...config.gate import GateSpec, parse_gates
from .canonical import Granularity
from .fit import Shapes, fitting, misfit
from .geometry import geometry_of, text_config
from .layout import Layout
from .table import LAYOUTS

_WORDS: dict[str, Granularity] = {
    "headwise_attn_output_gate": "headwise",
    "use_head_wise_attn_gate": "headwise",
    "head_wise_attn_gate": "headwise",
    "elementwise_attn_output_gate": "elementwise",
    "attn_output_gate": "elementwise",
}
_GRANULARITIES: dict[str, Granularity] = {
    "per-head": "headwise",
    "headwise": "headwise",
    "per-element": "elementwise",
    "elementwise": "elementwise",
}
ONE_PLUS = ("layernorm_zero_centered_gamma", "apply_layernorm_1p")


def recognise(config: dict[str, Any], shapes: Shapes, *, layer: int | None = None, named: str | None = None) -> Layout:
    """The layout of an attention layer, with the activation and the gain that this checkpoint has as its only ones.

    Args:
        config: what its config.json holds; names of section 3 of every code base in `LAYOUTS` are understood.
        shapes: of the attention's tensors, by their names without the layer's prefix.
        layer: its number, for configs whose layers differ.
        named: the slug of the layout that somebody knows it to be, where several fit.

    Raises:
        ValueError: no layout fits, with the nearest and what differs; several fit, with what would decide; the config
            contradicts the tensors.
    """
    geometry = geometry_of(config, layer=layer)
    own = text_config(config)
    if own.get("qk_norm") == "rms-no-gain":
        raise ValueError(
            "qk_norm=rms-no-gain leaves no tensor that says so; give the norms gains of ones, and qk_norm=rms"
        )
    for name, shape in shapes.items():
        if not all(isinstance(n, int) for n in shape):
            raise ValueError(f"{name} has shape {shape!r}: expected whole numbers, as in tuple(tensor.shape)")
    fits = fitting(shapes, geometry)
    if not fits:
        raise ValueError(f"no layout has these tensors; the nearest is {misfit(LAYOUTS.values(), shapes, geometry)}")
    meant = _meant(own)
    chosen = [(layout, g) for layout, g in fits if not meant or layout.slug in meant]
    if not chosen:
        raise ValueError(
            f"the config means {' or '.join(meant)} ({', '.join(_said(own))}), and the tensors fit "
            f"{' or '.join(_slugs(fits))}; one of the two is of another checkpoint"
        )
    if named is not None and named not in _slugs(chosen):
        raise ValueError(
            f"named as {named}, and the config and the tensors are those of {' or '.join(_slugs(chosen))}; name that one"
        )
    chosen = [(layout, g) for layout, g in chosen if named in (None, layout.slug)]
    if len(chosen) > 1:
        raise ValueError(f"these tensors fit {' and '.join(_slugs(chosen))}; {_missing(chosen)}")
    layout, granularity = chosen[0]
    _check_gate(own, layout, granularity)
    activation, has_norms = _activation(own, layout, granularity), layout.norms[0] + ".weight" in shapes
    gains = layout.gains if not has_norms or len(layout.gains) == 1 else (_gain(own, layout),)
    return replace(layout, activations=(activation,), gains=gains)


def _meant(own: dict[str, Any]) -> list[str]:
    """The layouts that the config points to; its model type is worth more than its fields."""
    typed = [slug for slug, layout in LAYOUTS.items() if own.get("model_type") in layout.model_types]
    if typed:
        return typed
    gate = own.get("gate")
    if isinstance(gate, str):
        return ["gatelab"]
    if isinstance(gate, dict):
        return ["olmo-core"]
    return [slug for slug, layout in LAYOUTS.items() if any(own.get(name) for name in layout.fields)]


def _said(own: dict[str, Any]) -> list[str]:
    names = ["model_type", "gate", *dict.fromkeys(f for layout in LAYOUTS.values() for f in layout.fields)]
    return [f"{name}={own[name]!r}" for name in names if name in own]


def _slugs(fits: list[tuple[Layout, Granularity | None]]) -> list[str]:
    return list(dict.fromkeys(layout.slug for layout, _ in fits))


def _missing(fits: list[tuple[Layout, Granularity | None]]) -> str:
    """What in a config would decide between layouts."""
    ways = []
    for layout, granularity in fits:
        fields = [f"{f}=true" for f in layout.fields if _WORDS.get(f, granularity) == granularity]
        says = [f"model_type={layout.model_types[0]}"] if layout.model_types else []
        ways.append(f"{' or '.join([*says, *fields]) or 'gate'} for {layout.slug}")
    return f"the config has to say {', '.join(ways)}"


def _check_gate(own: dict[str, Any], layout: Layout, granularity: Granularity | None) -> None:
    """Refuses a config that says something else of the gate than the shapes."""
    stated = {word for name, word in _WORDS.items() if own.get(name)}
    gate, gating = own.get("gate"), own.get("gating")
    if isinstance(gate, dict):
        stated |= {_word("gate.granularity", gate.get("granularity", "headwise"))}
    if isinstance(gating, str):
        stated |= {_word("gating", gating)}
    if isinstance(gate, str):
        stated |= {spec.granularity for spec in _specs(gate)}
    flags = [own[name] for name in (*layout.fields, "gate") if name in own]
    is_said = any(flag not in (None, False, "none", "") for flag in flags)
    if (stated and granularity not in stated) or (flags and is_said != (granularity is not None)):
        raise ValueError(
            f"the config says {', '.join(_said(own)) or 'that there is no gate'}, and the tensors are {layout.slug} "
            f"{granularity or 'without a gate'}; one of the two is of another checkpoint"
        )


def _word(name: str, value: Any) -> Granularity:
    if value not in _GRANULARITIES:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(_GRANULARITIES)}")
    return _GRANULARITIES[value]


def _specs(gate: str) -> list[GateSpec]:
    specs = [GateSpec.parse(slug) for slug in parse_gates(gate)]
    for spec in specs:
        plain = GateSpec(site="sdpa", granularity=spec.granularity, activation=spec.activation)
        if spec.model_copy(update={"bias": False, "init": "random", "around": None}) != plain:
            raise ValueError(
                f"gate {spec.slug}: a layout has gates such as {plain.slug}, of the attention output, of the layer's input, "
                "multiplied; other gates belong to Gatelab alone"
            )
    return specs


def _activation(own: dict[str, Any], layout: Layout, granularity: Granularity | None) -> str:
    gate, mode = own.get("gate"), own.get("gate_attn_act_mode")
    if isinstance(gate, str) and granularity:
        return _specs(gate)[0].activation
    if mode is not None and mode not in layout.activations:
        raise ValueError(
            f"gate_attn_act_mode={mode!r}: {layout.slug} computes {' or '.join(layout.activations)} and would ignore it"
        )
    if mode is None and granularity and len(layout.activations) > 1:
        raise ValueError(
            f"{layout.slug} has gates of several activations; the config has to say gate, such as sdpa-headwise"
        )
    return mode or layout.activations[0]


def _gain(own: dict[str, Any], layout: Layout) -> Any:
    said = [own[name] for name in ONE_PLUS if name in own]
    if not said:
        raise ValueError(
            f"{layout.slug}: its norms multiply by w or by 1 + w; the config has to say {' or '.join(ONE_PLUS)}, true for 1 + w"
        )
    return "1+w" if any(said) else "w"
