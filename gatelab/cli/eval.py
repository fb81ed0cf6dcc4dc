"""gatelab eval: benchmarks of lm-evaluation-harness and our own tasks, for a run or anybody's checkpoint."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from .base import Json, print_json, tell

if TYPE_CHECKING:
    from ..evals.found import Found
    from ..evals.own_asking import OwnAsking
    from ..models.external import External, Loading

Flag = Annotated[bool, Parameter(negative="")]
_SHORTEST = 1024  # of the harness's RULER: its variable tracking is not made at 512
_ITEMS = 100  # of our own tasks, which have no end
_OWN = "gatelab/"


def eval_(
    model: str,
    *,
    tasks: str,
    data_dir: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 8,
    new_tokens: int | None = None,
    lengths: str | None = None,
    depths: str | None = None,
    layout: Literal["spread", "original"] = "spread",
    haystack: Path | None = None,
    run_code: Flag = False,
    dtype: Literal["float32", "bfloat16", "auto"] = "float32",
    device: Literal["cpu", "cuda", "auto"] = "cpu",
    trust_remote_code: Flag = False,
    allow_pickle: Flag = False,
    out: Path | None = None,
    json_: Json = False,
) -> int:
    """Score a run or a checkpoint on our tasks and those of lm-evaluation-harness; ties and what is not finite are never correct.

    Parameters
    ----------
    model:
        A finished run's folder, a folder that `gatelab convert` wrote, a folder in Hugging Face's layout, a .gguf file, or a
        model of the hub as org/name.
    tasks:
        Names joined by commas, of tasks, groups or tags: hellaswag,arc_easy,mmlu,blimp,gsm8k,ruler. Ours begin with gatelab/, as in
        gatelab/needle,gatelab/ruler/niah_single_1,gatelab/middle/kv
    data_dir:
        A folder with the tasks' files, as docs/eval.md lays it out; the hub is then not asked for items.
    limit:
        The first items of each task; all unless stated, and 100 of ours.
    shots:
        Worked examples before an item; as each task has it unless stated.
    batch_size:
        Rows a pass.
    new_tokens:
        Tokens that an answer may have, in the place of what each task allows.
    lengths:
        In tokens, joined by commas, of our tasks and the harness's RULER (1024 or more); 4096 unless stated. A run that was trained
        on our tasks' ids is asked at its own multiples of the length of training.
    depths:
        Where the evidence of our tasks stands, from 0 (the beginning) to 1 (the end), joined by commas; anywhere unless stated.
    layout:
        Of our RULER: spread draws the places of each item, original fixes them as the benchmark's own generator does.
    haystack:
        A text file, or a folder of them, for our RULER's tasks in essays.
    run_code:
        Run the programs that the model writes (humaneval, mbpp), with limits on time and memory and without a network.
    dtype:
        Of the weights; auto is as they are stored.
    device:
        auto is a GPU where there is one.
    trust_remote_code:
        Run the code that a checkpoint brings along.
    allow_pickle:
        Open pickled weights, as weights only.
    out:
        A new folder for eval.json, rows.jsonl and items.jsonl.
    json_:
        One JSON record a measurement, parts of groups included.
    """
    from importlib.util import find_spec

    from ..config import ConfigError

    names = tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    own, others = (tuple(n for n in names if n.startswith(_OWN) == is_own) for is_own in (True, False))
    wrong = [] if names else ["--tasks names none; as in --tasks hellaswag,arc_easy"]
    least = {
        "--limit": (limit, 1),
        "--shots": (shots, 0),
        "--batch-size": (batch_size, 1),
        "--new-tokens": (new_tokens, 1),
    }
    wrong += [f"{word} {n}: expected {low} or more" for word, (n, low) in least.items() if n is not None and n < low]
    shortest, why = (_SHORTEST, "; the harness's generators may not come to an end below") if others else (1, "")
    sizes = (lengths or "4096").split(",")
    if not all(size.strip().isdigit() and int(size) >= shortest for size in sizes):
        wrong.append(
            f"--lengths {lengths}: expected numbers of tokens from {shortest} joined by commas, as in 4096,8192{why}"
        )
    places = _depths(depths, wrong)
    ours = {
        "--depths": depths is not None,
        "--haystack": haystack is not None,
        f"--layout {layout}": layout != "spread",
    }
    theirs = {"--shots": shots is not None, "--run-code": run_code}
    wrong += [f"{word}: is for tasks named {_OWN}…; leave it out" for word, given in ours.items() if given and not own]
    wrong += [
        f"{word}: is for the harness's tasks; leave it out" for word, given in theirs.items() if given and not others
    ]
    if wrong:
        raise ConfigError(wrong)
    stated = tuple(map(int, sizes)) if lengths else None
    asking = None
    if own:
        from ..evals.own_asking import OwnAsking

        asking = OwnAsking(
            tuple(name.removeprefix(_OWN) for name in own), stated, places, limit or _ITEMS, layout, haystack, data_dir
        )
    needs = ("lm_eval", "transformers") if others else ("transformers",)
    absent = [name for name in needs if find_spec(name) is None]
    if absent:
        raise ValueError(f"gatelab eval needs {' and '.join(absent)}: pip install 'gatelab[eval]'")
    if data_dir is not None:
        _keep_off_the_hub()
    from ..models.external import Loading
    from ..models.interop.destination import destination

    loading = Loading(
        head=True, dtype=dtype, device=device, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    opened = cache(lambda: _open(model, loading))
    with nullcontext() if out is None else destination(out) as draft, _bar() as progress:
        # All that is asked for is known to be there before a model is opened.
        ask_own = (
            None
            if asking is None
            else _asked_own(
                model, asking, loading, opened, batch_size=batch_size, new_tokens=new_tokens, progress=progress
            )
        )
        found = []
        if others:
            from ..evals.harness.evaluate import evaluate
            from ..evals.harness.tasks import Asking

            found.append(
                evaluate(
                    opened, Asking(others, data_dir, shots, run_code, stated or (4096,)), batch_size=batch_size, limit=limit,
                    new_tokens=new_tokens, tell=tell if sys.stderr.isatty() else lambda _: None, progress=progress,
                )
            )  # fmt: skip
        if ask_own is not None:
            found.append(ask_own())
        if draft is not None:
            how = {"dtype": dtype, "device": device, "data_dir": None if data_dir is None else str(data_dir)}
            _write(draft, found, how)
    if json_:
        print_json([row.as_dict() for part in found for row in part.rows])
        return 0
    from ..terminal import print_records

    notes = dict.fromkeys(note for part in found for note in part.notes)
    title = "\n".join([found[0].about["model"], *(f"Note: {note}" for note in notes), ""])
    for number, part in enumerate(found):
        print_records(part.records, "" if number else title)
    return 0


def _depths(depths: str | None, wrong: list[str]) -> tuple[float | None, ...]:
    """The depths that are asked for; what is none goes to `wrong`."""
    if depths is None:
        return (None,)
    try:
        places = tuple(float(d) for d in depths.split(","))
    except ValueError:
        places = (-1.0,)
    if not all(0 <= d <= 1 for d in places):
        wrong.append(f"--depths {depths}: expected numbers from 0 to 1 joined by commas, as in 0,0.5,1")
    return places


def _asked_own(
    model: str,
    asking: "OwnAsking",
    loading: "Loading",
    opened: "Callable[[], External]",
    *,
    batch_size: int,
    new_tokens: int | None,
    progress: Callable[[str, int, int], None],
) -> "Callable[[], Found]":
    """What asks our own tasks, when all that they need is there: as ids where a run was trained on them, else in words."""
    from .. import lab
    from ..evals.own_asking import prepare
    from ..evals.own_tasks import evaluate_ids, evaluate_text, refuse_prompts

    prepared = prepare(asking)
    run = lab.task_run(model)
    if run is None:
        return lambda: evaluate_text(
            opened(), asking, prepared, batch_size=batch_size, new_tokens=new_tokens, progress=progress
        )
    refuse_prompts(prepared, model)
    _refuse_for_others(loading)

    def ask() -> "Found":
        from ..evals.harness.stored import placed

        with TemporaryDirectory() as companions:
            found = lab.stored_model(model, Path(companions))
            return evaluate_ids(placed(found, loading), run, found.title, asking, prepared)

    return ask


def _open(model: str, loading: "Loading") -> "External":
    """The model with its tokenizer: a checkpoint by transformers, a run or a folder of ours as a decoder of ours."""
    from .. import lab
    from ..models.external import open_external
    from ..models.interop import is_model_folder

    if lab.is_checkpoint(model) and not is_model_folder(Path(model)):
        return open_external(model, loading).load()
    _refuse_for_others(loading)
    from ..evals.harness.stored import load_stored

    with TemporaryDirectory() as companions:
        return load_stored(lab.stored_model(model, Path(companions)), loading)


def _refuse_for_others(loading: "Loading") -> None:
    from ..config import ConfigError

    for word, given in (("--trust-remote-code", loading.trust_remote_code), ("--allow-pickle", loading.allow_pickle)):
        if given:
            raise ConfigError([f"{word} is for checkpoints of others; leave it out"])


def _write(draft: Path, found: "list[Found]", how: dict[str, Any]) -> None:
    import json

    from ..models.interop.destination import write_json

    about: dict[str, Any] = {}
    for part in found:
        # The harness's part is first, and says more of packages.
        about = part.about | about | {"notes": list(dict.fromkeys([*about.get("notes", ()), *part.notes]))}
    write_json(draft / "eval.json", about | how)
    for name in ("rows", "items"):
        records = [record for part in found for record in getattr(part, name)]
        lines = [json.dumps(record.as_dict(), ensure_ascii=False, allow_nan=False) for record in records]
        (draft / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _keep_off_the_hub() -> None:
    """So that a task without its file fails at once. Read when these libraries are imported."""
    import os

    os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar of answered requests on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda what, n, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # The harness's own bars are silenced by way of sys.stderr, and this one is bound to it before.
    shown = Progress(
        *columns, console=Console(file=sys.stderr), transient=True, redirect_stdout=False, redirect_stderr=False
    )
    numbers: dict[str, Any] = {}

    def progress(what: str, n: int, total: int) -> None:
        if what not in numbers:
            numbers[what] = shown.add_task(what, total=total)
        shown.update(numbers[what], completed=n, total=total)

    with shown:
        yield progress
