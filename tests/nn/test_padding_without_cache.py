"""Padding in a batch without a cache: every row is what it is alone, whatever stands in its padding."""

import gate_space
import pytest
import torch
from torch import Tensor

from gatelab.config import GateSpec, SinkLogit
from gatelab.config.normaliser import KeyBias, Sigmoid
from gatelab.nn.attention import GatedAttention
from gatelab.nn.cache import KVCache
from gatelab.nn.recent import StreamingCache
from gatelab.probes.capture import capture
from gatelab.probes.interventions import intervened, parse

T, S, D, H, G, K = 7, 5, 8, 4, 2, 4
# First and one past the last token of each row of T: whole, padding before it, behind it, on both sides, one token.
ROWS = ((0, 7), (3, 7), (0, 4), (2, 5), (6, 7))
GATES = [
    None,
    *(f"{site}-{g}" for site in ("sdpa", "value", "key", "query") for g in ("elementwise", "headwise")),
    "out-elementwise",
    "scores-headwise",
    "scores-headwise-forget",
    "sdpa-elementwise-shared",
    "sdpa-headwise-lse",
    "sdpa-headwise-output+value-elementwise-add",
]
KINDS = {
    "plain": {},
    "window": {"window": 3},
    "sink logit": {"softmax": SinkLogit(init=0.7), "output_map": "xsa"},
    "sigmoid": {"softmax": Sigmoid()},
    # Its logit depends on where a query stands.
    "key bias": {"softmax": KeyBias()},
    "no positions": {"rope_theta": None},
    "half rope": {"rope_fraction": 0.5, "qk_norm": "rms-all-heads"},
    "first key hidden": {"first_hidden_from": (1, 2)},
}


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def layer(gate: str | GateSpec | None, **options: object) -> GatedAttention:
    fields = {"qk_norm": True, "rope_theta": 10.0, "max_seq_len": T, **options}
    attention = GatedAttention(d_model=D, n_heads=H, n_kv_heads=G, head_dim=K, gate=gate, **fields).double()
    with torch.no_grad():
        for p in attention.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return attention


def tokens(rows: tuple[tuple[int, int], ...] = ROWS, length: int = T) -> Tensor:
    place_S = torch.arange(length)
    return torch.stack([(place_S >= s) & (place_S < e) for s, e in rows])


def gradients(attention: GatedAttention, loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [*inputs, *attention.parameters()], allow_unused=True))


def assert_rows_are_alone(attention: GatedAttention, **given: object) -> None:
    """Outputs of tokens, and gradients of a loss of them, are those of one row at a time without padding."""
    x_BTD, upstream_BTD, is_token_BS = numbers(len(ROWS), T, D), numbers(len(ROWS), T, D), tokens()
    x_BTD[~is_token_BS] *= 100
    x_BTD.requires_grad_()
    out_BTD = attention(x_BTD, is_token_BS=is_token_BS, **given)
    assert out_BTD.isfinite().all()
    alone = [attention(x_BTD[b : b + 1, s:e], **given)[0] for b, (s, e) in enumerate(ROWS)]
    torch.testing.assert_close(out_BTD[is_token_BS], torch.cat(alone), rtol=1e-10, atol=1e-11)
    upstream_ND = upstream_BTD[is_token_BS]
    found = gradients(attention, (out_BTD[is_token_BS] * upstream_ND).sum(), x_BTD)
    expected = gradients(attention, (torch.cat(alone) * upstream_ND).sum(), x_BTD)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    assert not found[0][~is_token_BS].any()


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "both-ways"])
@pytest.mark.parametrize("gate", GATES)
def test_a_row_with_padding_is_the_row_alone(gate: str | None, is_causal: bool) -> None:
    if gate == "scores-headwise-forget" and not is_causal:
        return
    assert_rows_are_alone(layer(gate), is_causal=is_causal)


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "both-ways"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_with_padding_is_the_row_alone_in_every_kind_of_layer(kind: str, is_causal: bool) -> None:
    gate = None if kind == "first key hidden" else "sdpa-elementwise+scores-headwise"
    assert_rows_are_alone(layer(gate, **KINDS[kind]), is_causal=is_causal)


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_each_implementation_that_takes_a_mask_serves(impl: str) -> None:
    assert_rows_are_alone(layer("sdpa-headwise", impl=impl))


def test_an_implementation_that_takes_none_says_so() -> None:
    with pytest.raises(ValueError, match=r"impl='flash' takes none of .* and mask_BTS came"):
        layer(None, impl="flash")(numbers(len(ROWS), T, D), is_token_BS=tokens())


def test_every_gate_that_there_is_leaves_padding_alone() -> None:
    x_BTD, is_token_BS = numbers(2, T, D), tokens(((2, 7), (0, 3)))
    x_BTD[~is_token_BS] *= 100
    with torch.no_grad():
        for spec in gate_space.one_of_each(gate_space.without("init", "around")):
            attention = layer(spec)
            out_BTD = attention(x_BTD, is_token_BS=is_token_BS)
            first, second = attention(x_BTD[:1, 2:]), attention(x_BTD[1:, :3])
            torch.testing.assert_close(out_BTD[:1, 2:], first, rtol=1e-9, atol=1e-10, msg=lambda m, s=spec: f"{s}: {m}")
            torch.testing.assert_close(
                out_BTD[1:, :3], second, rtol=1e-9, atol=1e-10, msg=lambda m, s=spec: f"{s}: {m}"
            )


@pytest.mark.parametrize("is_packed", [False, True])
def test_documents_and_padding_go_together(is_packed: bool) -> None:
    attention, x_BTD = layer("sdpa-elementwise+value-headwise"), numbers(1, T, D)
    attention.is_packed = is_packed
    ids_BT, is_token_BS = torch.tensor([[0, 0, 0, 1, 1, 1, 1]]), tokens(((0, 5),))
    found = attention(x_BTD, segment_ids_BT=ids_BT, is_token_BS=is_token_BS)
    torch.testing.assert_close(found[:, :3], attention(x_BTD[:, :3]))
    torch.testing.assert_close(found[:, 3:5], attention(x_BTD[:, 3:5]))
    assert found.isfinite().all()


CONTEXTS = ((0, 5), (2, 5), (0, 1))
CROSSING = [g for g in GATES if g != "scores-headwise-forget"]


@pytest.mark.parametrize("gate", CROSSING)
def test_cross_attention_looks_at_a_contexts_tokens_alone(gate: str | None) -> None:
    attention, is_token_BS = layer(gate, rope_theta=None), tokens(CONTEXTS, S)
    x_BTD, context_BSD = numbers(len(CONTEXTS), T, D), numbers(len(CONTEXTS), S, D)
    context_BSD[~is_token_BS] *= 100
    x_BTD.requires_grad_(), context_BSD.requires_grad_()
    found = attention(x_BTD, context_BSD=context_BSD, is_token_BS=is_token_BS)
    alone = [attention(x_BTD[b : b + 1], context_BSD=context_BSD[b : b + 1, s:e]) for b, (s, e) in enumerate(CONTEXTS)]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-10, atol=1e-11)
    upstream_BTD = numbers(*found.shape)
    pairs = [gradients(attention, (y * upstream_BTD).sum(), x_BTD, context_BSD) for y in (found, torch.cat(alone))]
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    cache, pieces = KVCache(n_layers=1, batch=3, max_seq_len=T, n_kv_heads=G, head_dim=K, dtype=torch.float64), []
    with torch.no_grad():
        for x_B1D in x_BTD.split(1, dim=1):
            said = {} if pieces else {"context_BSD": context_BSD, "is_token_BS": is_token_BS}
            pieces.append(attention(x_B1D, cache=cache, is_cross=True, **said))
    torch.testing.assert_close(torch.cat(pieces, dim=1), found, rtol=1e-10, atol=1e-11)


def test_a_row_without_any_token_is_finite_with_its_gradients() -> None:
    is_token_BS = tokens(((0, 5), (0, 0)), S)
    for given in ({"is_causal": True}, {"is_causal": False}, {"context_BSD": numbers(2, S, D)}):
        attention, x_BTD = layer("sdpa-elementwise"), numbers(2, S, D).requires_grad_()
        out_BTD = attention(x_BTD, is_token_BS=is_token_BS, **given)
        out_BTD.sum().backward()
        grads = [x_BTD.grad, *(p.grad for p in attention.parameters())]
        assert out_BTD.isfinite().all() and all(g.isfinite().all() for g in grads)


def test_a_batch_without_padding_is_what_it_was() -> None:
    attention, x_BTD = layer("sdpa-elementwise"), numbers(2, T, D)
    torch.testing.assert_close(attention(x_BTD, is_token_BS=torch.ones(2, T, dtype=torch.bool)), attention(x_BTD))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_stays_near_and_finite(dtype: torch.dtype) -> None:
    attention, x_BTD, is_token_BS = layer("sdpa-elementwise+key-headwise"), numbers(len(ROWS), T, D), tokens()
    expected_BTD = attention(x_BTD, is_token_BS=is_token_BS)
    found_BTD = attention.to(dtype)(x_BTD.to(dtype), is_token_BS=is_token_BS)
    found_BTD.sum().backward()
    assert found_BTD.isfinite().all() and all(p.grad.isfinite().all() for p in attention.parameters())
    size = 0.1 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(found_BTD[is_token_BS].double(), expected_BTD[is_token_BS], rtol=size, atol=size)


@pytest.mark.parametrize("options", [{"first_hidden_from": (1,)}, {"window": 3, "softmax": SinkLogit()}], ids=str)
def test_it_is_one_graph(options: dict[str, object]) -> None:
    torch.compiler.reset()
    attention, x_BTD, is_token_BS = layer(None, **options), numbers(len(ROWS), T, D), tokens()
    context_BSD = numbers(len(ROWS), T, D)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    for given in ({"is_causal": True}, {"is_causal": False}, {"context_BSD": context_BSD}):
        results = []
        for module in (attention, compiled):
            out_BTD = module(x_BTD, is_token_BS=is_token_BS, **given)
            results.append((out_BTD, *gradients(attention, out_BTD.square().sum())))
        torch.testing.assert_close(*results)


def test_what_does_not_fit_is_told() -> None:
    attention, x_BTD, is_token_BS = layer(None), numbers(2, T, D), tokens(((0, 7), (3, 7)))
    with pytest.raises(ValueError, match=r"is_token_BS of shape \(7,\): expected one value for each .*, \(2, 7\)"):
        attention(x_BTD, is_token_BS=is_token_BS[0])
    with pytest.raises(ValueError, match=r"is_token_BS of shape \(2, 7\): expected one value for each .*, \(2, 5\)"):
        attention(x_BTD, context_BSD=numbers(2, 5, D), is_token_BS=is_token_BS)
    with pytest.raises(ValueError, match=r"is_token_BS of type torch.int64: expected torch.bool, True for a token"):
        attention(x_BTD, is_token_BS=is_token_BS.long())
    cache = KVCache(n_layers=1, batch=2, max_seq_len=T, n_kv_heads=G, head_dim=K, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"is_token_BS does not go together with a cache .* cache.padding = Padding"):
        attention(x_BTD, is_token_BS=is_token_BS, cache=cache)
    with pytest.raises(ValueError, match=r"is_token_BS without a context_BSD: give both together, once"):
        attention(x_BTD, is_token_BS=is_token_BS, cache=cache, is_cross=True)
    streaming = StreamingCache(first=1, last=3, n_layers=1, batch=2, n_kv_heads=G, head_dim=K, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"is_token_BS does not go together with a cache in self-attention"):
        attention(x_BTD, is_token_BS=is_token_BS, cache=streaming)
    with pytest.raises(ValueError, match="position 7 is past max_seq_len=7"):
        attention(numbers(1, T + 1, D), is_token_BS=torch.ones(1, T + 1, dtype=torch.bool))


@pytest.mark.parametrize("hole", [(3, 4), (1, 2), (2, 6)])
def test_padding_between_tokens_is_told(hole: tuple[int, int]) -> None:
    """A window would count it."""
    is_token_BS = tokens(((0, 7), (0, 7)))
    is_token_BS[1, slice(*hole)] = False
    attention, x_BTD = layer(None, window=3), numbers(2, T, D)
    for is_causal in (True, False):
        with pytest.raises(ValueError, match=r"is_token_BS has padding between a row's tokens, where .*: put padding"):
            attention(x_BTD, is_token_BS=is_token_BS, is_causal=is_causal)
    # Nobody counts the tokens of a context.
    crossing, context_BSD = layer(None, rope_theta=None), numbers(2, T, D)
    found = crossing(x_BTD, context_BSD=context_BSD, is_token_BS=is_token_BS)[1:]
    seen_BSD = context_BSD[1:, is_token_BS[1]]
    torch.testing.assert_close(found, crossing(x_BTD[1:], context_BSD=seen_BSD))


def test_probes_and_edits_refuse_padding() -> None:
    attention, x_BTD, is_token_BS = layer("sdpa-headwise"), numbers(1, T, D), tokens(((2, 7),))
    with (
        capture(attention, ["sinks"]),
        pytest.raises(ValueError, match=r"the probes would count padding: run rows of one length, without is_token_BS"),
    ):
        attention(x_BTD, is_token_BS=is_token_BS)
    with (
        intervened(attention, parse("zero-value@first")),
        pytest.raises(ValueError, match=r"padding would count as keys; run rows of one length, without is_token_BS"),
    ):
        attention(x_BTD, is_token_BS=is_token_BS)
