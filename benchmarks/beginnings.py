"""Worked examples read once for all questions, and anew for each: log-likelihoods and generation, on the same weights.

Prompts are MMLU's: five examples of a subject from its dev file, then a question of its test file. Its four letters are scored, and
some tokens written, once as `gatelab eval` does it and once with every prompt read whole, by turns in one process; the ratio is
the median over pairs of turns, so that a busy machine slows both. On a CPU time is that of the process. Before anything is timed
both have to give the same log-probabilities, up to rounding, and the same texts. `decoder` is the model as a decoder of ours.

    python benchmarks/beginnings.py MODEL --data-dir DIR --subject anatomy --items 6

MODEL: a folder or .gguf file; DIR as docs/eval.md lays it out.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gatelab.evals.harness.beginnings import batches
from gatelab.evals.harness.external import ExternalPasses
from gatelab.evals.harness.local import present, rows_of
from gatelab.evals.harness.own import OwnPasses
from gatelab.evals.harness.passes import Passes
from gatelab.evals.harness.scoring import score
from gatelab.evals.harness.tokens import Tokens
from gatelab.models.external import Loading, load_external
from gatelab.models.generate import Sampling
from gatelab.models.interop import import_model, load_model

LETTERS = "ABCD"
FIELDS = ("question", "subject", "choices", "answer")
CLOSE = 2e-3  # nats of one letter, in float32
READ, ANEW = "once", "anew"
WORK = ("log-likelihoods", "generation")


def prompts_of(folder: Path, subject: str, n_shots: int, n_items: int) -> list[str]:
    """The questions of a subject, each behind the same worked examples."""
    rows = {}
    for split in ("dev", "test"):
        path = present(folder, f"mmlu/{split}.jsonl")
        if path is None:
            raise SystemExit(
                f"{folder / f'mmlu/{split}.jsonl'}: no such file; expected JSON lines with {', '.join(FIELDS)}"
            )
        rows[split] = [row for row in rows_of(path, FIELDS) if row["subject"] == subject]

    def asked(row: dict) -> str:
        options = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, row["choices"], strict=True))
        return f"{row['question'].strip()}\n{options}Answer:"

    title = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    examples = title + "".join(f"{asked(row)} {LETTERS[row['answer']]}\n\n" for row in rows["dev"][:n_shots])
    return [examples + asked(row) for row in rows["test"][:n_items]]


def write(passes: Passes, prompts: list[list[int]], n_new: int, batch_size: int) -> list[list[int]]:
    """What is written after each prompt, greedily."""
    out = {}
    for batch in batches(passes, prompts, batch_size=batch_size, n_new=n_new):
        mine = [prompts[i] for i in batch.numbers]
        found = passes.write(
            mine, n_new, Sampling(temperature=0.0), frozenset(), lambda _: False, beginning=batch.beginning
        )
        out |= dict(zip(batch.numbers, [text.ids for text in found], strict=True))
    return [out[i] for i in range(len(prompts))]


def ours(source: str, device: torch.device) -> OwnPasses:
    """The model as a decoder of ours."""
    with TemporaryDirectory() as place:
        import_model(source, Path(place) / "ours")
        return OwnPasses(load_model(Path(place) / "ours").to(device))


def timed(work: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each, by turns whose order changes."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats):
        for name in list(work)[:: 1 if turn % 2 else -1]:
            start = clock()
            work[name]()  # ends with numbers on the host
            seconds[name].append(clock() - start)
    return seconds


def main() -> None:
    """Both kinds of passes, both kinds of work; a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--subject", default="anatomy")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--items", type=int, default=6)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", default="transformers,decoder")
    parser.add_argument("--work", default=",".join(WORK))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_external(args.model, Loading(head=True, device=args.device))
    theirs = ExternalPasses(model.model)
    tokens = Tokens(model.tokenizer, theirs.n_ids)
    texts = prompts_of(args.data_dir, args.subject, args.shots, args.items)
    prompts = tokens.encode(texts)
    pairs = [
        (p.context, p.continuation) for p in tokens.pairs([(t, f" {letter}") for t in texts for letter in LETTERS])
    ]
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    where = "CPU, one thread" if args.device == "cpu" else torch.cuda.get_device_name()
    print(
        f"{model.name}, {where}, torch {torch.__version__}, float32, batch {args.batch_size}; {len(texts)} prompts of"
    )
    print(f"{min(map(len, prompts))} to {max(map(len, prompts))} tokens, {args.shots} shots of {args.subject}")
    print(f"work                           anew s   once s  {ANEW}/{READ} (least to most)")
    for side in args.sides.split(","):
        passes = theirs if side == "transformers" else ours(args.model, model.model.device)
        for name in args.work.split(","):

            def call(shares: bool, passes: Passes = passes, name: str = name) -> list:
                passes.shares = shares
                if name == "generation":
                    return write(passes, prompts, args.new_tokens, args.batch_size)
                return score(passes, pairs, batch_size=args.batch_size)

            once, anew = call(True), call(False)  # also the warm-up
            if name == "generation":
                differ = sum(a != b for a, b in zip(once, anew, strict=True))
            else:
                differ = sum(abs(a.log_p - b.log_p) > CLOSE for a, b in zip(once, anew, strict=True))
            if differ:
                print(f"{side}, {name}: {differ} answers differ, so no ratio")
                continue
            seconds = timed({READ: partial(call, True), ANEW: partial(call, False)}, args.repeats, clock)
            ratios = sorted(a / b for a, b in zip(seconds[ANEW], seconds[READ], strict=True))
            medians = [statistics.median(seconds[n]) for n in (ANEW, READ)]
            what = f"{side}, {name}"
            print(
                f"{what:<30} {medians[0]:6.2f}  {medians[1]:6.2f}  {statistics.median(ratios):5.2f} "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
