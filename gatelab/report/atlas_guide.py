"""What a reader with ten minutes should know, in sentences that are made from the numbers of the atlas."""

from typing import TYPE_CHECKING, Any

from .atlas_map import sizes
from .atlas_phases import with_phases
from .atlas_training import asked, final_rows, middles
from .best_rates import lowest
from .markup import Html, quantity, tag
from .parts import section

if TYPE_CHECKING:
    from ..analysis.atlas import Atlas
    from ..analysis.standing import Answer, Standing

SEEDS_NEEDED = 3
_MOST = 3  # arms that a sentence names


def guide(atlas: "Atlas") -> Html:
    """Sentences in the order of the page, each with the way to what it rests on."""
    said = [
        *[("studies", text) for text in (_what(atlas), _thin(atlas)) if text],
        *[("which", _use(a)) for a in atlas.answers],
        *[("phases", text) for text in _sinks(atlas)],
        *[("rates", text) for text in (_rates(atlas),) if text],
        *[("training", text) for text in (_looked(atlas),) if text],
        *[("lengths", text) for text in (_further(atlas),) if text],
        ("anomalies", _anomalies(atlas)),
        *([("claims", _claims(atlas))] if atlas.claims is not None else []),
        ("map", _blank(atlas)),
        *([("flags", _flags(atlas))] if atlas.refused or any(s.flags for s in atlas.sheets) else []),
    ]
    items = [tag("li", text, " ", _way(where)) for where, text in said]
    return section("guide", "In ten minutes", tag("ol", items))


def _way(where: str) -> Html:
    return tag("a", "↓", href=f"#{where}", title="to what this rests on", aria_label=f"to the section {where}")


def _what(atlas: "Atlas") -> str:
    columns, n = sizes(atlas), len(atlas.sheets)
    span = f"{columns[0]} to {columns[-1]}" if len(columns) > 1 else columns[0] if columns else "no"
    data = ", ".join(dict.fromkeys(p.data for p in atlas.places))
    kinds = ", ".join(dict.fromkeys(p.architecture for p in atlas.places))
    runs = sum(s.n_done for s in atlas.sheets)
    return f"{n} stud{'ies' if n != 1 else 'y'} with {runs:,} finished runs: {kinds} of {span} parameters, on {data}."


def _thin(atlas: "Atlas") -> str:
    pilots = [f"{s.letter} {s.name}" for s in atlas.sheets if len(s.seeds) < SEEDS_NEEDED]
    if not pilots:
        return ""
    told = [p.n_parameters for s in atlas.sheets if len(s.seeds) >= SEEDS_NEEDED for p in s.places.values()]
    largest = (
        f" The largest model with {SEEDS_NEEDED} seeds or more has {quantity(max(told))} parameters." if told else ""
    )
    are = "has" if len(pilots) == 1 else "have"
    few = f"{' and '.join(pilots)} {are} fewer than {SEEDS_NEEDED} seeds: pilots, which recommend nothing."
    return f"{few}{largest}"


def _use(a: "Answer") -> Html:
    """One use: what is favoured, in how many settings, how sure, and what speaks against it."""
    use = tag("b", a.use.name)
    if a.favoured:
        arms = _joined([[tag("code", s.arm), f" ({len(s.on(1))} of {len(s.telling)} settings)"] for s in a.shown], "or")
        alike = ", which no test tells apart" if len(a.shown) > 1 else ""
        return tag("span", "For ", use, ": ", arms, f"{alike}; {a.shown[0].strength}. Against: {_against(a.shown)}.")
    worse = _worse(a)
    against = ["; worse than the baseline: ", worse] if worse else None
    if a.shown:
        where = ", ".join(dict.fromkeys(t.setting for s in a.standings for t in s.on(1)))
        return tag("span", "For ", use, f": no arm helps in most settings, some do in {where}", against, ".")
    if worse:
        return tag("span", "For ", use, ": no arm helps", against, ".")
    why = {
        "pilot": "too few seeds",
        "nothing to tell": "there was no case to help in",
        "runs diverged": "runs of the arms diverged",
    }.get(a.word, "no effect was seen")
    return tag("span", "For ", use, f": nothing here tells; {why}.")


def _against(standings: "list[Standing]") -> str:
    """What speaks against arms, counted."""
    n_settings = sum(len(s.on(-1)) for s in standings)
    n_elsewhere = sum(not a.is_confirmed for s in standings for a in s.against)
    n_confirmed = sum(a.is_confirmed for s in standings for a in s.against)
    said = [
        f"worse in {n_settings} setting{'s' * (n_settings != 1)}" if n_settings else "",
        f"worse at a learning rate that is not its best in {n_elsewhere} case{'s' * (n_elsewhere != 1)}"
        if n_elsewhere
        else "",
        f"{n_confirmed} confirmed anomal{'ies' if n_confirmed != 1 else 'y'}" if n_confirmed else "",
    ]
    return "; ".join(x for x in said if x) or "nothing seen"


def _worse(a: "Answer") -> list[Any]:
    """The arms that are worse in the most settings, and how many more there are."""
    found = sorted((s for s in a.standings if s.on(-1)), key=lambda s: -len(s.on(-1)))
    said = [[tag("code", s.arm), f" in {len(s.on(-1))} of {len(s.telling)}"] for s in found[:_MOST]]
    return _joined([*said, *([[f"{len(found) - _MOST} more"]] if len(found) > _MOST else [])], "and")


def _joined(parts: list[list[Any]], word: str) -> list[Any]:
    """`a, b or c`, of parts that are markup."""
    between = [", "] * (len(parts) - 2) + [f" {word} "] * (len(parts) > 1) + [""]
    return [x for part, after in zip(parts, between, strict=False) for x in (*part, after)]


def _sinks(atlas: "Atlas") -> list[str]:
    """Of the largest phase diagram, in how many of its fields most runs of each arm have a sink."""
    found = with_phases(atlas)[:1]
    out = []
    for s in found:
        points = [p for p in s.views.phases.points if p.n]
        arms = dict.fromkeys(p.arm for p in points)
        said = "; ".join(
            f"{arm} in {sum(2 * p.k > p.n for p in points if p.arm == arm)} of {sum(p.arm == arm for p in points)}"
            for arm in arms
        )
        out.append(f"Where most runs have a sink, of the fields of {s.letter} {s.name}: {said}.")
    return out


def _rates(atlas: "Atlas") -> str:
    """How many settings have three rates, and whether the arms' best ones are the baseline's."""
    found = [(s, ladder) for s in atlas.sheets if s.views is not None for ladder in s.views.ladders]
    n, k, total = 0, 0, 0
    for s, ladder in found:
        for place in dict.fromkeys(p.at[1:] for p in ladder.points):
            n += 1
            best = lowest(ladder, place, s.views.study["baseline"])
            own = best.pop(s.views.study["baseline"], None)
            total, k = total + len(best), k + sum(rate == own for rate in best.values())
    if not n:
        return ""
    which = f"{n} setting{'s' * (n != 1)} with three learning rates or more"
    return f"{which}: in {k} of {total} comparisons there the arm is best at the rate that is best for its baseline."


def _looked(atlas: "Atlas") -> str:
    views = [s for s in atlas.sheets if s.views is not None]
    found = [f"{s.letter} {s.name}" for s in views if s.views.courses]
    named = f": {', '.join(found)}" if found else ""
    return (
        f"Curves of the sink over training are stored of {len(found)} of {len(views)} studies{named}." if views else ""
    )


def _further(atlas: "Atlas") -> str:
    """Of what is solved at the length of training, how much is still solved at the largest."""
    from ..study.metrics import SOLVED

    at = [of for s in asked(atlas) for (*_, stretch, _), of in middles(final_rows(s)).items() if stretch == "none"]
    told = [of for of in at if of.get(1, 0.0) >= SOLVED and len(of) > 1]
    if not at:
        return ""
    held = sum(of[max(of)] >= SOLVED for of in told)
    return (
        f"Beyond the length of training: of {len(told)} cells and arms that solve their task there, {held} still do at the longest"
        " that was asked."
    )


def _anomalies(atlas: "Atlas") -> str:
    by_rule: dict[str, int] = {}
    for v in (v for s in atlas.sheets for v in s.confirmed):
        by_rule[v.claim.rule] = by_rule.get(v.claim.rule, 0) + 1
    if not by_rule:
        return "No anomaly was confirmed on fresh seeds."
    rules = ", ".join(f"{rule} ({n})" for rule, n in sorted(by_rule.items(), key=lambda x: -x[1]))
    return f"Gates misbehave: {registered(atlas)}: {rules}."


def registered(atlas: "Atlas") -> str:
    """How many of the registered anomalies were confirmed, and of how many the fresh seeds have not been read."""
    n, read = sum(len(s.confirmed) for s in atlas.sheets), sum(s.n_read for s in atlas.sheets)
    open_ = sum(s.registered for s in atlas.sheets) - read
    more = f" ({open_} more wait for their runs)" if open_ else ""
    return f"{n} of {read} registered anomalies were confirmed on fresh seeds{more}"


def _claims(atlas: "Atlas") -> str:
    entries = atlas.claims or []
    counts = ", ".join(f"{sum(e.verdict == v for e in entries)} {v}" for v in ("supported", "refuted", "undecided"))
    return f"Of {len(entries)} lines on what has been said of gates: {counts}."


def _blank(atlas: "Atlas") -> str:
    rows = {(p.architecture, p.data) for p in atlas.places}
    n = len(rows) * len(sizes(atlas))
    m = len({(p.architecture, p.data, quantity(p.n_parameters)) for p in atlas.places})
    return f"Of {n} fields of data and size {m} were run with some arm; of the {n - m} that are blank nothing is known."


def _flags(atlas: "Atlas") -> str:
    n, m = len(atlas.refused), sum(len(s.flags) for s in atlas.sheets)
    said = [
        f"{n} source{'s' * (n != 1)} refused" if n else "",
        f"{m} thing{'s' * (m != 1)} to be read with care" if m else "",
    ]
    return f"{', '.join(x for x in said if x)}."
