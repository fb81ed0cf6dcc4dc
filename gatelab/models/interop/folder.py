"""A Gatelab model folder: model.json (configuration, where it comes from), weights.safetensors, the tokenizer's files.

Notable: the weights have the names of `build_model`'s parameters and the header of a run's final weights, so whatever reads
one reads the other.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ... import SCHEMA
from ...config import ModelConfig, canonical, validate
from .. import model_class
from ..model import Model
from .destination import copy_companions, destination, write_json
from .tensors import Origin, Plan, Tensors, check_plan, make, of_files, write

WEIGHTS = "weights.safetensors"
_KINDS = {"model": dict, "from": dict, "tokens": dict, "notes": list}


@dataclass(frozen=True)
class Stored:
    """A model of ours that was not read yet. `companions` is a folder that holds its tokenizer, if any does; `facts` are what
    is known of it, as lines of a card, `measured` what a run measured, (metric, value, unit); `tokens` are special ids by the
    names that transformers gives them."""

    title: str
    config: ModelConfig
    tensors: Tensors
    companions: Path | None = None
    facts: tuple[str, ...] = ()
    measured: tuple[tuple[str, float, str], ...] = ()
    tokens: Mapping[str, Any] = field(default_factory=dict)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of all parameters of a resolved configuration, tied ones once; nothing is allocated."""
    with torch.device("meta"):
        model = model_class(config)(config)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def write_folder(draft: Path, config: ModelConfig, plan: Plan, source: Tensors, *, about: dict[str, Any]) -> int:
    """model.json and the weights, one tensor in memory at a time; returns the number of values.

    Raises:
        ValueError: a tensor that is not finite.
    """
    state = json.dumps({"schema": SCHEMA, "step": 0})
    n_values = write(draft / WEIGHTS, plan, source, metadata={"format": "pt", "gatelab": state})
    write_json(draft / "model.json", {"schema": SCHEMA, "model": canonical(config), **about})
    return n_values


def save_folder(found: Stored, out: str | Path, *, name: str) -> int:
    """A model of ours as a folder of its own, with its tokenizer; returns the number of values. `name` is what it was.

    Raises:
        ValueError: `out` is there already, or a tensor is not finite. `out` is then not made.
    """
    about = {"from": {"name": name, "family": "gatelab"}, "tokens": dict(found.tokens), "notes": list(found.facts)}
    with destination(Path(out), found.companions) as draft:
        n_values = write_folder(draft, found.config, _same(found.config), found.tensors, about=about)
        if found.companions is not None:
            copy_companions(found.companions, draft)
    return n_values


def is_model_folder(path: Path) -> bool:
    """Whether a folder holds a model of ours, not a run's and not one in Hugging Face's layout."""
    return (path / "model.json").is_file()


def open_folder(path: Path) -> Stored:
    """The model in a folder that `write_folder` wrote; its weights are not read.

    Raises:
        ValueError: a file is missing, cut, from another version, or does not belong to the configuration.
    """
    try:
        content = json.loads((path / "model.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: holds no model.json; name the folder that `gatelab convert` wrote") from None
    except ValueError as error:
        raise ValueError(f"{path / 'model.json'}: cannot be read as JSON ({error}); was it cut or edited?") from None
    found = content.get("schema") if isinstance(content, dict) else None
    if found != SCHEMA or {k: type(content.get(k)) for k in _KINDS} != _KINDS:
        raise ValueError(
            f"{path / 'model.json'}: schema {found} of another version of Gatelab, or edited (this one reads {SCHEMA}); convert "
            "the checkpoint again"
        )
    config = validate(ModelConfig, content["model"])
    facts = (
        f"It was {content['from'].get('name')}, a model of type {content['from'].get('family')}.",
        *content["notes"],
    )
    return stored(str(path), config, path / WEIGHTS, companions=path, facts=facts, tokens=content["tokens"])


def stored(
    title: str,
    config: ModelConfig,
    weights: Path,
    *,
    companions: Path | None = None,
    facts: tuple[str, ...] = (),
    measured: tuple[tuple[str, float, str], ...] = (),
    tokens: Mapping[str, Any] | None = None,
) -> Stored:
    """A model of ours by its resolved configuration and its file of weights.

    Raises:
        ValueError: the file is missing or damaged, or is not of this configuration, naming tensors and shapes.
    """
    if not weights.is_file():
        raise ValueError(f"{title}: holds no {weights.name}; it has no weights to read")
    tensors = of_files(title, [weights])
    check_plan(_same(config), tensors)
    return Stored(title, config, tensors, companions, facts, measured, tokens or {})


def load_model(path: str | Path) -> Model:
    """The model in a folder of ours, in evaluation mode; weights are read into place one by one.

    Raises:
        ValueError: as `open_folder` does, and for values that are not finite.
    """
    return load(open_folder(Path(path)))


def load(found: Stored) -> Model:
    """The model, in evaluation mode, with float32 weights; they are read into place one by one.

    Raises:
        ValueError: values that are not finite.
    """
    model = model_class(found.config)(found.config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(make(Origin(name, tuple(parameter.shape)), found.tensors))
    return model.eval()


def _same(config: ModelConfig) -> Plan:
    return {name: Origin(name, shape) for name, shape in parameter_shapes(config).items()}
