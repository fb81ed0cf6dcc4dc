"""How charts look: colours, dashes, one ramp for every map, the theme; and how a verdict is marked.

Notable: text and axes are drawn in `currentColor`, so that one drawing serves light, dark and print. Arms take Okabe and
Ito's colours, which stay apart for colour-blind readers; after six of them the dashes change. The ramp is viridis, whose
brightness rises steadily. A verdict is a sign and a word, and only then a colour.
"""

from typing import Any

BASELINE = "#7a828a"
ORANGE, BLUE, GREEN, PURPLE, SKY, YELLOW = "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#f0e442"
_OKABE_ITO = (ORANGE, BLUE, GREEN, PURPLE, "#e69f00", SKY)
# One long dash is solid; printers draw dash by dash, so it must be long.
SOLID, DASHED, DOTTED = (10_000, 0), (6, 3), (2, 3)
_DASHES = (SOLID, DASHED, DOTTED)

DIVERGING = (BLUE, "#eef0f2", ORANGE)  # below, none, above
RAMP = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")

# verdict -> (sign, what it says)
VERDICTS = {
    "lower": ("▼", "the arm's value is lower than the baseline's"),
    "higher": ("▲", "the arm's value is higher than the baseline's"),
    "equivalent": ("=", "equal to within what was declared to count as nothing"),
    "unclear": ("?", "no effect seen at this power; this is not the same as no effect"),
    "untestable": ("×", "too few finished pairs, or no spread between them"),
    "refused": ("⊘", "not compared: its runs and the baseline's differ in tokens or in the version of the code"),
}

THEME: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif",
    "padding": 4,
    "aria": False,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "tickColor": "currentColor",
        "domainColor": "currentColor",
        "gridColor": "currentColor",
        "gridOpacity": 0.12,
        "tickOpacity": 0.4,
        "domainOpacity": 0.4,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "titlePadding": 6,
        "labelLimit": 150,
        "tickSize": 4,
    },
    "text": {"fill": "currentColor", "fontSize": 11},
    "rule": {"stroke": "currentColor"},
    "line": {"strokeCap": "round", "strokeJoin": "round"},
}


def arm_colours(arms: list[str], baseline: str) -> dict[str, tuple[str, tuple[int, int]]]:
    """{arm: (colour, dash pattern)}: grey for the baseline, then the palette, again with dashes when it is used up."""
    out = {baseline: (BASELINE, _DASHES[0])}
    for i, arm in enumerate(a for a in arms if a != baseline):
        out[arm] = (_OKABE_ITO[i % len(_OKABE_ITO)], _DASHES[i // len(_OKABE_ITO) % len(_DASHES)])
    return out
