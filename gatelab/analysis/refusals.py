"""What may not be compared: runs that saw different numbers of tokens, and pairs whose two runs are of two versions.

A version is the code and torch, as a run's environment.json names them: the code by the hash of its files, in older runs by the
commit. A run that names no code is of a version of its own beside runs that do; where none of a study does, all count as of one,
and a note says so.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..store import RunFolder, read_json
from .paired import Outcome

Run = tuple[dict[str, Any], RunFolder, str]  # its plan's entry, its folder, its state
Comparison = tuple[str, str]  # cell, arm

UNKNOWN = "the version of the code is not known: no run's environment.json names it"
_MANY = 6  # comparisons that a note names


@dataclass(frozen=True, slots=True)
class Version:
    """`code` and `torch` tell versions apart, empty where a run does not name them; `said` is the code in words."""

    code: str
    torch: str
    said: str = field(compare=False)


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
    for entry, run, state in runs:
        where = (entry["cell"], entry["arm"])
        made.setdefault(where, {})
        if "tokens" in entry:
            tokens.setdefault(where, {})[entry["seed"]] = entry["tokens"]
        if state in ("done", "diverged"):
            made[where][entry["seed"]] = version_of(run)
    refused, unpaired, kept = {}, {}, {}
    for cell, arm in made:
        if arm == baseline:
            continue
        why = _uneven(arm, baseline, tokens.get((cell, arm), {}), tokens.get((cell, baseline), {}))
        ours, theirs = made[cell, arm], made.get((cell, baseline), {})
        both = sorted(ours.keys() & theirs.keys())
        unlike = [s for s in both if ours[s] != theirs[s]]
        if not why and both and len(unlike) == len(both):
            why = f"no pair of its runs is of one version ({_two(theirs[both[0]], ours[both[0]], baseline, arm)[1]}); carry the"
            why += " older ones out again"
        if why:
            refused[cell, arm] = f"refused: {why}"
            continue
        for s in unlike:
            what, words = _two(theirs[s], ours[s], baseline, arm)
            unpaired[cell, arm, s] = f"seed {s} is of two versions of {what} ({words})"
        kept[cell, arm] = {s: ours[s] for s in both if s not in unlike}
    every = frozenset(v for by_seed in made.values() for v in by_seed.values())
    return Refusals(refused, unpaired, _not_pooled(kept), every, _notes(every, kept, unpaired))


def version_of(run: RunFolder) -> Version:
    """Of the code and torch that a run was made by, as far as it says."""
    path = run.path / "environment.json"
    environment = read_json(path) if path.exists() else {}
    versions, git, code = environment.get("versions", {}), environment.get("git"), environment.get("code")
    commit = f"{git['commit'][:12]}{' with changes' if git['modified'] else ''}" if git else ""
    named = " ".join(filter(None, (versions.get("gatelab", ""), commit)))
    # A run that went on under other code is of neither alone.
    code = " then ".join(filter(None, (*environment.get("earlier_code", ()), code)))
    said = ", ".join(filter(None, (named, f"code {code}" if code else ""))) or "not recorded"
    return Version(f"code {code}" if code else named, versions.get("torch", ""), said)


def _uneven(arm: str, baseline: str, ours: Mapping[int, int], theirs: Mapping[int, int]) -> str:
    for s in ours:
        if s in theirs and ours[s] != theirs[s]:
            return f"seed {s} sees {ours[s]:,} tokens with {arm} and {theirs[s]:,} with {baseline}; give both as many"
    return ""


def _two(first: Version, second: Version, baseline: str, arm: str) -> tuple[str, str]:
    """In what two versions differ, and how."""
    what = "the code" if first.code != second.code else "torch"
    a, b = ((v.said if what == "the code" else v.torch or "not recorded") for v in (first, second))
    return what, f"{baseline}: {a}; {arm}: {b}"


def _not_pooled(kept: Mapping[Comparison, Mapping[int, Version]]) -> str:
    """Cells may be seen together where a seed is of one version in all of them, so that no difference between cells is one of
    versions: seeds that were added later are then of another in every cell alike."""
    by_seed: dict[int, set[Version]] = {}
    by_cell: dict[str, set[Version]] = {}
    for (cell, _), versions in kept.items():
        for s, v in versions.items():
            by_seed.setdefault(s, set()).add(v)
            by_cell.setdefault(cell, set()).add(v)
    is_one = all(len(v) == 1 for v in by_seed.values()) and (not by_cell or set.intersection(*by_cell.values()))
    if is_one:
        return ""
    every = set().union(*by_cell.values())
    return f"the cells were made by {_counted(every)}"


def _counted(versions: set[Version]) -> str:
    codes = {v.code for v in versions}
    return f"{len(versions)} versions of {'the code' if len(codes) > 1 else 'torch'}"


def _notes(
    made: frozenset[Version],
    kept: Mapping[Comparison, Mapping[int, Version]],
    unpaired: Mapping[tuple[str, str, int], str],
) -> list[str]:
    notes = [UNKNOWN] if made and all(not v.code for v in made) else []
    by_comparison: dict[Comparison, list[int]] = {}
    for cell, arm, s in unpaired:
        by_comparison.setdefault((cell, arm), []).append(s)
    if by_comparison:
        said = [f"{c}, {a}: seed{'s' * (len(s) > 1)} {', '.join(map(str, s))}" for (c, a), s in by_comparison.items()]
        more = f"; and {len(said) - _MANY} comparisons more" if len(said) > _MANY else ""
        notes.append(f"pairs are left out whose two runs are of two versions: {'; '.join(said[:_MANY])}{more}")
    mixed = [where for where, versions in kept.items() if len(set(versions.values())) > 1]
    if mixed:
        there = {v for where in mixed for v in kept[where].values()}
        notes.append(
            f"pairs of {_counted(there)} are compared together in {len(mixed)} of {len(kept)} comparisons"
            f" ({_listed(there)}); the two runs of each pair are of one"
        )
    return notes


def _listed(versions: Iterable[Version]) -> str:
    """By what they differ in: the code, torch, or both."""
    ordered: Sequence[Version] = sorted(versions, key=lambda v: (v.said, v.torch))
    torches = {v.torch for v in ordered}
    both = [f"{v.said} with torch {v.torch or 'not recorded'}" if len(torches) > 1 else v.said for v in ordered]
    return "; ".join(both)
