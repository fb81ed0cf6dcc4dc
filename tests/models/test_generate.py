"""Continuation: cached decoding is the argmax of full passes, for a decoder and for an encoder-decoder."""

import pytest
import tiny
import torch
from torch import Tensor

from gatelab.models import build_model
from gatelab.models.generate import generate, generate_target

SITES = "query-headwise+key-elementwise+value-headwise+sdpa-elementwise+out-elementwise+scores-headwise"
KINDS = [
    {"gate": SITES},
    {"gate": "sdpa-headwise", "cross_gate": SITES, "n_encoder_layers": 1},
    {
        "gate": "scores-headwise-forget+sdpa-headwise-lse",
        "encoder_gate": "none",
        "cross_gate": "none",
        "positions": "none",
    },
    {"positions": "relative", "moe": {"n_experts": 4, "top_k": 2, "d_expert": 8}},
    {"positions": "learned", "norm_position": "post", "softmax": "sink-logit", "bias": True},
    {"registers": 3, "window": 4, "global_every": 2, "gate": "sdpa-headwise-output", "qk_norm": "rms"},
]
by_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def two_stacks(**kind: object) -> torch.nn.Module:
    """Four query heads read two kv heads; every parameter is random."""
    shape = {"n_heads": 4, "n_kv_heads": 2, "init": "fan-in", "d_ff": None if "moe" in kind else 24}
    model = build_model(tiny.model(arch="encoder-decoder", **shape, **kind))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 17, shape)


@by_kind
def test_cached_decoding_equals_the_full_forward(kind: dict[str, object]) -> None:
    model, source_BS, target_BT = two_stacks(**kind), tokens(2, 7), tokens(2, 9)
    cache = model.new_cache(2)
    with torch.no_grad():
        full = model(source_BS, target_BT)
        pieces = [model(source_BS, piece, cache=cache) for piece in target_BT.split([4, 1, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), full, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model((source_BS + 3) % 17, target_BT), full, atol=1e-2)


@by_kind
def test_a_greedy_target_is_the_argmax_of_full_passes(kind: dict[str, object]) -> None:
    model, source_BS, start_B1 = two_stacks(**kind), tokens(3, 7), tokens(3, 1)
    found = generate_target(model, source_BS, start_B1, 8)
    expected = start_B1
    for _ in range(8):
        expected = torch.cat([expected, model(source_BS, expected)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, expected) and len(found[:, 1:].unique()) > 1


def test_a_longer_beginning_of_the_target_is_continued() -> None:
    model, source_BS, start_B1 = two_stacks(), tokens(2, 5), tokens(2, 1)
    whole = generate_target(model, source_BS, start_B1, 8)
    assert torch.equal(generate_target(model, source_BS, whole[:, :4], 5), whole)
    assert torch.equal(generate_target(model, source_BS, whole[:, :4], 0), whole[:, :4])


def test_a_sampled_target_is_a_function_of_the_seed() -> None:
    model, source_BS, start_B1 = two_stacks(), tokens(4, 5), tokens(4, 1)
    drawn = [generate_target(model, source_BS, start_B1, 10, temperature=1.0, seed=s) for s in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(
        generate_target(model, source_BS, start_B1, 6, temperature=1e-5), generate_target(model, source_BS, start_B1, 6)
    )


def test_a_model_is_trained_after_it_has_generated_and_on_what_it_has() -> None:
    """Its tables are made by the first pass of a model whose weights came without them."""
    weights = build_model(tiny.model()).state_dict()
    with torch.device("meta"):
        model = build_model(tiny.model())
    model.load_state_dict(weights, assign=True)
    tokens_BT = generate(model, tokens(2, 3), 5, temperature=1.0)
    model.requires_grad_(True)
    model(tokens_BT).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("arch", "says"),
    [("encoder", "arch='encoder' does not continue the tokens that it reads; take model.arch=decoder"),
     ("encoder-decoder", "arch='encoder-decoder' does not continue .* call generate_target")],
)  # fmt: skip
def test_what_is_no_decoder_does_not_continue_what_it_reads(arch: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        generate(build_model(tiny.model(arch=arch)), tokens(1, 3), 2)


@pytest.mark.parametrize(
    ("arch", "says"), [("encoder", "take model.arch=encoder-decoder"), ("decoder", "call generate")]
)
def test_what_has_no_second_stack_makes_no_target(arch: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"arch='{arch}' has no decoder that looks at what an encoder read; {says}"):
        generate_target(build_model(tiny.model(arch=arch)), tokens(1, 3), tokens(1, 1), 2)


def test_too_long_a_target_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\d+ tokens and \d+ more do not fit into max_seq_len=16"):
        generate_target(two_stacks(), tokens(1, 3), tokens(1, 1), 16)


def test_slips_in_an_argument_are_told() -> None:
    model = build_model(tiny.model())
    for given, says in [
        ((tokens(2, 0), 3), "expected a tensor .* one token at least to go on from"),
        ((tokens(4), 3), r"of shape \(4,\): expected a tensor \[batch, tokens\]"),
        (([1, 2], 3), "tokens list: expected a tensor"),
        ((torch.ones(1, 2), 3), "tokens of type torch.float32: expected ids, which are whole numbers"),
        ((tokens(2, 3), -1), "n_tokens=-1: expected the number of new tokens, 0 or more"),
    ]:
        with pytest.raises(ValueError, match=says):
            generate(model, *given)
    with pytest.raises(ValueError, match="temperature=-1: expected 0"):
        generate(model, tokens(2, 3), 2, temperature=-1)
    with pytest.raises(ValueError, match=r"and not what torch.compile made of it"):
        generate(torch.compile(model, backend="eager"), tokens(2, 3), 2)
    with pytest.raises(ValueError, match=r"tokens of shape \(3,\): expected \[batch, tokens\]"):
        model(tokens(3))
