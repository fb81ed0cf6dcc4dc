"""Where a checkpoint comes from, as one value, and what transformers is asked for: configuration, tokenizer, model.

Notable: a folder, a GGUF file and a model of the hub differ in what `from_pretrained` is given and in nothing else. What it
raises becomes one sentence.
"""

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn

Read = TypeVar("Read")
# Names of what lies above the last block, which a model without its head has no place for.
_HEADS = re.compile(r"(lm_head|cls|head|classifier|pooler|score|qa_outputs|embed_out|generator_\w+|\w+_predictions)\b")


@dataclass(frozen=True)
class Source:
    """`place` and `given` are what `from_pretrained` is told; `locally` are the values of its `local_files_only` to be
    tried in turn, and `before_fetching` raises where there is nobody to fetch from; `around` is entered while transformers
    reads; `explain` says of an error what a user can do, or None; `notes` are sentences about the weights."""

    title: str
    name: str
    place: str
    given: dict[str, Any]
    stored_dtype: Callable[[], str]
    locally: tuple[bool, ...] = (True,)
    before_fetching: Callable[[], None] = lambda: None
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    explain: Callable[[Exception], str | None] = lambda error: None
    notes: tuple[str, ...] = field(default=())

    def read(self, what: str, read: Callable[[dict[str, Any]], Read]) -> Read:
        """`read(keywords of from_pretrained)`, or one sentence that `what` cannot be read and why.

        Raises:
            ValueError: that sentence.
        """
        errors: list[Exception] = []
        for only_local in self.locally:
            try:
                if not only_local:
                    self.before_fetching()
                with self.around(), _quiet(shows_bars=not only_local):
                    return read({**self.given, "local_files_only": only_local})
            except (MemoryError, torch.OutOfMemoryError):
                raise ValueError(
                    f"{self.title}: {what} do not fit into memory; free some, or load as bfloat16"
                ) from None
            except UnpicklingError:
                raise ValueError(
                    f"{self.title}: its pickle holds more than weights or is damaged, so it was not opened; have it converted "
                    "to safetensors by whoever made it"
                ) from None
            except SafetensorError as error:
                raise ValueError(
                    f"{self.title}: {what} cannot be read ({first_line(error)}); a file was cut or damaged, so copy it again"
                ) from None
            except Exception as error:  # tokenizers raise bare Exceptions, and so may a checkpoint's own code
                errors.append(error)
                if not isinstance(error, OSError):
                    break  # it is there, and no other place has another one
        why = self.explain(errors[-1]) or f"{what} cannot be read ({first_line(errors[-1])})"
        raise ValueError(f"{self.title}: {why}") from None

    def config(self) -> Any:
        """The configuration."""
        from transformers import AutoConfig

        return self.read("its configuration", lambda given: AutoConfig.from_pretrained(self.place, **given))

    def tokenizer(self) -> Any:
        """The tokenizer."""
        from transformers import AutoTokenizer

        return self.read("its tokenizer", lambda given: AutoTokenizer.from_pretrained(self.place, **given))

    def skeleton(self, auto_class: Any, config: Any) -> nn.Module:
        """The model without memory for its weights, as transformers makes it before it reads them."""

        def build(given: dict[str, Any]) -> nn.Module:
            with torch.device("meta"):
                return auto_class.from_config(copy.deepcopy(config), trust_remote_code=given["trust_remote_code"])

        return self.read("what its configuration describes", build)

    def model(
        self, auto_class: Any, config: Any, *, dtype: str, device: str, formats: tuple[bool, ...]
    ) -> tuple[nn.Module, tuple[str, ...]]:
        """The model with its weights, and the names of stored ones that it has no place for. `formats` are the values of
        `use_safetensors` to be tried in turn."""
        placed = {} if device == "cpu" else {"device_map": {"": device}}

        def load(given: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
            for use_safetensors in formats:
                try:
                    return auto_class.from_pretrained(
                        self.place, config=copy.deepcopy(config), dtype=dtype, use_safetensors=use_safetensors,
                        weights_only=True, output_loading_info=True, ignore_mismatched_sizes=True, **placed, **given,
                    )  # fmt: skip
                except OSError:
                    if use_safetensors is formats[-1]:
                        raise
            raise AssertionError

        model, loading = self.read("its weights", load)
        wrong = sorted(loading["mismatched_keys"])
        if wrong:
            (name, stored, said), more = wrong[0], f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise ValueError(
                f"{self.title}: weight {name} has shape {list(stored)}, and its configuration says {list(said)}{more}; its "
                "config.json and its weights are not of one model, so take both from one checkpoint"
            )
        missing = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))
        if missing:
            raise ValueError(
                f"{self.title}: {len(missing)} weights are missing, such as {missing[0]}, and would be random; copy the file that "
                "holds them, or take a config.json with as many layers as there are"
            )
        return model.eval(), _unused(model, loading["unexpected_keys"])


def _unused(model: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Stored weights that a model reads past, but for the heads of one that was asked for without."""
    prefix = f"{model.base_model_prefix}."
    is_bare = not any(name.startswith(prefix) for name, _ in model.named_parameters())
    return tuple(sorted(name for name in names if not (is_bare and _HEADS.match(name))))


def first_line(error: Exception) -> str:
    """What an error says first, with the line that a colon announces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    n_said = next((i for i, line in enumerate(lines, start=1) if not line.endswith(":")), len(lines))
    return " ".join(lines[:n_said]) or type(error).__name__


@contextmanager
def _quiet(*, shows_bars: bool) -> Iterator[None]:
    """Without transformers' notes, which are about heads that are not loaded, and without progress bars but those of a
    download; a GGUF's bar takes no setting."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not shows_bars:
        logging.disable_progress_bar()
    try:
        with nullcontext() if shows_bars else redirect_stderr(StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
