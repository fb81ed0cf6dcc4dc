"""gatelab sizes: the ladder of models, or one of them and what a change of it adds."""

from typing import Any

from .base import Json, print_json, short_count


def sizes(name: str | None = None, /, *assignments: str, json_: Json = False) -> int:
    """List the ladder of model sizes, or show one, and what a change of it adds.

    Parameters
    ----------
    name:
        One size, such as paper/1.7b-28l.
    assignments:
        key=value words, to see what they add and the d_ff that takes it away again: model.gate=sdpa-elementwise
    json_:
        One JSON record a size, with all its numbers.
    """
    from .. import catalogue
    from ..config import ConfigError, parse_assignments
    from ..terminal import print_records

    given = parse_assignments(assignments)
    if many := [path for path, values in given.items() if len(values) > 1]:
        raise ConfigError([f"{path}: one size takes one value; ask once for each" for path in many])
    records = catalogue.size_records(name, {path: values[0] for path, values in given.items()})
    if json_:
        print_json(records)
        return 0
    rows = [_size_row(r) for r in records]
    print("GFLOP: of training, a token at the size's context; GiB: float32 weights, gradients and")
    print("AdamW's moments; act. and logits: GiB that one sequence keeps in bfloat16, an estimate")
    if name is None:
        words, counts, sizes_ = ("name", "arch", "layers"), ("weights", "active"), ("GFLOP", "GiB", "act.")
        print_records(
            [
                {k: r[k] for k in words}
                | {k: short_count(r[k]) for k in counts}
                | {k: float(f"{r[k]:.3g}") for k in sizes_}
                for r in rows
            ]
        )
        print("all numbers of one: gatelab sizes paper/1.7b-28l; with a change: model.gate=sdpa-elementwise behind it")
    else:
        # A size a column: side by side, what a change of it does can be read in a line.
        keys = [key for key in rows[0] if key != "name"]
        print_records([{"": key} | {r["name"]: _number(r[key]) for r in rows} for key in keys])
        first = records[0]
        print(f"{first['what']} ({first['source']})")
        if printed := first["printed"]:
            active = f", {printed['n_active']:,.0f} active" if printed["n_active"] else ""
            beyond = "".join(f"; {what}: {n:+,}" for what, n in first["differences"].items())
            print(f"printed there: {printed['n_parameters']:,.0f}{active}{beyond}")
    return 0


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int | float) else value


def _size_row(record: dict[str, Any]) -> dict[str, Any]:
    """A size as shown: heads as query/kv×channels; `over` are weights beyond the unchanged size's."""
    r, encoder = record, record["n_encoder_layers"]
    return {
        "name": r["name"],
        "arch": r["arch"],
        "layers": f"{encoder}+{r['n_layers']}" if encoder else str(r["n_layers"]),
        "width": r["d_model"],
        "heads": f"{r['n_heads']}/{r['n_kv_heads']}×{r['head_dim']}",
        "d_ff": r["d_ff"],
        "context": r["seq_len"],
        "weights": r["n_parameters"],
        "active": r["n_active"],
        "GFLOP": round(r["flops_per_token"] / 1e9, 3),
        "GiB": round(r["state_bytes"] / 2**30, 2),
        "act.": round(r["activation_bytes"] / 2**30, 2),
        "logits": round(r["logit_bytes"] / 2**30, 2),
        "over": r["over"],
    }
