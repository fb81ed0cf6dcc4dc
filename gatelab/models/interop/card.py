"""The model card of an exported model, README.md: what it is, how to load it, what was measured. Only what is known."""

from typing import Any

from ...config import canonical
from .folder import Stored

_LEFT_OUT = ("init", "init_std")  # they say how it started, not what it is


def card(found: Stored, name: str, config: dict[str, Any], n_weights: int) -> str:
    """Markdown with the front matter of the hub."""
    is_native = "auto_map" not in config
    trust = "" if is_native else ", trust_remote_code=True"
    gate = canonical(found.config)["gate"]
    whose = (
        f"It is stored as transformers' own `{config['architectures'][0]}` and needs no other code."
        if is_native
        else "transformers has no such architecture: `modeling_gatelab.py` in this folder is its code; read it before you "
        "trust it."
    )
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- gatelab\n---",
        f"# {name}",
        f"A decoder of {n_weights:,} weights, attention gate: `{gate}`. Written by Gatelab. {whose}",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}"{trust})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})\n```',
        "## Configuration\n\n" + _table(("field", "value"), _fields(found)),
    ]
    if found.facts:
        parts.append("## Where it comes from\n\n" + "\n".join(f"- {fact}" for fact in found.facts))
    if found.measured:
        rows = [(f"`{metric}`", f"{value:.6g}", unit) for metric, value, unit in found.measured]
        parts.append(
            "## Measured\n\nWhere training ended, on its held-out data.\n\n" + _table(("metric", "value", "unit"), rows)
        )
    return "\n\n".join(parts) + "\n"


def _fields(found: Stored) -> list[tuple[str, ...]]:
    stated = {name: value for name, value in canonical(found.config).items() if name not in _LEFT_OUT}
    defaults = canonical(type(found.config)())
    return [(f"`{n}`", f"`{v}`") for n, v in stated.items() if v != defaults[n]]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
