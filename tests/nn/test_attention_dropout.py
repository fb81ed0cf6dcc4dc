"""Attention dropout: in training each key's weight is 0 or what it was over 1 − p, and whoever cannot do it says so."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gatelab.config import SinkLogit
from gatelab.config.gate import GateSpec
from gatelab.config.normaliser import NORMALISERS, Heads, Softmax
from gatelab.nn.attention import GatedAttention
from gatelab.nn.cache import KVCache
from gatelab.nn.watch import Watch
from gatelab.ops.gated_attention import Call, attention_weights, choose, gated_attention

B, T, D, H, G, K = 2, 6, 8, 4, 2, 6
P = 0.3


def layer(gate: str | None = None, **options: object) -> GatedAttention:
    fields = {"dropout": P, **options}
    return GatedAttention(d_model=D, n_heads=H, n_kv_heads=G, head_dim=K, gate=gate, **fields).double()


def drawn(n: int = B) -> dict[str, Tensor]:
    """Values that show the weights: each key's is its own channel."""
    q_BTHK, k_BSGK = (torch.randn(1, T, heads, K, dtype=torch.float64).expand(n, -1, -1, -1) for heads in (H, G))
    v_BSGK = torch.eye(T, dtype=torch.float64)[None, :, None].expand(n, -1, G, -1)
    return {"q_BTHK": q_BTHK, "k_BSGK": k_BSGK, "v_BSGK": v_BSGK}


def assert_dropped(found_BTHS: Tensor, weights_BTHS: Tensor) -> None:
    seen = weights_BTHS != 0
    is_dropped = (found_BTHS == 0)[seen]
    kept = torch.where(found_BTHS == 0, found_BTHS, weights_BTHS / (1 - P))
    torch.testing.assert_close(found_BTHS, kept, rtol=1e-12, atol=1e-14)
    n = is_dropped.numel()
    assert abs(is_dropped.double().mean() - P) < 5 * math.sqrt(P * (1 - P) / n)


KINDS = [kind for kind in NORMALISERS if kind != "differential"]  # whose weights no value shows: a norm follows


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "both-ways"])
@pytest.mark.parametrize(
    "impl, kind", [("sdpa", "softmax"), *(("reference", k) for k in KINDS), ("auto", "sink-logit")]
)
def test_a_weight_is_dropped_or_grows(impl: str, kind: str, is_causal: bool) -> None:
    given, normaliser, heads = drawn(200), NORMALISERS[kind](), Heads(H, G, K, max_seq_len=T)
    learned = {name: torch.randn(p.shape, dtype=torch.float64) for name, p in normaliser.learned(heads).items()}
    rest = {"normaliser": normaliser, "learned": learned, "heads": heads, "is_causal": is_causal}
    found_BTHS = gated_attention(**given, **rest, dropout=P, impl=impl)
    weights_BHTS, _ = attention_weights(given["q_BTHK"], given["k_BSGK"], **rest)
    assert_dropped(found_BTHS, weights_BHTS.transpose(1, 2))


@pytest.mark.parametrize("gate", ["scores-headwise", "scores-headwise-add", "scores-headwise-forget"])
def test_a_gate_on_the_scores_goes_together_with_it(gate: str) -> None:
    given, scores = drawn(200), GateSpec.parse(gate)
    rest = {"score_gate": scores, "score_logits_BSH": torch.randn(1, T, H, dtype=torch.float64)}
    weights_BHTS, _ = attention_weights(given["q_BTHK"], given["k_BSGK"], **rest)
    assert_dropped(gated_attention(**given, **rest, dropout=P), weights_BHTS.transpose(1, 2))


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
def test_its_mean_is_attention_without_it(impl: str) -> None:
    n, given = 4000, drawn(4000)
    given["v_BSGK"] = torch.randn(1, T, G, K, dtype=torch.float64).expand(n, -1, -1, -1)
    found_BTHK = gated_attention(**given, dropout=P, impl=impl)
    off = (found_BTHK.mean(dim=0) - gated_attention(**given)[0]).abs()
    assert (off <= 5 * found_BTHK.std(dim=0) / math.sqrt(n)).all()


@pytest.mark.parametrize("gate", [None, "sdpa-elementwise", "sdpa-headwise-lse"])
def test_it_acts_in_training_alone(gate: str | None) -> None:
    attention, x_BTD = layer(gate), torch.randn(B, T, D, dtype=torch.float64)
    plain = layer(gate, dropout=0.0)
    plain.load_state_dict(attention.state_dict())
    assert torch.equal(attention.eval()(x_BTD), plain(x_BTD))
    attention.train()
    first, second = attention(x_BTD), attention(x_BTD)
    assert not torch.allclose(first, plain(x_BTD)) and not torch.allclose(first, second)


@pytest.mark.parametrize("options", [{}, {"softmax": SinkLogit()}, {"window": 3}], ids=str)
def test_gradients_are_those_of_finite_differences(options: dict[str, object]) -> None:
    attention = layer("sdpa-headwise", **options)

    def out(x_BTD: Tensor) -> Tensor:
        torch.manual_seed(1)
        return attention(x_BTD)

    assert torch.autograd.gradcheck(out, torch.randn(1, T, D, dtype=torch.float64, requires_grad=True))


def test_padding_and_documents_stay_hidden() -> None:
    attention, x_BTD = layer("sdpa-elementwise"), torch.randn(1, T, D, dtype=torch.float64)
    is_token_BS, ids_BT = torch.arange(T)[None] >= 2, torch.tensor([[0, 0, 0, 0, 1, 1]])

    def out(x_BTD: Tensor) -> Tensor:
        torch.manual_seed(1)
        return attention(x_BTD, is_token_BS=is_token_BS, segment_ids_BT=ids_BT)[:, 4:]

    other_BTD = torch.cat([torch.randn(1, 4, D, dtype=torch.float64), x_BTD[:, 4:]], dim=1)
    torch.testing.assert_close(out(other_BTD), out(x_BTD))


def test_a_watch_has_no_number_and_a_cache_drops_too() -> None:
    attention, x_BTD, watch = layer(), torch.randn(1, T, D, dtype=torch.float64), Watch()
    attention(x_BTD, watch=watch)
    assert watch.first_mass_BH[0].isnan().all()
    cache = KVCache(n_layers=1, batch=1, max_seq_len=T, n_kv_heads=G, head_dim=K, dtype=torch.float64)
    with torch.no_grad():
        attention(x_BTD[:, :-1], cache=cache)
        cache.advance(T - 1)
        last = attention(x_BTD[:, -1:], cache=cache)
        assert not torch.allclose(last, attention.eval()(x_BTD)[:, -1:])


def test_it_is_one_graph() -> None:
    torch.compiler.reset()
    attention, x_BTD = layer("sdpa-elementwise"), torch.randn(B, T, D, dtype=torch.float64)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    results = []
    for module in (attention, compiled):
        torch.manual_seed(3)
        out_BTD = module(x_BTD)
        results.append((out_BTD, *torch.autograd.grad(out_BTD.square().sum(), list(attention.parameters()))))
    torch.testing.assert_close(*results)


def test_who_serves_it() -> None:
    cuda = {"n_queries": 8, "n_keys": 8, "head_dim": 64, "dtypes": (torch.bfloat16,), "device": torch.device("cuda")}

    def served(impl: str = "auto", normaliser: object = Softmax(), **changes: object) -> str:
        return choose(impl, normaliser, Call(**{**cuda, "dropout": P, **changes}))

    assert served() == served(window=4) == served(extras=("segment_ids_BT",)) == served(dropout=0.0, window=4) == "sdpa"
    assert served(normaliser=SinkLogit()) == served(extras=("score_gate",)) == "reference"
    assert served(gate=GateSpec.parse("sdpa-headwise-lse")) == "reference"
    # Where torch's own choice of kernel is avoided.
    assert served(n_queries=64, n_keys=64) == "sdpa"
    assert served(n_queries=64, n_keys=64, is_causal=False) == served(n_queries=1) == "reference"
    assert served(n_queries=64, n_keys=64, is_causal=False, has_gradients=False) == "sdpa"
    for impl in ("flash", "flash-lean", "short", "hopper"):
        with pytest.raises(
            ValueError, match=rf"impl='{impl}' drops no weights, and dropout=0.3 came; take sdpa, or auto"
        ):
            served(impl)
        with pytest.raises(ValueError, match=rf"impl='{impl}' drops no weights, and dropout=0.3 came; take sdpa, ref"):
            layer(impl=impl)
    given, came = drawn(), {"score_gate": GateSpec.parse("scores-headwise"), "score_logits_BSH": torch.zeros(1, T, H)}
    refused: tuple[Callable[[], object], ...] = (
        lambda: gated_attention(**given, **came, dropout=P, impl="sdpa"),
        lambda: layer(impl="sdpa", softmax=SinkLogit()),
        lambda: layer("scores-headwise", impl="sdpa"),
        lambda: layer("sdpa-headwise-lse", impl="sdpa"),
        lambda: layer(impl="sdpa", first_hidden_from=(0,)),
    )
    for make in refused:
        with pytest.raises(
            ValueError, match=r"impl='sdpa' reads the log-sum-exp .* dropout=0.3 came; take reference, or auto"
        ):
            make()
    for gate in ("sdpa-elementwise", "value-headwise"):
        layer(gate, impl="sdpa")(torch.randn(1, T, D, dtype=torch.float64))
    for share in (1.0, -0.1, 2):
        with pytest.raises(
            ValueError, match=rf"dropout={share}: expected the share of weights that are dropped, from 0"
        ):
            layer(dropout=share)
        with pytest.raises(ValueError, match=rf"dropout={share}: expected the share"):
            gated_attention(**drawn(), dropout=share)
