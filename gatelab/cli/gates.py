"""gatelab gates: every gate there is, or one in detail."""

from .base import Json, print_json, short_count


def gates(name: str | None = None, /, *, json_: Json = False) -> int:
    """List the gates: sites, words, activations, sources, normalisers, presets, and what cannot be.

    Parameters
    ----------
    name:
        One of them in detail: a preset (qwen3-next), a gate (sdpa-headwise, or several joined by +), or any word listed.
    json_:
        One JSON record an entry, with its kind.
    """
    from .. import catalogue
    from ..terminal import print_records

    sections = catalogue.gate_catalogue() if name is None else {}
    records = [r for section in sections.values() for r in section] if name is None else catalogue.gate_detail(name)
    if json_:
        print_json(records)
        return 0
    if name is None:
        print(
            "y ⊙ act(z), z = x W_g: a gate is site-granularity, then words in any order, as in sdpa-elementwise-silu-add"
        )
        print("weights: a layer, with d = d_model, H heads, G key/value heads, K = head_dim; a number: 24 layers,")
        print("d = 2048, H = 32, G = 4, K = 128 (arXiv 2505.06708)")
        for title, section in sections.items():
            columns = [key for key in section[0] if key != "kind"]
            if section[0]["kind"] == "preset":
                columns = ["name", "formula", "adds", "weights"]
            shown = [{key: r[key] for key in columns} for r in section]
            if section[0]["kind"] == "preset":
                # Nine digits and their commas leave no room in 80 columns.
                shown = [r | {"weights": short_count(r["weights"])} for r in shown]
            print_records(shown, f"\n{title}")
        known = [{key: r[key] for key in ("name", "results", "source")} for r in records if r["kind"] == "preset"]
        print_records(known, "\nwhat is printed of the presets, and where")
        print(
            "\none in detail: gatelab gates paper/g1-headwise; in a run: gatelab train model.preset=paper/g1-headwise"
        )
        return 0
    for record in records:
        shapes = record.pop("parameters", {})
        shown = {key: f"{v:,}" if isinstance(v, int) else str(v) for key, v in record.items() if v not in ("", None)}
        print_records([{"": key, " ": value} for key, value in shown.items()])
        if shapes:
            print_records([{"parameter": n, "shape": " × ".join(map(str, s))} for n, s in shapes.items()])
    return 0
