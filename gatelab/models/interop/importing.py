"""A checkpoint of transformers, whole, into a Gatelab model folder: configuration, weights, tokenizer.

Notable: the plan, one origin for each of our parameters, is checked against the headers before a weight is read, and the
weights of a folder or of the hub pass through memory one tensor at a time. A GGUF file and a pickle are opened whole, by
transformers.
"""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...config import ModelConfig
from ..external import Checkpoint, Loading, open_external
from .attention import gate_hint
from .destination import copy_companions, destination
from .families import FAMILIES, NOT_OURS
from .family import Family, check_exact, quantisation
from .folder import parameter_shapes, write_folder
from .shards import weight_files
from .tensors import Plan, Tensors, check_plan, of_files, of_model

# Buffers that older releases stored; they follow from the configuration.
_BUFFERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|masked_bias|attn\.bias|embeddings\.position_ids)$")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_WANTED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class Imported:
    """What was written where: the folder, its configuration, the number of weights, tied ones once."""

    path: Path
    config: ModelConfig
    n_weights: int
    notes: tuple[str, ...]


def import_model(source: str | Path, out: str | Path, *, allow_pickle: bool = False) -> Imported:
    """The checkpoint in a folder, a .gguf file or on the hub, as a Gatelab model folder with the same logits.

    Raises:
        ValueError: it cannot be opened; its family or a key of its configuration cannot be expressed exactly; a tensor
            is missing, too many, of another shape, or not finite; `out` is there already. `out` is then not made.
    """
    checkpoint = open_external(source, Loading(dtype="auto", allow_pickle=allow_pickle))
    title, config = checkpoint.source.title, checkpoint.config
    family = _family(title, config)
    try:
        check_exact(family, config)
        ours = family.model(config)
    except ValueError as error:
        raise ValueError(f"{title}: {error}") from None
    plan: Plan = {name: family.origin(name, shape, ours, config) for name, shape in parameter_shapes(ours).items()}
    with destination(Path(out), Path(source)) as draft:
        held, folder = _tensors(checkpoint, family)
        tensors = family.view(held, config)
        try:
            check_plan(plan, tensors, spare=partial(_is_spare, family))
        except ValueError as error:
            raise ValueError(f"{error}{gate_hint(config.to_dict(), held)}") from None
        _check_copies(family, plan, tensors)
        notes = (*checkpoint.notes, *_of_code(family, config), *family.notes(config), *_of_unused(family, tensors))
        tokens = {name: getattr(config, name, None) for name in _TOKENS}
        origin = {"name": checkpoint.name, "family": config.model_type}
        about = {"from": origin, "tokens": tokens, "notes": list(notes)}
        n_weights = write_folder(draft, ours, plan, tensors, about=about)
        if folder is None or not copy_companions(folder, draft):
            checkpoint.tokenizer.save_pretrained(draft)
    return Imported(Path(out), ours, n_weights, notes)


def _of_code(family: Family, config: Any) -> tuple[str, ...]:
    if not getattr(config, "auto_map", None):
        return ()
    return (f"it brings code of its own, which was not run: its logits are those of {family.code(config)}",)


def _is_spare(family: Family, name: str) -> bool:
    """Whether a tensor may be there and is not read."""
    return name in family.copies or bool(_BUFFERS.search(name)) or any(re.search(p, name) for p in family.unused)


def _of_unused(family: Family, tensors: Tensors) -> tuple[str, ...]:
    """A sentence a kind of tensors that ours has no place for."""
    notes = []
    for pattern, what in family.unused.items():
        found = [name for name in tensors.shapes if re.search(pattern, name)]
        if found:
            first = f"{found[0]} {list(tensors.shapes[found[0]])}"
            notes.append(f"its {what} was left out, {len(found)} tensors such as {first}")
    return tuple(notes)


def _family(title: str, config: Any) -> Family:
    name = config.model_type
    if name in FAMILIES:
        return FAMILIES[name]
    known = ", ".join(FAMILIES)
    if name in NOT_OURS:
        raise ValueError(
            f"{title}: a model of type {name!r} cannot be expressed exactly: {NOT_OURS[name]}; imported are {known}"
        )
    raise ValueError(f"{title}: models of type {name!r} are not imported; those of {known} are")


def _tensors(checkpoint: Checkpoint, family: Family) -> tuple[Tensors, Path | None]:
    """The checkpoint's tensors, and the folder that its files lie in if they do."""
    source = checkpoint.source
    folder = None if "gguf_file" in source.given else Path(source.place)
    if folder is not None and not folder.is_dir():
        folder = source.read("its weights", lambda given: _snapshot(source.title, source.place, given))
    if folder is not None and any(folder.glob("*.safetensors")):
        pattern = family.packed.get(quantisation(checkpoint.config))
        found = of_files(
            source.title,
            weight_files(source.title, folder),
            spare=partial(_is_spare, family),
            packed=lambda name: pattern is not None and bool(re.search(pattern, name)),
        )
        return found, folder
    asked = checkpoint if family.unused else checkpoint.with_head()
    return of_model(source.title, asked.load().model), folder


def _snapshot(title: str, name: str, given: dict[str, Any]) -> Path:
    """The folder of a model of the hub in the cache, fetched if that is allowed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    only_local = given["local_files_only"]
    folder = Path(
        snapshot_download(name, revision=given["revision"], local_files_only=only_local, allow_patterns=_WANTED)
    )
    # A probe of the tokenizer leaves a snapshot without weights, which is no error to the library.
    is_pickled = any(folder.glob("*.bin"))
    if only_local and not is_pickled and not all(file.is_file() for file in weight_files(title, folder)):
        raise LocalEntryNotFoundError(f"{folder} has not all weights")
    return folder


def _check_copies(family: Family, plan: Plan, tensors: Tensors) -> None:
    """Whether what is stored twice, since the configuration ties it, is the same both times."""
    wanted = {name for o in plan.values() for name in o.reads}
    for name, original in family.copies.items():
        if name not in tensors.shapes or name in wanted:
            continue
        if tensors.shapes[name] != tensors.shapes[original]:
            same = False
        else:
            same = torch.equal(tensors.read(name), tensors.read(original))
        if not same:
            raise ValueError(
                f"{tensors.title}: its configuration ties {name} {list(tensors.shapes[name])} to {original} "
                f"{list(tensors.shapes[original])}, and they are not equal; set tie_word_embeddings to what it was trained with"
            )
