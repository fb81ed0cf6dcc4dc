"""From a study to runs: resolve, match parameters, name. The plan is what study.json holds and the ledger works on."""

import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import ConfigError, Run, canonical, fingerprint, override
from ..data import Source, check_lengths, open_source
from ..models.sizes import count_parameters, match_d_ff, parameter_shapes
from ..train.cost import run_flops, state_bytes
from .metrics import choose
from .study import Arm, Study, label_of


@dataclass(frozen=True)
class Planned:
    """One run of the plan. `remainder` is its parameters minus the baseline's, after matching."""

    cell: str
    arm: str
    seed: int
    run: Run
    fingerprint: str
    n_parameters: int
    remainder: int
    is_planned_source: bool = False  # whether what it starts from is a run of the same plan

    def entry(self, out: Path) -> dict[str, Any]:
        """What study.json keeps; `command` reproduces this one run, given where the study was run."""
        config = shlex.quote(str(out / "runs" / self.fingerprint / "run.json"))
        return {
            "cell": self.cell,
            "arm": self.arm,
            "seed": self.seed,
            "fingerprint": self.fingerprint,
            "n_parameters": self.n_parameters,
            "remainder": self.remainder,
            "d_ff": self.run.model.d_ff,
            "steps": self.run.train.steps,
            "tokens": self.run.train.steps * self.run.train.tokens_per_step,
            "flops": run_flops(self.run),
            "state_bytes": state_bytes(self.run),
            "init_from": self.run.init_from if self.is_planned_source else None,
            "command": f"gatelab train --config {config} --out runs/reproduced",
        }


@dataclass(frozen=True)
class Plan:
    """All runs of a study, and its sources by cell."""

    study: Study
    runs: list[Planned]
    sources: dict[str, Source]

    def entries(self, out: Path) -> list[dict[str, Any]]:
        """The plan as study.json keeps it."""
        return [p.entry(out) for p in self.runs]

    def as_json(self, out: Path) -> dict[str, Any]:
        """The content of study.json."""
        s = self.study
        return {
            "name": s.name,
            "question": s.question,
            "version": __version__,
            "baseline": s.baseline.name,
            "seeds": list(s.seed_values),
            "match": s.match,
            "cells": [
                {
                    "name": name,
                    "title": name,
                    "about": s.about.get(name, ""),
                    "data": self.sources[name].description,
                    "base": canonical(run),
                }
                for name, run in s.cells.items()
            ],
            "arms": [
                {
                    "name": a.name,
                    "label": label_of(a),
                    "changes": {k: str(v) for k, v in a.changes.items()},
                    "control": a.control,
                }
                for a in s.arms
            ],
            "metrics": [asdict(m) for m in choose(s.primary, s.equivalence)],
            "execution": canonical(s.execution),
            "plan": self.entries(out),
        }


def make_plan(study: Study) -> Plan:
    """Resolve every run of the study.

    Raises:
        ConfigError: parameters that cannot be matched, a text that is too short (`DataError`), listing all.
    """
    runs, sources, problems = [], {}, []
    of_arms: list[tuple[str, str, str]] = []  # cell, arm, what is wrong with it
    planned: dict[tuple[str, str, int], Planned] = {}
    for cell in _in_order(study):
        base = study.cells[cell]
        try:
            source = sources[cell] = open_source(base.data)
            check_lengths(source, base.train.seq_len)
        except ValueError as error:
            problems += [p for p in [f"cell {cell}: {error}"] if p not in problems]
            continue
        target = None
        for arm in study.arms_of(cell):
            try:
                resolved = _resolved(base, arm, source)
                # The baseline comes first and keeps its width; so does an arm whose width is what it is about.
                target = target or count_parameters(resolved.model)
                if study.match is not None and not {study.match, "model.moe.d_expert"} & set(arm.changes):
                    resolved = _matched(resolved, target, study.match_unit)
                study.execution.parallel.check(resolved.model, resolved.train.batch_size, study.execution.processes)
            except ValueError as error:
                of_arms += [(cell, arm.name, p) for p in str(error).splitlines()]
                continue
            n = count_parameters(resolved.model)
            for seed in study.seed_values:
                run = resolved.model_copy(update={"seed": seed})
                before = study.source_of(cell, arm.name)
                first = planned.get((*before, seed)) if before else None
                if first is not None:
                    of_arms += [(cell, arm.name, p) for p in _misfits(first, run) if seed == study.seed_values[0]]
                    run = run.model_copy(update={"init_from": first.fingerprint})
                name = fingerprint(run, source.digest)
                entry = Planned(cell, arm.name, seed, run, name, n, n - target, first is not None)
                planned[cell, arm.name, seed] = entry
                runs.append(entry)
    if problems or of_arms:
        raise ConfigError(problems + _merged(of_arms, sum(len(study.arms_of(cell)) for cell in study.cells)))
    return Plan(study, runs, sources)


def _merged(of_arms: list[tuple[str, str, str]], n_arms: int) -> list[str]:
    """One line a sentence, whatever its numbers, with how many of the arms of all cells it is about."""
    alike: dict[str, list[tuple[str, str, str]]] = {}
    for problem in of_arms:
        alike.setdefault(re.sub(r"\d+", "#", problem[2]), []).append(problem)
    out = []
    for among in alike.values():
        (cell, arm, sentence), n = among[0], len({problem[:2] for problem in among})
        if n == 1:
            out += [f"cell {cell}, arm {arm}: {problem[2]}" for problem in among]
            continue
        is_all = n == n_arms and len({problem[2] for problem in among}) == 1
        out.append(f"{n} of {n_arms} arms{'' if is_all else f', such as {arm} of cell {cell}'}: {sentence}")
    return out


def _in_order(study: Study) -> list[str]:
    """The cells as they stand, each after what it goes on from."""
    order: list[str] = []
    for cell in study.cells:
        chain = [cell]
        while (source := study.source_of(chain[-1], "")) is not None:
            chain.append(source[0])
        order += [c for c in reversed(chain) if c not in order]
    return order


def _misfits(source: Planned, run: Run) -> list[str]:
    """Weights of the source that this run has in another shape, or not at all."""
    there, here = parameter_shapes(source.run.model), parameter_shapes(run.model)
    wrong = [n for n, shape in there.items() if here.get(n) != shape]
    if not wrong:
        return []
    match = "; set match=None, which narrows no weights" if any("mlp" in n for n in wrong) else ""
    return [
        f"starts from cell {source.cell}, arm {source.arm}, whose {wrong[0]} has shape {there[wrong[0]]} and here "
        f"{here.get(wrong[0], 'is not')}{match}"
    ]


def _resolved(base: Run, arm: Arm, source: Source) -> Run:
    run = override(base, arm.changes)
    check_lengths(source, run.train.seq_len)
    return run.resolved(source.vocab_size)


def _matched(run: Run, target: int, unit: int) -> Run:
    # Only what differs is narrowed: a width that fits is not rounded to the unit.
    if count_parameters(run.model) == target:
        return run
    return run.model_copy(update={"model": match_d_ff(run.model, target, unit)})
