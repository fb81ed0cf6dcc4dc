"""What may not be compared: runs that saw different numbers of tokens, and pairs whose two runs are of two versions.

A version is the code, torch and the precision of the computation, as a run's environment.json names them: the code by the hash of
its files, in older runs by the commit. A run that names no code is of a version of its own beside runs that do; where none of a
study does, all count as of one, and a note says so. A precision that a run's configuration states, rather than leave it to the
machine, is what is compared and no matter of its version; nor is one that is not recorded. A CPU beside a GPU is noted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..store import RunFolder
from ..study.grouping import environment_of
from .paired import Outcome

Run = tuple[dict[str, Any], RunFolder, str]  # its plan's entry, its folder, its state
Comparison = tuple[str, str]  # cell, arm

UNKNOWN = "the version of the code is not known: no run's environment.json names it"
PRECISIONS = "precisions"
_MANY = 6  # comparisons that a note names


@dataclass(frozen=True, slots=True)
class Version:
    """`code`, `torch` and `dtype` tell versions apart, empty where a run does not name them; `said` is the code in words,
    `place` 'CPU' or 'GPU'."""

    code: str
    torch: str
    said: str = field(compare=False)
    dtype: str = ""
    place: str = field(default="", compare=False)

    def is_like(self, other: "Version") -> bool:
        """Whether two runs of these make a pair."""
        return (self.code, self.torch) == (other.code, other.torch) and (
            self.dtype == other.dtype or not self.dtype or not other.dtype
        )


@dataclass(frozen=True)
class Refusals:
    """`refused` {(cell, arm): why} are whole comparisons, `unpaired` {(cell, arm, seed): why} pairs of the others; `not_pooled`
    says why nothing may be said over cells, empty where it may; `made` are the versions that made what ended; `notes` are what
    to know of versions before reading."""

    refused: dict[Comparison, str]
    unpaired: dict[tuple[str, str, int], str]
    not_pooled: str
    made: frozenset[Version]
    notes: list[str]

    @property
    def versions(self) -> set[str]:
        """Those of the code, in words; empty where no run names any."""
        said = {v.code: v.said for v in sorted(self.made, key=lambda v: (v.code, v.torch))}
        return set() if set(said) == {""} else set(said.values())

    def marked(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """The outcomes, those of runs that make no pair with their baseline's saying so."""
        return [
            replace(o, unpaired=self.unpaired[key]) if (key := (o.cell, o.arm, o.seed)) in self.unpaired else o
            for o in outcomes
        ]


def refusals(runs: Iterable[Run], baseline: str) -> Refusals:
    """Of planned runs. What counts is that the two runs of a pair are of one version: pairs that are not are left out, a
    comparison without any other is refused, and mixtures across pairs are noted."""
    tokens: dict[Comparison, dict[int, int]] = {}
    made: dict[Comparison, dict[int, Version]] = {}
    folders: dict[tuple[Comparison, int], RunFolder] = {}
    for entry, run, state in runs:
        where = (entry["cell"], entry["arm"])
        made.setdefault(where, {})
        if "tokens" in entry:
            tokens.setdefault(where, {})[entry["seed"]] = entry["tokens"]
        if state in ("done", "diverged"):
            made[where][entry["seed"]] = version_of(run)
            folders[where, entry["seed"]] = run
    if len({v.dtype for by_seed in made.values() for v in by_seed.values()}) > 1:
        for (where, seed), run in folders.items():
            if _states_precision(run):
                made[where][seed] = replace(made[where][seed], dtype="")
    refused, unpaired, kept, beside = {}, {}, {}, {}
    for cell, arm in made:
        if arm == baseline:
            continue
        why = _uneven(arm, baseline, tokens.get((cell, arm), {}), tokens.get((cell, baseline), {}))
        ours, theirs = made[cell, arm], made.get((cell, baseline), {})
        both = sorted(ours.keys() & theirs.keys())
        unlike = [s for s in both if not ours[s].is_like(theirs[s])]
        if not why and both and len(unlike) == len(both):
            what, words = _two(theirs[both[0]], ours[both[0]], baseline, arm)
            one, again = ("version", "the older ones out again") if what != PRECISIONS else (
                "precision", "one side out again on machines like the other's, or state train.precision for both")  # fmt: skip
            why = f"no pair of its runs is of one {one} ({words}); carry {again}"
        if why:
            refused[cell, arm] = f"refused: {why}"
            continue
        for s in unlike:
            what, words = _two(theirs[s], ours[s], baseline, arm)
            unpaired[cell, arm, s] = f"seed {s} is of two {what} ({words})"
        # Of the two, which are alike, the baseline's: an arm may state its precision.
        kept[cell, arm] = {s: theirs[s] for s in both if s not in unlike}
        if two := [s for s in kept[cell, arm] if {ours[s].place, theirs[s].place} == {"CPU", "GPU"}]:
            beside[cell, arm] = two
    every = frozenset(v for by_seed in made.values() for v in by_seed.values())
    return Refusals(refused, unpaired, _not_pooled(kept), every, _notes(every, kept, unpaired, beside))


def version_of(run: RunFolder) -> Version:
    """Of the code and torch that a run was made by, as far as it says."""
    environment = environment_of(run) or {}
    versions, git, code = environment.get("versions", {}), environment.get("git"), environment.get("code")
    commit = f"{git['commit'][:12]}{' with changes' if git['modified'] else ''}" if git else ""
    named = " ".join(filter(None, (versions.get("gatelab", ""), commit)))
    # A run that went on under other code is of neither alone.
    code = " then ".join(filter(None, (*environment.get("earlier_code", ()), code)))
    said = ", ".join(filter(None, (named, f"code {code}" if code else ""))) or "not recorded"
    device = str(environment.get("device") or "")
    place = ("CPU" if device == "cpu" else "GPU") if device else ""
    dtype = str(environment.get("compute_dtype") or "")
    return Version(f"code {code}" if code else named, versions.get("torch", ""), said, dtype, place)


def _states_precision(run: RunFolder) -> bool:
    """Whether its configuration says in what to compute."""
    train = (run.config_if_whole() or {}).get("train") or {}
    return train.get("precision", "auto") != "auto"


def _uneven(arm: str, baseline: str, ours: Mapping[int, int], theirs: Mapping[int, int]) -> str:
    for s in ours:
        if s in theirs and ours[s] != theirs[s]:
            return f"seed {s} sees {ours[s]:,} tokens with {arm} and {theirs[s]:,} with {baseline}; give both as many"
    return ""


def _two(first: Version, second: Version, baseline: str, arm: str) -> tuple[str, str]:
    """In what two versions differ, and how."""
    if first.code != second.code:
        what, (a, b) = "versions of the code", (first.said, second.said)
    elif first.torch != second.torch:
        what, (a, b) = "versions of torch", (first.torch or "not recorded", second.torch or "not recorded")
    else:
        what, (a, b) = PRECISIONS, (first.dtype, second.dtype)
    return what, f"{baseline}: {a}; {arm}: {b}"


def _not_pooled(kept: Mapping[Comparison, Mapping[int, Version]]) -> str:
    """Cells may be seen together where a seed is of one version in all of them, so that no difference between cells is one of
    versions: seeds that were added later are then of another in every cell alike."""
    by_seed: dict[int, set[Version]] = {}
    by_cell: dict[str, set[Version]] = {}
    dtypes = {v.dtype for versions in kept.values() for v in versions.values() if v.dtype}
    for (cell, _), versions in kept.items():
        for s, v in versions.items():
            # A precision that was stated, or not recorded, is no version beside the only other one.
            v = replace(v, dtype="") if len(dtypes) == 1 else v
            by_seed.setdefault(s, set()).add(v)
            by_cell.setdefault(cell, set()).add(v)
    is_one = all(len(v) == 1 for v in by_seed.values()) and (not by_cell or set.intersection(*by_cell.values()))
    if is_one:
        return ""
    every = set().union(*by_cell.values())
    return f"the cells were made by {_counted(every)}"


def _counted(versions: set[Version]) -> str:
    what = (
        "versions of the code" if len({v.code for v in versions}) > 1
        else "versions of torch" if len({v.torch for v in versions}) > 1
        else PRECISIONS
    )  # fmt: skip
    return f"{len(versions)} {what}"


def _notes(
    made: frozenset[Version],
    kept: Mapping[Comparison, Mapping[int, Version]],
    unpaired: Mapping[tuple[str, str, int], str],
    beside: Mapping[Comparison, Sequence[int]],
) -> list[str]:
    notes = [UNKNOWN] if made and all(not v.code for v in made) else []
    by_comparison: dict[str, dict[Comparison, list[int]]] = {}
    for (cell, arm, s), why in unpaired.items():
        what = PRECISIONS if f"of two {PRECISIONS} (" in why else "versions"
        by_comparison.setdefault(what, {}).setdefault((cell, arm), []).append(s)
    for what, of in by_comparison.items():
        notes.append(f"pairs are left out whose two runs are of two {what}: {_seeds(of)}")
    if beside:
        notes.append(f"a run on a CPU and one on a GPU, of one precision, are compared as pairs: {_seeds(beside)}")
    mixed = [where for where, versions in kept.items() if len(set(versions.values())) > 1]
    if mixed:
        there = {v for where in mixed for v in kept[where].values()}
        notes.append(
            f"pairs of {_counted(there)} are compared together in {len(mixed)} of {len(kept)} comparisons"
            f" ({_listed(there)}); the two runs of each pair are of one"
        )
    return notes


def _seeds(of: Mapping[Comparison, Sequence[int]]) -> str:
    """The seeds of some comparisons, and how many more there are."""
    said = [f"{c}, {a}: seed{'s' * (len(s) > 1)} {', '.join(map(str, s))}" for (c, a), s in of.items()]
    more = f"; and {len(said) - _MANY} comparisons more" if len(said) > _MANY else ""
    return f"{'; '.join(said[:_MANY])}{more}"


def _listed(versions: Iterable[Version]) -> str:
    """By what they differ in besides the code: torch, precision, or both."""
    ordered: Sequence[Version] = sorted(versions, key=lambda v: (v.said, v.torch, v.dtype))
    torches, dtypes = {v.torch for v in ordered}, {v.dtype for v in ordered}
    said = []
    for v in ordered:
        torch = f" with torch {v.torch or 'not recorded'}" if len(torches) > 1 else ""
        dtype = f" in {v.dtype or 'the precision that it states'}" if len(dtypes) > 1 else ""
        said.append(f"{v.said}{torch}{dtype}")
    return "; ".join(said)
