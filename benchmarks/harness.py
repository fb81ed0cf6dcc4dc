"""Log-likelihood evaluation: ours and the harness's own model for transformers, HFLM, on the same weights at equal batch.

Both answer the requests that the harness makes of the first items of each task, with the same weights and tokenizer, by turns in
one process; the ratio is the median over pairs of turns, so that a busy machine slows both. `rows` is ours without reading
contexts once, `decoder` ours on the model as a decoder of ours. Tokenizing counts, building prompts does not. On a CPU time
is that of the process, in which nothing else runs; on a GPU it is the clock's. Before anything is timed all have to give the
same log-probabilities, up to rounding in float32, and agree on which tokens are greedy. Goal: no slower than HFLM.

    python benchmarks/harness.py MODEL --data-dir DIR                  # CPU, one thread, float32
    python benchmarks/harness.py MODEL --data-dir DIR --device cuda    # float32 unless --dtype bfloat16

MODEL: a folder or .gguf file; DIR as docs/eval.md lays it out.
"""

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from gatelab.evals.harness.external import ExternalPasses
from gatelab.evals.harness.language_model import GatelabLM
from gatelab.evals.harness.own import OwnPasses
from gatelab.evals.harness.tasks import Asking, find, load
from gatelab.evals.harness.tokens import Tokens
from gatelab.models.external import Loading, load_external
from gatelab.models.interop import import_model, load_model

OURS, ROWS, DECODER, THEIRS = "gatelab", "rows", "decoder", "hflm"
# Nats of one request; half precision moves sums of many tokens further.
CLOSE = {"float32": 2e-3, "bfloat16": 2.0}


def requests_of(names: tuple[str, ...], folder: Path, limit: int) -> dict[str, list[Instance]]:
    """What the harness asks of each task's first items."""
    asking = Asking(names, data_dir=folder)
    with TemporaryDirectory() as place:
        manager = find(asking, print, draft=Path(place), tokenizer=Path(place))
        loaded = load(asking, manager)
    found = {}
    with redirect_stderr(StringIO()):
        for name, task in loaded.tasks.items():
            task.build_all_requests(limit=limit)
            found[name] = [i for i in task.instances if i.request_type == "loglikelihood"]
    return found


def compare(
    name: str, asked: list[Instance], sides: dict[str, Callable], repeats: int, *, is_cpu: bool, close: float
) -> dict:
    """One task's times by turns, after a check that the sides agree."""
    first = {side: call(asked) for side, call in sides.items()}  # also the warm-up
    pairs = [pair for side in sides for pair in zip(first[side], first[THEIRS], strict=True)]
    apart, differ = max(abs(a[0] - b[0]) for a, b in pairs), sum(a[1] != b[1] for a, b in pairs)
    if not apart <= close or (differ and close < 1):
        return {"task": name, "error": f"{apart:.2g} nats apart, {differ} greedy answers differ: no ratio over that"}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    clock = time.process_time if is_cpu else time.perf_counter
    for turn in range(repeats):
        for side in list(sides)[:: 1 if turn % 2 else -1]:
            start = clock()
            sides[side](asked)  # ends with numbers on the host, so nothing is left under way
            seconds[side].append(clock() - start)
    ratios = {side: sorted(b / a for a, b in zip(seconds[side], seconds[THEIRS], strict=True)) for side in sides}
    return {
        "task": name,
        "requests": len(asked),
        "nats_apart": apart,
        "seconds": {side: (statistics.median(s), min(s), max(s)) for side, s in seconds.items()},
        "ratio": {side: (statistics.median(r), r[0], r[-1]) for side, r in ratios.items()},
    }


def main() -> None:
    """All tasks; a table, and with --out JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tasks", default="hellaswag,arc_easy,lambada_openai,blimp_adjunct_island,mmlu_anatomy")
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=list(CLOSE))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model = load_external(args.model, Loading(head=True, device=args.device, dtype=args.dtype))
    if model.tokenizer.pad_token is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    passes = ExternalPasses(model.model)
    whole = ExternalPasses(model.model)
    whole.shares = False
    tokens = Tokens(model.tokenizer, passes.n_ids)
    theirs = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=args.batch_size)
    with TemporaryDirectory() as place:
        import_model(args.model, Path(place) / "ours")
        decoder = OwnPasses(load_model(Path(place) / "ours").to(model.model.device, model.model.dtype))
    sides = {
        OURS: GatelabLM(passes, tokens, batch_size=args.batch_size).loglikelihood,
        ROWS: GatelabLM(whole, tokens, batch_size=args.batch_size).loglikelihood,
        DECODER: GatelabLM(decoder, tokens, batch_size=args.batch_size).loglikelihood,
        THEIRS: lambda asked: theirs.loglikelihood(asked, disable_tqdm=True),
    }
    is_cpu = args.device == "cpu"
    where = "CPU, one thread" if is_cpu else torch.cuda.get_device_name()
    print(f"{model.name}, {where}, torch {torch.__version__}, {args.dtype}, batch {args.batch_size}")
    found, close = [], CLOSE[args.dtype]
    for name, asked in requests_of(tuple(args.tasks.split(",")), args.data_dir, args.limit).items():
        try:
            record = compare(name, asked, sides, args.repeats, is_cpu=is_cpu, close=close)
        except RuntimeError as error:
            record = {"task": name, "error": str(error).partition("\n")[0]}
        found.append(record)
        print(f"{name}: done", file=sys.stderr, flush=True)
        if args.out is not None:
            args.out.write_text(json.dumps({"model": model.name, "machine": where, "tasks": found}, indent=1) + "\n")
    print(
        "task                      requests  hflm s  gatelab s  ratio (least to most)   rows  decoder (least to most)"
    )
    for r in found:
        if "error" in r:
            print(f"{r['task']:<25} {r['error']}")
            continue
        seconds, ratios = r["seconds"], r["ratio"]
        spread = {side: "{:5.2f} ({:.2f} to {:.2f})".format(*ratios[side]) for side in (OURS, DECODER)}
        print(
            f"{r['task']:<25} {r['requests']:>8}  {seconds[THEIRS][0]:6.2f}  {seconds[OURS][0]:9.2f}  {spread[OURS]:<21}  "
            f"{ratios[ROWS][0]:5.2f}  {spread[DECODER]}"
        )


if __name__ == "__main__":
    main()
