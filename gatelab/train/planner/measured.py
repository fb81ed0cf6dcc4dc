"""Steps that were measured, to hold plans against; `sets` says which constant of `devices` a step has set, `misses` which goal a
plan of it misses (15% of the memory, 20% of the time).

Notable: rows are those of training_h100_2026-11.md, training_h200_2026-11.md and meshes_h200_2026-11.md in benchmarks/results, a
step's median, and GiB the allocator's peak on a GPU. Compiled, captured on one GPU (but for `moe-80m` on the H100 and the
`moe-480m` of 15.2 GiB, which are planned as if they were), and but for the rows of the last file with q, k, v and gates in one
product; `attention` as there. The last row of one GPU is `captured` of expert_parts_h200_2026-11.json.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

from ...config.gate import parse_gates
from ...config.model import ModelConfig
from ...models.ladder import SIZES
from .mesh import Mesh
from .step import Job

_ALONE = Mesh()


@dataclass(frozen=True)
class Measured:
    """A step of a size of the ladder, or of a decoder of (width, layers, heads, vocabulary), with `gate` and, where it was
    narrowed, `d_ff`; `tokens` of all GPUs of the `mesh`, `micro_batch` sequences of a group a forward pass (0: all)."""

    device: str
    size: str | tuple[int, int, int, int]
    tokens: int
    context: int
    ms: float
    gib: float
    gate: str = "none"
    d_ff: int | None = None
    attention: str = "auto"
    sets: str = ""
    mesh: Mesh = _ALONE
    micro_batch: int = 0
    misses: Literal["", "memory", "time", "memory and time"] = ""

    @property
    def job(self) -> Job:
        return Job(_model(self.size, self.context, self.gate, self.d_ff), self.tokens, self.context)

    @property
    def name(self) -> str:
        word = self.size if isinstance(self.size, str) else "{} × {}, {} heads, V {:,}".format(*self.size)
        return word if self.gate == "none" else f"{word}, {self.gate}"


_33M, _124M, _350M = (512, 8, 4, 16_384), (768, 12, 12, 50_304), (1024, 24, 8, 50_304)
_1B = (2560, 11, 20, 32_768)
MEASURED = (
    Measured("h100", _33M, 65_536, 1024, 40.95, 10.6, sets="PRODUCTS, MOVED"),
    Measured("h100", _33M, 65_536, 1024, 42.11, 10.7, "sdpa-headwise"),
    Measured("h100", _33M, 65_536, 1024, 42.48, 10.6, "sdpa-elementwise", 1216),
    Measured("h100", _124M, 32_768, 1024, 64.78, 13.6),
    Measured("h100", (768, 12, 6, 50_304), 32_768, 1024, 63.42, 13.6),
    Measured("h100", _350M, 32_768, 1024, 164.8, 34.8),
    Measured("h100", "1b", 16_384, 4096, 268.5, 42.3, sets="PRODUCTS, MOVED"),
    Measured("h100", "moe-80m", 32_768, 1024, 46.17, 10.5),
    Measured("h200", _33M, 65_536, 1024, 38.78, 10.6),
    Measured("h200", _33M, 65_536, 1024, 38.51, 10.6, attention="hopper"),
    Measured("h200", _33M, 65_536, 1024, 39.91, 10.7, "sdpa-headwise"),
    Measured("h200", _124M, 65_536, 1024, 116.88, 23.9, attention="hopper"),
    Measured("h200", (768, 12, 6, 50_304), 65_536, 1024, 114.07, 23.9, attention="hopper"),
    Measured("h200", _350M, 32_768, 1024, 157.38, 34.8, attention="hopper"),
    Measured("h200", "moe-480m", 16_384, 1024, 54.99, 15.2),
    Measured("h200", "moe-80m", 32_768, 1024, 36.75, 10.8),
    Measured("h200", "moe-80m", 32_768, 4096, 42.76, 10.8),
    Measured("h200", "moe-480m", 16_384, 1024, 51.06, 17.1),
    Measured("h200", "moe-480m", 16_384, 4096, 60.45, 17.1),
    Measured("h200", "1b", 32_768, 4096, 503.1, 59.7),
    Measured("h200", "1b", 65_536, 4096, 525.2, 55.1, mesh=Mesh(2, shard="none"), micro_batch=8),
    Measured("h200", _1B, 32_768, 4096, 375.7, 46.2),
    Measured("h200", _1B, 65_536, 4096, 400.8, 35.5, mesh=Mesh(2, shard="zero3"), micro_batch=8),
    Measured("h200", _1B, 65_536, 4096, 407.5, 15.2, mesh=Mesh(1, tp=2), micro_batch=8),
    Measured("h200", "moe-480m", 32_768, 4096, 111.3, 24.4),
    Measured("h200", "moe-480m", 32_768, 4096, 107.19, 24.4),
    Measured(
        "h200",
        "moe-480m",
        65_536,
        4096,
        212.6,
        26.4,
        mesh=Mesh(2, ep=2, shard="none"),
        micro_batch=8,
        misses="memory and time",
    ),
    Measured(
        "h200", "moe-480m", 65_536, 4096, 219.7, 25.7, mesh=Mesh(2, ep=2, shard="zero3"), micro_batch=8, misses="time"
    ),
)


@cache
def _model(size: str | tuple[int, int, int, int], context: int, gate: str, d_ff: int | None) -> ModelConfig:
    if isinstance(size, str):
        return SIZES[size].model.model_copy(update={"max_seq_len": context})
    width, layers, heads, vocabulary = size
    c = ModelConfig(d_model=width, n_layers=layers, n_heads=heads, d_ff=d_ff, gate=parse_gates(gate))
    return c.resolved(vocabulary, context)
