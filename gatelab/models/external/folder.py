"""A folder in Hugging Face's layout: config.json, weights, tokenizer; what is missing is said before anything is read."""

import json
from pathlib import Path

from .loading import Loading
from .source import Source, first_line

_PICKLED = ("pytorch_model*.bin", "*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float32"}


def folder(path: Path, loading: Loading) -> Source:
    """The checkpoint in a folder.

    Raises:
        ValueError: what is there cannot be used, in one sentence.
    """
    if (path / "model.json").is_file() and not (path / "config.json").is_file():
        raise ValueError(
            f"{path}: is a model folder of Gatelab, which is probed as a checkpoint: first `gatelab convert {path} OUT --to hf`"
        )
    if not (path / "config.json").is_file():
        inside = next((p.name for p in sorted(path.glob("*.gguf"))), None)
        raise ValueError(
            f"{path}: holds no config.json; name " + (f"its {inside}" if inside else "the folder that does")
        )
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        family = config.get("model_type")
    except (ValueError, AttributeError):
        raise ValueError(f"{path / 'config.json'}: is no JSON object; copy the file again") from None
    check_family(str(path), family, has_own_code="auto_map" in config, loading=loading)
    if not any(path.glob("*.safetensors")):
        _check_pickled(path, loading)
    if not loading.trust_remote_code and not any((path / name).exists() for name in _TOKENIZERS):
        raise ValueError(
            f"{path}: has no tokenizer ({', '.join(_TOKENIZERS[:3])}, …); copy its tokenizer's files there"
        )
    # An absolute path is never taken for a hub id.
    place = path.resolve()
    given = {"trust_remote_code": loading.trust_remote_code}
    return Source(str(path), place.name, str(place), given, lambda: stored_dtype(path))


def check_family(title: str, family: object, *, has_own_code: bool, loading: Loading) -> None:
    """Refuse a family whose code is neither in transformers nor allowed to be run.

    Raises:
        ValueError: that.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if family in CONFIG_MAPPING or (has_own_code and loading.trust_remote_code):
        return
    if family == "gatelab":
        raise ValueError(
            f"{title}: is an export of Gatelab, whose code `gatelab probe` and `gatelab eval` run with --trust-remote-code; for "
            "anything else take the run or the model folder that it was made of"
        )
    if has_own_code:
        raise ValueError(
            f"{title}: a model of type {family!r} needs code of its own, which is run only with --trust-remote-code, by `gatelab "
            "probe` and `gatelab eval` alone; read that code first"
        )
    raise ValueError(
        f"{title}: a model of type {family!r} is not known; a checkpoint of a family that the installed transformers has is needed"
    )


def _check_pickled(path: Path, loading: Loading) -> None:
    pickled = next((p.name for pattern in _PICKLED for p in sorted(path.glob(pattern))), None)
    if pickled is None:
        raise ValueError(f"{path}: holds no weights (no .safetensors file); copy them there")
    if not loading.allow_pickle:
        raise ValueError(
            f"{path}: its weights are pickled ({pickled}), and a pickle can run any code; convert them to safetensors, or "
            "have them opened as weights only with --allow-pickle"
        )


def stored_dtype(path: Path) -> str:
    """The type of the first floating-point tensor in a folder's safetensors headers; float32 where there is none."""
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as opened:
            try:
                header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
                found = (_DTYPES.get(own.get("dtype")) for own in header.values())
                if dtype := next((name for name in found if name), None):
                    return dtype
            except (ValueError, AttributeError, OverflowError, MemoryError) as error:
                raise ValueError(f"{file}: its header cannot be read ({first_line(error)}); copy it again") from None
    return "float32"
