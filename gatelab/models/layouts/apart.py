"""A fused projection as its parts: views that share its memory, and linear maps of their own for whatever goes by modules.

Queries and gates have different tasks and different sizes of numbers. LoRA, Muon and quantisation with one scale a tensor,
which see one matrix where a layout has fused them, mix the two (reports: NVIDIA's Megatron-LM 4731 on Muon, Model-Optimizer
2091 on the gate's half).
"""

from torch import Tensor, nn

from .canonical import Geometry, Granularity
from .checks import known
from .layout import Layout, part_sizes

# Modules are named as in g_proj: peft takes a module `gate` of a Qwen for the router of experts.
_MODULES = {"q": "q", "gate": "g", "k": "k", "v": "v"}


def views(
    layout: Layout | str, module: str, rows: Tensor, geometry: Geometry, granularity: Granularity | None
) -> dict[str, Tensor]:
    """The parts of a projection's weight or bias, [units, heads a unit, rows a head, …], in its memory: what is written into
    one is written into the projection. Units are what the layout interleaves by: all heads at once, kv heads, or heads.

    Raises:
        ValueError: a layout that does not exist, a module that it has not, or another number of rows.
    """
    layout, sizes = known(layout), part_sizes(geometry, granularity)
    if module not in layout.modules(granularity):
        raise ValueError(f"{layout.slug} has no projection {module!r}; it has {', '.join(layout.modules(granularity))}")
    blocks = layout.blocks(module, granularity)
    lengths = [sum(sizes[p][0] * sizes[p][1] for p in block.parts) for block in blocks]
    if rows.shape[0] != sum(lengths):
        raise ValueError(
            f"{module} of shape {tuple(rows.shape)}: expected {sum(lengths)} rows, as {layout.slug} has them; fix the geometry, or "
            "the granularity"
        )
    found = {}
    for block, piece in zip(blocks, rows.split(lengths), strict=True):
        found |= block.views(piece, sizes, geometry)
    return found


class Apart(nn.Module):
    """A fused projection as one `nn.Linear` a part, named `q`, `g`, `k`, `v`; it computes what the fused one did, and its
    output has the fused one's order. Parts lie by head, as in a canonical layer.

    Args:
        fused: the projection; its tensors are copied.
        module: its name in the layout, such as `q_proj`.

    Raises:
        ValueError: as `views` does.
    """

    def __init__(
        self, fused: nn.Linear, layout: Layout | str, module: str, geometry: Geometry, granularity: Granularity | None
    ):
        super().__init__()
        self.layout, self.module, self.geometry, self.granularity = known(layout), module, geometry, granularity
        self.sizes = part_sizes(geometry, granularity)
        weights = views(self.layout, module, fused.weight.detach(), geometry, granularity)
        biases = {} if fused.bias is None else views(self.layout, module, fused.bias.detach(), geometry, granularity)
        for part, weight in weights.items():
            own = nn.Linear(fused.in_features, weight[..., 0].numel(), bias=bool(biases), device="meta")
            own.weight = nn.Parameter(weight.flatten(0, 2).clone(), requires_grad=fused.weight.requires_grad)
            if biases:
                own.bias = nn.Parameter(biases[part].flatten().clone(), requires_grad=fused.bias.requires_grad)
            self.add_module(_MODULES[part], own)

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] to […, rows], in the fused order."""
        return self._joined({part: own(x).movedim(-1, 0) for part, own in self._parts().items()}).movedim(0, -1)

    def together(self) -> nn.Linear:
        """The parts as one fused projection again.

        Raises:
            ValueError: a part that is no plain linear map, as while adapters are around it.
        """
        parts = self._parts()
        for part, own in parts.items():
            if type(own) is not nn.Linear:
                raise ValueError(
                    f"{self.module}.{_MODULES[part]} is a {type(own).__name__}: expected nn.Linear; merge and unload its "
                    "adapters before"
                )
        weight = self._joined({part: own.weight.detach() for part, own in parts.items()})
        has_bias = next(iter(parts.values())).bias is not None
        fused = nn.Linear(weight.shape[1], weight.shape[0], bias=has_bias, device="meta")
        fused.weight = nn.Parameter(weight)
        if has_bias:
            fused.bias = nn.Parameter(self._joined({part: own.bias.detach() for part, own in parts.items()}))
        return fused

    def _parts(self) -> dict[str, nn.Module]:
        modules = dict(self.named_children())
        return {part: modules[word] for part, word in _MODULES.items() if word in modules}

    def _joined(self, rows: dict[str, Tensor]) -> Tensor:
        heads = {part: t.unflatten(0, self.sizes[part]) for part, t in rows.items()}
        return self.layout.join(self.module, heads, self.geometry, self.granularity)


def take_apart(model: nn.Module, layout: Layout | str, geometry: Geometry) -> list[str]:
    """Replaces every fused projection of a model of a layout, such as transformers' Qwen3-Next, by an `Apart`; returns their
    names. `target_modules=".*q_proj.g"` is then LoRA on the gates alone.

    Raises:
        ValueError: no module of the model has projections of this layout and geometry.
    """
    layout = known(layout)
    replaced = []
    for name, attention in list(model.named_modules()):
        shapes = {n: tuple(p.shape) for n, p in attention.named_parameters()}
        grains = [g for g in layout.granularities if shapes and not layout.mistakes(shapes, geometry, g)]
        for word in layout.modules(grains[0]) if grains else ():
            if len(layout.parts(word, grains[0])) > 1:
                setattr(attention, word, Apart(getattr(attention, word), layout, word, geometry, grains[0]))
                replaced.append(f"{name}.{word}".removeprefix("."))
    if not replaced:
        raise ValueError(
            f"no module has projections of {layout.slug} with {geometry.n_heads} query and {geometry.n_kv_heads} kv heads of "
            f"{geometry.head_dim}; take the layout and the geometry of its attention"
        )
    return replaced


def put_together(model: nn.Module) -> list[str]:
    """Fuses what `take_apart` has taken apart, in place; returns the names.

    Raises:
        ValueError: adapters that were not merged.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Apart)]
    fused = [(name, module.together()) for name, module in found]
    for name, module in fused:
        parent, _, word = name.rpartition(".")
        setattr(model.get_submodule(parent), word, module)
    return [name for name, _ in fused]
