"""Finished runs of a study's folder with the weights that they ended with."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from gatelab.config import Run, validate
from gatelab.store import StudyFolder
from gatelab.train.checkpoint import load_weights
from gatelab.train.group import Group, Member


def members(folder: Path, arms: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, int, Member]]:
    """Arm, seed, and the run as its study had it, in the order of these arms and seeds.

    Raises:
        SystemExit: a run that is not there, or has no weights.
    """
    kept = {(planned["arm"], planned["seed"]): run for planned, run in StudyFolder(folder).planned()}
    for arm in arms:
        for seed in seeds:
            if (arm, seed) not in kept:
                raise SystemExit(f"{folder}: has no run of arm {arm}, seed {seed}")
            run = kept[arm, seed]
            if not (run.path / "weights.safetensors").is_file():
                raise SystemExit(f"{run.path}: arm {arm}, seed {seed} has no weights; name seeds that have")
            member = Group([validate(Run, run.config())]).members[0]
            load_weights(member.model, run.path / "weights.safetensors")
            yield arm, seed, member
