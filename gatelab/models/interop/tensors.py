"""Tensors by name, one in memory at a time: read from safetensors or a model, made by a plan, written to one file.

Notable: names and shapes come from the headers, so a plan is checked whole before a weight is read; the file is written
as its header says (safetensors: eight bytes of length, JSON, bytes), since the library's writer wants all tensors at once.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...config import nearest

_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_WORDS = {dtype: word for word, dtype in _TYPES.items()}
_BYTES = torch.uint8
_SOME = 3  # of a list of mistakes


@dataclass(frozen=True)
class Tensors:
    """`shapes` and `dtypes` of all tensors of a checkpoint; `read` brings one into memory, `read_part` one of those that lie
    along its first axis (None: by way of the whole). `title` names it in errors."""

    title: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    read: Callable[[str], Tensor]
    read_part: Callable[[str, int], Tensor] | None = None

    def part(self, name: str, number: int) -> Tensor:
        """One of those along the first axis of a tensor, such as an expert's matrix."""
        return self.read(name)[number] if self.read_part is None else self.read_part(name, number)


@dataclass(frozen=True)
class Origin:
    """Where a tensor of the destination comes from: the source's tensor `name`, of `shape`, as it is; through `move`, which
    takes, splits or joins rows in the type that they have; or through `change`, which computes in float32. `part`: only that one
    along its first axis. `beside` are more of the source's tensors, with their shapes, that `move` or `change` takes after it.
    No name: there is none, and `fill` stands everywhere in this shape."""

    name: str | None
    shape: tuple[int, ...]
    change: Callable[..., Tensor] | None = None
    fill: float = 0.0
    beside: tuple[tuple[str, tuple[int, ...]], ...] = ()
    move: Callable[..., Tensor] | None = None
    part: int | None = None

    @property
    def reads(self) -> dict[str, tuple[int, ...]]:
        """The source's tensors that this one is made of, with their shapes."""
        return ({} if self.name is None else {self.name: self.shape}) | dict(self.beside)


Plan = dict[str, Origin]


def of_files(
    title: str,
    files: list[Path],
    *,
    spare: Callable[[str], bool] = lambda name: False,
    packed: Callable[[str], bool] = lambda name: False,
) -> Tensors:
    """The tensors of safetensors files, but for `spare` ones that hold no floating-point numbers; `packed` ones may be bytes.

    Raises:
        ValueError: a file is missing, cut or damaged; a tensor is in two files, or holds no floating-point numbers.
    """
    where: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for file in files:
        if not file.is_file():
            raise ValueError(f"{title}: {file.name} is missing, and its index names it; copy that file there")
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (not a dict)
                    held = opened.get_slice(name)
                    if name in where:
                        raise ValueError(
                            f"{title}: tensor {name} is in {where[name].name} and in {file.name}; remove one"
                        )
                    dtype = _BYTES if packed(name) and held.get_dtype() == "U8" else _TYPES.get(held.get_dtype())
                    if dtype is None and spare(name):
                        continue
                    if dtype is None:
                        raise ValueError(
                            f"{title}: tensor {name} is stored as {held.get_dtype()}, and {', '.join(_TYPES)} are read; take "
                            "a checkpoint that is not quantised"
                        )
                    where[name], shapes[name] = file, tuple(held.get_shape())
                    dtypes[name] = dtype
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file}: cannot be read ({error}); it was cut or damaged, so copy it again") from None

    def read(name: str) -> Tensor:
        with safe_open(where[name], framework="pt") as opened:
            return opened.get_tensor(name)

    def read_part(name: str, number: int) -> Tensor:
        with safe_open(where[name], framework="pt") as opened:
            return opened.get_slice(name)[number]

    return Tensors(title, shapes, dtypes, read, read_part)


def of_model(title: str, model: nn.Module) -> Tensors:
    """The tensors of a model that is in memory."""
    state = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
    shapes = {name: tuple(t.shape) for name, t in state.items()}
    return Tensors(title, shapes, {name: t.dtype for name, t in state.items()}, lambda name: state[name].detach())


def check_plan(plan: Plan, source: Tensors, *, spare: Callable[[str], bool] = lambda name: False) -> None:
    """Whether the source holds what the plan reads, of these shapes, and nothing else but what is `spare`.

    Raises:
        ValueError: naming the first missing and extra tensors, and of wrong ones both shapes.
    """
    wanted = {name: shape for o in plan.values() for name, shape in o.reads.items()}
    missing = [name for name in wanted if name not in source.shapes]
    extra = [name for name in source.shapes if name not in wanted and not spare(name)]
    problems = [f"tensor {name} {list(wanted[name])} is missing{nearest(name, extra)}" for name in missing]
    problems += [f"tensor {name} {list(source.shapes[name])} has no place in this configuration" for name in extra]
    problems += [
        f"tensor {name} has shape {list(source.shapes[name])}, and its configuration says {list(shape)}"
        for name, shape in wanted.items()
        if name in source.shapes and source.shapes[name] != shape
    ]
    if problems:
        more = f"; and {len(problems) - _SOME} more" if len(problems) > _SOME else ""
        raise ValueError(
            f"{source.title}: {'; '.join(problems[:_SOME])}{more}; its config.json and its weights are not of one model, so "
            "take both from one checkpoint"
        )


def make(origin: Origin, source: Tensors) -> Tensor:
    """One tensor of the destination.

    Raises:
        ValueError: the source's has values that are not finite.
    """
    if origin.name is None:
        return torch.full(origin.shape, origin.fill, dtype=_dtype(origin, source))
    if origin.part is not None:
        return _finite(origin.name, source, source.part(origin.name, origin.part))
    found = [_finite(name, source, source.read(name)) for name in origin.reads]
    if origin.move is not None:
        return origin.move(*found)
    if origin.change is None:
        return found[0]
    return origin.change(*(t.to(torch.promote_types(t.dtype, torch.float32)) for t in found))


def _finite(name: str, source: Tensors, found: Tensor) -> Tensor:
    if not bool(torch.isfinite(found).all()):
        n_bad = int((~torch.isfinite(found)).sum())
        raise ValueError(
            f"{source.title}: tensor {name} {list(found.shape)} holds {n_bad} values that are NaN or infinite; take an "
            "undamaged checkpoint"
        )
    return found


def write(path: Path, plan: Plan, source: Tensors, *, metadata: Mapping[str, str]) -> int:
    """The plan's tensors as one safetensors file; returns the number of values. One tensor is in memory at a time.

    Raises:
        ValueError: as `make` does.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    # Only of what is made is the shape unknown, and whether it holds is asked on the meta device.
    shapes = {name: _shape(origin) for name, origin in plan.items()}
    dtypes = {name: _dtype(origin, source) for name, origin in plan.items()}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + dtypes[name].itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": _WORDS[dtypes[name]], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, origin in plan.items():
            made = make(origin, source)
            assert tuple(made.shape) == shapes[name] and made.dtype == dtypes[name], name
            file.write(made.contiguous().flatten().view(torch.uint8).numpy().data)
            del made  # before the next is made
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def _shape(origin: Origin) -> tuple[int, ...]:
    if origin.part is not None:
        return origin.shape[1:]
    made = origin.move or origin.change
    if origin.name is None or made is None:
        return origin.shape
    return tuple(made(*(torch.empty(shape, device="meta") for shape in origin.reads.values())).shape)


def _dtype(origin: Origin, source: Tensors) -> torch.dtype:
    if origin.name is None:
        return next(iter(source.dtypes.values()))  # as its neighbours, whatever 0 and 1 would fit into
    stored = reduce(torch.promote_types, (source.dtypes[name] for name in origin.reads))
    return stored if origin.change is None else torch.promote_types(stored, torch.float32)
