"""The runs of a study, their training steps before there are data, and the folder that a plan is written into."""

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..analysis.anomalies import RULES
from ..analysis.registration import declaration
from ..bench.plan import size
from ..config import Change, ConfigError, Run, canonical, fingerprint, override, validate
from ..models.sizes import count_parameters, match_d_ff
from ..objects import address_of
from ..store import RunFolder, StoreError, StudyFolder, read_json, read_stored, write_json
from ..study.place import check_place
from ..study.plan import Plan, make_plan
from ..study.study import Arm, Study, load_study
from ..train.planner import Job
from .declared import FDR, SCREEN

STEP_TOKENS = 1 << 22  # of a step on many GPUs, where none are stated


def plan(study: str | Study, assignments: dict[str, list[Any]] | None = None) -> Plan:
    """The runs of a study (a name, a file, or a Study) with `key=value` words applied.

    Raises:
        ConfigError, DataError: listing every mistake.
    """
    loaded = load_study(study) if isinstance(study, str) else study
    return make_plan(loaded.changed(assignments or {}))


def baseline_warning(study: Plan | StudyFolder) -> str:
    """A sentence on a study whose baseline, with which other arms are compared, has a gate; else empty."""
    # Runs of one cell and arm have one gate.
    if isinstance(study, Plan):
        name, n_arms = study.study.baseline.name, len(study.study.arms)
        runs = {p.cell: p.run for p in study.runs if p.arm == name}
        configs = [canonical(run) for run in runs.values()]
    else:
        content = study.study()
        name, n_arms = content["baseline"], len(content["arms"])
        folders = {entry["cell"]: run for entry, run in study.planned() if entry["arm"] == name}
        configs = [config for run in folders.values() if (config := run.config_if_whole()) is not None]
    gates = sorted({str(c["model"]["gate"]) for c in configs if c["model"].get("gate", "none") != "none"})
    if not gates or n_arms < 2:
        return ""
    return (
        f"the baseline {name} has a gate ({', '.join(gates)}), so effects are against it, and `gatelab find` will look for no"
        " anomalies: these are what a gate does against none; give the study a first arm without a gate"
    )


def single(assignments: dict[str, list[Any]], config: Path | None = None) -> Study:
    """A study of one run: the defaults, or the configuration in a run.json, with `key=value` words applied.

    Raises:
        ConfigError: several values for a key; every mistake in the configuration.
    """
    many = [path for path, values in assignments.items() if len(values) > 1]
    if many:
        raise ConfigError([f"{path}: one run takes one value; for a grid write a study file" for path in many])
    base = Run() if config is None else _run_in(config)
    study = Study(
        name="train", question="One run.", cells={"run": base}, arms=(Arm("run", {}),), seeds=(base.seed,), match=None
    ).changed(assignments)
    run_config = study.cells["run"]
    gate = run_config.model.model_dump()["gate"]
    return replace(study, cells={run_config.data.kind: run_config}, arms=(Arm(gate, {}),))


def _run_in(path: Path) -> Run:
    """The run of a run.json, or of a file that holds nothing but a configuration."""
    address = address_of(path)
    if address is not None:
        folder, _, name = address.rpartition("/")
        there = StudyFolder.at(folder)
        path = there.path / name
        there.objects.download(name, path)
    if path.is_dir():
        raise ConfigError([f"--config {path}: is a folder; name a run.json, as in STUDY/runs/FINGERPRINT/run.json"])
    content = read_json(path)
    if not isinstance(content, dict):
        held = "null" if content is None else f"a {type(content).__name__}"
        raise ConfigError([f"--config {path}: holds {held}; expected a run.json"])
    if "plan" in content:
        raise ConfigError(
            [f"--config {path}: is a whole study's; name a run.json, as in STUDY/runs/FINGERPRINT/run.json"]
        )
    return validate(Run, read_stored(path)["run"] if "run" in content else content)


def step_jobs(study: str | Study, assignments: dict[str, list[Any]] | None = None) -> dict[str, Job]:
    """A training step of each cell and arm of a study that trains, by their names, narrowed as its runs are. The data are not
    opened, so a model must say its own vocabulary.

    Raises:
        ConfigError: listing every mistake.
    """
    loaded = (load_study(study) if isinstance(study, str) else study).changed(assignments or {})
    jobs, silent = {}, []
    for cell, base in loaded.cells.items():
        if base.model.vocab_size is None:
            silent.append(
                f"cell {cell}: its vocabulary is its data's, which planning GPUs does not read; state model.vocab_size"
            )
            continue
        target = None
        for arm in loaded.arms_of(cell):
            run = override(base, arm.changes)
            model = run.resolved(run.model.vocab_size - run.resolved_objective.extra_ids(run.train.seq_len)).model
            target = target or count_parameters(model)
            if loaded.match is not None and loaded.match not in arm.changes:
                model = match_d_ff(model, target, loaded.match_unit)
            if run.train.steps:
                jobs[f"{cell} / {arm.name}"] = Job(model, run.train.tokens_per_step, run.train.seq_len, run.objective)
    if silent or not jobs:
        raise ConfigError(silent or [f"{loaded.name}: none of its cells trains, so there is no step to plan"])
    return jobs


def size_job(word: str, change: Change | None = None, *, tokens: int = STEP_TOKENS, context: int | None = None) -> Job:
    """A training step of a size of the ladder, or of width x layers x heads x vocabulary, with changes of its model; `tokens` of
    all GPUs in sequences of `context` (None: the size's, at most 4,096).

    Raises:
        ConfigError: no such size, with the nearest; every mistake of the change.
    """
    try:
        base = size(word)
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    context = min(4096, base.max_seq_len) if context is None else context
    change = {path.removeprefix("model."): value for path, value in (change or {}).items()}
    # A mixture's d_ff is resolved to the width of an expert, which the change may be about.
    given = {"max_seq_len": max(context, base.max_seq_len)} | ({"d_ff": None} if base.moe or "moe" in change else {})
    model = override(base.model_copy(update=given), change)
    return Job(model.resolved(base.vocab_size, context), tokens, context)


def save_plan(planned: Plan, out: str | Path, *, beside: Path | None = None, asked: Sequence[str] = ()) -> StudyFolder:
    """Write study.json and the configuration of every run, into a folder or to an address such as s3://bucket/x; runs of an
    earlier, smaller plan of the study stay.

    Args:
        beside: a folder of runs; finished ones that planned runs start from are copied from there.
        asked: the study as `gatelab run` was given it, a name or a file, and the words with it; study.json keeps them, for the
            commands that `find --explain` prints.

    Raises:
        StoreError: when `out` holds something else, or finished runs that are not in the new plan, or not the run that
            one starts from; or lies where leases cannot be taken. Of an address, too, runs that another machine planned there at
            the same time and that are not in the new plan.
    """
    address = address_of(out)
    if address is None:
        check_place(out)
        return _written(planned, Path(out), Path(out), beside, asked)
    folder = StudyFolder.at(address)
    try:
        folder.put(lambda meanwhile: _written(planned, folder.path, Path(address), beside, asked, meanwhile))
    except StoreError as error:
        raise StoreError(str(error).replace(str(folder.path), address)) from None
    return folder


def _written(
    planned: Plan,
    out: Path,
    named: Path,
    beside: Path | None,
    asked: Sequence[str],
    meanwhile: frozenset[str] = frozenset(),
) -> StudyFolder:
    """As `save_plan`, into a folder that users know by another name when it mirrors an address; `meanwhile` are runs that somebody
    else planned there since this command began."""
    content = planned.as_json(named) | ({"asked": [*asked]} if asked else {})
    is_new = not (out / "study.json").is_file()
    if not is_new:
        kept = _kept(StudyFolder(out), planned, meanwhile)
        _refuse_to_drop(StudyFolder(out), planned, kept, meanwhile)
        content["plan"] += kept
        content["seeds"] = sorted({*content["seeds"], *(entry["seed"] for entry in kept)})
        for run_folder in (StudyFolder(out).run(p.fingerprint) for p in planned.runs):
            # Before anything is written: a run of another version refuses the whole plan.
            run_folder.config_if_whole()
    missing = [f for f in _sources(planned) if StudyFolder(out).run(f).done() is None]
    copied = [f for f in missing if beside is not None and RunFolder(beside / f).done() is not None]
    _refuse_no_source(out, [f for f in missing if f not in copied])
    folder = StudyFolder.create(out, content)
    if is_new:
        write_json(folder.path / SCREEN, declaration(RULES, content, FDR))
    for source in copied:
        shutil.copytree(beside / source, folder.run(source).path)
    with ThreadPoolExecutor(16) as pool:  # of thousands of small files the disk takes many at once
        list(pool.map(lambda p: folder.run(p.fingerprint).create(canonical(p.run)), planned.runs))
    return folder


def _kept(folder: StudyFolder, planned: Plan, meanwhile: frozenset[str]) -> list[dict[str, Any]]:
    """The old plan's finished runs with seeds that are not planned now: more seeds were asked for before; and those that came into
    it meanwhile. Only those that the new plan would make the same."""
    there = folder.study()
    if there["name"] != planned.study.name:
        return []  # `create` refuses, in its own words
    planned_seeds = {(p.cell, p.arm, p.seed) for p in planned.runs}
    example = {(p.cell, p.arm): p for p in planned.runs}

    def would_be_the_same(entry: dict[str, Any]) -> bool:
        like = example.get((entry["cell"], entry["arm"]))
        if like is None:
            return False
        run = like.run.model_copy(update={"seed": entry["seed"]})
        return fingerprint(run, planned.sources[like.cell].digest) == entry["fingerprint"]

    return [
        entry
        for entry in there["plan"]
        if (entry["cell"], entry["arm"], entry["seed"]) not in planned_seeds
        and would_be_the_same(entry)
        and (entry["fingerprint"] in meanwhile or _has_ended(folder.run(entry["fingerprint"])))
    ]


def _has_ended(run: RunFolder) -> bool:
    """Whether there is a result, damaged or not: it is not for a plan to drop it."""
    return (run.path / "done.json").exists()


def _sources(planned: Plan) -> list[str]:
    """The runs, not planned themselves, that planned ones start from."""
    own = {p.fingerprint for p in planned.runs}
    return list(dict.fromkeys(p.run.init_from for p in planned.runs if p.run.init_from not in {None, *own}))


def _refuse_no_source(out: Path, missing: list[str]) -> None:
    for source in missing:
        raise StoreError(
            f"init_from={source}: {out} holds no finished run of this name; name the --out that holds it, or copy that "
            f"run's folder into {out / 'runs'}"
        )


def _refuse_to_drop(folder: StudyFolder, planned: Plan, kept: list[dict[str, Any]], meanwhile: frozenset[str]) -> None:
    """A page must not lose runs without a word: what is finished, or somebody else planned just now, stays in the plan, or the plan
    goes elsewhere."""
    there = folder.study()
    if there["name"] != planned.study.name:
        return  # `create` refuses, in its own words
    stay = {p.fingerprint for p in planned.runs} | {entry["fingerprint"] for entry in kept}
    dropped = [e for e in there["plan"] if e["fingerprint"] not in stay]
    lost = [e for e in dropped if _has_ended(folder.run(e["fingerprint"]))]
    new = [e for e in dropped if e["fingerprint"] in meanwhile]
    if new and not lost:
        e = new[0]
        raise StoreError(
            f"--out {folder.path}: another command planned {len(new)} runs there just now that this plan does not have (such as"
            f" {e['cell']}/{e['arm']}/{e['seed']}); name another --out, or give the same command again to go on without them"
        )
    if lost:
        e = lost[0]
        raise StoreError(
            f"--out {folder.path}: holds {len(lost)} finished runs of another configuration (such as"
            f" {e['cell']}/{e['arm']}/{e['seed']}), which this plan would drop from its page; name another --out"
        )
