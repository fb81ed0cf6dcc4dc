"""The main job: plan, run, analyse, report. What the command line does is a plain call here.

from gatelab import lab
folder, _ = lab.run("quickstart", "runs/quickstart")
page = lab.report(folder, lab.analyse(folder))
"""

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .analysis import Outcome, PairingGain, Share, effects, pairing_gain, shares, stages
from .analysis.anomalies import RULES
from .analysis.anomalies.gather import Gathered, checked, gather
from .analysis.cause_tests import FILE
from .analysis.causes import Card, Ledger, cards
from .analysis.digest import digest
from .analysis.foresight import SEEDS, Foresight, foresee
from .analysis.hunt import READINGS, Hunt
from .analysis.hunt import hunt as hunted
from .analysis.hypotheses import HYPOTHESES, edits_of
from .analysis.looked import Looked, with_rows
from .analysis.task_study import task_study
from .analysis.tasks import final_values, task_rows
from .bench.plan import size
from .config import Change, ConfigError, Execution, Run, canonical, fingerprint, nearest, override, validate
from .data import check_lengths
from .models.sizes import count_parameters, match_d_ff
from .record import Finding, Metric, Row
from .report import write_report
from .store import RunFolder, StoreError, StudyFolder, query, read_json, read_stored, write_json
from .study.drive import Event, Summary, drive
from .study.executor import Executor
from .study.fresh import fresh_runs, with_sources
from .study.ledger import check_place, state_of
from .study.local import local_executor
from .study.metrics import STUDY_METRICS
from .study.plan import Plan, make_plan
from .study.ray import check_ray, ray_executor
from .study.slurm import Allocation, script, write_script
from .study.slurm import submit as hand_in
from .study.study import Arm, Study, built_in, changed_execution, load_study
from .train.planner import Job

if TYPE_CHECKING:
    from .config.retrofit import Retrofit
    from .evals.changes import Effects
    from .evals.checkpoint import Edits, Look, Reading
    from .models.external import Loading
    from .models.interop import Exported, Imported, Relaid, Stored
    from .retrofit import Arms
    from .train.group import Member

EXECUTORS = ("local", "ray")
STEP_TOKENS = 1 << 22  # of a step on many GPUs, where none are stated
FDR = 0.10
SCREEN, CONFIRMATION = "screen.json", "confirmation.json"


@dataclass(frozen=True)
class Analysis:
    """What the rows of a study say. `fdr` is the false-discovery rate of the primary family."""

    findings: list[Finding]
    shares: list[Share]
    pairing: list[PairingGain]
    outcomes: list[Outcome]
    fdr: float


def plan(study: str | Study, assignments: dict[str, list[Any]] | None = None) -> Plan:
    """The runs of a study (a name, a file, or a Study) with `key=value` words applied.

    Raises:
        ConfigError, DataError: listing every mistake.
    """
    loaded = load_study(study) if isinstance(study, str) else study
    return make_plan(loaded.changed(assignments or {}))


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
        for arm in loaded.arms:
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


def save_plan(planned: Plan, out: str | Path, *, beside: Path | None = None) -> StudyFolder:
    """Write study.json and the configuration of every run; runs of an earlier, smaller plan of the study stay.

    Args:
        beside: a folder of runs; finished ones that planned runs start from are copied from there.

    Raises:
        StoreError: when `out` holds something else, or finished runs that are not in the new plan, or not the run that
            one starts from; or lies where leases cannot be taken.
    """
    out = Path(out)
    check_place(out)
    content = planned.as_json(out)
    is_new = not (out / "study.json").is_file()
    if not is_new:
        kept = _kept(StudyFolder.open(out), planned)
        _refuse_to_drop(StudyFolder(out), planned, kept)
        content["plan"] += kept
        content["seeds"] = sorted({*content["seeds"], *(entry["seed"] for entry in kept)})
        for run_folder in (StudyFolder(out).run(p.fingerprint) for p in planned.runs):
            # Before anything is written: a run of another version refuses the whole plan.
            if (run_folder.path / "run.json").exists():
                run_folder.config()
    missing = [f for f in _sources(planned) if StudyFolder(out).run(f).done() is None]
    copied = [f for f in missing if beside is not None and RunFolder(beside / f).done() is not None]
    _refuse_no_source(out, [f for f in missing if f not in copied])
    folder = StudyFolder.create(out, content)
    if is_new:
        write_json(folder.path / SCREEN, stages.declaration(RULES, content, FDR))
    for source in copied:
        shutil.copytree(beside / source, folder.run(source).path)
    with ThreadPoolExecutor(16) as pool:  # of thousands of small files the disk takes many at once
        list(pool.map(lambda p: folder.run(p.fingerprint).create(canonical(p.run)), planned.runs))
    return folder


def _kept(folder: StudyFolder, planned: Plan) -> list[dict[str, Any]]:
    """The old plan's finished runs with seeds that are not planned now: more seeds were asked for before. Only those
    that the new plan would make the same."""
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
        and folder.run(entry["fingerprint"]).done() is not None
    ]


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


def _refuse_to_drop(folder: StudyFolder, planned: Plan, kept: list[dict[str, Any]]) -> None:
    """A page must not lose runs without a word: what is finished stays in the plan, or the plan goes elsewhere."""
    there = folder.study()
    if there["name"] != planned.study.name:
        return  # `create` refuses, in its own words
    stay = {p.fingerprint for p in planned.runs} | {entry["fingerprint"] for entry in kept}
    lost = [
        e for e in there["plan"] if e["fingerprint"] not in stay and folder.run(e["fingerprint"]).done() is not None
    ]
    if lost:
        e = lost[0]
        raise StoreError(
            f"--out {folder.path}: holds {len(lost)} finished runs of another configuration (such as"
            f" {e['cell']}/{e['arm']}/{e['seed']}), which this plan would drop from its page; name another --out"
        )


def run(
    study: str | Study,
    out: str | Path,
    *,
    assignments: dict[str, list[Any]] | None = None,
    executor: str = "local",
    ray_address: str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> tuple[StudyFolder, Summary]:
    """Plan and carry out everything of the study that is not done; started again, it continues.

    Args:
        executor: one of EXECUTORS.
        ray_address: of a cluster's head, as host:port, or auto; None embeds Ray in this process.

    Raises:
        ConfigError, DataError, StoreError: before anything is started.
        KeyboardInterrupt: after Ctrl-C, when the workers have saved and left.
    """
    check_executor(executor, ray_address)
    planned = plan(study, assignments)
    folder = save_plan(planned, out)
    execution = planned.study.execution
    with open_executor(execution, executor, folder=folder, ray_address=ray_address) as workers:
        return folder, drive(folder, workers, execution, entries=planned.entries(folder.path), on_event=on_event)


def check_executor(name: str, ray_address: str | None = None) -> None:
    """Whether there is an executor of this name, and what it needs to begin with.

    Raises:
        ConfigError: when there is none; no Ray, or no cluster at `ray_address`.
    """
    if name == "slurm":
        raise ConfigError(["--executor slurm: Slurm's jobs are handed in with `gatelab submit STUDY --to slurm`"])
    if name not in EXECUTORS:
        raise ConfigError(
            [f"--executor {name}: expected one of {', '.join(EXECUTORS)}{nearest(name, list(EXECUTORS))}"]
        )
    if name == "ray":
        check_ray(ray_address)
    elif ray_address is not None:
        raise ConfigError([f"--ray-address {ray_address} is for --executor ray; add it, or leave the address out"])


@contextmanager
def open_executor(
    execution: Execution, name: str = "local", *, folder: StudyFolder | None = None, ray_address: str | None = None
) -> Iterator[Executor]:
    """The executor of a name, for the study in `folder`; closed, with all its processes gone, when the block is left.

    Raises:
        ConfigError: when it cannot do what is asked for.
    """
    check_executor(name, ray_address)
    workers = (
        ray_executor(execution, ray_address, folder and folder.path) if name == "ray" else local_executor(execution)
    )
    try:
        yield workers
    finally:
        workers.close()


def submit(
    study: str | Study,
    out: str | Path,
    allocation: Allocation,
    *,
    assignments: dict[str, list[Any]] | None = None,
    is_dry: bool = False,
) -> tuple[Path, str | None]:
    """Plan a study and hand it in to Slurm; returns the batch script and the job's number, None when `is_dry`.

    Raises:
        ConfigError, DataError, StoreError: before anything is handed in.
    """
    planned = plan(study, assignments)
    allocation.check(planned.study.execution)
    folder = save_plan(planned, out)
    path = write_script(folder, script(folder, planned.study.execution, allocation))
    return path, None if is_dry else hand_in(path)


def outcomes(folder: StudyFolder) -> list[Outcome]:
    """The final value of every study metric of every planned run, with the run's state; nan where there is none.

    A run with several stacks is judged by its decoder's self-attention, an encoder alone by its own.
    """
    connection = digest(folder)
    rows = connection.execute(
        """SELECT run, metric, threshold, value FROM main_rows
           WHERE list_contains($1, metric)
             AND layer IS NULL AND head IS NULL AND domain IS NULL AND intervention IS NULL AND bin IS NULL
             AND stage IS NULL AND (site IS NULL OR site = 'sdpa')
           QUALIFY step = max(step) OVER (PARTITION BY run, metric)""",
        [list(STUDY_METRICS)],
    )
    values = {(fingerprint, metric, threshold): value for fingerprint, metric, threshold, value in rows.fetchall()}
    measured = {fingerprint for (fingerprint,) in connection.execute("SELECT run FROM reached").fetchall()}
    asked = final_values(task_rows(folder))
    asked_cells = {cell for cell, *_ in asked}
    out = []
    for entry, folder_of_run in folder.planned():
        state = state_of(folder_of_run)
        for name, source in STUDY_METRICS.items():
            if source.of == "tasks" and entry["cell"] not in asked_cells:
                continue
            value = (
                asked.get((entry["cell"], entry["arm"], entry["seed"], name))
                if source.of == "tasks"
                else values.get((entry["fingerprint"], name, source.at))
            )
            if value is None and state == "done" and entry["fingerprint"] in measured:
                continue  # this kind of run does not have the metric: no gate, no gate mean
            out.append(
                Outcome(
                    entry["cell"], entry["arm"], entry["seed"], name, float("nan") if value is None else value, state
                )
            )
    return out


def analyse(folder: StudyFolder, *, fdr: float = FDR, confidence: float = 0.95) -> Analysis:
    """Effects, shares and the pairing check of a study's finished runs. Seeds that a confirmation keeps to itself are left
    out: only what looked odd was run on them.

    Raises:
        StoreError: when the folder holds no study, or one that was edited, or a confirmation that was.
    """
    study, kept = checked(folder), _registration(folder)
    metrics = [Metric(**m) for m in study["metrics"]]
    arms = [a["name"] for a in study["arms"]]
    cells = [c["name"] for c in study["cells"]]
    read = outcomes(folder)
    found = read if kept is None else [o for o in read if o.seed not in kept.seeds]
    findings = effects(
        found, metrics, baseline=study["baseline"], arms=arms, cells=cells, confidence=confidence, fdr=fdr
    )
    gains = [
        gain
        for metric in metrics
        if metric.primary
        for gain in pairing_gain(found, metric, baseline=study["baseline"], arms=arms, cells=cells)
    ]
    return Analysis(findings, shares(found, metrics, arms=arms, cells=cells), gains, read, fdr)


def screened(folder: StudyFolder, found: list[Outcome] | None = None) -> Gathered:
    """The evidence of a study without the seeds that a confirmation keeps to itself; `found` are its outcomes where they have
    been read. What follows takes it too: of thousands of runs the reading is the longer part.

    Raises:
        StoreError: a study that was edited, without an ungated baseline, or without a gate.
    """
    kept = _registration(folder)
    read = outcomes(folder) if found is None else found
    return gather(folder, read, without=() if kept is None else kept.seeds)


def hunt(folder: StudyFolder, gathered: Gathered | None = None) -> Hunt:
    """The anomalies of a study's finished runs, and what its effects depend on; runs of a registered confirmation are not
    looked at.

    Raises:
        StoreError: as `screened` does.
    """
    return _hunted(folder, gathered or screened(folder))


def _hunted(folder: StudyFolder, gathered: Gathered) -> Hunt:
    declared, study = folder.path / SCREEN, folder.study()
    kept = _registration(folder)
    if kept is not None:
        study["seeds"] = [s for s in study["seeds"] if s not in kept.seeds]
    now, notes = stages.declaration(RULES, study, FDR), []
    if declared.exists():
        there = read_json(declared)
        if not isinstance(there, dict) or any(type(there.get(k, [])) is not type(v) for k, v in now.items()):
            raise StoreError(f"{declared}: is not what was declared with the plan; was it edited?")
        notes = stages.departures(there, now)
    return hunted(gathered, RULES, fdr=FDR, notes=notes)


def look_for_anomalies(folder: StudyFolder, read: list[Outcome] | None = None) -> Looked | None:
    """What the page shows of anomalies; None of a study without a control or a gate, and where nothing was tested."""
    try:
        gathered = screened(folder, read)
        found, registration = _hunted(folder, gathered), _registration(folder)
    except StoreError:
        return None  # `gatelab find` says why
    if not found.screened.alarms:
        return None
    try:
        verdicts = [] if registration is None else confirm(folder, read)
    except StoreError:
        verdicts = []  # its runs have not ended
    try:
        edited = {name for name, *_ in _edits(folder.path / FILE)}
    except StoreError:
        edited = set()
    odd = {a.cell for a in found.screened.anomalies}
    odd |= {cell for (cell, _), seeds in gathered.runs.items() if edited.intersection(seeds.values())}
    explained = [card for c in gathered.evidence.cells if c in odd and edited for card in _cards(folder, gathered, c)]
    return Looked(found, registration, verdicts, with_rows(explained))


def _registration(folder: StudyFolder) -> stages.Registration | None:
    path = folder.path / CONFIRMATION
    if not path.exists():
        return None
    stored = read_json(path)
    try:
        return stages.Registration.read(stored)
    except ValueError as error:
        raise StoreError(f"{path}: {error}") from None


def foresight(
    folder: StudyFolder, *, of: Plan | None = None, n_claims: int = 5, gathered: Gathered | None = None
) -> list[Foresight]:
    """What how many seeds could see, by the pairs that the study has; where it is a pilot, in the cells and seeds `of` a plan.
    A confirmation is taken to be of `n_claims`.

    Raises:
        StoreError: as `hunt` does.
    """
    gathered = gathered or screened(folder)
    readings = [r for r in READINGS if r in gathered.primary] or READINGS
    if of is None:
        return foresee(gathered.evidence, readings, n_claims=n_claims)
    seeds = sorted({*SEEDS, max(2, len(of.study.seed_values))})
    return foresee(gathered.evidence, readings, seeds=seeds, n_cells=len(of.study.cells))


def register(
    folder: StudyFolder,
    seeds: list[int] | None = None,
    *,
    choose: dict[str, list[str]] | None = None,
    gathered: Gathered | None = None,
) -> stages.Registration:
    """Write down what the screen found, to be confirmed on fresh seeds (five more unless given), before they are run; of all
    claims those that `choose` (rules, cells, arms; see `stages.chosen`).

    Raises:
        StoreError: nothing found; a seed that was in the screen; a confirmation whose runs have begun; as `hunt` does.
    """
    there = _registration(folder)
    if there is not None and any(e["seed"] in there.seeds and state_of(r) != "planned" for e, r in folder.planned()):
        raise StoreError(
            f"{folder.path / CONFIRMATION}: its runs have begun; `gatelab find {folder.path} --confirm` reads it"
        )
    gathered = gathered or screened(folder)
    used = {o.seed for o in gathered.evidence.outcomes if o.status != "planned"}
    fresh = seeds or [max(used, default=-1) + 1 + i for i in range(5)]
    try:
        claims = stages.chosen(hunt(folder, gathered).claims, **(choose or {}))
        registration = stages.register(gathered.evidence, claims, fresh, fdr=FDR)
        needs = stages.comparisons_needed(registration, gathered.evidence, RULES)
        registration = replace(registration, needs=needs)
    except ValueError as error:
        raise StoreError(f"{folder.path}: {error}") from None
    write_json(folder.path / CONFIRMATION, registration.as_json())
    return registration


def confirm(folder: StudyFolder, found: list[Outcome] | None = None) -> list[stages.Verdict]:
    """The verdict on every registered claim, once all runs of its seeds have ended; `found` are the study's outcomes.

    Raises:
        StoreError: nothing was registered; runs that have not ended, since a confirmation is read once.
    """
    registration = _registration(folder)
    if registration is None:
        raise StoreError(
            f"{folder.path}: no claims are registered; `gatelab find {folder.path} --register` writes them down"
        )
    states = {(e["cell"], e["arm"], e["seed"]): state_of(r) for e, r in folder.planned()}
    found = outcomes(folder) if found is None else found
    before = gather(folder, found, without=registration.seeds)
    pairs = registration.needs or stages.comparisons_needed(registration, before.evidence, RULES)
    wanted = [(*where, seed) for where in pairs for seed in registration.seeds]
    open_ = [w for w in wanted if states.get(w, "planned") not in ("done", "diverged")]
    if open_:
        raise StoreError(
            f"{folder.path}: {len(open_)} of the {len(wanted)} runs of this confirmation have not ended (such as"
            f" {'/'.join(map(str, open_[0]))}), and it is read once; first {confirming(folder)}"
        )
    fresh = gather(folder, found, only=registration.seeds)
    if fresh.versions != before.versions:
        # The spread that another version's pairs had says nothing of these.
        registration = replace(registration, priors=[])
    return stages.confirm(registration, fresh.evidence, RULES)


def confirming(folder: StudyFolder) -> str:
    """The command that carries out a confirmation's runs, and no others."""
    return f"gatelab run {shlex.quote(str(folder.path))}"


def confirmation(folder: StudyFolder, registration: stages.Registration) -> list[tuple[str, str]]:
    """(cell, arm) that a confirmation needs runs of: the claims', the baseline, the cells that a rule compares them with, and
    what their runs start from."""
    needs = registration.needs or stages.comparisons_needed(registration, screened(folder).evidence, RULES)
    return with_sources(folder, needs)


def out_of_reach(
    folder: StudyFolder, registration: stages.Registration, gathered: Gathered | None = None
) -> list[tuple[stages.Claim, int]]:
    """The claims that the registered seeds cannot confirm whatever they show, each with how many could."""
    return stages.out_of_reach(registration, (gathered or screened(folder)).evidence)


def is_folder(study: str) -> bool:
    """Whether the word names a study's folder, and no study that comes with Gatelab."""
    return study not in built_in() and (Path(study) / "study.json").is_file()


def go_on(folder: StudyFolder, assignments: dict[str, list[Any]] | None = None) -> Execution:
    """Add the runs of a registered confirmation to the plan of a study's folder, where they are not in it; returns how they
    are to be carried out.

    Raises:
        ConfigError: assignments other than of `execution`: the folder says what its runs are.
        StoreError: as `fresh_runs` does.
    """
    assignments = assignments or {}
    other = [key for key in assignments if not key.startswith("execution.")]
    if other:
        raise ConfigError(
            [
                f"{', '.join(other)}: {folder.path} says what its runs are; only execution.* may be set, or name the study"
            ]
        )
    study, registration = folder.study(), _registration(folder)
    stated = validate(Execution, study.get("execution", {}))
    execution = changed_execution(stated, assignments)
    if registration is not None:
        planned = {entry["fingerprint"] for entry in study["plan"]}
        runs = fresh_runs(folder, confirmation(folder, registration), registration.seeds)
        new = [p for p in runs if p.fingerprint not in planned]
        study["plan"] += [p.entry(folder.path) for p in new]
        study["seeds"] = sorted({*study["seeds"], *registration.seeds})
        StudyFolder.create(folder.path, {k: v for k, v in study.items() if k != "schema"})
        for p in new:
            folder.run(p.fingerprint).create(canonical(p.run))
    return execution


def explain(folder: StudyFolder, cell: str) -> list[Card]:
    """A verdict card a hypothesis and gate of a cell, from the rows there are.

    Raises:
        StoreError: no such cell; as `hunt` does.
    """
    _check_cell(folder, cell)
    return _cards(folder, screened(folder), cell)


def edit(
    folder: StudyFolder, cell: str, seeds: list[int] | None = None, *, tell: Callable[[str], None] = lambda _: None
) -> int:
    """Make the rows of edits that a cell's cards lack, of its finished runs with these seeds (None: all of the screen), in
    `causes.jsonl`, run by run; returns of how many. It needs the runs' weights, and neither their rows nor a database.

    Raises:
        StoreError: no such cell, no finished run of these seeds; a study or a file that was edited.
    """
    if find_spec("scipy") is None:
        raise StoreError(
            "--edit: the intervals of edits need SciPy, which this machine does not have; install it, or take the runs' folders"
            " with their weights to one that has it"
        )
    study = _check_cell(folder, cell)
    gated = {a["name"]: a["name"] != study["baseline"] for a in study["arms"] if not a["control"]}
    registration, path = _registration(folder), folder.path / FILE
    kept = [] if registration is None else registration.seeds
    runs = [
        (e, run)
        for e, run in folder.planned()
        if e["cell"] == cell and e["arm"] in gated and (e["seed"] in seeds if seeds else e["seed"] not in kept)
        and state_of(run) == "done"
    ]  # fmt: skip
    if not runs:
        raise StoreError(
            f"--explain {cell}: no finished run of it here to edit; `gatelab status {folder.path}` lists them"
        )
    there, n_edited = {(name, word) for name, word, _ in _edits(path)}, 0
    for i, (e, run) in enumerate(runs, 1):
        words = [w for w in edits_of(gated=gated[e["arm"]]) if (run.fingerprint, w) not in there]
        if not words:
            continue
        rows, refused = _edited(run, words)
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row.as_dict()) + "\n" for row in rows)
        n_edited += 1
        tell("; ".join([f"{i} of {len(runs)}: {e['arm']} seed {e['seed']}, {len(rows)} rows", *refused]))
    return n_edited


def _edited(run: RunFolder, words: list[str]) -> tuple[list[Row], list[str]]:
    """The rows of the edits, and why one could not be made of this run."""
    try:
        return intervene(run.path, words).rows(run.fingerprint), []
    except StoreError:
        raise
    except ValueError as error:
        if len(words) == 1:
            return [], [f"{words[0]}: {error}"]
        parts = [_edited(run, [word]) for word in words]
        return [row for rows, _ in parts for row in rows], [why for _, refused in parts for why in refused]


def _check_cell(folder: StudyFolder, cell: str) -> dict[str, Any]:
    """What study.json says of a study that has the cell."""
    study = checked(folder)
    cells = [c["name"] for c in study["cells"]]
    if cell not in cells:
        raise StoreError(f"--explain {cell}: no such cell; expected {', '.join(cells)}{nearest(cell, cells)}")
    return study


def _cards(folder: StudyFolder, gathered: Gathered, cell: str) -> list[Card]:
    evidence = gathered.evidence
    ledger = Ledger(
        evidence, gathered.factors, gathered.runs, gathered.models, gathered.bases, _edits(folder.path / FILE),
        str(folder.path), folder.study()["name"],
    )  # fmt: skip
    return [card for arm in evidence.arms for card in cards(ledger, HYPOTHESES, cell, arm)]


def _edits(path: Path) -> dict[tuple[str, str, float], float]:
    """{(run, intervention, dose): change in loss} of the rows of `gatelab probe --intervene … --json`, the last one counting."""
    out = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            if row["metric"] == "loss_change" and isfinite(value := float(row["value"])):
                out[row["run"], row["intervention"], float(row["dose"])] = value
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            raise StoreError(
                f"{path}, line {number}: no row of `gatelab probe --intervene … --json`; remove that line"
            ) from None
    return out


def report(folder: StudyFolder, analysis: Analysis) -> Path:
    """Write the page and its CSV files; returns the page's path."""
    states = {r.fingerprint: state_of(r) for _, r in folder.planned()}
    done = {(e["cell"], e["arm"], e["seed"]) for e, r in folder.planned() if states[r.fingerprint] == "done"}
    return write_report(
        folder,
        analysis.findings,
        shares=[asdict(s) for s in analysis.shares],
        pairing=[asdict(g) for g in analysis.pairing],
        tasks=task_study(folder, done),
        looked=look_for_anomalies(folder, analysis.outcomes),
        state=lambda run: states[run.fingerprint],
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
        name="train", question="One run.", cells={"": base}, arms=(Arm("", {}),), seeds=(base.seed,), match=None
    ).changed(assignments)
    run_config = study.cells[""]
    gate = run_config.model.model_dump()["gate"]
    return replace(study, cells={run_config.data.kind: run_config}, arms=(Arm(gate, {}),))


def _run_in(path: Path) -> Run:
    """The run of a run.json, or of a file that holds nothing but a configuration."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ConfigError([f"--config {path}: holds a {type(content).__name__}; expected a run.json"])
    return validate(Run, read_stored(path)["run"] if "run" in content else content)


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


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration by dotted path."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def final_rows(folder: StudyFolder, fingerprint: str) -> list[dict[str, Any]]:
    """A run's model-level measurements at its last look."""
    return query(
        folder,
        """SELECT metric, stack, site, value, unit, threshold, domain FROM rows
           WHERE run = $1 AND layer IS NULL AND head IS NULL AND bin IS NULL
           QUALIFY step = max(step) OVER (PARTITION BY metric)
           ORDER BY metric, stack NULLS FIRST, site, domain, threshold""",
        [fingerprint],
    )


def probe(path: str | Path, *, length: int | None = None) -> list[Row]:
    """Probe a finished run on its held-out data, optionally at another context length.

    Raises:
        StoreError: no run there, or one that has not finished.
        ValueError: a length that its positions or its data do not allow.
    """
    from .evals.heldout import measure

    folder, member, step = _trained(path, length)
    return measure(member.model, member.source, member.run, fingerprint=folder.fingerprint, step=step)


def look_at_run(path: str | Path, *, length: int | None = None) -> "Look":
    """A finished run as `probe_checkpoint` shows a checkpoint, for its page; see `probe`.

    Raises:
        StoreError, ValueError: as `probe` does.
    """
    from .evals.checkpoint import Look, facts

    rows = probe(path, length=length)
    loss = next(r for r in rows if r.metric == "val_loss" and r.domain is None)
    model = flat(find_run(path).config()["model"])
    sizes = f"{model['arch']}, {model['n_layers']} layers, width {model['d_model']}, gate {model['gate']}"
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
    from .data import objective_heldout
    from .evals.intervene import effects

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


def _trained(path: str | Path, length: int | None) -> "tuple[RunFolder, Member, int]":
    """A finished run's folder, its model and data, and its last step."""
    folder = _finished(path)
    from .train.checkpoint import load_weights
    from .train.group import Group

    run_config = validate(Run, folder.config())
    if length is not None:
        run_config = _at_length(run_config, length)
    member = Group([run_config]).members[0]
    check_lengths(member.source, run_config.train.seq_len)
    return folder, member, load_weights(member.model, folder.path / "weights.safetensors")


def _finished(path: str | Path) -> RunFolder:
    if not Path(path).exists():
        raise StoreError(
            f"{path}: no such folder or file; name a run's folder, a checkpoint's folder, a .gguf file, or a model of the hub "
            f"as org/name"
        )
    folder = find_run(path)
    if folder.done() is None:
        raise StoreError(
            f"{path}: this run has not finished, so it has no final weights; `gatelab status` says how it stands"
        )
    return folder


def is_checkpoint(source: str | Path) -> bool:
    """Whether somebody's checkpoint is there, not a run: a file, a folder in Hugging Face's layout, or an id of the hub, which
    is no path of this machine."""
    from .models.external import is_hub_id

    path = Path(source)
    is_folder = (path / "config.json").is_file() or any(path.glob("*.safetensors")) or any(path.glob("*.gguf"))
    return path.is_file() or (is_folder and not (path / "run.json").exists()) or is_hub_id(source)


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
    from .evals.checkpoint import look
    from .models.external import Loading

    return look(source, reading, loading=loading or Loading(), names=names, edits=edits, tell=tell)


def import_checkpoint(source: str | Path, out: str | Path, *, allow_pickle: bool = False) -> "Imported":
    """A checkpoint of transformers as a Gatelab model folder with the same logits; see `gatelab.models.interop`.

    Raises:
        ValueError: it cannot be opened or expressed exactly, or `out` is there already.
    """
    from .models.interop import import_model

    if (Path(source) / "run.json").is_file() or (Path(source) / "model.json").is_file():
        raise ValueError(
            f"{source}: is a model of Gatelab already; `--to hf` makes a checkpoint for transformers of it"
        )
    return import_model(source, out, allow_pickle=allow_pickle)


def relayout(source: str | Path, out: str | Path, layout: str, *, from_layout: str | None = None) -> "Relaid":
    """A checkpoint's folder with its gated attention in another layout; see `gatelab.models.interop`.

    Raises:
        ValueError: it is in no layout, or may be in several, or the other layout cannot say it; `out` is there already.
    """
    from .models.interop import relayout as rewritten

    if (Path(source) / "run.json").is_file() or (Path(source) / "model.json").is_file():
        raise ValueError(
            f"{source}: is a model of Gatelab; `--to hf` makes a checkpoint of it, whose layout can be changed"
        )
    return rewritten(source, out, layout, from_layout=from_layout)


def export(path: str | Path, out: str | Path) -> "Exported":
    """A finished run, or a Gatelab model folder, as a folder that `AutoModelForCausalLM.from_pretrained` loads.

    Raises:
        StoreError: no run there, or one that has not finished.
        ValueError: what its model computes is neither in transformers nor in the code that goes along.
    """
    from .models.interop import export_model
    from .models.interop.destination import check_destination

    if is_checkpoint(path) and not (Path(path) / "model.json").is_file():
        raise ValueError(f"{path}: is a checkpoint of transformers already; `--to gatelab` makes a model of ours of it")
    check_destination(Path(out), Path(path))
    with TemporaryDirectory() as companions:
        return export_model(stored_model(path, Path(companions)), out)


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
    from .models.interop import import_model, is_model_folder, open_folder
    from .models.interop.destination import check_destination
    from .retrofit import retrofit as carried_out

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
    from .models.interop import is_model_folder, open_folder, stored_run

    if is_model_folder(Path(path)):
        return open_folder(Path(path))
    folder = _finished(path)
    run_config = validate(Run, folder.config())
    has_tokenizer, tokenizer = _tokenizer_of(run_config)
    return stored_run(run_config, folder.path, companions, tokenizer=tokenizer, has_tokenizer=has_tokenizer)


def task_run(path: str | Path) -> Run | None:
    """The configuration of a run that was trained on the tasks' ids, to be asked in them; None of anything else.

    Raises:
        StoreError: a run that has not finished.
    """
    if not (Path(path) / "run.json").is_file():
        return None
    run_config = validate(Run, _finished(path).config())
    return run_config if run_config.data.kind == "tasks" else None


def _tokenizer_of(run_config: Run) -> tuple[bool, Path | None]:
    """Whether a run's tokenizer is to be had, and its tokenizer.json; None: bytes."""
    from .data import DataError, default_cache, open_source

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


def write_look(look: "Look", out: str | Path) -> Path:
    """Write the page of a look at a checkpoint, its rows beside it; returns the page's path."""
    from .report.checkpoint import Seen, write_checkpoint_page

    missing = [(u.module, u.class_name, u.why) for u in look.unobserved]
    effects = [] if look.effects is None else look.effects.rows(look.name)
    seen = Seen(look.name, look.description, look.facts, look.rows, missing, look.notes, look.tokens, effects)
    Path(out).mkdir(parents=True, exist_ok=True)
    return write_checkpoint_page(Path(out) / "probe.html", seen)


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
