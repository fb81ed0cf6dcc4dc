"""How an arm's effect varies over the cells of a study, factor by factor, and what cannot be told, with the reason; and whose
spread a gate changes.

A factor's F is that of `dependences`, every cell against every other that of `pooled`; the smallest and largest effects beside them
are of cells, or of the levels of a factor as they are fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, nan

from .dispersion import ALL_CELLS, SEEDS_NEEDED, Spread
from .heterogeneity import Dependence, left_out
from .hunt import PARTS, READINGS, Hunt
from .lost import said
from .student import interval

# What is asked of every study, and the keys of a configuration that say it, by their beginnings. A size is one of width: depth is
# asked for itself.
ASKED = {
    "size": ("model.d_model", "model.n_heads", "model.head_dim"),
    "architecture": ("architecture", "model.arch", "model.moe"),
    "task": ("data", "data.names", "data.kind"),
    "depth": ("model.n_layers", "model.n_encoder_layers"),
    "learning rate": ("optim.lr",),
}
CELLS = "all cells"
_SPREADS = {**PARTS, **dict.fromkeys(READINGS, "seeds")}


@dataclass(frozen=True, slots=True)
class At:
    """An effect with its 95% interval, and where: a cell, or the level of a factor."""

    where: str
    effect: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Varying:
    """Whether an arm's effect on a reading differs by a factor. `q` is over all factors, readings and arms, nan for `CELLS`;
    `slope` is the change a doubling, `p_bend` the p that the levels lie on that line. `left_out` are the cells without a part in
    it, for most runs are lost there. Where it cannot be told `reason` says why, and there are no numbers."""

    arm: str
    reading: str
    unit: str
    factor: str
    f: float = nan
    df: float = nan
    df_error: float = nan
    p: float = nan
    q: float = nan
    against: str = ""
    slope: float = nan
    least: At | None = None
    most: At | None = None
    reason: str = ""
    flips: bool = False
    p_bend: float = nan
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spreading:
    """The spread of an arm's runs over the baseline's, `over` seeds, heads or layers, in the cells where it can be compared: the
    least and largest ratio, that over all cells (None: there is none), and the cells with q within the rate."""

    arm: str
    reading: str
    over: str
    n_cells: int = 0
    least: Spread | None = None
    most: Spread | None = None
    together: Spread | None = None
    named: list[str] = field(default_factory=list)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Varied:
    """Of a study: `rows` by reading, arm and factor; `spreads`; `words` {reading: (label, unit)}; `fixed` {what is asked: why no
    factor tells it}; `brought` what the architecture stands for; `fdr` the rate of false discoveries; `lost` which cells are left
    out and why, empty where none is."""

    rows: list[Varying]
    spreads: list[Spreading]
    words: dict[str, tuple[str, str]]
    fixed: dict[str, str]
    brought: list[str]
    fdr: float
    lost: str = ""


def varied(hunt: Hunt) -> Varied:
    """Every arm by every factor in which the cells differ."""
    evidence, tested = hunt.gathered.evidence, hunt.dependences
    readings = [r for r in READINGS if r in evidence.readings]
    factors = list(hunt.gathered.factors)
    rows = []
    for reading in readings:
        for arm in evidence.arms:
            own = [d for d in tested if (d.arm, d.reading) == (arm, reading)]
            why = _untold(hunt, reading, arm)
            rows.append(_over_cells(hunt, reading, arm, why))
            if own:
                rows += [_by(d) for d in own]
            elif factors:
                unit = evidence.readings[reading].unit
                rows += [Varying(arm, reading, unit, name, reason=why or "no test") for name in factors]
    spreads = [
        s for arm in evidence.arms for reading, over in _SPREADS.items() if (s := _spread(hunt, arm, reading, over))
    ]
    words = {r: (m.label, m.unit) for r in (*readings, *PARTS) if (m := evidence.readings.get(r)) is not None}
    brought, fdr = hunt.gathered.brought, hunt.screened.fdr
    return Varied(rows, spreads, words, _fixed(hunt, factors), brought, fdr, said(evidence.lost))


def _fixed(hunt: Hunt, factors: Sequence[str]) -> dict[str, str]:
    """What is asked and is no factor here."""
    n = len(hunt.gathered.evidence.cells)
    one = "the study has one cell" if n == 1 else f"all {n} cells have one"
    out = {}
    for word, keys in ASKED.items():
        if word == "depth" and {"model.n_layers", "model.n_encoder_layers"} & set(hunt.gathered.brought):
            out[word] = "it goes with the architecture"
        elif not any(_is(factor, key) for factor in factors for key in keys):
            out[word] = one
    return out


def _is(factor: str, key: str) -> bool:
    return factor == key or factor.startswith(f"{key}.")


def _untold(hunt: Hunt, reading: str, arm: str) -> str:
    """Why effects of an arm are not compared over cells, as `heterogeneity.differences` has it; empty where they are."""
    evidence = hunt.gathered.evidence
    if evidence.not_pooled:
        return evidence.not_pooled
    if len(evidence.cells) < 2:
        return "the study has one cell"
    lost = left_out(evidence, reading, arm)
    found = {cell: evidence.pairs(reading, cell, arm) for cell in evidence.cells if cell not in lost}
    if any(p.changes is not None for p in found.values()):
        return "seeds change between two states, and a mean over them describes no run"
    n = sum((cell, arm) not in evidence.refused and len(p.seeds) >= 2 for cell, p in found.items())
    rest = f", in {len(lost)} others most runs are lost" if lost else ""
    return f"{n} of {len(found)} cells have two pairs{rest}" if n < 2 or 2 * n <= len(found) else ""


def _over_cells(hunt: Hunt, reading: str, arm: str, why: str) -> Varying:
    """The F test that all cells have one effect."""
    evidence = hunt.gathered.evidence
    unit = evidence.readings[reading].unit
    pooled = next((p for p in hunt.pooled if (p.arm, p.reading) == (arm, reading)), None)
    if pooled is None:
        return Varying(arm, reading, unit, CELLS, reason=why or "no test")
    at = []
    for cell in evidence.cells:
        e = evidence.estimate(reading, cell, arm)
        if e is not None and (cell, arm) not in evidence.refused and cell not in pooled.left_out:
            at.append(At(cell, e.mean, *(interval(e, 0.95) if e.sigma > 0 else (nan, nan))))
    at.sort(key=lambda x: x.effect)
    return Varying(
        arm, reading, unit, CELLS, pooled.f, pooled.df, pooled.df_error, pooled.p_between, against="seeds",
        least=at[0] if at else None, most=at[-1] if at else None,
        flips=any(x.high < 0 for x in at) and any(x.low > 0 for x in at), left_out=tuple(pooled.left_out),
    )  # fmt: skip


def _by(d: Dependence) -> Varying:
    if not isfinite(d.p):
        reason = "; ".join(d.notes) or "no test"
        return Varying(d.arm, d.reading, d.unit, d.label, reason=reason, left_out=tuple(d.left_out))
    at = sorted((At(x.value, x.effect, x.low, x.high) for x in d.levels), key=lambda x: x.effect)
    return Varying(
        d.arm, d.reading, d.unit, d.label, d.f, d.df, d.df_error, d.p, d.q, d.against, d.slope, at[0], at[-1], flips=d.flips,
        p_bend=d.p_bend, left_out=tuple(d.left_out),
    )  # fmt: skip


def _spread(hunt: Hunt, arm: str, reading: str, over: str) -> Spreading | None:
    """None where a reading that is no matter of seeds was measured nowhere and another of its kind was not either."""
    found = [s for s in hunt.spreads if (s.arm, s.reading, s.over) == (arm, reading, over)]
    cells = [s for s in found if s.cell != ALL_CELLS]
    if not cells:
        why = _unspread(hunt, arm, reading, over)
        return Spreading(arm, reading, over, reason=why) if why else None
    named = [s.cell for s in cells if s.q <= hunt.screened.fdr]
    cells.sort(key=lambda s: s.ratio)
    together = next((s for s in found if s.cell == ALL_CELLS), None)
    return Spreading(arm, reading, over, len(cells), cells[0], cells[-1], together, named)


def _unspread(hunt: Hunt, arm: str, reading: str, over: str) -> str:
    """Why a spread is not compared; empty where the reading is no question of this study."""
    evidence = hunt.gathered.evidence
    if reading not in evidence.readings:
        return f"no run has two {over} to compare" if over != "seeds" else ""
    if over != "seeds":
        return "no cell has two pairs that differ"
    if all(evidence.may_split(reading, cell) for cell in evidence.cells):
        # Of the readings that may always be in two states none is a question here: the held-out loss stands for seeds.
        return (
            "runs may come in two states, and the spread is how far those lie apart" if reading == READINGS[0] else ""
        )
    most = max((len(evidence.pairs(reading, cell, arm).seeds) for cell in evidence.cells), default=0)
    return (
        f"{most} pair{'s' * (most != 1)} a cell, and {SEEDS_NEEDED} are needed" if most < SEEDS_NEEDED else "no spread"
    )
