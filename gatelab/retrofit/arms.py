"""The arms of a retrofit, made, trained and measured in memory: the model as it was, its control, the start, the retrofit."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from ..config.retrofit import Identity, Retrofit, Surgery
from ..models.model import Model
from ..record import Row
from .measures import Measured, Movement, changes, measure
from .sinks import FirstKeys, first_keys
from .starts import as_identity, gated
from .surgery import operated, variants
from .texts import Texts
from .tuning import tune

Tell = Callable[[str], None]
# Looks at the losses and the gates while they are trained, and on how many sequences at the gates.
_LOOKS, _LOOKED_AT = 8, 8


@dataclass
class Arms:
    """The model with its gate, and what was measured: `arms` `original`, `control` (where one was trained), `start` and
    `retrofit` (where anything was trained), in this order; after surgery the first keys, the `heads` from which they are
    hidden by layer, and the losses of the `stand_ins` right after it; rows of all."""

    model: Model
    arms: dict[str, Measured] = field(default_factory=dict)
    found: FirstKeys | None = None
    heads: tuple[tuple[int, ...], ...] = ()
    stand_ins: dict[str, Measured] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    @property
    def reference(self) -> Measured:
        """What the others are compared with: the control, or without training the model as it was."""
        return self.arms.get("control", self.arms["original"])


def make_arms(model: Model, config: Retrofit, texts: Texts, *, tell: Tell = lambda _: None) -> Arms:
    """Make, train and measure all arms; the model that is given stays as it is.

    Raises:
        ValueError: a gate that cannot start so, no head that surgery could be done on.
    """
    made, steps = Arms(model), config.train.steps
    made.arms["original"] = measure(model, "original", texts.heldout, 0)
    if steps and config.control:
        tell(f"training the ungated control, {steps} steps")
        control = copy.deepcopy(model)
        made.rows += trained(control, "control", config, texts, teacher=model, tell=tell)
        made.arms["control"] = measure(control, "control", texts.heldout, steps)
        del control
    _put_in(made, model, config, texts, tell)
    made.arms["start"] = measure(made.model, "start", texts.heldout, 0)
    if steps:
        tell(f"training the gated model, {steps} steps")
        made.rows += trained(made.model, "retrofit", config, texts, teacher=model, tell=tell)
        made.arms["retrofit"] = measure(made.model, "retrofit", texts.heldout, steps)
    measured = [*made.arms.values(), *made.stand_ins.values()]
    for reference in dict.fromkeys((made.arms["original"].arm, made.reference.arm)):
        others = [m for m in measured if m.arm not in ("original", reference)]
        made.rows += changes(others, made.arms[reference])
    made.rows += [row for m in measured for row in m.rows]
    return made


def _put_in(made: Arms, model: Model, config: Retrofit, texts: Texts, tell: Tell) -> None:
    """The gate, where it is to start."""
    start = config.start
    if isinstance(start, Identity):
        made.model = as_identity(model, config.gate, seed=config.seed)
    elif isinstance(start, Surgery):
        tell(f"measuring first keys on {len(texts.measured_NT)} sequences")
        made.found = first_keys(model, texts.measured_NT)
        made.heads = made.found.heads(mass=start.mass, drain=start.drain)
        made.model = operated(model, config.gate, made.found, made.heads, value=start.value, seed=config.seed)
        made.rows += made.found.rows("original")
        tell(f"the first key is hidden from {sum(map(len, made.heads))} heads; comparing what may stand in its place")
        for words, other in variants(model, config.gate, made.found, made.heads):
            made.stand_ins[words] = measure(other, words, texts.heldout, 0, probed=False)
    else:
        made.model = gated(model, config.gate, seed=config.seed)


def trained(
    model: Model, arm: str, config: Retrofit, texts: Texts, *, teacher: Model, tell: Tell = lambda _: None
) -> list[Row]:
    """Train a model in place; rows of its losses, and of a gated one how its gates move, at a few steps.

    Raises:
        ValueError: numbers that are not finite at one of these steps.
    """
    steps = config.train.steps
    looks = {round(steps * i / _LOOKS) for i in range(1, _LOOKS + 1)} | {1}
    looked_at_BT = next(iter(texts.heldout.values()))[:_LOOKED_AT, :-1]
    movement = Movement(model, looked_at_BT) if model.config.gate else None
    rows = [] if movement is None else movement.rows(model, arm, 0)
    for step in tune(model, texts.train_NT, config, teacher=teacher if config.distil else None):
        if step.step not in looks:
            continue
        told = {
            "loss": (step.cross_entropy, "nats"), "output_divergence": (step.divergence, "nats"),
            "residual_square": (step.residual_square, "1"), "grad_norm": (step.grad_norm, "1"),
        }  # fmt: skip
        now = [Row(arm, step.step, "train", n, float(v), unit) for n, (v, unit) in told.items() if v is not None]
        _check_finite(now, steps)
        tell(f"  step {step.step} of {steps}: " + ", ".join(f"{r.metric} {r.value:.4f}" for r in now))
        rows += now if movement is None else now + movement.rows(model, arm, step.step)
    return rows


def _check_finite(now: list[Row], steps: int) -> None:
    for row in now:
        if not math.isfinite(row.value):
            raise ValueError(
                f"{row.run}: {row.metric} is {row.value} at step {row.step} of {steps}, so that training is lost; lower optim.lr, "
                "gate_optim.lr or penalty"
            )
