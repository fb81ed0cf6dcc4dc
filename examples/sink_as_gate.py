"""Is a sink a gate in disguise? Which off-switch heads use, whether a linear gate could be it, what happens without it.

Run it: `.venv/bin/python examples/sink_as_gate.py MODEL FOLDER`, MODEL a decoder's folder or .gguf file. It writes
`heads.csv` and `effects.csv`; documents are files of the standard library. docs/results/sink-as-a-gate.md reads them.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import torch

from gatelab.data.files import documents, find
from gatelab.evals.disguise import gate_fits
from gatelab.evals.intervene import effects
from gatelab.evals.stand_in import SameHeads, stand_ins
from gatelab.models.external import Loading, load_external
from gatelab.probes.external import observe
from gatelab.report.checkpoint.off_switch import DEFAULT, census, heads_of, off_switch


def first_tokens(tokenizer, n: int, length: int, seed: int = 0) -> list[list[int]]:
    """The first tokens of n files that have as many, drawn at random."""
    files, found = find(("stdlib",)), []
    for i in np.random.default_rng(seed).permutation(len(files)):
        for text in documents(files[i], "text"):
            ids = tokenizer(text.decode()[: 64 * length], add_special_tokens=False, verbose=False).input_ids
            found += [ids[:length]] if len(ids) >= length else []
        if len(found) == n:
            return found
    raise ValueError(f"{len(found)} files have {length} tokens, and {n} are needed; take fewer or shorter documents")


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        shown = [{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
        csv.writer(stream).writerows([rows[0], *(row.values() for row in shown)])


def main(
    source: str, folder: str, *, length: int = 512, train: int = 64, test: int = 24, edited: int = 16
) -> list[dict]:
    """The rows of `effects.csv`."""
    loaded = load_external(source, Loading(head=True))
    texts, model = first_tokens(loaded.tokenizer, train + test, length), loaded.model
    with torch.no_grad(), observe(model.base_model, ["sinks", "anywhere", "shape"]) as recorder:
        for ids in texts[:16]:
            model.base_model(input_ids=torch.tensor([ids]), use_cache=False)
    heads = {(h.layer, h.head): h for h in heads_of(recorder.rows())}
    print(census(heads.values()))
    fits = gate_fits(model, texts[:train], texts[train:])
    table = {at: {**vars(h), "switch": off_switch(h)} for at, h in heads.items()}
    for r in fits.rows():
        table[r.layer, r.head][f"r2 of {r.stage}, {r.domain}"] = r.value
    write(Path(folder, "heads.csv"), list(table.values()))
    sinks = {at for at, h in heads.items() if h.first_mass > DEFAULT.mass}
    drained = {at for at in sinks if heads[at].first_drain < DEFAULT.drain}
    asked, out = texts[train:][:edited], []
    for name, places in {"all": heads.keys(), "drained": drained, "writes": sinks - drained}.items():
        where = "" if name == "all" else ",".join(f"l{layer}h{head}" for layer, head in sorted(places))
        edits = [SameHeads(kind="zero-value", at="first", where=where)] if places else []
        found = []
        for gate, is_kept in (("gate", False), ("v0 kept, gate", True)) if places and name != "all" else ():
            changes = stand_ins(model, asked, fits, places, keeps_value=is_kept)
            found += [(f"masked, {gate} {reads}", 1.0, c) for reads, c in changes.items()]
        for curve in effects(model, asked, edits).curves:
            found += [("zero-value", c.dose, c) for c in curve.changes]
            found += [("zero-value of another key", c.dose, c) for c in curve.control_changes]
        at = {"heads": name, "n": len(places)}
        out += [{**at, "what": w, "dose": d, "mean": c.mean, "low": c.low, "high": c.high} for w, d, c in found]
        write(Path(folder, "effects.csv"), out)
    return out


if __name__ == "__main__":
    main(*sys.argv[1:])
