"""What enters no number of the atlas, or is to be read with it in mind: by kind, a line a study."""

import re
from typing import TYPE_CHECKING

from .markup import Html, tag
from .parts import section

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..analysis.atlas import Atlas

LEANING = "Differences that lean to one side"
# A kind, and what its sentences have; the first that fits.
KINDS = (
    ("Comparisons that are refused", r"refused: |no comparison is made"),
    ("Runs that are not done, or lost", r"runs are not done|diverged or gave|all its runs are done"),
    ("Readings that some cells lack", r" missing in |no finished run has"),
    ("Not declared before the runs", r"not declared before|not as declared before"),
    (LEANING, r"a few seeds (gain|lose) far more"),
    ("Settings that stand alone", r"stand alone|a setting of its own"),
    ("Counted once", r"runs are those of|not counted a second time|runs are among those of"),
    ("Versions", r"version|which commit"),
    ("Others", r""),
)
_SKEW = re.compile(
    r"of the (.+) a few seeds (gain|lose) far more than the others \(skewness of the differences (.+)\): there t"
)
_SKEWED = (
    "A few seeds gain (or lose) far more than the others: there t says worse (or better) too often, on fresh seeds too"
    " (docs/statistics.md); look at the seeds. The number is the skewness of the differences."
)


def flags(atlas: "Atlas") -> Html:
    """What was refused, then the sentences of each kind."""
    refused = [tag("li", tag("b", what), f": left out, {why}") for what, why in atlas.refused]
    several = [*_twice(atlas), *version_flags(atlas)]
    kinds = by_kind([*own(atlas), *(("", flag) for flag in several)])
    if not refused and not kinds:
        return section("flags", "Refused and flagged", tag("p", "Nothing was refused, and nothing is to be flagged."))
    lead = tag("p", "What is named here enters no number, or is to be read with it in mind.")
    out = [tag("h3", "Sources that are refused"), tag("ul", refused)] if refused else []
    for kind, studies in kinds.items():
        lines = [
            tag("li", [tag("b", who), ": "] if who else None, "; ".join(said)) for who, said in studies.items()
        ]  # fmt: skip
        about = tag("p", _SKEWED, class_="about") if kind == LEANING else None
        out.append(tag("div", tag("h3", kind), about, tag("ul", lines)))
    return section("flags", "Refused and flagged", lead, out)


def own(atlas: "Atlas") -> list[tuple[str, str]]:
    """(study behind its letter, sentence)."""
    return [(f"{s.letter} {s.name}", flag) for s in atlas.sheets for flag in s.flags]


def by_kind(flags: "Iterable[tuple[str, str]]") -> dict[str, dict[str, list[str]]]:
    """{kind: {study: what is said of it}} of (study, sentence)."""
    out: dict[str, dict[str, list[str]]] = {kind: {} for kind, _ in KINDS}
    for who, flag in flags:
        out[_kind(flag)].setdefault(who, []).append(flag)
    return {kind: {who: _together(said) for who, said in of.items()} for kind, of in out.items() if of}


def version_flags(atlas: "Atlas") -> list[str]:
    """That studies are of several versions of the code, or do not say; they stand side by side in any case."""
    silent = [s.letter for s in atlas.sheets if not s.versions]
    named = sorted({v for s in atlas.sheets for v in s.versions})
    out = [f"the runs were made by {len(named)} versions of the code ({', '.join(named)})"] if len(named) > 1 else []
    if silent:
        out.append(f"the runs of {', '.join(silent)} do not say which commit made them")
    if out:
        out.append("no number is averaged over studies, so each stands for its own version")
    return out


def _kind(flag: str) -> str:
    return next(kind for kind, pattern in KINDS if re.search(pattern, flag))


def _together(said: list[str]) -> list[str]:
    """Sentences `PLACE: WORDS` with the same words are one with all places; of leaning differences the numbers alone."""
    places: dict[str, list[str]] = {}
    for flag in said:
        if skew := _SKEW.match(flag):
            reading, side, where = skew.groups()
            places.setdefault(f"{where} ({reading}, a few {side})", [])
            continue
        place, between, words = flag.partition(": ")
        places.setdefault(words if between else flag, []).extend([place] if between else [])
    return [f"{', '.join(where)}: {words}" if where else words for words, where in places.items()]


def _twice(atlas: "Atlas") -> list[str]:
    """Which comparisons the recommendations take from one study alone, since another has the very same runs."""
    held: dict[str, list[str]] = {}
    for (setting, name), letter in atlas.repeated.items():
        held.setdefault(letter, []).append(f"{name} in {setting}")
    return [f"{', '.join(names)}: the runs are among those of {letter}, which counts" for letter, names in held.items()]
