"""Blocks that are compiled one by one compute and tell what they do otherwise, and one code serves all that are equal."""

from functools import partial

import pytest
import tiny
import torch
import torch.distributed as dist
from torch._dynamo.testing import CompileCounter

from gatelab.models import build_model
from gatelab.nn.moe import ExpertMLP
from gatelab.nn.watch import Watch
from gatelab.train.shard.compiled import compile_blocks
from gatelab.train.shard.expert import TravellingFFN


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")  # torch's compiler's own
@pytest.mark.parametrize("gate", [None, "sdpa-headwise", "sdpa-elementwise"])
def test_blocks_compile_once_and_whole(gate: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
    torch._dynamo.reset()
    config = tiny.model(vocab_size=16, max_seq_len=8, n_layers=3, gate=gate)
    plain, compiled = build_model(config, seed=1), build_model(config, seed=1)
    names = list(dict(compiled.named_parameters()))
    compile_blocks(compiled)
    tokens_BT = torch.arange(16).view(2, 8) % 16
    seen = []
    for model in (plain, compiled):
        watch = Watch(1)
        x_BTD = model.hidden(tokens_BT, watch=watch)
        x_BTD.square().mean().backward()
        seen.append([x_BTD.detach(), watch.sums_MLH(), *(p.grad for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(*seen)
    assert counter.frame_count == 1 and list(dict(compiled.named_parameters())) == names


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")  # torch's compiler's own
@pytest.mark.parametrize("travels", [False, True])
def test_blocks_with_experts_compile_all_but_the_router_and_what_travels(
    travels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
    torch._dynamo.reset()
    moe = {"n_experts": 4, "top_k": 2, "d_expert": 16, "n_shared": 1}
    config = tiny.model(vocab_size=16, max_seq_len=8, n_layers=3, gate="sdpa-headwise", d_ff=None, moe=moe)
    plain, compiled = build_model(config, seed=1), build_model(config, seed=1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for layer in (m for m in compiled.modules() if travels and isinstance(m, ExpertMLP)):
            layer.ffn = TravellingFFN(dist.group.WORLD)
        compile_blocks(compiled)
        tokens_BT = torch.arange(16).view(2, 8) % 16
        seen = []
        for model in (plain, compiled):
            watch, routed = Watch(1), []
            x_BTD = model.hidden(tokens_BT, watch=watch, routed=routed)
            x_BTD.square().mean().backward()
            counts = torch.stack([r.counts_X for r in routed])
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            seen.append([x_BTD.detach(), watch.sums_MLH(), counts, *gradients])
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(*seen)
    # What comes before the experts, the shared one, and the chosen ones; or, of those, what is between products and the sum.
    assert counter.frame_count == (4 if travels else 3)
