"""Checkpoints: one safetensors file each, tensors and JSON state together, so that one rename makes it whole.

Nothing is pickled. A resumed run continues bit for bit on the same CPU: weights, both moments, their step counts and
the loss history are stored exactly; batches are pure functions of the step.
"""

import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import SCHEMA


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: cut, damaged, of another model, or of another version."""


def write_tensors(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and JSON state atomically: temporary name, flushed to the disk, renamed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        tensors = {name: t.detach().contiguous() for name, t in tensors.items()}
        save_file(tensors, temporary, metadata={"gatelab": json.dumps({"schema": SCHEMA, **state})})
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(
    path: Path, device: torch.device | str = "cpu", prefix: str = ""
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote; of the tensors those whose names begin with `prefix`.

    Raises:
        CheckpointError: when the file is missing, cut or damaged, is no Gatelab file, or comes from another version.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt", device=str(device)) as f:
            state = json.loads((f.metadata() or {}).get("gatelab", "null"))
            tensors = {name: f.get_tensor(name) for name in f.keys() if name.startswith(prefix)}  # noqa: SIM118  (not a dict)
    except (SafetensorError, json.JSONDecodeError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); it was cut or damaged. {_remedy(path)}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: safetensors, but not written by Gatelab (no state in its header)")
    if state.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path}: written by another version (schema {state.get('schema')}, this one reads {SCHEMA})"
        )
    return tensors, state


def _remedy(path: Path) -> str:
    if (path.parent / "done.json").exists():
        return "Delete done.json beside it and run the study again to make these weights anew"
    return "Delete it to start this run from step 0"


def pack(model: nn.Module, optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """Weights and optimiser state of one run under `prefix`, by parameter name."""
    tensors = {f"{prefix}model.{name}": p for name, p in model.named_parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"{prefix}optim.{key}.{names[id(parameter)]}"] = value
    return tensors


def unpack(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str, path: Path
) -> None:
    """Load what `pack` gave, in place.

    Raises:
        CheckpointError: when a tensor is missing, has another shape, or is none of the model's, naming it.
    """
    own = {f"{prefix}model.{name}" for name, _ in model.named_parameters()}
    for name in tensors:
        if name.startswith(f"{prefix}model.") and name not in own:
            raise CheckpointError(
                f"{path}: {name.removeprefix(f'{prefix}model.')} is no parameter here; it belongs to another model"
            )
    for name, parameter in model.named_parameters():
        stored = tensors.get(f"{prefix}model.{name}")
        if stored is None or stored.shape != parameter.shape:
            raise misfit(path, name, None if stored is None else stored.shape, parameter.shape)
        with torch.no_grad():
            parameter.copy_(stored)
        keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"{prefix}optim.{k}.{name}" in tensors]
        if keys:
            optimizer.state[parameter] = {k: tensors[f"{prefix}optim.{k}.{name}"].clone() for k in keys}


def misfit(path: Path, name: str, found: Sequence[int] | None, expected: Sequence[int]) -> CheckpointError:
    """The error of a stored tensor that is missing (None), or has another shape than the model's."""
    words = "is missing" if found is None else f"has shape {tuple(found)}"
    return CheckpointError(f"{path}: {name} {words}, expected {tuple(expected)}; it belongs to another model")


def load_weights(model: nn.Module, path: Path) -> int:
    """Load the final weights of a run, in place; returns the step they belong to.

    The model may have gates, registers and what a normaliser learns besides: these keep the values they have (a gate
    inserted into a finished model).

    Raises:
        CheckpointError: as `read_tensors` does, and when any other weight is missing, has another shape, or is none of
            the model's, naming the first three.
    """
    tensors, state = read_tensors(path)
    own = dict(model.named_parameters())
    problems = [f"{name} is no parameter here" for name in tensors if name not in own]
    for name, parameter in own.items():
        stored = tensors.get(name)
        if stored is None and not _may_be_inserted(name):
            problems.append(f"{name} is missing, expected {tuple(parameter.shape)}")
        elif stored is not None and stored.shape != parameter.shape:
            problems.append(f"{name} has shape {tuple(stored.shape)}, expected {tuple(parameter.shape)}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{path}: {'; '.join(problems[:3])}{more}: it belongs to another model; take the configuration of its run, "
            f"to which only gates, registers and a normaliser may be added"
        )
    with torch.no_grad():
        for name, stored in tensors.items():
            own[name].copy_(stored)
    return state["step"]


def _may_be_inserted(name: str) -> bool:
    parts = name.split(".")
    return "gates" in parts or "sink" in parts or parts[-1].endswith("registers_RD")
