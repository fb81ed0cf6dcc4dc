"""Profiles of training steps as markdown: kinds of one configuration beside their floors, and configurations side by side."""

from warm_processes import Facts

from gatelab.bench.floors import HOPPER_FLOPS
from gatelab.bench.goals import JUDGED_ON

GAPS, ALL = "no kernel runs", "wall"


def table(r: Facts) -> str:
    """One configuration as markdown: kinds of a step, their floors, and the kernels that take most."""
    all_tokens, trained, found = r["tokens"] * r["runs"], r["profiles"]["trained"], _chosen(r)
    tokens_per_s = all_tokens / r["wall_ms"] * 1e3
    is_judged = any(word in r["device"] for word in JUDGED_ON)
    mfu = f", MFU {r['flops_per_token'] * tokens_per_s / HOPPER_FLOPS:.1%}" if is_judged else ""
    took_ms = f"({r['wall_least_ms']:.3f} to {r['wall_most_ms']:.3f})"
    long = trained["long_gaps"]
    lines = [
        f"### {r['name']}",
        "",
        f"{r['device']}, torch {r['torch']}, {r['attention']}: {r['wall_ms']:.3f} ms a step {took_ms}, {tokens_per_s:,.0f} "
        f"tokens/s{mfu}. A product does {r['product_flops_per_s'] / 1e12:.4g} TFLOP/s, a copy "
        f"{r['copy_bytes_per_s'] / 1e9:.4g} GB/s. Profiled as it trains, kernels run for {trained['busy_ms']:.3f} ms a step, and "
        f"none does for {trained['gaps_ms']:.3f}, of which {long['ms']:.3f} in {long['count']:.1f} gaps of over "
        f"{long['over_us']:.0f} µs.",
        "",
        "| kind | ms a step | of the wall | kernels | ns a token | floor ms | of the floor | ms, as it trains |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, took in _all_ms(r).items():
        floor = r["floors_ms"].get(kind) if kind in found["kinds"] else None
        count = f"{found['kinds'][kind]['count']:.0f}" if kind in found["kinds"] else ""
        beside = ("", "") if floor is None else (f"{floor:.3f}", f"{took / floor:.2f}")
        own = f"{trained['kinds'][kind]['ms']:.3f}" if kind in trained["kinds"] else ""
        cells = (
            kind,
            f"{took:.3f}",
            f"{took / r['wall_ms']:.1%}",
            count,
            f"{took * 1e6 / all_tokens:.2f}",
            *beside,
            own,
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| kind | kernel | ms a step | times |", "|---|---|---|---|"]
    for k in found["kernels"][:20]:
        lines.append(f"| {k['kind']} | `{k['name'][:90]}` | {k['ms']:.3f} | {k['count']:.0f} |")
    return "\n".join(lines)


def side_by_side(records: list[Facts]) -> str:
    """Nanoseconds a token of every kind, and what the last of a case has more than the first; of two that differ in tokens a
    step alone, also the milliseconds that a step costs whatever its tokens."""
    first, last = records[0], records[-1]
    first_ms, last_ms = _all_ms(first), _all_ms(last)
    is_longer = first["tokens"] != last["tokens"] and all(
        first[k] == last[k] for k in ("size", "gate", "runs", "context")
    )
    head = ["ns a token", *(r["name"] for r in records), "last − first", "of the first's wall"]
    lines = [f"| {' | '.join([*head, *(['ms a step, whatever its tokens'] if is_longer else [])])} |"]
    lines.append("|" + "---|" * (len(head) + is_longer))
    n = [r["tokens"] * r["runs"] for r in records]
    for kind in {**first_ms, **last_ms}:
        each = [1e6 * _all_ms(r).get(kind, 0.0) / tokens for r, tokens in zip(records, n, strict=True)]
        more = each[-1] - each[0]
        cells = [
            kind,
            *(f"{ns:.2f}" for ns in each),
            f"{more:+.2f}",
            f"{more * n[0] / 1e6 / first['wall_ms']:+.2%}",
        ]
        if is_longer:
            fixed = (n[-1] * first_ms.get(kind, 0.0) - n[0] * last_ms.get(kind, 0.0)) / (n[-1] - n[0])
            cells.append(f"{fixed:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _chosen(r: Facts) -> Facts:
    """The profile that shares are of."""
    alone = r["profiles"].get("launched")
    return alone if alone is not None and alone["kinds"] else r["profiles"]["trained"]


def _all_ms(r: Facts) -> dict[str, float]:
    found = _chosen(r)
    return {kind: k["ms"] for kind, k in found["kinds"].items()} | {
        GAPS: r["wall_ms"] - found["busy_ms"],
        ALL: r["wall_ms"],
    }
