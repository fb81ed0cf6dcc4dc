"""Rows of a look at a checkpoint that never was: plausible numbers in every metric that the page shows."""

import math
import random
from collections.abc import Callable
from typing import Any

from gatelab.record import Row

PROBES = ("sinks", "anywhere", "shape", "massive", "gate_scores", "gate_effect", "gate_variance", "position", "rank")


def looked(
    n_layers: int,
    n_heads: int,
    n_kv: int,
    *,
    length: int = 512,
    is_gated: bool = False,
    has_slot: bool = False,
    probes: tuple[str, ...] = PROBES,
    stack: str | None = None,
    gaps: tuple[int, ...] = (),
) -> list[Row]:
    """Rows of all `probes`; layers in `gaps` have no attention rows."""
    draw = random.Random(f"{n_layers} {n_heads} {is_gated}")
    rows: list[Row] = []
    at_length = {"length": length}

    def put(source: str, metric: str, value: float, unit: str, **at: Any) -> None:
        if source in probes:
            rows.append(Row("made", 0, source, metric, value, unit, stack=stack, **at))

    def put_heads(source: str, metric: str, values: dict[int, list[float]], unit: str, **at: Any) -> None:
        for layer, of_layer in values.items():
            for head, value in enumerate(of_layer):
                put(source, metric, value, unit, layer=layer, head=head, **at)
            put(source, metric, sum(of_layer) / len(of_layer), unit, layer=layer, **at)
        means = [sum(v) / len(v) for v in values.values()]
        put(source, metric, sum(means) / len(means), unit, **at)

    def each(n: int, value: Callable[[], float]) -> dict[int, list[float]]:
        return {layer: [value() for _ in range(n)] for layer in seen}

    seen = [layer for layer in range(n_layers) if layer not in gaps]
    depth = {layer: layer / max(1, n_layers - 1) for layer in range(n_layers)}
    arch = {layer: math.sin(math.pi * (0.1 + 0.8 * depth[layer])) for layer in seen}
    mass = {la: [min(0.99, max(0.002, draw.betavariate(1.2, 1.5) * arch[la])) for _ in range(n_heads)] for la in seen}
    put_heads("sinks", "first_token_mass", mass, "share", **at_length)
    for layer in seen:
        put("sinks", "first_token_uniform", 0.0113, "share", layer=layer, **at_length)
    put("sinks", "first_token_uniform", 0.0113, "share", **at_length)
    put_heads(
        "sinks", "sink_logit_gap", {la: [math.log(m / (1 - m)) for m in mass[la]] for la in seen}, "nats", **at_length
    )
    put_heads(
        "sinks", "sink_write", {la: [0.3 * m for m in mass[la]] for la in seen}, "ratio", stage="before", **at_length
    )
    put_heads(
        "sinks",
        "value_drain",
        each(n_kv, lambda: math.exp(draw.gauss(-1.2, 0.7))),
        "ratio",
        **at_length,
    )
    if has_slot:
        put_heads(
            "sinks",
            "sink_slot_mass",
            each(n_heads, lambda: draw.betavariate(1, 4)),
            "share",
            **at_length,
        )
    importance = {la: [min(1.0, m + draw.uniform(0, 0.15)) for m in mass[la]] for la in seen}
    put_heads("anywhere", "sink_importance", importance, "share", **at_length)
    put_heads(
        "anywhere",
        "sink_value_drain",
        each(n_heads, lambda: math.exp(draw.gauss(-1.1, 0.7))),
        "ratio",
        **at_length,
    )
    for at in (0.1, 0.3, 0.5):
        rate = {la: [float(v > at) for v in importance[la]] for la in seen}
        put_heads(
            "sinks",
            "sink_rate",
            {la: [float(v > at) for v in mass[la]] for la in seen},
            "share",
            threshold=at,
            **at_length,
        )
        put_heads("anywhere", "sink_rate_any", rate, "share", threshold=at, **at_length)
        for layer in seen:
            put(
                "anywhere",
                "sink_elsewhere",
                0.2 * sum(rate[layer]) / n_heads,
                "share",
                layer=layer,
                threshold=at,
                **at_length,
            )
        put("anywhere", "sink_elsewhere", 0.07 * (1 - at), "share", threshold=at, **at_length)
    for layer in seen:
        for head in range(n_heads):
            place = 0 if draw.random() < 0.7 else draw.choice((1, 4, 17, 88, 200))
            put(
                "anywhere",
                "sink_position",
                draw.uniform(0.3, 1),
                "share",
                layer=layer,
                head=head,
                key=place,
                **at_length,
            )
        put("anywhere", "sink_residual_peak", 1 + 300 * math.sin(math.pi * depth[layer]) ** 2, "ratio", layer=layer)
    for token, share in ((0, 0.41), (13, 0.12), (198, 0.06)):
        put("anywhere", "sink_token", share, "share", key=token, **at_length)
    relative = each(n_heads, lambda: 0.98 * draw.betavariate(4, 2.5))
    put_heads("shape", "attention_entropy", {la: [5 * v for v in relative[la]] for la in seen}, "nats")
    put_heads("shape", "attention_entropy_relative", relative, "share")
    put_heads("shape", "attention_focus", each(n_heads, lambda: math.exp(draw.gauss(2, 1))), "count")
    put_heads("shape", "max_logit", each(n_heads, lambda: draw.uniform(5, 40)), "1")
    put_heads("rank", "effective_rank", each(n_heads, lambda: draw.uniform(2, 50)), "1")
    put_heads("position", "attention_distance", each(n_heads, lambda: draw.uniform(3, 200)), "tokens")
    first, last = max(1, n_layers // 6), max(1, n_layers - 2)
    n_octaves = math.frexp(length)[1]
    for layer in range(n_layers):
        is_large = first <= layer <= last
        largest = (9000.0 if is_large else 12.0) * draw.uniform(0.9, 1.1)
        put("massive", "massive_max", largest, "1", layer=layer)
        put("massive", "massive_ratio", largest / 0.7, "ratio", layer=layer)
        put("massive", "residual_kurtosis", 50_000.0 if is_large else 9.0, "1", layer=layer)
        put("massive", "outlier_channels", draw.uniform(0, 9), "count", layer=layer)
        for n in range(n_octaves):
            norm = (8000.0 if is_large and n == 0 else 20.0) * (1 + depth[layer]) * draw.uniform(0.9, 1.1)
            put("massive", "residual_norm", norm, "1", layer=layer, bin=n)
    put("massive", "massive_layer", float(first), "layer")
    put("massive", "massive_layer_last", float(last), "layer")
    put("massive", "massive_position", 1.0, "share", key=0)
    put("massive", "massive_channel", 0.875, "share", channel=7)
    _put_positions(put, draw, seen, length, n_octaves)
    if is_gated:
        _put_gates(put, put_heads, draw, seen, n_heads, depth)
    return rows


def _put_positions(put: Any, draw: random.Random, seen: list[int], length: int, n_octaves: int) -> None:
    size = [min(2 ** (n + 1) - 1, length) - (2**n - 1) for n in range(n_octaves)]
    for metric in ("distance_mass", "position_mass"):
        weights = {
            la: [1.2 ** -(n if metric == "distance_mass" else -n) * draw.uniform(0.5, 1.5) for n in range(n_octaves)]
            for la in seen
        }
        for n in range(n_octaves):
            for layer in seen:
                put(
                    "position",
                    metric,
                    weights[layer][n] / sum(weights[layer]),
                    "share",
                    layer=layer,
                    bin=n,
                    length=length,
                )
                put("position", f"{metric}_uniform", size[n] / length, "share", layer=layer, bin=n, length=length)
            mean = sum(w[n] / sum(w) for w in weights.values()) / len(seen)
            put("position", metric, mean, "share", bin=n, length=length)
            put("position", f"{metric}_uniform", size[n] / length, "share", bin=n, length=length)
    for n in range(1, n_octaves):
        for layer in seen:
            put(
                "position",
                "first_mass_by_query",
                0.4 * draw.uniform(0.2, 1.2),
                "share",
                layer=layer,
                bin=n,
                length=length,
            )
        put("position", "first_mass_by_query", 0.3 - 0.01 * n, "share", bin=n, length=length)


def _put_gates(put: Any, put_heads: Any, draw: random.Random, seen: list[int], n_heads: int, depth: dict) -> None:
    site = {"site": "sdpa"}
    openness = {la: [draw.betavariate(1 + 3 * depth[la], 4) for _ in range(n_heads)] for la in seen}
    put_heads("gate_effect", "gate_openness", openness, "share", **site)
    put_heads("gate_scores", "gate_mean", openness, "1", **site)
    put_heads(
        "gate_scores",
        "gate_below",
        {la: [0.8 * (1 - v) for v in openness[la]] for la in seen},
        "share",
        threshold=0.1,
        **site,
    )
    put_heads(
        "gate_scores",
        "gate_above",
        {la: [0.2 * v for v in openness[la]] for la in seen},
        "share",
        threshold=0.9,
        **site,
    )
    for layer in seen:
        weights = [math.exp(-8 * b / 50) + depth[layer] * math.exp(-((b / 50 - 0.5) ** 2) / 0.02) for b in range(50)]
        for b, weight in enumerate(weights):
            put("gate_scores", "gate_histogram", weight / sum(weights), "share", layer=layer, bin=b, **site)
        for metric, at, share in (
            ("gate_dead", 0.1, 0.2 * (1 - depth[layer])),
            ("gate_stuck_open", 0.9, 0.05 * depth[layer]),
        ):
            put("gate_scores", metric, share, "share", layer=layer, threshold=at, **site)
        for domain, share in (("token", 0.3 + 0.3 * depth[layer]), ("position", 0.08)):
            put("gate_variance", "gate_variance_explained", share, "share", layer=layer, domain=domain, **site)
    for metric, at, share in (("gate_dead", 0.1, 0.1), ("gate_stuck_open", 0.9, 0.025)):
        put("gate_scores", metric, share, "share", threshold=at, **site)
    for domain, share in (("token", 0.45), ("position", 0.08), ("layer", 0.21), ("head", 0.17)):
        put("gate_variance", "gate_variance_explained", share, "share", domain=domain, **site)


def affected(names: tuple[str, ...] = ("zero-value@first", "gate-open@sdpa")) -> list[Row]:
    """Effects of interventions and of their controls: the control does a tenth. Dose 0 has no control."""
    rows = []
    for i, name in enumerate(names):
        for word, factor in ((name, 1.0), (f"control of {name}", 0.1)):
            for dose in (0.0, 0.25, 0.5, 1.0)[factor != 1 :]:
                change = factor * (i + 1) * dose**2
                for bound, times in (("", 1.0), ("_low", 0.8), ("_high", 1.3)):
                    at = {"intervention": word, "dose": dose}
                    rows.append(Row("made", 0, "intervene", f"loss_change{bound}", times * change, "nats", **at))
    return rows
