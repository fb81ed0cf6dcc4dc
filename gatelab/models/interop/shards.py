"""Which files hold the weights of a folder in Hugging Face's layout."""

import json
from pathlib import Path


def weight_files(title: str, folder: Path) -> list[Path]:
    """The safetensors files that transformers would read.

    Raises:
        ValueError: neither model.safetensors nor its index, or an index that cannot be read or names files elsewhere.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file() and not any(folder.glob("*.safetensors")):
        return [folder / "model.safetensors"]
    if not index.is_file():
        found = ", ".join(sorted(p.name for p in folder.glob("*.safetensors"))[:3])
        raise ValueError(
            f"{title}: holds {found}, but neither model.safetensors nor {index.name}; copy the one that is missing"
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index}: cannot be read ({error!r}); copy it again") from None
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{index}: names files outside of its folder; take another copy of this checkpoint")
    return [folder / name for name in names]
