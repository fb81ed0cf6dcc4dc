"""The page's style sheet: system fonts, one column of 1100 pixels, light and dark, phone and print.

Notable: nothing is wider than the window. Tables scroll in containers of their own, and those marked `cards` fold each
row into a card on a phone. In print, folded figures are open, configurations are left out, nothing is split that
belongs together.
"""

CSS = """
:root { color-scheme: light dark; --text: #1b2025; --quiet: #58626c; --line: #d8dde2; --panel: #f5f7f8;
  --page: #fff; --link: #0b5cad; --lower: #0072b2; --higher: #d55e00; --equivalent: #00845f; --unclear: #68717a;
  --untestable: #a1557f; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e3e7ea; --quiet: #9da7b0; --line: #333a41; --panel: #1d2226; --page: #14181b; --link: #7db9f0;
    --lower: #4ba3dc; --higher: #f0853b; --equivalent: #2fc59b; --unclear: #9da7b0; --untestable: #d48ab3; }
}
* { box-sizing: border-box; }
html { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; color: var(--text);
  background: var(--page); -webkit-text-size-adjust: 100%; scroll-padding-top: 3.5rem; }
body { margin: 0; }
main, header { max-width: 1100px; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 3.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
main > section:first-child h2 { margin-top: 1.2rem; border-top: 0; }
h3 { font-size: 1.08rem; margin: 2.2rem 0 .4rem; overflow-wrap: anywhere; }
h4 { font-size: .95rem; margin: 1.2rem 0 .3rem; font-weight: 600; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
a { color: var(--link); }
code, pre { font: .82em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.question { font-size: 1.2rem; max-width: 46rem; margin: 0 0 1.2rem; }
.quiet, .about, .aside, figcaption, caption { color: var(--quiet); }
.about { font-size: .875rem; }
.aside { font-weight: 400; font-size: .85rem; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }

.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .9rem 1.4rem;
  margin: 1.2rem 0; padding: 1rem 0; border: solid var(--line); border-width: 1px 0; }
.facts dt { font-size: .78rem; color: var(--quiet); }
.facts dd { margin: 0; font-size: .95rem; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.facts div:last-child { grid-column: 1 / -1; }
.facts div:last-child dd { font-size: .85rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .9rem; margin: 1rem 0; }
.notice { border-left: 3px solid var(--higher); background: var(--panel); padding: .7rem 1rem; margin: 1rem 0;
  font-size: .92rem; }
.notice p { margin: .2rem 0; max-width: none; }
.notice ul { margin: .3rem 0; padding-left: 1.2rem; }

.arms { position: sticky; top: 0; z-index: 2; background: var(--page); border-bottom: 1px solid var(--line); }
.arms ul { max-width: 1100px; margin: 0 auto; padding: .5rem 1.25rem; list-style: none; display: flex; flex-wrap: wrap;
  gap: .1rem 1.3rem; font-size: .85rem; max-height: 4.6rem; overflow-y: auto; }
.swatch { display: inline-block; width: 1.3em; height: .32em; border-radius: .16em; margin-right: .45em;
  vertical-align: .2em; }

.claim { display: grid; grid-template-columns: minmax(0, 24rem) minmax(0, 1fr); gap: .2rem 2rem; align-items: start;
  padding: .9rem 0 .4rem; border-top: 1px solid var(--line); }
.claim h4, .claim > .about { grid-column: 1 / -1; margin: 0; }
.claim ul { list-style: none; margin: .2rem 0 .6rem; padding: 0; }
.claim li { margin: 0 0 .9rem; font-size: .9rem; line-height: 1.45; }
.claim .who { display: flex; gap: .8rem; align-items: center; margin: 0 0 .15rem; }
.claim figure { position: relative; }
.claim .title { position: absolute; right: 0; bottom: .2rem; margin: 0; }
.badge { --c: var(--unclear); display: inline-block; padding: .05rem .5rem; border: 1px solid var(--c);
  border-radius: 1rem; font-size: .78rem; font-weight: 400; line-height: 1.4; white-space: nowrap; justify-self: start;
  align-self: start; background: color-mix(in srgb, var(--c) 12%, transparent); }
.badge b { color: var(--c); margin-right: .3em; font-weight: 700; }
.badge.lower { --c: var(--lower); }
.badge.higher { --c: var(--higher); }
.badge.equivalent { --c: var(--equivalent); }
.badge.untestable, .badge.refused { --c: var(--untestable); }
.badge.untestable, .badge.refused, .badge.hole { border-style: dashed; }

.grid { display: grid; gap: 1.4rem 2rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 29rem), 1fr)); }
.grid.narrow { grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.row { display: flex; flex-wrap: wrap; gap: 1rem 1.8rem; align-items: flex-start; }
.row > figure { width: var(--wide, auto); }
.row figcaption { max-width: var(--wide, 12.5rem); }
figure { margin: 0; min-width: 0; max-width: 100%; break-inside: avoid; }
figure > .title { font-weight: 600; font-size: .875rem; margin: 0 0 .15rem; max-width: none; display: flex; gap: .6rem;
  align-items: baseline; }
figcaption { font-size: .8rem; line-height: 1.45; max-width: 36rem; }
.chart { max-width: 100%; min-height: 2rem; }
.chart svg { max-width: 100%; height: auto; display: block; }
.absent { border: 1px dashed var(--quiet); color: var(--quiet); font-size: .8rem; padding: 1.1rem .9rem;
  min-width: 9rem; max-width: 36rem; }
.ramp { display: flex; gap: .6rem; align-items: center; font-size: .85rem; margin: .6rem 0 1rem; flex-wrap: wrap;
  font-variant-numeric: tabular-nums; }
.ramp i { display: inline-block; width: 12rem; height: .8rem; }
.ramp i, .swatch, .badge { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
button { font: inherit; font-size: .75rem; color: var(--quiet); background: none; border: 1px solid var(--line);
  border-radius: .25rem; padding: .05rem .45rem; cursor: pointer; }
button:hover, button:focus-visible { color: var(--text); border-color: var(--quiet); }
.title button { border-color: transparent; font-weight: normal; margin-left: auto; }

.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .84rem; width: 100%; }
caption { text-align: left; font-size: .84rem; padding-bottom: .4rem; }
th, td { text-align: left; padding: .38rem .9rem .38rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 400; }
.effects tbody th { white-space: nowrap; }
td.num, th.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tbody tr.group th { font-weight: 600; padding-top: 1.1rem; }
ul.plain { list-style: none; margin: 0; padding: 0; }
ul.plain li { margin: 0 0 .3rem; }
.which tbody { border-bottom: 1px solid var(--line); }
.which th, .which td { border-bottom: 0; }
.which td code { white-space: nowrap; }
.runs td { white-space: nowrap; }
.runs pre { white-space: pre-wrap; }
tr.entry > td { border-bottom: 0; padding-bottom: 0; }
tr.more > td { padding-top: 0; white-space: normal; }
details { margin: .8rem 0; }
details > summary { cursor: pointer; font-size: .9rem; color: var(--link); }
td details { margin: 0; }
td details > summary { font-size: .78rem; }
.anomaly { border-top: 1px solid var(--line); padding: .6rem 0; margin: 0; }
.anomaly > summary { color: inherit; max-width: 52rem; line-height: 1.5; }
.anomaly h4 { margin: 1.1rem 0 .3rem; }
.anomaly li { font-size: .88rem; line-height: 1.45; max-width: 60rem; }
.anomaly .row > .wide { flex: 1 1 18rem; margin-top: 0; }
.command { display: flex; gap: .7rem; align-items: flex-start; background: var(--panel); padding: .5rem .7rem;
  margin: .5rem 0; }
.command code { overflow-wrap: anywhere; flex: 1; }
pre { background: var(--panel); padding: .7rem; overflow: auto; max-height: 26rem; margin: .4rem 0; }
dl.words { display: grid; grid-template-columns: minmax(8rem, 12rem) minmax(0, 1fr); gap: .45rem 1.4rem;
  font-size: .9rem; }
dl.words dd { margin: 0; }
dl.words dt { font-weight: 600; }
footer { max-width: 1100px; margin: 4rem auto 2rem; padding: 1rem 1.25rem 0; font-size: .82rem; color: var(--quiet); }
#vg-tooltip-element { position: fixed; visibility: hidden; z-index: 9; pointer-events: none; padding: .4rem .6rem;
  background: var(--page); color: var(--text); border: 1px solid var(--line); border-radius: .3rem; }
#vg-tooltip-element.visible { visibility: visible; }
#vg-tooltip-element table { width: auto; font-size: .8rem; }
#vg-tooltip-element td { border: 0; padding: 0 .5rem 0 0; }
#vg-tooltip-element .key { color: var(--quiet); }

@media (max-width: 44rem) {
  header { padding-top: 1.5rem; }
  h1 { font-size: 1.5rem; }
  .question { font-size: 1.05rem; }
  .arms ul { font-size: .78rem; gap: 0 1rem; }
  .arms .name { display: none; }
  .claim, dl.words { grid-template-columns: minmax(0, 1fr); }
  dl.words dd { margin-bottom: .5rem; }
  .row { gap: 1rem; }
  .cards, .cards caption, .cards tbody, .cards tr, .cards td, .cards th { display: block; width: 100%; }
  .cards thead { display: none; }
  .cards tr { border-bottom: 1px solid var(--line); padding: .55rem 0; }
  .cards td, .cards tbody th { border: 0; padding: .1rem 0; text-align: left; }
  .cards tbody th { font-weight: 600; }
  .cards tr.group { border-bottom: 0; padding-bottom: 0; }
  .cards tr.group th { font-size: .95rem; }
  .cards td[data-label] { display: flex; justify-content: space-between; gap: 1rem; text-align: right;
    white-space: normal; }
  .effects tr { display: grid; grid-template-columns: 1fr 1fr; column-gap: 1.6rem; }
  .effects th, .effects td:nth-of-type(1), .effects td:nth-of-type(4), .effects td:nth-of-type(5),
  .effects td:last-child { grid-column: 1 / -1; }
  .cards td[data-label]::before { content: attr(data-label); color: var(--quiet); text-align: left; }
}
@media print {
  :root { color-scheme: light; --text: #000; --quiet: #444; --line: #bbb; --panel: #f4f4f4; --page: #fff; }
  html { font-size: 10.5pt; }
  main, header, footer, .arms ul { max-width: none; padding-left: 0; padding-right: 0; }
  a, summary { color: inherit !important; text-decoration: none; }
  nav, button, tr.more, details:not([open]) { display: none; }
  .arms { position: static; }
  h2, h3, h4, summary { break-after: avoid; }
  .claim, tr { break-inside: avoid; }
  .wide { overflow: visible; }
  table { font-size: .7rem; }
  tr.entry > td { border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
}
"""
