"""Texts without end: what is kept is what is seen, at places inside the cache, and the losses are those of that."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatelab.models import build_model
from gatelab.models.generate import Keep, continuations, new_cache, streaming_losses

FEW_KV = {"n_heads": 4, "n_kv_heads": 2}
KINDS = [
    {"gate": "sdpa-elementwise+value-headwise+scores-headwise"},
    {"softmax": "sink-logit", "qk_norm": "rms", "output_map": "xsa"},
    {"positions": "none", "gate": "sdpa-headwise-output"},
    {"gate": "scores-headwise-forget"},
]


def drawn(max_seq_len: int = 16, **kind: object) -> nn.Module:
    model = build_model(tiny.model(init="fan-in", max_seq_len=max_seq_len, **FEW_KV, **kind))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model.double()


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 17, shape)


def full_losses(model: nn.Module, tokens_BT: Tensor) -> Tensor:
    logits_BTV = model(tokens_BT[:, :-1]).float()
    return F.cross_entropy(logits_BTV.transpose(1, 2), tokens_BT[:, 1:], reduction="none")


@pytest.mark.parametrize("at_once", [1, 4, 99])
@pytest.mark.parametrize("kind", [*KINDS, {"positions": "learned"}, {"window": 3, "registers": 2}], ids=str)
def test_where_everything_is_kept_the_losses_are_those_of_one_pass(kind: dict[str, object], at_once: int) -> None:
    model, tokens_BT = drawn(**kind), tokens(2, 15)
    found = streaming_losses(model, tokens_BT, [Keep()], at_once=at_once)
    torch.testing.assert_close(found["all"], full_losses(model, tokens_BT), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("last", [1, 2, 5])
def test_a_window_of_the_last_is_a_model_with_that_window(kind: dict[str, object], last: int) -> None:
    """On a text of 60 tokens, for which only the model with a window needs positions."""
    short, long, tokens_BT = drawn(**kind), drawn(64, window=last, **kind), tokens(2, 60)
    long.load_state_dict(short.state_dict())
    found = streaming_losses(short, tokens_BT, [Keep(last=last)])[f"last-{last}"]
    torch.testing.assert_close(found, full_losses(long, tokens_BT), rtol=1e-5, atol=1e-5)


def test_enough_room_for_everything_drops_nothing() -> None:
    model, tokens_BT = drawn(gate="sdpa-headwise"), tokens(2, 15)
    found = streaming_losses(model, tokens_BT, [Keep(first=3, last=12), Keep(last=15), Keep(first=3, last=4)])
    expected = full_losses(model, tokens_BT)
    for slug in ("first-3-last-12", "last-15"):
        torch.testing.assert_close(found[slug], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["first-3-last-4"][:, :7], expected[:, :7], rtol=1e-5, atol=1e-5)
    assert (found["first-3-last-4"] - expected)[:, 7:].abs().max() > 0.01


def test_kept_first_tokens_are_looked_at_and_dropped_ones_are_not() -> None:
    model, tokens_BT = drawn(n_layers=1, gate="sdpa-headwise"), tokens(1, 40)
    keeps = [Keep(last=4), Keep(first=2, last=4)]
    before = streaming_losses(model, tokens_BT, keeps)
    changed_BT = tokens_BT.clone()
    changed_BT[:, 0] = (changed_BT[:, 0] + 3) % 17
    after = streaming_losses(model, changed_BT, keeps)
    assert torch.equal(before["last-4"][:, 10:], after["last-4"][:, 10:])
    assert (before["first-2-last-4"] - after["first-2-last-4"])[:, 10:].abs().min() > 0
    changed_BT = tokens_BT.clone()
    changed_BT[:, 2] = (changed_BT[:, 2] + 3) % 17
    after = streaming_losses(model, changed_BT, keeps)
    assert torch.equal(before["first-2-last-4"][:, 10:], after["first-2-last-4"][:, 10:])


def test_more_tokens_a_pass_see_what_the_pass_had_before_them() -> None:
    """The second pass of four sees the last kept token of the first, and itself."""
    model, tokens_BT = drawn(n_layers=1, positions="none"), tokens(1, 9)
    found = streaming_losses(model, tokens_BT, [Keep(last=2)], at_once=4)["last-2"]
    torch.testing.assert_close(found[:, 4:], full_losses(model, tokens_BT[:, 3:])[:, 1:], rtol=1e-5, atol=1e-5)


def test_registers_are_kept_and_not_counted() -> None:
    model, tokens_BT = drawn(registers=2, n_layers=1), tokens(1, 30)
    keep = [Keep(last=3)]
    before = streaming_losses(model, tokens_BT, keep)["last-3"]
    with torch.no_grad():
        model.registers_RD.add_(1.0)
    assert (streaming_losses(model, tokens_BT, keep)["last-3"] - before).abs().min() > 0


def test_a_continuation_outgrows_the_positions() -> None:
    model = drawn(gate="sdpa-headwise")
    (found,) = continuations(model, [tokens(30)], 60, keep=Keep(first=2, last=8))
    assert len(found) == 60


def test_memory_does_not_grow_with_the_text() -> None:
    keep = Keep(first=4, last=8)
    few, many = (new_cache(drawn(), 3, n, keep).n_bytes for n in (20, 20_000))
    # Two layers; 4 + 7 tokens kept, and a quarter of the 7 and 16 more; keys and values of 2 heads of 4 channels.
    assert few == many == 2 * 3 * (4 + 7 + 1 + 16) * 2 * 2 * 4 * 8


@pytest.mark.parametrize("slug", ["all", "last-7", "first-4-last-252"])
def test_what_is_kept_prints_and_parses_back(slug: str) -> None:
    keep = Keep.model_validate(slug)
    assert keep.slug == slug and Keep.model_validate(keep.model_dump()) == keep


def test_slips_are_told() -> None:
    model, tokens_BT = drawn(), tokens(1, 9)
    for kind, keep, says in [
        (
            {"positions": "learned"},
            Keep(last=4),
            "last-4 counts positions inside the cache, and positions='learned' are",
        ),
        ({"positions": "relative"}, Keep(first=1, last=4), "positions='relative' are those of the text; take keep=all"),
        ({"gate": "scores-headwise-forget"}, Keep(first=1, last=4), "over which a forget gate sums; take first=0"),
        ({}, Keep(first=4, last=14), "first-4-last-14 and 1 tokens a pass take 18 positions, and max_seq_len=16"),
    ]:
        with pytest.raises(ValueError, match=says):
            streaming_losses(drawn(**kind), tokens_BT, [keep])
    for given, options, says in [
        (
            tokens(1, 1),
            {},
            r"tokens of shape \(1, 1\): expected a tensor \[batch, tokens\] of ids, two tokens at least",
        ),
        ([[1, 2]], {}, "tokens list: expected a tensor"),
        (tokens_BT, {"at_once": 0}, "at_once=0: expected how many tokens a pass reads, 1 or more"),
        (tokens_BT, {"keeps": [Keep(), Keep()]}, "keeps all, all: each is measured once"),
        (tokens_BT, {"keeps": ["last-4"]}, r"keep='last-4': give a Keep, as in Keep\(first=4, last=252\)"),
        (
            tokens(1, 20),
            {},
            r"19 tokens do not fit into max_seq_len=16; take fewer, or a Keep\(last=…\) that drops some",
        ),
    ]:
        with pytest.raises(ValueError, match=says):
            streaming_losses(model, given, **{"keeps": [Keep()], **options})
    for fields, says in [
        ({"first": 4}, "first=4 without last keeps everything; state last, or leave first out"),
        ({"last": 0}, "first=0, last=0: take 0 or more of the first tokens, and 1 or more of the last"),
        ({"first": -1, "last": 3}, "first=-1, last=3: take"),
    ]:
        with pytest.raises(ValueError, match=says):
            Keep(**fields)
    with pytest.raises(ValueError, match="keep='first-4': expected all, last-<n> or first-<k>-last-<n>"):
        Keep.model_validate("first-4")
