"""Group: the unit of work, one or more runs of one shape with their models, optimisers and data.

Notable: it is all the state that training has; `state` and `restore` make and take it as tensors and JSON.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config.data import Data
from ..config.run import Execution, Run
from ..data import Source, open_source
from ..models import build_model, model_class
from ..models.model import Model
from ..nn.watch import Watch
from ..ops.gated_attention import chosen_for
from .attention_kernels import attention_kernels
from .checkpoint import load_weights, pack, unpack
from .optim import begin_state, build_optimizer, decayed_names
from .parallel import Ranks, join
from .stack import Stack, why_not

if TYPE_CHECKING:
    from .shard.layout import Layout


@dataclass
class Member:
    """One run of a group. `losses` are those of every step so far; `alive` is false after a divergence; `layout` says where its
    weights lie when ranks share them."""

    run: Run
    source: Source
    model: Model
    optimizer: torch.optim.AdamW
    losses: list[float] = field(default_factory=list)
    alive: bool = True
    layout: "Layout | None" = None


class Group:
    """Runs that differ in seed and values, not in shape.

    Args:
        runs: with resolved models, of equal shape and budget.
        execution: device, threads, micro-batch, compilation.

    Raises:
        ValueError: runs of different shapes, or watched at different steps; a device that is not there; compilation
            together with `optim.qk_clip`, whose hooks compiled code leaves out; an `execution.attention` that cannot serve
            the model, its data's mask, the type or the device; an `execution.parallel` that does not fit the processes, the
            model or its batches, or goes with `packed`.
    """

    def __init__(self, runs: list[Run], execution: Execution | None = None):
        self.execution = execution or Execution()
        self.device = pick_device(self.execution.device)
        runs = [resolve(run) for run in runs]
        first = runs[0]
        self._gates = first.model.all_gates
        parallel, world = self.execution.parallel, processes()
        # All that a mesh could be refused for, before processes wait for each other.
        parallel.check(first.model, first.train.batch_size, world)
        if world > 1 and not parallel.is_plain:
            _refuse_beside_mesh(self.execution)
        self.ranks: Ranks = join(self.device, self.execution.wait_s)
        for run in runs[1:]:
            if any(getattr(run, name) != getattr(first, name) for name in ("model", "objective", "train")):
                raise ValueError(
                    "runs of a group must share model, objective and train; these differ: put them into two groups"
                )
        probes = [r.probe for r in runs]
        looks = {(p.times, p.every, p.watch, p.skip_queries if p.watch else None) for p in probes}
        if len(looks) > 1:
            raise ValueError(
                "runs of a group must share probe.times, probe.every and probe.watch, and probe.skip_queries where they are "
                "watched; these differ: put them into two groups"
            )
        if self.execution.compile == "on" and any(run.optim.qk_clip is not None for run in runs):
            raise ValueError(
                "optim.qk_clip reads attention logits by hooks, which compiled code leaves out; set "
                "execution.compile=auto, which then does not compile, or off"
            )
        self.dtype = pick_dtype(first.train.precision, self.device)
        if world > 1 and not parallel.is_plain:
            from .mesh import make_mesh

            self.ranks = replace(self.ranks, mesh=make_mesh(parallel, world, self.device, self.execution.wait_s))
        self._sources: dict[Data, Source] = {}
        self.members = [self._member(run) for run in runs]
        self.step, self.stack = 0, None
        self.ahead, self.is_asked = 0, False
        self._attention()

    def rest(self) -> bool:
        """Whether its weights are those of the step that training gave last. Where others are under way none is begun any more
        until they are, so ask again at the next step."""
        self.is_asked = self.ahead > 0
        return not self.is_asked

    def must_stand(self) -> None:
        """Raise RuntimeError while steps are under way."""
        if self.ahead:
            raise RuntimeError(
                f"{self.ahead} step(s) after step {self.step} are under way; look, save and train where rest() is true"
            )

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
        """On a mesh block by block, else the whole step but for its update where runs are not stacked."""
        return self._compiles([m.run for m in self.members])

    @property
    def is_packed(self) -> bool:
        """Whether the products of one input are one: where nothing is said, on GPUs, of a model some gate of which joins them."""
        if self.execution.packed != "auto":
            return self.execution.packed
        joins = any(g.source == "hidden" and g.rank is None and g.mlp is None for g in self._gates)
        return joins and self.device.type == "cuda" and self.ranks.mesh is None

    def _compiles(self, runs: list[Run]) -> bool:
        if self.execution.compile == "auto":
            return self.device.type == "cuda" and all(run.optim.qk_clip is None for run in runs)
        return self.execution.compile == "on"

    def facts(self) -> dict[str, Any]:
        """What was really used, for the run's environment.json."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return {
            "device": name,
            "compute_dtype": str(self.dtype).removeprefix("torch."),
            "compiled": self.is_compiled,
            "packed": self.is_packed,
            "attention": self._attention(),
            "attention_kernels": attention_kernels(
                self.run.model, self._attention(), dtype=self.dtype, device=self.device
            ),
            "threads": torch.get_num_threads(),
            "micro_batch": self.micro_batch,
            "recompute": self.execution.recompute,
            "processes": self.ranks.world,
            "parallel": self.execution.parallel.model_dump() if self.ranks.mesh is not None else None,
            "runs_in_group": len(self.members),
            "stacked": self.is_stacked,
        }

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within it the writer's members have models of one process, to look at and to write; every rank must enter it.

        Such a model is a copy on the writer's device, with the weights as they stand. Nothing happens where every rank has
        the whole model anyway.
        """
        self.must_stand()
        shared = [m for m in self.members if m.layout is not None]
        models = [m.model for m in shared]
        try:
            for m in shared:
                copy = self._plain(m.run) if self.ranks.is_writer else None
                m.layout.gather(copy)
                m.model = m.model if copy is None else copy
            yield
        finally:
            for m, model in zip(shared, models, strict=True):
                m.model = model

    def load_weights(self, member: Member, path: Path) -> None:
        """Begin from the final weights of another run.

        Raises:
            CheckpointError: as `checkpoint.load_weights`.
        """
        if member.layout is None:
            load_weights(member.model, path)
            return
        model = build_model(member.run.model, seed=member.run.seed)
        load_weights(model, path)
        member.layout.take(dict(model.named_parameters()))

    def tensors_of(self, member: Member) -> dict[str, Tensor]:
        """Weights and optimiser state of a member as they lie here, to be written or filled; `checkpoint.pack` names them."""
        if member.layout is not None:
            return member.layout.tensors(member.optimizer)
        begin_state(member.model, member.optimizer)
        return {name: t.detach() for name, t in pack(member.model, member.optimizer, "").items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that training needs to continue, as tensors and JSON."""
        self.must_stand()
        tensors: dict[str, Tensor] = {}
        if self.stack is not None:
            self.stack.publish(self.step)
        for i, m in enumerate(self.members):
            tensors |= pack(m.model, m.optimizer, f"{i}.")
            tensors[f"{i}.losses"] = torch.tensor(m.losses, dtype=torch.float64)
        return tensors, {"step": self.step, "alive": [m.alive for m in self.members]}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any], path: Path) -> None:
        """Take what `state` gave; `path` is for the error message."""
        for i in range(len(self.members)):
            own = {name.removeprefix(f"{i}."): t for name, t in tensors.items() if name.startswith(f"{i}.")}
            self.take(i, own, path)
        self.stand_at(state["step"], state["alive"])

    def take(self, i: int, tensors: dict[str, Tensor], path: Path) -> None:
        """Give one member the tensors of one process that `state` gave of it; `path` is for the error message."""
        m = self.members[i]
        if m.layout is None:
            unpack(m.model, m.optimizer, tensors, "", path)
        else:
            m.layout.take_all(tensors, m.optimizer, path)
        m.losses = tensors["losses"].tolist()

    def stand_at(self, step: int, alive: list[bool]) -> None:
        """Go on from a step, of whose members these have not diverged."""
        for m, is_alive in zip(self.members, alive, strict=True):
            m.alive = is_alive
        self.step, self.stack = step, None  # to be built anew of what was loaded
        self.ahead, self.is_asked = 0, False

    def _attention(self) -> str:
        """The implementations of its layers; raises ValueError where the one that is asked for cannot serve them."""
        return chosen_for(
            self.run.model,
            self.execution.attention,
            dtype=self.dtype,
            device=self.device,
            has_mask=getattr(self.run.data, "document_mask", False),
        )

    def _plain(self, run: Run) -> Model:
        """A model of one process whose weights are still to be filled in."""
        model = model_class(run.model)(run.model).to(self.device)
        self._set(model)
        return model

    def _member(self, run: Run) -> Member:
        # Runs of one text read one source.
        if run.data not in self._sources:
            self._sources[run.data] = open_source(run.data)
        source = self._sources[run.data]
        run = run.resolved(source.vocab_size)
        # A model that is shared out goes to the device part by part.
        mesh = self.ranks.mesh
        model = build_model(run.model, seed=run.seed)
        if mesh is None:
            self._set(model.to(self.device))
            return Member(run, source, model, build_optimizer(model, run.optim))
        from .shard.layout import lay_out

        decayed = decayed_names(model)
        layout = lay_out(model, mesh, self.dtype, self.device, compiled=self._compiles([run]))
        self._set(model)
        return Member(run, source, model, build_optimizer(model, run.optim, decayed), layout=layout)

    def _set(self, model: Model) -> None:
        """How a model computes."""
        model.compute_dtype, model.is_packed, model.attention = (
            self.dtype,
            self.is_packed,
            self.execution.attention,
        )
        model.recompute = self.execution.recompute


def processes() -> int:
    """How many share a run, as torchrun's environment says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _refuse_beside_mesh(execution: Execution) -> None:
    if execution.packed is True:
        raise ValueError(
            "execution.packed=true joins projections, of which execution.parallel gives each rank a part; leave one of them out"
        )


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
