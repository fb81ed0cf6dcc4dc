"""How the gate's kernels are best cut, and what the headwise way back spends its time on.

    python benchmarks/ops/gate_tiles.py [--out FILE] [--seconds 70] [--adopt] [--device cpu]

bfloat16 on a CUDA device, 32,768 tokens in all, 16 heads of 128, at 4,096 and 32,768 tokens a sequence, in the layouts and by
the clock of `gatelab bench ops`: logits are slices of a packed projection's output, before each timing the L2 cache is
overwritten. Every candidate is first held to the numeric contract. All have 7 rounds; the fastest of each kernel, today's and
torch.compile's then take turns in 50. Beside them parts of the headwise way back (`gate_parts.py`) and the same with an L2
that is left clean, so that nothing of the overwriting is still to be written during the timing. Tables go to the terminal,
JSON to --out. --adopt writes into the table of `gatelab/ops/gate_apply/kernels.py` what beats today's at every length reached
by the upper quartile of its ratios. What is not reached in --seconds is named. --device cpu: a small shape in Triton's
interpreter, whose times say nothing. It leaves with 1 where something broke the contract or did not run.
"""

import argparse
import ast
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import torch
from rounds import spread
from torch import Tensor

from gatelab.bench import ops
from gatelab.bench.candidates import gate_candidates
from gatelab.bench.floors import Rates, gate_bytes, measure_rates
from gatelab.bench.plan import OpsPlan
from gatelab.bench.slices import drawn
from gatelab.bench.timing import Budget, Measure, Times, Turns, Work, clock, why_not
from gatelab.config import GateSpec
from gatelab.ops.contract import check
from gatelab.ops.gate_apply import apply_gate, fused

# The kernels whose reason is asked for come first.
KEYS = (
    ("back", "headwise", True),
    ("back", "headwise", False),
    ("forward", "headwise", None),
    ("forward", "elementwise", None),
    ("back", "elementwise", True),
    ("back", "elementwise", False),
)
NAMES = {
    ("forward", None): "forward", ("back", True): "back, flash", ("back", False): "back, flash-lean"
}  # fmt: skip
TODAY, PEER, ALONE = "today's", "peer", "peer, dlogits alone"
# Numbers a program and warps: 8 to 32 numbers a thread.
CUTS = ((512, 1), (1024, 2), (1024, 4), (2048, 2), (2048, 4), (2048, 8), (4096, 4), (4096, 8), (8192, 8))
# With a log-sum-exp: neighbouring tokens a program, and whether it is raised apart.
ORDERS = ((1, False), (8, False), (1, True))
ORDERED_CUTS = ((512, 1), (1024, 2), (1024, 4), (2048, 4), (2048, 8), (4096, 8))
FIRST = "evict_first"
_LEAST, _COARSE, _PARTS, _FINAL = 3, 7, 25, 50  # rounds
_SMALL = 2  # of a small shape
_BEST = 3
_CLEAN = 256 << 20  # bytes; as `timing.clock` overwrites
_THREADS = 14

Key = tuple[str, str, bool | None]


class Given(NamedTuple):
    """Tensors of one gate: z is that of the formulas; `arguments` are leaves, as `bench ops` has them."""

    dz_BTHK: Tensor
    y_BTHK: Tensor
    z_BTHK: Tensor
    logits_BTHW: Tensor
    lse_BHT: Tensor
    arguments: dict[str, Any]


def plan_of(device: torch.device, length: int) -> OpsPlan:
    """As `gatelab bench ops` takes it."""
    is_small = device.type == "cpu"
    heads, K, tokens = (2, 16, 2 * length) if is_small else (16, 128, 32768)
    return OpsPlan(
        device=device.type, seconds=70, heads=heads, kv_heads=heads, head_dim=K, dtype="bfloat16", tokens=tokens,
        length=length, gates=("sdpa-headwise", "sdpa-elementwise"),
    )  # fmt: skip


def given_of(plan: OpsPlan, granularity: str, *, batch: int, length: int) -> Given:
    arguments = drawn(plan, GateSpec.parse(f"sdpa-{granularity}"), batch=batch, length=length)
    y, logits = arguments["q_BTHK"].detach().contiguous(), arguments["gate_logits_BTHK"].detach()
    z = (y.float() * logits.float().sigmoid()).to(y.dtype)
    lse = torch.randn(batch, y.shape[2], length, device=y.device)
    return Given(arguments["grad_BTHK"], y, z, logits, lse, arguments)


def run_of(key: Key, tile: Any, given: Given) -> Callable[[], Any]:
    """One kernel, `tile` None being that of the table."""
    from gatelab.ops.gate_apply import kernels

    way, _, keeps = key
    if way == "forward":
        return partial(kernels.gate_output, given.y_BTHK, given.logits_BTHW, tile=tile)
    kept = given.y_BTHK if keeps else given.z_BTHK
    back = partial(kernels.gate_gradients, given.dz_BTHK, kept, given.logits_BTHW, given.lse_BHT)
    return partial(back, is_output=keeps, dtype=given.logits_BTHW.dtype, tile=tile)


def broken(key: Key, tile: Any, given: Given) -> str:
    """What of a kernel's results breaks the contract, or nothing."""
    way, granularity, keeps = key
    spec, like = GateSpec.parse(f"sdpa-{granularity}"), given.y_BTHK
    for _ in range(2):  # what is not written shows itself
        torch.full((4 * like.numel(),), torch.nan, device=like.device)
    found = run_of(key, tile, given)()
    if way == "forward":
        results, arguments = {"z": found}, {"y": given.y_BTHK, "logits": given.logits_BTHW}
        reference = {"z": lambda y, logits: apply_gate(y, logits, spec)}
    else:
        names = ("dy", "y", "lse", "dlogits")
        results = dict(zip(names, found, strict=True))
        kept = given.y_BTHK if keeps else given.z_BTHK
        arguments = {"dz": given.dz_BTHK, "kept": kept, "logits": given.logits_BTHW, "lse": given.lse_BHT}
        reference = {name: partial(_formula, i, keeps) for i, name in enumerate(names)}
    for name, result in results.items():
        ones = {"grad_BTHK": torch.ones(1, dtype=result.dtype, device=result.device)}
        [verdict] = check(lambda result=result, **_: result, reference[name], arguments | ones)
        if not verdict.holds:
            return f"{name}: error {verdict.error:.3g}, allowed {verdict.allowed:.3g}"
    return ""


def _formula(i: int, keeps: bool, dz: Tensor, kept: Tensor, logits: Tensor, lse: Tensor) -> Tensor:
    return fused._gate_gradients(dz, kept, logits, lse, is_output=keeps, dtype=logits.dtype)[i]


def candidates(key: Key, *, is_small: bool) -> list[Any]:
    """Tiles of a kernel; today's is not among them."""
    from gatelab.ops.gate_apply.kernels import TILES, Tile

    if is_small:
        tiles = [Tile(256, 2, 8), Tile(512, 1, 1, True, FIRST)]
    elif key[:2] == ("back", "headwise"):
        tiles = [Tile(n, w, *order) for order in ORDERS for n, w in ORDERED_CUTS]
        tiles += [Tile(2048, 4, *order, FIRST) for order in ORDERS]
    else:
        tiles = [Tile(*cut) for cut in CUTS] + [Tile(*cut, hint=FIRST) for cut in ((1024, 4), (2048, 4))]
    return [tile for tile in tiles if tile != TILES[key]]


def peers(given: Given, granularity: str, device: torch.device) -> dict[str, Work]:
    """torch.compile's passes of the gate alone, as `bench ops` times them (eager on a CPU), by way; of a headwise gate also the
    way back without the output's gradient, which reads what `flash` does."""
    found = [c for c in gate_candidates(GateSpec.parse(f"sdpa-{granularity}"), device) if not c.is_own][-1]
    of_gate = ops._of_gate(given.arguments, found)
    passes = {"forward": "forward", "back": "backward"}
    out = {way: ops._gate_work(found.call, of_gate, work, 0.0) for way, work in passes.items()}
    if granularity == "headwise":
        alone = ops._of_gate(given.arguments, replace(found, without=("y_BTHK",)))
        out[ALONE] = ops._gate_work(found.call, alone, "backward", 0.0)
    return out


def clean_clock(device: torch.device) -> Measure:
    """As `timing.clock`, but that L2 holds lines that were read alone."""
    dirty, read = (torch.zeros(_CLEAN // 4, device=device) for _ in range(2))

    def measure(work: Work) -> float:
        made = work.before()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        dirty.zero_()
        read.sum()
        torch.cuda._sleep(8_000_000)
        start.record()
        work.run(made)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return measure


def work_of(run: Callable[[], Any]) -> Work:
    return Work(lambda _: run())


def turns(works: dict[Any, Work], rounds: int, whole: Budget, measure: Measure) -> Turns:
    """So many rounds of all after two runs that do not count; behind the end of the budget, three."""
    found, failed = {name: [] for name in works}, {}
    for name, work in works.items():
        try:
            work.run(work.before())
            measure(work)
        except Exception as error:
            failed[name] = why_not(error)
            del found[name]
    for i in range(rounds):
        if i >= _LEAST and not whole.left:
            break
        for name, ms in found.items():
            ms.append(measure(works[name]))
    return Turns({name: Times(tuple(ms), None) for name, ms in found.items()}, failed, rounds)


def told(times: Times, against: dict[str, Times], floor_ms: float | None = None) -> dict[str, Any]:
    """Milliseconds, and quartiles of the ratios within rounds."""
    out: dict[str, Any] = {**spread(list(times.ms)), "rounds": len(times.ms)}
    out |= {} if floor_ms is None else {"floor_ms": floor_ms, "of_floor": out["ms"] / floor_ms}
    for name, base in against.items():
        out[f"to {name}"] = spread([a / b for a, b in zip(times.ms, base.ms, strict=True)])
    return out


def floors(key: Key, given: Given, rates: Rates) -> tuple[float, float]:
    """As `bench ops` has it, and of what the kernel moves itself."""
    way, granularity, keeps = key
    more = 0 if way == "forward" else (not keeps) - (granularity == "headwise")
    n_bytes, work = given.y_BTHK.nbytes, "forward" if way == "forward" else "backward"
    least, own = (rates.ms(gate_bytes(n_bytes, granularity, work, more_passes=n), 0) for n in (min(0, more), more))
    return least, own


def label(key: Key) -> str:
    return f"{key[1]}, {NAMES[key[0], key[2]]}"


def short_of(tile: Any) -> str:
    """As the table writes it."""
    more = [
        f"{n}={json.dumps(v) if isinstance(v, str) else v}"
        for n, v in tile._asdict().items()
        if n in tile._field_defaults and v != tile._field_defaults[n]
    ]
    return f"Tile({', '.join([str(tile.numbers), str(tile.warps), *more])})"


def table(tiles: dict[Key, Any]) -> str:
    """The literal of `kernels.py`."""
    rows = [f'    ("{key[0]}", "{key[1]}", {key[2]}): {short_of(tile)},' for key, tile in tiles.items()]
    return "\n".join(["TILES = {", *rows, "}"])


def adopt(path: Path, tiles: dict[Key, Any]) -> None:
    """Writes the table in the place of the one that a file assigns to TILES."""
    text = path.read_text(encoding="utf-8")
    [node] = [
        n for n in ast.parse(text).body
        if isinstance(n, ast.Assign) and [getattr(t, "id", None) for t in n.targets] == ["TILES"]
    ]  # fmt: skip
    lines = text.splitlines()
    lines[node.lineno - 1 : node.end_lineno] = table(tiles).splitlines()
    ast.parse(new := "\n".join(lines) + "\n")
    path.write_text(new, encoding="utf-8")


class Sweep:
    """What was found; filled step by step, as far as the time goes."""

    def __init__(self, device: torch.device, seconds: float, out: Path | None):
        from gatelab.ops.gate_apply import kernels

        self.device, self.is_small, self.out = device, device.type == "cpu", out
        self.whole, self.begun = Budget.of(seconds), time.perf_counter()
        self.lengths = (8,) if self.is_small else (4096, 32768)
        self.today = dict(kernels.TILES)
        self.candidates = {key: candidates(key, is_small=self.is_small) for key in KEYS}
        self.found: dict[str, Any] = {
            "coarse": {}, "finals": {}, "parts": {}, "broken": {}, "failed": {}, "not_reached": [], "seconds": {}
        }  # fmt: skip
        self.long: dict[tuple[str, int], Given] = {}
        self.peers: dict[tuple[str, int], dict[str, Work]] = {}
        self.short: dict[str, Given] = {}
        self.odd: dict[str, Given] = {}
        self.best: dict[Key, list[Any]] = {}
        self.finals: dict[tuple[Key, int], dict[str, Times]] = {}
        self.measure = clock(device)

    def stamp(self, what: str) -> None:
        self.found["seconds"][what] = round(time.perf_counter() - self.begun, 1)
        print(f"{self.found['seconds'][what]:6.1f} s: {what}", flush=True)
        self.found["table"] = table(self.chosen())
        if self.out:
            self.out.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    def turns(self, works: dict[Any, Work], rounds: int, measure: Measure | None = None) -> Turns:
        return turns(works, _SMALL if self.is_small else rounds, self.whole, measure or self.measure)

    def has_time(self, what: str, least: float = 0.0) -> bool:
        if self.whole.left > least:
            return True
        self.found["not_reached"].append(what)
        return False

    def draw(self) -> None:
        """Long tensors, whose measured copy says the floors."""
        for granularity in ("headwise", "elementwise"):
            for T in self.lengths:
                plan = plan_of(self.device, T)
                self.long[granularity, T] = given_of(plan, granularity, batch=plan.batch, length=T)
        short = plan_of(self.device, 8)
        for granularity in ("headwise", "elementwise"):
            even, odd = (8, 5) if self.is_small else (256, 253)
            self.short[granularity] = given_of(short, granularity, batch=2, length=even)
            self.odd[granularity] = given_of(short, granularity, batch=2, length=odd)
        self.rates = measure_rates(self.device, torch.bfloat16, seconds=0.1 if self.is_small else 1.5)
        self.found["bytes_per_s"] = self.rates.bytes_per_s
        self.stamp("copy rate")

    def compile(self) -> None:
        """Kernels in threads; what one of them could not do, the contract tells. Then torch.compile's passes."""
        for way in (0, 2):  # what threads share is made once
            run_of(KEYS[way], self.today[KEYS[way]], self.short["headwise"])()
        pairs = [(key, tile) for key in KEYS for tile in (self.today[key], *self.candidates[key])]
        pool = ThreadPoolExecutor(1 if self.is_small else _THREADS)
        jobs = {pool.submit(run_of(key, tile, self.short[key[1]])): (key, tile) for key, tile in pairs}
        _, late = wait(jobs, timeout=max(1.0, 0.4 * self.whole.left))
        pool.shutdown(wait=False, cancel_futures=True)
        for key, tile in map(jobs.__getitem__, late):
            self.found["not_reached"].append(f"{label(key)}: {short_of(tile)} was not compiled in time")
            if tile in self.candidates[key]:
                self.candidates[key].remove(tile)
        self.stamp(f"{len(pairs) - len(late)} kernels compiled")
        for (granularity, T), given in self.long.items():
            self.peers[granularity, T] = peers(given, granularity, self.device)
        for work in [w for (_, T), works in self.peers.items() if self.lengths[0] == T for w in works.values()]:
            with suppress(Exception):  # told where it is timed
                work.run(work.before())
        self.stamp("the peer compiled")

    def judge(self, key: Key, tile: Any, given: Given) -> bool:
        name = f"{label(key)}: {short_of(tile)}"
        try:
            why = broken(key, tile, given)
        except Exception as error:
            self.found["failed"][name] = f"{type(error).__name__}: {error}"[:300]
            return False
        if why:
            self.found["broken"][name] = why
        return not why

    def coarse(self) -> None:
        """The fastest candidates of each kernel, by the sum over lengths of their medians over today's."""
        for key in KEYS:
            fit = [tile for tile in self.candidates[key] if self.judge(key, tile, self.short[key[1]])]
            self.judge(key, self.today[key], self.short[key[1]])
            ratios: dict[Any, float] = dict.fromkeys(fit, 0.0)
            for T in self.lengths:
                if not self.has_time(f"coarse, {label(key)}, {T}"):
                    continue
                given = self.long[key[1], T]
                works = {tile: work_of(run_of(key, tile, given)) for tile in (self.today[key], *fit)}
                times = self.turns(works, _COARSE).times
                row = {short_of(tile): told(t, {}, floors(key, given, self.rates)[0]) for tile, t in times.items()}
                self.found["coarse"].setdefault(label(key), {})[str(T)] = row
                if self.today[key] in times:
                    for tile, t in times.items():
                        if tile in ratios:
                            ratios[tile] += t.median / times[self.today[key]].median
            timed = [tile for tile in fit if ratios[tile]]
            self.best[key] = sorted(timed, key=ratios.__getitem__)[:_BEST]
        self.stamp("coarse")

    def final(self, T: int) -> None:
        """The best, today's and the peer in turns; each of the best also at an odd length, by the contract."""
        for key in KEYS:
            if not self.has_time(f"finals, {label(key)}, {T}", 1.0 if not self.is_small else 0.0):
                continue
            if self.lengths[0] == T:
                self.best[key] = [t for t in self.best.get(key, []) if self.judge(key, t, self.odd[key[1]])]
            given = self.long[key[1], T]
            tiles = {TODAY: self.today[key]} | {short_of(t): t for t in self.best[key]}
            works = {name: work_of(run_of(key, tile, given)) for name, tile in tiles.items()}
            works[PEER] = self.peers[key[1], T][key[0]]
            found = self.turns(works, _FINAL)
            self.found["failed"] |= {f"{label(key)}, {T}: {n}": why for n, why in found.failed.items()}
            bases = {n: found.times[n] for n in (TODAY, PEER) if n in found.times}
            least, own = floors(key, given, self.rates)
            row = {n: told(t, bases, least) | {"own_traffic_ms": own} for n, t in found.times.items()}
            self.found["finals"].setdefault(str(T), {})[label(key)] = row
            self.finals[key, T] = found.times
        self.stamp(f"finals at {T}")

    def parts(self, T: int) -> None:
        """The headwise way back in parts; everything once more with an L2 left clean."""
        import gate_parts

        given = self.long["headwise", T]
        clocks = {"L2 overwritten": self.measure} | (
            {} if self.is_small else {"L2 left clean": clean_clock(self.device)}
        )
        for keeps in (True, False):
            key, kept = ("back", "headwise", keeps), given.y_BTHK if keeps else given.z_BTHK
            works = {TODAY: work_of(run_of(key, self.today[key], given))}
            works |= {short_of(t): work_of(run_of(key, t, given)) for t in self.best.get(key, [])[:1]}
            for name, parts in gate_parts.works_of(is_output=keeps).items():
                tensors = (given.dz_BTHK, kept, given.logits_BTHW, given.lse_BHT)
                works[name] = work_of(partial(gate_parts.run, *tensors, parts))
            works[PEER] = self.peers["headwise", T]["back"]
            works[ALONE] = self.peers["headwise", T][ALONE]
            for how, measure in clocks.items():
                if not self.has_time(f"parts, {label(key)}, {how}"):
                    continue
                found = self.turns(works, _PARTS, measure)
                self.found["failed"] |= {f"parts, {label(key)}, {how}: {n}": why for n, why in found.failed.items()}
                base = {TODAY: found.times[TODAY]} if TODAY in found.times else {}
                least = floors(key, given, self.rates)[0]
                row = {n: told(t, base, least) for n, t in found.times.items()}
                self.found["parts"].setdefault(label(key), {})[how] = row
        self.stamp("parts")

    def chosen(self) -> dict[Key, Any]:
        """The table with what beats today's at every length reached."""
        out = dict(self.today)
        for key in self.today:
            reached = [times for (k, _), times in self.finals.items() if k == key and TODAY in times]
            scores = {}
            for tile in self.best.get(key, []):
                runs = [(times[short_of(tile)].ms, times[TODAY].ms) for times in reached if short_of(tile) in times]
                ratios = [spread([a / b for a, b in zip(*run, strict=True)]) for run in runs]
                if ratios and len(ratios) == len(reached) and all(r["high"] < 1 for r in ratios):
                    scores[tile] = statistics.mean(r["ms"] for r in ratios)
            if scores:
                out[key] = min(scores, key=scores.__getitem__)
        return out


def print_rows(title: str, rows: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """One table."""
    print(f"\n{title}\n\n| | ms | quartiles | of floor | to today's | to the peer |\n|" + "---|" * 6)
    for name, row in rows:
        ratios = [row.get(f"to {n}") for n in (TODAY, PEER)]
        words = [f"{r['ms']:.3f} ({r['low']:.3f} to {r['high']:.3f})" if r else "" for r in ratios]
        middle = f"{row['ms']:.4f} | {row['low']:.4f} to {row['high']:.4f} | {row.get('of_floor', 0.0):.3f}"
        print(f"| {name} | {middle} | {' | '.join(words)} |")


def main() -> int:
    """1 where something broke the contract or did not run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a file for the JSON")
    parser.add_argument("--seconds", type=float, default=70.0)
    parser.add_argument("--adopt", action="store_true", help="write the winners into the table of kernels.py")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here; --device cpu runs a small shape in Triton's interpreter")
    # Kernels are interpreted or compiled as this says when they are imported.
    os.environ["TRITON_INTERPRET"] = "1" if asked.device == "cpu" else "0"
    from gatelab.ops.gate_apply import kernels

    torch.manual_seed(0)
    sweep = Sweep(torch.device(asked.device), asked.seconds, asked.out)
    found = sweep.found
    found["about"] = {
        "device": "cpu" if sweep.is_small else torch.cuda.get_device_name(), "torch": torch.__version__,
        "triton": __import__("triton").__version__, "lengths": sweep.lengths, "today": table(sweep.today),
    }  # fmt: skip
    with ops._room_to_compile(plan_of(sweep.device, sweep.lengths[0])):
        sweep.draw()
        sweep.compile()
        sweep.coarse()
        sweep.final(sweep.lengths[0])
        sweep.parts(sweep.lengths[0])
        for T in sweep.lengths[1:]:
            sweep.final(T)
    tiles = sweep.chosen()
    for name, by_length in found["coarse"].items():
        for T, row in by_length.items():
            fastest = sorted(row.items(), key=lambda item: item[1]["ms"])
            print_rows(f"{name}, {T}: {len(row)} tiles, a few rounds each", fastest[:8])
    for T, by_key in found["finals"].items():
        for name, row in by_key.items():
            print_rows(f"{name}, {T}", row.items())
    for name, by_clock in found["parts"].items():
        for how, row in by_clock.items():
            print_rows(f"{name}, {sweep.lengths[0]}, {how}", row.items())
    print(f"\na copy moves {found['bytes_per_s'] / 1e9:.0f} GB/s\n\n{found['table']}\n")
    for what in ("broken", "failed"):
        print(*(f"{what}: {name}: {why}" for name, why in found[what].items()), sep="\n")
    print(f"not reached: {'; '.join(found['not_reached']) or 'nothing'}")
    if asked.adopt and tiles != sweep.today:
        adopt(Path(kernels.__file__), tiles)
        print(f"written into {kernels.__file__}")
    sweep.stamp("all")
    return int(bool(found["broken"] or found["failed"]))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Threads that still compile what was not reached in time are not waited for.
    os._exit(code)
