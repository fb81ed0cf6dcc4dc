"""What a reader with ten minutes should know: what the words mean, then sentences that are made from the numbers of the atlas, then
what was planned and not run."""

from typing import TYPE_CHECKING, Any

from .atlas_effects import effects_of
from .atlas_flags import by_kind, own
from .atlas_harms import harms
from .atlas_map import sizes
from .atlas_meanings import meanings
from .atlas_open import not_run
from .atlas_phases import with_phases
from .atlas_training import asked, final_rows, middles
from .atlas_words import RULES, Words, data_words, model_words, tasks_of
from .best_rates import lowest
from .markup import Html, quantity, tag
from .parts import section
from .recommend import is_of_mean, told_effects

if TYPE_CHECKING:
    from ..analysis.atlas import Atlas
    from ..analysis.standing import Answer, Standing, Told

SEEDS_NEEDED = 3
_MOST = 3  # arms or settings that a sentence names


def guide(atlas: "Atlas") -> Html:
    """Sentences in the order of the page, each with the way to what it rests on."""
    words = Words(atlas)
    run = [("studies", text) for text in (_what(atlas), _thin(atlas, words)) if text]
    found = [
        *[("anomalies", text) for text in (harms(atlas, words), _anomalies(atlas)) if text],
        *([("confirmed", _effects(atlas, words))] if effects_of(atlas) else []),
        *[("which", _use(a, words)) for a in atlas.answers],
        *[("phases", text) for text in _sinks(atlas, words)],
        *[("rates", text) for text in (_rates(atlas),) if text],
        *[("lengths", text) for text in (_further(atlas),) if text],
        *([("claims", _claims(atlas))] if atlas.claims is not None else []),
        *([("flags", _flags(atlas))] if atlas.refused or any(s.flags for s in atlas.sheets) else []),
    ]
    return section(
        "guide", "In ten minutes", meanings(atlas, words), tag("h3", "What was run"),
        _sentences([*run, ("map", _blank(atlas))]), tag("h3", "What it says"), _sentences(found), not_run(atlas.open),
    )  # fmt: skip


def _sentences(said: "list[tuple[str, Html | str]]") -> Html:
    return tag("ul", [tag("li", text, " ", _way(where)) for where, text in said])


def _way(where: str) -> Html:
    return tag("a", "↓", href=f"#{where}", title="to what this rests on", aria_label=f"to the section {where}")


def _what(atlas: "Atlas") -> str:
    columns, n = sizes(atlas), len(atlas.sheets)
    span = f"{columns[0]} to {columns[-1]}" if len(columns) > 1 else columns[0] if columns else "no"
    tasks = tasks_of(atlas)
    others = dict.fromkeys(data_words(p.data) for p in atlas.places if not p.data.startswith("task "))
    data = ", ".join([*others, *([f"{len(tasks)} task{'s' * (len(tasks) != 1)}"] if tasks else [])])
    kinds = ", ".join(dict.fromkeys(model_words(p.architecture) for p in atlas.places))
    runs = sum(s.n_done for s in atlas.sheets)
    return f"{n} stud{'ies' if n != 1 else 'y'} with {runs:,} finished runs: {kinds} of {span} parameters, on {data}."


def _thin(atlas: "Atlas", words: Words) -> Html | None:
    pilots = [s for s in atlas.sheets if len(s.seeds) < SEEDS_NEEDED]
    if not pilots:
        return None
    told = [p.n_parameters for s in atlas.sheets if len(s.seeds) >= SEEDS_NEEDED for p in s.places.values()]
    largest = (
        f" The largest model with {SEEDS_NEEDED} seeds or more has {quantity(max(told))} parameters." if told else ""
    )
    are = "has" if len(pilots) == 1 else "have"
    named = _joined([[f"{s.name} ", words.letter(s.letter)] for s in pilots], "and")
    few = f" {are} fewer than {SEEDS_NEEDED} seeds: pilots, which recommend nothing.{largest}"
    return tag("span", named, few)


def _effects(atlas: "Atlas", words: Words) -> Html:
    """The confirmed effects by what they change, each with its place."""
    by_kind: dict[tuple[str, bool | None], dict[str, list[list[Any]]]] = {}
    for e in effects_of(atlas):
        place = [tag("a", words.where(e.setting), href=f"#{e.anchor}"), f" {e.size}"]
        by_kind.setdefault((e.what, e.is_better), {}).setdefault(e.arm, []).append(place)
    sign = {True: ", for the better: ", False: ", for the worse: ", None: ": "}
    said = []
    for (what, better), arms in by_kind.items():
        each = [[words.gate(arm), " in ", _joined(places, "and")] for arm, places in arms.items()]
        parts = [x for i, part in enumerate(each) for x in ["; "] * (i > 0) + part]
        said.append(tag("li", tag("b", what), sign[better], parts))
    count = atlas.counted(effects=True)
    return tag(
        "span", tag("b", "What gates are known to change"), f", confirmed on fresh seeds, {count.confirmed} of {count.read}"
        " registered effects:", tag("ul", said),
    )  # fmt: skip


def _use(a: "Answer", words: Words) -> Html:
    """One use: what is favoured, in how many settings, how sure, and what speaks against it."""
    use = tag("b", a.use.name)
    if a.favoured:
        counted = [(s, f" in {len(s.on(1))} of {len(s.telling)} settings, ") for s in a.shown]
        arms = _joined([[words.gate(s.arm), count, told_effects([s])] for s, count in counted], "or")
        alike = ", which no test tells apart" if len(a.shown) > 1 else ""
        return tag(
            "span", "For ", use, ": ", arms, f"{alike}; evidence: {a.shown[0].strength}. Against: {_against(a.shown)}."
        )
    worse = _worse(a, words)
    against = [" Worse than without: ", worse, "."] if worse else None
    if a.shown:
        told = [t for s in a.standings for t in s.on(1)]
        in_mean = any(t.changed and is_of_mean(t) for t in told)
        mean = " There the mean rises, and no more runs pass what counts as learnt." if in_mean else None
        lead = ": no gate helps in most settings. Some do in some: "
        return tag("span", "For ", use, lead, _places(told, words), ".", mean, against)
    telling = [t for s in a.standings for t in s.telling]
    n = len({t.setting for t in telling})
    if worse:
        return tag("span", "For ", use, f": no gate helps in any of {n} settings.", against)
    why = {
        "pilot": "too few seeds to tell",
        "nothing to tell": "there was no case to help in",
        "runs diverged": "runs with gates diverged, and nothing is told of the others",
    }.get(a.word) or f"no effect was seen in {n} setting{'s' * (n != 1)}, of {_seeds(telling)} seeds each"
    return tag("span", "For ", use, f": {why}.")


def _places(told: "list[Told]", words: Words) -> Html:
    """Settings in which something helps, those that fresh seeds confirmed first and marked so."""
    from ..analysis.standing import CONFIRMED

    settings: dict[str, bool] = {}
    for t in sorted(told, key=lambda t: t.word != CONFIRMED):
        settings.setdefault(t.setting, t.word == CONFIRMED)
    sure = [[words.linked(name)] for name, is_sure in settings.items() if is_sure]
    others = [[words.linked(name)] for name, is_sure in settings.items() if not is_sure]
    more = [[f"{len(others) - _MOST} more"]] if len(others) > _MOST else []
    parts = [
        [_joined(sure, "and"), " (confirmed)"] if sure else None,
        [_joined([*others[:_MOST], *more], "and"), " (not confirmed)"] if others else None,
    ]
    return tag("span", _joined([p for p in parts if p], "and"))


def _seeds(told: "list[Told]") -> str:
    held = sorted({t.finding.n_pairs for t in told})
    return f"{held[0]}" if len(held) == 1 else f"{held[0]} to {held[-1]}"


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


def _worse(a: "Answer", words: Words) -> list[Any]:
    """The arms that are worse in the most settings, and how many more there are."""
    found = sorted((s for s in a.standings if s.on(-1)), key=lambda s: -len(s.on(-1)))
    said = [[words.gate(s.arm), f" in {len(s.on(-1))} of {len(s.telling)}"] for s in found[:_MOST]]
    return _joined([*said, *([[f"{len(found) - _MOST} more"]] if len(found) > _MOST else [])], "and")


def _joined(parts: list[list[Any]], word: str) -> list[Any]:
    """`a, b or c`, of parts that are markup."""
    between = [", "] * (len(parts) - 2) + [f" {word} "] * (len(parts) > 1) + [""]
    return [x for part, after in zip(parts, between, strict=False) for x in (*part, after)]


def _sinks(atlas: "Atlas", words: Words) -> list[Html]:
    """Of the largest phase diagram, in how many of its fields most runs of each arm have a sink."""
    found = with_phases(atlas)[:1]
    out = []
    for s in found:
        points = [p for p in s.views.phases.points if p.n]
        labels = {a["name"]: a.get("label", a["name"]) for a in s.views.study["arms"]}
        arms = list(dict.fromkeys(p.arm for p in points))
        parts = []
        for arm in arms:
            k, n = (sum(2 * p.k > p.n for p in points if p.arm == arm), sum(p.arm == arm for p in points))
            parts.append([tag("i", labels.get(arm, arm)), f" in {k} of {n}"])
        lead = "In how many combinations of learning rate and model most runs have a first-token sink "
        out.append(tag("span", lead, words.letter(s.letter), ": ", _joined(parts, "and"), "."))
    return out


def _rates(atlas: "Atlas") -> str:
    """Whether the arms' best rates are the baseline's, of the settings that have three."""
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
    return f"The best learning rate with a gate is that without one in {k} of {total} comparisons ({which})."


def _further(atlas: "Atlas") -> str:
    """Of what is solved at the length of training, how much is still solved at the largest."""
    from ..study.metrics import SOLVED

    at = [of for s in asked(atlas) for (*_, stretch, _), of in middles(final_rows(s)).items() if stretch == "none"]
    told = [of for of in at if of.get(1, 0.0) >= SOLVED and len(of) > 1]
    if not told:
        return ""
    held = sum(of[max(of)] >= SOLVED for of in told)
    return (
        f"Beyond the length of training, gated or not: of {len(told)} models on tasks that solve theirs at that length, {held}"
        f" still do{'es' * (held == 1)} at the longest that was asked."
    )


def _anomalies(atlas: "Atlas") -> str:
    from ..analysis.registration import EFFECT

    by_rule: dict[str, int] = {}
    for v in (v for s in atlas.sheets for v in s.confirmed if v.claim.rule != EFFECT):
        by_rule[v.claim.rule] = by_rule.get(v.claim.rule, 0) + 1
    said = registered(atlas)
    if not by_rule:
        return f"{said[:1].upper()}{said[1:]}." if said else "No anomaly was registered, so none is confirmed."
    rules = "; ".join(f"{RULES.get(rule, rule)} ({n})" for rule, n in sorted(by_rule.items(), key=lambda x: -x[1]))
    return f"Gates misbehave: {said}. The anomalies: {rules}."


def registered(atlas: "Atlas") -> str:
    """How many of the registered claims were confirmed, of anomalies and of effects, how many are another one's test, and how many
    wait for their runs."""
    kinds = {word: atlas.counted(effects=word == "effects") for word in ("anomalies", "effects")}
    held = {word: of for word, of in kinds.items() if of.read or of.waiting}
    if not held:
        return ""
    again, waiting = sum(of.again for of in held.values()), sum(of.waiting for of in held.values())
    notes = [f"{again} more {'is' if again == 1 else 'are'} the test of one of these"] if again else []
    notes += [f"{waiting} more wait for their runs"] if waiting else []
    more = f" ({', '.join(notes)})" if notes else ""
    counts = {word: f"{of.confirmed} of {of.read}" for word, of in held.items()}
    if len(held) == 1:
        ((word, count),) = counts.items()
        return f"{count} registered {word} were confirmed on fresh seeds{more}"
    n, read = sum(of.confirmed for of in held.values()), sum(of.read for of in held.values())
    parts = " and ".join(f"{count} {word}" for word, count in counts.items())
    return f"{n} of {read} registered claims were confirmed on fresh seeds{more}, {parts}"


def _claims(atlas: "Atlas") -> str:
    entries = atlas.claims or []
    counts = ", ".join(f"{sum(e.verdict == v for e in entries)} {v}" for v in ("supported", "refuted", "undecided"))
    n_open = sum(not e.is_run for e in entries)
    more = f", {n_open} of these not run" if n_open else ""
    return f"Of {len(entries)} lines on what has been said of gates, at this scale: {counts}{more}."


def _blank(atlas: "Atlas") -> str:
    rows = {(p.architecture, p.data) for p in atlas.places}
    n = len(rows) * len(sizes(atlas))
    m = len({(p.architecture, p.data, quantity(p.n_parameters)) for p in atlas.places})
    return f"The map has {m} of {n} combinations of model, data and size; its blank fields were not run."


def _flags(atlas: "Atlas") -> str:
    """How many sources are refused, and of how many studies what is to be read with care, by kind."""
    n, m = len(atlas.refused), sum(bool(s.flags) for s in atlas.sheets)
    kinds = [f"{kind[:1].lower()}{kind[1:]} ({len(of)})" for kind, of in by_kind(own(atlas)).items()]
    said = [
        f"{n} source{'s' * (n != 1)} refused" if n else "",
        f"{m} stud{'ies have' if m != 1 else 'y has'} something to be read with care: {', '.join(kinds)}" if m else "",
    ]
    return f"{'; '.join(x for x in said if x)}."
