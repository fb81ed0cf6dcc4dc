"""gatelab tasks: every task there is, or items of one."""

from typing import Any

from .base import Json, print_json


def tasks(name: str | None = None, /, *assignments: str, items: int = 3, json_: Json = False) -> int:
    """List the tasks: what each measures and mirrors, what guessing scores, an example; or show items of one.

    Parameters
    ----------
    name:
        One task, such as needle.
    assignments:
        Knobs of its items: length=64 depth=0.5 distractors=3 hardness=2 seed=1
    items:
        How many items of it.
    json_:
        One JSON record a task, or an item with its tokens and spans.
    """
    from .. import catalogue
    from ..config import ConfigError, parse_assignments
    from ..terminal import print_records

    given = parse_assignments(assignments)
    if many := [path for path, values in given.items() if len(values) > 1]:
        raise ConfigError([f"{path}: an item takes one value; ask once for each" for path in many])
    if name is None:
        records = catalogue.task_records()
        if json_:
            print_json(records)
            return 0
        shown = [{k: r[k] for k in ("name", "what", "mirrors")} for r in records]
        print_records(shown, "what is asked, and where the same is asked")
        guesses = [
            {"name": r["name"]}
            | {k: _share(r[k]) for k in ("choice", "exact", "copying")}
            | {"hardness": r["hardness"]}
            for r in records
        ]
        print_records(
            guesses, "\nright by chance: in a choice among options, exactly, and by copying blindly from the item"
        )
        print_records([{"name": r["name"], "example": r["example"]} for r in records], "\nevidence … question → answer")
        print_records(
            catalogue.prompt_records(), "\nin text alone, of language models: gatelab eval MODEL --tasks gatelab/NAME"
        )
        print("\nitems of one: gatelab tasks needle length=64 distractors=3; docs/tasks.md says what each measures")
        return 0
    if items < 1:
        raise ConfigError([f"--items={items}: expected 1 or more"])
    records = catalogue.task_items(name, {"length": 128} | {k: v[0] for k, v in given.items()}, items)
    if json_:
        print_json(records)
        return 0
    for r in records:
        print(f"{name} {r['item']}: {_facts(r)}\n{r['text']}\n")
    return 0


def _facts(r: dict[str, Any]) -> str:
    depth = "" if r["depth"] is None else f"; evidence at depth {r['depth']:.2f}"
    guess = f"copying blindly is right in {_share(r['copying'])}"
    return f"answer {' | '.join(r['answers'])}{depth}; {len(r['tokens'])} tokens, {r['n_distractors']} distractors; {guess}"


def _share(value: float) -> str:
    return f"{value:.1%}" if value >= 0.001 else "< 0.1%"
