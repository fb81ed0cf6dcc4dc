"""Caches that drop keys: a window's cache changes no number, and a streaming one sees the kept tokens alone."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gatelab.config.normaliser import SinkLogit
from gatelab.nn.attention import GatedAttention
from gatelab.nn.cache import Cache, KVCache, Padding
from gatelab.nn.recent import SlidingCache, StreamingCache

B, D, H, G, K = 2, 16, 4, 2, 6
GATES = [
    None,
    "query-headwise+key-elementwise+value-headwise+sdpa-elementwise+out-elementwise+scores-headwise",
    "scores-headwise-forget+sdpa-headwise-lse",
    "sdpa-headwise-value",
]
SHAPE = {"batch": B, "n_kv_heads": G, "head_dim": K, "n_score_heads": H, "dtype": torch.float64}
by_gate = pytest.mark.parametrize("gate", GATES)


def layer(gate: str | None, **options: object) -> GatedAttention:
    fields = {"softmax": SinkLogit(init=0.7), "qk_norm": True, "max_seq_len": 90}
    attention = GatedAttention(d_model=D, n_heads=H, n_kv_heads=G, head_dim=K, gate=gate, **(fields | options)).double()
    with torch.no_grad():
        for p in attention.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return attention


def hidden(n_tokens: int) -> Tensor:
    return torch.randn(B, n_tokens, D, dtype=torch.float64)


@torch.no_grad()
def read(attention: GatedAttention, x_BTD: Tensor, cache: Cache, pieces: list[int]) -> Tensor:
    out = []
    for piece_BTD in x_BTD.split(pieces, dim=1):
        out.append(attention(piece_BTD, cache=cache))
        cache.advance(piece_BTD.shape[1])
    return torch.cat(out, dim=1)


PIECES = {"one by one": [1] * 80, "a long prompt": [60, *[1] * 20], "uneven": [3, 1, 25, 2, 1, 40, 8]}


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("window", [1, 2, 7, 79])
@by_gate
def test_a_sliding_cache_is_the_full_pass(gate: str | None, window: int, pieces: list[int]) -> None:
    attention, x_BTD = layer(gate, window=window, output_map="none"), hidden(80)
    cache = SlidingCache(windows=[window], max_seq_len=80, **SHAPE)
    found = read(attention, x_BTD, cache, pieces)
    with torch.no_grad():
        torch.testing.assert_close(found, attention(x_BTD))
    assert cache.length == 80


@torch.no_grad()
def test_a_map_of_the_own_value_finds_it_in_a_sliding_cache() -> None:
    attention, x_BTD = layer(None, window=3, output_map="xsa"), hidden(60)
    found = read(attention, x_BTD, SlidingCache(windows=[3], max_seq_len=60, **SHAPE), [5, *[1] * 55])
    torch.testing.assert_close(found, attention(x_BTD))


def test_a_layer_without_a_window_keeps_all_beside_one_with() -> None:
    cache = SlidingCache(windows=[None, 9], max_seq_len=80, **SHAPE)
    for index, window in enumerate([None, 9]):
        attention, x_BTD = layer(None, window=window, layer=index), hidden(80)
        with torch.no_grad():
            torch.testing.assert_close(read(attention, x_BTD, cache, [1] * 80), attention(x_BTD))
        cache.length = 0


def test_a_window_takes_the_memory_of_its_tokens() -> None:
    a_slot = B * (2 * G * K + H) * 8
    assert KVCache(n_layers=3, max_seq_len=1000, **SHAPE).n_bytes == 3 * 1000 * a_slot
    # 100 tokens before the next one, a quarter of that and 16 more.
    assert SlidingCache(windows=[None, 101, 101], max_seq_len=1000, **SHAPE).n_bytes == (1000 + 2 * 141) * a_slot
    assert SlidingCache(windows=[5000], max_seq_len=1000, **SHAPE).n_bytes == 1000 * a_slot
    assert StreamingCache(first=4, last=101, n_layers=2, **SHAPE).n_bytes == 2 * 145 * a_slot


@pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 5), (1, 1), (3, 1), (2, 6), (20, 30)])
@pytest.mark.parametrize("gate", [g for g in GATES if g is None or "forget" not in g])
@torch.no_grad()
def test_a_streaming_cache_is_the_pass_over_what_it_kept(gate: str | None, first: int, last: int) -> None:
    """Each output is that of a sequence of the kept tokens alone, which stand at 0, 1, … there."""
    attention, x_BTD = layer(gate), hidden(80)
    found = read(attention, x_BTD, StreamingCache(first=first, last=last, n_layers=1, **SHAPE), [1] * 80)
    for t in (0, 1, first, first + last, 40, 41, 79):
        kept = sorted({*range(min(first, t + 1)), *range(max(0, t - last + 1), t + 1)})
        torch.testing.assert_close(found[:, t], attention(x_BTD[:, kept])[:, -1])


@torch.no_grad()
def test_a_long_pass_sees_itself_and_what_was_kept() -> None:
    attention, x_BTD = layer(None), hidden(75)
    cache = StreamingCache(first=2, last=4, n_layers=1, **SHAPE)
    found = read(attention, x_BTD, cache, [30, 40, 1, 4])
    torch.testing.assert_close(found[:, :30], attention(x_BTD[:, :30]))
    second = attention(x_BTD[:, [0, 1, 27, 28, 29, *range(30, 70)]])
    torch.testing.assert_close(found[:, 30:70], second[:, 5:])
    torch.testing.assert_close(found[:, 70], attention(x_BTD[:, [0, 1, 67, 68, 69, 70]])[:, -1])
    assert cache.length == 5


@by_gate
@torch.no_grad()
def test_padding_is_not_looked_at(gate: str | None) -> None:
    """Under RoPE a row behind padding is the row alone; the padding's own content does not matter."""
    attention, x_BTD, cache = layer(gate), hidden(20), KVCache(n_layers=1, max_seq_len=20, **SHAPE)
    cache.k_LBSGK.fill_(math.nan)
    cache.padding = Padding(torch.tensor([0, 6]), 20, torch.float64)
    x_BTD[1, :6] *= 100
    found = read(attention, x_BTD, cache, [9, 1, 1, 5, 4])
    torch.testing.assert_close(found[:1], attention(x_BTD[:1]))
    torch.testing.assert_close(found[1:, 6:], attention(x_BTD[1:, 6:]))
    assert found.isfinite().all()


def caches() -> list[Cache]:
    return [
        KVCache(n_layers=1, max_seq_len=6, **SHAPE),
        SlidingCache(windows=[3], max_seq_len=6, **SHAPE),
        StreamingCache(first=1, last=2, n_layers=1, **SHAPE),
    ]


@pytest.mark.parametrize("cache", caches(), ids=lambda c: type(c).__name__)
def test_what_does_not_fit_is_refused(cache: Cache) -> None:
    attention, x_BTD = layer(None), hidden(7)
    with pytest.raises(ValueError, match="1 sequences, and the cache is for 2; make it with batch=1"):
        attention(x_BTD[:1], cache=cache)
    with pytest.raises(ValueError, match="layer 1 of a cache for 1 layers; make it with more n_layers"):
        layer(None, layer=1)(x_BTD, cache=cache)
    other = GatedAttention(d_model=D, n_heads=H, n_kv_heads=G, head_dim=8).double()
    with pytest.raises(ValueError, match=r"keys of \(heads, channels\) = \(2, 8\), and the cache is for \(2, 6\)"):
        other(x_BTD, cache=cache)
    two_heads = GatedAttention(d_model=D, n_heads=2, n_kv_heads=2, head_dim=K, gate="scores-headwise").double()
    with pytest.raises(ValueError, match="gates the scores of 2 heads and the cache has room for 4"):
        two_heads(x_BTD, cache=cache)
    if not isinstance(cache, StreamingCache):
        with pytest.raises(
            ValueError, match="7 tokens do not fit into a cache for 6; make it with a larger max_seq_len"
        ):
            attention(x_BTD, cache=cache)


@pytest.mark.parametrize("cache", caches(), ids=lambda c: type(c).__name__)
@torch.no_grad()
def test_tokens_are_stored_once_in_a_layer(cache: Cache) -> None:
    """Two layers of one number, or a step that was not counted, would write over one another."""
    attention, other, x_BTD = layer(None), layer(None), hidden(2)
    attention(x_BTD[:, :1], cache=cache)
    for again in (attention, other):
        with pytest.raises(
            ValueError,
            match=r"layer 0 has stored the tokens from position 0 already: give each layer its number with layer=, and call "
            r"cache.advance\(n_tokens\) after the last layer, or cache.advance\(0\) after a pass that failed",
        ):
            again(x_BTD[:, 1:], cache=cache)
    # A copy counts by itself.
    branch = copy.copy(cache)
    for each in (cache, branch):
        each.advance(1)
        attention(x_BTD[:, 1:], cache=each)
    assert cache.stored == branch.stored == (0,)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("pieces", [[9], [6, 1, 1, 1], [2, 3, 4]], ids=str)
def test_the_first_token_after_padding_is_hidden(pieces: list[int], window: int | None) -> None:
    attention, x_BTD = layer(None, first_hidden_from=(0, 3), window=window), hidden(9)
    n_padding_B = torch.tensor([0, 4])
    made = {"max_seq_len": 12, **SHAPE}
    cache = KVCache(n_layers=1, **made) if window is None else SlidingCache(windows=[window], **made)
    cache.padding = Padding(n_padding_B, 12, torch.float64)
    found = []
    with torch.no_grad():
        for piece_BTD in x_BTD.split(pieces, dim=1):
            found.append(attention(piece_BTD, cache=cache))
            cache.advance(piece_BTD.shape[1])
        for b, n in enumerate(n_padding_B.tolist()):
            alone = attention(x_BTD[b : b + 1, n:])[0]
            torch.testing.assert_close(torch.cat(found, dim=1)[b, n:], alone, rtol=1e-9, atol=1e-10)


def test_a_context_without_padding_forgets_the_padding_of_the_one_before() -> None:
    attention, x_BTD, is_token_BS = layer(None, rope_theta=None), hidden(2), torch.ones(B, 5, dtype=torch.bool)
    is_token_BS[1, 2:] = False
    cache, context_BSD = KVCache(n_layers=1, max_seq_len=4, **SHAPE), hidden(5)
    with torch.no_grad():
        attention(x_BTD, context_BSD=hidden(5), is_token_BS=is_token_BS, cache=cache)
        cache.context.clear()
        found = attention(x_BTD, context_BSD=context_BSD, cache=cache)
        torch.testing.assert_close(found, attention(x_BTD, context_BSD=context_BSD))


@pytest.mark.parametrize("cache", caches(), ids=lambda c: type(c).__name__)
@torch.no_grad()
def test_what_was_not_stored_is_not_counted(cache: Cache) -> None:
    """Such tokens would be looked at as keys of zeros."""
    attention, x_BTD = layer(None), hidden(2)

    def refuses(n_tokens: int, n_stored: int) -> None:
        with pytest.raises(ValueError, match=rf"^advance\({n_tokens}\) where the layers have stored {n_stored} tokens"):
            cache.advance(n_tokens)

    refuses(1, 0)
    attention(x_BTD, cache=cache)
    for n_tokens in (3, 1, -3):
        refuses(n_tokens, 2)
    assert cache.stored == (0,) and cache.length == 0
    cache.advance(2)
    refuses(2, 0)
    assert cache.length == 2


@torch.no_grad()
def test_layers_store_the_same_tokens() -> None:
    cache = KVCache(n_layers=2, max_seq_len=6, **SHAPE)
    layer(None)(hidden(2), cache=cache)
    with pytest.raises(ValueError, match="layer 1 stores 3 tokens and layer 0 stored 2: run all layers over the same"):
        layer(None, layer=1)(hidden(3), cache=cache)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KVCache(n_layers=-1, max_seq_len=6, **SHAPE), "n_layers=-1"),
        (lambda: KVCache(n_layers=1, max_seq_len=6.0, **SHAPE), r"max_seq_len=6\.0"),
        (lambda: KVCache(n_layers=1, max_seq_len=6, **SHAPE | {"head_dim": 0}), "head_dim=0"),
        (lambda: SlidingCache(windows=[], max_seq_len=6, **SHAPE), "n_layers=0"),
        (lambda: StreamingCache(first=1, last=2, n_layers=1, **SHAPE | {"batch": "2"}), "batch='2'"),
    ],
)
def test_a_cache_is_made_of_whole_numbers(make: Callable[[], Cache], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}: take a whole number from 1$"):
        make()


@torch.no_grad()
def test_a_step_that_is_not_counted_may_be_made_again() -> None:
    attention, x_BTD, cache = layer(None), hidden(1), KVCache(n_layers=1, max_seq_len=6, **SHAPE)
    first = attention(x_BTD, cache=cache)
    cache.advance(0)
    assert torch.equal(attention(x_BTD, cache=cache), first) and cache.length == 0


@pytest.mark.parametrize("kind", ["all", "sliding", "streaming"])
@pytest.mark.parametrize("n_again", [1, 4, 30], ids=["one", "a few", "more than there is room for"])
@torch.no_grad()
def test_a_pass_that_failed_between_two_layers_is_made_again(kind: str, n_again: int) -> None:
    """After `advance(0)` every number is that of a cache that never saw it."""
    makers = {
        "all": lambda: KVCache(n_layers=2, max_seq_len=80, **SHAPE),
        "sliding": lambda: SlidingCache(windows=[5, 5], max_seq_len=80, **SHAPE),
        "streaming": lambda: StreamingCache(first=2, last=4, n_layers=2, **SHAPE),
    }
    layers = [layer(None, layer=i, window=None if kind != "sliding" else 5) for i in range(2)]
    failed, never = makers[kind](), makers[kind]()

    def through(x_BTD: Tensor, cache: Cache) -> Tensor:
        for attention in layers:
            x_BTD = attention(x_BTD, cache=cache)
        cache.advance(x_BTD.shape[1])
        return x_BTD

    for n_before in (3, 17):
        before_BTD, again_BTD = hidden(n_before), hidden(n_again)
        assert torch.equal(through(before_BTD, failed), through(before_BTD, never))
        layers[0](again_BTD, cache=failed)
        with pytest.raises(ValueError, match=r"cache.advance\(0\) after a pass that failed"):
            through(again_BTD, failed)
        failed.advance(0)
        assert failed.length == never.length
        assert torch.equal(through(again_BTD, failed), through(again_BTD, never))


@pytest.mark.parametrize("cache", caches(), ids=lambda c: type(c).__name__)
def test_a_cache_of_another_type_is_refused(cache: Cache) -> None:
    with pytest.raises(
        ValueError,
        match=r"keys of torch\.float32, and the cache is of torch\.float64; make it with dtype=torch\.float32",
    ):
        layer(None).float()(hidden(1).float(), cache=cache)


def test_autocast_decodes_from_a_cache_in_float32() -> None:
    attention, x_BTD = layer(None).float(), hidden(4).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = read(
            attention, x_BTD, KVCache(n_layers=1, max_seq_len=4, **SHAPE | {"dtype": torch.float32}), [2, 1, 1]
        )
    with torch.no_grad():
        torch.testing.assert_close(found.float(), attention(x_BTD), rtol=0.05, atol=0.05)


@torch.no_grad()
def test_layers_that_decode_compile_to_one_graph() -> None:
    layers, x_BTD = [layer("sdpa-headwise", layer=i) for i in range(2)], hidden(5)
    caches_of = [KVCache(n_layers=2, max_seq_len=5, **SHAPE) for _ in range(2)]

    def through(x_BTD: Tensor, cache: Cache) -> Tensor:
        for attention in layers:
            x_BTD = x_BTD + attention(x_BTD, cache=cache)
        cache.advance(x_BTD.shape[1])
        return x_BTD

    torch._dynamo.reset()
    compiled = torch.compile(through, fullgraph=True, backend="eager")
    for piece_BTD in x_BTD.split([2, 1, 1, 1], dim=1):
        found, expected = (f(piece_BTD, c) for f, c in zip((compiled, through), caches_of, strict=True))
        torch.testing.assert_close(found, expected)
    assert [c.length for c in caches_of] == [5, 5] and [c.stored for c in caches_of] == [(), ()]
    # A layer alone, and its mistake.
    alone, cache = (
        torch.compile(layers[0], fullgraph=True, backend="eager"),
        KVCache(n_layers=2, max_seq_len=5, **SHAPE),
    )
    alone(x_BTD[:, :1], cache=cache)
    assert cache.stored == (0,)
    with pytest.raises(ValueError, match="has stored the tokens from position 0 already"):
        layers[0](x_BTD[:, :1], cache=cache)
    torch._dynamo.reset()


def test_a_streaming_cache_keeps_something() -> None:
    for first, last in ((0, 0), (-1, 3)):
        with pytest.raises(ValueError, match=f"first={first}, last={last}: take 0 or more of the first tokens"):
            StreamingCache(first=first, last=last, n_layers=1, **SHAPE)


@pytest.mark.parametrize("gate", [None, "sdpa-headwise", "sdpa-elementwise+value-headwise-bias"])
def test_packed_projections_are_joined_once_a_text_and_decode_as_separate_ones(gate: str | None) -> None:
    torch.manual_seed(0)
    layer, other = (GatedAttention(d_model=24, n_heads=4, n_kv_heads=2, head_dim=6, gate=gate) for _ in range(2))
    x_BTD = torch.randn(2, 7, 24)

    def decoded(owner: GatedAttention, cache: KVCache) -> Tensor:
        steps = []
        for x_B1D in x_BTD.split([3, 1, 1, 1, 1], dim=1):
            steps.append(owner(x_B1D, cache=cache))
            cache.advance(x_B1D.shape[1])
        return torch.cat(steps, dim=1)

    def new_cache() -> KVCache:
        return KVCache(n_layers=1, batch=2, max_seq_len=7, n_kv_heads=2, head_dim=6)

    with torch.no_grad():
        apart = decoded(layer, new_cache())
        layer.is_packed = other.is_packed = True
        cache = new_cache()
        torch.testing.assert_close(decoded(layer, cache), apart)
        owner, weight = cache.joint[0]
        assert owner is layer.q_proj and weight.shape[0] % 64 == 0
        # Another layer on the same cache does not take the first one's weights.
        cache.length = 0
        torch.testing.assert_close(decoded(other, cache), decoded(other, new_cache()))
    cache = new_cache()
    decoded(layer, cache)
    assert not cache.joint
