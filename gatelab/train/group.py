"""Group: the unit of work, one or more runs of one shape with their models, optimisers and data.

Notable: it is all the state that training has; `state` and `restore` make and take it as tensors and JSON.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.data import Data
from ..config.run import Execution, Run
from ..data import Source, open_source
from ..models import build_model
from ..models.model import Model
from ..nn.watch import Watch
from ..ops.gated_attention import chosen_for
from .checkpoint import pack, unpack
from .optim import build_optimizer
from .parallel import Ranks, join
from .stack import Stack, why_not


@dataclass
class Member:
    """One run of a group. `losses` are those of every step so far; `alive` is false after a divergence."""

    run: Run
    source: Source
    model: Model
    optimizer: torch.optim.AdamW
    losses: list[float] = field(default_factory=list)
    alive: bool = True


class Group:
    """Runs that differ in seed and values, not in shape.

    Args:
        runs: with resolved models, of equal shape and budget.
        execution: device, threads, micro-batch, compilation.

    Raises:
        ValueError: runs of different shapes, or watched at different steps; a device that is not there; compilation
            together with `optim.qk_clip`, whose hooks compiled code leaves out; an `execution.attention` that cannot serve
            the model, its data's mask, the type or the device.
    """

    def __init__(self, runs: list[Run], execution: Execution | None = None):
        self.execution = execution or Execution()
        self.device = pick_device(self.execution.device)
        self.ranks: Ranks = join(self.device)
        runs = [resolve(run) for run in runs]
        first = runs[0]
        for run in runs[1:]:
            if any(getattr(run, name) != getattr(first, name) for name in ("model", "objective", "train")):
                raise ValueError(
                    "runs of a group must share model, objective and train; these differ: put them into two groups"
                )
        looks = {(r.probe.times, r.probe.watch, r.probe.skip_queries if r.probe.watch else None) for r in runs}
        if len(looks) > 1:
            raise ValueError(
                "runs of a group must share probe.times and probe.watch, and probe.skip_queries where they are watched; "
                "these differ: put them into two groups"
            )
        if self.execution.compile == "on" and any(run.optim.qk_clip is not None for run in runs):
            raise ValueError(
                "optim.qk_clip reads attention logits by hooks, which compiled code leaves out; set "
                "execution.compile=auto, which then does not compile, or off"
            )
        self.dtype = pick_dtype(first.train.precision, self.device)
        self._sources: dict[Data, Source] = {}
        self.members = [self._member(run) for run in runs]
        self.step, self.stack = 0, None
        self._attention()

    @property
    def run(self) -> Run:
        """The first run; the shape and budget of all."""
        return self.members[0].run

    @property
    def micro_batch(self) -> int:
        """Sequences a forward pass, on this rank."""
        return self.execution.micro_batch or self.run.train.batch_size

    @property
    def is_stacked(self) -> bool:
        """Whether its runs are trained as one stack; on a GPU a run alone too, whose step then waits for no launches."""
        return (len(self.members) > 1 or self.device.type == "cuda") and why_not(self) is None

    def watch(self) -> Watch | None:
        """What a forward pass of a training step is given to tell of itself in; None where `probe.watch` is 0."""
        probe = self.run.probe
        return Watch(probe.skip_queries) if probe.watch else None

    def stacked(self) -> Stack:
        """The stack of its runs, which from then on holds their weights."""
        if self.stack is None:
            self.stack = Stack(self)
        return self.stack

    @property
    def is_compiled(self) -> bool:
        if self.execution.compile == "auto":
            return self.device.type == "cuda" and all(m.run.optim.qk_clip is None for m in self.members)
        return self.execution.compile == "on"

    def facts(self) -> dict[str, Any]:
        """What was really used, for the run's environment.json."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return {
            "device": name,
            "compute_dtype": str(self.dtype).removeprefix("torch."),
            "compiled": self.is_compiled,
            "packed": self.execution.packed,
            "attention": self._attention(),
            "threads": torch.get_num_threads(),
            "micro_batch": self.micro_batch,
            "processes": self.ranks.world,
            "runs_in_group": len(self.members),
            "stacked": self.is_stacked,
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that training needs to continue, as tensors and JSON."""
        tensors: dict[str, Tensor] = {}
        if self.stack is not None:
            self.stack.publish(self.step)
        for i, m in enumerate(self.members):
            tensors |= pack(m.model, m.optimizer, f"{i}.")
            tensors[f"{i}.losses"] = torch.tensor(m.losses, dtype=torch.float64)
        return tensors, {"step": self.step, "alive": [m.alive for m in self.members]}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any], path: Path) -> None:
        """Take what `state` gave; `path` is for the error message."""
        for i, m in enumerate(self.members):
            unpack(m.model, m.optimizer, tensors, f"{i}.", path)
            m.losses = tensors[f"{i}.losses"].tolist()
            m.alive = state["alive"][i]
        self.step, self.stack = state["step"], None  # to be built anew of what was loaded

    def _attention(self) -> str:
        """The implementations of its layers; raises ValueError where the one that is asked for cannot serve them."""
        return chosen_for(
            self.run.model,
            self.execution.attention,
            dtype=self.dtype,
            device=self.device,
            has_mask=getattr(self.run.data, "document_mask", False),
        )

    def _member(self, run: Run) -> Member:
        # Runs of one text read one source.
        if run.data not in self._sources:
            self._sources[run.data] = open_source(run.data)
        source = self._sources[run.data]
        run = run.resolved(source.vocab_size)
        model = build_model(run.model, seed=run.seed).to(self.device)
        model.compute_dtype, model.is_packed, model.attention = (
            self.dtype,
            self.execution.packed,
            self.execution.attention,
        )
        return Member(run, source, model, build_optimizer(model, run.optim))


def resolve(run: Run) -> Run:
    """The run with its model's open fields filled in from its data; a resolved run is returned as it is."""
    if None not in (
        run.model.vocab_size,
        run.model.max_seq_len,
        run.model.d_ff,
        run.model.head_dim,
        run.model.n_kv_heads,
    ):
        return run
    return run.resolved(open_source(run.data).vocab_size)


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        ValueError: when cuda was asked for and is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("execution.device=cuda: torch sees no CUDA device here; use execution.device=cpu or auto")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on GPUs that compute in it and float32 elsewhere."""
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
