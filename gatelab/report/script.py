"""The page's own scripts: one before the chart library, which notes what goes wrong, and one after it, which draws.

The page states its health on its root element, where a reader of its source and a test find it: `data-drawn` (charts
drawn of all), `data-problems` (errors, warnings, refused requests), `data-requests` (what was fetched: nothing),
`data-overflow` (pixels by which the page is wider than the window). Blocks keep names out of the global scope, which the
chart library fills.
"""

WATCH = """
{
  const problems = [];
  const note = (what) => {
    problems.push(String(what));
    document.documentElement.dataset.problems = JSON.stringify(problems);
  };
  document.documentElement.dataset.problems = '[]';
  addEventListener('error', (e) => note(e.message || 'a resource did not load'), true);
  addEventListener('unhandledrejection', (e) => note(e.reason));
  addEventListener('securitypolicyviolation', (e) => note('refused: ' + e.violatedDirective + ' ' + e.blockedURI));
  for (const level of ['warn', 'error']) {
    const say = console[level];
    console[level] = (...words) => { note(words.join(' ')); say.apply(console, words); };
  }
}
"""

# The opening of a block that draws: `charts` of the page, and `show`, the view of a chart that was drawn.
SHOW = """
{
  const { theme, charts } = JSON.parse(document.getElementById('charts').textContent);
  const room = document.querySelector('main').clientWidth - 40;
  const options = { mode: 'vega-lite', renderer: 'svg', actions: false, ast: true, defaultStyle: false, config: theme,
                    tooltip: { disableDefaultStyle: true } };

  const show = async ({ id, fit, spec }) => {
    const place = document.getElementById(id);
    if (fit) spec.width = Math.min(fit, place.clientWidth || room);
    try {
      return (await vegaEmbed(place, spec, options)).view;
    } catch (error) {
      console.error(error);
      place.textContent = 'This chart could not be drawn; its numbers are in the tables and CSV files.';
    }
  };
"""

DRAW = (
    SHOW
    + """
  const draw = async () => {
    const root = document.documentElement;
    let drawn = 0;
    for (const chart of charts) if (await show(chart)) drawn += 1;
    root.dataset.requests = JSON.stringify(performance.getEntriesByType('resource').map((r) => r.name));
    root.dataset.overflow = root.scrollWidth - root.clientWidth;
    root.dataset.drawn = drawn + '/' + charts.length;
  };

  const save = (name, text) => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([text], { type: 'image/svg+xml' }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  const copy = async (button) => {
    const code = button.parentElement.querySelector('code');
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = 'copied';
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = 'selected';
    }
    setTimeout(() => { button.textContent = 'copy'; }, 1500);
  };

  document.addEventListener('click', (e) => {
    const button = e.target.closest('button');
    if (button?.dataset.save) {
      const svg = document.querySelector('#' + button.dataset.save + ' svg');
      if (svg) save(button.dataset.save + '.svg', svg.outerHTML);
    } else if (button?.dataset.copy !== undefined) {
      copy(button);
    }
  });

  // Folded figures are printed; the configuration of every run is not.
  let folded = [];
  addEventListener('beforeprint', () => {
    folded = [...document.querySelectorAll('details.print:not([open])')];
    folded.forEach((d) => { d.open = true; });
  });
  addEventListener('afterprint', () => folded.forEach((d) => { d.open = false; }));

  draw();
}
"""
)
