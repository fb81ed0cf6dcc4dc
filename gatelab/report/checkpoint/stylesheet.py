"""What the page of a checkpoint adds to the study page's style sheet: facts in large, sliders, keys, crisp maps."""

MORE_CSS = """
.telling { list-style: none; margin: 1.2rem 0 .6rem; padding: 1rem 0; border: solid var(--line); border-width: 1px 0;
  display: grid; gap: .9rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.telling li { font-size: 1.02rem; line-height: 1.4; }
.more-facts { font-size: .92rem; padding-left: 1.2rem; }
.notice p { font-weight: 600; }
li, main p, figcaption, .question, .ramp, tbody th, table code { overflow-wrap: anywhere; }
.unobserved h2 { border-top: 0; margin: 1.4rem 0 0; padding-top: 0; font-size: 1.08rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1.3rem; margin: .2rem 0; padding: 0; font-size: .8rem; }
.legend .swatch { width: 24px; }
figcaption .legend { color: var(--text); }
.row { margin: .8rem 0; }
.row > * { max-width: 100%; }
.grid { align-items: start; margin: 1rem 0; }
.grid .wide { margin: .2rem 0; }
.grid h3 { font-size: .95rem; margin: .4rem 0 .3rem; }
.title span { min-width: 0; }
.ramp { margin: .3rem 0; }
.ramp i { width: 9rem; }
.mark-rect path { shape-rendering: crispEdges; }
.sliders { border: 1px solid var(--line); border-radius: .3rem; margin: 1rem 0; padding: .6rem .9rem .8rem; display: grid;
  gap: .6rem 1.6rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); align-items: end; min-width: 0; }
.sliders legend { font-size: .84rem; font-weight: 600; padding: 0 .4rem; }
.sliders label { font-size: .84rem; display: block; }
.sliders input { width: 100%; display: block; margin: .3rem 0 0; accent-color: var(--link); height: 1.4rem; }
.sliders output { font-weight: 600; font-variant-numeric: tabular-nums; }
.sliders button { justify-self: start; font-size: .84rem; padding: .25rem .8rem; }
figcaption .ramp { flex-wrap: nowrap; gap: .4rem; margin: .3rem 0 .4rem; color: var(--text); }
figcaption .ramp i { width: 5.5rem; }
table code { font-size: .95em; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media print { .sliders { display: none; } }
"""
