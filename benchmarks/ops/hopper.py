"""What a gate inside FlashAttention-4's kernels for Hopper costs: the contract, then times beside ungated peers.

    python benchmarks/ops/hopper.py [--out FILE] [--shapes 4096,8192-window] [--cases none] [--seconds 300] [--rounds 25]

bfloat16, 32,768 tokens in all, 16 heads, causal. First every case is judged by the numeric contract, its log-sum-exp
against float64 and its shut gates; then of each shape every way by the contract at fewer tokens, and all that keep it take turns
in every round: cuDNN and FlashAttention-4 without a gate, `hopper` with and without one, `flash` and `flash-lean` with one,
and the parts of `hopper`'s way back; cuDNN and `flash` know no window. JSON lines go to the terminal and to --out, medians and
ratios within rounds to the best ungated of the peers, with their quartiles, as Markdown tables to the terminal; it leaves with 1
where something failed. Needs a GPU of capability 9.0 and `pip install 'gatelab[hopper]'`, and says what is missing.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import torch
import torch.nn.functional as F
from rounds import Log, spread
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gatelab.config.normaliser import Softmax
from gatelab.ops.gated_attention import Call, flash, gated_attention, hopper, visible
from gatelab.ops.gated_attention.cases import Case, inputs

N_TOKENS, N_HEADS = 32768, 16


class Shape(NamedTuple):
    """Tokens of a sequence, channels of a head, key/value heads, window."""

    name: str
    T: int
    K: int = 128
    G: int = N_HEADS
    window: int | None = None


class Row(NamedTuple):
    """Milliseconds and ratios over the best ungated peer, each by median, quartiles, least and most."""

    ms: dict[str, float]
    ratios: dict[str, float] | None

    @property
    def cell(self) -> str:
        if self.ratios is None:
            return f"{self.ms['ms']:.3f}"
        return f"{self.ms['ms']:.3f} ({self.ratios['ms']:.3f}, {self.ratios['low']:.3f} to {self.ratios['high']:.3f})"


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("4096", 4096),
        Shape("8192", 8192),
        Shape("16384", 16_384),
        Shape("32768", 32_768),
        Shape("4096-grouped", 4096, G=4),
        Shape("8192-window", 8192, window=1024),
        Shape("1024", 1024),
        Shape("2048", 2048),
        Shape("4096-heads-of-64", 4096, K=64),
    )
}
WIDTHS = {"none": 0, "headwise": 1, "elementwise": None}  # logits a token and head, None as many as channels
PEERS = ("cuDNN", "FlashAttention-4")
LSE_AT_MOST = 1e-4  # nats
PLAIN = Case("plain", T=300, K=128)
_CASES = (
    PLAIN,
    replace(PLAIN, name="elementwise", T=1000, gate="sdpa-elementwise"),
    replace(PLAIN, name="headwise", T=333, gate="sdpa-headwise"),
    Case("grouped-odd", T=333, H=6, G=2, K=64, gate="sdpa-elementwise"),
    Case("one-kv-head", T=129, G=1, K=128, gate="sdpa-headwise"),
    Case("one-token", T=1, K=128, gate="sdpa-elementwise"),
    Case("last-queries", T=70, S=200, K=64, gate="sdpa-elementwise"),
    Case("cross", T=190, S=260, G=2, K=128, gate="sdpa-elementwise", is_causal=False),
    Case("both-ways", T=211, K=128, gate="sdpa-headwise", is_causal=False),
    Case("both-ways-64", T=211, K=64, gate="sdpa-headwise", is_causal=False),
    Case("window", T=300, G=2, K=128, gate="sdpa-elementwise", window=70),
    Case("window-both-ways", T=300, K=64, gate="sdpa-headwise", window=33, is_causal=False),
    Case("keys-that-nobody-sees", T=70, S=700, K=64, gate="sdpa-elementwise", window=30),
    Case("96-grouped", T=270, G=2, K=96, gate="sdpa-elementwise"),
    Case("96-both-ways", T=270, K=96, gate="sdpa-elementwise", is_causal=False),
    Case("96-window", T=200, K=96, gate="sdpa-headwise", window=40),
)
CASES = {case.name: case for case in _CASES}
REFERENCE = partial(gated_attention, impl="reference")


def attend(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None = None,
    *,
    is_causal: bool = True,
    window: int | None = None,
    **_: Any,
) -> Tensor:
    """`hopper` with the arguments of `gated_attention`."""
    return hopper.attention(q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK, is_causal=is_causal, window=window)[0]


def judge(log: Log, device: torch.device, cases: tuple[Case, ...]) -> None:
    """All cases in bfloat16, some in float16, with float32 logits and compiled; then statistics, slices and shut gates."""
    reference = REFERENCE
    drawn = partial(inputs, seed=1, device=device.type)
    for case in cases:
        arguments = drawn(case, dtype=torch.bfloat16)
        log.judge(case.name, attend, reference, arguments)
        log.tried(f"{case.name}, log-sum-exp", lambda arguments=arguments: _check_lse(arguments))
    gated = replace(PLAIN, gate="sdpa-elementwise")
    log.judge("float16", attend, reference, drawn(gated, dtype=torch.float16))
    arguments = drawn(gated, dtype=torch.bfloat16)
    log.judge("compiled", torch.compile(attend, fullgraph=True), reference, arguments)
    log.tried("slices", lambda: _check_slices(arguments))
    arguments["gate_logits_BTHK"] = arguments["gate_logits_BTHK"].detach().float().requires_grad_()
    log.judge("float32 logits", attend, reference, arguments)
    for gate in ("sdpa-headwise", "sdpa-elementwise"):
        log.tried(
            f"shut, {gate}", lambda gate=gate: _check_shut(drawn(replace(PLAIN, gate=gate), dtype=torch.bfloat16))
        )


def _check_lse(arguments: dict[str, Any]) -> None:
    """The log-sum-exp that comes along against float64's."""
    given = [arguments[n] for n in ("q_BTHK", "k_BSGK", "v_BSGK", "gate_logits_BTHK")]
    masks = {"is_causal": arguments["is_causal"], "window": arguments["window"]}
    _, lse_BHT = hopper.attention(*given, **masks)
    q_BTHK, k_BSGK = (t.detach().double() for t in given[:2])
    k_BSHK = k_BSGK.repeat_interleave(q_BTHK.shape[2] // k_BSGK.shape[2], dim=2)
    seen_BTS = visible(q_BTHK.shape[1], k_BSHK.shape[1], **masks, mask_BTS=None, device=q_BTHK.device)
    x_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK) / math.sqrt(q_BTHK.shape[3])
    gap = (x_BHTS.masked_fill(~seen_BTS[:, None], -math.inf).logsumexp(dim=-1) - lse_BHT).abs().max().item()
    if not gap < LSE_AT_MOST:
        raise ValueError(f"off by {gap:.1e} nats, and {LSE_AT_MOST:.0e} are allowed")


def _check_slices(arguments: dict[str, Any]) -> None:
    """Slices of one projection, in rows that begin anywhere, against copies of them."""
    apart = [arguments[n].detach() for n in ("q_BTHK", "k_BSGK", "v_BSGK", "gate_logits_BTHK")]
    wide_BTN = torch.cat([*(t.flatten(2) for t in apart), apart[0][..., 0, :5]], dim=-1)
    pieces = wide_BTN.split([*(t[0, 0].numel() for t in apart), 5], dim=-1)[:4]
    slices = [p.unflatten(-1, t.shape[2:]) for p, t in zip(pieces, apart, strict=True)]
    found, same = (hopper.attention(*given, is_causal=True) for given in (slices, apart))
    if not all(torch.equal(a, b) for a, b in zip(found, same, strict=True)):
        raise ValueError("slices do not give the bits that copies of them give")


def _check_shut(arguments: dict[str, Any]) -> None:
    """Open gates beside shut ones: everything is finite, and a shut gate's row moves nothing."""
    leaves = [arguments[n] for n in ("q_BTHK", "k_BSGK", "v_BSGK", "gate_logits_BTHK")]
    with torch.no_grad():
        leaves[3][:, ::3], leaves[3][:, 1::3], leaves[3][:, 2::3] = -80.0, 80.0, -1e4
    z_BTHK = attend(**arguments)
    dq_BTHK, *others = torch.autograd.grad(z_BTHK, leaves, arguments["grad_BTHK"])
    is_finite = all(t.isfinite().all() for t in (z_BTHK, dq_BTHK, *others))
    is_quiet = all(t[:, ::3].abs().amax() < 1e-30 and not t[:, 2::3].any() for t in (z_BTHK, dq_BTHK))
    if not is_finite or not is_quiet:
        raise ValueError(f"finite: {is_finite}, shut: {is_quiet}")


def by_cudnn(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, _: None) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        heads = (t.transpose(1, 2) for t in (q_BTHK, k_BSGK, v_BSGK))
        is_grouped = k_BSGK.shape[2] != q_BTHK.shape[2]
        return F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=is_grouped).transpose(1, 2)


def by_flash_attention_4(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, _: None, *, window: int | None = None
) -> Tensor:
    from flash_attn.cute import flash_attn_func

    reach = {} if window is None else {"window_size": (window - 1, 0)}
    out = flash_attn_func(q_BTHK, k_BSGK, v_BSGK, causal=True, **reach)
    return out[0] if isinstance(out, tuple) else out


def by_flash(*given: Tensor | None, keeps_output: bool) -> Tensor:
    return flash.attention(*given, is_causal=True, keeps_output=keeps_output)[0]


@torch.no_grad()
def forward(way: Callable[..., Tensor], given: list[Tensor | None]) -> Tensor:
    return way(*given)


def both(way: Callable[..., Tensor], given: list[Tensor | None], upstream_BTHK: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(way(*given), [t for t in given if t is not None], upstream_BTHK)


def measure(log: Log, shape: Shape, device: torch.device, rounds: int, until: float) -> dict[str, Row]:
    """Of `way, work`, and of the parts of the way back, milliseconds and, of ways, over the best ungated peer; nothing of a way
    that breaks the contract."""
    B, T, K = max(1, N_TOKENS // shape.T), shape.T, shape.K

    def normal(n_heads: int, width: int) -> Tensor:
        return torch.randn(B, T, n_heads, width, device=device, dtype=torch.bfloat16).requires_grad_()

    qkv, upstream_BTHK = [normal(n, K) for n in (N_HEADS, shape.G, shape.G)], normal(N_HEADS, K).detach()
    logits = {gate: None if width == 0 else normal(N_HEADS, width or K) for gate, width in WIDTHS.items()}
    ways: dict[str, tuple[Callable[..., Tensor], str]] = {}
    if shape.window is None:
        ways["cuDNN"] = (by_cudnn, "none")
    ways["FlashAttention-4"] = (partial(by_flash_attention_4, window=shape.window), "none")
    ways |= {f"hopper {gate}": (partial(attend, window=shape.window), gate) for gate in WIDTHS}
    if shape.window is None:
        for (impl, keeps), gate in ((p, g) for p in flash.KEEPS_OUTPUT.items() for g in ("headwise", "elementwise")):
            ways[f"{impl} {gate}"] = (partial(by_flash, keeps_output=keeps), gate)
    works: dict[str, Callable[[], object]] = {}
    for name, (way, gate) in ways.items():
        if not log.judge(f"{shape.name}, {name}", partial(named, way), REFERENCE, judged(shape, gate, device)):
            continue
        given = [*qkv, logits[gate]]
        works |= {
            f"{name}, forward": partial(forward, way, given),
            f"{name}, both": partial(both, way, given, upstream_BTHK),
        }
    parts = log.tried(f"{shape.name}, parts", lambda: way_back(qkv, logits, upstream_BTHK, shape.window))
    found = log.each(works | (parts or {}), device, rounds, until=until)
    rows = {}
    for name, times in found.items():
        work = name.rpartition(", ")[2]
        peers = [peer for peer in (f"{peer}, {work}" for peer in PEERS) if peer in found]
        best = min(peers, key=lambda peer: statistics.median(found[peer]), default=None)
        ratios = None if best is None else spread([a / b for a, b in zip(times, found[best], strict=True)])
        rows[name] = Row(spread(times), ratios)
        log.tell(
            "time", shape=shape.name, T=T, K=K, batch=B, heads=N_HEADS, kv_heads=shape.G, window=shape.window, what=name,
            rounds=len(times), over=best, ratio=ratios, **rows[name].ms,
        )  # fmt: skip
    return rows


def judged(shape: Shape, gate: str, device: torch.device) -> dict[str, Any]:
    """Arguments of a shape's kind, few enough for the reference; a window hides as large a share of them."""
    T = min(shape.T, 500)
    window = None if shape.window is None else T * shape.window // shape.T
    case = Case(shape.name, B=1, T=T, H=N_HEADS, G=shape.G, K=shape.K, gate=None if gate == "none" else f"sdpa-{gate}")
    return inputs(replace(case, window=window), seed=2, dtype=torch.bfloat16, device=device.type)


def named(
    way: Callable[..., Tensor],
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None = None,
    *,
    window: int | None = None,
    **_: Any,
) -> Tensor:
    """A way, by the names of `gated_attention`."""
    knows_window = isinstance(way, partial) and "window" in way.keywords
    return way(q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK, **({"window": window} if knows_window else {}))


def way_back(
    qkv: list[Tensor], logits: dict[str, Tensor | None], upstream_BTHK: Tensor, window: int | None
) -> dict[str, Callable[[], object]]:
    """The kernel before the main loop, for each gate, and the main loop with what follows it."""
    from gatelab.ops.gated_attention import hopper_kernels
    from gatelab.ops.gated_attention.hopper_prepare import prepare

    q, k, v = (t.detach() for t in qkv)
    masks = {"is_causal": True, "window": window}
    z_BTHK, lse_BHT = hopper.attention(q, k, v, **masks)
    tile = hopper_kernels.queries_of_a_tile(q, k, **masks)
    prepared = partial(prepare, upstream_BTHK, z_BTHK, lse_BHT=lse_BHT, tile=tile, dtype=torch.bfloat16)
    works = {
        f"prepare, {gate}": partial(prepared, logits_BTHW=None if g is None else g.detach())
        for gate, g in logits.items()
    }
    # Its sums of dq go on where the last run left them: other numbers, the same time.
    return works | {"main loop": partial(hopper_kernels.backward, q, k, v, prepared(logits_BTHW=None), **masks)}


def print_times(found: dict[str, dict[str, Row]]) -> None:
    """Milliseconds, and over the best ungated peer of the shape: the median of the ratios within rounds and the middle half."""
    shapes = " | ".join(found)
    names = dict.fromkeys(name for rows in found.values() for name in rows)
    for work in ("forward", "both"):
        print(f"\n| {work} | {shapes} |\n" + "|---" * (1 + len(found)) + "|")
        for name in (n for n in names if n.endswith(f", {work}")):
            cells = [rows[name].cell if name in rows else "" for rows in found.values()]
            print(f"| {name.removesuffix(f', {work}')} | {' | '.join(cells)} |")
    print(f"\n| a part of the way back | {shapes} |\n" + "|---" * (1 + len(found)) + "|")
    for name in (n for n in names if n.startswith(("prepare", "main"))):
        print(f"| {name} | {' | '.join(rows[name].cell if name in rows else '' for rows in found.values())} |")


def listed(table: dict[str, Any]) -> Callable[[str], list[str]]:
    """Of a table's names, those that a line joins by commas; none of them where it is `none`."""

    def split(line: str) -> list[str]:
        names = [] if line == "none" else line.split(",")
        if unknown := [name for name in names if name not in table]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected none, or some of {', '.join(table)}")
        return names

    return split


def main() -> int:
    """1 where a contract is broken or something does not run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a file that JSON lines are appended to")
    parser.add_argument("--rounds", type=int, default=25, help="of a shape, at most")
    parser.add_argument("--shapes", type=listed(SHAPES), default=list(SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--cases", type=listed(CASES), default=list(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which no other shape is begun")
    given = parser.parse_args()
    start, device = time.perf_counter(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    why = hopper.unserved(Softmax(), Call(8, 8, 128, (torch.bfloat16,), device))
    if why is not None:
        sys.exit(f"hopper {why}")
    torch.manual_seed(0)
    log = Log(given.out)
    log.tell(
        "about", device=torch.cuda.get_device_name(), torch=torch.__version__, tokens=N_TOKENS, rounds=given.rounds
    )
    if given.cases:
        judge(log, device, tuple(CASES[name] for name in given.cases))
    found = {}
    for i, name in enumerate(given.shapes):
        now = time.perf_counter()
        if now > start + given.seconds:
            log.tell("not run", shape=name, why=f"the {given.seconds:g} s are over; give more --seconds")
            continue
        # What is left, in equal parts.
        until = now + (start + given.seconds - now) / (len(given.shapes) - i)
        found[name] = measure(log, SHAPES[name], device, given.rounds, until)
    print_times(found)
    print(f"\n{len(log.failed)} failed{': ' if log.failed else ''}{'; '.join(log.failed)}")
    return int(bool(log.failed))


if __name__ == "__main__":
    sys.exit(main())
