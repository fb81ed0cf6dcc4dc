"""Mesh: how many GPUs share a step and how; what each has of the model then, and what cannot be divided.

Notable: a rank's share under tensor parallelism is itself a configuration, a narrower model, so that every count that is
made of a configuration holds for a rank too. Key/value heads fewer than the ranks are repeated, the vocabulary is filled up.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from ...config.base import ConfigError
from ...config.model import ModelConfig
from ...models.sizes import parameter_shapes

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Mesh:
    """`dp` groups, each with sequences of its own, of `tp` GPUs that share every layer's heads and channels; `ep` GPUs of
    different groups share the experts; `shard` of the groups (0: all) divide weights, gradients and moments among them,
    and the others have copies. Neighbours are first tp, then ep, then the rest of shard."""

    dp: int = 1
    tp: int = 1
    ep: int = 1
    shard: int = 0

    @property
    def gpus(self) -> int:
        return self.dp * self.tp

    @property
    def sharing(self) -> int:
        """Groups that divide the states."""
        return self.shard or self.dp

    @property
    def copies(self) -> int:
        """How often the states are there."""
        return self.dp // self.sharing

    def __str__(self) -> str:
        words = {"dp": self.dp, "tp": self.tp, "ep": self.ep}
        shared = [] if self.sharing == self.dp else [f"shard {self.sharing}"]
        return " × ".join([*(f"{w} {n}" for w, n in words.items() if n > 1 or w == "dp"), *shared])


def problems(mesh: Mesh, model: ModelConfig) -> list[str]:
    """Why a resolved model cannot be laid out so, a sentence each; none where it can."""
    m, tp, ep, found = model, mesh.tp, mesh.ep, []
    if min(mesh.dp, tp, ep) < 1 or mesh.shard < 0:
        return [f"dp={mesh.dp} tp={tp} ep={ep} shard={mesh.shard}: give whole numbers from 1 (shard 0: as many as dp)"]
    for what, n in {"n_heads": m.n_heads, "moe.d_expert" if m.moe else "d_ff": m.d_ff}.items():
        if n % tp:
            found.append(f"tp={tp} does not divide {what}={n}; take one of {_divisors(n, 64)}")
    if m.n_kv_heads % tp and tp % m.n_kv_heads:
        found.append(
            f"tp={tp}: {m.n_kv_heads} key/value heads can neither be divided among {tp} GPUs nor repeated on them; take a divisor "
            f"or a multiple of {m.n_kv_heads}"
        )
    if m.moe is None and ep > 1:
        found.append(f"ep={ep} divides experts, and this model has none; leave ep out")
    elif m.moe is not None and m.moe.n_experts % ep:
        found.append(f"ep={ep} does not divide moe.n_experts={m.moe.n_experts}; take one of {_divisors(m.moe.n_experts)}")
    if mesh.shard and mesh.dp % mesh.shard:
        found.append(f"shard={mesh.shard} does not divide dp={mesh.dp}; take one of {_divisors(mesh.dp)}")
    elif mesh.sharing % ep:
        found.append(f"ep={ep} does not divide the {mesh.sharing} groups that share weights; take one of {_divisors(mesh.sharing)}")
    return found


def check_mesh(mesh: Mesh, model: ModelConfig) -> None:
    """Refuse what cannot be divided.

    Raises:
        ConfigError: every reason.
    """
    if found := problems(mesh, model):
        raise ConfigError(found)


@lru_cache(maxsize=256)
def filled(model: ModelConfig, tp: int) -> ModelConfig:
    """The model whose every part divides among tp: key/value heads repeated, the vocabulary filled up."""
    return model.model_copy(
        update={"n_kv_heads": max(model.n_kv_heads, tp), "vocab_size": -(-model.vocab_size // tp) * tp}
    )


@lru_cache(maxsize=256)
def of_rank(model: ModelConfig, tp: int) -> ModelConfig:
    """What one of tp GPUs has, as a model: its heads, channels and ids; with all experts, of which ep leaves it some."""
    if tp == 1:
        return model
    m = filled(model, tp)
    moe = None if m.moe is None else m.moe.model_copy(update={"d_expert": m.moe.d_expert // tp})
    narrow = {name: getattr(m, name) // tp for name in ("n_heads", "n_kv_heads", "d_ff", "vocab_size")}
    return m.model_copy(update=narrow | {"moe": moe})


@dataclass(frozen=True)
class Part:
    """A parameter on a rank: its whole shape, what the rank computes with, and what it keeps between steps, along `axis`.

    `split` is the axis along which tp divides the whole, None: every rank has it. `unit`: what is gathered together, a
    block's name, or "" for all else.
    """

    name: str
    unit: str
    whole: Shape
    local: Shape
    kept: Shape
    axis: int
    split: int | None
    is_expert: bool


@lru_cache(maxsize=256)
def parts(model: ModelConfig, mesh: Mesh) -> tuple[Part, ...]:
    """Every parameter of a resolved model on the rank that has most of it, the first."""
    return tuple(_parts(model, mesh))


def _parts(model: ModelConfig, mesh: Mesh) -> Iterator[Part]:
    narrow = parameter_shapes(of_rank(model, mesh.tp))
    for name, whole in parameter_shapes(filled(model, mesh.tp)).items():
        local = narrow[name]
        split = next((i for i, (a, b) in enumerate(zip(whole, local, strict=True)) if a != b), None)
        is_expert = len(whole) == 3 and ".mlp.w" in name
        ranks = mesh.sharing
        if is_expert:
            local, ranks = (local[0] // mesh.ep, *local[1:]), mesh.sharing // mesh.ep
        axis = sharded_axis(local, ranks) if is_expert else 0
        kept = tuple(-(-n // ranks) if i == axis else n for i, n in enumerate(local))
        blocks, number, _ = (*name.split(".", 2), "", "")[:3]
        unit = f"{blocks}.{number}" if number.isdigit() else ""
        yield Part(name, unit, whole, local, kept, axis, split, is_expert)


def sharded_axis(shape: Shape, ranks: int) -> int:
    """The axis of experts' matrices along which their states are divided: the first that divides evenly, else 0."""
    return next((i for i, n in enumerate(shape) if n % ranks == 0), 0)


def numel(shape: Shape) -> int:
    """How many numbers."""
    return prod(shape)


def _divisors(n: int, most: int | None = None) -> str:
    found = [d for d in range(1, min(n, most or n) + 1) if n % d == 0]
    return ", ".join(map(str, found))
