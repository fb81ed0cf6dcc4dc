"""gatelab plan: what a study would do, and what a training step takes on any number of GPUs. Nothing is started."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .base import Json, print_json, tell
from .plan_study import plan_study
from .plan_tables import show

if TYPE_CHECKING:
    from ..train.planner import Job, Layout, StepPlan

_MANY, _MOST = "8..1024", 1 << 20  # GPUs where none are stated, and more than there are


def plan(
    study: str | None = None,
    *assignments: str,
    pilot: Path | None = None,
    size: str | None = None,
    gpus: str | None = None,
    tp: int | None = None,
    dp: int | None = None,
    ep: int | None = None,
    shard: Literal["none", "zero2", "zero3"] | None = None,
    device: Literal["h100", "h200", "a100"] = "h100",
    tokens: int | None = None,
    context: int | None = None,
    micro_batch: int = 0,
    recompute: bool = False,
    check: bool | None = None,
    json_: Json = False,
) -> int:
    """Say what a study would do (runs, parameters, tokens, operations, memory), or what its steps, or a size's, take on GPUs.

    A study file is Python, and planning it runs it: take only files that you would run as a script.

    Parameters
    ----------
    study:
        A built-in study, a Python file, or a study's folder; none with --size.
    assignments:
        key=value words, as for `run`; with --size of the model: model.gate=sdpa-headwise
    pilot:
        A finished study's folder, or a pack of one: what this one could see, by the spread of its pairs in the cells and arms
        that both have.
    size:
        A size of the ladder (gatelab sizes), or width x layers x heads x vocabulary, in the place of a study.
    gpus:
        How many, as in 64, or 8,64, or 8..1024 (each twice the one before), the last where only --size is given. What is not
        stated below is then chosen: the fastest that fits.
    tp:
        GPUs that share each layer's heads and channels.
    dp:
        Groups with sequences of their own; dp × tp is the number of GPUs.
    ep:
        Groups that share the experts.
    shard:
        Whether groups share out weights, gradients and moments, and let go of gathered weights in between (zero3).
    device:
        The GPU.
    tokens:
        Of a step of --size, all GPUs together; 4,194,304 unless stated. A study's cells say their own.
    context:
        Tokens of a sequence of --size; the size's own up to 4,096 unless stated.
    micro_batch:
        Sequences of a group a forward pass.
    recompute:
        Whether each block is computed a second time in the backward pass, as execution.recompute=layer does.
    check:
        Lay the model out on a fake process group, and count what a GPU has; done where one number of GPUs is asked for.
    json_:
        One JSON record a run, or a number of GPUs.
    """
    from ..config import ConfigError

    if size is None and study is None:
        raise ConfigError(["gatelab plan: name a study, or a size as in --size 8b; `gatelab sizes` lists these"])
    if size is None and gpus is None:
        given = {"--tp": tp, "--dp": dp, "--ep": ep, "--shard": shard, "--tokens": tokens, "--context": context,
                 "--micro-batch": micro_batch or None, "--recompute": recompute or None, "--check": check}  # fmt: skip
        if words := [word for word, value in given.items() if value is not None]:
            raise ConfigError([f"{', '.join(words)}: for a step on GPUs; say how many, as in --gpus 64"])
        return plan_study(study, assignments, pilot, is_json=json_)
    if pilot is not None:
        raise ConfigError([f"--pilot {pilot} is of a study's effects, not of GPUs; leave out one of the two"])
    from ..train.planner import Layout

    numbers = _numbers(gpus or _MANY)
    jobs = _jobs(study, assignments, size, tokens, context)
    layout = Layout(tp, dp, ep, shard, micro_batch, recompute)
    return _gpus(jobs, numbers, layout, device, is_checked=len(numbers) == 1 if check is None else check, is_json=json_)


def _jobs(
    study: str | None, assignments: tuple[str, ...], size: str | None, tokens: int | None, context: int | None
) -> "dict[str, Job]":
    from .. import lab
    from ..config import ConfigError, parse_assignments

    if size is None:
        if lab.is_folder(study):
            raise ConfigError(
                [f"--gpus: {study} is a study's folder, whose runs have their machines; name the study itself"]
            )
        given = {"--tokens": tokens, "--context": context}
        if words := [word for word, value in given.items() if value is not None]:
            raise ConfigError(
                [f"{' and '.join(words)}: a study's cells say that; set train.batch_size and train.seq_len"]
            )
        return lab.step_jobs(study, parse_assignments(assignments))
    if study is not None and "=" not in study:
        raise ConfigError([f"{study} and --size {size}: plan a study or a size; leave one of the two out"])
    given = parse_assignments([*([] if study is None else [study]), *assignments])
    if many := [path for path, values in given.items() if len(values) > 1]:
        raise ConfigError([f"{path}: one size takes one value; ask once for each" for path in many])
    change = {path: values[0] for path, values in given.items()}
    wrong = [f"--{word} {n}: expected {least} or more" for word, n, least in (("tokens", tokens, 1), ("context", context, 2))
             if n is not None and n < least]  # fmt: skip
    if wrong:
        raise ConfigError(wrong)
    words = [] if study is None else [study]
    return {
        " ".join([size, *words, *assignments]): lab.size_job(
            size, change, tokens=tokens or lab.STEP_TOKENS, context=context
        )
    }


def _gpus(
    jobs: "dict[str, Job]", numbers: list[int], layout: "Layout", device: str, *, is_checked: bool, is_json: bool
) -> int:
    from ..train.planner import spread_of

    status = 0
    for name, job in jobs.items():
        plans, laid = _plans(name, job, numbers, layout, device), []
        if is_checked:
            from ..train.planner.layout import lay_out

            laid = [lay_out(job.model, p.mesh) for p in plans]
            status = status if all(found.holds for found in laid) else 1
        if is_json:
            checked = [asdict(found) for found in laid] or [None] * len(plans)
            print_json(
                [{"job": name, **spread_of(p).record(), "layout": c} for p, c in zip(plans, checked, strict=True)]
            )
            continue
        show(name, plans)
        if numbers_again := _fit_again(plans, layout, device):
            print(
                f"NO as it is; with --recompute {', '.join(map(str, numbers_again))} GPUs would do, and execution.recompute=layer"
                " trains so"
            )
        for found in laid:
            word = "holds" if found.holds else f"DIFFERS: {'; '.join(found.differs[:3])}"
            print(
                f"layout on {found.gpus:,} fake ranks {word}: {found.n_weights:,} weights a GPU ({found.seconds:.1f} s)"
            )
        print()
    return status


def _plans(name: str, job: "Job", numbers: list[int], layout: "Layout", device: str) -> "list[StepPlan]":
    """For each number of GPUs; of several, what cannot be laid out is told and left out."""
    from ..config import ConfigError
    from ..train.planner import best_step

    plans, refused = [], []
    for n in numbers:
        try:
            plans.append(best_step(job, n, layout, device=device))
        except ConfigError as error:
            if len(numbers) == 1:
                raise
            refused += [f"{name} on {n} GPUs: {problem}" for problem in error.problems]
    if not plans:
        raise ConfigError(refused)
    for sentence in refused:
        tell(sentence)
    return plans


def _fit_again(plans: "list[StepPlan]", layout: "Layout", device: str) -> list[int]:
    """Of the numbers of GPUs on which nothing fits, those on which something would if blocks were computed again."""
    from ..train.planner import best_step

    again = replace(layout, recompute=True)
    lacking = [] if layout.recompute else [p for p in plans if not p.fits]
    return [p.mesh.gpus for p in lacking if best_step(p.job, p.mesh.gpus, again, device=device).fits]


def _numbers(words: str) -> list[int]:
    """64, or 8,64, or 8..1024: doubled from the first to the last.

    Raises:
        ConfigError: for what is none of these.
    """
    from ..config import ConfigError

    low, dots, high = words.partition("..")
    ends = [low, high] if dots else words.split(",")
    numbers = [int(word) for word in ends if word.strip().isdecimal()]
    if len(numbers) == len(ends) and all(0 < n <= _MOST for n in numbers) and (not dots or numbers[0] <= numbers[1]):
        if not dots:
            return list(dict.fromkeys(numbers))
        return [n for i in range(21) if (n := numbers[0] << i) <= numbers[1]]
    raise ConfigError(
        [
            f"--gpus {words}: expected a number up to {_MOST:,}, several joined by commas, or 8..1024, which doubles from 8"
        ]
    )
