"""The head of the page: what was looked at, the facts, what to know before believing them, what could not be seen."""

from ..markup import Html, join, tag
from ..tables import table
from .seen import Seen

_PROMINENT, _NAMED = 3, 2


def header(seen: Seen, nav: Html) -> Html:
    """Title, description, facts and caveats."""
    lead, rest = list(seen.facts)[:_PROMINENT], list(seen.facts)[_PROMINENT:]
    return tag(
        "header",
        tag("h1", seen.name),
        tag("p", seen.description, class_="question"),
        tag("ul", [tag("li", fact) for fact in lead], class_="telling") if lead else None,
        tag("ul", [tag("li", fact) for fact in rest], class_="more-facts") if rest else None,
        tag("div", tag("p", "Before believing the numbers:"), tag("ul", [tag("li", n) for n in seen.notes]), class_="notice")
        if seen.notes
        else None,
        unobserved(seen),
        nav,
    )  # fmt: skip


def unobserved(seen: Seen) -> Html:
    """What has no attention rows, modules of one class and reason together; never a zero in their place."""
    if not seen.rows:
        return tag("p", "No probe measured anything.", class_="notice")
    if not seen.unobserved:
        return tag("p", "Every attention layer that ran was observed.", class_="about")
    groups: dict[tuple[str, str], list[str]] = {}
    for module, class_name, why in seen.unobserved:
        groups.setdefault((class_name, why), []).append(module)
    rows = [[class_name, why, _modules(names)] for (class_name, why), names in groups.items()]
    n = len(seen.unobserved)
    text = (
        f"{n} module{'s' * (n > 1)} that ran could not be observed. They have no attention numbers on this page: their layers"
        " are gaps in its maps and enter no mean."
    )
    return tag(
        "div",
        tag("h2", "Not observed"),
        tag("p", text),
        table(["class", "why", "modules"], rows, numeric=set(), name="what was not observed"),
        class_="unobserved",
    )


def _modules(names: list[str]) -> Html:
    if len(names) <= _NAMED:
        return tag("code", ", ".join(names))
    summary = join([f"{len(names)}, from ", tag("code", names[0]), " to ", tag("code", names[-1])])
    return tag("details", tag("summary", summary), tag("code", ", ".join(names)))
