"""gatelab eval: benchmarks of lm-evaluation-harness and our own tasks, for a run or anybody's checkpoint."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from math import inf
from pathlib import Path
from typing import Literal

from .base import Flag, Json, print_json, tell

_SHORTEST = 1024  # of the harness's RULER: its variable tracking is not made at 512
_GENERATED = ("ruler", "niah_")  # how its names begin
_ITEMS = 100  # of our own tasks, which have no end
_OWN = "gatelab/"
_TEXTS = (f"{_OWN}long_ppl", f"{_OWN}position_loss", f"{_OWN}skipped_reads")


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
    distractors: int | None = None,
    hardness: int | None = None,
    layout: Literal["spread", "original"] = "spread",
    haystack: Path | None = None,
    text: str | None = None,
    window: int | None = None,
    keys: Path | None = None,
    untrained: bool | None = None,
    yarn: float | None = None,
    chat: Flag = False,
    run_code: Flag = False,
    dtype: Literal["float32", "bfloat16", "auto"] = "float32",
    device: Literal["cpu", "cuda", "auto"] = "cpu",
    trust_remote_code: Flag = False,
    allow_pickle: Flag = False,
    out: Path | None = None,
    json_: Json = False,
) -> int:
    """Score a run or a checkpoint on our tasks and those of lm-evaluation-harness; ties and what is not finite are never correct.

    The status is 1 where every item was refused.

    Parameters
    ----------
    model:
        A finished run's folder, a folder that `gatelab convert` wrote, a folder in Hugging Face's layout, a .gguf file, or a
        model of the hub as org/name.
    tasks:
        Names joined by commas, of tasks, groups or tags: hellaswag,arc_easy,mmlu,blimp,gsm8k,ruler. Ours begin with gatelab/, as in
        gatelab/needle,gatelab/ruler/niah_single_1,gatelab/middle/kv; so do what attention finds and what evidence is worth,
        citations, summaries, and losses in texts: gatelab/found/kv, gatelab/deletion/kv, gatelab/citations/one,
        gatelab/summary/qmsum, gatelab/long_ppl, gatelab/position_loss, gatelab/skipped_reads
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
        In tokens, joined by commas, of our tasks and the harness's RULER (1024 or more); 4096 unless stated, of our tasks the
        model's positions where those are fewer. A run that was trained on our tasks' ids is asked at its own multiples of the
        length of training.
    depths:
        Where the evidence of our tasks stands, from 0 (the beginning) to 1 (the end), joined by commas; anywhere unless stated.
    distractors, hardness:
        Knobs of the tasks that `gatelab tasks` lists; the task's own unless stated, or those that a run was trained with.
    layout:
        Of our RULER: spread draws the places of each item, original fixes them as the benchmark's own generator does.
    haystack:
        A text file, or a folder of them, for our RULER's tasks in essays.
    text:
        A file or a folder that gatelab/long_ppl, gatelab/position_loss and gatelab/skipped_reads read; the source of Python's
        standard library unless stated.
    window:
        Tokens of LongPPL's short context; an eighth of the length, 4096 at most, unless stated.
    keys:
        A file of LongPPL's key tokens that --out of another command left; the model chooses its own unless stated.
    untrained:
        Ask the same model before training too, all that is asked, which takes as long again; unless stated our tasks alone, the
        choices of the first 20 items, of models up to 200 million weights.
    yarn:
        Stretch the rotary positions so many times, as in 4, by YaRN: those that the model has; of a run that was trained on our
        tasks' ids, its length of training.
    chat:
        Questions and answers as a conversation, in the chat template of the model's tokenizer; the prompt of one of ours is one
        turn.
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
    from ..evals.harness.benchmarks import BENCHMARKS

    names = tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    own, others = (tuple(n for n in names if n.startswith(_OWN) == is_own) for is_own in (True, False))
    wrong = [] if names else ["--tasks names none; as in --tasks hellaswag,arc_easy"]
    least = {
        "--limit": (limit, 1),
        "--shots": (shots, 0),
        "--batch-size": (batch_size, 1),
        "--new-tokens": (new_tokens, 1),
        "--distractors": (distractors, 0),
        "--hardness": (hardness, 1),
        "--window": (window, 1),
    }
    wrong += [f"{word} {n}: expected {low} or more" for word, (n, low) in least.items() if n is not None and n < low]
    if yarn is not None and not 1 < yarn < inf:
        wrong.append(f"--yarn {yarn:g}: expected a number above 1, how many times the positions are to reach, as in 4")
    generated = [n for n in others if n.startswith(_GENERATED)]
    shortest, why = 1, ""
    if generated:
        shortest, why = _SHORTEST, f"; the harness's generators of {', '.join(generated)} may not come to an end below"
    elif lengths is not None and others and not own and set(others) <= set(BENCHMARKS):
        wrong.append(f"--lengths {lengths}: is for our tasks and the harness's RULER, and none is asked; leave it out")
    sizes = [size.strip() for size in (lengths or "4096").split(",")]
    if not all(size.isdecimal() and int(size) >= shortest for size in sizes):
        wrong.append(
            f"--lengths {lengths}: expected numbers of tokens from {shortest} joined by commas, as in 4096,8192{why}"
        )
    places = _depths(depths, wrong)
    ours = {
        "--depths": depths is not None,
        "--distractors": distractors is not None,
        "--hardness": hardness is not None,
        "--haystack": haystack is not None,
        f"--layout {layout}": layout != "spread",
        "--no-untrained": untrained is False,
    }
    if keys is not None and limit is not None and set(names) <= set(_TEXTS):
        wrong.append(f"--limit {limit}: --keys has its own documents, and all are read; leave one out")
    of_texts = {"--text": (text, _TEXTS), "--window": (window, _TEXTS[:1]), "--keys": (keys, _TEXTS[:1])}
    theirs = {"--shots": shots is not None, "--run-code": run_code}
    wrong += [f"{word}: is for tasks named {_OWN}…; leave it out" for word, given in ours.items() if given and not own]
    wrong += [
        f"{word}: is for the harness's tasks; leave it out" for word, given in theirs.items() if given and not others
    ]
    wrong += [
        f"{word}: is for {' and '.join(readers)}; leave it out"
        for word, (given, readers) in of_texts.items()
        if given is not None and not set(readers) & set(own)
    ]
    if wrong:
        raise ConfigError(wrong)
    stated = tuple(dict.fromkeys(map(int, sizes))) if lengths else None
    asking = None
    if own:
        from ..evals.own_asking import OwnAsking

        asking = OwnAsking(
            tuple(name.removeprefix(_OWN) for name in own),
            stated,
            places,
            limit or _ITEMS,
            distractors=distractors,
            hardness=hardness,
            layout=layout,
            haystack=haystack,
            data_dir=data_dir,
            chat=chat,
            text=text or "stdlib",
            window=window,
            keys=keys,
            untrained=untrained,
        )
    needs = ("lm_eval", "transformers") if others else ("transformers",)
    absent = [name for name in needs if find_spec(name) is None]
    if absent:
        raise ValueError(f"gatelab eval needs {' and '.join(absent)}: pip install 'gatelab[eval]'")
    if data_dir is not None:
        _keep_off_the_hub()
    elif others:
        from ..evals.harness.spelling import check_spelling

        check_spelling(others)
    from ..models.external import Extension, Loading
    from ..models.interop.destination import destination
    from .scores import asked_own, bar, open_model, write

    loading = Loading(
        head=True,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        extension=None if yarn is None else Extension(kind="yarn", factor=yarn),
    )
    opened = cache(lambda: open_model(model, loading))
    with nullcontext() if out is None else destination(out) as draft, bar() as progress:
        # All that is asked for is known to be there before a model is opened.
        ask_own = (
            None
            if asking is None
            else asked_own(
                model, asking, loading, opened, batch_size=batch_size, new_tokens=new_tokens, progress=progress
            )
        )
        found = []
        if others:
            from .. import lab
            from ..evals.harness.evaluate import evaluate
            from ..evals.harness.tasks import Asking

            found.append(
                evaluate(
                    opened, Asking(others, data_dir, shots, run_code, stated or (4096,)), batch_size=batch_size, limit=limit,
                    new_tokens=new_tokens, chat=chat, untrained=lab.run_seed(model) if untrained else None,
                    tell=tell if sys.stderr.isatty() else lambda _: None, progress=progress,
                )
            )  # fmt: skip
        if ask_own is not None:
            found.append(ask_own())
        if yarn is not None:
            for part in found:
                part.rows = [
                    row if row.intervention else replace(row, intervention="yarn", dose=yarn) for row in part.rows
                ]
        if draft is not None:
            how = {
                "dtype": dtype,
                "device": device,
                "yarn": yarn,
                "data_dir": None if data_dir is None else str(data_dir),
            }
            write(draft, found, how)
    if json_:
        print_json([row.as_dict() for part in found for row in part.rows])
    else:
        from ..terminal import print_records

        notes = dict.fromkeys(note for part in found for note in part.notes)
        title = "\n".join([found[0].about["model"], *(f"Note: {note}" for note in notes), ""])
        for number, part in enumerate(found):
            print_records(part.records, "" if number else title)
    reasons = [item.factors.get("refused") for part in found for item in part.items]
    if reasons and all(reasons):
        tell(f"gatelab: every item was refused, so nothing is scored, as in: {reasons[0]}")
        return 1
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
    return tuple(dict.fromkeys(places))


def _keep_off_the_hub() -> None:
    """So that a task without its file fails at once. Read when these libraries are imported."""
    import os

    os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
