"""A checkpoint of your own: what the probes say of it first, its strongest sinks, and what they write.

Run it: `.venv/bin/python examples/probe_checkpoint.py MODEL`, MODEL any decoder: a folder in Hugging Face's layout, a .gguf
file, or a model of the hub as org/name. A sink whose value is small writes little, so zeroing the value should cost little;
the control zeroes that of another key. `gatelab probe MODEL --out FOLDER` makes the page; docs/probes.md says what else.
"""

import sys
from pathlib import Path

from gatelab.evals.checkpoint import Edits, Look, Reading
from gatelab.lab import probe_checkpoint
from gatelab.record import Row

PROBES = ["sinks", "anywhere", "massive"]


def strongest(rows: list[Row], n: int) -> list[tuple[int, int, float]]:
    """(layer, head, share of the attention) of the n heads whose first key takes most."""
    found = [
        (r.layer, r.head, r.value)
        for r in rows
        if r.metric == "first_token_mass" and r.head is not None and (r.stack, r.domain) == (None, None)
    ]
    return sorted(found, key=lambda head: -head[2])[:n]


def main(
    path: str | Path, *, text: str = "stdlib", length: int | None = None, documents: int = 4, heads: int = 5
) -> Look:
    """What was seen; a mean over `documents` sequences is enough for a first look, and not for an interval to rely on."""
    look = probe_checkpoint(
        path, Reading(text, length), names=PROBES, edits=Edits(("zero-value@first",), documents=documents)
    )
    print(look.description, *look.facts[:3], *(f"Note: {note}" for note in look.notes), sep="\n")
    for missing in look.unobserved:
        print(f"not observed: {missing.module}, {missing.why}")
    print("\nThe heads whose first key takes most:")
    for layer, head, mass in strongest(look.rows, heads):
        print(f"  layer {layer:2d}, head {head:2d}: {mass:.1%}")
    print("\nIts value made zero in every head, by a quarter, by half, wholly:")
    print("\n".join(look.effects.lines()))
    return look


if __name__ == "__main__":
    main(*sys.argv[1:2])
