"""gatelab tasks: every task there is, or items of one."""

from typing import Any

from .base import Json, print_json

_OWN = "gatelab/"
_MOST_ITEMS = 10_000


def tasks(name: str | None = None, /, *assignments: str, items: int = 3, json_: Json = False) -> int:
    """List the tasks: what each measures and mirrors, what guessing scores, an example; or show items of one.

    Parameters
    ----------
    name:
        One task, such as needle or ruler/vt.
    assignments:
        Knobs of its items: length=64 depth=0.5 distractors=3 hardness=2 seed=1; of a task of text alone length (in words and
        marks), depth, seed and layout.
    items:
        How many items of it.
    json_:
        One JSON record a task, or an item with its tokens and spans.
    """
    from .. import catalogue
    from ..config import ConfigError, parse_assignments

    given = parse_assignments(assignments)
    if many := [path for path, values in given.items() if len(values) > 1]:
        raise ConfigError([f"{path}: an item takes one value; ask once for each" for path in many])
    if name is None:
        records, prompts = catalogue.task_records(), catalogue.prompt_records()
        if json_:
            print_json([*records, *prompts])
        else:
            _list(records, prompts, catalogue.measure_records())
        return 0
    if not 1 <= items <= _MOST_ITEMS:
        raise ConfigError([f"--items={items}: expected 1 to {_MOST_ITEMS:,}"])
    from ..tasks import TASKS

    name, knobs = name.removeprefix(_OWN), {k: v[0] for k, v in given.items()}
    if name in TASKS:
        records = catalogue.task_items(name, {"length": 128} | knobs, items)
    elif name in catalogue.prompt_tasks():
        records = catalogue.prompt_items(name, knobs, items)
    else:
        raise ConfigError([catalogue.refusal_of(name, TASKS)])
    if json_:
        print_json(records)
        return 0
    if files := records[0].get("files"):
        for file, line in files.items():
            print(f"{file} in --data-dir has lines like this one, which is made up:\n{line}\n")
    for r in records:
        print(f"{name} {r['item']}: {_facts(r)}\n{r['text']}\n")
    return 0


def _list(records: list[dict[str, Any]], prompts: list[dict[str, Any]], measures: list[dict[str, Any]]) -> None:
    from ..terminal import print_records

    print_records(_columns(records, "name", "what", "mirrors"), "what is asked, and where the same is asked")
    guesses = [
        {"name": r["name"], **{k: _share(r[k]) for k in ("choice", "exact", "copying")}, "hardness": r["hardness"]}
        for r in records
    ]
    print_records(
        guesses, "\nright by chance: in a choice among options, exactly, and by copying blindly from the item"
    )
    print_records(
        [{"name": r["name"], "gives signal at": r["signal"]} for r in records],
        "\nabove guessing in each of three seeds: a dense decoder without a gate, trained on it at one rate, at 128 tokens\n"
        "with default knobs (docs/results/tasks-sizes.md); other sizes, rates and knobs are not measured",
    )
    print_records(_columns(records, "name", "example"), "\nevidence … question → answer")
    print_records(
        _columns([*prompts, *measures], "name", "what", "mirrors", "needs"),
        "\nin text alone, of language models: gatelab eval MODEL --tasks gatelab/NAME",
    )
    guesses = [
        {
            "name": r["name"],
            "choice": _share(r["choice"]),
            "scored": r["metric"],
            "chance": r["no_chance"] or _share(r["exact"]),
            "copying": _share(r["copying"]),
        }
        for r in prompts
    ]
    print_records(
        guesses,
        "\nof them by chance: in a choice, by the task's score, and by copying blindly; of an item of 1,024 words",
    )
    shown = [{"name": r["name"], "example": f"{'(made up) ' * r['is_made_up']}{r['example']}"} for r in prompts]
    print_records(shown, "\nevidence … question → answer; what a file or an essay of yours would say is made up")
    print(
        "\nitems of one: gatelab tasks needle length=64 distractors=3, gatelab tasks ruler/vt length=500, and of those that need"
    )
    print("a file its lines: gatelab tasks middle/qa; docs/tasks.md and docs/eval.md say what each measures")


def _columns(records: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{name: r[name] for name in names} for r in records]


def _facts(r: dict[str, Any]) -> str:
    depth = "" if r["depth"] is None else f"; evidence at depth {r['depth']:.2f}"
    size = f"{len(r['tokens'])} tokens" if "tokens" in r else f"{r['n_words']} words and marks"
    guess = r.get("no_chance") or f"copying blindly is right in {_share(r['copying'])}"
    made_up = "; of a made-up record or essay" if r.get("is_made_up") else ""
    return f"answer {' | '.join(r['answers'])}{depth}; {size}, {r['n_distractors']} distractors; {guess}{made_up}"


def _share(value: float | None) -> str:
    if value is None:
        return "—"
    return f"{value:.1%}" if value >= 0.001 else "< 0.1%"
