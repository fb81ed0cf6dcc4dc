"""The same statistics from `observe` and from all attention matrices (`output_attentions=True`): time and memory.

    python benchmarks/probes/against_eager.py [--tokens 8192] [--device cuda] [--out FILE.jsonl]

Random weights, bfloat16 on a GPU, of two shapes: SmolLM2-135M's, and four layers of a model of 16 heads of 128, in which
attention counts for more. The matrices' route gives first-token mass, every key's importance, entropy and focus, layer by
layer in float32, after the pass that returns the matrices; the probes `sinks`, `anywhere` and `shape` give these and more.
Passes take turns; medians of --repeats after one of each that is not counted.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from turns import compared, tell

from gatelab.bench.probe import from_matrices
from gatelab.probes.external import observe

NAMES = ["sinks", "anywhere", "shape"]
SHAPES = {
    "30 layers, 9 heads of 64": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "4 layers, 16 heads of 128": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 4, "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
}  # fmt: skip


@torch.no_grad()
def build(shape: dict[str, int], device: str) -> nn.Module:
    """A decoder without its head."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(vocab_size=4096, max_position_embeddings=131_072, use_cache=False, **shape)
    model = LlamaModel._from_config(config, attn_implementation="sdpa").eval().to(device)
    return model.bfloat16() if device == "cuda" else model


@torch.no_grad()
def matrices(model: nn.Module, ids_BT: Tensor) -> None:
    """All maps, as transformers returns them."""
    model.set_attn_implementation("eager")
    model(ids_BT, output_attentions=True)
    model.set_attn_implementation("sdpa")


@torch.no_grad()
def plain(model: nn.Module, ids_BT: Tensor) -> None:
    """The pass alone, through torch's fused attention."""
    model(ids_BT)


@torch.no_grad()
def probed(model: nn.Module, ids_BT: Tensor) -> None:
    """The pass with the probes, and their rows."""
    with observe(model, NAMES) as recorder:
        model(ids_BT)
    recorder.rows()


PASSES = {"plain": plain, "probes": probed, "matrices": matrices, "matrices and statistics": from_matrices}


def measured(work: Callable[[], object], device: str) -> tuple[float, int]:
    """Seconds, and on a GPU the peak of bytes beyond those before."""
    if device == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start, 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, start = torch.cuda.memory_allocated(), time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() - before


def main() -> None:
    """Measure, print, append records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    machine = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {torch.get_num_threads()} thread"
    print(f"{given.tokens} tokens on {machine}, torch {torch.__version__}; probes {', '.join(NAMES)}")
    for title, shape in SHAPES.items():
        model = build(shape, given.device)
        ids_BT = torch.randint(0, 4096, (1, given.tokens), device=given.device)
        works = {name: partial(work, model, ids_BT) for name, work in PASSES.items()}
        for name, record in compared(works, measured, given.device, given.repeats).items():
            about = {"shape": title, "pass": name, "tokens": given.tokens, "machine": machine}
            tell(f"{title:26} {name:24}", about | record, given.out)


if __name__ == "__main__":
    main()
