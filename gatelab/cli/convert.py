"""gatelab convert: whole models, from transformers and back, and checkpoints in another layout of gated attention."""

from pathlib import Path
from typing import Literal

from .base import Flag, tell


def convert(
    source: str,
    out: Path,
    *,
    to: Literal["gatelab", "hf"] | None = None,
    layout: str | None = None,
    from_layout: str | None = None,
    allow_pickle: Flag = False,
) -> int:
    """Make a model of ours out of a checkpoint or a run, a checkpoint for transformers out of either of ours, or a checkpoint
    in another layout of gated attention.

    What cannot be expressed exactly is refused by the key of the configuration; OUT is complete or absent.

    Parameters
    ----------
    source:
        To gatelab: a folder in Hugging Face's layout, a .gguf file, a model of the hub as org/name, or the folder of a run. To
        hf: the folder of a run, or one that `--to gatelab` wrote. Of a run that has not finished the newest whole checkpoint is
        taken. For a layout: a folder with config.json and safetensors.
    out:
        A new folder.
    to:
        gatelab: model.json and weights.safetensors, with the logits of transformers. hf: what AutoModelForCausalLM loads,
        natively where transformers has the architecture, else with code that goes along.
    layout:
        In the place of --to: the attention layers in this layout, such as qwen3-next or megatron, and all other tensors
        as they are. docs/checkpoints.md lists the layouts.
    from_layout:
        With --layout: what SOURCE is in, where its config and shapes leave several.
    allow_pickle:
        To gatelab: open pickled weights, as weights only.
    """
    from ..config import ConfigError

    if (to is None) == (layout is None):
        raise ConfigError(["one of --to and --layout says what is wanted: --to gatelab, --to hf, or --layout NAME"])
    if from_layout is not None and layout is None:
        raise ConfigError(["--from-layout goes with --layout; leave it out"])
    if allow_pickle and to != "gatelab":
        raise ConfigError(["--allow-pickle is for --to gatelab: nothing else here is pickled; leave it out"])
    if layout is not None:
        return _relayout(source, out, layout, from_layout)
    return _export(source, out) if to == "hf" else _import(source, out, allow_pickle=allow_pickle)


def _export(source: str, out: Path) -> int:
    from .. import lab

    made = lab.export(source, out, tell=tell)
    how = "needs trust_remote_code" if made.family == "gatelab" else "native"
    with_one = "with its tokenizer" if made.has_tokenizer else "without a tokenizer"
    tell(f"{made.path}: {made.family} ({how}), {made.n_weights:,} weights, {with_one}")
    return 0


def _import(source: str, out: Path, *, allow_pickle: bool) -> int:
    from .. import lab

    found = lab.import_checkpoint(source, out, allow_pickle=allow_pickle, tell=tell)
    sizes = f"{found.config.arch}, {found.config.n_layers} layers, width {found.config.d_model}"
    tell(f"{found.path}: {sizes}, {found.n_weights:,} weights")
    return _tell_notes(found.notes)


def _relayout(source: str, out: Path, layout: str, from_layout: str | None) -> int:
    from .. import lab

    made = lab.relayout(source, out, layout, from_layout=from_layout)
    tell(f"{made.path}: {made.n_layers} attention layers from {made.source} to {made.target}")
    return _tell_notes(made.notes)


def _tell_notes(notes: tuple[str, ...]) -> int:
    for note in notes:
        tell(f"Note: {note}")
    return 0
