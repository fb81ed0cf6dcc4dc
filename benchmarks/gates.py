"""What a gate costs: step time of every preset against no gate, and of packed against separate projections.

Forward and backward of a small decoder; all variants are timed in every round, taking turns, and a variant's ratio is to
the ungated model of the same round, so that a busy machine slows both. Usage: python benchmarks/gates.py [--rounds N]
[--only preset,…]. On a CUDA device the models are larger, compute in bfloat16 and are compiled.
"""

import argparse
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gatelab.bench.timing import Work, wall_clock
from gatelab.config import PRESETS, ModelConfig, MoE, override
from gatelab.models import build_model
from gatelab.models.sizes import count_parameters
from gatelab.nn.attention import GatedAttention

IS_CUDA = torch.cuda.is_available()
CLOCK = wall_clock(torch.device("cuda" if IS_CUDA else "cpu"))
WIDTHS = {"d_model": 2048, "n_heads": 16, "n_kv_heads": 8, "d_ff": 6144} if IS_CUDA else {
    "d_model": 256, "n_heads": 8, "n_kv_heads": 4, "d_ff": 672
}  # fmt: skip
B, T = (4, 4096) if IS_CUDA else (4, 256)
BASE = ModelConfig(vocab_size=4096, max_seq_len=T, n_layers=2, **WIDTHS)
MIXTURE = override(BASE, {"d_ff": None, "moe": MoE(n_experts=8, top_k=2, d_expert=WIDTHS["d_ff"] // 2)})


@dataclass(frozen=True)
class Variant:
    """A model's step to time; `against` names the variant it is compared with."""

    name: str
    config: ModelConfig
    against: str = "no gate"
    is_packed: bool = False


def variants(only: list[str]) -> list[Variant]:
    """No gate; every preset; packed projections with no gate and with the widest gate."""
    out = [Variant("no gate", BASE)]
    for name, preset in PRESETS.items():
        if name == "paper/base" or (only and name not in only):
            continue
        is_mixture = name == "paper/more-experts"
        if is_mixture:
            out.append(Variant("no gate, experts", MIXTURE))
        model = MIXTURE if is_mixture else BASE
        out.append(Variant(name, override(model, preset.of(model)), "no gate, experts" if is_mixture else "no gate"))
    gated = override(BASE, {"gate": "sdpa-elementwise"})
    return [
        *out,
        Variant("no gate, packed", BASE, is_packed=True),
        Variant("paper/g1-elementwise, packed", gated, is_packed=True),
    ]


def stepper(variant: Variant) -> Callable[[], None]:
    """One forward and backward pass."""
    device = "cuda" if IS_CUDA else "cpu"
    model = build_model(variant.config).to(device)
    model.compute_dtype = torch.bfloat16 if IS_CUDA else torch.float32
    for layer in model.modules():
        if isinstance(layer, GatedAttention):
            layer.is_packed = variant.is_packed
    tokens_BT = torch.randint(0, 4096, (B, T), device=device)

    def loss(tokens_BT: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(tokens_BT).flatten(0, 1).float(), tokens_BT.flatten())

    compiled = torch.compile(loss, dynamic=False) if IS_CUDA else loss

    def step() -> None:
        for p in model.parameters():
            p.grad = None
        compiled(tokens_BT).backward()

    return step


def seconds(step: Callable[[], None]) -> float:
    """Of one step; the device has finished."""
    return CLOCK(Work(lambda _: step())) / 1e3


def main() -> None:
    """Times everything and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="presets, joined by commas")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    listed = variants([name for name in arguments.only.split(",") if name])
    steps = {v.name: stepper(v) for v in listed}
    for step in steps.values():
        for _ in range(3):
            step()
    times = {name: [] for name in steps}
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            times[name].append(seconds(step))

    device = torch.cuda.get_device_name() if IS_CUDA else f"{platform.machine()} CPU, {torch.get_num_threads()} thread"
    kind = "bfloat16, compiled" if IS_CUDA else "float32, eager"
    print(f"{device}, torch {torch.__version__}, {kind}; {BASE.n_layers} layers, width {BASE.d_model}, "
          f"{BASE.n_heads}/{BASE.n_kv_heads} heads, {B} × {T} tokens, {arguments.rounds} rounds\n")  # fmt: skip
    print("| variant | step, median ms | of no gate: median | first to third quartile | weights of no gate |")
    print("|---|---|---|---|---|")
    configs = {v.name: v.config for v in listed}
    for v in listed:
        ratios = [a / b for a, b in zip(times[v.name], times[v.against], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        weights = count_parameters(v.config.resolved(4096, T)) / count_parameters(configs[v.against].resolved(4096, T))
        print(
            f"| {v.name} | {1e3 * statistics.median(times[v.name]):.1f} | {middle:.2f} | {low:.2f} to {high:.2f} | "
            f"{weights:.3f} |"
        )


if __name__ == "__main__":
    main()
