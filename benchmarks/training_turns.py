"""Training steps of several configurations on one GPU, taking turns: each warm in a process of its own, in rounds back and forth.

    python benchmarks/training_turns.py --blocks gates-33m,gates-124m --out turns.jsonl

The trainer itself, on random tokens; a gated model has its FFN narrowed to the ungated one's weights, as `gatelab bench train`
does. In a round every configuration of a block takes steps for a second or so, the first of them not counted, and the next round
goes the other way; the others sleep. What a gate costs is the ratio within rounds to the block's first ungated configuration.
No row is held to the numeric contract here; `gatelab bench train` does that. MFU is over 989 TFLOP/s, on H100 and H200 alone.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass

import torch
from warm_processes import WORKER, Facts, Process, serve
from warm_training import Trained, bounded, carried_out, chosen, facts_of, keep, wait, warmed

from gatelab.bench.floors import HOPPER_FLOPS
from gatelab.bench.goals import JUDGED_ON

_LEAST = 3  # rounds, however little time is left
_ANSWER_S = 60.0


@dataclass(frozen=True)
class Block:
    """What takes turns of `turn_s` seconds in so many `rounds`."""

    trained: tuple[Trained, ...]
    rounds: int = 4
    turn_s: float = 1.5


def _gates(*gates: str, **shape: object) -> tuple[Trained, ...]:
    return tuple(Trained(gate=gate, **shape) for gate in gates)


_THREE = ("none", "sdpa-headwise", "sdpa-elementwise")
_33M = {"size": "512x8x4x16384", "tokens": 65_536, "gib": 12}
_1B = {"size": "1b", "tokens": 16_384, "gib": 47}
_128 = {"size": "128x4x4x4096", "context": 128, "tokens": 4096, "runs": 25, "attention": "auto", "gib": 5}
_STACK_128 = {"size": "128x4x4x256", "context": 512, "tokens": 4096, "attention": "auto", "gib": 8}
_STACK_256 = {"size": "256x4x4x4096", "context": 512, "tokens": 4096, "attention": "auto", "gib": 12}
_64 = {"size": "64x4x2x256", "context": 512, "tokens": 4096, "attention": "auto", "gib": 4}
_512 = {"size": "512x8x8x8192", "tokens": 8192, "attention": "auto", "gib": 9}
# Room is what `results/training_*_2026-11.md` have as peaks, and a tenth. Three of `1b` with 16,384 tokens would want 141 GiB, more
# than an H200 has, so that each gate has an ungated one of its own there.
BLOCKS = {
    "gates-33m": Block(_gates(*_THREE, **_33M), rounds=14, turn_s=0.6),
    "gates-124m": Block(_gates(*_THREE, size="768x12x6x50304", tokens=65_536, gib=26.5), turn_s=1.4),
    "gates-350m": Block(_gates(*_THREE, size="1024x24x8x50304", tokens=32_768, gib=38.5), turn_s=1.3),
    "gates-moe": Block(_gates(*_THREE, size="moe-480m", tokens=16_384, gib=19), turn_s=1.0),
    "gates-1b-headwise": Block(_gates("none", "sdpa-headwise", **_1B), turn_s=1.4),
    "gates-1b-elementwise": Block(_gates("none", "sdpa-elementwise", **_1B), turn_s=1.4),
    "gates-moe-auto": Block(_gates(*_THREE, size="moe-480m", tokens=16_384, attention="auto", gib=19), turn_s=1.0),
    "contexts-33m": Block(_gates(*_THREE, **_33M, context=4096), turn_s=1.2),
    "contexts-124m": Block(_gates(*_THREE, size="768x12x6x50304", tokens=65_536, context=4096, gib=26.5), turn_s=1.4),
    "contexts-350m": Block(_gates(*_THREE, size="1024x24x8x50304", tokens=32_768, context=4096, gib=38.5), turn_s=1.3),
    "contexts-moe": Block(_gates(*_THREE, size="moe-480m", tokens=16_384, context=4096, gib=19), turn_s=1.0),
    "attention-33m": Block((Trained(**_33M), Trained(**_33M, attention="auto"))),
    "recompute-350m": Block(tuple(
        Trained("1024x24x8x50304", 32_768, gib, recompute=how) for how, gib in (("none", 38.5), ("layer", 20))
    ), rounds=4),
    "packed-33m": Block(tuple(
        Trained(**_33M, gate=gate, packed=is_packed) for gate in _THREE[:2] for is_packed in (True, False)
    )),
    "packed-stack-128": Block(tuple(
        Trained(**_128, gate=gate, packed=is_packed) for gate in _THREE[::2] for is_packed in (True, False)
    ), turn_s=1.0),
    "captured-moe": Block(tuple(
        Trained("moe-480m", 16_384, 19, attention="auto", is_captured=is_captured) for is_captured in (True, False)
    )),
    "stack-64": Block((
        Trained(**_64), Trained(**_64, runs=64), Trained(**_64, is_captured=False),
    ), turn_s=1.0),
    "stack-128": Block((
        Trained(**_STACK_128), Trained(**_STACK_128, runs=64), Trained(**_STACK_128, is_captured=False),
    ), turn_s=1.0),
    "stack-256": Block((
        Trained(**_STACK_256), Trained(**_STACK_256, runs=32), Trained(**_STACK_256, is_captured=False),
    ), turn_s=1.0),
    "stack-512": Block((
        Trained(**_512), Trained(**_512, runs=4), Trained(**_512, is_captured=False),
    )),
    "tiny": Block(_gates(*_THREE[:2], size="16x1x2x64", context=16, tokens=64, attention="auto", gib=1), 2, 0.05),
}  # fmt: skip
DEFAULT = [name for name in BLOCKS if name.startswith("gates-") and name != "gates-moe-auto"]


def worker(about: Facts) -> Generator[Facts, Facts, None]:
    """Warm up, then a turn a request: the milliseconds of every step, the last loss, the peak of memory so far."""
    start, trained = time.perf_counter(), Trained(**about["trained"])
    group, model, steps = warmed(trained, about["device"])
    request = yield {"warm_s": time.perf_counter() - start, **facts_of(group, model, trained)}
    while True:
        ms = []
        step = next(steps)
        before = time.perf_counter()
        end = before + request["seconds"]
        while not ms or before < end:
            step = next(steps)
            now = time.perf_counter()
            ms.append(1e3 * (now - before))
            before = now
        wait(group.device)
        peak = torch.cuda.max_memory_allocated() / 2**30 if group.device.type == "cuda" else None
        request = yield {"ms": ms, "loss": step.loss[0], "peak_gib": peak}


def turns(block: Block, processes: list[Process], end: float) -> dict[str, list[Facts]]:
    """Of every process that answers to the last, its answers, one a round."""
    found: dict[str, list[Facts]] = {p.name: [] for p in processes}
    for i in range(block.rounds):
        if i >= _LEAST and time.monotonic() > end:
            break
        for p in processes[:: -1 if i % 2 else 1]:
            answer = None if p.failed else p.ask({"seconds": block.turn_s}, _ANSWER_S + 2 * block.turn_s)
            if answer is not None:
                found[p.name].append(answer)
    return {p.name: found[p.name] for p in processes if not p.failed}


def record(trained: Trained, facts: Facts, answers: list[Facts], base: list[Facts] | None) -> Facts:
    """Medians, spread and ratio of one configuration; `base` are the answers of what it is compared with."""
    ms, rounds = [x for answer in answers for x in answer["ms"]], _medians(answers)
    median = statistics.median(ms)
    tokens_per_s = trained.tokens * trained.runs / median * 1e3
    is_judged = any(word in facts["device"] for word in JUDGED_ON)
    ratios = [] if base is None else [b / own for b, own in zip(_medians(base), rounds, strict=True)]
    return {
        **asdict(trained), **facts, "ms": median, "least_ms": min(ms), "p90_ms": sorted(ms)[int(0.9 * len(ms))], "steps": len(ms),
        "rounds_ms": rounds, "tokens_per_s": tokens_per_s,
        "of_ungated": spread(ratios) | {"rounds": ratios} if ratios else None,
        "mfu": facts["flops_per_token"] * tokens_per_s / HOPPER_FLOPS if is_judged else None,
        "peak_gib": answers[-1]["peak_gib"], "loss": answers[-1]["loss"],
    }  # fmt: skip


def spread(values: list[float]) -> dict[str, float]:
    """Median, quartiles, least and most."""
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive") if values[1:] else values * 3
    return {"median": median, "lower": lower, "upper": upper, "least": min(values), "most": max(values)}


def _medians(answers: list[Facts]) -> list[float]:
    return [statistics.median(answer["ms"]) for answer in answers]


def table(records: list[Facts]) -> str:
    """As markdown."""
    head = "configuration | implementation | ms a step (least to 90th percentile) | medians of rounds | tokens/s"
    head += " | of ungated tokens/s in rounds (quartiles; least to most) | MFU | peak GiB"
    lines = [f"| {head} |", "|---" * 8 + "|"]
    for r in records:
        if "failed" in r:
            lines.append(f"| {r['name']} | {r['failed']} |" + " |" * 6)
            continue
        o = r["of_ungated"]
        ratio = "" if o is None else "{median:.4f} ({lower:.4f} to {upper:.4f}; {least:.4f} to {most:.4f})".format(**o)
        used = r["attention"] + ("" if r["packed"] else ", apart") + ("" if r["stacked"] else ", not captured")
        mfu, peak = (f"{x:{form}}" if x is not None else "" for x, form in ((r["mfu"], ".1%"), (r["peak_gib"], ".1f")))
        cells = (
            r["name"], used, f"{r['ms']:.2f} ({r['least_ms']:.2f} to {r['p90_ms']:.2f})",
            f"{min(r['rounds_ms']):.2f} to {max(r['rounds_ms']):.2f}, {len(r['rounds_ms'])} rounds",
            f"{r['tokens_per_s']:,.0f}", ratio, mfu, peak,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measured(name: str, processes: list[Process], warm: list[Process], end: float) -> list[Facts]:
    """A record a configuration of a block, with why there is none where it failed."""
    block = BLOCKS[name]
    found = turns(block, warm, end)
    base = next((found[t.name] for t in block.trained if t.gate == "none" and t.name in found), None)
    out = []
    for trained, p in zip(block.trained, processes, strict=True):
        numbers = {"failed": p.failed, **asdict(trained)}
        if p.name in found:
            numbers = record(trained, p.facts, found[p.name], base)
        out.append({"block": name, "name": p.name} | numbers)
    return out


def main(words: list[str] | None = None) -> None:
    """The blocks that are named, a table each as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", default=",".join(DEFAULT), help=f"some of {', '.join(BLOCKS)}, joined by commas")
    bounded(parser, seconds=330)
    given = parser.parse_args(words)

    def work(name: str, processes: list[Process], warm: list[Process], end: float) -> None:
        records = measured(name, processes, warm, end)
        keep(records, given.out)
        print(f"\n{name}\n\n{table(records)}\n", flush=True)

    blocks = {name: BLOCKS[name].trained for name in chosen("--blocks", given.blocks, BLOCKS)}
    carried_out(blocks, __file__, work, given)


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        serve(worker)
    else:
        main()
