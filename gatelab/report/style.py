"""How the page looks: one colour an arm, one ramp for every map, the chart theme, the style sheet.

Notable: text and axes of charts are drawn in `currentColor`, so that one drawing serves light, dark and print; arms take
Okabe and Ito's colours, which stay apart for colour-blind readers, and after six of them the dashes change. The ramp is
viridis, whose brightness rises steadily. A verdict is a sign and a word, and only then a colour.
"""

from typing import Any

BASELINE = "#7a828a"
_OKABE_ITO = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES = ([1, 0], [6, 3], [2, 2])

RAMP = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")

# verdict -> (sign, what it says)
VERDICTS = {
    "lower": ("▼", "the arm's value is lower than the baseline's"),
    "higher": ("▲", "the arm's value is higher than the baseline's"),
    "equivalent": ("=", "equal to within what was declared to count as nothing"),
    "unclear": ("?", "no effect seen at this power; this is not the same as no effect"),
    "untestable": ("×", "too few finished pairs, or no spread between them"),
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


def arm_colours(arms: list[str], baseline: str) -> dict[str, tuple[str, list[int]]]:
    """{arm: (colour, dash pattern)}: grey for the baseline, then the palette, again with dashes when it is used up."""
    out = {baseline: (BASELINE, _DASHES[0])}
    for i, arm in enumerate(a for a in arms if a != baseline):
        out[arm] = (_OKABE_ITO[i % len(_OKABE_ITO)], _DASHES[i // len(_OKABE_ITO) % len(_DASHES)])
    return out


CSS = """
:root { color-scheme: light dark; --text: #1b2025; --quiet: #58626c; --line: #d8dde2; --panel: #f5f7f8; --page: #fff;
  --link: #0b5cad; --lower: #0072b2; --higher: #d55e00; --equivalent: #009e73; --unclear: #7a828a; --untestable: #a1557f; }
@media (prefers-color-scheme: dark) { :root { --text: #e3e7ea; --quiet: #9da7b0; --line: #333a41; --panel: #1d2226;
  --page: #14181b; --link: #7db9f0; } }
* { box-sizing: border-box; }
html { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; color: var(--text);
  background: var(--page); -webkit-text-size-adjust: 100%; scroll-padding-top: 3.5rem; }
body { margin: 0; }
main, header { max-width: 1100px; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 3.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.08rem; margin: 2.2rem 0 .4rem; }
h4 { font-size: .95rem; margin: 1.2rem 0 .3rem; font-weight: 600; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
a { color: var(--link); }
.question { font-size: 1.2rem; max-width: 46rem; margin: 0 0 1.2rem; }
.quiet, figcaption, .about, caption { color: var(--quiet); }
.about, .small { font-size: .875rem; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code, pre { font: .82em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }

.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .9rem 1.4rem; margin: 1.2rem 0;
  padding: 1rem 0; border: solid var(--line); border-width: 1px 0; }
.facts div { min-width: 0; }
.facts dt { font-size: .78rem; color: var(--quiet); }
.facts dd { margin: 0; font-size: .95rem; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .9rem; margin: 1rem 0; }
.notice { border-left: 3px solid var(--higher); background: var(--panel); padding: .7rem 1rem; margin: 1rem 0; font-size: .92rem; }
.notice p { margin: .2rem 0; max-width: none; }
.notice ul { margin: .3rem 0; padding-left: 1.2rem; }

.arms { position: sticky; top: 0; z-index: 2; background: var(--page); border-bottom: 1px solid var(--line); }
.arms ul { max-width: 1100px; margin: 0 auto; padding: .5rem 1.25rem; list-style: none; display: flex; gap: .2rem 1.3rem;
  overflow-x: auto; font-size: .85rem; white-space: nowrap; }
.swatch { display: inline-block; width: 1.3em; height: .32em; border-radius: .16em; margin-right: .45em; vertical-align: .2em; }

.claim { display: grid; grid-template-columns: minmax(0, 24rem) minmax(0, 1fr); gap: .2rem 2rem; align-items: start;
  padding: .9rem 0 .4rem; border-top: 1px solid var(--line); }
.claim h4 { grid-column: 1 / -1; margin: 0; }
.claim ul { list-style: none; margin: .35rem 0 .6rem; padding: 0; }
.claim li { display: grid; grid-template-columns: 6.9rem minmax(0, 1fr); gap: .7rem; margin: 0 0 .75rem; font-size: .92rem;
  line-height: 1.45; }
.badge { --c: var(--unclear); display: inline-block; padding: .05rem .5rem; border: 1px solid var(--c); border-radius: 1rem;
  font-size: .78rem; line-height: 1.4; white-space: nowrap; justify-self: start; align-self: start;
  background: color-mix(in srgb, var(--c) 13%, transparent); }
.badge b { color: var(--c); margin-right: .3em; font-weight: 700; }
.lower { --c: var(--lower); } .higher { --c: var(--higher); } .equivalent { --c: var(--equivalent); }
.untestable { --c: var(--untestable); border-style: dashed; } .hole { border-style: dashed; }
@media (prefers-color-scheme: dark) { .lower { --c: #4ba3dc; } .higher { --c: #f0853b; } .equivalent { --c: #2fc59b; } }

.grid { display: grid; gap: 1.2rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 29rem), 1fr)); }
.small-multiples { display: flex; flex-wrap: wrap; gap: 1rem 1.6rem; align-items: flex-start; }
figure { margin: 0; min-width: 0; max-width: 100%; break-inside: avoid; }
figure > .title { font-weight: 600; font-size: .875rem; margin: 0 0 .15rem; max-width: none; display: flex; gap: .6rem;
  align-items: baseline; }
figcaption { font-size: .8rem; line-height: 1.45; max-width: 36rem; }
.small-multiples figcaption { max-width: 13rem; }
.chart { max-width: 100%; min-height: 2rem; }
.chart svg { max-width: 100%; height: auto; display: block; }
.absent { border: 1px dashed var(--line); color: var(--quiet); font-size: .8rem; padding: 1.2rem .9rem; min-width: 9rem; }
.ramp { display: flex; gap: .6rem; align-items: center; font-size: .85rem; margin: .6rem 0 1rem; flex-wrap: wrap;
  font-variant-numeric: tabular-nums; }
.ramp i { display: inline-block; width: 12rem; height: .8rem; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
button { font: inherit; font-size: .75rem; color: var(--quiet); background: none; border: 1px solid var(--line);
  border-radius: .25rem; padding: .05rem .45rem; cursor: pointer; }
button:hover, button:focus-visible { color: var(--text); border-color: var(--quiet); }
.title button { border-color: transparent; font-weight: normal; margin-left: auto; }

.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .84rem; width: 100%; }
caption { text-align: left; font-size: .84rem; padding-bottom: .4rem; }
th, td { text-align: left; padding: .38rem .6rem .38rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { font-weight: 600; vertical-align: bottom; }
thead th.num { text-align: right; }
tbody th { font-weight: 400; }
tbody tr.group th { font-weight: 600; padding-top: 1.1rem; }
td.num, th.num { padding-left: .6rem; }
details { margin: .8rem 0; }
details > summary { cursor: pointer; font-size: .9rem; color: var(--link); }
td details { margin: 0; } td details > summary { font-size: .82rem; }
tr.more td { padding-top: 0; }
tr.of-more > * { border-bottom: 0; }
.command { display: flex; gap: .7rem; align-items: flex-start; background: var(--panel); padding: .5rem .7rem; margin: .5rem 0; }
.command code { overflow-wrap: anywhere; flex: 1; }
pre { background: var(--panel); padding: .7rem; overflow: auto; max-height: 26rem; margin: .4rem 0; }
dl.words { display: grid; grid-template-columns: minmax(8rem, 13rem) minmax(0, 1fr); gap: .45rem 1.4rem; font-size: .9rem; }
dl.words dd { margin: 0; } dl.words dt { font-weight: 600; }
footer { max-width: 1100px; margin: 4rem auto 2rem; padding: 1rem 1.25rem 0; font-size: .82rem; color: var(--quiet); }
#vg-tooltip-element { position: fixed; visibility: hidden; z-index: 9; pointer-events: none; font-size: .8rem; padding: .4rem .6rem;
  background: var(--page); color: var(--text); border: 1px solid var(--line); border-radius: .3rem; }
#vg-tooltip-element.visible { visibility: visible; }
#vg-tooltip-element table { width: auto; font-size: .8rem; }
#vg-tooltip-element td { border: 0; padding: 0 .5rem 0 0; } #vg-tooltip-element .key { color: var(--quiet); }

@media (max-width: 44rem) {
  header { padding-top: 1.5rem; }
  h1 { font-size: 1.5rem; } .question { font-size: 1.05rem; }
  .claim, dl.words { grid-template-columns: minmax(0, 1fr); }
  dl.words dd { margin-bottom: .5rem; }
  .claim li { grid-template-columns: minmax(0, 1fr); gap: .25rem; }
  .small-multiples { gap: 1rem; }
  .cards thead { display: none; }
  .cards, .cards tbody, .cards tr, .cards td, .cards th { display: block; width: 100%; }
  .cards tr { border-bottom: 1px solid var(--line); padding: .55rem 0; }
  .cards td, .cards th { border: 0; padding: .1rem 0; text-align: left; }
  .cards td[data-label] { display: flex; justify-content: space-between; gap: 1rem; text-align: right; white-space: normal; }
  .cards td[data-label]::before { content: attr(data-label); color: var(--quiet); text-align: left; }
  .cards tbody th { font-weight: 600; }
}
@media print {
  :root { --text: #000; --quiet: #444; --line: #bbb; --panel: #f4f4f4; --page: #fff; --link: inherit; color-scheme: light; }
  html { font-size: 10.5pt; } main, header, footer { max-width: none; padding: 0; }
  a { color: inherit; text-decoration: none; } nav, button { display: none; }
  .arms { position: static; } .arms ul { padding-left: 0; flex-wrap: wrap; }
  h2, h3, h4, summary { break-after: avoid; } .claim, tr, .small-multiples figure { break-inside: avoid; }
  .wide { overflow: visible; } table { font-size: .7rem; } details:not([open]) { display: none; } pre { max-height: none; }
  .swatch, .badge { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
