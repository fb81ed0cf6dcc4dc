"""An arm: what a study changes in every cell."""

from dataclasses import dataclass

from ..config import Change, GateSpec


@dataclass(frozen=True)
class Arm:
    """What an arm changes in every cell; `label` is for the page; a `control` is not a gate.

    Arms share data and seeds, which is what pairs their runs, so neither can be changed. An arm that sets the study's
    `match` key itself (a wider feed-forward layer as a control) is not matched.
    """

    name: str
    changes: Change
    label: str = ""
    control: bool = False


def label_of(arm: Arm) -> str:
    """Human words for an arm: its own, or its gate's."""
    if arm.label:
        return arm.label
    gate = arm.changes.get("model.gate")
    if isinstance(gate, GateSpec):
        return gate.slug
    return "no gate" if gate == "none" else arm.name
