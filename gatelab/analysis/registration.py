"""What is written down before the runs of either stage (stages.py): the screen's declaration, and the registration of claims."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any

from .anomalies.alarm import Rule

EFFECT = "effect"  # the rule of a claim that is no anomaly


@dataclass(frozen=True, slots=True)
class Claim:
    """What the screen saw: `direction` is −1 or 1 of an effect, 0 of an anomaly, whose rule has its own."""

    rule: str
    cell: str
    arm: str
    reading: str
    direction: int
    p: float
    q: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A claim on fresh seeds: `p` one-sided there, `p_holm` after Holm; confirmed, not confirmed, or untestable. `notes` name
    the runs that were left out, and why nothing could be tested."""

    claim: Claim
    n_pairs: int
    p: float
    p_holm: float
    verdict: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Registration:
    """The content of confirmation.json. `priors` are (arm, reading, degrees of freedom, variance); `needs` (cell, arm) of the
    runs that the claims' tests read, so that these can be carried out where the screen's rows are not; `graded` the readings that
    count seeds only where these fall into two groups. A registration without it is older than that rule, and counts them always.
    `equal` are (rule, cell, arm, reading, the rule that stands for it) of claims that another one's test is. `digest` is of all
    the rest as it was written; empty of an older one, of which nothing tells whether it was changed."""

    claims: list[Claim]
    seeds: list[int]
    screened_seeds: list[int]
    alpha: float
    fdr: float
    priors: list[tuple[str, str, float, float]]
    needs: list[tuple[str, str]] = field(default_factory=list)
    graded: list[str] = field(default_factory=list)
    equal: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    digest: str = field(default="", compare=False)

    def as_json(self) -> dict[str, Any]:
        """With the digest of what it is now."""
        content = asdict(self)
        return content | {"digest": _digest(content)}

    @classmethod
    def read(cls, value: dict[str, Any]) -> "Registration":
        """Raises ValueError where the file was edited beyond reading."""
        try:
            claims = [Claim(**c) for c in value["claims"]]
            pairs = {key: [tuple(x) for x in value.get(key, [])] for key in ("priors", "needs", "equal")}
            found = cls(**{**value, **pairs, "claims": claims})
        except (KeyError, TypeError):
            found = None
        if found is None or not found._is_sound():
            raise ValueError(
                "its claims, seeds, level or variances are not as `--register` writes them; was it edited?"
            )
        if found.digest and found.digest != _digest(value):
            raise ValueError(
                "it is not what `--register` wrote, by the digest that it holds; was it edited? Put the registered one back, or"
                " remove it and register on seeds that have no run"
            )
        return found

    @property
    def notes(self) -> list[str]:
        """What to know before its verdicts."""
        if self.digest:
            return []
        return ["the registration is of a version that kept no digest of it: nothing tells whether it was edited since"]

    def _is_sound(self) -> bool:
        lists = (self.claims, self.seeds, self.screened_seeds)
        return (
            all(isinstance(x, list) and x for x in lists)
            and all(type(s) is int for s in (*self.seeds, *self.screened_seeds))
            and not {*self.seeds} & {*self.screened_seeds}
            and isinstance(self.alpha, float)
            and 0 < self.alpha < 1
            and all(isinstance(x, str) for c in self.claims for x in (c.rule, c.cell, c.arm, c.reading))
            and all(c.direction in (-1, 0, 1) for c in self.claims)
            and all(len(p) == 4 and all(isinstance(x, float) and x > 0 for x in p[2:]) for p in self.priors)
            and all(len(n) == 2 and all(isinstance(x, str) for x in n) for n in self.needs)
            and all(isinstance(x, str) for x in self.graded)
            and all(len(x) == 5 and all(isinstance(word, str) for word in x) for x in self.equal)
            and isinstance(self.digest, str)
        )


def _digest(content: Mapping[str, Any]) -> str:
    """Of a registration's content as JSON, in any order of its keys and but for the digest itself."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def declaration(rules: Sequence[Rule], study: dict[str, Any], fdr: float) -> dict[str, Any]:
    """The content of screen.json, of what study.json says."""
    return {
        "rules": [rule.name for rule in rules],
        "primary": [m["name"] for m in study["metrics"] if m["primary"]],
        "baseline": study["baseline"],
        "arms": [a["name"] for a in study["arms"]],
        "cells": [c["name"] for c in study["cells"]],
        "seeds": study["seeds"],
        "fdr": fdr,
    }


def ranges(seeds: Sequence[int]) -> str:
    """`0, 1` of seeds; of three or more that follow one another `516..527`."""
    spans: list[list[int]] = []
    for seed in sorted(seeds):
        if spans and seed == spans[-1][-1] + 1:
            spans[-1].append(seed)
        else:
            spans.append([seed])
    return ", ".join(f"{s[0]}..{s[-1]}" if len(s) > 2 else ", ".join(map(str, s)) for s in spans)


def departures(declared: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is looked at now and was not declared before the runs: a sentence each."""
    out = []
    for key, words in (("rules", "rule"), ("primary", "primary metric"), ("arms", "arm"), ("cells", "cell")):
        added = [x for x in now[key] if x not in declared.get(key, [])]
        out += [f"not declared before the runs: {words} {', '.join(added)}"] if added else []
    for key in ("baseline", "fdr"):
        if declared.get(key) != now[key]:
            out.append(f"not as declared before the runs: {key} is {now[key]}, was {declared.get(key)}")
    added = [s for s in now["seeds"] if s not in declared.get("seeds", now["seeds"])]
    if added:
        out.append(
            f"seeds {ranges(added)} were not declared before the runs: where they were added after a look, the share of"
            " false discoveries is larger than it says; confirm on fresh ones"
        )
    return out
