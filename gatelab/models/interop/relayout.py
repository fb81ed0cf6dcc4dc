"""A checkpoint's folder in another layout of gated attention: each attention layer rewritten, all other tensors as they are.

Notable: what a layer becomes is tried before anything is written, since the type of a moved gain depends on its values; then
tensors pass through memory one attention layer at a time. Names outside of attention stay, and so do the norms of the blocks.
"""

import json
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from ..layouts import Canonical, Geometry, Layout, geometry_of, notes, read, recognise, stated, write
from ..layouts.checks import known
from .attention import OUTPUTS, attention_prefixes, layer_number, shapes_below
from .destination import copy_companions, destination, write_json
from .shards import weight_files
from .shipped import in_layout, is_shipped
from .tensors import Origin, Tensors, of_files
from .tensors import write as write_file


@dataclass(frozen=True)
class Relaid:
    """What was written where: the layouts, how many attention layers were rewritten and how many tensors were not."""

    path: Path
    source: str
    target: str
    n_layers: int
    n_others: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Layer:
    """An attention layer of the checkpoint: what its tensors' names begin with, and how they are read."""

    prefix: str
    number: int | None
    layout: Layout
    geometry: Geometry

    def canonical(self, tensors: Tensors) -> Canonical:
        own = {name: tensors.read(name) for name in tensors.shapes if name.startswith(self.prefix)}
        try:
            return read(self.layout, own, self.geometry, prefix=self.prefix)
        except ValueError as error:
            raise ValueError(f"{self.prefix.removesuffix('.')}: {error}") from None


def relayout(source: str | Path, out: str | Path, layout: str, *, from_layout: str | None = None) -> Relaid:
    """The checkpoint in a folder (config.json, safetensors) with its attention layers in another layout; of our own
    `GatelabForCausalLM` the layout is `gatelab`, whose names it then gets.

    Args:
        layout, from_layout: slugs of `LAYOUTS`; from_layout None: as config and shapes say.

    Raises:
        ValueError: no such folder or layout; a layer that is in no layout or may be in several; what the other layout
            cannot say, elementwise gates that a headwise one would lose among it; `out` is there already. `out` is then not made.
    """
    target, folder = known(layout), Path(source)
    config = _config(folder)
    if from_layout is not None:
        known(from_layout)
    tensors = of_files(str(folder), weight_files(str(folder), folder))
    is_ours = is_shipped(config)
    if is_ours:
        try:
            config, tensors = in_layout(config, tensors)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
    layers = _layers(str(folder), config, tensors, from_layout)
    slugs = {layer.layout.slug for layer in layers}
    if slugs == {target.slug} and not is_ours:
        raise ValueError(f"{folder}: is in layout {target.slug} already; copy it, or name another layout")
    with destination(Path(out), folder) as draft:
        try:
            made, own_config, said = _tried(config, tensors, layers, target)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        plan = {name: Origin(name, shape) for name, shape in made.shapes.items()}
        write_file(draft / "model.safetensors", plan, made, metadata={"format": "pt"})
        write_json(draft / "config.json", own_config)
        copy_companions(folder, draft)
    n_others = sum(not name.startswith(tuple(layer.prefix for layer in layers)) for name in tensors.shapes)
    return Relaid(Path(out), " and ".join(sorted(slugs)), target.slug, len(layers), n_others, said)


def _config(folder: Path) -> dict[str, Any]:
    for wanted in ("config.json", "*.safetensors"):
        if not any(folder.glob(wanted)):
            raise ValueError(f"{folder}: holds no {wanted}; name a folder with a config.json and with safetensors")
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: cannot be read as JSON ({error}); copy it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{folder / 'config.json'}: is no JSON object; copy the file again")
    return found


def _layers(title: str, config: dict[str, Any], tensors: Tensors, from_layout: str | None) -> list[_Layer]:
    """The attention layers, in the order of their names."""
    prefixes = attention_prefixes(tensors)
    if not prefixes:
        words = ", ".join(f"{word}.weight" for word in OUTPUTS)
        raise ValueError(f"{title}: has no attention layer, of which each has one of {words}; name another checkpoint")
    layers = []
    for prefix in prefixes:
        shapes, number = shapes_below(tensors, prefix), layer_number(prefix)
        try:
            layout = recognise(config, shapes, layer=number, named=from_layout)
            layers.append(_Layer(prefix, number, layout, geometry_of(config, layer=number)))
        except ValueError as error:
            raise ValueError(f"{title}: {prefix.removesuffix('.')}: {_advised(str(error), from_layout)}") from None
    return layers


def _advised(sentence: str, from_layout: str | None) -> str:
    is_ambiguous = from_layout is None and sentence.startswith("these tensors fit ")
    return sentence + ", or name the layout with --from-layout" * is_ambiguous


def _tried(
    config: dict[str, Any], tensors: Tensors, layers: list[_Layer], target: Layout
) -> tuple[Tensors, dict[str, Any], tuple[str, ...]]:
    """The tensors in the target layout, a config that says so, and what is stored in other numbers."""
    others = [n for n in tensors.shapes if not n.startswith(tuple(layer.prefix for layer in layers))]
    shapes = {name: tensors.shapes[name] for name in others}
    dtypes = {name: tensors.dtypes[name] for name in others}
    owners: dict[str, int] = {}
    said: Counter[str] = Counter()
    kinds = set()
    for i, layer in enumerate(layers):
        canonical = layer.canonical(tensors)
        rows = _written(target, canonical, layer)
        for name, tensor in rows.items():
            owners[name], shapes[name], dtypes[name] = i, tuple(tensor.shape), tensor.dtype
        back = read(target, rows, layer.geometry, prefix=layer.prefix, activation=_activation(target, canonical))
        gain = None if back.q_norm is None else _gain(target, canonical)
        kinds.add((back.granularity, canonical.activation, gain, back.gate_bias_HK is not None))
        said.update(notes(target, canonical, gain=_gain(target, canonical)))
    if len(kinds) > 1:
        raise ValueError(
            f"{target.slug}: its layers differ in their gates or norms, which no config of this layout can say"
        )
    ((granularity, activation, gain, has_bias),) = kinds
    geometries = {layer.number: layer.geometry for layer in layers}
    own = stated(
        config,
        target,
        geometries,
        granularity=granularity,
        activation=activation,
        gain=gain,
        has_gate_bias=has_bias,
    )

    @lru_cache(maxsize=1)
    def in_target(i: int) -> dict[str, Tensor]:
        return _written(target, layers[i].canonical(tensors), layers[i])

    def read_made(name: str) -> Tensor:
        return in_target(owners[name])[name] if name in owners else tensors.read(name)

    made = Tensors(tensors.title, shapes, dtypes, read_made)
    for layer in layers:
        # What nobody could read back without being told is refused here.
        recognise(own, shapes_below(made, layer.prefix), layer=layer.number)
    kept = f"only attention was rewritten: {len(others)} other tensors, the norms of the blocks among them, are as they were"
    counted = [f"{note} (in {n} of {len(layers)} layers)" for note, n in said.items()]
    return made, own, (kept, *counted)


def _written(target: Layout, canonical: Canonical, layer: _Layer) -> dict[str, Tensor]:
    try:
        return write(target, canonical, prefix=layer.prefix, gain=_gain(target, canonical))
    except ValueError as error:
        raise ValueError(f"{layer.prefix.removesuffix('.')}: {error}") from None


def _gain(target: Layout, canonical: Canonical) -> Any:
    """The convention of the norms as they are, where the target has it."""
    own = None if canonical.q_norm is None else canonical.q_norm.convention
    return own if own in target.gains else target.gains[0]


def _activation(target: Layout, canonical: Canonical) -> str:
    return canonical.activation if canonical.activation in target.activations else target.activations[0]
