"""What gatelab eval opens, asks and writes when its words have been read."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..evals.found import Found
    from ..evals.own_asking import OwnAsking
    from ..models.external import External, Loading


def asked_own(
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
    from ..evals.own_ids import evaluate_ids, refuse_prompts
    from ..evals.own_words import evaluate_text

    prepared = prepare(asking)
    run = lab.task_run(model)
    if run is None:
        seed = lab.run_seed(model)
        return lambda: evaluate_text(
            opened(), asking, prepared, batch_size=batch_size, new_tokens=new_tokens, seed=seed, progress=progress
        )
    refuse_prompts(prepared, model)
    _refuse_for_others(loading)

    def ask() -> "Found":
        from ..evals.harness.stored import placed

        with TemporaryDirectory() as companions:
            found = lab.stored_model(model, Path(companions))
            asked, notes = placed(found, loading, trained=run.train.seq_len)
            made = evaluate_ids(asked, run, found.title, asking, prepared, progress=progress)
            made.notes += notes
            return made

    return ask


def open_model(model: str, loading: "Loading") -> "External":
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


def write(draft: Path, found: "list[Found]", how: dict[str, Any]) -> None:
    import json

    from ..models.interop.destination import write_json

    about: dict[str, Any] = {}
    for part in found:
        # The harness's part is first, and says more of packages.
        about = part.about | about | {"notes": list(dict.fromkeys([*about.get("notes", ()), *part.notes]))}
    write_json(draft / "eval.json", about | how)
    for name, text in (file for part in found for file in part.files.items()):
        (draft / name).write_text(text, encoding="utf-8")
    for name in ("rows", "items"):
        records = [record for part in found for record in getattr(part, name)]
        lines = [json.dumps(record.as_dict(), ensure_ascii=False, allow_nan=False) for record in records]
        (draft / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@contextmanager
def bar() -> Iterator[Callable[[str, int, int], None]]:
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
