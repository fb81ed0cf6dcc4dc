"""What a training step takes on any mesh of GPUs, before there are any: memory, communication and time. Free of torch, but for
`layout`, which lays the model out on a fake process group and counts what a rank really has."""

from .devices import DEVICES, Device
from .memory import Memory
from .mesh import Mesh
from .seconds import Seconds
from .spread import Shares, Spread, shares, spread_of
from .step import Job, Layout, StepPlan, best_step, plan_step
from .traffic import KINDS, Transfer

__all__ = [
    "DEVICES", "KINDS", "Device", "Job", "Layout", "Memory", "Mesh", "Seconds", "Shares", "Spread", "StepPlan", "Transfer",
    "best_step", "plan_step", "shares", "spread_of",
]  # fmt: skip
