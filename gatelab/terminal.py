"""What a person sees in a terminal: the live grid of runs, the closing table, lists. Plain lines where it is no terminal."""

import sys
import time
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .store import StoreError, StudyFolder, read_json
from .study.ledger import damage_of, state_of

if TYPE_CHECKING:
    from .record import Finding
    from .study.drive import Event

# state -> (mark, colour); the mark alone says it, for those who see no colour.
STATES = {
    "planned": ("·", "dim"),
    "running": ("▶", "cyan"),
    "done": ("✓", "green"),
    "diverged": ("≁", "magenta"),
    "failed": ("✗", "red"),
    "oom": ("M", "red"),
    "timeout": ("T", "yellow"),
    "lost": ("?", "yellow"),
    "stopped": ("‖", "yellow"),
    "disk-full": ("D", "red"),
    "damaged": ("!", "red"),
}
_PLAIN = {"·": ".", "▶": ">", "✓": "+", "≁": "~", "✗": "x", "‖": "="}  # where the output has no such letters
_WITHOUT_WEIGHTS = ("failed", "oom", "timeout", "lost", "disk-full", "damaged")
_WORD = 30  # letters of a word that a column does not break
_NO_EDGE = 1000
_NO_DIFFERENCE = ("equivalent", "unclear", "untestable")  # verdicts
_LINE_S = 10.0  # between two lines of progress where there is no terminal


class LiveGrid(AbstractContextManager["LiveGrid"]):
    """The grid of a study's runs while they are carried out: call it with every event of `drive`."""

    def __init__(self, folder: StudyFolder, slots: int):
        from rich.console import Console
        from rich.live import Live

        self._folder, self._slots = folder, slots
        self._entries = [(entry, run) for entry, run in folder.planned()]
        self._states = {run.fingerprint: state_of(run) for _, run in self._entries}
        self._console = Console(stderr=True)
        self._last_line = 0.0
        self._started = time.monotonic()
        self._live = None
        if self._console.is_terminal:
            # Last: it draws the grid at once.
            self._live = Live(get_renderable=self.table, console=self._console, refresh_per_second=2, transient=True)

    def __enter__(self) -> "LiveGrid":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: "Event") -> None:
        """Take a run's new state; without a terminal, print a line when a run ends and now and then the progress."""
        self._states[event.fingerprint] = event.state
        if self._live is not None:
            return
        now = time.monotonic()
        if event.kind in ("ended", "left"):
            entry = next(e for e, run in self._entries if run.fingerprint == event.fingerprint)
            where = f"{entry['cell']} / {entry['arm']} / seed {entry['seed']}"
            print(
                f"{where}: {event.state}{' (' + event.message + ')' if event.message else ''}",
                file=sys.stderr,
                flush=True,
            )
            if now - self._last_line > _LINE_S:
                self._last_line = now
                print(self.summary(), file=sys.stderr, flush=True)

    def table(self) -> Any:
        """The time to finish, and the grid: a row a cell and arm, a column a seed."""
        from rich.console import Group
        from rich.table import Table

        grid = _grid(Table(box=None, pad_edge=False), self._entries, self._states, self._console.encoding)
        return Group(self.summary(), grid)

    def summary(self) -> str:
        """How many are done, and an estimate of the time that is left."""
        from .study.remaining import remaining_seconds

        ended = sum(s in ("done", "diverged") for s in self._states.values())
        left = remaining_seconds(self._folder, [e for e, _ in self._entries], self._states, slots=self._slots)
        spent = time.monotonic() - self._started
        tail = "time to finish: not known yet" if left is None else f"about {duration(left)} to go"
        if ended == len(self._states):
            tail = "complete"
        return f"{ended} of {len(self._states)} runs done after {duration(spent)}; {tail}"


def _grid(table: Any, entries: list[Any], states: dict[str, str], encoding: str) -> Any:
    from rich.text import Text

    seeds = sorted({entry["seed"] for entry, _ in entries})
    table.add_column("cell")
    table.add_column("arm")
    for seed in seeds:
        table.add_column(f"seed {seed}", justify="right", min_width=7)
    rows: dict[tuple[str, str], dict[int, Text]] = {}
    for entry, run in entries:
        state = states[run.fingerprint]
        mark, colour = _mark(state, encoding), STATES[state][1]
        words = mark
        progress = run.path / "progress.json"
        if state == "running":
            with suppress(StoreError):  # none yet, or cut
                p = read_json(progress)
                words = f"{mark} {100 * p['step'] // p['steps']:3d}%"
        rows.setdefault((entry["cell"], entry["arm"]), {})[entry["seed"]] = Text(words, style=colour)
    last = None
    for (cell, arm), marks in rows.items():
        # Text, since rich would read a name like `lr=[1]` as markup.
        table.add_row(Text(cell if cell != last else ""), Text(arm), *(marks.get(seed, Text("")) for seed in seeds))
        last = cell
    return table


def _mark(state: str, encoding: str) -> str:
    """A state's mark, in letters that an output of this encoding has: substitutes would be alike."""
    mark = STATES[state][0]
    try:
        mark.encode(encoding)
    except UnicodeEncodeError:
        return _PLAIN[mark]
    return mark


def print_status(folder: StudyFolder) -> dict[str, int]:
    """The grid as it stands, a legend, how runs were grouped, how the running ones come along, and what ended badly; returns the
    number of runs in each state."""
    from rich.table import Table

    from .study.grouping import environment_of, grouping
    from .study.remaining import standing

    entries = list(folder.planned())
    states = {run.fingerprint: state_of(run) for _, run in entries}
    counts = {state: list(states.values()).count(state) for state in STATES if state in states.values()}
    console = _console()
    console.print(_grid(Table(box=None, pad_edge=False), entries, states, console.encoding))
    console.print("  ".join(f"{_mark(s, console.encoding)} {s}: {n}" for s, n in counts.items()), highlight=False)
    if grouped := grouping([environment_of(run) for _, run in entries]):
        console.print(grouped, highlight=False)
    for entry, run in entries:
        if states[run.fingerprint] == "running" and (stands := standing(entry, run)):
            rate = "" if stands["tokens_per_s"] is None else f", {stands['tokens_per_s']:,.0f} tokens/s"
            said = f"step {stands['step']:,} of {stands['steps']:,}, loss {stands['loss']:.4g}{rate}"
            print(f"{entry['cell']}/{entry['arm']}/{entry['seed']}: {said}")
        if states[run.fingerprint] in _WITHOUT_WEIGHTS:
            attempts = run.attempts()
            message = damage_of(run) or (attempts[-1].get("message", "") if attempts else "")
            where = f"{entry['cell']}/{entry['arm']}/{entry['seed']}"
            print(f"{where} ({run.fingerprint}): {states[run.fingerprint]}: {message}")
        source = entry.get("init_from")
        if states[run.fingerprint] == "planned" and states.get(source) in _WITHOUT_WEIGHTS:
            where = f"{entry['cell']}/{entry['arm']}/{entry['seed']}"
            print(f"{where}: not started: it starts from run {source}, which is {states[source]}")
    return counts


def print_findings(findings: "list[Finding]", *, all_metrics: bool, most: int | None = None) -> None:
    """One sentence a primary effect; the exploratory ones too when asked. What power has to say of several stands below them. Where
    more than `most` name no difference, those are counted."""
    from rich.console import Console

    from .analysis.say_power import in_common

    console = Console(soft_wrap=True)
    shown = [f for f in findings if f.primary or all_metrics]
    counted = [f for f in shown if f.verdict in _NO_DIFFERENCE]
    if most is not None and len(counted) > most:
        n = len(shown)
        shown = [f for f in shown if f.verdict not in _NO_DIFFERENCE]
        each = [f"{k} {v}" for v in _NO_DIFFERENCE if (k := sum(f.verdict == v for f in counted))]
        named = f"\neffects: {n - len(counted)} of {n} are named; of the others {', '.join(each)} (--all has each in a sentence)"
        console.print(named, highlight=False, markup=False)
    for cell in dict.fromkeys(f.cell for f in shown):
        console.print(f"\n{cell}", style="bold", highlight=False, markup=False)
        here = [f for f in shown if f.cell == cell]
        for metric in dict.fromkeys(f.metric for f in here):
            of_metric = [f for f in here if f.metric == metric]
            sentences, after = in_common(of_metric)
            for f, sentence in zip(of_metric, sentences, strict=True):
                mark = "" if f.primary else "(exploratory) "
                console.print(f"  {f.verdict:<11} {mark}{sentence}", highlight=False, markup=False)
            for sentence in after:
                console.print(f"  {'':<11} {sentence}", highlight=False, markup=False)


def print_records(records: list[dict[str, Any]], title: str = "") -> None:
    """A table of records with the same keys. Where it is narrower than its columns, text wraps between words."""
    from rich.table import Table
    from rich.text import Text

    console = _console()
    if title:
        console.print(title, highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    for key in records[0] if records else ():
        cells = [_cell(record[key]) for record in records]
        numeric = any(isinstance(record[key], int | float) for record in records)
        longest = max((len(word) for cell in (key, *cells) for word in cell.split()), default=0)
        table.add_column(key, justify="right" if numeric else "left", no_wrap=numeric, min_width=min(longest, _WORD))
    for record in records:
        table.add_row(*(Text(_cell(value)) for value in record.values()))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _console() -> Any:
    """Of stdout: as wide as a terminal, and as wide as the lines need where it is none, so that a file has whole rows."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_NO_EDGE)


def duration(seconds: float) -> str:
    """Seconds in the words of a person: 42 s, 3 min 20 s, 5 h 12 min."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
