"""Several studies side by side: where each setting lies by its configuration, and which of their arms are one and the same.

Nothing is pooled over studies: a comparison keeps its study, and recommendations count study and setting.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from .arithmetic import Range, joined
from .atlas_views import Views
from .confirmed import once
from .ledger_of_claims import Entry
from .planned import Open
from .recommend import Advice
from .registration import EFFECT, Claim, Verdict
from .standing import Against, Answer, Told, answers

# What the map of effects can be drawn of, beside its words.
METRICS = {
    "val_loss": "held-out loss",
    "first_token_mass": "first-token mass",
    "task_accuracy@1x": "accuracy at the length of training",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a setting lies: its architecture, its data in words, and the parameters of its baseline."""

    architecture: str
    data: str
    n_parameters: int


@dataclass(frozen=True, slots=True)
class Sheet:
    """A study of the atlas. `arms` {its name there: the name here}, without the baseline; `labels` {name here: its words there};
    `places` {setting: place}; `runs` {(cell, its name there): the finished ones of the screen}; `advice` may be why nothing is
    recommended; `registered` are the claims of anomalies and effects, `verdicts` what fresh seeds said of those that were read;
    `pages` {word: relative address} lie beside the atlas, `#NAME` being the section of that name of the study's own page; `views`
    is what is drawn. `plan` {(cell, arm, seed): steps} was planned, of which `n_open` have not ended; `again` is the command
    that takes these up. `otherwise` are the cells that read their data in another way than the built-in study's of these names;
    `arithmetic` {an arm's name here: its operations a token over the baseline's}."""

    letter: str
    name: str
    question: str
    seeds: list[int]
    n_runs: int
    n_done: int
    versions: set[str]
    arms: dict[str, str]
    labels: dict[str, str]
    controls: set[str]
    places: dict[str, Place]
    runs: dict[tuple[str, str], frozenset[str]]
    advice: Advice | str
    registered: list[Claim]
    verdicts: list[Verdict]
    flags: list[str]
    pages: dict[str, str] = field(default_factory=dict)
    views: Views | None = None
    plan: dict[tuple[str, str, int], int] = field(default_factory=dict)
    n_open: int = 0
    again: str = ""
    otherwise: frozenset[str] = frozenset()
    arithmetic: dict[str, Range] = field(default_factory=dict)

    @property
    def confirmed(self) -> list[Verdict]:
        """The verdicts that confirm their claim, a test once."""
        return [v for v in once(self.verdicts) if v.verdict == "confirmed"]

    @property
    def told(self) -> list[Told]:
        """Its comparisons under the names of the atlas, a setting behind the study's letter."""
        if isinstance(self.advice, str):
            return []
        return [
            replace(t, arm=self.arms[t.arm], setting=f"{self.letter} {t.setting}")
            for t in self.advice.told
            if t.arm in self.arms
        ]

    @property
    def against(self) -> list[Against]:
        """What speaks against its arms beside their settings."""
        if isinstance(self.advice, str):
            return []
        named = [a for a in self.advice.against if a.arm in self.arms]
        return [replace(a, arm=self.arms[a.arm], cell=f"{self.letter} {a.cell}") for a in named]

    def runs_of(self, setting: str, arm: str) -> frozenset[str]:
        """The arm's runs in a setting, both as `told` names them: those of its best cell."""
        if isinstance(self.advice, str):
            return frozenset()
        there = setting.removeprefix(f"{self.letter} ")
        names = [name for name, here in self.arms.items() if here == arm]
        return frozenset().union(
            *(self.runs.get((self.advice.at_best.best.get((there, n), ""), n), frozenset()) for n in names)
        )

    @property
    def compared(self) -> list[frozenset[str]]:
        """The runs of every cell and arm, of the arms of which something is told."""
        told = {t.arm for t in self.told}
        return [runs for (_, name), runs in self.runs.items() if self.arms.get(name) in told]

    def place(self, setting: str) -> Place:
        """Of a setting as `told` names it."""
        return self.places[setting.removeprefix(f"{self.letter} ")]


@dataclass(frozen=True, slots=True)
class Counted:
    """Registered claims: how many fresh seeds confirmed, of how many that they were read for; how many more are the test of one of
    these; how many wait for their runs."""

    confirmed: int
    read: int
    again: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Atlas:
    """`refused` are (what, why) of sources that could not be read; `claims` is None where no page of the ledger's is there; `open`
    is what was planned and not run."""

    sheets: list[Sheet]
    refused: list[tuple[str, str]]
    claims: list[Entry] | None = None
    open: list[Open] = field(default_factory=list)

    def counted(self, *, effects: bool) -> "Counted":
        """The registered claims of anomalies, or those of `effects`."""
        read = [v for s in self.sheets for v in once(s.verdicts) if (v.claim.rule == EFFECT) == effects]
        n = sum((v.claim.rule == EFFECT) == effects for s in self.sheets for v in s.verdicts)
        registered = sum((c.rule == EFFECT) == effects for s in self.sheets for c in s.registered)
        return Counted(sum(v.verdict == "confirmed" for v in read), len(read), n - len(read), registered - n)

    @property
    def answers(self) -> list[Answer]:
        """Which arm for which use, over the settings of all studies; comparisons whose runs are those of another study once."""
        twice = self.repeated
        counted = [s for s in self.sheets if s.letter not in taken_from(self.sheets)]
        told = [t for s in counted for t in s.told if (t.setting, t.arm) not in twice]
        return answers(told, [a for s in counted for a in s.against])

    @property
    def repeated(self) -> dict[tuple[str, str], str]:
        """{(setting, arm): letter of the study} of comparisons whose runs are among those of one cell that another study
        compares; of two that have the same the later is such."""
        out, compared = {}, [s.compared for s in self.sheets]
        for i, s in enumerate(self.sheets):
            for setting, arm in dict.fromkeys((t.setting, t.arm) for t in s.told):
                own = s.runs_of(setting, arm)
                for j, other in enumerate(self.sheets):
                    if own and any(own < there or (own == there and j < i) for there in compared[j]) and i != j:
                        out[setting, arm] = other.letter
        return out

    @property
    def arms(self) -> list[str]:
        """Every arm once: those of the most settings first, and what is only ever a control last."""
        once = dict.fromkeys(arm for s in self.sheets for arm in s.arms.values())
        settings = {arm: sum(len(s.places) for s in self.sheets if arm in s.labels) for arm in once}
        return sorted(once, key=lambda arm: (arm in self.controls, -settings[arm]))

    @property
    def arithmetic(self) -> dict[str, Range]:
        """{arm: the least and the most of its operations a token over its baseline's}, over all studies."""
        out: dict[str, Range] = {}
        for s in self.sheets:
            out = joined(out, s.arithmetic)
        return out

    @property
    def controls(self) -> list[str]:
        """The arms that every study which has them calls a control."""
        gates = {a for s in self.sheets for a in s.labels if a not in s.controls}
        return sorted({c for s in self.sheets for c in s.controls} - gates)

    @property
    def places(self) -> list[Place]:
        """Every place once, by architecture, size and data."""
        once = {place for s in self.sheets for place in s.places.values()}
        return sorted(once, key=lambda p: (p.architecture, p.data, p.n_parameters))

    @property
    def sizes(self) -> list[int]:
        """The parameters of baselines, each number once."""
        return sorted({p.n_parameters for p in self.places})


def place(base: Mapping[str, Any], n_parameters: int, names: Mapping[str, str] | None = None) -> Place:
    """Of a cell with this configuration; `names` {file: what it is in words} of texts that do not say it themselves."""
    model, data = (base.get(key) or {} for key in ("model", "data"))
    architecture = str(model.get("arch", "?")) + (", experts" if model.get("moe") else "")
    return Place(architecture, _data(data, names or {}), n_parameters)


def _data(data: Mapping[str, Any], names: Mapping[str, str]) -> str:
    kind = str(data.get("kind", "?"))
    if kind == "tasks":
        return f"task {', '.join(data.get('names', ()))}"
    if kind == "text":
        paths = [PurePath(p).name for p in data.get("paths", ())]
        files = f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}" if paths else ""
        named = ", ".join(dict.fromkeys(names.get(p, p) for p in paths)) if any(p in names for p in paths) else ""
        said = data.get("about") or named or files
        apart = ", documents apart" if data.get("document_mask") else ""
        return f"text ({said}{apart})" if said else kind
    return kind if data.get("bos", True) else f"{kind} without BOS"


def arm_name(
    changes: Mapping[str, Any], model: Mapping[str, Any] | None, baseline: Mapping[str, Any] | None, otherwise: str
) -> str:
    """What an arm is, by the resolved values of the keys that it changes: a preset and its gate have one name. `model` and
    `baseline` are the models of a run of it and of the baseline; where there is none, what was written counts."""
    parts = []
    for key, written in changes.items():
        inside = key.removeprefix("model.")
        value = _dig(model, inside) if model is not None and inside != key else written
        if baseline is not None and inside != key and value == _dig(baseline, inside):
            continue
        said = _said(value)
        parts.append(said if inside == "gate" else f"{inside}={said}")
    return " + ".join(parts) or otherwise


def _dig(model: Mapping[str, Any], key: str) -> Any:
    value: Any = model
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _said(value: Any) -> str:
    """A value, of a union its kind with what differs from nothing."""
    if not isinstance(value, Mapping):
        return str(value)
    more = [f"{k}={v}" for k, v in value.items() if k != "kind" and v not in (None, 0, 0.0, False)]
    return " ".join([str(value.get("kind", "")), *more]).strip()


def taken_from(sheets: Sequence[Sheet]) -> dict[str, str]:
    """{letter of a study: that of another} where its comparisons are some of the other's on fewer seeds. Its cells were taken from
    that one, for what was found in them or not, and do not count a second time."""
    held = [(s.letter, _compared(s)) for s in sheets]
    out = {}
    for letter, own in held:
        for other, theirs in held:
            if own and own.keys() < theirs.keys() and all(n < theirs[key] for key, n in own.items()):
                out.setdefault(letter, other)
    return out


def _compared(s: Sheet) -> dict[tuple[str, str], int]:
    """{(setting of the baseline's runs, of the arm's): how many of these are done}."""
    if s.views is None:
        return {}
    base, runs = s.views.study["baseline"], s.views.settings
    return {
        (runs[cell, base], setting): len(s.views.sights[cell, arm].seeds)
        for (cell, arm), setting in runs.items()
        if arm != base and (cell, base) in runs and (cell, arm) in s.views.sights
    }


def shared(plans: Sequence[tuple[str, Iterable[str]]]) -> list[tuple[str, str, int, bool]]:
    """(a study, an earlier one, how many runs they share, whether those are all that it has) of studies with runs in common;
    `plans` are (name, fingerprints)."""
    out = []
    held = [(name, set(prints)) for name, prints in plans]
    for i, (name, prints) in enumerate(held):
        for earlier, others in held[:i]:
            if common := prints & others:
                out.append((name, earlier, len(common), len(common) == len(prints)))
    return out
