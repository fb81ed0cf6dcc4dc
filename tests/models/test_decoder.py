"""The decoder: a golden loss, causal, packed and cached passes, and greedy continuation."""

import pytest
import tiny
import torch

from gatelab.config import ModelConfig
from gatelab.models import build_model
from gatelab.models.generate import generate
from gatelab.train.objectives import next_token_loss

KINDS = [
    {},
    {"gate": "sdpa-headwise", "n_heads": 4, "n_kv_heads": 2},
    {"gate": "sdpa-elementwise+value-headwise", "softmax": "sink-logit", "qk_norm": "rms"},
    {"positions": "learned", "norm": "layer", "norm_position": "post", "mlp": "relu", "bias": True},
    {"positions": "none", "norm_position": "sandwich", "mlp": "gelu", "tied_embeddings": True},
]
by_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, 17, shape)


GOLDEN = [3.063955, 3.073177, 3.067964, 2.969499, 9.465627]


@pytest.mark.parametrize(("kind", "loss"), list(zip(KINDS, GOLDEN, strict=True)), ids=str)
def test_the_loss_of_a_known_model_on_known_tokens(kind: dict[str, object], loss: float) -> None:
    model = build_model(tiny.model(init="fan-in", **kind), seed=7)
    ids_BT = (torch.arange(24).view(2, 12) * 5) % 17
    total = next_token_loss(model, ids_BT[:, :-1], ids_BT[:, 1:], None)
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
    assert cache.length == 10


@pytest.mark.parametrize("kind", [k for k in KINDS if k.get("positions") != "learned"], ids=str)
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


def test_sampling_is_a_function_of_the_seed() -> None:
    model, ids_BT = build_model(tiny.model()), tokens(4, 2)
    drawn = [generate(model, ids_BT, 10, temperature=1.0, seed=s) for s in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_low_temperature_is_greedy() -> None:
    model, ids_BT = build_model(tiny.model(init="fan-in")), tokens(4, 2)
    assert torch.equal(generate(model, ids_BT, 6, temperature=1e-4), generate(model, ids_BT, 6))


def test_too_long_a_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="20 tokens do not fit into max_seq_len=16"):
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
        next_token_loss(model, ids_BT, targets_BT, None),
        next_token_loss(model, ids_BT[:1], targets_BT[:1], None),
    )
    torch.testing.assert_close(both, first)


def test_a_model_turned_to_float64_computes_in_float64():
    model = build_model(ModelConfig(vocab_size=11, max_seq_len=8, d_model=16, n_layers=1, n_heads=2)).double()
    assert model(torch.zeros(1, 4, dtype=torch.long)).dtype == torch.float64
    assert model.new_cache(1).k_LBSGK.dtype == torch.float64
