"""Look at one model: a run's configuration and rows, probes and interventions on its weights, a checkpoint of anybody's."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Change, Run, override, validate
from ..config.gate_layers import shown
from ..data import DataError, check_lengths
from ..record import Row
from ..store import RunFolder, StoreError, StudyFolder, query
from .writing import written_to

if TYPE_CHECKING:
    from ..evals.changes import Effects
    from ..evals.checkpoint import Edits, Look, Reading
    from ..models.external import Loading
    from ..train.group import Member


def probe(path: str | Path, *, length: int | None = None) -> list[Row]:
    """Probe a finished run on its held-out data, optionally at another context length.

    Raises:
        StoreError: no run there, or one that has not finished.
        ValueError: a length that its positions or its data do not allow.
    """
    from ..evals.heldout import measure

    folder, member, step = _trained(path, length)
    return measure(member.model, member.source, member.run, fingerprint=folder.fingerprint, step=step)


def look_at_run(path: str | Path, *, length: int | None = None) -> "Look":
    """A finished run as `probe_checkpoint` shows a checkpoint, for its page; see `probe`.

    Raises:
        StoreError, ValueError: as `probe` does.
    """
    from ..evals.checkpoint import Look, facts

    rows = probe(path, length=length)
    loss = next(r for r in rows if r.metric == "val_loss" and r.domain is None)
    model = flat(find_run(path).config()["model"])
    there = "" if (layers := model.get("gate_layers", "all")) == "all" else f" in layers {shown(layers)}"
    sizes = f"{model['arch']}, {model['n_layers']} layers, width {model['d_model']}, gate {model['gate']}{there}"
    description = f"run {loss.run} ({sizes}), step {loss.step}: {loss.length} held-out tokens a sequence"
    notes = (f"its held-out loss is {loss.value:.4f} nats a token",)
    return Look(loss.run, description, facts(rows), notes, [r for r in rows if r.source != "eval"], [])


def intervene(path: str | Path, words: list[str], *, documents: int = 16, length: int | None = None) -> "Effects":
    """What interventions (`gatelab.probes.interventions.KINDS`) do to the next-token loss of a finished run, over its first
    held-out sequences; see `gatelab.evals.intervene.effects`.

    Raises:
        StoreError: no run there, or one that has not finished.
        ValueError: an intervention that cannot be made, more documents than there are.
    """
    from ..data import objective_heldout
    from ..evals.intervene import effects

    _, member, _ = _trained(path, length)
    run_config = member.run
    available = member.source.heldout_sequences(run_config.train.seq_len)
    if documents < 1 or (available is not None and documents > available):
        most = "" if available is None else f" to {available}"
        raise ValueError(f"--documents {documents}: this run has held-out sequences for 1{most}")
    sequences = []
    for i in range(documents):
        batch = objective_heldout(member.source, run_config.resolved_objective, i, 1, run_config.train.seq_len)
        sequences.append(batch.inputs_BT[0].tolist())
    return effects(member.model, sequences, words)


def probe_checkpoint(
    source: str | Path,
    reading: "Reading | None" = None,
    loading: "Loading | None" = None,
    *,
    names: list[str] | None = None,
    edits: "Edits | None" = None,
    tell: Callable[[str], None] | None = None,
) -> "Look":
    """Probe a transformers checkpoint, a folder, a .gguf file or a model of the hub, on a text; see
    `gatelab.evals.checkpoint.look`.

    Raises:
        ValueError, DataError: a checkpoint or a text that cannot be used.
    """
    from ..evals.checkpoint import look
    from ..models.external import Loading

    return look(source, reading, loading=loading or Loading(), names=names, edits=edits, tell=tell)


def write_look(look: "Look", out: str | Path) -> Path:
    """Write the page of a look at a checkpoint, its rows beside it; returns the page's path.

    Raises:
        StoreError: a folder that cannot be written.
    """
    from ..report.checkpoint import Seen, write_checkpoint_page

    missing = [(u.module, u.class_name, u.why) for u in look.unobserved]
    effects = [] if look.effects is None else look.effects.rows(look.name)
    seen = Seen(look.name, look.description, look.facts, look.rows, missing, look.notes, look.tokens, effects)
    with written_to(out):
        Path(out).mkdir(parents=True, exist_ok=True)
        return write_checkpoint_page(Path(out) / "probe.html", seen)


def find_run(path: str | Path) -> RunFolder:
    """A run's folder by its path.

    Raises:
        StoreError: when there is none, or it holds no run.
    """
    folder = RunFolder(Path(path))
    if not (folder.path / "run.json").exists():
        held = "no such folder" if not folder.path.exists() else "holds no run (no run.json)"
        if (folder.path / "study.json").exists():
            held = "is a whole study"
        raise StoreError(
            f"{path}: {held}; name a run's folder, STUDY/runs/FINGERPRINT (`gatelab status STUDY --json` lists them)"
        )
    folder.config()
    return folder


def named_run(path: str | Path) -> RunFolder:
    """As `find_run`, where a checkpoint of somebody's could have been named as well."""
    if not Path(path).exists():
        raise StoreError(
            f"{path}: no such folder or file; name a run's folder, a checkpoint's folder, a .gguf file, or a model of the hub "
            f"as org/name"
        )
    return find_run(path)


def finished_run(path: str | Path) -> RunFolder:
    """A finished run's folder by its path.

    Raises:
        StoreError: when there is none, or it has not finished.
    """
    folder = named_run(path)
    if folder.done() is None:
        raise StoreError(
            f"{path}: this run has not finished, so it has no final weights; `gatelab status` says how it stands"
        )
    return folder


def final_rows(folder: StudyFolder, fingerprint: str) -> list[dict[str, Any]]:
    """A run's model-level measurements at its last look, the held-out loss first; answers to tasks by task, length and stretch.
    `step` is each metric's last, which of a run that diverged lie apart."""
    return query(
        folder,
        """SELECT step, metric, stack, site, value, unit, threshold, domain, task, length, intervention, dose FROM rows
           WHERE run = $1 AND layer IS NULL AND head IS NULL AND bin IS NULL
           QUALIFY step = max(step) OVER (PARTITION BY metric)
           ORDER BY metric <> 'val_loss', metric, stack NULLS FIRST, site, domain, task, length, intervention NULLS FIRST, dose,
                    threshold""",
        [fingerprint],
    )


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration by dotted path."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def _trained(path: str | Path, length: int | None) -> "tuple[RunFolder, Member, int]":
    """A finished run's folder, its model and data, and its last step."""
    folder = finished_run(path)
    from ..train.checkpoint import load_weights
    from ..train.group import Group

    run_config = validate(Run, folder.config())
    if length is not None:
        run_config = _at_length(run_config, length)
    try:
        member = Group([run_config]).members[0]
    except DataError as error:
        data = run_config.data
        named = (*data.paths, *data.val_paths, data.tokenizer) if data.kind == "text" else ()
        if "no such file" not in str(error) or not any(
            repr(name) in str(error) and not Path(name).expanduser().is_absolute() for name in named
        ):
            raise
        raise DataError(
            f"{error}; relative paths of a run's data count from where it was made: give this command there, with the run's "
            f"folder as {Path(path).resolve()}"
        ) from None
    check_lengths(member.source, run_config.train.seq_len)
    return folder, member, load_weights(member.model, folder.path / "weights.safetensors")


def _at_length(run_config: Run, length: int) -> Run:
    """The same run with another context; only rotary positions reach further than they were trained for."""
    if run_config.model.positions == "learned" and length > run_config.model.max_seq_len:
        raise ValueError(
            f"--length {length}: this model has learned positions for {run_config.model.max_seq_len} tokens; take at most as many"
        )
    objective, seq_len = run_config.resolved_objective, run_config.train.seq_len
    if objective.extra_ids(length) > objective.extra_ids(seq_len):
        raise ValueError(
            f"--length {length}: {objective.kind!r} takes out more spans there than this model, trained at {seq_len}, has "
            "sentinels for; take a shorter one"
        )
    at_least = max(run_config.train.tokens, length * run_config.train.batch_size)
    changes: Change = {"train.seq_len": length, "train.tokens": at_least}
    if run_config.model.positions == "rope":
        changes["model.max_seq_len"] = max(length, run_config.model.max_seq_len)
    return override(run_config, changes)
