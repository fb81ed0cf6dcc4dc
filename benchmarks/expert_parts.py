"""Of a block with experts that two GPUs share, what each part takes; and, without a GPU, what each part does.

    torchrun --standalone --nproc-per-node 2 benchmarks/expert_parts.py --context 4096 --sequences 8 --out parts.json
    python benchmarks/expert_parts.py --played --context 4096 --sequences 8 --out played.json
    python benchmarks/expert_parts.py --count

Timed are one block and its parts, forward and backward, as they are written and compiled, with random tokens and routers as they
begin: milliseconds by the device's clock, the kernels' own time (the rest of it the device stood still), and how often the host
waited. Counted, on one process that plays two, are the operations that torch calls; the bytes a token that they read and write,
but for products' and for what does not grow with tokens; those that are kept for the backward pass, and sent; the waits; and how
uneven the ranks' rows are. On a CPU the times mean nothing, and norms are counted apart, which are one kernel on a GPU.
With `--played` one GPU plays both ranks of the trainer's whole step, all but the wire (`expert_step`), and of the parts.
"""

import argparse
import json
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import expert_step
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gatelab.config.moe import SwiGLU
from gatelab.config.parallel import ParallelConfig
from gatelab.models import build_model
from gatelab.models.block import Pass
from gatelab.models.ladder import SIZES
from gatelab.models.model import Model
from gatelab.nn.moe import ExpertMLP
from gatelab.ops.expert_ffn.hidden import hidden
from gatelab.ops.expert_ffn.rows import by_expert, permuted, to_experts, weighted_sum
from gatelab.train.mesh import Mesh, make_mesh
from gatelab.train.parallel import join
from gatelab.train.shard.compiled import compile_blocks
from gatelab.train.shard.exchange import travel
from gatelab.train.shard.layout import lay_out

Part = Callable[[], Tensor]
# Operations that compute nothing, and those whose bytes are products' or attention's.
_VIEWS = (
    "view", "_unsafe_view", "reshape", "transpose", "expand", "unsqueeze", "squeeze", "slice", "select", "split", "t", "permute",
    "detach", "alias", "as_strided", "unbind", "empty", "new_empty", "empty_like", "promote_types", "split_with_sizes",
)  # fmt: skip
_PRODUCTS = ("mm", "bmm", "addmm", "_grouped_mm", "gated_flash", "gated_flash_backward", "_scaled_dot_product")
_GATHERS = ("index_select", "index", "embedding", "gather")
_SCATTERS = ("index_put", "index_put_", "index_add", "scatter", "scatter_", "index_copy")


def model_of(args: argparse.Namespace, context: int) -> Model:
    """One block of the size; what is measured of it is in bfloat16 on every device."""
    config = SIZES[args.size].model.model_copy(update={"n_layers": 1, "max_seq_len": context, "vocab_size": 64})
    model = build_model(config, seed=0)
    for layer in model.modules():
        if isinstance(layer, ExpertMLP):
            layer.impl = "grouped"
    model.compute_dtype, model.attention = torch.bfloat16, "flash-lean"
    return model


# What is counted.


@dataclass
class Counted(TorchDispatchMode):
    """Of what runs within it."""

    n: Counter[str] = field(default_factory=Counter)
    n_bytes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = str(func).split(".")[1]
        if name in _VIEWS:
            return out
        given, found = ([t for t in tree_leaves(ts) if isinstance(t, Tensor)] for ts in ((args, kwargs), out))
        self.n[name] += 1
        if name in _GATHERS:
            self.n_bytes[name] += 2 * _size(found) + _size(given[1:])
        elif name in _SCATTERS or not name.startswith(_PRODUCTS):
            self.n_bytes[name] += _size(given) + _size(found)
        return out


def _size(tensors: list[Tensor]) -> int:
    return sum(t.untyped_storage().nbytes() if 0 in t.stride() else t.nbytes for t in tensors)


@contextmanager
def played(waits: Counter[str], sent: list[int]):
    """One process that plays two: what it sends comes back to it; calls for which a host would wait for a GPU are counted."""
    calls = {"tolist": Tensor.tolist, "item": Tensor.item}
    bincount, exchange = torch.bincount, dist.all_to_all_single

    def counting(name: str, call: Callable, times: int = 1) -> Callable:
        def counted(*given, **named):
            waits[name] += times
            return call(*given, **named)

        return counted

    def comes_back(out: Tensor, rows: Tensor, *_: object, **__: object) -> None:
        sent.append(rows.nbytes // 2)
        n = min(out.numel(), rows.numel())
        out.view(-1)[:n] = rows.reshape(-1)[:n]

    try:
        for name, call in calls.items():
            setattr(Tensor, name, counting(name, call))
        torch.bincount, dist.all_to_all_single = counting("bincount", bincount, 2), comes_back  # the least and the most
        yield
    finally:
        for name, call in calls.items():
            setattr(Tensor, name, call)
        torch.bincount, dist.all_to_all_single = bincount, exchange


def count(args: argparse.Namespace) -> dict[str, object]:
    """By part: operations, bytes a token, bytes kept a token, rows' bytes sent a token, waits."""
    dist.init_process_group("fake", rank=0, world_size=2)
    ranks = torch.arange(2)
    base = DeviceMesh("cpu", ranks.view(2, 1).T, mesh_dim_names=("tensor", "data"))
    mesh = Mesh(
        ParallelConfig(ep=2), base, DeviceMesh("cpu", ranks.view(1, 2).T, mesh_dim_names=("expert", "copy")), None
    )
    found: dict[str, list[dict]] = {}
    for tokens in (512, 1024):
        model = model_of(args, tokens)
        lay_out(model, mesh, torch.bfloat16, torch.device("cpu"))
        block, D = model.blocks[0], model.config.d_model
        moe, x_BTD = model.config.moe, (1, tokens, D)
        chosen_NE = torch.rand(tokens, moe.n_experts).topk(moe.top_k).indices
        order_M, place_M, _ = by_expert(chosen_NE, n_experts=moe.n_experts)
        rows_MF, rows_MD = (len(order_M), moe.d_expert), (len(order_M), D)
        weight_NE = torch.rand(chosen_NE.shape, requires_grad=True)
        parts = {
            "before the experts": ([x_BTD], lambda x, b=block: sum(b.attend(x, Pass()))),
            "of it, norms": ([x_BTD], lambda x, b=block: b.mlp_norm(b.attention_norm(x))),
            "experts": ([x_BTD], lambda x, b=block: b.mlp(x, [])),
            "of it, between the products": ([rows_MF, rows_MF], lambda a, b: hidden(a, b, SwiGLU())),
            "of it, weighted sum": ([rows_MD], lambda y, i=place_M, o=order_M, w=weight_NE: weighted_sum(y, i, o, w)),
        }
        for name, (shapes, part) in parts.items():
            model.zero_grad(set_to_none=True)
            given = [torch.randn(*shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
            weight_NE.grad = None
            counted, waits, sent, kept = Counted(), Counter(), [], {}

            def keep(t: Tensor, kept: dict[int, int] = kept) -> Tensor:
                kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
                return t

            with played(waits, sent):
                with counted, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
                    out = part(*given)
                gradient = torch.randn_like(out)
                with counted:
                    out.backward(gradient)
            record = {
                "operations": counted.n.total(), "bytes": counted.n_bytes.total(), "kept": sum(kept.values()),
                "sent": sum(sent), "waits": dict(waits), "by_operation": dict(counted.n_bytes.most_common(12)),
            }  # fmt: skip
            found.setdefault(name, []).append(record | {"tokens": tokens})
    out = {}
    for name, (few, many) in found.items():
        more = many["tokens"] - few["tokens"]
        a_token = {key: (many[key] - few[key]) / more for key in ("bytes", "kept", "sent")}
        out[name] = {"operations": many["operations"], "waits": many["waits"], **a_token}
        n, words = out[name], " ".join(f"{k} {v}" for k, v in many["waits"].items()) or "none"
        print(
            f"{name:28} {n['operations']:4} operations, a token {n['bytes'] / 1024:7.1f} KiB moved, {n['kept'] / 1024:6.1f} kept, "
            f"{n['sent'] / 1024:5.1f} sent; waits: {words}"
        )
    return out


def loads(args: argparse.Namespace) -> list[float]:
    """Of what the whole model's routers choose as they begin, on two sequences of 512 random tokens, the busier rank's share, by
    layer."""
    model, routed = build_model(SIZES[args.size].model, seed=0), []
    for layer in model.modules():
        if isinstance(layer, ExpertMLP):
            layer.impl = "grouped"
    with torch.no_grad():
        model.hidden(torch.randint(0, model.config.vocab_size, (2, 512)), routed=routed)
    halves = [r.counts_X.view(2, -1).sum(dim=-1) for r in routed]
    found = [(h.max() / h.sum()).item() for h in halves]
    print(f"the busier rank's rows, by layer: {' '.join(f'{x:.2f}' for x in found)}; mean {statistics.mean(found):.3f}")
    return found


# What is timed.


def parts_of(args: argparse.Namespace, mesh: Mesh, device: torch.device) -> dict[str, Part]:
    """Each part's forward pass, by name; the backward pass follows."""
    models = {"as written": model_of(args, args.context), "compiled": model_of(args, args.context)}
    for name, model in models.items():
        lay_out(model, mesh, torch.bfloat16, device, compiled=name == "compiled")
    alone = model_of(args, args.context).to(device)
    compile_blocks(alone)
    c = alone.config
    N, D, F, E, X = args.context * args.sequences, c.d_model, c.moe.d_expert, c.moe.top_k, c.moe.n_experts

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.bfloat16, device=device, requires_grad=True)

    x_BTD, x_ND, a_MF, b_MF, y_MD = (
        leaf(args.sequences, args.context, D),
        leaf(N, D),
        leaf(N * E, F),
        leaf(N * E, F),
        leaf(N * E, D),
    )
    chosen_NE = torch.rand(N, X, device=device).topk(E).indices
    weight_NE = torch.rand(N, E, device=device, requires_grad=True)
    order_M, place_M, ends_X = by_expert(chosen_NE, n_experts=X)
    group, half = mesh.expert.get_group("expert"), N * E // 2
    parts: dict[str, Part] = {}
    for name, model in models.items():
        block = model.blocks[0]
        parts |= {
            f"block, {name}": lambda b=block: b(x_BTD, Pass(routed=[])),
            f"before the experts, {name}": lambda b=block: sum(b.attend(x_BTD, Pass())),
            f"experts, {name}": lambda b=block: b.mlp(x_BTD, []),
        }
    own = alone.blocks[0]
    parts |= {"block of one GPU": lambda: own(x_BTD, Pass(routed=[])), "experts of one GPU": lambda: own.mlp(x_BTD, [])}

    def counts() -> Tensor:
        to_X, come_X = ends_X.diff(prepend=ends_X.new_zeros(1)), torch.empty_like(ends_X)
        dist.all_to_all_single(come_X, to_X, group=group)
        return x_ND[:1].sum() * sum(torch.stack([to_X, come_X]).sum(dim=-1).tolist())

    parts |= {
        "numbers of rows, and the wait": counts,
        "rows there": lambda: travel(y_MD, [half, N * E - half], [half, N * E - half], group),
        "order of rows": lambda: to_experts(x_ND, *by_expert(chosen_NE, n_experts=X)[:2], E),
        "rows in another order": lambda: permuted(y_MD, place_M, order_M),
    }
    for name, compiled in (("as written", lambda f, **_: f), ("compiled", torch.compile)):
        between, weigh = compiled(hidden, dynamic=True), compiled(weighted_sum, dynamic=False)
        parts |= {
            f"between the products, {name}": lambda f=between: f(a_MF, b_MF, SwiGLU()),
            f"weighted sum, {name}": lambda f=weigh: f(y_MD, place_M, order_M, weight_NE),
        }
    others = [p for n, p in models["as written"].named_parameters() if ".mlp.w" not in n]
    flat = torch.zeros(sum(p.numel() for p in others) * SIZES[args.size].model.n_layers, device=device)

    def summed() -> Tensor:
        dist.all_reduce(flat)
        return x_ND[:1].sum()

    return parts | {"gradients of all else, of all layers": summed}


def timed(args: argparse.Namespace, part: Part, device: torch.device) -> dict[str, float]:
    """Milliseconds of a forward and a backward pass, of their kernels, and the host's waits."""

    def once() -> None:
        out = part()
        out.backward(torch.ones_like(out))

    for _ in range(3):
        once()
    cuda, times = device.type == "cuda", []
    for _ in range(args.rounds):
        dist.barrier()
        if not cuda:
            began = time.perf_counter()
            once()
            times.append(1e3 * (time.perf_counter() - began))
            continue
        torch.cuda.synchronize()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        once()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last))
    found = {"ms": statistics.median(times), "least": min(times), "most": max(times)}
    if cuda:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            once()
            torch.cuda.synchronize()
        found["kernels_ms"] = sum(e.self_device_time_total for e in seen.key_averages()) / 1e3
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            once()
        torch.cuda.set_sync_debug_mode("default")
        found["waits"] = sum("synchroniz" in str(w.message) for w in told)
    return found


def times_of(args: argparse.Namespace, device: torch.device, *, tells: bool) -> dict[str, dict[str, float]]:
    """Of each part, between this rank and the other."""
    found = {}
    for name, part in parts_of(args, make_mesh(ParallelConfig(ep=2), 2, device, 300.0), device).items():
        found[name] = timed(args, part, device)
        if tells:
            words = "  ".join(f"{k} {v:.3f}" for k, v in found[name].items())
            print(f"{name:42} {words}", flush=True)
    return found


def main() -> None:
    """Counts, or times of two ranks, or of one that plays both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="moe-480m")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--sequences", type=int, default=8, help="a GPU")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--count", action="store_true", help="on one process, without a GPU")
    parser.add_argument("--played", action="store_true", help="whole steps too, on one process that plays two")
    parser.add_argument("--arms", default="captured,blocks,ep,ep busier", help="with --played: of these and whole")
    parser.add_argument("--no-parts", action="store_true", help="with --played: whole steps only")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if SIZES[args.size].model.moe is None:
        parser.error(f"--size {args.size} has no experts; take one that has, such as moe-480m")
    arms = tuple(args.arms.split(","))
    if unknown := [name for name in arms if name not in expert_step.ARMS]:
        parser.error(f"--arms {unknown[0]}: take some of {', '.join(expert_step.ARMS)}, joined by commas")
    if args.count and args.played:
        parser.error("--count and --played are two questions; take one of them")
    torch.manual_seed(0)
    device, is_writer = torch.device(args.device), True
    about = {"size": args.size, "torch": torch.__version__}
    if args.count:
        found = {"parts": count(args) | {"busier rank": loads(args)}}
        dist.destroy_process_group()
    elif args.played:
        model, peer = SIZES[args.size].model.model_copy(update={"max_seq_len": args.context}), expert_step.Peer()
        about |= {"context": args.context, "sequences": args.sequences, "device": expert_step.device_name(device.type)}
        with expert_step.played(peer):
            asked = expert_step.Asked(model, args.context, args.sequences, device, args.rounds, arms)
            found = expert_step.measured(asked, peer)
            if not args.no_parts:
                write(args.out, about | found)
                peer.is_busier = False
                found["parts"] = times_of(args, device, tells=True)
    else:
        ranks = join(device, 300.0)
        if ranks.world != 2:
            parser.error(
                f"{ranks.world} process(es): torchrun --standalone --nproc-per-node 2 starts the two that share experts; "
                "--played needs but one"
            )
        is_writer = ranks.is_writer
        found = {"parts": times_of(args, device, tells=is_writer)}
        dist.destroy_process_group()
    if is_writer:
        write(args.out, about | found)


def write(out: Path | None, found: dict[str, object]) -> None:
    """What there is so far."""
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
