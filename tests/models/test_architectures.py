"""Every preset in every architecture: it learns, is what its shapes say, is saved, and sees what it may and nothing else.

Notable: an ungated model is compared with one written here that knows no gates: the same operations of torch, forward
and backward, and the same bytes kept in between.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gatelab.config import PRESETS, ConfigError, ModelConfig, override
from gatelab.models import build_model, model_class
from gatelab.models.model import Model
from gatelab.models.sizes import count_parameters, parameter_shapes
from gatelab.nn.rope import Rope
from gatelab.train.checkpoint import load_weights, write_tensors

V, D, H, G, K, D_FF = 17, 16, 4, 2, 4, 24
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "decoder": {},
    "experts": {"moe": {"n_experts": 4, "top_k": 2, "d_expert": 8, "n_shared": 1}, "d_ff": None},
    "encoder": {"arch": "encoder"},
    "encoder-decoder": {"arch": "encoder-decoder", "n_encoder_layers": 1},
    "three-gates": {
        "arch": "encoder-decoder",
        "cross_gate": "sdpa-headwise+key-elementwise",
        "encoder_gate": "value-elementwise-value+out-elementwise",
    },
}
# What a preset may be refused with, and where.
REFUSALS = {
    "this attention is not causal": {"encoder", "encoder-decoder"},
    "which cross-attention does not have": {"encoder-decoder"},
    "added to a mixture|adds 4 experts": {"decoder", "encoder", "encoder-decoder", "three-gates"},
}


@cache
def config(arch: str, preset: str) -> ModelConfig | str:
    """The model, or why there is none."""
    base = tiny.model(n_heads=H, n_kv_heads=G, head_dim=K, init="fan-in", **ARCHITECTURES[arch])
    try:
        return override(base, {"preset": preset})
    except ConfigError as error:
        return str(error)


POINTS = [(a, p) for a in ARCHITECTURES for p in PRESETS if isinstance(config(a, p), ModelConfig)]
of_every_point = pytest.mark.parametrize(("arch", "preset"), POINTS)
of_every_decoder = pytest.mark.parametrize(("arch", "preset"), [p for p in POINTS if p[0] in ("decoder", "experts")])
of_every_pair = pytest.mark.parametrize(
    ("arch", "preset"), [p for p in POINTS if p[0] in ("encoder-decoder", "three-gates")]
)


def drawn(arch: str, preset: str, *, seed: int) -> Model:
    """With weights that are nowhere at a special value."""
    built = build_model(config(arch, preset), seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return built


@cache
def kept(arch: str, preset: str) -> Model:
    return drawn(arch, preset, seed=0)


def model(arch: str, preset: str) -> Model:
    """The same one for every test, which leaves its weights alone; what is drawn next is the same whoever comes first."""
    net = kept(arch, preset)
    net.zero_grad()
    torch.manual_seed(1)
    return net


@pytest.fixture(autouse=True, scope="module")
def forgotten() -> Iterator[None]:
    yield
    kept.cache_clear()


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, V, shape)


def inputs(arch: str) -> tuple[Tensor, ...]:
    return (tokens(2, 7), tokens(2, 9)) if ARCHITECTURES[arch].get("arch") == "encoder-decoder" else (tokens(2, 9),)


def changed(ids_BT: Tensor, start: int, end: int | None = None) -> Tensor:
    """Other ids from `start` on, up to `end`."""
    ids_BT = ids_BT.clone()
    ids_BT[:, start:end] = (ids_BT[:, start:end] + 3) % V
    return ids_BT


def test_a_preset_is_refused_only_where_its_gate_has_no_meaning() -> None:
    for arch in ARCHITECTURES:
        for preset in PRESETS:
            found = config(arch, preset)
            if isinstance(found, str):
                assert any(re.search(says, found) and arch in where for says, where in REFUSALS.items()), (
                    arch,
                    preset,
                    found,
                )
    assert {arch for arch, _ in POINTS} == set(ARCHITECTURES) and len(POINTS) > 0.9 * len(ARCHITECTURES) * len(PRESETS)


@of_every_point
def test_it_learns_with_all_that_it_has(arch: str, preset: str) -> None:
    net = model(arch, preset)
    net(*inputs(arch)).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@of_every_point
def test_its_shapes_are_known_beforehand(arch: str, preset: str) -> None:
    c = config(arch, preset).resolved(V, 16)
    with torch.device("meta"):
        undrawn = model_class(c)(c)
    shapes = {name: tuple(p.shape) for name, p in undrawn.named_parameters()}
    assert all(p.is_meta for p in undrawn.parameters())
    assert parameter_shapes(c) == shapes == {n: tuple(p.shape) for n, p in model(arch, preset).named_parameters()}
    assert count_parameters(c) == sum(map(prod, shapes.values()))


@of_every_point
def test_it_is_saved_and_loaded_bit_for_bit(arch: str, preset: str, tmp_path: Path) -> None:
    one, other, given = model(arch, preset), drawn(arch, preset, seed=1), inputs(arch)
    write_tensors(tmp_path / "weights.safetensors", dict(one.named_parameters()), {"step": 3})
    with torch.no_grad():
        expected = one(*given)
        assert not torch.allclose(other(*given), expected)
        assert load_weights(other, tmp_path / "weights.safetensors") == 3
        assert torch.equal(other(*given), expected)


@of_every_point
@torch.no_grad()
def test_it_sees_the_future_where_it_may_and_nowhere_else(arch: str, preset: str) -> None:
    net, (*source, ids_BT) = model(arch, preset), inputs(arch)
    before, after = net(*source, ids_BT), net(*source, changed(ids_BT, 5))
    assert not torch.allclose(after[:, 5:], before[:, 5:])
    if arch == "encoder":
        # One token at the end changes every place before it.
        last = (net(changed(ids_BT, 8)) - before).abs().amax(dim=-1)
        assert last.min() > 0
    else:
        torch.testing.assert_close(after[:, :5], before[:, :5])


@of_every_pair
@torch.no_grad()
def test_every_target_sees_every_source_token(arch: str, preset: str) -> None:
    net, (source_BS, ids_BT) = model(arch, preset), inputs(arch)
    before = net(source_BS, ids_BT)
    for s in (0, 6):
        assert (net(changed(source_BS, s, s + 1), ids_BT) - before).abs().amax(dim=-1).min() > 0


@pytest.mark.parametrize(("arch", "preset"), [p for p in POINTS if p[0] != "encoder"])
@torch.no_grad()
def test_decode_equals_the_full_pass(arch: str, preset: str) -> None:
    net, (*source, ids_BT) = model(arch, preset), inputs(arch)
    kv = net.new_cache(2)
    pieces = [net(*source, piece, cache=kv) for piece in ids_BT.split([4, 1, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), net(*source, ids_BT), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("arch", "preset"), [p for p in POINTS if p[0] in ("decoder", "experts", "encoder")])
@torch.no_grad()
def test_documents_in_one_row_are_as_they_are_alone(arch: str, preset: str) -> None:
    net, documents = model(arch, preset), [tokens(2, n) for n in (3, 1, 5)]
    ids_BT = torch.cat([torch.full_like(d, i) for i, d in enumerate(documents)], dim=1)
    packed = net(torch.cat(documents, dim=1), segment_ids_BT=ids_BT)
    torch.testing.assert_close(packed, torch.cat([net(d) for d in documents], dim=1), rtol=1e-4, atol=1e-5)


@of_every_pair
@torch.no_grad()
def test_the_encoder_is_run_once(arch: str, preset: str) -> None:
    net, (source_BS, ids_BT) = model(arch, preset), inputs(arch)
    calls: list[int] = []
    kv = net.new_cache(2)
    with net.encoder_blocks[0].register_forward_hook(lambda *_: calls.append(1)):
        for piece in ids_BT.split(3, dim=1):
            net(source_BS, piece, cache=kv)
    assert len(calls) == 1 and set(kv.context) == {0, 1}


def test_a_gate_in_one_attention_is_in_no_other() -> None:
    net = build_model(config("three-gates", "paper/g1-headwise"))
    found: dict[str, set[str]] = {}
    for name, _ in net.named_parameters():
        if at := re.match(r"(\w+)\.\d+\.(\w+)\.gates\.(\w+)\.", name):
            found.setdefault(f"{at[1]}.{at[2]}", set()).add(at[3])
    assert found == {
        "encoder_blocks.attention": {"value", "out"},
        "blocks.attention": {"sdpa"},
        "blocks.cross_attention": {"sdpa", "key"},
    }


class PlainBlock(nn.Module):
    """Pre-norm attention with grouped queries and RoPE, and SwiGLU; nothing else."""

    def __init__(self):
        super().__init__()
        self.attention_norm, self.mlp_norm = (nn.Parameter(torch.ones(D)) for _ in range(2))
        self.q, self.k, self.v = (nn.Linear(D, n * K, bias=False) for n in (H, G, G))
        self.o = nn.Linear(H * K, D, bias=False)
        self.w1, self.w3, self.w2 = (nn.Linear(*sides, bias=False) for sides in ((D, D_FF), (D, D_FF), (D_FF, D)))
        self.rope = Rope(K, 10_000.0, 16)

    def forward(self, x_BTD: Tensor) -> Tensor:
        normed_BTD = F.rms_norm(x_BTD, (D,), self.attention_norm, 1e-6)
        q_BTHK, k_BTGK, v_BTGK = (p(normed_BTD).unflatten(-1, (-1, K)) for p in (self.q, self.k, self.v))
        heads = [t.transpose(1, 2) for t in (self.rope(q_BTHK), self.rope(k_BTGK), v_BTGK)]
        y_BHTK = F.scaled_dot_product_attention(*heads, is_causal=True, scale=K**-0.5, enable_gqa=True)
        x_BTD = x_BTD + self.o(y_BHTK.transpose(1, 2).flatten(-2))
        normed_BTD = F.rms_norm(x_BTD, (D,), self.mlp_norm, 1e-6)
        return x_BTD + self.w2(F.silu(self.w1(normed_BTD)) * self.w3(normed_BTD))


class PlainModel(nn.Module):
    """A decoder of such blocks."""

    def __init__(self):
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(V, D), nn.ModuleList(PlainBlock() for _ in range(2))
        self.final_norm, self.head = nn.Parameter(torch.ones(D)), nn.Linear(D, V, bias=False)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.embedding(ids_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(F.rms_norm(x_BTD, (D,), self.final_norm, 1e-6))


class CountedOperations(TorchDispatchMode):
    """How often each operation was carried out."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def cost(net: nn.Module) -> tuple[Counter[str], list[int]]:
    """Operations of a forward and a backward pass, and the bytes of each tensor kept for the latter."""
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    ids_BT = tokens(2, 9)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), CountedOperations() as operations:
        net(ids_BT).square().sum().backward()
    # A second name for a tensor computes nothing and keeps nothing.
    operations.counts.pop("aten.alias.default", None)
    return operations.counts, sorted(kept)


def ungated(**changes: object) -> Model:
    return build_model(tiny.model(n_heads=H, n_kv_heads=G, head_dim=K, **changes))


def test_an_ungated_model_pays_nothing_for_gates() -> None:
    (plain, kept_by_plain), (ours, kept_by_ours) = cost(PlainModel()), cost(ungated())
    assert ours == plain and kept_by_ours == kept_by_plain
    assert ours["aten.mm.default"] == 3 * (2 * 7 + 1)


def test_the_comparison_sees_a_gate() -> None:
    plain, kept_by_plain = cost(ungated())
    gated, kept_by_gated = cost(ungated(gate="sdpa-headwise"))
    more = gated - plain
    assert more["aten.mm.default"] == 3 * 2 and more["aten.sigmoid.default"] == 2
    assert sum(kept_by_gated) > sum(kept_by_plain)


def test_the_plain_model_is_ours_with_the_same_weights() -> None:
    plain, ours, ids_BT = PlainModel(), ungated(init="fan-in"), tokens(2, 9)
    shorter = {"attention.": "", "mlp.": "", "_proj": "", "norm.weight": "norm"}
    weights = {}
    for name, weight in ours.state_dict().items():
        for word, less in shorter.items():
            name = name.replace(word, less)
        weights[name] = weight
    plain.load_state_dict(weights)
    assert torch.equal(plain(ids_BT), ours(ids_BT))
