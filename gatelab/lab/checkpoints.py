"""Models into and out of Gatelab's folders: import, export, another layout, a gate put into a trained model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..config import Run, validate
from ..store import RunFolder, StoreError, read_json
from ..study.checkpoints import export_weights
from .looking import finished_run, named_run

if TYPE_CHECKING:
    from ..config.retrofit import Retrofit
    from ..models.interop import Exported, Imported, Relaid, Stored
    from ..retrofit import Arms


def is_checkpoint(source: str | Path) -> bool:
    """Whether somebody's checkpoint is there, not a run: a file, a folder in Hugging Face's layout, or an id of the hub, which
    is no path of this machine."""
    from ..models.external import is_hub_id

    path = Path(source)
    is_folder = (path / "config.json").is_file() or any(path.glob("*.safetensors")) or any(path.glob("*.gguf"))
    return path.is_file() or (is_folder and not (path / "run.json").exists()) or is_hub_id(source)


def import_checkpoint(
    source: str | Path, out: str | Path, *, allow_pickle: bool = False, tell: Callable[[str], None] = lambda _: None
) -> "Imported":
    """A checkpoint of transformers as a Gatelab model folder with the same logits, see `gatelab.models.interop`; or a run, of one
    that has not finished the newest whole checkpoint, as `tell` says.

    Raises:
        StoreError: a run that has neither weights nor a checkpoint yet.
        ValueError: it cannot be opened or expressed exactly, or `out` is there already.
    """
    from ..models.interop import Imported, import_model, save_folder
    from ..models.interop.destination import check_destination

    if (Path(source) / "model.json").is_file():
        raise ValueError(
            f"{source}: is a model of Gatelab already; `--to hf` makes a checkpoint for transformers of it"
        )
    if not (Path(source) / "run.json").is_file():
        return import_model(source, out, allow_pickle=allow_pickle)
    if allow_pickle:
        raise ValueError(f"{source}: is a run, of which nothing is pickled; leave --allow-pickle out")
    check_destination(Path(out), Path(source))
    with _beside(out) as place:
        found = newest_model(source, place, tell)
        name = f"run {Path(source).resolve().name}"
        return Imported(Path(out), found.config, save_folder(found, out, name=name), ())


def relayout(source: str | Path, out: str | Path, layout: str, *, from_layout: str | None = None) -> "Relaid":
    """A checkpoint's folder with its gated attention in another layout; see `gatelab.models.interop`.

    Raises:
        ValueError: it is in no layout, or may be in several, or the other layout cannot say it; `out` is there already.
    """
    from ..models.interop import relayout as rewritten

    if (Path(source) / "run.json").is_file() or (Path(source) / "model.json").is_file():
        raise ValueError(
            f"{source}: is a model of Gatelab; `--to hf` makes a checkpoint of it, whose layout can be changed"
        )
    return rewritten(source, out, layout, from_layout=from_layout)


def export(path: str | Path, out: str | Path, *, tell: Callable[[str], None] = lambda _: None) -> "Exported":
    """A run, of one that has not finished the newest whole checkpoint, as `tell` says, or a Gatelab model folder, as a folder
    that `AutoModelForCausalLM.from_pretrained` loads.

    Raises:
        StoreError: no run there, or one that has neither weights nor a checkpoint yet.
        ValueError: what its model computes is neither in transformers nor in the code that goes along.
    """
    from ..models.interop import export_model
    from ..models.interop.destination import check_destination

    if is_checkpoint(path) and not (Path(path) / "model.json").is_file():
        raise ValueError(f"{path}: is a checkpoint of transformers already; `--to gatelab` makes a model of ours of it")
    check_destination(Path(out), Path(path))
    with _beside(out) as place:
        return export_model(newest_model(path, place, tell), out)


@contextmanager
def _beside(out: str | Path) -> Iterator[Path]:
    """A folder for what is made on the way, on the disk that has room for the result."""
    above = next(place for place in Path(out).absolute().parents if place.is_dir())
    try:
        place = TemporaryDirectory(prefix=".gatelab-", dir=above)
    except OSError as error:
        raise ValueError(
            f"{out}: no folder can be made here ({error.strerror}); name one where you may write"
        ) from None
    with place as name:
        yield Path(name)


def retrofit(
    source: str | Path,
    config: "Retrofit",
    out: str | Path,
    *,
    text: str = "self",
    real: str = "stdlib",
    device: str = "auto",
    allow_pickle: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> "Arms":
    """A gate put into a trained model, in a new folder: a checkpoint of transformers (which is imported first), a finished run,
    or a Gatelab model folder; see `gatelab.retrofit`.

    Raises:
        StoreError: a run that has not finished.
        ValueError: what `import_checkpoint` and `gatelab.retrofit.retrofit` refuse.
    """
    from ..models.interop import import_model, is_model_folder, open_folder
    from ..models.interop.destination import check_destination
    from ..retrofit import retrofit as carried_out

    # A checkpoint is imported from elsewhere, in minutes where it is large.
    check_destination(Path(out), Path(source))
    with TemporaryDirectory() as place:
        if is_checkpoint(source) and not is_model_folder(Path(source)):
            tell(f"importing {source}")
            import_model(source, Path(place) / "model", allow_pickle=allow_pickle)
            found = replace(open_folder(Path(place) / "model"), title=str(source))
        else:
            found = stored_model(source, Path(place))
        return carried_out(found, config, Path(out), text=text, real=real, device=device, tell=tell)


def stored_model(path: str | Path, companions: Path) -> "Stored":
    """The model of a Gatelab model folder, or of a finished run, whose tokenizer is written into `companions`.

    Raises:
        StoreError: no run there, or one that has not finished.
    """
    from ..models.interop import is_model_folder, open_folder

    if is_model_folder(Path(path)):
        return open_folder(Path(path))
    return _stored_run(finished_run(path), companions)


def newest_model(path: str | Path, companions: Path, tell: Callable[[str], None]) -> "Stored":
    """As `stored_model`; of a run that has not finished its newest whole checkpoint, which `tell` says, and whose weights are
    written into `companions` too.

    Raises:
        StoreError: no run there, or one that has neither weights nor a checkpoint yet.
    """
    from ..models.interop import is_model_folder

    if is_model_folder(Path(path)) or (folder := named_run(path)).done() is not None:
        return stored_model(path, companions)
    weights = companions / "weights.safetensors"
    step = export_weights(folder, weights)
    if step is not None:
        steps = validate(Run, folder.config()).train.steps
        tell(f"{path}: has not finished; these are its weights at step {step:,} of {steps:,}")
        return _stored_run(folder, companions, (weights, step))
    if folder.done() is not None:  # just now
        return stored_model(path, companions)
    raise StoreError(
        f"{path}: this run has not finished, and has no checkpoint yet; the first is written after execution.checkpoint_s "
        "seconds, or as it is asked to stop"
    )


def _stored_run(folder: RunFolder, companions: Path, checkpoint: tuple[Path, int] | None = None) -> "Stored":
    from ..models.interop import stored_run

    run_config = validate(Run, folder.config())
    has_tokenizer, tokenizer = _tokenizer_of(run_config)
    return stored_run(
        run_config, folder.path, companions, tokenizer=tokenizer, has_tokenizer=has_tokenizer, checkpoint=checkpoint
    )


def task_run(path: str | Path) -> Run | None:
    """The configuration of a run that was trained on the tasks' ids, to be asked in them; None of anything else.

    Raises:
        StoreError: a run that has not finished.
    """
    if not (Path(path) / "run.json").is_file():
        return None
    run_config = validate(Run, finished_run(path).config())
    return run_config if run_config.data.kind == "tasks" else None


def run_seed(path: str | Path) -> int:
    """The seed of a finished run, from which it began; 0 of anything else.

    Raises:
        StoreError: a run that has not finished.
    """
    is_run = (Path(path) / "run.json").is_file()
    return validate(Run, finished_run(path).config()).seed if is_run else 0


def _tokenizer_of(run_config: Run) -> tuple[bool, Path | None]:
    """Whether a run's tokenizer is to be had, and its tokenizer.json; None: bytes."""
    from ..data import DataError, default_cache, open_source

    data = run_config.data
    if data.kind != "text" or data.vocab_size is not None:
        return False, None
    if data.tokenizer == "byte":
        return True, None
    if not data.tokenizer.startswith("bpe:"):
        path = Path(data.tokenizer).expanduser()
        return path.is_file(), path
    try:
        digest = open_source(data).digest
    except DataError:
        return False, None
    # Trained on the text, it lies beside the text's tokens.
    for meta in default_cache().glob("corpora/*/meta.json"):
        if read_json(meta).get("digest") == digest:
            return True, meta.with_name("tokenizer.json")
    return False, None
