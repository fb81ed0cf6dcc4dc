"""One HTML file from a body and its charts: nothing is asked of the network, and only the page's own scripts run.

Notable: the chart library is inlined once and every chart is a specification beside it; a content security policy names
the page's own scripts by their hashes and forbids everything else, so that neither a study's name nor a browser's
extension point can make it run or fetch anything. Expressions are interpreted, not compiled, which is why no
`unsafe-eval` is needed.
"""

import json
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from typing import Any

from .charts import Figure
from .markup import Html, tag
from .script import DRAW, WATCH
from .style import THEME
from .stylesheet import CSS

# A plain dot: a page without an icon of its own makes browsers ask for one.
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Ccircle cx='8' cy='8' r='6' fill='%230072b2'/%3E%3C/svg%3E"
)

# Pixels that a caption wants.
_NARROWEST = 250


@dataclass
class Charts:
    """The charts that were placed so far, in their order on the page; `name` begins the name of each."""

    name: str = "chart"
    placed: list[dict[str, Any]] = field(default_factory=list)

    def place(self, figure: Figure, title: str | Html = "", caption: str | Html = "") -> Html:
        """The figure's element, in a row as wide as its chart wants to be; the specification is kept for a script."""
        name = f"{self.name}-{len(self.placed) + 1}"
        self.placed.append({"id": name, "fit": figure.fit, "spec": figure.spec})
        button = tag("button", "SVG", type="button", data_save=name, title="save this chart as SVG")
        return tag(
            "figure",
            tag("p", tag("span", title), button, class_="title"),
            tag("div", id=name, class_="chart", role="img", aria_label=figure.alt),
            tag("figcaption", caption) if caption else None,
            style=f"--wide:{max(figure.fit, _NARROWEST)}px" if figure.fit else None,
        )


def document(title: str, body: Html, charts: Charts, *, plain: str, css: str = "", script: str = "") -> str:
    """The page. `plain` says what it lacks without JavaScript; `css` follows the common style sheet, `script` runs last. Without a
    chart it has no chart library."""
    scripts = [WATCH, *([_library()] if charts.placed else []), DRAW, *([script] if script else [])]
    hashes = " ".join(f"'sha256-{b64encode(sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    first, *rest = (tag("script", Html(text)) for text in scripts)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("link", rel="icon", href=_ICON),
        tag("style", Html(CSS + css)),
        first,
    )
    notice = tag("noscript", tag("p", plain, class_="notice"))
    data = inlined("charts", {"theme": THEME, "charts": charts.placed})
    return f"<!doctype html>\n{tag('html', head, tag('body', notice, body, data, rest), lang='en')}\n"


def inlined(name: str, value: Any) -> Html:
    """`value` as JSON that a script of the page reads by its name."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # In a script element only `<` can end it.
    return tag("script", Html(text.replace("<", "\\u003c")), type="application/json", id=name)


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script (0.9 MB). Bundling takes longer than all else of a page, so the cache folder
    has it of the version that is installed."""
    import vl_convert

    from ..data.batch import DataError
    from ..data.cache import default_cache, drafted

    kept = default_cache() / "page" / f"vega-{vl_convert.__version__}.js"
    try:
        library = kept.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        library = vl_convert.javascript_bundle()
        with suppress(DataError), drafted(kept) as draft:
            draft.write_text(library, encoding="utf-8")
    assert "</script" not in library.lower(), "the chart library cannot be inlined as it is"
    return library
