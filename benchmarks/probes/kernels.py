"""What the probes' kernels cost beside attention: errors against float64, times of one run, memory, other sizes of blocks.

Everything of a length is timed in every round, taking turns, and a ratio is to the fastest attention forward pass of the
same round; a timing has waited for the device on both sides. Usage: python benchmarks/probes/kernels.py --out FOLDER, which
gets kernels.jsonl and kernels.md. Small shapes and other tiles are tried until --seconds are over.
--quick: the same steps at 64 tokens, without a GPU in Triton's interpreter, where times mean nothing.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

START = time.perf_counter()
QUICK = "--quick" in sys.argv
# Kernels are interpreted or compiled as this says when they are imported.
os.environ["TRITON_INTERPRET"] = "1" if QUICK else "0"
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import triton  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from gatelab.ops.attention_stats import identities, kernels  # noqa: E402
from gatelab.ops.attention_stats.kernels import Tiles  # noqa: E402

Call = Callable[[], Any]
DEVICE = "cpu" if QUICK else "cuda"
FORWARD = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
LENGTHS = (64,) if QUICK else (4096, 32768, 131072)
# Where the gradient's way and other tiles are timed.
MIDDLE = 64 if QUICK else 32768
H, K = (4, 16) if QUICK else (16, 128)
KV_HEADS = (H, 2) if QUICK else (H, 4)
ROUNDS = 2 if QUICK else 7
TINY = (Tiles(16, 32, 4, 2), Tiles(32, 16, 4, 2))
COLUMN_TILES = TINY if QUICK else (
    kernels.COLUMN_TILES[0], Tiles(256, 64, 8, 3, 128), Tiles(128, 64, 4, 2, 168), Tiles(128, 128, 8, 2, 128),
    Tiles(128, 64, 4, 3), Tiles(64, 128, 4, 2, 168), Tiles(128, 128, 8, 3), Tiles(256, 128, 8, 2),
)  # fmt: skip
ROW_TILES = TINY if QUICK else (
    kernels.ROW_TILES[0], Tiles(128, 64, 4, 2, 168), Tiles(128, 128, 8, 2), Tiles(64, 128, 4, 2, 168),
    Tiles(256, 64, 8, 2, 128), Tiles(128, 64, 4, 3),
)  # fmt: skip
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


class Small(NamedTuple):
    """A shape whose weights fit in float64."""

    T: int
    S: int
    H: int
    G: int
    K: int
    dtype: torch.dtype = BF16
    is_causal: bool = True
    window: int | None = None


SMALL = (Small(37, 50, 4, 2, 16), Small(40, 40, 2, 1, 24, FP32, True, 9), Small(33, 33, 2, 1, 16, FP16)) if QUICK else (
    Small(1000, 1000, 16, 16, 128), Small(777, 1301, 8, 2, 128), Small(1500, 1500, 8, 1, 128, BF16, True, 333),
    Small(1025, 1025, 4, 4, 128, BF16, False), Small(900, 901, 4, 2, 128, BF16, False, 200), Small(1, 999, 8, 2, 128),
    Small(999, 999, 4, 2, 64), Small(500, 777, 4, 2, 128, FP32), Small(513, 513, 2, 1, 80, FP16), Small(511, 511, 2, 1, 256),
)  # fmt: skip


def drawn(T: int, S: int, n_heads: int, n_kv_heads: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    q_BTHK = torch.randn(1, T, n_heads, head_dim, device=DEVICE, dtype=dtype)
    return q_BTHK, torch.randn(1, S, n_kv_heads, head_dim, device=DEVICE, dtype=dtype)


def results(functions: Any, q: Tensor, k: Tensor, lse: Tensor, masks: dict[str, Any]) -> dict[str, Tensor]:
    out = {name.split("_")[0]: t for name, t in vars(functions.row_stats(q, k, **masks)).items()}
    out["columns"] = functions.column_sums(q, k, lse, **masks)
    out["first_mass"] = functions.first_mass(q, k, lse, n_first=4, **masks)
    out["mean_first_mass"] = functions.mean_first_mass(q, k, lse, n_first=4, skip=k.shape[1] // 2, **masks)
    return out


def errors(small: Small) -> dict[str, Any]:
    """Largest error of each result relative to its largest value, against float64."""
    q, k = drawn(small.T, small.S, small.H, small.G, small.K, small.dtype)
    masks = {"is_causal": small.is_causal, "window": small.window}
    lse = identities.row_stats(q.double(), k.double(), **masks).lse_BHT.float()
    exact = results(identities, q.double(), k.double(), lse.double(), masks)
    found = results(kernels, q, k, lse, masks)
    out = {}
    for name, truth in exact.items():
        hidden = ~truth.isfinite()
        if bool((found[name].isfinite() == hidden).any()):
            out[name] = math.nan
            continue
        distance, size = (
            (t.masked_fill(hidden, 0.0)).abs().max().item() for t in (found[name].double() - truth, truth)
        )
        out[name] = distance / (size or 1.0)
    kind = small._asdict() | {"dtype": str(small.dtype)}
    return {"kind": "error", **kind, "errors": out, "holds": all(e < 2e-5 for e in out.values())}


def errors_at_length(q: Tensor, k: Tensor) -> dict[str, Any]:
    """Σ of the columns against the number of queries, and a few rows and columns of one head against float64."""
    S = q.shape[1]
    rows = kernels.row_stats(q, k)
    columns_BHS = kernels.column_sums(q, k, rows.lse_BHT)
    h, some = q.shape[2] - 1, torch.linspace(0, S - 1, 8, device=DEVICE).long()
    q_TK, k_SK = q[0, :, h].double() / q.shape[3] ** 0.5, k[0, :, -1].double()
    place_S = torch.arange(S, device=DEVICE)
    lse_T = (q_TK[some] @ k_SK.T).masked_fill(place_S > some[:, None], -torch.inf).logsumexp(-1)
    p_TS = (q_TK @ k_SK[some].T - rows.lse_BHT[0, h].double()[:, None]).exp() * (place_S[:, None] >= some)
    found = {
        "total": (columns_BHS.double().sum(-1) / S - 1).abs().max().item(),
        "lse": (rows.lse_BHT[0, h, some] - lse_T).abs().max().item(),
        "columns": (columns_BHS[0, h, some] / p_TS.sum(0) - 1).abs().max().item(),
    }
    return {"kind": "error at length", "S": S, "G": k.shape[2], "errors": found, "holds": max(found.values()) < 1e-4}


def milliseconds(call: Call, n: int) -> float:
    """Of one of n calls."""
    if QUICK:
        start = time.perf_counter()
        for _ in range(n):
            call()
        return 1e3 * (time.perf_counter() - start) / n
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    # So that launching the calls is not what is timed.
    torch.cuda._sleep(20_000_000)
    start.record()
    for _ in range(n):
        call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / n


def warmed(makers: dict[str, Callable[[], Call]], deadline: float, log: list[dict]) -> dict[str, Call]:
    """The calls that run, compiled and once made; the others are logged with the reason."""
    running = {}
    for name, maker in makers.items():
        try:
            if time.perf_counter() - START > deadline:
                raise TimeoutError(f"{deadline:.0f} seconds are over")
            call = maker()
            call()
            running[name] = call
        except Exception as error:  # a device or a torch without one of them: the others are timed
            log.append({"kind": "does not run", "what": name, "why": f"{type(error).__name__}: {error}"[:300]})
    return running


def extra_mib(call: Call) -> float | None:
    """Peak memory of a call beyond what was there, its result included."""
    if QUICK:
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def timed(makers: dict[str, Callable[[], Call]], log: list[dict], *, deadline: float = math.inf, **about: Any) -> None:
    """One row a call: median, least and most of the rounds, and of the ratio to the round's fastest forward pass."""
    running = warmed(makers, deadline, log)
    n = {name: 1 if QUICK else max(1, min(20, int(2.0 / milliseconds(call, 1)))) for name, call in running.items()}
    times = {name: [] for name in running}
    for _ in range(ROUNDS):
        for name, call in running.items():
            times[name].append(milliseconds(call, n[name]))
    forward = [times[name] for name in times if name.startswith("forward")]
    fastest = [min(round_) for round_ in zip(*forward, strict=True)]
    for name, ms in times.items():
        ratios = [a / b for a, b in zip(ms, fastest, strict=True)] if fastest else None
        log.append({
            "kind": "time", "what": name, **about, "ms": statistics.median(ms), "least": min(ms), "most": max(ms),
            "of_forward": statistics.median(ratios) if ratios else None, "rounds": ROUNDS,
            "extra_mib": extra_mib(running[name]),
        })  # fmt: skip


def forward(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    with sdpa_kernel([backend]):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def by_gradient(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend) -> Call:
    """Column sums as dL/dv where L is the sum of the output, summed over the heads that share v; the forward pass is done."""
    v = v.detach().requires_grad_()
    y = forward(q, k, v, backend)
    ones = torch.ones_like(y)
    return lambda: torch.autograd.grad(y, v, ones, retain_graph=True)[0][..., 0]


def measure(S: int, G: int, log: list[dict]) -> None:
    """Forward passes and kernels at one length."""
    q, k = drawn(S, S, H, G, K, torch.bfloat16)
    v = torch.randn_like(k)
    log.append(errors_at_length(q, k))
    lse = kernels.row_stats(q, k).lse_BHT
    makers = {f"forward, {name}": lambda b=b: partial(forward, q, k, v, b) for name, b in FORWARD.items()}
    if G < H:
        # Should a backend know no groups: its time without them.
        k_H, v_H = (t.repeat_interleave(H // G, dim=2) for t in (k, v))
        for name, b in FORWARD.items():
            makers[f"forward, {name}, {H} kv heads"] = lambda b=b: partial(forward, q, k_H, v_H, b)
    makers |= {
        "mean_first_mass": lambda: partial(kernels.mean_first_mass, q, k, lse, skip=1),
        "first_mass": lambda: partial(kernels.first_mass, q, k, lse),
        "first_mass of 16": lambda: partial(kernels.first_mass, q, k, lse, n_first=16),
        "row_stats": lambda: partial(kernels.row_stats, q, k),
        "column_sums": lambda: partial(kernels.column_sums, q, k, lse),
    }
    if S == MIDDLE:
        makers |= {f"column sums, gradient, {name}": lambda b=b: by_gradient(q, k, v, b) for name, b in FORWARD.items()}
    timed(makers, log, S=S, G=G)


def race(S: int, deadline: float, log: list[dict]) -> None:
    """Other tiles than those of the tables, as long as there is time to compile them."""
    q, k = drawn(S, S, H, H, K, torch.bfloat16)
    lse = kernels.row_stats(q, k).lse_BHT
    columns = {t: lambda t=t: partial(kernels.column_sums, q, k, lse, tiles=t) for t in COLUMN_TILES}
    rows = {t: lambda t=t: partial(kernels.row_stats, q, k, tiles=t) for t in ROW_TILES}
    for what, makers in (("column_sums", columns), ("row_stats", rows)):
        named = {f"{what}, tiles {' '.join(str(x) for x in t)}": maker for t, maker in makers.items()}
        timed(named, log, deadline=deadline, S=S, G=H)


def written(log: list[dict], folder: Path) -> str:
    """The rows so far and a table of them, as files; returns the table."""
    lines = [log[0]["device"], "", "| against float64 | largest relative errors | holds |", "|---|---|---|"]
    for row in (r for r in log if r["kind"].startswith("error")):
        shape = ", ".join(f"{n} {v}" for n, v in row.items() if n not in ("kind", "errors", "holds"))
        found = ", ".join(f"{n} {e:.1e}" for n, e in row["errors"].items())
        lines.append(f"| {shape} | {found} | {'yes' if row['holds'] else 'NO'} |")
    head = "| S | kv heads | what | median ms | least to most | of the forward pass | extra MiB |"
    lines += ["", head, "|" + "---|" * 7]
    for row in (r for r in log if r["kind"] == "time"):
        ratio, extra = ("" if x is None else f"{x:.4f}" for x in (row["of_forward"], row["extra_mib"]))
        times = f"{row['ms']:.4f} | {row['least']:.4f} to {row['most']:.4f}"
        lines.append(f"| {row['S']} | {row['G']} | {row['what']} | {times} | {ratio} | {extra} |")
    lines += ["", *(f"Does not run: {r['what']}: {r['why']}" for r in log if r["kind"] == "does not run")]
    text = "\n".join([*lines, "", f"{time.perf_counter() - START:.0f} seconds in all."])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log), encoding="utf-8")
    (folder / "kernels.md").write_text(text + "\n", encoding="utf-8")
    return text


def main() -> int:
    """1 where an error is too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--seconds", type=float, default=95.0, help="no more is tried after these")
    parser.add_argument("--quick", action="store_true", help="a walk through it without a GPU")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    name = "a CPU, interpreted" if QUICK else torch.cuda.get_device_name()
    about = f"{name}, torch {torch.__version__}, Triton {triton.__version__}, {H} heads of {K}, bfloat16, causal, "
    log = [{"kind": "about", "device": f"{about}{ROUNDS} rounds"}]
    for S in LENGTHS:
        for G in KV_HEADS:
            measure(S, G, log)
            written(log, arguments.out)
    for small in SMALL:
        if time.perf_counter() - START < arguments.seconds:
            log.append(errors(small))
    written(log, arguments.out)
    race(MIDDLE, arguments.seconds, log)
    print(written(log, arguments.out))
    return 0 if all(row.get("holds", True) for row in log) else 1


if __name__ == "__main__":
    sys.exit(main())
