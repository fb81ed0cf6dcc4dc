"""Mesh: how many GPUs share a step and how, and what each has of the model then.

Notable: what a rank computes under tensor parallelism is itself a configuration, a narrower model, so that every count that is
made of a configuration holds for a rank too. What it keeps is what `train.shard` gives it; `layout` holds the two together.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import prod
from typing import Literal

from ...config.base import ConfigError, validate
from ...config.gate import SITES
from ...config.model import ModelConfig
from ...config.parallel import ParallelConfig
from ...models.sizes import parameter_shapes

Shape = tuple[int, ...]


Shard = Literal["none", "zero2", "zero3"]


@dataclass(frozen=True)
class Mesh:
    """`dp` groups, each with sequences of its own, of `tp` neighbouring GPUs that share every layer's heads and channels; `ep`
    groups share the experts. `shard` as in `config.parallel.ParallelConfig`: whether the groups share out weights, gradients and
    moments, and whether gathered weights stay from the forward to the backward pass (zero2) or not (zero3)."""

    dp: int = 1
    tp: int = 1
    ep: int = 1
    shard: Shard = "zero3"

    @property
    def gpus(self) -> int:
        return self.dp * self.tp

    @property
    def is_sharded(self) -> bool:
        return self.shard != "none" and self.dp > 1

    def sharing(self, *, is_expert: bool = False) -> int:
        """GPUs that share out the states of one part of the weights."""
        return self.dp // (self.ep if is_expert else 1) if self.is_sharded else 1

    def copies(self, *, is_expert: bool = False) -> int:
        """GPUs that have the same states."""
        return 1 if self.is_sharded else self.dp // (self.ep if is_expert else 1)

    def __str__(self) -> str:
        words = [f"dp {self.dp}", *(f"{w} {n}" for w, n in {"tp": self.tp, "ep": self.ep}.items() if n > 1)]
        return " ".join([*words, *([self.shard] if self.dp > 1 else [])])


def problems(mesh: Mesh, model: ModelConfig, sequences: int) -> list[str]:
    """Why a resolved model, or a step of so many sequences, cannot be laid out so, a sentence each; none where it can."""
    if min(mesh.dp, mesh.tp, mesh.ep) < 1:
        return [f"dp={mesh.dp} tp={mesh.tp} ep={mesh.ep}: expected 1 or more of each"]
    try:
        laid_out = validate(ParallelConfig, asdict(mesh))
        laid_out.check(model, sequences, mesh.gpus)
    except ConfigError as error:
        return error.problems
    return []


@lru_cache(maxsize=256)
def of_rank(model: ModelConfig, tp: int) -> ModelConfig:
    """What one of tp GPUs computes, as a model: its heads, of key/value heads one at least, and its channels. Embeddings, head,
    norms and routers are whole on each; so are, here, all experts, of which ep leaves it some."""
    moe = None if model.moe is None else model.moe.model_copy(update={"d_expert": model.moe.d_expert // tp})
    narrow = {"n_heads": model.n_heads // tp, "n_kv_heads": max(1, model.n_kv_heads // tp), "d_ff": model.d_ff // tp}
    return model.model_copy(update=narrow | {"moe": moe})


@dataclass(frozen=True)
class Part:
    """A parameter on a rank: what it computes with, and what it keeps between steps. `unit`: what is gathered together, a block's
    name, or "" for all else; in `n_bytes` a number, among `ranks`, each of which gives as many rows as the first has."""

    name: str
    unit: str
    local: Shape
    kept: Shape
    ranks: int
    n_bytes: int
    is_expert: bool

    @property
    def n_gathered(self) -> int:
        return self.ranks * numel(self.kept) if self.ranks > 1 else numel(self.local)


@lru_cache(maxsize=256)
def parts(model: ModelConfig, mesh: Mesh) -> tuple[Part, ...]:
    """Every parameter of a resolved model on the rank that has most of it, the first, as `train.shard` shares them out."""
    return tuple(_parts(model, mesh))


def _parts(model: ModelConfig, mesh: Mesh) -> Iterator[Part]:
    narrow = parameter_shapes(of_rank(model, mesh.tp))
    has_learned = any(".sink." in name for name in narrow)
    for name, whole in parameter_shapes(model).items():
        local = whole if _is_whole(name, model, mesh.tp) else narrow[name]
        is_expert = ".mlp.w" in name and model.moe is not None
        ranks = mesh.sharing(is_expert=is_expert)
        if is_expert:
            local = (local[0] // mesh.ep, *local[1:])
        kept = (-(-local[0] // ranks), *local[1:])
        blocks, _, rest = name.partition("blocks.")
        unit = f"{blocks}blocks.{rest.partition('.')[0]}" if rest else ""
        # What computes in float32 is gathered in it.
        n_bytes = 4 if not unit or ".router." in name or has_learned else 2
        yield Part(name, unit, local, kept, ranks, n_bytes, is_expert)


def _is_whole(name: str, model: ModelConfig, tp: int) -> bool:
    """Whether every rank of tp keeps all of a parameter of which it computes with a part: of key/value heads that do not divide,
    experts of keys and values, gates that are shared by heads, a bias of relative positions."""
    words, divides = name.split("."), model.n_kv_heads % tp == 0
    if name.endswith("relative.table.weight"):
        return True
    for tensor in ("k", "v"):
        if f"{tensor}_proj" in words:
            return not divides or (model.kv_experts is not None and tensor in model.kv_experts.what)
    if "gates" in words:
        stack = next(s for s in model.architecture.stacks if name.startswith(s.blocks))
        is_cross = "cross_attention" in words
        site = words[words.index("gates") + 1]
        spec = next(g for g in model.gates(stack, is_cross=is_cross) if g.site == site)
        return spec.sharing == "shared" or (SITES[site].heads == "G" and not divides)
    return not divides and ("k_norm" in words or words[-1].endswith("G"))


def numel(shape: Shape) -> int:
    """How many numbers."""
    return prod(shape)
