"""The commands that make the rows which a test lacks; each can be given as it stands, where the study was run, but for a word in
capitals, which it says to fill in.

What a folder has may be of an older version of the code, beside whose runs new ones make no pair, and a plan of some of its cells
would drop the others: so arms, other cells and other looks go into a folder of their own beside it, with the baseline, of the cell
that is asked alone. More seeds alone go into the study's own folder, where it has no other cells.
"""

import glob
import re
import shlex
from ast import literal_eval
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..config import parse_assignments
from ..config.gate import GateSpec, parse_gates
from ..config.gate_layers import gated
from ..study.study import built_in

if TYPE_CHECKING:
    from .causes import Card, Decision, Ledger

UNKNOWN = "FILE.py"  # where nothing tells which file defines a study
_BLANK = re.compile(r"\b[A-Z][A-Z_]+\b")  # what nothing here knows
_MOST_SEEDS = 5  # that a command names to begin with


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a study's runs are planned again. `study`: what `gatelab run` takes, a built-in's name or a file; empty where it is not
    known. `cells` {cell: (the study's own cell that it is made of, the words that make it)}; `sources` {cell: the cell whose
    weights it starts from}. `words` are those that make the whole study, `of_arms` the keys among them that made its arms, of
    which `arm=` then chooses none. `is_sure`: whether these words are known to be all."""

    study: str = ""
    cells: Mapping[str, tuple[str, Sequence[str]]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    words: Sequence[str] = ()
    of_arms: frozenset[str] = frozenset()
    is_sure: bool = True


def recipe_of(study: Mapping[str, Any]) -> Recipe:
    """Of what study.json says: the words with which it was planned, where it keeps them (`asked`)."""
    named, *words = study.get("asked") or [study["name"]]
    known = named in built_in() or named.endswith(".py")
    given = {w.partition("=")[0]: w for w in words}
    ours = {k: w for k, w in given.items() if k not in ("cell", "arm", "seed") and not k.startswith("execution.")}
    of_arms = {k for a in study.get("arms", ()) for k in a.get("changes") or {}}
    cells = {}
    for cell in (c["name"] for c in study["cells"]):
        origin, *own = re.split(r", (?=[a-z_.]+=)", cell)
        split = {w.partition("=")[0] for w in own}
        cells[cell] = origin, [*(w for k, w in ours.items() if k not in split), *own]
    by_name = {e["fingerprint"]: e["cell"] for e in study["plan"]}
    starts = {e["cell"]: by_name.get(e.get("init_from")) for e in study["plan"]}
    sources = {cell: source for cell, source in starts.items() if source not in (None, cell)}
    made = frozenset(of_arms & {*ours})
    whole = [w for k, w in given.items() if k != "seed" and not k.startswith("execution.")]
    return Recipe(named if known else "", cells, sources, whole, made, bool(study.get("asked")))


def run(
    ledger: "Ledger",
    cells: Sequence[str],
    out: str,
    *,
    words: Sequence[str] = (),
    arms: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    study: str = "",
) -> str:
    """`gatelab run` of these cells with the baseline and these arms (none: those that were asked for, else all) and the seeds that
    are finished there, with words of a key replacing the cell's own."""
    recipe, cells = _recipe(ledger), list(cells)
    for cell in cells:  # which grows: a cell is planned with those whose weights it starts from
        cells += [source for source in [recipe.sources.get(cell)] if source is not None and source not in cells]
    made = [recipe.cells.get(cell, (cell, ())) for cell in cells]
    keys = {w.partition("=")[0] for w in words}
    if study:
        keys |= recipe.of_arms
    own = _merged(w for _, of_cell in made for w in of_cell if w.partition("=")[0] not in keys)
    chosen = _list("cell", dict.fromkeys(glob.escape(origin) for origin, _ in made))
    arms = [a for a in arms or ledger.only if a != ledger.evidence.baseline]
    which = _list("arm", map(glob.escape, arms)) if arms and (study or not recipe.of_arms) else ""
    ran = {s for (c, _), of_arm in ledger.runs.items() if c in cells for s in of_arm} if seeds is None else seeds
    seed = f"seed={span(sorted(ran))}" if ran else ""
    named = study or recipe.study or UNKNOWN
    return shlex.join(["gatelab", "run", named, *filter(None, (chosen, *own, *words, which, seed)), "--out", out])


def anew(ledger: "Ledger", cell: str, word: str, what: str, value: Any = None) -> list[str]:
    """The cell with a word, in a folder of its own, and the question asked again there, of its cell with this value. `what` names
    the folder: no two tests give one name, since the plan of the second would drop the runs of the first."""
    out = f"{ledger.folder.rstrip('/')}-{what}"
    command = f"{run(ledger, [cell], out, words=[word])} && {_ask(out, _cell_in(ledger, cell, word, value))}"
    unsure = _unsure(ledger)
    blank = f"{';' if unsure else '    #'} fill in {blanks[0]}" if (blanks := _BLANK.findall(word)) else ""
    return [f"{command}{unsure}{blank}"]


def seeds_more(ledger: "Ledger", cells: Iterable[str]) -> list[str]:
    """Twice as many seeds as there are, three at least: in the study's folder where these are all its cells, and else as many new
    ones in a folder of their own."""
    cells = list(dict.fromkeys(cells))
    ran = {s for (c, _), of_arm in ledger.runs.items() if c in cells for s in of_arm} or {0}
    n = max(3, 2 * (max(ran) - min(ran) + 1))
    if set(cells) >= set(ledger.evidence.cells):
        recipe, seeds = _recipe(ledger), f"seed={span(range(min(ran), min(ran) + n))}"
        words = ["gatelab", "run", recipe.study or UNKNOWN, *recipe.words, seeds, "--out", ledger.folder]
        return [f"{shlex.join(words)}{_unsure(ledger)}"]
    out = f"{ledger.folder.rstrip('/')}-seeds{f'-of-{len(cells)}-cells' if len(cells) > 1 else ''}"
    fresh = range(max(ran) + 1, max(ran) + 1 + n)
    there = _cell_in(ledger, cells[0]) if len(cells) == 1 else cells[0]
    return [f"{run(ledger, cells, out, seeds=fresh)} && {_ask(out, there)}{_unsure(ledger)}"]


def edits(ledger: "Ledger", cell: str, names: Sequence[str]) -> list[str]:
    """What makes the rows of edits of these runs, of which the weights are here."""
    command = _ask_edits(ledger, ledger.folder, cell)
    of_cell = [x for (c, _), runs in ledger.runs.items() if c == cell for x in runs.items()]
    seeds = sorted(seed for seed, name in of_cell if name in names)
    if len(seeds) <= _MOST_SEEDS:
        return [command]
    return [f"{command}    # {len(names)} runs lack it; --seeds {','.join(map(str, seeds[:_MOST_SEEDS]))} makes some"]


def together(ledger: "Ledger", cards: Sequence["Card"]) -> list["Card"]:
    """The cards, each decision that lacks arms with the one command that carries all of them out, of its cell."""
    commands: dict[str, str] = {}
    for cell in dict.fromkeys(c.cell for c in cards):
        asked = [(c.arm, d.arms) for c in cards if c.cell == cell for d in c.decisions if d.arms]
        if asked:
            arms = dict.fromkeys(x for arm, of in asked for x in (arm, *of))
            commands[cell] = _with_arms(ledger, cell, list(arms))

    def told(card: "Card", d: "Decision") -> "Decision":
        return replace(d, to_do=[*(w for w in d.to_do if not is_command(w)), commands[card.cell]]) if d.arms else d

    return [replace(c, decisions=[told(c, d) for d in c.decisions]) for c in cards]


def is_command(word: str) -> bool:
    """Whether a thing to do is written as one that a shell takes, or as an arm to add."""
    return word.startswith(("gatelab ", "printf ", "add "))


def _with_arms(ledger: "Ledger", cell: str, arms: Sequence[str]) -> str:
    """Runs arms of the cell anew: named ones of the study, and ones that are written out, as in `Arm('x', {…})`."""
    there = {a for c, a in ledger.models} | {ledger.evidence.baseline, *ledger.evidence.arms}
    names, new = [a for a in arms if not a.startswith("Arm(")], []
    recipe, out = _recipe(ledger), f"{ledger.folder.rstrip('/')}-causes"
    if recipe.of_arms:
        # Words that made the study's arms would make these again in the place of all others.
        new = [
            f"Arm('{a}', {{'model.gate': '{ledger.models[cell, a].get('gate')}'}})"
            for a in names
            if (cell, a) in ledger.models
        ]
        there -= {*names}
    written, new, made = [*new, *(a for a in arms if a.startswith("Arm("))], [], []
    depth = next((m.get("n_layers", 1) for (c, _), m in ledger.models.items() if c == cell), 1)
    for arm in written:
        name, rest, changes = re.match(r"Arm\('([^']*)'(, (\{.*\}).*)", arm, re.DOTALL).groups()
        what = _written_out(literal_eval(changes), depth)
        if what in made:
            continue  # two tests name one arm
        made.append(what)
        free = next(x for x in (name, *(f"{name}-{i}" for i in range(2, 99))) if x not in there)
        there.add(free)
        new.append(f"Arm('{free}'{rest}")
        names.append(free)
    names = list(dict.fromkeys(names))
    ask = _ask_edits(ledger, out, _cell_in(ledger, cell))
    if not new:
        return f"{run(ledger, [cell], out, arms=names)} && {ask}{_unsure(ledger)}"
    if not recipe.study:
        command = run(ledger, [cell], out, arms=names)
        return f"add {', '.join(new)} to the arms of the study's file, then: {command} && {ask}{_unsure(ledger)}"
    if recipe.study.endswith(".py"):
        load = ["from gatelab.study.study import load_study", f"study = load_study({recipe.study!r})"]
    else:
        load = [f"from gatelab.studies.{recipe.study.replace('-', '_')} import study"]
    study = f"study = replace(study, only={{}}, arms=(*study.arms, {', '.join(new)}))"
    lines = ["from dataclasses import replace", "from gatelab import Arm", *load, study]
    file = f"{out.rpartition('/')[2]}.py"
    written = " ".join(f'"{line}"' for line in lines)
    command = run(ledger, [cell], out, arms=names, study=file)
    return f"printf '%s\\n' {written} > {shlex.quote(file)} && {command} && {ask}{_unsure(ledger)}"


def _written_out(changes: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """An arm's changes with its gates by their parts and the layers by their numbers, by which two that are one are known."""
    out = dict(changes)
    if "model.gate" in out:
        out["model.gate"] = [GateSpec.parse(slug).slug for slug in parse_gates(out["model.gate"])]
    if "model.gate_layers" in out:
        layers = out["model.gate_layers"]
        out["model.gate_layers"] = gated(layers if isinstance(layers, str) else tuple(layers), depth)
    return out


def _recipe(ledger: "Ledger") -> Recipe:
    return ledger.recipe or Recipe(ledger.study if ledger.study in built_in() else "")


def _unsure(ledger: "Ledger") -> str:
    recipe = _recipe(ledger)
    if not recipe.study:
        return f"    # {UNKNOWN}: the file that defines the study {ledger.study!r}, and the key=value words that it was run with"
    return (
        "" if recipe.is_sure or ledger.recipe is None else "    # and the key=value words that the study was run with"
    )


def _ask(folder: str, cell: str) -> str:
    return shlex.join(["gatelab", "find", folder, "--explain", cell])


def _ask_edits(ledger: "Ledger", folder: str, cell: str) -> str:
    return " ".join([_ask(folder, cell), "--edit", *([shlex.join(["--arm", *ledger.only])] if ledger.only else [])])


def _cell_in(ledger: "Ledger", cell: str, word: str = "", value: Any = None) -> str:
    """What a cell is called where it is made anew, with a word of several values: that with this value, else the first."""
    origin, _ = _recipe(ledger).cells.get(cell, (cell, ()))
    if not word:
        return origin
    ((key, values),) = parse_assignments([word]).items()
    own = next((v for v in values if f"{v}" == f"{value}"), values[0])
    return f"{origin}, {key}={own}" if len(values) > 1 else origin


def _merged(words: Iterable[str]) -> list[str]:
    """Words of one key as one, of all their values."""
    of: dict[str, dict[str, None]] = {}
    for key, _, value in (w.partition("=") for w in words):
        of.setdefault(key, {})[value] = None
    return [_list(key, values) for key, values in of.items()]


def _list(key: str, values: Iterable[str]) -> str:
    found = list(values)
    return f"{key}={found[0]}" if len(found) == 1 else f"{key}=[{','.join(found)}]"


def span(seeds: Sequence[int]) -> str:
    """Seeds as `gatelab run` takes them."""
    if len(seeds) == 1:
        return str(seeds[0])
    is_range = list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]}..{seeds[-1]}" if is_range else f"[{','.join(map(str, seeds))}]"
