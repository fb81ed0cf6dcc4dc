"""The checkpoints of a group of runs, each in its run's folder: one file where every rank has the whole model, else a folder
that all ranks write. Either is read on any mesh. torch is imported inside, so that the study layer stays light.
"""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store import RunFolder, stamp_of
from ..train import checkpoint_folder as folders

if TYPE_CHECKING:
    from ..train.group import Group

CHECKPOINT, WEIGHTS = "checkpoint.safetensors", "weights.safetensors"
_MODEL = "model."  # what `gatelab.train.checkpoint.pack` calls weights


class Checkpoints:
    """Saving and resuming of one group. Every rank calls its methods alike; where all have the whole model only the first does
    anything in them but read."""

    def __init__(self, group: "Group", runs: list[RunFolder]):
        self._group, self._runs = group, runs
        # The step at which the newest checkpoint stands, to be kept until there is a newer one.
        self._kept = 0
        self._saving: Any = None
        if group.ranks.mesh is not None:
            from ..train.sharded_checkpoint import Saving

            self._saving = Saving(group.ranks.mesh.saving)

    def restore(self) -> list[int]:
        """Take the newest checkpoints that all runs have at one step, or else the weights that runs start from; returns the
        offsets of the runs' rows.

        Members are saved one after the other, so a kill in between may leave them one checkpoint apart: then the group starts
        over, which costs time and no correctness.

        Raises:
            CheckpointError: when what is there cannot be used.
        """
        files = [_of_file(run.path / CHECKPOINT, self._group) for run in self._runs]
        common = set.intersection(
            *(
                {*folders.steps(run.path), *(() if file is None else (file[1]["step"],))}
                for run, file in zip(self._runs, files, strict=True)
            )
        )
        if not common:
            for folder, member in zip(self._runs, self._group.members, strict=True):
                if member.run.init_from is not None:
                    self._group.load_weights(member, folder.path.parent / member.run.init_from / WEIGHTS)
            return [0] * len(self._runs)
        step = max(common)
        states = [self._take(i, step, file) for i, file in enumerate(files)]
        self._group.stand_at(step, [s["alive"] for s in states])
        self._kept = step
        print(f"resuming at step {step} of {self._group.run.train.steps} from a checkpoint", flush=True)
        return [s["offset"] for s in states]

    def tidy(self) -> None:
        """Remove what nobody goes on from: the first rank does it, when all have read and none has trained."""
        for run in self._runs:
            folders.clear(run.path, [self._kept])

    def save(self, offsets: list[int] | None) -> None:
        """One checkpoint a run; the offsets of its rows, which the first rank knows, go with it. Where ranks share the writing
        out they go on at once, and the next one waits for this one."""
        group, step = self._group, self._group.step
        if self._saving is None:
            if group.ranks.is_writer:
                self._write(offsets)
            return
        if step == self._kept:
            return
        import torch

        self._saving.finish()
        for i, (run, member) in enumerate(zip(self._runs, group.members, strict=True)):
            if group.ranks.is_writer:
                folders.clear(run.path, [self._kept, step])  # the others may write already
            state = {"step": step, "alive": member.alive, "offset": offsets[i] if offsets else 0}
            losses = torch.tensor(member.losses, dtype=torch.float64)
            self._saving.begin(run.path, group.tensors_of(member) | {"losses": losses}, state)
        self._kept = step

    def finish(self) -> None:
        """Until all is on the disk."""
        if self._saving is not None:
            self._saving.finish()

    def _write(self, offsets: list[int]) -> None:
        from ..train.checkpoint import write_tensors

        tensors, state = self._group.state()
        of_run: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, tensor in tensors.items():
            number, _, own_name = name.partition(".")
            of_run[number][own_name] = tensor
        for i, (run, offset) in enumerate(zip(self._runs, offsets, strict=True)):
            own = of_run[str(i)]
            mine = {"step": state["step"], "alive": state["alive"][i], "offset": offset}
            write_tensors(run.path / CHECKPOINT, own, mine)
            folders.clear(run.path)  # of a mesh, from before

    def _take(self, i: int, step: int, file: tuple[dict[str, Any], dict[str, Any]] | None) -> dict[str, Any]:
        """Load one member's checkpoint at a step; returns its state."""
        run = self._runs[i]
        if file is not None and file[1]["step"] == step:
            self._group.take(i, file[0], run.path / CHECKPOINT)
            return file[1]
        import torch

        from ..train.sharded_checkpoint import load, read_state

        group, member = self._group, self._group.members[i]
        losses = torch.zeros(step, dtype=torch.float64)
        saving = None if group.ranks.mesh is None else group.ranks.mesh.saving
        load(run.path, step, group.tensors_of(member) | {"losses": losses}, saving)
        member.losses = losses.tolist()
        return read_state(run.path, step)


def export_weights(run: RunFolder, to: Path) -> int | None:
    """Write the weights of a run's newest whole checkpoint, of either kind, as one file such as a finished run's; returns its step,
    or None where there is none yet. The run may be going on meanwhile.

    Raises:
        CheckpointError: when it cannot be read.
    """
    from ..train.checkpoint import CheckpointError

    while True:
        there = _whole(run.path)
        try:
            return _export_newest(run, to)
        except (CheckpointError, OSError):
            # One that was replaced while it was read is told by the next.
            if _whole(run.path) == there:
                raise


def _export_newest(run: RunFolder, to: Path) -> int | None:
    from ..train.checkpoint import read_tensors, write_tensors
    from ..train.sharded_checkpoint import export

    path, shared = run.path / CHECKPOINT, folders.steps(run.path)
    tensors, state = read_tensors(path, prefix=_MODEL) if path.is_file() else ({}, {"step": -1})
    if shared and shared[0] > state["step"]:
        return export(run.path, to, shared[0])
    if not tensors:
        return None
    plain = {name.removeprefix(_MODEL): tensor for name, tensor in tensors.items()}
    write_tensors(to, plain, {"step": state["step"], "fingerprint": run.fingerprint})
    return state["step"]


def _whole(path: Path) -> tuple[object, ...]:
    """What changes as a run's checkpoints are replaced."""
    return *folders.steps(path), stamp_of(path / CHECKPOINT)


def remove(run: RunFolder) -> None:
    """Of a run that is done: the final weights stand in for its checkpoint, which is three times their size."""
    (run.path / CHECKPOINT).unlink(missing_ok=True)
    folders.clear(run.path)


def _of_file(path: Path, group: "Group") -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Tensors and state of a run's file; None without one.

    Raises:
        CheckpointError: when it cannot be read, or holds weights only.
    """
    from ..train.checkpoint import CheckpointError, read_tensors

    if not path.exists():
        return None
    tensors, state = read_tensors(path, group.device)
    if "offset" not in state:
        raise CheckpointError(f"{path}: holds weights only, no training state. Delete it to start from step 0")
    return tensors, state
