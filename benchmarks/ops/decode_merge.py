"""Why a gated decode step costs more than an ungated one, and which merge of a query's splits is the best.

    python benchmarks/ops/decode_merge.py [--out FILE] [--seconds 80] [--adopt] [--device cpu]

bfloat16 on a CUDA device; attention alone, as `gatelab bench decode` captures and times it: one graph of as many layers as
fit, each with a cache of its own. Every row of `gatelab/ops/gated_decode/merges.py` is held to the numeric contract and what
fails is left out; then all rows with all gates take turns in every round. A ratio is the median of those within rounds,
quartiles beside it: of gated over ungated by the same merge, and over the merge in use. Then the reason: splits alone; merges
alone, one after another, with logits that were just read or are read for the first time; and steps in which a small kernel
between splits and merge reads the logits, gated and not. Last, more sequences and other cuts. JSON lines go to the terminal
and to --out, a table to the terminal; it leaves with 1 where something failed. --adopt writes the best merge's name into that
file, if no step by it, gated or not, is slower. --seconds: for all of it but torch's import; what came too late is named.
--device cpu: a small shape in Triton's interpreter, which shows that all of it runs and nothing about time.
"""

import argparse
import ast
import gc
import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import torch
from rounds import Log
from torch import Tensor

from gatelab.bench import decode, decode_attention
from gatelab.bench.captured import captured
from gatelab.bench.plan import DecodePlan
from gatelab.config import GateSpec
from gatelab.ops.gated_decode import gated_decode

STARTED = time.perf_counter()
WORDS = {"none": "none", "headwise": "sdpa-headwise", "elementwise": "sdpa-elementwise"}
GOAL = 1.02  # gated over ungated, at most
_SLACK = 1.003  # over the merge in use, lower quartile: beyond, a step is slower
_ROUNDS, _FEWER = 61, 21
_LEAST = 21  # rounds of each shape without which nothing is adopted
REASONED = ("direct", "narrow")
CUTS = ((64, 4, 3, 1, 256), (64, 4, 3, 2, 512), (128, 4, 2, 1, 256), (32, 4, 4, 2, 128))


class Shape(NamedTuple):
    """Query and key heads, channels, sequences and tokens of the cache."""

    H: int
    G: int
    K: int
    batch: int
    cache: int


TIMED = (Shape(32, 8, 128, 1, 4096), Shape(16, 16, 128, 1, 4096), Shape(32, 8, 128, 1, 32768))
MORE = (Shape(32, 8, 128, 8, 4096), Shape(32, 8, 128, 64, 4096))
# As many splits as where times are taken, and several sequences.
JUDGED = (*TIMED[:2], Shape(32, 8, 128, 1, 9000), Shape(32, 8, 128, 3, 1000))
SMALL = (Shape(1, 1, 16, 1, 80),)


class Made(NamedTuple):
    """What a shape's works are made of. Logits by gate, a tensor each layer that is a slice of one."""

    shape: Shape
    q_B1HK: Tensor
    caches: list[tuple[Tensor, Tensor]]
    logits: dict[str, Tensor | None]
    each: dict[str, list[Tensor]]


Times = dict[str, list[float]]


@contextmanager
def using(merge: str, cut: tuple[int, ...] | None = None) -> Iterator[None]:
    """With a merge, and a cut for few sequences."""
    from gatelab.ops.gated_decode import kernels, merges

    before, cuts = merges.MERGE, dict(kernels.CUTS)
    merges.MERGE = merge
    if cut is not None:
        kernels.CUTS |= {width: of._replace(few=kernels.Cut(*cut)) for width, of in cuts.items()}
    try:
        yield
    finally:
        merges.MERGE = before
        kernels.CUTS |= cuts


def own(q_B1HK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, logits: Tensor | None) -> Tensor:
    """The kernels, on any device."""
    return torch.ops.gatelab.gated_decode(q_B1HK, k_BSGK, v_BSGK, logits, None, None, None)


def judge(log: Log, names: list[str], device: torch.device) -> list[str]:
    """Merges that keep the contract, and so compile, in every shape and with every gate."""
    broken = set()
    normal = partial(torch.randn, device=device, dtype=_dtype(device))
    for shape, (word, slug) in itertools.product(JUDGED if device.type == "cuda" else SMALL, WORDS.items()):
        H, G, K, B, S = shape
        gate, W = (None, 0) if word == "none" else (GateSpec.parse(slug), 1 if word == "headwise" else K)
        arguments = {
            "q_B1HK": normal(B, 1, H, K), "k_BSGK": normal(B, S, G, K), "v_BSGK": normal(B, S, G, K),
            "gate_logits_B1HK": normal(B, 1, H, W) if W else None, "gate": gate,
            "grad_BTHK": torch.zeros(B, 1, H, K, device=device, dtype=_dtype(device)),
        }  # fmt: skip

        def called(gate: GateSpec | None, gate_logits_B1HK: Tensor | None, **given: Tensor) -> Tensor:
            return own(**given, logits=gate_logits_B1HK)

        for name in names:
            with using(name):
                what = f"{name}, {word}, {tuple(shape)}"
                if not log.judge(what, called, partial(gated_decode, impl="reference"), arguments):
                    broken.add(name)
    return [name for name in names if name not in broken]


def made(shape: Shape, device: torch.device) -> Made:
    """As `gatelab bench decode` makes it."""
    dtype = str(_dtype(device)).removeprefix("torch.")
    plan = DecodePlan(
        device=device.type, heads=shape.H, kv_heads=shape.G, head_dim=shape.K, batch=(shape.batch,),
        cache=(shape.cache,), gates=tuple(WORDS.values()), dtype=dtype,
    )  # fmt: skip
    n_bytes = shape.batch * shape.cache * decode._token_bytes(plan)
    n_layers = max(1, min(decode._LAYERS, int(decode._CACHES / n_bytes))) if device.type == "cuda" else 1
    kept = decode._filled(plan, shape.batch, shape.cache, n_layers)
    pairs = zip(kept.k_LBSGK, kept.v_LBSGK, strict=True)
    caches = [(k_BSGK[:, : shape.cache], v_BSGK[:, : shape.cache]) for k_BSGK, v_BSGK in pairs]
    q_B1HK = torch.randn(shape.batch, 1, shape.H, shape.K, device=device, dtype=_dtype(device))
    logits = {word: decode_attention._logits(plan, slug, shape.batch) for word, slug in WORDS.items()}
    # Rounded up to 1 KiB a layer, so that no layer reads what another brought along.
    each = {word: _far_apart(t, n_layers) for word, t in logits.items() if t is not None}
    return Made(shape, q_B1HK, caches, logits, each)


def _far_apart(t: Tensor, n: int) -> list[Tensor]:
    room = -(-t.numel() // 512) * 512
    many = torch.randn(n, room, device=t.device, dtype=t.dtype)
    return [row[: t.numel()].view(t.shape) for row in many]


def replayed(step: Callable[[], object], merge: str, cut: tuple[int, ...] | None = None) -> Callable[[], None]:
    """A step by a merge; the graph of it where kernels are compiled."""
    run = captured(step) if os.environ["TRITON_INTERPRET"] == "0" else lambda _: step()

    def again() -> None:
        with using(merge, cut), torch.no_grad():
            run(None)

    return again


def step_of(given: Made, word: str) -> Callable[[], object]:
    return partial(decode_attention._all_layers, own, given.q_B1HK, given.caches, given.logits[word])


def compare(
    log: Log, given: Made, names: list[str], device: torch.device, rounds: int, seconds: float, kind: str,
    cuts: tuple[tuple[int, ...] | None, ...] = (None,),
) -> Times:  # fmt: skip
    """Microseconds a layer by `merge cut, gate` in every round, told with their ratios; the first name is the one in use."""
    n_layers = len(given.caches)
    ways = {name + (f" {cut}" if cut else ""): (name, cut) for name in names for cut in cuts}
    works = {
        f"{way}, {word}": replayed(step_of(given, word), *how)
        for way, how in ways.items() for word in WORDS
    }  # fmt: skip
    found = log.each(works, device, rounds, until=time.perf_counter() + seconds)
    us = {name: [1e3 * t / n_layers for t in times] for name, times in found.items() if times}
    today = next(iter(ways))
    for way, word in itertools.product(ways, WORDS):
        if (times := us.get(f"{way}, {word}")) is None:
            continue
        over = {f"over_{n}": within(times, us.get(key)) for n, key in _bases(way, word, today).items()}
        at = {**given.shape._asdict(), "layers": n_layers, "rounds": len(times)}
        log.tell(kind, **at, merge=way, gate=word, us=quartiles(times), **over)
    return us


def _bases(way: str, word: str, today: str) -> dict[str, str]:
    bases = {"today": f"{today}, {word}", "ungated_today": f"{today}, none"}
    return bases if word == "none" else {"ungated": f"{way}, none"} | bases


def quartiles(values: list[float]) -> list[float]:
    """Lower, median and upper."""
    return [round(v, 5) for v in statistics.quantiles(values, n=4, method="inclusive")]


def within(times: list[float], base: list[float] | None) -> list[float] | None:
    """Quartiles of the ratios within rounds."""
    return base and quartiles([a / b for a, b in zip(times, base, strict=True)])


def reasons(log: Log, given: Made, names: list[str], device: torch.device, seconds: float) -> None:
    """What of a gated step is instructions, and what waiting for logits that are far away."""
    from gatelab.ops.gated_decode import kernels, merges

    slots = {"window": None, "first_B": None, "end_B": None}
    n_layers, z_B1HK = len(given.caches), torch.empty_like(given.q_B1HK)
    first = {n: t for n, t in given.logits.items() if t is not None}
    read = {n: torch.empty_like(t) for n, t in first.items()}

    def split_only() -> None:
        for cache in given.caches:
            kernels.split_up(given.q_B1HK, *cache, None, **slots)

    def merges_only(parts: tuple[Tensor, ...], logits: list[Tensor | None]) -> None:
        for layer in logits:
            merges.merge(*parts, layer, z_B1HK)

    def touched(word: str, is_gated: bool) -> None:
        for cache in given.caches:
            logits = first[word] if is_gated else None
            parts = kernels.split_up(given.q_B1HK, *cache, logits, **slots)
            torch.neg(first[word], out=read[word])
            merges.merge(*parts, logits, z_B1HK)

    works = {"direct: splits alone": replayed(split_only, "direct")}
    for name in names:
        with using(name), torch.no_grad():
            parts = kernels.split_up(given.q_B1HK, *given.caches[0], None, **slots)
        alone = {"none": [None] * n_layers}
        alone |= {f"{n}, read before": [t] * n_layers for n, t in first.items()}
        alone |= {f"{n}, read first": given.each[n] for n in first}
        works |= {f"{name}: merge alone, {n}": replayed(partial(merges_only, parts, t), name) for n, t in alone.items()}
        for word, is_gated in itertools.product(first, (False, True)):
            what = word if is_gated else f"none, reads those of {word}"
            works[f"{name}: step with logits just read, {what}"] = replayed(partial(touched, word, is_gated), name)
    found = log.each(works, device, _FEWER, until=time.perf_counter() + seconds)
    for what, times in found.items():
        us = [1e3 * t / n_layers for t in times]
        log.tell("reason", **given.shape._asdict(), what=what, us=quartiles(us), rounds=len(us))
    for name, word in itertools.product(names, first):
        gated, plain = (
            found.get(f"{name}: step with logits just read, {n}") for n in (word, f"none, reads those of {word}")
        )
        if gated and plain:
            more = quartiles([1e3 * (a - b) / n_layers for a, b in zip(gated, plain, strict=True)])
            log.tell("reason", **given.shape._asdict(), what=f"{name}: {word} less ungated, logits just read", us=more)


def tell_registers(log: Log) -> None:
    """Registers of a thread, spilt bytes and warps of every merge that was compiled."""
    from gatelab.ops.gated_decode import merges

    for kernel in (merges.merge_kernel, merges.at_once_kernel):
        for compiled in list(kernel.device_caches[torch.cuda.current_device()][0].values()):
            names, options = kernel.arg_names, compiled.metadata
            constants = {names[at[0]]: value for at, value in compiled.src.constants.items() if names[at[0]].isupper()}
            what = {"warps": options.num_warps, "overlapped": options.launch_pdl, "registers": compiled.n_regs}
            log.tell("registers", kernel=kernel.__name__, **constants, **what, spilt=compiled.n_spills)


def verdict(log: Log, found: dict[Shape, Times], names: list[str], timed: tuple[Shape, ...]) -> str:
    """The merge to take: of those by which nothing is slower the one that meets the goal most often, then the fastest gated.
    The first name is the one in use."""
    today, gated, ranks = names[0], ("headwise", "elementwise"), {}
    for name in names:
        over = {
            (shape, word): within(us[f"{name}, {word}"], us.get(f"{today}, {word}"))
            for (shape, us), word in itertools.product(found.items(), WORDS) if f"{name}, {word}" in us
        }  # fmt: skip
        slower = [f"{word}, {tuple(shape)}" for (shape, word), q in over.items() if q is not None and q[0] > _SLACK]
        rows = list(itertools.product(timed, gated))
        ratios = [_ratio(found.get(shape, {}), name, word) for shape, word in rows]
        missed = sum(not ratio <= GOAL for ratio in ratios)
        faster = [over.get(row) for row in rows]
        mean = math.nan if None in faster else statistics.geometric_mean(q[1] for q in faster)
        rounds = [len(found.get(shape, {}).get(f"{name}, {word}", ())) for shape, word in rows]
        log.tell("rank", merge=name, slower=slower, missed=missed, over_ungated=ratios, gated_over_today=mean)
        if not slower and not math.isnan(mean) and min(rounds) >= _LEAST:
            ranks[name] = (missed, mean)
    best = min(ranks, key=ranks.get, default=today)
    log.tell("verdict", today=today, best=best, of=len(names), shapes=len(found))
    return best


def _ratio(us: Times, name: str, word: str) -> float:
    """Gated over ungated; not a number where either was not timed."""
    gated, plain = us.get(f"{name}, {word}"), us.get(f"{name}, none")
    return within(gated, plain)[1] if gated and plain else math.nan


def adopt(path: Path, name: str) -> None:
    """Write a merge's name into the file's MERGE."""
    text = path.read_text(encoding="utf-8")
    [value] = [
        node.value for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == ["MERGE"]
    ]  # fmt: skip
    lines = text.encode().splitlines(keepends=True)
    line = lines[value.lineno - 1]
    lines[value.lineno - 1] = line[: value.col_offset] + f'"{name}"'.encode() + line[value.end_col_offset :]
    path.write_bytes(b"".join(lines))


def print_table(found: dict[Shape, Times], names: list[str]) -> None:
    """Medians, µs a layer; in brackets over the same merge ungated, then over the merge in use."""
    print("\n| heads, sequences, cache | merge | ungated, µs | headwise | elementwise |\n|---|---|---|---|---|")
    for (shape, us), name in itertools.product(found.items(), names):
        cells = []
        for word in WORDS:
            times = us.get(f"{name}, {word}")
            today = within(times, us.get(f"{names[0]}, {word}")) if times else None
            own_ratio = "" if word == "none" else f" ({_ratio(us, name, word):.3f})"
            cells.append(f"{statistics.median(times):.2f}{own_ratio}, {today[1]:.3f}" if today else "not timed")
        print(f"| {shape.H}/{shape.G}, {shape.batch}, {shape.cache} | {name} | {' | '.join(cells)} |")


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def measure(log: Log, device: torch.device, seconds: float) -> tuple[str, str]:
    """The merge in use and the best."""
    from gatelab.ops.gated_decode import merges

    end = STARTED + seconds
    is_small, today = device.type == "cpu", merges.MERGE
    names = judge(log, [today, *(name for name in merges.MERGES if name != today)], device)
    if not names or names[0] != today:
        log.tell("verdict", today=today, best=today, of=len(names), shapes=0)
        return today, today
    timed, more = (SMALL, ()) if is_small else (TIMED, MORE)
    rounds, fewer = (2, 2) if is_small else (_ROUNDS, _FEWER)
    reasoned = [name for name in REASONED if name in names][-1 if is_small else 0 :]
    found: dict[Shape, Times] = {}
    log.tell("prepared", seconds_left=end - time.perf_counter())
    # By what each takes, in shares of what is left: the first must not starve the last.
    for i, shape in enumerate(timed):
        left = end - time.perf_counter()
        given = made(shape, device)
        found[shape] = compare(log, given, names, device, rounds, 0.75 * left / (len(timed) - i), "time")
        if i != 1 or is_small:
            reasons(log, given, reasoned, device, 0.1 * left)
        given = None
        _freed(device)
    for i, shape in enumerate(more):
        if (left := end - time.perf_counter()) < 2:
            log.tell("late", shape=tuple(shape), why="the time was over; give more --seconds")
            continue
        found[shape] = compare(log, made(shape, device), names, device, fewer, left / (2 + len(more) - i), "time")
        _freed(device)
    if not is_small:
        log.tried("registers", partial(tell_registers, log))
    best = verdict(log, found, names, timed)
    for i, shape in enumerate(timed):
        if (left := end - time.perf_counter()) < 2:
            log.tell("late", cuts_of=tuple(shape), why="the time was over; give more --seconds")
            continue
        cuts = (None, *(CUTS[:1] if is_small else CUTS))
        compare(log, made(shape, device), [best], device, fewer, left / (len(timed) - i), "cut", cuts)
        _freed(device)
    print_table(found, names)
    return today, best


def _freed(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main() -> int:
    """1 where a contract is broken or something does not run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a file that JSON lines are appended to")
    parser.add_argument("--seconds", type=float, default=80.0)
    parser.add_argument("--adopt", action="store_true", help="write the best merge's name into the package")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here; --device cpu judges the kernels in Triton's interpreter")
    # Kernels are interpreted or compiled as this says when they are imported.
    os.environ["TRITON_INTERPRET"] = "1" if given.device == "cpu" else "0"
    torch.manual_seed(0)
    device, log = torch.device(given.device), Log(given.out)
    name = "cpu" if given.device == "cpu" else torch.cuda.get_device_name()
    log.tell("about", device=name, torch=torch.__version__, seconds=given.seconds, goal=GOAL)
    today, best = measure(log, device, given.seconds)
    if given.adopt and best != today:
        from gatelab.ops.gated_decode import merges

        adopt(Path(merges.__file__), best)
        log.tell("adopted", merge=best, was=today, file=merges.__file__)
    print(f"\n{len(log.failed)} failed{': ' if log.failed else ''}{'; '.join(log.failed)}")
    return int(bool(log.failed))


if __name__ == "__main__":
    sys.exit(main())
