"""Reading a layer's tensors in a layout: every tensor known, every shape right, every number finite, or refused."""

from torch import Tensor

from .canonical import Canonical, Convention, Gain, Geometry, Granularity
from .checks import check_rope, check_values, known, one_of
from .fit import Shapes, fitting, misfit
from .layout import Layout, part_sizes
from .table import LAYOUTS


def read(
    layout: Layout | str,
    tensors: dict[str, Tensor],
    geometry: Geometry,
    *,
    prefix: str = "",
    activation: str | None = None,
    gain: Convention | None = None,
) -> Canonical:
    """One attention layer of a checkpoint; its granularity is that of its shapes.

    Args:
        layout: a layout or its slug, best from `recognise`: shapes alone do not tell the two Qwen layouts apart.
        tensors: names to tensors; those under `prefix` must be the attention's and no others.
        activation, gain: of the gate and of the q/k norms; None: the layout's first.

    Raises:
        ValueError: a missing or extra tensor or a wrong shape, with both shapes and the layouts that would fit; a NaN; an
            activation or a gain that the layout does not have.
    """
    layout = known(layout)
    activation = one_of(layout, "activation", activation, layout.activations)
    convention = one_of(layout, "gain", gain, layout.gains)
    own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    if not own:
        raise ValueError(
            f"none of {len(tensors)} tensors has a name that begins with {prefix!r}; give the prefix of an attention layer, "
            "with its dot"
        )
    check_values(own)
    if geometry.rotary_dim is not None:
        check_rope(layout, geometry)
    granularity = _granularity(layout, {name: tuple(t.shape) for name, t in own.items()}, geometry)
    sizes = part_sizes(geometry, granularity)
    rows: dict[str, dict[str, Tensor]] = {"weight": {}, "bias": {}}
    for module in layout.modules(granularity):
        for kind in rows:
            if module + "." + kind in own:
                rows[kind] |= _split(layout, module, own[module + "." + kind], sizes, geometry, granularity)
    if layout.o_proj + ".bias" in own:
        rows["bias"]["o"] = own[layout.o_proj + ".bias"]
    bias = _without_fillers(layout, rows["bias"])
    norms = [Gain(own[n + ".weight"], convention) if n + ".weight" in own else None for n in layout.norms]
    return Canonical(
        geometry,
        q_HKD=rows["weight"]["q"],
        k_GKD=rows["weight"]["k"],
        v_GKD=rows["weight"]["v"],
        o_DHK=own[layout.o_proj + ".weight"].unflatten(1, (geometry.n_heads, geometry.head_dim)),
        gate_HKD=rows["weight"].get("gate"),
        q_bias_HK=bias.get("q"),
        k_bias_GK=bias.get("k"),
        v_bias_GK=bias.get("v"),
        o_bias_D=bias.get("o"),
        gate_bias_HK=bias.get("gate"),
        q_norm=norms[0],
        k_norm=norms[1],
        activation=activation,
    )


def _granularity(layout: Layout, shapes: Shapes, geometry: Geometry) -> Granularity | None:
    for granularity in layout.granularities:
        if not layout.mistakes(shapes, geometry, granularity):
            return granularity
    fits = dict.fromkeys(other.slug for other, _ in fitting(shapes, geometry))
    near = misfit([layout, *LAYOUTS.values()], shapes, geometry).partition(":")[0]
    hint = "no other layout is nearer" if near == layout.slug else f"the nearest layout is {near}"
    if fits:
        hint = f"these tensors would fit {' or '.join(fits)}"
    raise ValueError(f"not {misfit([layout], shapes, geometry)}; {hint}")


def _split(
    layout: Layout,
    module: str,
    rows: Tensor,
    sizes: dict[str, tuple[int, int]],
    geometry: Geometry,
    granularity: Granularity | None,
) -> dict[str, Tensor]:
    blocks = layout.blocks(module, granularity)
    lengths = [sum(sizes[p][0] * sizes[p][1] for p in b.parts) for b in blocks]
    pieces = zip(blocks, rows.split(lengths), strict=True)
    return {part: t for block, piece in pieces for part, t in block.split(piece, sizes, geometry).items()}


def _without_fillers(layout: Layout, bias: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without all-zero biases beside others that are not: `_filled` puts them there, and back."""
    real = {part for part, t in bias.items() if t.any() or t.signbit().any()}
    fillers = {part for group in layout.biases if real & set(group) for part in group if part not in real}
    return {part: t for part, t in bias.items() if part not in fillers}
