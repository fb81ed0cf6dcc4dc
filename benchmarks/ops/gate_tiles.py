"""How the gate's kernels are best cut on this device, and what the headwise way back spends its time on.

    python benchmarks/ops/gate_tiles.py [--out FILE] [--seconds 70] [--adopt] [--device cpu]

bfloat16 on a CUDA device, 32,768 tokens in all, 16 heads of 128, at 4,096 and 32,768 tokens a sequence, in the layouts and by
the clock of `gatelab bench ops`: logits are slices of a packed projection's output, before each timing the L2 cache is
overwritten. Every tile must give what today's gives, which the tests hold to the numeric contract. All have 7 rounds; the
fastest of each kernel, today's and torch.compile's then take turns in 50; behind them parts of the headwise way back
(`gate_parts.py`). Tables go to the terminal, JSON to --out. --adopt writes into the table of
`gatelab/ops/gate_apply/kernels.py` what beats today's at both lengths by the upper quartile of its ratios. What is not reached
in --seconds is named. --device cpu: a small shape in Triton's interpreter, whose times say nothing. It leaves with 1 where
something else was given or something did not run.
"""

import argparse
import ast
import itertools
import json
import math
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import torch
from rounds import spread
from torch import Tensor

from gatelab.bench import ops
from gatelab.bench.candidates import gate_candidates, often_compiled
from gatelab.bench.floors import gate_bytes, measure_rates
from gatelab.bench.plan import OpsPlan
from gatelab.bench.slices import drawn
from gatelab.bench.timing import Budget, Measure, Work, clock, why_not
from gatelab.config import GateSpec

NAMES = {("forward", None): "forward", ("back", True): "back, flash", ("back", False): "back, flash-lean"}
TODAY, PEER = "today's", "peer"
# Numbers a program and warps: 8 to 32 numbers a thread; and those that are tried with a hint, too.
CUTS = ((512, 1), (1024, 2), (1024, 4), (2048, 2), (2048, 4), (2048, 8), (4096, 4), (4096, 8), (8192, 8))
HINTED, HINT = ((1024, 4), (2048, 4), (2048, 8)), "evict_first"
_LEAST, _COARSE, _FINAL, _SMALL = 3, 7, 50, 2  # rounds, the last of a small shape
_BEST = 3

Key = tuple[str, str, bool | None]
Ms = dict[str, list[float]]
Rows = dict[str, dict[str, Any]]


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
    heads, K, tokens = (2, 16, 2 * length) if device.type == "cpu" else (16, 128, 32768)
    sizes = {"heads": heads, "kv_heads": heads, "head_dim": K, "tokens": tokens, "length": length}
    return OpsPlan(device=device.type, seconds=70, dtype="bfloat16", gates=("sdpa-headwise",), **sizes)


def given_of(plan: OpsPlan, granularity: str, *, batch: int, length: int) -> Given:
    arguments = drawn(plan, GateSpec.parse(f"sdpa-{granularity}"), batch=batch, length=length)
    y, logits = arguments["q_BTHK"].detach().contiguous(), arguments["gate_logits_BTHK"].detach()
    z, lse = (y.float() * logits.float().sigmoid()).to(y.dtype), torch.randn(batch, y.shape[2], length, device=y.device)
    return Given(arguments["grad_BTHK"], y, z, logits, lse, arguments)


def run_of(key: Key, tile: Any, given: Given) -> Callable[[], Any]:
    from gatelab.ops.gate_apply import kernels

    way, _, keeps = key
    if way == "forward":
        return partial(kernels.gate_output, given.y_BTHK, given.logits_BTHW, tile=tile)
    kept = given.y_BTHK if keeps else given.z_BTHK
    back = partial(kernels.gate_gradients, given.dz_BTHK, kept, given.logits_BTHW, given.lse_BHT)
    return partial(back, is_output=keeps, dtype=given.logits_BTHW.dtype, tile=tile)


def differs(key: Key, tile: Any, today: Any, given: Given) -> str:
    """What of a tile's results is not today's, or why there are none, or nothing."""
    try:
        wanted = run_of(key, today, given)()
        for _ in range(2):  # what is not written shows itself
            torch.full((4 * given.y_BTHK.numel(),), torch.nan, device=given.y_BTHK.device)
        found = run_of(key, tile, given)()
        for pair in [(found, wanted)] if isinstance(found, Tensor) else zip(found, wanted, strict=True):
            torch.testing.assert_close(*pair)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def candidates(key: Key, *, is_small: bool) -> list[Any]:
    """Tiles of a kernel; today's is not among them."""
    from gatelab.ops.gate_apply.kernels import TILES, Tile

    apart = (False, True) if key[:2] == ("back", "headwise") else (False,)
    tiles = [Tile(*cut, a) for a in apart for cut in CUTS] + [Tile(*cut, a, HINT) for a in apart for cut in HINTED]
    tiles = [Tile(256, 2), Tile(512, 1, True, HINT)] if is_small else tiles
    return [tile for tile in tiles if tile != TILES[key]]


def peers(given: Given, granularity: str, device: torch.device) -> dict[str, Work]:
    """torch.compile's passes of the gate alone, as `bench ops` times them (eager on a CPU), by way."""
    found = [c for c in gate_candidates(GateSpec.parse(f"sdpa-{granularity}"), device) if not c.is_own][-1]
    of_gate = ops._of_gate(given.arguments, found)
    passes = (("forward", "forward"), ("back", "backward"))
    return {way: ops._gate_work(found.call, of_gate, work, 0.0) for way, work in passes}


def label(key: Key) -> str:
    return f"{key[1]}, {NAMES[key[0], key[2]]}"


def short_of(tile: Any) -> str:
    """As the table writes it."""
    more = [(n, v) for n, v in tile._asdict().items() if v != tile._field_defaults.get(n, v)]
    words = [f"{n}={json.dumps(v) if isinstance(v, str) else v}" for n, v in more]
    return f"Tile({', '.join([str(tile.numbers), str(tile.warps), *words])})"


def table(tiles: dict[Key, Any]) -> str:
    """The literal of `kernels.py`."""
    rows = [f'    ("{key[0]}", "{key[1]}", {key[2]}): {short_of(tile)},' for key, tile in tiles.items()]
    return "\n".join(["TILES = {", *rows, "}"])


def adopt(path: Path, tiles: dict[Key, Any]) -> None:
    """Write the table in the place of the one that a file assigns to TILES."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assigned = [n for n in ast.parse("\n".join(lines)).body if isinstance(n, ast.Assign)]
    [node] = [n for n in assigned if [getattr(t, "id", None) for t in n.targets] == ["TILES"]]
    lines[node.lineno - 1 : node.end_lineno] = table(tiles).splitlines()
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Sweep:
    """What was found, in `found`; filled kernel by kernel, as far as the time goes."""

    def __init__(self, device: torch.device, seconds: float):
        from gatelab.ops.gate_apply import kernels

        self.device, self.is_small, self.whole = device, device.type == "cpu", Budget.of(seconds)
        self.lengths = (8,) if self.is_small else (4096, 32768)
        self.today, self.tiles, self.measure = kernels.TILES, dict(kernels.TILES), clock(device)
        self.found: dict[str, Any] = {n: {} for n in ("coarse", "finals", "parts", "broken", "failed")}
        self.found |= {"not_reached": [], "today": table(self.today), "torch": torch.__version__}
        self.found["device"] = "cpu" if self.is_small else torch.cuda.get_device_name()
        self.candidates = {key: candidates(key, is_small=self.is_small) for key in self.today}
        self.best: dict[Key, list[Any]] = {}
        self.long, self.few = {}, {}  # what is timed; and with even and odd numbers of rows, what is compared
        for g in ("headwise", "elementwise"):
            for plan in (plan_of(device, T) for T in self.lengths):
                self.long[g, plan.length] = given_of(plan, g, batch=plan.batch, length=plan.length)
            few = (8, 5) if self.is_small else (256, 253)
            self.few[g] = [given_of(plan_of(device, 8), g, batch=2, length=T) for T in few]
        self.rates = measure_rates(device, torch.bfloat16, seconds=0.1 if self.is_small else 1.5)
        self.found["bytes_per_s"] = self.rates.bytes_per_s
        self.peers = {(g, T): peers(given, g, device) for (g, T), given in self.long.items()}

    def compile(self) -> None:
        """All kernels, in threads; what one of them cannot do is told where it is compared."""
        for key, tile in self.today.items():  # what threads share is made once
            run_of(key, tile, self.few[key[1]][0])()
        with ThreadPoolExecutor(1 if self.is_small else os.cpu_count()) as pool:
            for key, tile in ((key, tile) for key, tiles in self.candidates.items() for tile in tiles):
                pool.submit(run_of(key, tile, self.few[key[1]][0]))

    def turns(self, name: str, works: dict[str, Work], rounds: int, measure: Measure | None = None) -> Ms:
        """Milliseconds in so many rounds of all, behind two runs that do not count; three rounds once the time is over."""
        measure, found = measure or self.measure, {}
        for what, work in works.items():
            try:
                work.run(work.before())
                measure(work)
                found[what] = []
            except Exception as error:
                self.found["failed"][f"{name}: {what}"] = why_not(error)
        for i in range(_SMALL if self.is_small else rounds):
            if i >= _LEAST and not self.whole.left:
                break
            for what, ms in found.items():
                ms.append(measure(works[what]))
        return found

    def works(self, key: Key, T: int, tiles: list[Any]) -> dict[str, Work]:
        """Today's and these."""
        named = {TODAY: self.today[key]} | {short_of(tile): tile for tile in tiles}
        runs = {name: run_of(key, tile, self.long[key[1], T]) for name, tile in named.items()}
        return {name: Work(lambda _, run=run: run()) for name, run in runs.items()}

    def told(self, key: Key, T: int, times: Ms) -> Rows:
        """Milliseconds, over the floor that `bench ops` has, and quartiles of the ratios within rounds."""
        way, granularity, keeps = key
        fewer = 0 if way == "forward" else min(0, (not keeps) - (granularity == "headwise"))
        work, n_bytes = "forward" if way == "forward" else "backward", self.long[granularity, T].y_BTHK.nbytes
        floor = self.rates.ms(gate_bytes(n_bytes, granularity, work, more_passes=fewer), 0)
        rows = {name: {**spread(ms), "rounds": len(ms), "floor_ms": floor} for name, ms in times.items()}
        for (name, row), base in itertools.product(rows.items(), {TODAY, PEER} & set(times)):
            row[f"to {base}"] = spread([a / b for a, b in zip(times[name], times[base], strict=True)])
        return rows

    def holds(self, key: Key, tile: Any) -> bool:
        """Whether a tile gives what today's gives; tells it where it does not."""
        why = [differs(key, tile, self.today[key], given) for given in self.few[key[1]]]
        if any(why):
            self.found["broken"][f"{label(key)}: {short_of(tile)}"] = "; ".join(filter(None, why))
        return not any(why)

    def reached(self, what: str) -> bool:
        if not self.whole.left:
            self.found["not_reached"].append(what)
        return self.whole.left > 0

    def sweep(self, key: Key) -> None:
        """All tiles of a kernel, a few rounds each; then the best, by the sum over lengths of medians over today's."""
        name = label(key)
        if not self.reached(name):
            return
        tiles, sums = [tile for tile in self.candidates[key] if self.holds(key, tile)], {}
        for T in self.lengths:
            rows = self.told(key, T, self.turns(f"{name}, {T}", self.works(key, T, tiles), _COARSE))
            self.found["coarse"].setdefault(name, {})[str(T)] = rows
            for tile in tiles:
                ratio = rows.get(short_of(tile), {}).get(f"to {TODAY}", {"ms": math.inf})["ms"]
                sums[tile] = sums.get(tile, 0.0) + ratio
        self.best[key], ratios = sorted(sums, key=sums.__getitem__)[:_BEST], {}
        for T in self.lengths:
            if not self.reached(f"finals, {name}, {T}"):
                return
            works = self.works(key, T, self.best[key]) | {PEER: self.peers[key[1], T][key[0]]}
            rows = self.told(key, T, self.turns(f"{name}, {T}", works, _FINAL))
            self.found["finals"].setdefault(name, {})[str(T)] = rows
            for tile in self.best[key]:
                ratios.setdefault(tile, []).append(rows.get(short_of(tile), {}).get(f"to {TODAY}"))
        better = {t: sum(r["ms"] for r in of) for t, of in ratios.items() if all(r and r["high"] < 1 for r in of)}
        self.tiles[key] = min(better, key=better.__getitem__, default=self.today[key])

    def save(self, out: Path | None) -> None:
        """As JSON, with the table as far as it is found."""
        self.found["table"] = table(self.tiles)
        if out:
            out.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")


def print_rows(title: str, rows: Rows) -> None:
    """One table, the fastest first."""
    print(f"\n{title}\n\n| | ms | quartiles | of floor | to today's | to the peer |\n|" + "---|" * 6)
    for name, row in sorted(rows.items(), key=lambda item: item[1]["ms"]):
        ratios = [row.get(f"to {n}") for n in (TODAY, PEER)]
        words = [f"{r['ms']:.3f} ({r['low']:.3f} to {r['high']:.3f})" if r else "" for r in ratios]
        middle = f"{row['ms']:.4f} | {row['low']:.4f} to {row['high']:.4f} | {row['ms'] / row['floor_ms']:.3f}"
        print(f"| {name} | {middle} | {' | '.join(words)} |")


def main() -> int:
    """1 where something else was given or something did not run."""
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
    device = torch.device(asked.device)
    with often_compiled(asked.device):
        sweep = Sweep(device, asked.seconds)
        sweep.compile()
        for key in sweep.today:
            sweep.sweep(key)
            sweep.save(asked.out)
            print(f"{label(key)}; {sweep.whole.left:.1f} s left", flush=True)
        import gate_parts

        gate_parts.time_parts(sweep)
        sweep.save(asked.out)
    found = sweep.found
    for what in ("coarse", "finals", "parts"):
        for name, tables in found[what].items():
            for at, rows in tables.items():
                print_rows(f"{what}: {name}, {at}", rows)
    print(f"\na copy moves {found['bytes_per_s'] / 1e9:.0f} GB/s\n\n{found['table']}\n")
    for what in ("broken", "failed"):
        print("".join(f"{what}: {name}: {why}\n" for name, why in found[what].items()), end="")
    print(f"not reached: {'; '.join(found['not_reached']) or 'nothing'}")
    if asked.adopt and sweep.tiles != sweep.today:
        adopt(Path(kernels.__file__), sweep.tiles)
        print(f"written into {kernels.__file__}")
    return int(bool(found["broken"] or found["failed"]))


if __name__ == "__main__":
    sys.exit(main())
