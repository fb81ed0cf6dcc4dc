"""The page's own script for the off-switches: it draws their charts, and applies the rules again when a threshold moves.

Notable: `switchOf` is `off_switch` in another language; a test holds the two together, in a browser. `data-switches` on the
root element says that the charts are drawn.
"""

from ..script import SHOW

SWITCH = (
    SHOW
    + """
  const source = document.getElementById('switches-data');
  const setUp = async () => {
    const { defaults, fields, shown, groups } = JSON.parse(source.textContent);
    const thresholds = { ...defaults };
    const sliders = [...document.querySelectorAll('input[data-threshold]')];
    const heads = groups.map((g) => g.heads.map((values) => Object.fromEntries(fields.map((f, i) => [f, values[i]]))));

    const sink = (h) => {
      const first = h.first_mass ?? 0, strongest = h.importance ?? 0;
      return first > strongest ? [first, h.first_drain] : [strongest, h.drain];
    };

    const switchOf = (h, at) => {
      const [mass, drain] = sink(h);
      if (h.openness !== null && h.openness < at.openness) return 'gate';
      if (h.slot !== null && h.slot > at.slot) return 'slot';
      if (mass > at.mass) return drain === null ? 'unknown' : drain < at.drain ? 'drained' : 'writes';
      if (h.entropy !== null && h.entropy > at.entropy) return 'diffuse';
      return 'other';
    };

    const record = (h) => {
      const s = switchOf(h, thresholds), [mass, drain] = sink(h);
      return { l: h.layer, h: h.head, s, ...shown[s], m: mass, d: drain, e: h.entropy, q: h.openness };
    };

    const views = [];
    const apply = () => {
      for (const [i, of] of heads.entries()) {
        const records = of.map(record), counts = {};
        for (const r of records) {
          counts[r.s] = (counts[r.s] ?? 0) + 1;
          counts[r.s + '/' + r.l] = (counts[r.s + '/' + r.l] ?? 0) + 1;
        }
        for (const cell of document.querySelectorAll('[data-count^="' + i + '/"]')) {
          cell.textContent = counts[cell.dataset.count.slice((i + '/').length)] ?? 0;
        }
        for (const cell of document.querySelectorAll('[data-share^="' + i + '/"]')) {
          const n = counts[cell.dataset.share.slice((i + '/').length)] ?? 0;
          cell.textContent = (100 * n / of.length).toFixed(1) + '%';
        }
        for (const { group, view } of views) if (group === i) view.data('heads', records).run();
      }
      for (const place of document.querySelectorAll('[data-at]')) {
        const value = thresholds[place.dataset.at];
        place.textContent = place.tagName === 'OUTPUT' ? value.toFixed(2) : String(value);
      }
    };

    for (const slider of sliders) {
      slider.value = defaults[slider.dataset.threshold];
      slider.addEventListener('input', () => { thresholds[slider.dataset.threshold] = Number(slider.value); apply(); });
    }
    document.querySelector('button[data-reset]').addEventListener('click', () => {
      Object.assign(thresholds, defaults);
      for (const slider of sliders) slider.value = defaults[slider.dataset.threshold];
      apply();
    });

    for (const [i, group] of groups.entries()) {
      for (const chart of group.charts) {
        chart.spec.datasets = { heads: heads[i].map(record) };
        const view = await show(chart);
        if (view) views.push({ group: i, view });
      }
    }
    document.documentElement.dataset.switches = 'drawn';
  };
  if (source) setUp();
}
"""
)
