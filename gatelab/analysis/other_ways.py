"""Other ways to have a gate's effect, as arms of its cell: which arm is one, known by its model, and how a study would have it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..config.gate import GateSpec, parse_gates
from ..config.gate_layers import gated
from .causes import besides

Model = Mapping[str, Any]
# (an arm's model, the gate's, the baseline's): whether it is the arm that is asked for.
IsIt = Callable[[Model, Model, Model], bool]
_OPEN = 0.9  # where a gate that begins open begins, or above


@dataclass(frozen=True, slots=True)
class Way:
    """Another way to have the gate's effect: `is_it` knows its arm, and `arm` is that arm as a study has it, of the gate's model,
    or why there can be none."""

    words: str
    is_it: IsIt
    arm: Callable[[Model], str]


def _is_small(model: Model, _own: Model, base: Model) -> bool:
    return (
        model.get("gate") == base.get("gate") == "none"
        and model.get("init") == "scaled" != base.get("init")
        and besides(model, "init") == besides(base, "init")
    )


def _small_arm(_own: Model) -> str:
    return "Arm('scaled', {'model.gate': 'none', 'model.init': 'scaled'}, control=True)"


def _is_static(model: Model, own: Model, _base: Model) -> bool:
    theirs, ours = _spec(model), _spec(own)
    return (
        theirs is not None and ours is not None and theirs.source == "static" != ours.source
        and theirs.site == ours.site and besides(model, "gate") == besides(own, "gate")
    )  # fmt: skip


def _static_arm(own: Model) -> str:
    spec = _spec(own)
    # It starts where the gate does; what starts around a value is a map.
    start = {} if spec is None or spec.around is None else {"around": None, "init": spec.around}
    changes = {"source": "static", "rank": None, "mlp": None, "bias": False} | start
    return _arm("static", own, changes, control=True)


def _is_begun_open(model: Model, own: Model, _base: Model) -> bool:
    theirs, ours = _spec(model), _spec(own)
    if theirs is None or ours is None or besides(model, "gate") != besides(own, "gate"):
        return False
    # A bias may be there to begin from.
    plain = {"bias": False, "init": "random", "around": None}
    alike = theirs.model_copy(update=plain) == ours.model_copy(update=plain)
    return alike and _begins_open(theirs) and not _begins_open(ours)


def _open_arm(own: Model) -> str:
    spec = _spec(own)
    if spec is not None and _begins_open(spec):
        return "this gate begins open itself; explain one that begins lower"
    is_map = spec is not None and spec.has_projection
    changes = {"bias": True, "init": "random", "around": 0.95} if is_map else {"init": 0.95}
    return _arm("open", own, changes)


def _begins_open(spec: GateSpec) -> bool:
    value = spec.init if spec.around is None else spec.around
    return value != "random" and value >= _OPEN


def _is_half(which: str) -> IsIt:
    def is_it(model: Model, own: Model, _base: Model) -> bool:
        half = _half(which, own)
        is_whole = len(half) and _layers(own) == tuple(range(own["n_layers"]))
        return (
            bool(is_whole) and _layers(model) == half and besides(model, "gate_layers") == besides(own, "gate_layers")
        )

    return is_it


def _half_arm(which: str) -> Callable[[Model], str]:
    def arm(own: Model) -> str:
        half = _half(which, own)
        if not half:
            return "one layer has no halves"
        if own.get("gate_layers", "all") != "all":
            return "this gate is in a part of the layers itself; explain the arm that has it in all of them"
        return f"Arm('{which}-half', {{'model.gate': '{own.get('gate')}', 'model.gate_layers': {half}}}, control=True)"

    return arm


def _half(which: str, own: Model) -> tuple[int, ...]:
    """Of three layers the first or the last; of one none."""
    depth = own.get("n_layers", 1)
    return tuple(range(depth // 2) if which == "first" else range(depth - depth // 2, depth))


def _spec(model: Model) -> GateSpec | None:
    slugs = parse_gates(model.get("gate"))
    return GateSpec.parse(slugs[0]) if len(slugs) == 1 else None


def _arm(name: str, own: Model, changes: Mapping[str, Any], *, control: bool = False) -> str:
    """The gate of the model with these changes, as an arm."""
    spec = _spec(own)
    try:
        slug = GateSpec(**{**spec.__dict__, **changes}).slug if spec is not None else ""
    except ValueError:
        slug = ""
    layers = own.get("gate_layers", "all")
    where = "" if layers == "all" else f", 'model.gate_layers': {layers!r}"
    said = f"Arm('{name}', {{'model.gate': '{slug}'{where}}}{', control=True' if control else ''})"
    return said if slug else "an arm with one gate that can be so"


def _layers(model: Model) -> tuple[int, ...]:
    layers = model.get("gate_layers", "all")
    return tuple(gated(layers if isinstance(layers, str) else tuple(layers), model.get("n_layers", 1)))


SMALL = Way("no gate, begun smaller", _is_small, _small_arm)
STATIC = Way("the gate, the same for every token", _is_static, _static_arm)
BEGUN_OPEN = Way("the gate, begun open", _is_begun_open, _open_arm)
FIRST_HALF, LAST_HALF = (
    Way(f"the gate in the {which} half of the layers alone", _is_half(which), _half_arm(which))
    for which in ("first", "last")
)
