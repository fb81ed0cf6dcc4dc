"""One HTML file from a body, charts and scripts: nothing is asked of the network, and only the page's own scripts run.

Notable: as on the study page, a content security policy names the scripts by their hashes and forbids everything else, and
the chart library interprets its expressions, which is why no `unsafe-eval` is needed.
"""

import json
from base64 import b64encode
from functools import cache
from hashlib import sha256
from typing import Any

from ..markup import Html, tag
from ..script import DRAW, WATCH
from ..style import THEME
from ..stylesheet import CSS
from .script import SWITCH
from .stylesheet import MORE_CSS

# A plain dot: a page without an icon of its own makes browsers ask for one.
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Ccircle cx='8' cy='8' r='6' fill='%230072b2'/%3E%3C/svg%3E"
)
_PLAIN = "The charts and the thresholds need JavaScript. The tables and the CSV file do not."


def document(title: str, body: Html, charts: list[dict], switches: dict | None) -> str:
    """The page. `switches` is what the off-switches' script reads, None where the page has none."""
    scripts = [WATCH, _library(), DRAW, *([SWITCH] if switches else [])]
    hashes = " ".join(f"'sha256-{b64encode(sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("link", rel="icon", href=_ICON),
        tag("style", Html(CSS + MORE_CSS)),
        _script(scripts[0]),
    )
    end = [
        _data("charts", {"theme": THEME, "charts": charts}),
        _data("switches-data", switches) if switches else None,
        [_script(text) for text in scripts[1:]],
    ]
    page = tag("html", head, tag("body", tag("noscript", tag("p", _PLAIN, class_="notice")), body, end), lang="en")
    return f"<!doctype html>\n{page}\n"


def _data(name: str, value: Any) -> Html:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # In a script element only `<` can end it.
    return tag("script", Html(text.replace("<", "\\u003c")), type="application/json", id=name)


def _script(text: str) -> Html:
    return tag("script", Html(text))


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script (0.9 MB)."""
    from vl_convert import javascript_bundle

    library = javascript_bundle()
    assert "</script" not in library.lower(), "the chart library cannot be inlined as it is"
    return library
