"""gatelab probe: a run, or anybody's checkpoint."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .base import Flag, Json, Words, print_json, said, tell

if TYPE_CHECKING:
    from ..evals.changes import Effects
    from ..evals.checkpoint import Look
    from ..record import Row


def probe(
    model: str,
    *,
    text: str | None = None,
    length: int | None = None,
    sequences: int | None = None,
    at_once: int | None = None,
    probes: str | None = None,
    dtype: Literal["float32", "bfloat16", "auto"] | None = None,
    device: Literal["cpu", "cuda", "auto"] | None = None,
    extend: Literal["yarn", "linear", "dynamic"] | None = None,
    trust_remote_code: Flag = False,
    allow_pickle: Flag = False,
    intervene: Words = None,
    documents: int | None = None,
    out: Path | None = None,
    json_: Json = False,
) -> int:
    """Look at a run or at a checkpoint: sinks, massive activations, gates.

    Parameters
    ----------
    model:
        A finished run's folder, probed on its held-out data; a folder in Hugging Face's layout (config.json, safetensors,
        tokenizer), a .gguf file, or a model of the hub as org/name, probed on a text.
    text:
        For a checkpoint: a file or a folder; the source of Python's standard library unless stated.
    length:
        Tokens a sequence; a run's training context, and at most 512 for a checkpoint, unless stated.
    sequences:
        How many; as many as 4,096 tokens make, 8 at most, unless stated.
    at_once:
        Tokens a pass of a decoder, with a cache: 2,048 unless stated; 0 reads sequences whole.
    probes:
        Names joined by commas, see `gatelab probes`; all unless stated.
    dtype:
        Of the weights: float32 unless stated; auto is as they are stored.
    device:
        cpu unless stated; auto is a GPU where there is one.
    extend:
        For a length beyond the model's positions: stretch the rotary ones.
    trust_remote_code:
        Run the code that a checkpoint brings along.
    allow_pickle:
        Open pickled weights, as weights only.
    intervene:
        Edits, such as zero-value@first, mask-key@first, drop-first, gate=open, clip-massive=100x: the change in next-token
        loss, beside the same-size edit elsewhere, by dose. `gatelab interventions` lists them.
    documents:
        How many documents of at most `length` tokens the loss is over; 16 unless stated.
    out:
        A folder for the page and all rows.
    json_:
        One JSON record a measurement, layers and heads included.
    """
    from .. import lab
    from ..config import ConfigError

    names = None if probes is None else [name.strip() for name in probes.split(",") if name.strip()]
    if names == []:
        raise ConfigError([f"--probes {probes!r}: names none; `gatelab probes` lists them, or leave it out"])
    if documents is not None and not intervene:
        raise ConfigError([f"--documents {documents} is for --intervene, which is not given; leave it out"])
    if out is not None and out.exists() and not out.is_dir():
        raise ConfigError([f"--out {out}: is a file; name a folder, which is made where there is none"])
    _check_edits(intervene or ())
    if not lab.is_checkpoint(model):
        given = {
            "--text": text, "--sequences": sequences, "--at-once": at_once, "--probes": probes, "--dtype": dtype,
            "--device": device, "--extend": extend, "--trust-remote-code": trust_remote_code or None,
            "--allow-pickle": allow_pickle or None,
        }  # fmt: skip
        beyond = [name for name, value in given.items() if value is not None]
        if beyond and Path(model).exists():
            raise ConfigError(
                [f"{beyond[0]} is for checkpoints: a run is probed on its own held-out data; leave it out"]
            )
        if out is not None and not intervene:
            return _finish(lab.look_at_run(model, length=length), out, is_json=json_)
        if not intervene:
            return _tell_rows(lab.probe(model, length=length), "", is_json=json_)
        effects = lab.intervene(model, intervene, documents=16 if documents is None else documents, length=length)
        return _tell_effects(effects, Path(model).name, is_json=json_)
    from ..evals.checkpoint import Edits, Reading
    from ..models.external import Extension, Loading

    if extend is not None and length is None:
        raise ConfigError([f"--extend {extend} stretches positions to --length, which is not given; state both"])
    look = lab.probe_checkpoint(
        model,
        Reading(text or "stdlib", length, sequences, 2048 if at_once is None else at_once),
        Loading(
            dtype=dtype or "float32",
            device=device or "cpu",
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            extension=None if extend is None else Extension(kind=extend, length=length),
        ),
        names=names,
        tell=tell if sys.stderr.isatty() else None,
        edits=None if not intervene else Edits(tuple(intervene), 16 if documents is None else documents),
    )
    return _finish(look, out, is_json=json_)


def _check_edits(words: Sequence[str]) -> None:
    """Whether these are edits, before a model is opened.

    Raises:
        ConfigError: one that is none.
    """
    if not words:
        return
    from ..config import ConfigError
    from ..probes.interventions import parse

    for word in words:
        try:
            parse(word)
        except ValueError as error:
            raise ConfigError([str(error)]) from None


def _finish(look: "Look", out: Path | None, *, is_json: bool) -> int:
    for class_name, why in dict.fromkeys((u.class_name, u.why) for u in look.unobserved):
        names = [u.module for u in look.unobserved if (u.class_name, u.why) == (class_name, why)]
        tell(f"not observed: {class_name}, {why} ({len(names)} layers, the first is {names[0]})")
    if out is not None:
        from .. import lab

        tell(f"the page: {lab.write_look(look, out)}")
    notes = [f"Note: {note}" for note in look.notes]
    _tell_rows(look.rows, "\n".join([look.description, *look.facts, *notes, ""]), is_json=is_json)
    return 0 if look.effects is None else _tell_effects(look.effects, look.name, is_json=is_json)


def _tell_effects(effects: "Effects", run: str, *, is_json: bool) -> int:
    if is_json:
        print_json([row.as_dict() for row in effects.rows(run)])
    else:
        print("\n".join(effects.lines()))
    return 0


def _tell_rows(rows: "list[Row]", title: str, *, is_json: bool) -> int:
    from ..terminal import print_records

    if is_json:
        print_json([row.as_dict() for row in rows])
        return 0
    keys = ("metric", "stack", "site", "stage", "value", "unit", "threshold", "domain", "key", "channel")
    shown = [
        {key: getattr(r, key) for key in keys} for r in rows if r.layer is None and r.head is None and r.bin is None
    ]
    print_records(said(shown), title)
    return 0
