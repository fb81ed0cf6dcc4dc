"""gatelab bench: what the op, training, a decoding step and the probes cost here, beside what they must cost."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cyclopts import App, Parameter

from .base import Json, print_json, tell

bench = App(
    name="bench", help="Time the op, training, a decoding step or the probes, beside what the device must spend."
)


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """What every benchmark has."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    "auto is the GPU where there is one; a CPU's defaults are small."
    seconds: float | None = None
    "About how long it may take in all: 120 unless stated."
    out: Path = Path("benchmarks/results")
    "A folder, where a section is added to KIND_DEVICE_YYYY-MM.md and .json."
    json_: Json = False
    "One JSON record a row."


_COMMON = Common()


@bench.command
def ops(
    *,
    tokens: int | None = None,
    length: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    gates: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    window: int | None = None,
    documents: int | None = None,
    common: Common = _COMMON,
) -> int:
    """Gated attention by every implementation and every peer that is installed, and the gate alone.

    Parameters
    ----------
    tokens:
        In all; 32,768 on a GPU unless stated.
    length:
        Of a sequence; 4,096 on a GPU unless stated.
    heads:
        Of queries; 16 on a GPU unless stated.
    kv_heads:
        Of keys and values; as many as heads unless stated.
    head_dim:
        Channels of a head; 128 on a GPU unless stated.
    gates:
        Joined by commas; none,sdpa-headwise,sdpa-elementwise unless stated. none is always among them.
    dtype:
        bfloat16 on a GPU and float32 elsewhere unless stated.
    window:
        Keys that a query sees, its own included; all earlier ones unless stated.
    documents:
        Of about equal length in each sequence, which do not see each other; one unless stated.
    """
    given = {
        "tokens": tokens, "length": length, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim,
        "gates": gates, "dtype": dtype, "window": window, "documents": documents,
    }  # fmt: skip
    return _carry_out("ops", given, common)


@bench.command
def train(
    *,
    sizes: str | None = None,
    context: int | None = None,
    tokens: int | None = None,
    micro_batch: int | None = None,
    steps: int | None = None,
    gates: str | None = None,
    group: int | None = None,
    packed: bool | None = None,
    attention: str | None = None,
    peers: str | None = None,
    common: Common = _COMMON,
) -> int:
    """Steps of the trainer: tokens a second and MFU, gated and ungated, alone and many at once.

    Parameters
    ----------
    sizes:
        Joined by commas: names of `gatelab sizes`, or width x layers x heads x vocabulary, as in 128x4x4x256.
    context:
        Tokens of a sequence; 1,024 on a GPU unless stated.
    tokens:
        Of a step; 65,536 on a GPU unless stated.
    micro_batch:
        Sequences at a time; the whole batch unless stated.
    steps:
        That a model takes in its turn.
    gates:
        Joined by commas; none,sdpa-headwise,sdpa-elementwise unless stated. none is always among them.
    group:
        Also so many runs of one shape in one process, against one after another.
    packed:
        Queries, keys, values and gate in one product; on a GPU unless --no-packed.
    attention:
        The implementation of attention, as `impl` of GatedAttention; auto unless stated.
    peers:
        What else trains the ungated model, joined by commas: loop (the trainer, compiled and uncaptured), transformers (its Llama,
        compiled), or none; both on a GPU unless stated.
    """
    given = {
        "sizes": sizes, "context": context, "tokens": tokens, "micro_batch": micro_batch, "steps": steps,
        "gates": gates, "group": group, "packed": packed, "attention": attention,
        "peers": peers,
    }  # fmt: skip
    return _carry_out("train", given, common)


@bench.command
def decode(
    *,
    batch: str | None = None,
    cache: str | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    gates: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    common: Common = _COMMON,
) -> int:
    """One query a sequence through an attention layer with a cache, gated over ungated.

    Parameters
    ----------
    batch:
        Sequences, joined by commas; 1,8,64 on a GPU unless stated.
    cache:
        Tokens before the query, joined by commas; 4,096 on a GPU unless stated.
    heads:
        Of queries; 16 on a GPU unless stated.
    kv_heads:
        Of keys and values; as many as heads unless stated.
    head_dim:
        Channels of a head; 128 on a GPU unless stated.
    gates:
        Joined by commas; none,sdpa-headwise,sdpa-elementwise unless stated. none is always among them.
    dtype:
        bfloat16 on a GPU and float32 elsewhere unless stated.
    """
    given = {
        "batch": batch, "cache": cache, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim,
        "gates": gates, "dtype": dtype,
    }  # fmt: skip
    return _carry_out("decode", given, common)


@bench.command
def probe(*, length: str | None = None, common: Common = _COMMON) -> int:
    """The probes against all attention matrices, on a decoder of transformers.

    Parameters
    ----------
    length:
        Tokens, joined by commas; 8192,32768 on a GPU unless stated.
    """
    return _carry_out("probe", {"length": length}, common)


def _carry_out(kind: str, given: dict[str, Any], common: Common) -> int:
    from ..bench.benchmark import benchmark, device_name, pick_device, utc_now
    from ..bench.plan import plan
    from ..bench.write import places, read_before, records, table, write
    from ..config import ConfigError
    from ..terminal import print_records

    if common.out.exists() and not common.out.is_dir():
        raise ConfigError([f"--out {common.out}: is a file; name a folder, which is made where there is none"])
    planned = plan(kind, pick_device(common.device), {**given, "seconds": common.seconds})
    try:  # before the time is spent
        common.out.mkdir(parents=True, exist_ok=True)
        (common.out / ".writable").touch()
        (common.out / ".writable").unlink()
    except OSError as error:
        raise ConfigError(
            [f"--out {common.out}: cannot be written to ({error.strerror}); name another folder"]
        ) from None
    read_before(*places(kind, device_name(planned.device), utc_now(), common.out))
    found = benchmark(kind, planned, tell if sys.stderr.isatty() else _silent)
    if common.json_:
        print_json(records(found))
    else:
        print_records(table(found), "\n".join([*found.heading, ""]))
    if all(row.median_ms is None for row in found.rows):
        tell("nothing was timed, and nothing was written; the contract's column says why")
        return 1
    page, data = write(found, common.out)
    tell(f"added to {page} and {data}")
    return 0


def _silent(message: str) -> None:
    """Where nobody watches, only the end is told."""
