"""Attention in a model that is not ours, its heads shared by two processes: outputs, gradients and steps as on one."""

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from ranks import as_ranks, paths
from torch import Tensor, nn

from gatelab import GatedAttention, HeadParallel, shard_heads
from gatelab.config.normaliser import Differential, KeyBias, SinkLogit
from gatelab.probes.capture import capture
from gatelab.probes.interventions import intervened, parse
from gatelab.probes.watching import watching

D, TOKENS = 16, 11
CASES: dict[str, dict[str, Any]] = {
    "headwise": {"gate": "sdpa-headwise"},
    "elementwise": {"gate": "sdpa-elementwise", "n_kv_heads": 2},
    "value": {"gate": "value-elementwise", "n_kv_heads": 2},
    "one-kv-head": {"gate": "sdpa-headwise+value-elementwise+key-headwise", "n_kv_heads": 1, "bias": True},
    "query-out": {"gate": "query-elementwise+out-elementwise-add", "bias": True},
    "shared": {"gate": "sdpa-elementwise-shared+value-elementwise-shared", "n_kv_heads": 2},
    "from-value": {"gate": "sdpa-headwise-value", "n_kv_heads": 1},
    "from-output": {"gate": "sdpa-elementwise-hybrid"},
    "by-slices": {"gate": "sdpa-headwise-head_slice+value-elementwise-static"},
    "norms": {"gate": "sdpa-headwise", "qk_norm": True, "softmax": SinkLogit(), "n_kv_heads": 2},
    "norm-of-all": {"gate": None, "qk_norm": "rms-all-heads", "n_kv_heads": 1},
    "learned-key": {"gate": None, "softmax": KeyBias(), "n_kv_heads": 1},
    "experts-of-values": {"gate": "sdpa-headwise", "kv_experts": "v-4top2", "n_kv_heads": 2},
    "scores": {"gate": "scores-headwise", "n_kv_heads": 2},
    "of-the-sum": {"gate": "sdpa-headwise-lse+value-elementwise-rank=4"},
    "packed": {"gate": "sdpa-elementwise", "n_kv_heads": 1},
}
REFUSED = {
    "heads": ({"n_heads": 6, "d_model": 24}, 4, "1.attention: a mesh of 4 ranks does not divide n_heads=6"),
    "kv heads": ({"n_heads": 12, "n_kv_heads": 6, "d_model": 24}, 4, "n_kv_heads=6: ranks must share kv heads evenly"),
    "pairs": ({"softmax": Differential(), "gate": None}, 2, "softmax=differential pairs heads"),
}


class Theirs(nn.Module):
    """Somebody's block: their norms, their feed-forward layer, our attention."""

    def __init__(self, **attention: Any):
        super().__init__()
        width = attention.get("d_model", D)
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = GatedAttention(**({"d_model": D, "n_heads": 4} | attention))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention(self.norm(x_BTD))
        return x_BTD + self.down(self.up(self.mlp_norm(x_BTD)).relu())


def model_of(**attention: Any) -> nn.Sequential:
    """Two such blocks behind an embedding; no weight of a layer starts at nought, as some gates do."""
    torch.manual_seed(0)
    found = nn.Sequential(nn.Embedding(TOKENS, attention.get("d_model", D)), Theirs(**attention), Theirs(**attention))
    with torch.no_grad():
        for p in found.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return found


def seen(model: nn.Module, steps: int = 2) -> list[Tensor]:
    """Outputs and whole gradients of a few steps, and the norm of the attention layers' gradients."""
    optimizer, found = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    tokens_BT = torch.arange(2 * 7).view(2, 7) % TOKENS
    for _ in range(steps):
        optimizer.zero_grad()
        out_BTD = model(tokens_BT)
        (out_BTD * torch.linspace(-1, 1, out_BTD.numel()).view_as(out_BTD)).sum().backward()
        found.append(out_BTD.detach())
        found += [whole(p.grad) for _, p in sorted(model.named_parameters())]
        norm = torch.nn.utils.get_total_norm([p.grad for n, p in model.named_parameters() if "attention." in n])
        found.append(whole(norm))
        optimizer.step()
    return found


def whole(t: Tensor) -> Tensor:
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def compare(name: str, attention: dict[str, Any], *, as_style: bool = False) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh, one = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))["tp"], model_of(**attention)
    theirs = deepcopy(one)
    if as_style:
        styles = {"attention": HeadParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()}
        plan = {f"{i}.{name}": style for i in (1, 2) for name, style in styles.items()}
        parallelize_module(theirs, mesh, plan)
    else:
        if mesh.get_local_rank() == 1:
            for p in theirs.get_submodule("1.attention").parameters():
                p.data.zero_()  # all take the first rank's
        assert shard_heads(theirs, mesh) is theirs
    for model in (one, theirs):
        model.get_submodule("1.attention").is_packed = name == "packed"
    layer = theirs.get_submodule("1.attention")
    assert layer.n_heads == 2 and len(layer.q_proj.weight.to_local()) == 2 * layer.head_dim
    assert all(isinstance(p, DTensor) for p in layer.parameters())
    assert [(n, p.shape) for n, p in one.named_parameters()] == [(n, p.shape) for n, p in theirs.named_parameters()]
    try:
        torch.testing.assert_close(seen(theirs), seen(one), atol=1e-5, rtol=1e-5)
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from None
    for key, value in one.state_dict().items():
        torch.testing.assert_close(whole(theirs.state_dict()[key]), value, atol=1e-5, rtol=1e-5)


def compose(name: str) -> None:
    """With FSDP2 on another axis, and in compiled blocks of theirs."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, one = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp")), model_of(**CASES[name])
    sharded, compiled = (shard_heads(deepcopy(one), mesh["tp"]) for _ in range(2))
    for i in (1, 2):
        fully_shard(sharded[i], mesh=mesh["dp"])
        compiled[i].compile(backend="aot_eager", fullgraph=True)
    fully_shard(sharded, mesh=mesh["dp"])
    expected = seen(one)
    for model in (sharded, compiled):
        torch.testing.assert_close(seen(model), expected, atol=1e-5, rtol=1e-5)


def clip(*, n_data: int = 1) -> None:
    """Norms over all parameters, of whatever meshes they are, and AdamW over a group a mesh; with FSDP2 where there are several
    data ranks, which all have the same tokens here."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

    mesh, one = init_device_mesh("cpu", (n_data, 2), mesh_dim_names=("dp", "tp")), model_of(**CASES["one-kv-head"])
    theirs = shard_heads(deepcopy(one), mesh["tp"])
    for module in (theirs[1], theirs[2], theirs) if n_data > 1 else ():
        fully_shard(module, mesh=mesh["dp"])
    by_mesh = defaultdict(list)
    for p in theirs.parameters():
        by_mesh[getattr(p, "device_mesh", None)].append(p)
    assert len(by_mesh) == 2
    optimizer = torch.optim.AdamW([{"params": group} for group in by_mesh.values()], lr=1e-2, fused=True)
    plain = torch.optim.AdamW(one.parameters(), lr=1e-2)
    for _ in range(2):
        for model in (theirs, one):
            model.zero_grad()
            model(torch.arange(2 * 7).view(2, 7) % TOKENS).square().sum().backward()
        norms = [get_total_norm([p.grad for p in group]) for group in by_mesh.values()]
        norm = torch.stack([n.full_tensor() if isinstance(n, DTensor) else n for n in norms]).norm()
        for group in by_mesh.values():
            clip_grads_with_norm_(group, 1.0, norm)
        torch.testing.assert_close(norm, clip_grad_norm_(one.parameters(), 1.0))
        optimizer.step()
        plain.step()
    for p, q in zip(theirs.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(whole(p.detach()), q.detach(), atol=1e-5, rtol=1e-5)


def refuse_more() -> None:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
    for model, of, words in (
        (model_of(), mesh, 'give the one that shares heads, mesh["tp"]'),
        (nn.Linear(2, 2), mesh["tp"], "Linear has no GatedAttention"),
        (shard_heads(model_of(), mesh["tp"]), mesh["tp"], "1.attention: its weights are shared out already"),
    ):
        with pytest.raises(ValueError) as error:
            shard_heads(model, of)
        assert words in str(error.value), error.value
    model = shard_heads(model_of(), mesh["tp"])
    with pytest.raises(TypeError, match="cannot pickle"):
        deepcopy(model)


def name_the_hidden_state() -> None:
    from torch.distributed.device_mesh import init_device_mesh

    torch.manual_seed(0)
    layer, x_BTD = GatedAttention(d_model=D, n_heads=4), torch.randn(2, 5, D)
    expected_BTD = layer(x_BTD=x_BTD)
    shard_heads(layer, init_device_mesh("cpu", (2,), mesh_dim_names=("tp",)))
    torch.testing.assert_close(layer(x_BTD=x_BTD), expected_BTD, atol=1e-5, rtol=1e-5)


def live() -> None:
    from gatelab.train.parallel import join

    join(torch.device("cpu"), 60.0)
    if sys.argv[1:] == ["composed"]:
        compose("one-kv-head")
        compose("norms")
        return
    if sys.argv[1:] == ["clipped"]:
        clip(n_data=2)
        return
    for name, attention in CASES.items():
        compare(name, attention)
    compare("a plan of torch's", CASES["one-kv-head"], as_style=True)
    refuse_more()
    name_the_hidden_state()
    clip()


def test_a_model_of_theirs_computes_on_two_processes_as_on_one() -> None:
    environ = os.environ | paths() | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__], env=environ, check=True, timeout=300)


@pytest.mark.slow
def test_torch_shards_and_compiles_such_a_model_further() -> None:
    environ = os.environ | paths() | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-W", "ignore", __file__, "composed"], env=environ, check=True, timeout=300)


@pytest.mark.slow
def test_norms_are_of_all_parameters_where_torch_shards_a_model_further() -> None:
    environ = os.environ | paths() | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-W", "ignore", __file__, "clipped"], env=environ, check=True, timeout=300)


@pytest.fixture
def as_second_of_two() -> Iterator[Any]:
    """The mesh of a process that is the second of two, and whose exchanges exchange nothing."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("fake", rank=1, world_size=2)
    try:
        yield init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    finally:
        dist.destroy_process_group()


def test_a_layer_that_gets_its_values_later_hides_the_first_key_from_the_heads_that_are_its_own(
    as_second_of_two: Any,
) -> None:
    with torch.device("meta"):
        layer = GatedAttention(d_model=D, n_heads=4, first_hidden_from=(0, 3))
    shard_heads(layer, as_second_of_two, src_data_rank=None)
    assert layer.to_empty(device="cpu").hidden_H.tolist() == [0.0, -1000.0]


def test_probes_and_edits_refuse_heads_that_are_shared(as_second_of_two: Any) -> None:
    model = shard_heads(model_of(gate="sdpa-headwise"), as_second_of_two, src_data_rank=None)
    for watch in (
        lambda: capture(model, ["sinks"]),
        lambda: watching(model),
        lambda: intervened(model, parse("zero-value@first")),
    ):
        with pytest.raises(ValueError, match=r"the heads of this model are shared among processes"), watch():
            pass


@pytest.mark.parametrize("name", REFUSED)
def test_heads_that_ranks_cannot_share_are_refused_and_nothing_is_changed(name: str) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    attention, n, words = REFUSED[name]
    dist.init_process_group("fake", rank=0, world_size=n)
    try:
        model = model_of(**attention)
        kinds = [type(m) for m in model.modules()]
        with pytest.raises(ValueError) as error:
            shard_heads(model, init_device_mesh("cpu", (n,), mesh_dim_names=("tp",)))
    finally:
        dist.destroy_process_group()
    assert words in str(error.value)
    assert [type(m) for m in model.modules()] == kinds


if __name__ == "__main__":
    as_ranks(live, 4 if sys.argv[1:] == ["clipped"] else 2)
