"""Configurations of the trainer, each warm in a process of its own: what one is, how it begins, how a script carries out many."""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from warm_processes import Bounds, Facts, Process, one_at_a_time

from gatelab.bench.benchmark import device_name, pick_device
from gatelab.bench.held_training import Unstacked
from gatelab.bench.plan import TrainPlan
from gatelab.bench.train import _Arm, _arm, _peer, _runs
from gatelab.config.base import ConfigError, validate
from gatelab.config.model import ModelConfig
from gatelab.config.run import Recompute
from gatelab.record import Step
from gatelab.train.cost import model_flops_per_token
from gatelab.train.group import Group
from gatelab.train.loop import train

WARM_STEPS = 10


@dataclass(frozen=True)
class Trained:
    """A configuration: `runs` of a size at once, `tokens` a step of each; `gib` of GPU memory that its process is given room
    for, which is its peak and a tenth. `is_captured` false is the compiled loop."""

    size: str
    tokens: int
    gib: float
    gate: str = "none"
    context: int = 1024
    attention: str = "hopper"
    packed: bool = True
    runs: int = 1
    is_captured: bool = True
    recompute: Recompute = "none"

    @property
    def name(self) -> str:
        """What no other configuration of a block is called."""
        parts = [self.size, *([f"{self.runs} runs"] if self.runs > 1 else []), f"{self.context}", f"{self.tokens}"]
        flags = (
            ("apart", not self.packed),
            ("compiled only", not self.is_captured),
            ("recomputed", self.recompute == "layer"),
        )
        return " ".join([*parts, self.gate, self.attention, *(word for word, is_so in flags if is_so)])


def planned(trained: Trained, device: str) -> tuple[TrainPlan, _Arm]:
    """As `gatelab bench train` has it.

    Raises:
        ConfigError: for a size, a gate or an attention that there is not, or tokens that are no whole sequences.
    """
    t = trained
    plan = validate(TrainPlan, {
        "device": device, "sizes": t.size, "context": t.context, "tokens": t.tokens, "steps": 1, "gates": t.gate, "group": t.runs,
        "packed": t.packed, "attention": t.attention,
    })  # fmt: skip
    arm = _arm(plan, plan.sizes[0], t.gate, t.runs)
    return plan, arm if t.is_captured else _peer(arm, "loop")


def begun(trained: Trained, device: str) -> tuple[Group, ModelConfig]:
    """The group that trains a configuration, and its model."""
    plan, arm = planned(trained, device)
    runs, execution = _runs(plan, arm)
    group = Group if trained.is_captured else Unstacked
    return group(runs, execution.model_copy(update={"recompute": trained.recompute})), arm.model


def warmed(trained: Trained, device: str) -> tuple[Group, ModelConfig, Iterator[Step]]:
    """The group, its model and its steps, of which `WARM_STEPS` were taken and have ended."""
    torch.set_num_threads(1)
    group, model = begun(trained, device)
    steps = train(group, ())  # as a study takes them
    for _ in range(WARM_STEPS):
        next(steps)
    wait(group.device)
    return group, model, steps


def facts_of(group: Group, model: ModelConfig, trained: Trained) -> Facts:
    """What a warm process says of itself."""
    used = {k: v for k, v in group.facts().items() if k in ("attention", "attention_kernels", "packed", "stacked")}
    return {
        "device": device_name(group.device.type), "torch": torch.__version__, **used, "d_ff": model.d_ff,
        "n_parameters": sum(p.numel() for p in group.members[0].model.parameters()),
        "flops_per_token": model_flops_per_token(model, trained.context),
    }  # fmt: skip


def wait(device: torch.device) -> None:
    """Until it has nothing to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def bounded(parser: argparse.ArgumentParser, *, seconds: float) -> None:
    """What every script of warm processes is told."""
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--seconds", type=float, default=seconds, help=f"for all of it; {seconds:.0f} unless stated")
    parser.add_argument("--limit", type=float, default=150, help="seconds until a process must be warm")
    parser.add_argument("--memory", type=float, default=134, help="GiB of GPU memory, 134 (an H200) unless stated")
    parser.add_argument("--out", type=Path, help="a file to add JSON lines to")


def chosen(option: str, words: str, table: dict) -> list[str]:
    """The names of a table that an option lists; ends the program for another."""
    names = [word.strip() for word in words.split(",") if word.strip()]
    if unknown := [name for name in names if name not in table]:
        sys.exit(f"{option} {', '.join(unknown)}: expected some of {', '.join(table)}, joined by commas")
    return names


def carried_out(
    blocks: dict[str, tuple[Trained, ...]],
    script: str,
    work: Callable[[str, list[Process], list[Process], float], None],
    given: argparse.Namespace,
) -> None:
    """Start a process a configuration of every block, and let each block do its work when it is warm; a mistake of the user's
    ends the program before."""
    try:
        pick_device(given.device)
        for t in {t.size: t for configurations in blocks.values() for t in configurations}.values():
            _runs(*planned(t, given.device))  # writes the tokens that all of a vocabulary read
    except ConfigError as error:
        sys.exit(str(error))
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process is left behind
    try:
        with tempfile.TemporaryDirectory() as scratch:
            started = {block: _started(ts, script, given, Path(scratch, block)) for block, ts in blocks.items()}
            one_at_a_time(
                started,
                lambda name, warm, end: work(name, started[name], warm, end),
                Bounds(given.memory, given.limit, given.seconds),
                partial(print, flush=True),
            )
    finally:
        signal.signal(signal.SIGTERM, before)


def _started(
    configurations: tuple[Trained, ...], script: str, given: argparse.Namespace, folder: Path
) -> list[Process]:
    folder.mkdir()
    return [
        Process(t.name, script, {"trained": asdict(t), "device": given.device}, gib=t.gib, folder=folder)
        for t in configurations
    ]


def keep(records: list[Facts], out: Path | None) -> None:
    """Add them to a file, where one is given."""
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(r) + "\n" for r in records)
