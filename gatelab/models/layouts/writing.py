"""Writing a layer's tensors in a layout, bit for bit, or refused.

Notable: nothing is lost silently. What the layout cannot say (another activation, a layer without its norms, a gate of
another granularity, a share of rotary channels) is refused; what it says in other numbers with the same result (zero biases,
gains moved by one, repeated gate rows) is done and told by `notes`.
"""

from functools import partial

import torch
from torch import Tensor

from .canonical import Canonical, Convention, Gain, Granularity
from .checks import check_rope, check_values, known, one_of, refuse
from .layout import Layout


def write(
    layout: Layout | str,
    canonical: Canonical,
    *,
    prefix: str = "",
    granularity: Granularity | None = None,
    gain: Convention | None = None,
) -> dict[str, Tensor]:
    """The layer's tensors in a layout, by name; contiguous, and sharing memory with the canonical form where no row moves.

    Args:
        granularity: of the gate; None: as it is, and headwise rows repeated where the layout is elementwise only.
        gain: the convention of the q/k norms; None: the layout's first.

    Raises:
        ValueError: what the layout cannot say, naming a layout or a change that could.
    """
    layout = known(layout)
    convention = one_of(layout, "gain", gain, layout.gains)
    canonical = _grained(layout, canonical, granularity)
    _check_sayable(layout, canonical)
    grain, weights = canonical.granularity, canonical.weights()
    biases = _filled(layout, canonical)
    out = {}
    for module in layout.modules(grain):
        for kind, parts in (("weight", weights), ("bias", biases)):
            if parts.keys() & set(layout.parts(module, grain)):
                out[f"{module}.{kind}"] = _join(layout, module, parts, canonical)
    out[layout.o_proj + ".weight"] = canonical.o_DHK.flatten(1)
    if "o" in biases:
        out[layout.o_proj + ".bias"] = biases["o"]
    for name, norm in zip(layout.norms, (canonical.q_norm, canonical.k_norm), strict=True):
        if norm is not None:
            out[name + ".weight"] = norm.to(convention, canonical.q_HKD.dtype).weight_K
    check_values(out)
    return {prefix + name: t.contiguous() for name, t in out.items()}


def notes(layout: Layout | str, canonical: Canonical, *, gain: Convention | None = None) -> tuple[str, ...]:
    """Sentences on what `write` says in other numbers: gains in another convention, repeated gate rows, added biases.

    Raises:
        ValueError: a bias that the layout cannot say.
    """
    layout = known(layout)
    convention = one_of(layout, "gain", gain, layout.gains)
    norms = (("q_norm", canonical.q_norm), ("k_norm", canonical.k_norm))
    out = [
        _moved(name, n, convention, canonical.q_HKD.dtype)
        for name, n in norms
        if n is not None and n.convention != convention
    ]
    if canonical.granularity == "headwise" and "headwise" not in layout.granularities:
        out.append("gate: each headwise row is repeated for every channel; training would untie them")
    there = canonical.biases().keys() | ({"o"} if canonical.o_bias_D is not None else set())
    if added := _filled(layout, canonical).keys() - there:
        out.append(f"biases: zeros for {', '.join(sorted(added))}, which had none, as this layout has them together")
    return tuple(out)


def _moved(name: str, norm: Gain, convention: Convention, dtype: torch.dtype) -> str:
    moved = norm.to(convention, dtype)
    exact = "the gains are the same"
    if not moved.equals(norm):
        off_K = (moved.factor_K.double() - norm.factor_K.double()).abs()
        exact = f"{int((off_K > 0).sum())} of {len(off_K)} gains differ, by {float(off_K.max()):.1e} at most"
    elif not torch.equal(moved.to(norm.convention, norm.weight_K.dtype).weight_K, norm.weight_K):
        exact += ", and what is stored does not come back bit for bit"
    stored = str(moved.weight_K.dtype).removeprefix("torch.")
    return f"{name}: from {norm.convention} to {convention}, stored as {stored}; {exact}"


def _join(layout: Layout, module: str, parts: dict[str, Tensor], canonical: Canonical) -> Tensor:
    blocks = layout.blocks(module, canonical.granularity)
    dtypes = {part: parts[part].dtype for b in blocks for part in b.parts}
    if len(set(dtypes.values())) > 1:
        shown = ", ".join(f"{part} {str(dtype).removeprefix('torch.')}" for part, dtype in dtypes.items())
        raise ValueError(f"{layout.slug} keeps {shown} in one tensor, {module}, of one type; cast them to one before")
    return layout.join(module, parts, canonical.geometry, canonical.granularity)


def _grained(layout: Layout, canonical: Canonical, granularity: Granularity | None) -> Canonical:
    own, allowed = canonical.granularity, layout.granularities
    if granularity is not None and granularity not in allowed:
        refuse(layout, f"has no {granularity} gates", lambda other: granularity in other.granularities)
    if own is None and (None not in allowed or granularity is not None):
        refuse(layout, "has a gate always, and here is none", lambda other: None in other.granularities)
    target = granularity or (own if own in allowed else next(g for g in allowed if g))
    try:
        return canonical if own is None else canonical.regrained(target)
    except ValueError as error:
        raise ValueError(f"{layout.slug}: {error}") from None


def _check_sayable(layout: Layout, canonical: Canonical) -> None:
    word = canonical.activation
    if canonical.granularity and word not in layout.activations:
        refuse(layout, f"has no gate with activation {word}", lambda other: word in other.activations)
    if layout.needs_norm and canonical.q_norm is None:
        refuse(layout, "norms queries and keys always, and here are no norms", lambda other: not other.needs_norm)
    check_rope(layout, canonical.geometry)


def _filled(layout: Layout, canonical: Canonical) -> dict[str, Tensor]:
    """Biases by part, with zeros where the layout has a part's bias together with others that are there."""
    there = canonical.biases() | ({} if canonical.o_bias_D is None else {"o": canonical.o_bias_D})
    grouped = {part for group in layout.biases for part in group}
    for part in there.keys() - grouped:
        if there[part].any():
            refuse(layout, f"has no bias of {part}", partial(_has_bias, part=part))
    out = {}
    for group in layout.biases:
        one = next((there[part] for part in group if part in there), None)
        for part in group:
            like = canonical.o_DHK[:, 0, 0] if part == "o" else canonical.weights().get(part)
            if one is not None and like is not None:
                shape = like.shape if part == "o" else like.shape[:2]
                out[part] = there[part] if part in there else one.new_zeros(shape)
    return out


def _has_bias(layout: Layout, *, part: str) -> bool:
    return any(part in group for group in layout.biases)
