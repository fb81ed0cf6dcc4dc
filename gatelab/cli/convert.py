"""gatelab convert: whole models, from transformers and back."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from .base import tell

Flag = Annotated[bool, Parameter(negative="")]


def convert(source: str, out: Path, *, to: Literal["gatelab", "hf"], allow_pickle: Flag = False) -> int:
    """Make a model of ours out of a checkpoint, or a checkpoint for transformers out of a model of ours.

    What cannot be expressed exactly is refused by the key of the configuration; OUT is complete or absent.

    Parameters
    ----------
    source:
        To gatelab: a folder in Hugging Face's layout, a .gguf file, or a model of the hub as org/name. To hf: the folder of a
        finished run, or one that `--to gatelab` wrote.
    out:
        A new folder.
    to:
        gatelab: model.json and weights.safetensors, with the logits of transformers. hf: what AutoModelForCausalLM loads,
        natively where transformers has the architecture, else with code that goes along.
    allow_pickle:
        To gatelab: open pickled weights, as weights only.
    """
    from .. import lab
    from ..config import ConfigError

    if to == "hf":
        if allow_pickle:
            raise ConfigError(["--allow-pickle is for --to gatelab: weights of ours are never pickled; leave it out"])
        made = lab.export(source, out)
        how = "needs trust_remote_code" if made.family == "gatelab" else "native"
        with_one = "with its tokenizer" if made.has_tokenizer else "without a tokenizer"
        tell(f"{made.path}: {made.family} ({how}), {made.n_weights:,} weights, {with_one}")
        return 0
    found = lab.import_checkpoint(source, out, allow_pickle=allow_pickle)
    sizes = f"{found.config.arch}, {found.config.n_layers} layers, width {found.config.d_model}"
    tell(f"{found.path}: {sizes}, {found.n_weights:,} weights")
    for note in found.notes:
        tell(f"Note: {note}")
    return 0
