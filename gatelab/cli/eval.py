"""gatelab eval: benchmarks of lm-evaluation-harness, for a run or anybody's checkpoint."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from .base import Json, print_json, tell

if TYPE_CHECKING:
    from ..evals.harness.results import Found
    from ..models.external import External, Loading

Flag = Annotated[bool, Parameter(negative="")]
_SHORTEST = 1024  # of RULER's contexts: that of variable tracking is not made at 512


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
    run_code: Flag = False,
    dtype: Literal["float32", "bfloat16", "auto"] = "float32",
    device: Literal["cpu", "cuda", "auto"] = "cpu",
    trust_remote_code: Flag = False,
    allow_pickle: Flag = False,
    out: Path | None = None,
    json_: Json = False,
) -> int:
    """Score a run or a checkpoint on tasks of lm-evaluation-harness; ties and numbers that are not finite are never correct.

    Parameters
    ----------
    model:
        A finished run's folder, a folder that `gatelab convert` wrote, a folder in Hugging Face's layout, a .gguf file, or a
        model of the hub as org/name.
    tasks:
        Names joined by commas, of tasks, groups or tags: hellaswag,arc_easy,mmlu,blimp,gsm8k,ruler
    data_dir:
        A folder with the tasks' files, as docs/eval.md lays it out; the hub is then not asked for items.
    limit:
        The first items of each task; all unless stated.
    shots:
        Worked examples before an item; as each task has it unless stated.
    batch_size:
        Rows a pass.
    new_tokens:
        Tokens that an answer may have, in the place of what each task allows.
    lengths:
        Of RULER's contexts in tokens, 1024 or more, joined by commas; 4096 unless stated.
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

    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    wrong = [] if names else ["--tasks names none; as in --tasks hellaswag,arc_easy"]
    least = {
        "--limit": (limit, 1),
        "--shots": (shots, 0),
        "--batch-size": (batch_size, 1),
        "--new-tokens": (new_tokens, 1),
    }
    wrong += [f"{word} {n}: expected {low} or more" for word, (n, low) in least.items() if n is not None and n < low]
    sizes = (lengths or "4096").split(",")
    if not all(size.strip().isdigit() and int(size) >= _SHORTEST for size in sizes):
        wrong.append(
            f"--lengths {lengths}: expected numbers of tokens from {_SHORTEST} joined by commas, as in 4096,8192; the harness's "
            "generators may not come to an end below"
        )
    if wrong:
        raise ConfigError(wrong)
    absent = [name for name in ("lm_eval", "transformers") if find_spec(name) is None]
    if absent:
        raise ValueError(f"gatelab eval needs {' and '.join(absent)}: pip install 'gatelab[eval]'")
    if data_dir is not None:
        _keep_off_the_hub()
    from ..evals.harness.evaluate import evaluate
    from ..evals.harness.tasks import Asking
    from ..models.external import Loading
    from ..models.interop.destination import destination

    loading = Loading(
        head=True, dtype=dtype, device=device, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    asking = Asking(names, data_dir, shots, run_code, tuple(map(int, sizes)))
    with nullcontext() if out is None else destination(out) as draft, _bar() as progress:
        found = evaluate(
            lambda: _open(model, loading), asking, batch_size=batch_size, limit=limit, new_tokens=new_tokens,
            tell=tell if sys.stderr.isatty() else lambda _: None, progress=progress,
        )  # fmt: skip
        if draft is not None:
            found.about |= {"dtype": dtype, "device": device, "data_dir": None if data_dir is None else str(data_dir)}
            _write(draft, found)
    if json_:
        print_json([row.as_dict() for row in found.rows])
        return 0
    from ..terminal import print_records

    print_records(found.records, "\n".join([found.about["model"], *(f"Note: {note}" for note in found.notes), ""]))
    return 0


def _open(model: str, loading: "Loading") -> "External":
    """The model with its tokenizer: a checkpoint by transformers, a run or a folder of ours as a decoder of ours."""
    from .. import lab
    from ..config import ConfigError
    from ..models.external import open_external
    from ..models.interop import is_model_folder

    if lab.is_checkpoint(model) and not is_model_folder(Path(model)):
        return open_external(model, loading).load()
    for word, given in (("--trust-remote-code", loading.trust_remote_code), ("--allow-pickle", loading.allow_pickle)):
        if given:
            raise ConfigError([f"{word} is for checkpoints of others; leave it out"])
    from ..evals.harness.stored import load_stored

    with TemporaryDirectory() as companions:
        return load_stored(lab.stored_model(model, Path(companions)), loading)


def _write(draft: Path, found: "Found") -> None:
    import json

    from ..models.interop.destination import write_json

    write_json(draft / "eval.json", found.about)
    for name, records in (("rows", found.rows), ("items", found.items)):
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
