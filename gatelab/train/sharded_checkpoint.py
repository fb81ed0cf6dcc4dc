"""Checkpoints of a run whose weights are shared out: torch's distributed checkpoint in files of ours, safetensors and one JSON
(`gatelab.train.checkpoint_folder` has the places).

Notable: nothing is pickled. torch's planner shares the writing out and reads pieces into any other mesh, one process included.
Ranks write while training goes on; the index, which makes a checkpoint of the files, comes when all have written.
"""

import contextlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult

from .. import SCHEMA
from .checkpoint import CheckpointError, misfit, write_tensors
from .checkpoint_folder import FOLDER, INDEX, folder_of, steps

# What an index may say, which others than its writer can write too: the files of ranks, and the types that weights and the
# optimiser's state have.
_FILE = re.compile(r"rank-\d+\.safetensors", re.ASCII)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64,
           "int64": torch.int64, "int32": torch.int32, "uint8": torch.uint8, "bool": torch.bool}  # fmt: skip


class Saving:
    """The checkpoints of some runs as they are written, one at a time, beside training.

    Args:
        group: of all ranks, on the host, for nothing else: `Mesh.saving`.
    """

    def __init__(self, group: ProcessGroup):
        self._group, self._thread = group, ThreadPoolExecutor(1, "checkpoint")
        self._pending: list[Future[Any]] = []

    def begin(self, run: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Copy a run's tensors to the host and begin to write them; every rank must call it. `state`, of the first rank, is JSON
        with the step. What goes wrong is told by `finish`."""
        copies = {
            name: t.detach().cpu() if t.device.type != "cpu" else t.detach().clone() for name, t in tensors.items()
        }
        folder = folder_of(run, state["step"])
        self._pending.append(self._thread.submit(self._save, copies, folder, state))

    def finish(self) -> None:
        """Until all that was begun is committed.

        Raises:
            OSError: what one of them met.
        """
        pending, self._pending = self._pending, []
        with _first_failure():
            for future in pending:
                future.result()

    def _save(self, tensors: dict[str, Tensor], folder: Path, state: dict[str, Any]) -> None:
        dcp.save(tensors, storage_writer=_Writer(folder, state), process_group=self._group)


def read_state(run: Path, step: int) -> dict[str, Any]:
    """What `Saving.begin` was given beside the tensors.

    Raises:
        CheckpointError: when it cannot be read.
    """
    return _index(folder_of(run, step))["state"]


def load(run: Path, step: int, tensors: dict[str, Tensor], group: ProcessGroup | None = None) -> None:
    """Fill tensors from a checkpoint, in place: DTensors of any mesh, or those of one process; every rank of the group calls it.

    Raises:
        CheckpointError: when it cannot be read, or tensors are missing or of another shape.
    """
    folder = folder_of(run, step)
    stored = _index(folder)["tensors"]
    for name, tensor in tensors.items():
        shape = stored.get(name, {}).get("shape")
        if shape is None or tuple(shape) != tuple(tensor.shape):
            raise misfit(folder, name, shape, tensor.shape)
    with warnings.catch_warnings(), _first_failure():
        if group is None:
            # That one process loads alone, which is what is wanted.
            warnings.simplefilter("ignore", UserWarning)
        dcp.load(tensors, storage_reader=_Reader(folder), process_group=group, no_dist=group is None)


def export(run: Path, to: Path, step: int | None = None) -> int:
    """Write the weights of a run's checkpoint, the newest unless a step is stated, as one safetensors file such as a finished
    run's; returns the step.

    Raises:
        CheckpointError: when the run has no whole checkpoint, or it cannot be read.
    """
    whole = steps(run)
    if step is None and not whole:
        raise CheckpointError(f"{run}: no whole checkpoint under {FOLDER}/; train the run first")
    step = whole[0] if step is None else step
    stored = _index(folder_of(run, step))["tensors"]
    weights = {
        name: torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
        for name, entry in stored.items()
        if name.startswith("model.")
    }
    load(run, step, weights)
    plain = {name.removeprefix("model."): t for name, t in weights.items()}
    write_tensors(to, plain, {"step": step, "fingerprint": run.name})
    return step


class _Writer(StorageWriter):
    """One file a rank; the coordinator then writes the index, which makes it a checkpoint."""

    def __init__(self, folder: Path, state: dict[str, Any]):
        super().__init__()
        self.folder, self.state, self.rank = folder, state, 0

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """The place is the constructor's."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The rank is that of the default group, of which the saving group has all."""
        self.rank = torch.distributed.get_rank()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As the planner made it."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """As the planner made them."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        """This rank's pieces, in one file that is flushed before it has its name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name, tensors, results = f"rank-{self.rank:04d}.safetensors", {}, []
        for item in plan.items:
            piece = planner.resolve_data(item).detach()
            key = "{}@{}".format(item.index.fqn, ",".join(map(str, item.index.offset or ())))
            tensors[key] = piece
            results.append(WriteResult(index=item.index, size_in_bytes=piece.nbytes, storage_data=(name, key)))
        write_tensors(self.folder / name, tensors, {})
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """The index: on the coordinator, when all ranks have written."""
        place = {_place(r.index): r.storage_data for of_rank in results for r in of_rank}
        tensors = {}
        for name, entry in metadata.state_dict_metadata.items():
            pieces = []
            for chunk in entry.chunks:
                file, key = place[name, tuple(chunk.offsets)]
                pieces.append({"file": file, "key": key, "offset": list(chunk.offsets), "shape": list(chunk.sizes)})
            dtype = str(entry.properties.dtype).removeprefix("torch.")
            tensors[name] = {"shape": list(entry.size), "dtype": dtype, "pieces": pieces}
        _commit(self.folder / INDEX, {"schema": SCHEMA, "state": self.state, "tensors": tensors})

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """There is none."""
        return False


class _Reader(StorageReader):
    """Reads the pieces that a plan asks for."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder
        self.place: dict[tuple[str, tuple[int, ...]], tuple[str, str]] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """The place is the constructor's."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index, in torch's words."""
        tensors = {}
        for name, entry in _index(self.folder)["tensors"].items():
            chunks = []
            for piece in entry["pieces"]:
                offset = torch.Size(piece["offset"])
                chunks.append(ChunkStorageMetadata(offset, torch.Size(piece["shape"])))
                self.place[name, tuple(offset)] = piece["file"], piece["key"]
            properties = TensorProperties(dtype=_DTYPES[entry["dtype"]])
            tensors[name] = TensorStorageMetadata(properties, torch.Size(entry["shape"]), chunks)
        return Metadata(state_dict_metadata=tensors)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Every rank needs to know where pieces lie, and torch may read the index on the first alone."""
        if not self.place:
            self.read_metadata()

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As the planner made it."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As the planner made them."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> torch.futures.Future[None]:
        """Slices of the files, copied to where they belong."""
        files: dict[str, Any] = {}
        with contextlib.ExitStack() as stack:
            for item in plan.items:
                name, key = self.place[_place(item.storage_index)]
                if name not in files:
                    files[name] = stack.enter_context(_opened(self.folder / name))
                target = planner.resolve_tensor(item).detach()
                target.copy_(_read(files[name], key, item.storage_offsets, item.lengths, self.folder / name))
                planner.commit_tensor(item, target)
        done: torch.futures.Future[None] = torch.futures.Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """There is none."""
        return False


@contextlib.contextmanager
def _first_failure() -> Iterator[None]:
    """What the first rank that failed has met, as it would be without others."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


def _place(index: MetadataIndex) -> tuple[str, tuple[int, ...]]:
    return index.fqn, tuple(index.offset or ())


def _commit(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). {_REMEDY}") from None
    if schema != SCHEMA:
        raise CheckpointError(f"{path}: written by another version (schema {schema}, this one reads {SCHEMA})")
    try:
        wrong = _strange(content["tensors"]) or ("" if isinstance(content["state"], dict) else "the state is no object")
    except (KeyError, TypeError, AttributeError) as error:
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        raise CheckpointError(f"{path}: was not written by Gatelab, or was edited ({wrong}). {_REMEDY}")
    return content


def _strange(tensors: dict[str, Any]) -> str:
    """What an index says that `_Writer` does not write: a file elsewhere, another type, sizes that are none. Empty: nothing."""
    for name, entry in tensors.items():
        if entry["dtype"] not in _DTYPES:
            return f"{name} has dtype {entry['dtype']!r}; expected {', '.join(_DTYPES)}"
        for piece in entry["pieces"]:
            if not _FILE.fullmatch(piece["file"]):
                return f"{name} lies in {piece['file']!r}; expected rank-NUMBER.safetensors"
            if not isinstance(piece["key"], str) or not _are_sizes(piece["offset"], piece["shape"], entry["shape"]):
                return f"{name} has a piece without a key, an offset or a shape"
    return ""


def _are_sizes(*lists: Any) -> bool:
    return all(isinstance(sizes, list) and all(type(n) is int and n >= 0 for n in sizes) for sizes in lists)


_REMEDY = "Delete the folder to start from an earlier checkpoint, or from step 0"


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); it was cut or damaged. {_REMEDY}") from None


def _read(file: Any, key: str, offsets: Sequence[int], lengths: Sequence[int], path: Path) -> Tensor:
    try:
        if not len(offsets):
            return file.get_tensor(key)
        return file.get_slice(key)[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))]
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); it was cut or damaged. {_REMEDY}") from None
