"""A page as a reader has it: the text of its elements, its tables, its chart specifications."""

import json
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path

_VOID = {"meta", "link", "br", "input", "img"}


class Page(HTMLParser):
    """`elements` are (tag, attributes) in order; `text` is what is shown, `scripts` the text of script elements."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self._words: list[str] = []
        self._open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == [], "every element is closed"

    @property
    def text(self) -> str:
        return "".join(self._words)

    @cached_property
    def charts(self) -> list[dict]:
        (data,) = (s for s in self.scripts if s.startswith('{"theme"'))
        return json.loads(data)["charts"]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append("")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if "script" in self._open:
            self.scripts[-1] += data
        elif "style" not in self._open:
            self._words.append(data)
            if "td" in self._open or "th" in self._open:
                self.rows[-1][-1] += data
