"""A decoder of ours into a folder that `AutoModelForCausalLM.from_pretrained` loads: natively where transformers has the
architecture, else with the code of modeling_gatelab.py; tokenizer, generation settings and a card go along.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from .card import card
from .destination import copy_companions, destination, write_json
from .folder import Stored
from .native import native_config, native_family, native_plan
from .shipped import FILES, check_shipped, shipped_config, shipped_plan
from .tensors import write

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Exported:
    """What was written where; `family` is that of transformers, `gatelab` where the folder brings its code."""

    path: Path
    family: str
    n_weights: int
    has_tokenizer: bool


def export_model(found: Stored, out: str | Path) -> Exported:
    """The model as a folder in Hugging Face's layout. Weights pass through memory one tensor at a time, in their type.

    Raises:
        ValueError: neither transformers nor the shipped code computes what this model does, naming the field; a tensor
            that is not finite; `out` is there already. `out` is then not made.
    """
    family = native_family(found)
    if family is None:
        check_shipped(found)
    config, plan = (
        (shipped_config(found), shipped_plan(found))
        if family is None
        else (native_config(family, found), native_plan(family, found))
    )
    # Left out, they would be some family's own.
    tokens = {name: found.tokens.get(name) for name in _TOKENS}
    dtypes = {str(dtype).removeprefix("torch.") for dtype in found.tensors.dtypes.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    with destination(Path(out), found.companions) as draft:
        n_weights = write(draft / "model.safetensors", plan, found.tensors, metadata={"format": "pt"})
        write_json(draft / "config.json", {**config, **tokens, "dtype": dtype})
        copied = [] if found.companions is None else copy_companions(found.companions, draft)
        if "generation_config.json" not in copied:
            stated = {name: token for name, token in tokens.items() if token is not None}
            write_json(draft / "generation_config.json", {"_from_model_config": False, **stated})
        for file in FILES if family is None else ():
            shutil.copyfile(Path(__file__).with_name(file), draft / file)
        (draft / "README.md").write_text(card(found, Path(out).name, config, n_weights), encoding="utf-8")
    has_tokenizer = any(name.startswith(("tokenizer.", "vocab.", "spiece.", "tekken.")) for name in copied)
    return Exported(Path(out), family or "gatelab", n_weights, has_tokenizer)
