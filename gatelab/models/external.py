"""Loading somebody's checkpoint: a folder in Hugging Face's layout, or a GGUF file, with its tokenizer.

Notable: nothing is fetched, no code of a checkpoint is run and no pickle is opened. Weights are read as float32, which is
exact for those stored in 16 bits, and a GGUF's are dequantised. transformers is needed here and nowhere before.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from torch import nn

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


@dataclass(frozen=True)
class External:
    """A model without its head, in evaluation mode, and its tokenizer; `max_tokens` is what its positions allow, None:
    not said."""

    name: str
    model: nn.Module
    tokenizer: Any
    max_tokens: int | None


def load_external(path: Path) -> External:
    """The checkpoint in a folder (config.json, safetensors, tokenizer) or in a .gguf file.

    Raises:
        ValueError: what is there cannot be used, in one sentence.
    """
    if find_spec("transformers") is None:
        raise ValueError("reading a checkpoint needs transformers: pip install 'gatelab[hf]'")
    with _quiet():
        model, tokenizer = _gguf(path) if path.is_file() else _folder(path)
    return External(path.resolve().name, model.eval(), tokenizer, _max_tokens(model))


def _folder(path: Path) -> tuple[nn.Module, Any]:
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        family = config.get("model_type")
    except (ValueError, AttributeError):
        raise ValueError(f"{path / 'config.json'}: is no JSON object; copy the file again") from None
    if family not in CONFIG_MAPPING:
        own = "needs code of its own, which is not run here" if "auto_map" in config else "is not known"
        raise ValueError(
            f"{path}: a model of type {family!r} {own}; a checkpoint of a family that the installed transformers has is needed"
        )
    if not any(path.glob("*.safetensors")):
        pickled = next((p.name for pattern in _PICKLED for p in sorted(path.glob(pattern))), None)
        if pickled is not None:
            raise ValueError(
                f"{path}: its weights are pickled ({pickled}), and a pickle can run any code; convert them to safetensors"
            )
        raise ValueError(f"{path}: holds no weights (no .safetensors file)")
    if not any((path / name).exists() for name in _TOKENIZERS):
        raise ValueError(
            f"{path}: has no tokenizer ({', '.join(_TOKENIZERS[:3])}, …); copy its tokenizer's files there"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ValueError(f"{path}: its tokenizer cannot be read ({_first_line(error)})") from None
    try:
        model, loading = AutoModel.from_pretrained(
            path, use_safetensors=True, local_files_only=True, trust_remote_code=False, dtype="float32",
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path}: its weights cannot be read ({_first_line(error)})") from None
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} weights are missing, such as {missing[0]}, and would be random; is a file missing?"
        )
    return model, tokenizer


def _gguf(path: Path) -> tuple[nn.Module, Any]:
    from transformers import AutoModel, AutoTokenizer

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path}: is no GGUF file; name one, or the folder that holds a config.json")
    absent = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if absent:
        raise ValueError(f"reading a .gguf file needs {' and '.join(absent)}: pip install 'gatelab[hf]'")
    from gguf import GGUFReader

    try:
        # It maps every tensor, so a file that was cut is found out here.
        GGUFReader(path)
    except Exception as error:  # whatever its bytes happen to say
        raise ValueError(f"{path}: is not a whole GGUF file ({_first_line(error)}); copy it again") from None
    given = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    try:
        # Its progress bar takes no other setting.
        with redirect_stderr(StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **given)
            model = AutoModel.from_pretrained(path.parent, **given, dtype="float32")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, NotImplementedError) as error:
        raise ValueError(f"{path}: transformers cannot read it ({_first_line(error)})") from None
    return model, tokenizer


def _max_tokens(model: nn.Module) -> int | None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, module in model.named_modules():
        # RoBERTa's positions begin after the padding's.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return limit - module.padding_idx - 1
    return limit


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and notes, which are about heads that are not loaded."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
