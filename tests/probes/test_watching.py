"""What a watched pass tells: the probe's first-token mass, no number where there is none, and nothing else moves."""

from typing import Any

import pytest
import torch
from watched import MODELS, assert_close, build, probed

from gatelab.nn.watch import Watch
from gatelab.ops.gated_attention import flash
from gatelab.probes import watching

B, T, SKIP = 3, 16, 5
by_model = pytest.mark.parametrize("name", MODELS)


@by_model
@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
def test_a_pass_tells_what_the_probe_measures(name: str, is_compiled: bool) -> None:
    model, tokens_BT = build(**MODELS[name]), torch.randint(0, 17, (B, T))
    watch = Watch(SKIP)
    pass_ = torch.compile(model.hidden, backend="aot_eager", fullgraph=True) if is_compiled else model.hidden
    pass_(tokens_BT, watch=watch).sum().backward()
    found_LBH = torch.stack(watch.first_mass_BH)
    assert found_LBH.shape == (2, B, 4) and found_LBH.dtype == torch.float32 and not found_LBH.requires_grad
    assert_close(found_LBH.mean(dim=1), probed(model, tokens_BT, skip=SKIP))
    assert_close(watch.sums_MLH()[0] / B, probed(model, tokens_BT, skip=SKIP))


@pytest.mark.parametrize(
    ("changes", "is_number"),
    [
        ({"window": 4, "global_every": 2}, [False, True]),
        ({"gate": "scores-headwise-forget-bias"}, [False, False]),
        ({"softmax": "softpick"}, [False, False]),
        ({"positions": "relative"}, [False, False]),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_layer_that_does_not_tell_it_has_no_number(changes: dict[str, Any], is_number: list[bool]) -> None:
    model, watch = build(**changes), Watch(SKIP)
    model(torch.randint(0, 17, (B, T)), watch=watch)
    assert [bool(mass_BH.isfinite().all()) for mass_BH in watch.first_mass_BH] == is_number
    assert [bool(mass_BH.isnan().any()) for mass_BH in watch.first_mass_BH] == [not x for x in is_number]


def test_documents_a_cache_and_too_few_queries_have_no_number_either() -> None:
    model, tokens_BT = build(), torch.randint(0, 17, (B, T))
    for changes in ({"segment_ids_BT": torch.arange(T).expand(B, T) // 8}, {"cache": model.new_cache(B)}):
        watch = Watch()
        model(tokens_BT, **changes, watch=watch)
        assert torch.stack(watch.first_mass_BH).isnan().all()
    watch = Watch(skip_queries=T)
    model(tokens_BT, watch=watch)
    assert torch.stack(watch.first_mass_BH).isnan().all()


def test_of_two_stacks_the_decoder_tells_it_and_an_encoder_alone_nothing() -> None:
    source_BS, tokens_BT = torch.randint(0, 17, (B, 9)), torch.randint(0, 17, (B, T))
    model, watch = build(arch="encoder-decoder", n_encoder_layers=3), Watch(SKIP)
    model(source_BS, tokens_BT, watch=watch)
    assert_close(watch.sums_MLH()[0] / B, probed(model, source_BS, tokens_BT, skip=SKIP))
    watch = Watch()
    build(arch="encoder")(tokens_BT, watch=watch)
    assert watch.first_mass_BH == [] and watch.sums_MLH(2).shape == (2, 0, 0)


# Heads of 8 channels: others are padded for the kernel.
@pytest.mark.parametrize("impl", ["sdpa", *flash.KEEPS_OUTPUT])
@pytest.mark.parametrize("name", ["gated", "ungated"])
def test_loss_and_gradients_keep_every_bit(name: str, impl: str) -> None:
    model, tokens_BT = build(impl, d_model=32, **MODELS[name]), torch.randint(0, 17, (B, T))
    found = []
    for watch in (None, Watch()):
        loss = model(tokens_BT, watch=watch).square().mean()
        found.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_under_autocast_the_output_is_the_same_too(dtype: torch.dtype) -> None:
    model, tokens_BT = build(d_model=32, qk_norm="rms"), torch.randint(0, 17, (B, T))
    found, watch = [], Watch()
    for given in (None, watch):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(tokens_BT, watch=given).square().mean()
        found.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    torch.testing.assert_close(watch.sums_MLH()[0] / B, probed(model, tokens_BT, skip=1), rtol=0, atol=2e-2)


@by_model
def test_in_a_loop_of_ones_own(name: str) -> None:
    model, tokens_BT = build(**MODELS[name]), torch.randint(0, 17, (B, T))
    with watching(model, skip_queries=SKIP) as seen:
        for _ in range(2):
            model(tokens_BT).sum().backward()
        model(tokens_BT[:2])
        found = seen.first_token_mass()
    assert_close(found, probed(model, tokens_BT[:2], skip=SKIP))  # of the last pass alone
    model(tokens_BT)
    assert torch.equal(seen.first_token_mass(), found)  # the block is over


def test_what_is_compiled_inside_of_the_block_is_watched_pass_by_pass() -> None:
    model, tokens_BT = build(gate="sdpa-headwise"), torch.randint(0, 17, (2, B, T))
    with watching(model) as seen:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for ids_BT in tokens_BT:
            compiled(ids_BT).sum().backward()
            assert_close(seen.first_token_mass(), probed(model, ids_BT, skip=1))
    with pytest.raises(ValueError, match="compile it inside of the block"), watching(compiled):
        pass


def test_what_cannot_be_watched_is_said() -> None:
    with pytest.raises(ValueError, match="Linear holds no GatedAttention layer"), watching(torch.nn.Linear(2, 2)):
        pass
    with pytest.raises(ValueError, match="skip_queries=0: "), watching(build(), skip_queries=0):
        pass
    with watching(build(arch="encoder")) as seen, pytest.raises(ValueError, match="no causal self-attention was seen"):
        seen.first_token_mass()
