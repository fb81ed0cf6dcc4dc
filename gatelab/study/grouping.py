"""How many runs of one shape train as one stack, where a study does not say: enough to keep a GPU busy.

Notable: a step below about 32 thousand tokens leaves a GPU waiting for launches, and weights of small models are read once a
step however many sequences there are, so small runs share steps until these have that many tokens. Large ones are alone.
"""

import json
import math
import struct
from collections import Counter
from typing import Any

from ..config import digest
from ..config.normaliser import Heads
from ..config.run import Run
from ..store import RunFolder
from ..train.checkpoint_folder import steps
from ..train.cost import training_bytes

# Tokens of a step, over all runs of a stack.
_TOKENS = 2**17
_MOST_RUNS = 256
# Bytes of all runs together: most of a GPU of 24 GB.
_MOST_BYTES = 2**34
# Widths in bfloat16 whose rows a grouped product takes (`gatelab.ops.expert_ffn.grouped`).
_EVEN = 8
# Sources whose batches differ in nothing but their tokens.
_DRAWN = ("tasks", "bigram-backcopy")
# As safetensors itself refuses more.
_MOST_HEADER = 100_000_000


def group_size(run: Run, *, has_gpus: bool) -> int:
    """Runs in one process: on CPUs one, since processes share the cores better; 1 too for what `gatelab.train.stack` does not
    stack, and for a run that is not resolved.
    """
    model, train = run.model, run.train
    if None in (model.vocab_size, model.max_seq_len, model.d_ff, model.head_dim, model.n_kv_heads):
        return 1
    learns = bool(model.softmax.learned(Heads(model.n_heads, model.n_kv_heads, model.head_dim)))
    stacks = model.positions != "relative" and run.optim.qk_clip is None and (model.softmax.may_differ or not learns)
    if not has_gpus or not stacks:
        return 1
    moe = model.moe
    if moe is not None and (model.d_model % _EVEN or moe.d_expert % _EVEN or train.precision == "float32"):
        # No grouped product takes these on a GPU: every expert reads every token.
        model = model.model_copy(update={"moe": moe.model_copy(update={"top_k": moe.n_experts})})
    of_one = training_bytes(model, train.batch_size, train.seq_len, objective=run.objective).total()
    wanted = math.ceil(_TOKENS / train.tokens_per_step)
    return max(1, min(wanted, _MOST_RUNS, _MOST_BYTES // of_one))


def shape_of(config: dict[str, Any]) -> str:
    """A name for what runs must share to train as one stack, of a run's configuration: all but the seed, where it starts from,
    the numbers of its optimiser, and which tasks or settings of a toy its tokens are drawn from."""
    data, optim = config.get("data", {}), config.get("optim", {})
    shared = {name: part for name, part in config.items() if name not in ("seed", "init_from", "data", "optim")}
    shared["data"] = data.get("kind") if data.get("kind") in _DRAWN else data
    return digest(shared | {"qk_clip": optim.get("qk_clip")})


def stands_at(run: RunFolder) -> int | None:
    """The step of a run's newest checkpoint, read from its header or its folder's name; None without one, or with one that cannot
    be read. A group goes on only where all its runs stand at one step."""
    saved = None if run.objects is None else run.objects.saved(run.objects.name_of(run.path)).get("step")
    return max((s for s in (_in_header(run), *steps(run.path), saved) if s is not None), default=None)


def environment_of(run: RunFolder) -> dict[str, Any] | None:
    """What was really used, as the run's environment.json says; None without one that can be read, as before it has begun."""
    try:
        with open(f"{run.path}/environment.json", "rb") as file:
            found = json.loads(file.read())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def grouping(environments: list[dict[str, Any] | None]) -> str:
    """How runs were grouped, of what `environment_of` says of them: 768 runs in 3 stacks of 256.

    Runs that have not begun, or whose record says nothing of a group, are left out; of no others nothing is said.
    """
    known = [e for e in environments if e is not None and "runs_in_group" in e]
    sizes = Counter((e["runs_in_group"], bool(e.get("stacked"))) for e in known)
    if all(size == 1 for size, _ in sizes):
        return f"{len(known)} runs, each alone" if len(known) > 1 else "1 run, alone" if known else ""
    said = [_said(-(-n // size), size, is_stacked) for (size, is_stacked), n in sorted(sizes.items(), reverse=True)]
    return f"{len(known)} runs in {', '.join(said)}"


def _said(n_groups: int, size: int, is_stacked: bool) -> str:
    if size == 1:
        return f"{n_groups} alone"
    word = "stack" if is_stacked else "group"
    return f"{n_groups} {word}{'s' if n_groups > 1 else ''} of {size}{'' if is_stacked else ' that take turns'}"


def _in_header(run: RunFolder) -> int | None:
    try:
        with open(run.path / "checkpoint.safetensors", "rb") as file:
            (n_bytes,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(n_bytes, _MOST_HEADER)))
        return int(json.loads(header["__metadata__"]["gatelab"])["step"])
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
