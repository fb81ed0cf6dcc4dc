"""Where the time of a training step goes: every kernel of a few captured steps by kind, beside the least that the kind can take.

    python benchmarks/step_profile.py --cases 350m,stack-512,gates-33m --out steps.jsonl
    python benchmarks/step_profile.py --size 768x12x6x50304 --gate sdpa-headwise --tokens 65536

The configurations of all cases warm up beside each other, in processes of their own, and are profiled one at a time while the
others are stopped. A step's wall time is taken without the profiler, captured as it trains; what of it no kernel took are gaps.
Kernels are timed twice, in the graph and launched one by one, since a profiler may tell those of a graph wrong or not at all
(github.com/pytorch/kineto/issues/1165); shares and floors are of the latter where both are there. Floors are formulas over the
rates of a copy and of one large product, measured in the same process (`step_kinds.floors_ms`). Configurations of a case are set
side by side; where only the tokens of a step differ, what a step costs whatever its tokens follows from the two.
"""

import argparse
import gc
import itertools
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator

import torch
from step_kinds import KINDS, Kernel, busy_us, floors_ms, kinds_of
from step_tables import side_by_side, table
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from training_turns import BLOCKS
from warm_processes import WORKER, Facts, Process, serve
from warm_training import Trained, bounded, carried_out, chosen, facts_of, keep, wait, warmed

from gatelab.bench.floors import measure_rates
from gatelab.train.group import Group
from gatelab.train.stack import StackedBatch

_WALL_S, _LEAST_STEPS, _PROFILED_STEPS = 1.5, 5, 3
_LONG_US = 20.0
_ANSWER_S = 90.0
_NAMES = 40  # kernels by name that a record keeps
_350M = {"size": "1024x24x8x50304", "attention": "hopper"}
_512 = {"size": "512x8x8x8192", "attention": "auto", "gib": 9}
_33M = {"size": "512x8x4x16384", "tokens": 65_536, "gib": 12}
CASES = {
    "350m": (Trained(**_350M, tokens=32_768, gib=38.5), Trained(**_350M, tokens=65_536, gib=68.5)),
    "stack-128": tuple(t for t in BLOCKS["stack-128"].trained if t.runs > 1),
    # As many tokens in one run are the same work but for the weights.
    "stack-512": (Trained(**_512, tokens=8192, runs=4), Trained(**_512, tokens=32_768)),
    "gates-33m": (Trained(**_33M), Trained(**_33M, gate="sdpa-elementwise")),
    "tiny": (
        Trained("16x1x2x64", 32, 1, context=16, attention="auto"), Trained("16x1x2x64", 64, 1, context=16, attention="auto"),
    ),
}  # fmt: skip


def worker(about: Facts) -> Generator[Facts, Facts, None]:
    """Warm up, then the profile."""
    start, trained = time.perf_counter(), Trained(**about["trained"])
    group, model, steps = warmed(trained, about["device"])
    facts, peak = facts_of(group, model, trained), _peak_gib(group)
    yield {"warm_s": time.perf_counter() - start}
    rates = measure_rates(group.device, group.dtype, seconds=0.8 if group.device.type == "cuda" else 0.1)
    wall_ms, captured = walls_ms(steps), None if group.stack is None else group.stack._captured
    # In one session and after the capture: a profiler that was there before may see nothing afterwards.
    found = {"trained": profiled(kernels_of(lambda: next(steps), _PROFILED_STEPS, group.device), _PROFILED_STEPS)}
    if captured is not None:
        batch, hyper = captured.batch, captured.hyper
        group.stack._captured = captured = None  # its memory is wanted
        gc.collect()
        torch.cuda.empty_cache()
        alone = launched(group, batch, hyper)
        try:
            alone()
            found["launched"] = profiled(kernels_of(alone, _PROFILED_STEPS, group.device), _PROFILED_STEPS)
        except RuntimeError as error:  # such as no room: the other profile is there
            facts["launched_failed"] = str(error).splitlines()[0][:300]
    floors = floors_ms(
        model, rates, facts["attention"], tokens=trained.tokens, context=trained.context, runs=trained.runs
    )
    yield {
        **facts, "profiles": found, "floors_ms": floors, "wall_ms": statistics.median(wall_ms), "wall_least_ms": min(wall_ms),
        "wall_most_ms": max(wall_ms), "copy_bytes_per_s": rates.bytes_per_s, "product_flops_per_s": rates.flops_per_s,
        "peak_gib": peak,
    }  # fmt: skip


def launched(group: Group, batch: StackedBatch, hyper: Tensor) -> Callable[[], None]:
    """A step of a stack whose kernels are launched one by one."""
    given = hyper.cpu()

    def step() -> None:
        hyper.copy_(given)  # by which `kinds_of` knows that an update is over
        group.stack._step(batch, hyper)

    return step


def walls_ms(steps: Iterator[object]) -> list[float]:
    """Of some steps, each with its result read."""
    out, start = [], time.perf_counter()
    before = start
    while len(out) < _LEAST_STEPS or before < start + _WALL_S:
        next(steps)
        now = time.perf_counter()
        out.append(1e3 * (now - before))
        before = now
    return out


def kernels_of(step: Callable[[], object], n: int, device: torch.device) -> list[Kernel]:
    """What ran on the device in n steps, as it began; on a CPU its operations, each by its own time."""
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as found:
        for _ in range(n):
            step()
        wait(device)
    wanted = DeviceType.CUDA if is_cuda else DeviceType.CPU
    kernels = []
    for e in found.events():
        if e.device_type == wanted and not getattr(e, "is_user_annotation", False):
            length = e.time_range.elapsed_us() if is_cuda else e.self_cpu_time_total
            kernels.append(Kernel(e.name, e.time_range.start, e.time_range.start + length))
    return sorted(kernels, key=lambda k: k.start_us)


def profiled(kernels: list[Kernel], n: int) -> Facts:
    """By kind and by name, a step: milliseconds and how many; the time in which any ran, and the gaps between."""
    ms, count = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0)
    ms_by_name, count_by_name = Counter(), Counter()
    for kernel, kind in zip(kernels, kinds_of(kernels), strict=True):
        took = (kernel.end_us - kernel.start_us) / 1e3 / n
        ms[kind] += took
        count[kind] += 1 / n
        ms_by_name[kind, kernel.name] += took
        count_by_name[kind, kernel.name] += 1 / n
    ends = itertools.accumulate((k.end_us for k in kernels), max)
    gaps = [max(0.0, k.start_us - end) for end, k in zip(ends, kernels[1:], strict=False)]
    long = [gap for gap in gaps if gap > _LONG_US]
    return {
        "busy_ms": busy_us(kernels) / 1e3 / n,
        "gaps_ms": sum(gaps) / 1e3 / n,
        "long_gaps": {"over_us": _LONG_US, "count": len(long) / n, "ms": sum(long) / 1e3 / n},
        "kinds": {kind: {"ms": ms[kind], "count": count[kind]} for kind in KINDS if count[kind]},
        "kernels": [
            {"kind": kind, "name": name[:200], "ms": took, "count": count_by_name[kind, name]}
            for (kind, name), took in ms_by_name.most_common(_NAMES)
        ],
    }


def _peak_gib(group: Group) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if group.device.type == "cuda" else None


def main(words: list[str] | None = None) -> None:
    """Every configuration as it comes, then the cases side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help=f"some of {', '.join(CASES)}, joined by commas")
    parser.add_argument("--size", help="one configuration, in the place of cases: a size's name, or 512x8x4x16384")
    parser.add_argument("--gate", default="none")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=32_768, help="a step of a run")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--attention", default="auto")
    bounded(parser, seconds=150)
    given = parser.parse_args(words)
    if bool(given.cases) == bool(given.size):
        sys.exit("give --cases or --size, and not both; --help lists them")
    names = chosen("--cases", given.cases, CASES) if given.cases else [given.size]
    asked = (given.tokens, given.memory, given.gate, given.context, given.attention)
    cases = {name: CASES[name] if given.cases else (Trained(given.size, *asked, runs=given.runs),) for name in names}
    # The largest first: what it leaves room for warms up beside it.
    every = {
        f"{case}: {t.name}": (t,)
        for case, t in sorted(((c, t) for c, ts in cases.items() for t in ts), key=lambda p: -p[1].gib)
    }
    found: dict[str, Facts] = {}

    def work(name: str, processes: list[Process], warm: list[Process], _: float) -> None:
        (p,), (trained,) = processes, every[name]
        answer = p.ask({}, _ANSWER_S) if warm else None
        about = {"case": name.partition(":")[0], "name": p.name, **vars(trained)}
        record = about | ({"failed": p.failed} if answer is None else answer)
        keep([record], given.out)
        if answer is None:
            print(f"{name}: {p.failed}", flush=True)
            return
        found[name] = record
        print(f"\n{table(record)}\n", flush=True)

    carried_out(every, __file__, work, given)
    for case, configurations in cases.items():
        records = [found[key] for t in configurations if (key := f"{case}: {t.name}") in found]
        if len(records) > 1:
            print(f"\n## {case}, side by side\n\n{side_by_side(records)}\n", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        serve(worker)
    else:
        main()
