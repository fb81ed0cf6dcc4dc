"""The decoder: a golden loss, causal, packed and cached passes, greedy continuation, and what leaves it as it is."""

import pytest
import tiny
import torch

from gatelab.config import ModelConfig, override
from gatelab.models import build_model
from gatelab.models.block import Pass
from gatelab.models.generate import generate
from gatelab.train.objectives import target_loss

KINDS = [
    {},
    {"gate": "sdpa-headwise", "n_heads": 4, "n_kv_heads": 2},
    {"gate": "sdpa-elementwise+value-headwise", "softmax": "sink-logit", "qk_norm": "rms"},
    {"positions": "learned", "norm": "layer", "norm_position": "post", "mlp": "relu", "bias": True},
    {"positions": "none", "norm_position": "sandwich", "mlp": "gelu", "tied_embeddings": True},
]
FEW_KV = {"n_heads": 4, "n_kv_heads": 2}
MORE = [
    {"window": 3, "global_every": 2, "gate": "scores-headwise", **FEW_KV},
    {"registers": 2, "gate": "sdpa-elementwise-hybrid", **FEW_KV},
    {"registers": 1, "positions": "learned", "window": 4, "residual_clip": 0.5},
    {"positions": "relative", "gate": "scores-headwise-forget-bias+value-elementwise-value", **FEW_KV},
    {"moe": {"n_experts": 4, "top_k": 2, "d_expert": 8, "n_shared": 1}, "d_ff": None, "gate": "qwen3-next"},
    {
        "norm_position": "reordered",
        "qk_norm": "rms-all-heads",
        "embedding_norm": "rms",
        "gate": "sdpa-headwise",
        **FEW_KV,
    },
    {"kv_experts": "kv-3top2", "output_map": "xsa", "rope_fraction": 0.5, "norm": "gated-rms", **FEW_KV},
    {"softmax": "differential", "norm_position": "sandwich", "gate": "sdpa-headwise-two_sigmoid-first:1/4", **FEW_KV},
    {"softmax": "key-bias", "gate": "key-headwise-head_slice-mlp=1/2+query-elementwise-rank=2", **FEW_KV},
]
by_kind = pytest.mark.parametrize("kind", [*KINDS, *MORE], ids=str)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, 17, shape)


GOLDEN = [3.063955, 3.073177, 3.067964, 2.969499, 9.465627]


@pytest.mark.parametrize(("kind", "loss"), list(zip(KINDS, GOLDEN, strict=True)), ids=str)
def test_the_loss_of_a_known_model_on_known_tokens(kind: dict[str, object], loss: float) -> None:
    model = build_model(tiny.model(init="fan-in", **kind), seed=7)
    ids_BT = (torch.arange(24).view(2, 12) * 5) % 17
    total = target_loss(model, ids_BT[:, :-1], ids_BT[:, 1:], None)
    assert total.item() / 22 == pytest.approx(loss, abs=1e-4)


@by_kind
def test_future_tokens_do_not_matter(kind: dict[str, object]) -> None:
    model, ids_BT = build_model(tiny.model(init="fan-in", **kind)), tokens(2, 10)
    changed_BT = ids_BT.clone()
    changed_BT[:, 6:] = (changed_BT[:, 6:] + 3) % 17
    torch.testing.assert_close(model(changed_BT)[:, :6], model(ids_BT)[:, :6])
    assert not torch.allclose(model(changed_BT)[:, 6:], model(ids_BT)[:, 6:])


@by_kind
def test_decode_equals_full_forward(kind: dict[str, object]) -> None:
    model, ids_BT = build_model(tiny.model(init="fan-in", **kind)), tokens(2, 10)
    cache = model.new_cache(2)
    with torch.no_grad():
        pieces = [model(piece, cache=cache) for piece in ids_BT.split([4, 1, 2, 3], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids_BT))
    assert cache.length == 10 + kind.get("registers", 0)


def may_be_packed(kind: dict[str, object]) -> bool:
    """Where only differences of positions count: not in a table of positions, nor with a key that RoPE does not turn."""
    return kind.get("positions") != "learned" and kind.get("softmax") != "key-bias" and "registers" not in kind


@pytest.mark.parametrize("kind", [k for k in [*KINDS, *MORE] if may_be_packed(k)], ids=str)
def test_packing_changes_nothing(kind: dict[str, object]) -> None:
    model = build_model(tiny.model(init="fan-in", **kind))
    documents = [tokens(1, n) for n in (5, 1, 6)]
    ids_BT = torch.cat([torch.full_like(d, i) for i, d in enumerate(documents)], dim=1)
    packed = model(torch.cat(documents, dim=1), segment_ids_BT=ids_BT)
    torch.testing.assert_close(packed, torch.cat([model(d) for d in documents], dim=1))


@by_kind
def test_greedy_continuation_is_the_argmax_of_full_passes(kind: dict[str, object]) -> None:
    model, ids_BT = build_model(tiny.model(init="fan-in", **kind)), tokens(3, 4)
    found = generate(model, ids_BT, 8)
    for _ in range(8):
        ids_BT = torch.cat([ids_BT, model(ids_BT)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, ids_BT)


PLACES = ["sdpa", "value", "key", "query", "out"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "slug", [f"{p}-{g}" for p in PLACES for g in ("elementwise", "headwise") if (p, g) != ("out", "headwise")]
)
def test_two_sigmoids_without_weights_are_the_ungated_model_bit_for_bit(slug: str, dtype: torch.dtype) -> None:
    """2σ(0) is 1 exactly; so are the gradients of all that both models have."""
    ids_BT, results = tokens(2, 10), []
    for gate in ("none", f"{slug}-two_sigmoid-init=1"):
        model = build_model(tiny.model(init="fan-in", gate=gate, qk_norm="rms", **FEW_KV))
        model.compute_dtype = dtype
        logits_BTV = model(ids_BT)
        logits_BTV.float().square().sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if "gates" not in n}
        results.append((logits_BTV, gradients))
        gate_gradients = [p.grad for n, p in model.named_parameters() if "gates" in n]
        assert all(g.any() for g in gate_gradients) and bool(gate_gradients) == (gate != "none")
    (plain_BTV, of_plain), (gated_BTV, of_gated) = results
    assert torch.equal(plain_BTV, gated_BTV)
    assert of_plain.keys() == of_gated.keys() and all(torch.equal(of_plain[n], of_gated[n]) for n in of_plain)


def test_a_clip_that_nothing_reaches_changes_nothing_and_a_small_one_bounds_each_update() -> None:
    ids_BT = tokens(2, 10)
    plain, wide, narrow = (build_model(tiny.model(init="fan-in", residual_clip=c)) for c in (None, 1e6, 0.05))
    assert torch.equal(plain(ids_BT), wide(ids_BT))
    residual: list[torch.Tensor] = []
    for block in narrow.blocks:
        block.tap_residual.register_forward_hook(lambda _module, _given, x_BTD: residual.append(x_BTD))
    narrow(ids_BT)
    # Attention and the feed-forward layer add 0.05 each at most.
    for before_BTD, after_BTD in zip([narrow.embedding(ids_BT), *residual], residual, strict=False):
        assert 0.05 < (after_BTD - before_BTD).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize("position", ["pre", "post", "sandwich", "reordered"])
def test_the_norms_of_a_block_are_where_they_are_said_to_be(position: str) -> None:
    model = build_model(tiny.model(init="fan-in", norm_position=position, gate="sdpa-headwise"))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter)
    x_BTD = torch.randn(2, 6, 16)

    def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    block = model.blocks[0]
    expected = x_BTD
    for part, name in ((block.attention, "attention"), (block.mlp, "mlp")):
        before, after = getattr(block, f"{name}_norm"), getattr(block, f"{name}_post_norm")
        has_before = position in ("pre", "sandwich")
        update = part(rms(expected, before.weight) if has_before else expected)
        if position == "pre":
            expected = expected + update
        elif position == "post":
            expected = rms(expected + update, after.weight)
        else:
            expected = expected + rms(update, after.weight)
    torch.testing.assert_close(block(x_BTD, Pass()), expected)


def test_registers_are_seen_and_leave_the_shape_as_it_is() -> None:
    ids_BT = tokens(2, 10)
    plain, model = build_model(tiny.model(init="fan-in")), build_model(tiny.model(init="fan-in", registers=3))
    before_BTV = model(ids_BT)
    assert before_BTV.shape == plain(ids_BT).shape and not torch.allclose(before_BTV, plain(ids_BT))
    for r in range(3):
        kept = model.registers_RD.data.clone()
        model.registers_RD.data[r] += 1.0
        assert not torch.allclose(model(ids_BT)[:, 0], before_BTV[:, 0])
        model.registers_RD.data = kept
    # One that stands where a token would be is that token.
    model = build_model(tiny.model(init="fan-in", registers=1))
    model.registers_RD.data = model.embedding.weight.data[5:6].clone()
    five_BT = torch.full((2, 1), 5)
    torch.testing.assert_close(model(ids_BT), plain(torch.cat([five_BT, ids_BT], dim=1))[:, 1:])


@pytest.mark.parametrize("arch", ["decoder", "encoder", "encoder-decoder"])
def test_ids_beyond_the_vocabulary_are_told(arch: str) -> None:
    model, n_texts = build_model(tiny.model(arch=arch)), 1 + (arch == "encoder-decoder")
    for text, ends in (([3, 17], "3 to 17"), ([-1, 4], "-1 to 4")):
        with pytest.raises(ValueError, match=f"tokens from {ends}: expected ids from 0 to 16, as vocab_size=17"):
            model(*[torch.tensor([text])] * n_texts)


def test_a_window_is_left_out_of_every_second_layer() -> None:
    model = build_model(tiny.model(n_layers=4, window=3, global_every=2))
    assert [block.attention.window for block in model.blocks] == [3, None, 3, None]
    assert [b.attention.window for b in build_model(tiny.model(window=3)).blocks] == [3, 3]


def test_the_paper_s_controls_have_the_widths_of_their_names() -> None:
    base = tiny.model(**FEW_KV, head_dim=6)
    widths = {"paper/base": (24, 12), "paper/q48": (36, 12), "paper/kv8": (24, 24)}
    for preset, (queries, keys) in widths.items():
        attention = build_model(override(base, {"preset": preset})).blocks[0].attention
        assert [p.out_features for p in (attention.q_proj, attention.k_proj, attention.v_proj)] == [queries, keys, keys]
        assert attention.o_proj.in_features == queries


def test_sampling_is_a_function_of_the_seed() -> None:
    model, ids_BT = build_model(tiny.model()), tokens(4, 2)
    drawn = [generate(model, ids_BT, 10, temperature=1.0, seed=s) for s in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_low_temperature_is_greedy() -> None:
    model, ids_BT = build_model(tiny.model(init="fan-in")), tokens(4, 2)
    assert torch.equal(generate(model, ids_BT, 6, temperature=1e-4), generate(model, ids_BT, 6))


def test_too_long_a_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\d+ tokens and \d+ more do not fit into max_seq_len=16"):
        generate(build_model(tiny.model()), tokens(1, 10), 10)
    with pytest.raises(ValueError, match="17 tokens are more than max_seq_len=16 learned positions"):
        build_model(tiny.model(positions="learned"))(tokens(1, 17))
    with pytest.raises(ValueError, match="position 16 is past max_seq_len=16"):
        build_model(tiny.model())(tokens(1, 17))


def test_the_state_dict_holds_the_parameters_alone() -> None:
    model = build_model(tiny.model(gate="sdpa-headwise", qk_norm="rms", softmax="sink-logit"))
    assert set(model.state_dict()) == {n for n, _ in model.named_parameters()}


def test_bfloat16_is_near_float32_and_keeps_float32_weights() -> None:
    model, ids_BT = build_model(tiny.model(init="fan-in", gate="sdpa-headwise", softmax="sink-logit")), tokens(2, 10)
    exact = model(ids_BT)
    model.compute_dtype = torch.bfloat16
    found = model(ids_BT)
    assert found.dtype == torch.bfloat16 and {p.dtype for p in model.parameters()} == {torch.float32}
    assert (found.float() - exact).norm() / exact.norm() < 0.03


def test_ignored_targets_do_not_count() -> None:
    model, ids_BT = build_model(tiny.model(init="fan-in")), tokens(2, 7)
    targets_BT = tokens(2, 7)
    targets_BT[1] = -100
    both, first = (
        target_loss(model, ids_BT, targets_BT, None),
        target_loss(model, ids_BT[:1], targets_BT[:1], None),
    )
    torch.testing.assert_close(both, first)


def test_a_model_turned_to_float64_computes_in_float64():
    model = build_model(ModelConfig(vocab_size=11, max_seq_len=8, d_model=16, n_layers=1, n_heads=2)).double()
    assert model(torch.zeros(1, 4, dtype=torch.long)).dtype == torch.float64
    assert model.new_cache(1).k_LBSGK.dtype == torch.float64
