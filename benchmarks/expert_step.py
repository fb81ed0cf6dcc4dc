"""The trainer's step of a mesh whose two ranks share experts, on one device that plays both; beside it steps of one GPU.

What the other rank does is copied, not computed: torch's fake group sums nothing and sends nothing, and the rows that go to experts
come back as the other's, copied on the device (`Peer`). So a step has all that a rank computes and launches, and its waits; it
has not the links, for which copies of the other's rows stand, nor one rank that is late for another.
Losses mean nothing. Used by `expert_parts.py --played`.
"""

import os
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
import torch.distributed as dist
from step_profile import kernels_of, profiled
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from gatelab.bench.benchmark import device_name
from gatelab.bench.held_training import Unstacked
from gatelab.bench.train import _random_tokens
from gatelab.config.model import ModelConfig
from gatelab.config.parallel import ParallelConfig
from gatelab.config.run import Execution, Run, TrainConfig
from gatelab.record import Step
from gatelab.train.group import Group
from gatelab.train.loop import train
from gatelab.train.planner.devices import DEVICES, Device
from gatelab.train.planner.mesh import Mesh
from gatelab.train.planner.step import Job, StepPlan, plan_step
from gatelab.train.shard.compiled import compile_blocks

# `captured`: one GPU as the trainer has it. `whole`: the same, compiled as a whole, launched kernel by kernel. `blocks`: compiled
# block by block as on a mesh, its loss and update launched as they are written. `ep`: a rank of two that get as many rows each;
# `ep busier`: of two that choose alike the one whose experts are chosen more often, by layer.
ARMS = ("captured", "whole", "blocks", "ep", "ep busier")
_WARM, _PROFILED = 4, 2


@dataclass
class Peer:
    """The other rank of two. It sends back what it is sent, so that as many rows come as go; gradients take the same way.

    `is_busier`: it has chosen as this rank has, and the half of the experts that gets more is here. Then the rows that come are
    copies of those that go, some of them twice. `sent` are bytes that would leave a rank, in the fuller direction; `summed` those
    that two ranks would sum; `numbers` the rows to each expert, a tensor [2, X] a layer; `held` the bytes allocated when a sum was
    first asked for, which is when the forward pass is over.
    """

    is_busier: bool = False
    sent: int = 0
    summed: int = 0
    numbers: list[Tensor] = field(default_factory=list)
    held: int | None = None

    def begin(self) -> None:
        """Forget what was counted."""
        self.sent, self.summed, self.numbers, self.held = 0, 0, [], None

    def all_to_all_single(
        self,
        out: Tensor,
        rows: Tensor,
        come: list[int] | None = None,
        to: list[int] | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """As torch's: without numbers of rows it is these that are exchanged."""
        if come is None:
            self.numbers.append(rows)
            # Chosen on the device: the host waits as often as it does of two ranks.
            out.copy_(rows.index_select(0, rows.sum(dim=-1).argmax(keepdim=True)) if self.is_busier else rows)
            return
        self.sent += max(out.nbytes, rows.nbytes) // 2
        for first in range(0, len(out), max(1, len(rows))):
            part = out[first : first + len(rows)]
            part.copy_(rows[: len(part)])

    def all_reduce(self, values: Tensor, op: object = None, group: dist.ProcessGroup | None = None) -> None:
        """This rank's part, as it is."""
        if self.held is None:
            self.held = torch.cuda.memory_allocated() if values.is_cuda else 0
        if group is None or group.size() > 1:
            self.summed += values.nbytes

    @property
    def shares(self) -> list[float]:
        """Of the rows of each layer what the busier half of the experts gets."""
        return [(n.max() / n.sum()).item() for n in (numbers.sum(dim=-1) for numbers in self.numbers)]


@contextmanager
def played(peer: Peer) -> Iterator[None]:
    """Within it this process is the first of two, and the peer is the other."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    calls = {"all_to_all_single": peer.all_to_all_single, "all_reduce": peer.all_reduce, "barrier": lambda: None}
    # A group of hosts would wait for the other.
    calls["new_group"] = lambda **_: dist.group.WORLD
    try:
        with patch.multiple(dist, **calls), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Set timeout is now only supported")
            yield
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Asked:
    """Steps of a resolved model with experts, of `sequences` of `context` tokens a GPU; `rounds` are timed."""

    model: ModelConfig
    context: int
    sequences: int
    device: torch.device
    rounds: int
    arms: tuple[str, ...] = ("captured", "blocks", "ep", "ep busier")


def measured(asked: Asked, peer: Peer) -> dict[str, object]:
    """Milliseconds of a step of each arm, the arms in turns; of what they consist; memory; and what was planned. Call within
    `played`."""
    arms, groups = {name: _Arm(name, asked, peer) for name in ARMS if name in asked.arms}, {}
    found: dict[str, dict[str, object]] = {}
    for name, arm in arms.items():
        began = time.perf_counter()
        found[name] = arm.begin(groups) | {"ready_s": time.perf_counter() - began}
        print(f"{name:10} ready after {found[name]['ready_s']:.0f} s, peak {found[name]['peak_gib']} GiB", flush=True)
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(asked.rounds):
        for name, arm in arms.items():
            began = time.perf_counter()
            arm.step()
            times[name].append(1e3 * (time.perf_counter() - began))
    for name, arm in arms.items():
        x = times[name]
        f = found[name] = found[name] | {"ms": statistics.median(x), "least": min(x), "most": max(x)}
        print(f"{name:10} {f['ms']:8.2f} ms ({f['least']:.2f} to {f['most']:.2f})", end="", flush=True)
        f |= arm.looked_at()
        print(f", kernels {f['busy_ms']:.2f}, {f['launches']:.0f} of them, waits {f['waits']}", flush=True)
    plans = {"one": _plan(asked, Mesh()), "ep": _plan(asked, Mesh(2, ep=2, shard="none"))}
    return {"arms": found, "split": split(found, asked), "planned": {name: p.record() for name, p in plans.items()}}


def split(found: dict[str, dict], asked: Asked) -> dict[str, float]:
    """Milliseconds by which a step of two ranks is longer than a captured one of one GPU, by reason; those whose arms there are.

    Of each `kernels` is the time in which one ran; the rest of it the device stood still (of a captured step a profiler may see no
    kernels). The wire is arithmetic, bytes over a link's stated rate.
    """
    out: dict[str, float] = {}
    for what, less, more in (
        ("by blocks and not captured", "captured", "blocks"),
        ("experts shared out", "blocks", "ep"),
        ("uneven ranks", "ep", "ep busier"),
    ):
        if less in found and more in found:
            out[what] = found[more]["ms"] - found[less]["ms"]
            out[f"{what}, kernels"] = found[more]["busy_ms"] - found[less]["busy_ms"]
    for name in ("ep", "ep busier"):
        if name in found:
            sent = found[name]["sent_bytes"] + found[name]["summed_bytes"]
            out[f"wire of {name}"] = 1e3 * sent / _of_planner(asked.device).link
    for what, ms in out.items():
        print(f"{what:40} {ms:8.2f} ms")
    return out


class _Arm:
    """Steps of one arm."""

    def __init__(self, name: str, asked: Asked, peer: Peer):
        self.name, self.asked, self.peer = name, asked, peer
        self.is_shared = name.startswith("ep")
        self._cuda = asked.device.type == "cuda"

    def begin(self, groups: dict[str, tuple[Group, Iterator[Step], int]]) -> dict[str, object]:
        """Make the group, or take that of another arm of the mesh; the first steps, and the memory that they took at their peak
        over what was held before the group was made."""
        key = "ep" if self.is_shared else self.name
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if key not in groups:
            before = torch.cuda.memory_allocated() if self._cuda else 0
            group = self._group()
            groups[key] = group, train(group), before
        self.group, self.steps, before = groups[key]
        self.step()
        shares = self.peer.shares
        for _ in range(_WARM - 1):
            self.step()
        gib = {"peak_gib": (torch.cuda.max_memory_allocated() - before) / 2**30 if self._cuda else None}
        if not self.is_shared:
            return gib
        # After the forward pass the choices of all ranks are summed.
        gib["after_forward_gib"] = (self.peer.held - before) / 2**30 if self._cuda else None
        counted = {"sent_bytes": self.peer.sent, "summed_bytes": self.peer.summed, "busier_shares_first": shares}
        return gib | counted

    def step(self) -> None:
        """One, its numbers read."""
        self.peer.begin()
        self.peer.is_busier = self.name == "ep busier"
        next(self.steps)

    def looked_at(self) -> dict[str, object]:
        """Kernels of a step, by kind and by name; how often its host waits for the device, and for how long where it asks for
        numbers."""
        profile = profiled(kernels_of(self.step, _PROFILED, self.asked.device), _PROFILED)
        waited, tolist = [], Tensor.tolist

        def asking(values: Tensor) -> list:
            began = time.perf_counter()
            out = tolist(values)
            waited.append((time.perf_counter() - began) * (values.device.type == self.asked.device.type))
            return out

        with patch.object(Tensor, "tolist", asking):
            self.step()
        with _told_of_waits() if self._cuda else nullcontext([]) as told:
            self.step()
        return {
            "busy_ms": profile["busy_ms"], "launches": sum(kind["count"] for kind in profile["kinds"].values()),
            "waits": len(told), "waited_ms": 1e3 * sum(waited), "profile": profile,
            **({"busier_shares": self.peer.shares} if self.is_shared else {}),
        }  # fmt: skip

    def _group(self) -> Group:
        a, n = self.asked, 2 if self.is_shared else 1
        training = TrainConfig(
            tokens=a.context * a.sequences * n * 10**6, batch_size=a.sequences * n, seq_len=a.context
        )
        run = Run(model=a.model, train=training)
        data = _random_tokens(a.model.vocab_size - run.resolved_objective.extra_ids(a.context))
        execution = Execution(
            device=a.device.type, micro_batch=a.sequences, processes=n,
            parallel=ParallelConfig(ep=n), compile="off" if self.name == "blocks" else "auto",
        )  # fmt: skip
        kind = Group if self.name == "captured" else Unstacked
        with patch.dict(os.environ, {"WORLD_SIZE": str(n), "RANK": "0", "LOCAL_RANK": "0"}):
            group = kind([run.model_copy(update={"data": data})], execution)
        if self.name == "blocks" and self._cuda:
            compile_blocks(group.members[0].model)
        return group


@contextmanager
def _told_of_waits() -> Iterator[list[warnings.WarningMessage]]:
    """The warnings of calls for which the host waits for its GPU; all of them once it is left."""
    found: list[warnings.WarningMessage] = []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            yield found
            found += [w for w in told if "synchroniz" in str(w.message)]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _plan(asked: Asked, mesh: Mesh) -> StepPlan:
    job = Job(asked.model, asked.context * asked.sequences * mesh.gpus, asked.context)
    return plan_step(job, mesh, device=_of_planner(asked.device).name.lower(), micro_batch=asked.sequences)


def _of_planner(device: torch.device) -> Device:
    """The planner's device that this is, else its H100."""
    return next((d for d in DEVICES.values() if d.name in device_name(device.type)), DEVICES["h100"])
