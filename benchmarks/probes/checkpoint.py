"""What looking at a checkpoint costs: time and memory of the probes, against the plain pass and against eager attention.

    python benchmarks/probes/checkpoint.py MODEL [--device cuda] [--lengths 4096,8192,...] [--eager 8192] [--out FILE.jsonl]

MODEL: a folder or .gguf file of a decoder. Random tokens, since time and memory depend on how many there are. Plain and
probed passes take turns; medians of --repeats, after one pass of each that is not counted. On a GPU memory is torch's peak beyond
what was there before the pass, the cache included; on a CPU the growth of the largest resident set, one process a row.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from turns import compared, tell

from gatelab.models.external import Extension, Loading, open_external
from gatelab.probes import PROBES
from gatelab.probes.external import observe, read_in_stretches

AT_ONCE = 2048


def model_of(path: Path, device: str, length: int) -> nn.Module:
    """In bfloat16 on a GPU and float32 on a CPU, with positions for `length` tokens."""
    dtype = "bfloat16" if device == "cuda" else "float32"
    loading = Loading(device=device, dtype=dtype)
    limit = open_external(path, loading).max_tokens
    extension = Extension(length=length) if limit is not None and length > limit else None
    return open_external(path, Loading(device=device, dtype=dtype, extension=extension)).load().model


@torch.no_grad()
def plain(model: nn.Module, ids_BT: Tensor) -> None:
    """The pass without probes, in the same stretches."""
    from transformers import DynamicCache

    if ids_BT.shape[1] <= AT_ONCE:
        model(ids_BT)
        return
    cache = DynamicCache(config=model.config)
    for piece_BT in ids_BT.split(AT_ONCE, dim=1):
        model(input_ids=piece_BT, past_key_values=cache, use_cache=True)


@torch.no_grad()
def probed(model: nn.Module, ids_BT: Tensor, names: list[str] | None) -> None:
    """The same pass, observed."""
    with observe(model, names) as recorder:
        if ids_BT.shape[1] <= AT_ONCE:
            model(ids_BT)
        else:
            read_in_stretches(model, ids_BT, recorder, at_once=AT_ONCE)
    recorder.rows()


@torch.no_grad()
def eager(model: nn.Module, ids_BT: Tensor) -> None:
    """All attention matrices at once, as transformers returns them."""
    model.set_attn_implementation("eager")
    model(ids_BT, output_attentions=True)
    model.set_attn_implementation("sdpa")


def measured(work: Callable[[], None], device: str) -> tuple[float, int]:
    """Seconds and peak bytes beyond those before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return time.perf_counter() - start, peak - before


def main() -> None:
    """Measure, print a table, append records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--lengths", default="2048")
    parser.add_argument("--eager", type=int, default=0, help="also all attention matrices, at this length")
    parser.add_argument("--probes", default="", help="names, joined by commas; all without")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    names = given.probes.split(",") if given.probes else None
    lengths = sorted({int(n) for n in given.lengths.split(",")} | ({given.eager} if given.eager else set()))
    if given.device == "cpu" and len(lengths) > 1:
        for n in lengths:  # a process's largest resident set never shrinks
            alone = [f"--lengths={n}", f"--eager={n if n == given.eager else 0}"]  # the last word of an option counts
            subprocess.run([sys.executable, __file__, *sys.argv[1:], *alone], check=True)
        return
    machine = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {torch.get_num_threads()} thread"
    print(f"{given.model.name} on {machine}, torch {torch.__version__}; {', '.join(names or PROBES)}")
    for n in lengths:
        model = model_of(given.model, given.device, n)
        ids_BT = torch.randint(0, model.config.vocab_size, (1, n), device=given.device)
        works: dict[str, Callable[[], None]] = {
            "plain": lambda model=model, ids=ids_BT: plain(model, ids),
            "probed": lambda model=model, ids=ids_BT: probed(model, ids, names),
        }
        if n == given.eager:
            works["eager"] = lambda model=model, ids=ids_BT: eager(model, ids)
        for name, record in compared(works, measured, given.device, given.repeats if n <= 32_768 else 1).items():
            record |= {"pass": name, "tokens": n, "model": given.model.name, "machine": machine}
            tell(f"{n:>7} {name:>7}", record, given.out)


if __name__ == "__main__":
    main()
