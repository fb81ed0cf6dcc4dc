"""From a study to runs: resolve, match parameters, name. The plan is what study.json holds and the ledger works on."""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import ConfigError, Run, canonical, fingerprint, override
from ..data import Source, check_lengths, open_source
from ..models.sizes import count_parameters, match_d_ff
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
    for cell, base in study.cells.items():
        try:
            source = sources[cell] = open_source(base.data)
            check_lengths(source, base.train.seq_len)
        except ValueError as error:
            problems += [p for p in [f"cell {cell}: {error}"] if p not in problems]
            continue
        target = None
        for arm in study.arms:
            try:
                resolved = _resolved(base, arm, source)
                # The baseline comes first and keeps its width; so does an arm whose width is what it is about.
                target = target or count_parameters(resolved.model)
                if study.match is not None and study.match not in arm.changes:
                    resolved = _matched(resolved, target, study.match_unit)
            except ValueError as error:
                problems += [f"cell {cell}, arm {arm.name}: {p}" for p in str(error).splitlines()]
                continue
            n = count_parameters(resolved.model)
            for seed in study.seed_values:
                run = resolved.model_copy(update={"seed": seed})
                runs.append(Planned(cell, arm.name, seed, run, fingerprint(run, source.digest), n, n - target))
    if problems:
        raise ConfigError(problems)
    return Plan(study, runs, sources)


def _resolved(base: Run, arm: Arm, source: Source) -> Run:
    run = override(base, arm.changes)
    check_lengths(source, run.train.seq_len)
    if run.model.vocab_size is not None and run.model.vocab_size < source.vocab_size:
        raise ConfigError(
            [f"model.vocab_size={run.model.vocab_size} is less than the data's {source.vocab_size} ids; leave it out"]
        )
    return run.model_copy(update={"model": run.model.resolved(source.vocab_size, run.train.seq_len)})


def _matched(run: Run, target: int, unit: int) -> Run:
    # Only what differs is narrowed: a width that fits is not rounded to the unit.
    if count_parameters(run.model) == target:
        return run
    return run.model_copy(update={"model": match_d_ff(run.model, target, unit)})
