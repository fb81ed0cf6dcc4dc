"""Layout: how a code base lays an attention layer out in tensors, as a value: names, row orders, biases, norms.

Notable: every row order known is a list of blocks, each saying which parts it holds and what it interleaves them by: all
rows of a part in one run, per kv head, or per query head. A layout is therefore a table entry, and reading and writing are
written once. Tensor parallelism shards rows afterwards and is not part of it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .canonical import Convention, Geometry, Granularity


@dataclass(frozen=True)
class Block:
    """A run of rows: for each unit (all heads at once, a kv head, a query head) the rows of each part that belong to it."""

    parts: tuple[str, ...]
    per: Literal["all", "kv head", "head"] = "all"

    def split(self, rows: Tensor, sizes: dict[str, tuple[int, int]], geometry: Geometry) -> dict[str, Tensor]:
        """Rows [R, …] as one tensor a part, [heads, rows a head, …]; `sizes` are those two numbers of each part."""
        return {p: view.flatten(0, 1) for p, view in self.views(rows, sizes, geometry).items()}

    def views(self, rows: Tensor, sizes: dict[str, tuple[int, int]], geometry: Geometry) -> dict[str, Tensor]:
        """The same in the memory of the rows: [units, heads a unit, rows a head, …]."""
        units = self._units(geometry)
        each = [sizes[p][0] * sizes[p][1] // units for p in self.parts]
        pieces = rows.unflatten(0, (units, sum(each))).split(each, dim=1)
        return {p: piece.unflatten(1, (-1, sizes[p][1])) for p, piece in zip(self.parts, pieces, strict=True)}

    def join(self, parts: dict[str, Tensor], geometry: Geometry) -> Tensor:
        """The inverse of `split`."""
        units = self._units(geometry)
        pieces = [parts[p].reshape(units, -1, *parts[p].shape[2:]) for p in self.parts]
        return torch.cat(pieces, dim=1).flatten(0, 1)

    def _units(self, geometry: Geometry) -> int:
        return {"all": 1, "kv head": geometry.n_kv_heads, "head": geometry.n_heads}[self.per]


@dataclass(frozen=True)
class Layout:
    """Names below the attention's prefix, and what the code that reads them computes.

    Args:
        slug, what: its name, and whose layout it is, with the source.
        projections: module name to the blocks of its rows, in order; all parts are in some block.
        o_proj: the output projection's module.
        granularities: of the gates it has; None among them: it has no gate too.
        activations, gains: what its gate and its q/k norms may be; the first is meant where nothing else is said.
        norms: the modules of the q/k norms; `needs_norm`: its code norms always.
        biases: parts whose biases come and go together; a part in no group has none.
        any_rope: whether a share of a head's channels may turn.
        model_types, fields: what in a config points here.
    """

    slug: str
    what: str
    projections: dict[str, tuple[Block, ...]]
    o_proj: str
    granularities: tuple[Granularity | None, ...]
    biases: tuple[tuple[str, ...], ...]
    activations: tuple[str, ...] = ("sigmoid",)
    gains: tuple[Convention, ...] = ("w",)
    norms: tuple[str, str] = ("q_norm", "k_norm")
    needs_norm: bool = True
    any_rope: bool = True
    model_types: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()

    def blocks(self, module: str, granularity: Granularity | None) -> tuple[Block, ...]:
        """The blocks of a projection, without the gate's rows where there is no gate."""
        kept = (Block(tuple(p for p in b.parts if p != "gate" or granularity), b.per) for b in self.projections[module])
        return tuple(b for b in kept if b.parts)

    def parts(self, module: str, granularity: Granularity | None) -> tuple[str, ...]:
        """The parts whose rows a projection holds, in order."""
        return tuple(p for b in self.blocks(module, granularity) for p in b.parts)

    def modules(self, granularity: Granularity | None) -> tuple[str, ...]:
        """Projections of the layer's input that hold something."""
        return tuple(m for m in self.projections if self.parts(m, granularity))

    def join(
        self, module: str, parts: dict[str, Tensor], geometry: Geometry, granularity: Granularity | None
    ) -> Tensor:
        """The rows of a projection, of parts that are [heads, rows a head, …]."""
        return torch.cat([b.join(parts, geometry) for b in self.blocks(module, granularity)])

    def shapes(
        self, geometry: Geometry, granularity: Granularity | None
    ) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """Shapes of the tensors that are always there and of those that may be, by name."""
        g, sizes = geometry, part_sizes(geometry, granularity)
        always = {self.o_proj + ".weight": (g.d_model, g.n_heads * g.head_dim)}
        maybe = {self.o_proj + ".bias": (g.d_model,)} if any("o" in group for group in self.biases) else {}
        for module in self.modules(granularity):
            parts = self.parts(module, granularity)
            n_rows = sum(sizes[p][0] * sizes[p][1] for p in parts)
            always[module + ".weight"] = (n_rows, g.d_model)
            if any(parts[0] in group for group in self.biases):
                maybe[module + ".bias"] = (n_rows,)
        gains = {name + ".weight": (g.head_dim,) for name in self.norms}
        return (always | gains, maybe) if self.needs_norm else (always, maybe | gains)

    def mistakes(
        self, shapes: dict[str, tuple[int, ...]], geometry: Geometry, granularity: Granularity | None
    ) -> list[str]:
        """What keeps tensors of these shapes from being this layout, one phrase a tensor."""
        always, maybe = self.shapes(geometry, granularity)
        known = always | maybe
        wrong = [
            f"{name} has shape {tuple(shape)} and not {known[name]}"
            for name, shape in shapes.items()
            if name in known and tuple(shape) != known[name]
        ]
        wrong += [f"{name} {always[name]} is missing" for name in always if name not in shapes]
        for group in (
            *(self._bias_names(b, granularity) for b in self.biases),
            tuple(n + ".weight" for n in self.norms),
        ):
            there = [name for name in group if name in shapes]
            if there and len(there) < len(group):
                absent = [name for name in group if name not in shapes and name not in always]
                wrong += [f"{name} {known[name]} is missing, as {there[0]} is there" for name in absent]
        return wrong + [
            f"{name} {tuple(shape)} is none of its tensors" for name, shape in shapes.items() if name not in known
        ]

    def _bias_names(self, group: tuple[str, ...], granularity: Granularity | None) -> tuple[str, ...]:
        modules = [m for m in self.modules(granularity) if set(group) & set(self.parts(m, granularity))]
        return tuple(m + ".bias" for m in (*modules, *([self.o_proj] if "o" in group else ())))


def part_sizes(geometry: Geometry, granularity: Granularity | None) -> dict[str, tuple[int, int]]:
    """Heads and rows a head of each part."""
    g = geometry
    q, kv = (g.n_heads, g.head_dim), (g.n_kv_heads, g.head_dim)
    return {"q": q, "gate": (g.n_heads, g.head_dim if granularity == "elementwise" else 1), "k": kv, "v": kv}
