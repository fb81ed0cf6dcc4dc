"""Opening somebody's checkpoint, and loading it: what it is, and how large, is known before its weights are read.

Notable: no code of a checkpoint is run and no pickle is opened unless `Loading` says so. Weights are read as float32
unless it says otherwise, which is exact for those stored in 16 bits. transformers is needed here and nowhere before.
"""

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import cuda, nn

from .folder import folder
from .gguf import gguf
from .hub import hub, is_hub_id
from .loading import Loading
from .positions import extend_positions
from .source import Source

_DEFAULT = Loading()


@dataclass(frozen=True)
class External:
    """A model in evaluation mode and its tokenizer; `max_tokens` is what its positions allow, None: not said; `notes` are
    what a reader of its numbers should know of it."""

    name: str
    model: nn.Module
    tokenizer: Any
    max_tokens: int | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose weights were not read yet. `n_weights` counts those that will be, tied ones once; `dtype` is the
    type that they will have (`float32`, …) and `device` where (`cpu`, `cuda`)."""

    name: str
    config: Any
    tokenizer: Any
    n_weights: int
    max_tokens: int | None
    dtype: str
    device: str
    notes: tuple[str, ...]
    loading: Loading
    source: Source
    auto_class: Any

    def with_head(self) -> "Checkpoint":
        """The same, to be loaded with its language-model head.

        Raises:
            ValueError: it has none.
        """
        loading = self.loading.model_copy(update={"head": True})
        return replace(self, loading=loading, auto_class=_auto_class(self.config, loading, self.source.title))

    def load(self) -> External:
        """The model.

        Raises:
            ValueError: its weights cannot be read, in one sentence.
        """
        formats = (True, False) if self.loading.allow_pickle else (True,)
        model, unused = self.source.model(
            self.auto_class, self.config, dtype=self.dtype, device=self.device, formats=formats
        )
        for name, weight in model.named_parameters():
            if not bool(weight.isfinite().all()):
                n = int((~weight.isfinite()).sum())
                raise ValueError(f"{self.name}: {n} of the numbers in {name} are not finite; copy its weights again")
        return External(self.name, model, self.tokenizer, self.max_tokens, (*self.notes, *_of_unused(unused)))


def load_external(source: str | Path, loading: Loading = _DEFAULT) -> External:
    """The checkpoint in a folder (config.json, weights, tokenizer), in a .gguf file, or with a hub id.

    Raises:
        ValueError: what is there cannot be used, in one sentence.
    """
    return open_external(source, loading).load()


def open_external(source: str | Path, loading: Loading = _DEFAULT) -> Checkpoint:
    """Everything but the weights.

    Raises:
        ValueError: what is there cannot be used, in one sentence.
    """
    if find_spec("transformers") is None:
        raise ValueError("reading a checkpoint needs transformers: pip install 'gatelab[hf]'")
    device = _device(loading)
    found = _find(source, loading)
    config = found.config()
    auto_class = _auto_class(config, loading, found.title)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    notes = list(found.notes)
    if loading.extension is not None:
        config = extend_positions(config, loading.extension)
        reach = config.get_text_config().max_position_embeddings
        notes.append(f"its positions were extended from {limit} to {reach} tokens ({loading.extension.kind})")
    skeleton = found.skeleton(auto_class, config)
    tokenizer = found.tokenizer()
    return Checkpoint(
        name=found.name,
        config=config,
        tokenizer=tokenizer,
        n_weights=sum(parameter.numel() for parameter in skeleton.parameters()),
        max_tokens=_max_tokens(skeleton),
        dtype=_dtype(config, loading, found),
        device=device,
        notes=(*notes, *found.read("its tokenizer", lambda _: _of_tokenizer(tokenizer))),
        loading=loading,
        source=found,
        auto_class=auto_class,
    )


def _find(source: str | Path, loading: Loading) -> Source:
    # Of a name that no file can have, Path.is_file raises.
    if os.path.isfile(source):
        return gguf(Path(source))
    if os.path.isdir(source):
        return folder(Path(source), loading)
    if is_hub_id(source):
        return hub(str(source), loading)
    raise ValueError(
        f"{source}: no such folder or file; name a folder, a .gguf file, or a model of the hub as org/name"
    )


def _device(loading: Loading) -> str:
    if loading.device == "auto":
        return "cuda" if cuda.is_available() else "cpu"
    if loading.device == "cuda":
        if not cuda.is_available():
            raise ValueError("--device cuda: this torch sees no CUDA device; take --device cpu")
        if find_spec("accelerate") is None:
            raise ValueError("--device cuda: loading there needs accelerate: pip install 'gatelab[hf]'")
    return loading.device


def _dtype(config: Any, loading: Loading, source: Source) -> str:
    if loading.dtype != "auto":
        return loading.dtype
    stated = getattr(config, "dtype", None)
    return source.stored_dtype() if stated is None else str(stated).removeprefix("torch.")


def _auto_class(config: Any, loading: Loading, title: str) -> Any:
    """The auto class of transformers that loads what was asked for."""
    import transformers

    own_code = getattr(config, "auto_map", {}) if loading.trust_remote_code else {}
    is_both = getattr(config, "is_encoder_decoder", False)
    with_head = "AutoModelForSeq2SeqLM" if is_both else "AutoModelForCausalLM"
    table = transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if is_both else transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    has_head = type(config) in table or with_head in own_code
    if not loading.head:
        is_bare = type(config) in transformers.MODEL_MAPPING or "AutoModel" in own_code
        return getattr(transformers, "AutoModel" if is_bare or not has_head else with_head)
    is_encoder = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING and not (
        is_both
        or getattr(config, "is_decoder", False)
        or any("CausalLM" in name or "LMHead" in name for name in config.architectures or ())
    )
    if is_encoder or not has_head:
        raise ValueError(
            f"{title}: a model of type {config.model_type!r} predicts no next token, so it has no such loss; leave out what "
            "needs one"
        )
    return getattr(transformers, with_head)


def _max_tokens(model: nn.Module) -> int | None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, module in model.named_modules():
        # RoBERTa's positions begin after the padding's.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return limit - module.padding_idx - 1
    return limit


def _of_unused(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        return ()
    one = f"{len(names)} of its weights are" if len(names) > 1 else "one of its weights is"
    return (f"{one} not read, such as {names[0]}: its code has no place for what they hold",)


def _of_tokenizer(tokenizer: Any) -> tuple[str, ...]:
    first = tokenizer("a").input_ids[:1]
    special = set(tokenizer.all_special_ids or ())
    if first and first[0] in special:
        begins = f"its tokenizer begins every text with {tokenizer.convert_ids_to_tokens(first[0])!r}"
    else:
        begins = "its tokenizer puts nothing before a text, so the first token is an ordinary one"
    if getattr(tokenizer, "chat_template", None):
        return (begins, "it has a chat template, so it was probably tuned to follow instructions")
    return (begins,)
