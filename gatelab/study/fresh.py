"""Runs of a planned study again with other seeds: some of its cells and arms, as its folder has them, without its file.

What a study was changed by on the command line is in its runs' configurations, so they are taken from there.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from ..config import Run, fingerprint, validate
from ..data import open_source
from ..store import StoreError, StudyFolder
from .plan import Planned

Comparison = tuple[str, str]  # cell, arm


def with_sources(folder: StudyFolder, wanted: Iterable[Comparison]) -> list[Comparison]:
    """The cells and arms, each after those whose weights its runs start from."""
    entries = folder.study()["plan"]
    by_name = {e["fingerprint"]: (e["cell"], e["arm"]) for e in entries}
    starts = {(e["cell"], e["arm"]): by_name.get(e.get("init_from")) for e in entries}
    out: dict[Comparison, None] = {}
    for where in wanted:
        chain = [where]
        while (source := starts.get(chain[-1])) is not None and source not in chain:
            chain.append(source)
        out |= dict.fromkeys(reversed(chain))
    return list(out)


def fresh_runs(folder: StudyFolder, wanted: Sequence[Comparison], seeds: Sequence[int]) -> list[Planned]:
    """Each of the cells and arms, and of what they start from, with each of the seeds.

    Raises:
        StoreError: a cell or an arm that the study has no run of, or whose data are others now; a file that was edited.
        ConfigError: data that cannot be read.
    """
    like: dict[Comparison, dict[str, Any]] = {}
    damaged: dict[Comparison, dict[str, Any]] = {}
    for entry in folder.study()["plan"]:
        where = (entry["cell"], entry["arm"])
        if where not in like:
            is_whole = folder.run(entry["fingerprint"]).config_if_whole() is not None
            (like if is_whole else damaged).setdefault(where, entry)
    like = damaged | like
    by_name = {e["fingerprint"]: (e["cell"], e["arm"]) for e in folder.study()["plan"]}
    digests: dict[str, str] = {}
    made: dict[tuple[str, str, int], Planned] = {}
    for where in with_sources(folder, wanted):
        if where not in like:
            raise StoreError(f"{folder.path}: has no run of {where[0]} with {where[1]} to do again with other seeds")
        entry, (cell, arm) = like[where], where
        run = validate(Run, folder.run(entry["fingerprint"]).config())
        if cell not in digests:
            digests[cell] = open_source(run.data).digest
        if fingerprint(run, digests[cell]) != entry["fingerprint"]:
            raise StoreError(
                f"{folder.path}: {cell} with {arm} would not be {entry['fingerprint']} again, since its data have changed;"
                " put those back that the study was run on"
            )
        source = by_name.get(entry.get("init_from"))
        for seed in seeds:
            start = made[*source, seed].fingerprint if source else run.init_from
            again = run.model_copy(update={"seed": seed, "init_from": start})
            name = fingerprint(again, digests[cell])
            n, over = entry["n_parameters"], entry["remainder"]
            made[cell, arm, seed] = Planned(cell, arm, seed, again, name, n, over, source is not None)
    return list(made.values())
