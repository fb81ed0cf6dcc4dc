"""Rotary positions a token: documents that restart, positions of one's own, what is past the table; lengths as numbers."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gatelab.config.normaliser import KeyBias
from gatelab.nn.attention import GatedAttention
from gatelab.nn.cache import KVCache
from gatelab.nn.documents import positions, segments
from gatelab.nn.recent import StreamingCache
from gatelab.nn.rope import Rope

B, T, D, H, G, K = 2, 9, 8, 4, 2, 6
LENGTHS = (3, 1, 5)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def layer(gate: str | None = None, **options: object) -> GatedAttention:
    fields = {"rope_theta": 10.0, "max_seq_len": 32, "softmax": KeyBias(), **options}
    return GatedAttention(d_model=D, n_heads=H, n_kv_heads=G, head_dim=K, gate=gate, **fields).double()


def test_documents_that_restart_are_each_one_alone() -> None:
    """A learned key without a position tells where a query stands, and the table is as long as a document, not as the row."""
    attention, x_BTD = layer("sdpa-elementwise+value-headwise", max_seq_len=max(LENGTHS)), numbers(B, T, D)
    x_BTD.requires_grad_()
    ids_BT = segments(LENGTHS).expand(B, -1)
    found_BTD = attention(x_BTD, segment_ids_BT=ids_BT, positions_BT=positions(ids_BT))
    alone_BTD = torch.cat([attention(d) for d in x_BTD.split(LENGTHS, dim=1)], dim=1)
    torch.testing.assert_close(found_BTD, alone_BTD, rtol=1e-11, atol=1e-12)
    upstream_BTD, inputs = numbers(B, T, D), [x_BTD, *attention.parameters()]
    for pair in zip(
        *(torch.autograd.grad((y * upstream_BTD).sum(), inputs) for y in (found_BTD, alone_BTD)), strict=True
    ):
        torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-11)
    with pytest.raises(ValueError, match="position 8 is past max_seq_len=5"):
        attention(x_BTD, segment_ids_BT=ids_BT)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("is_packed", [False, True])
def test_positions_that_count_on_are_those_of_none(dtype: torch.dtype, is_packed: bool) -> None:
    attention, x_BTD = layer("sdpa-headwise", rope_fraction=1 / 3), numbers(B, T, D)
    attention.is_packed = is_packed
    counted = torch.arange(T, dtype=dtype)
    for positions_BT in (counted[None], counted.expand(B, T)):
        assert torch.equal(attention(x_BTD, positions_BT=positions_BT), attention(x_BTD))
    assert not torch.allclose(attention(x_BTD, positions_BT=2 * counted[None]), attention(x_BTD))


@pytest.mark.parametrize("fraction", [1.0, 1 / 3])
@pytest.mark.parametrize("has_gradients", [False, True])
def test_each_token_turns_by_its_own_position(fraction: float, has_gradients: bool) -> None:
    rope, x_BTHK, positions_BT = (
        Rope(K, 10.0, 32, fraction=fraction).double(),
        numbers(B, T, H, K),
        torch.randint(32, (B, T)),
    )
    with torch.set_grad_enabled(has_gradients):
        found = rope(x_BTHK, rows=rope.rows(positions_BT))
        for b in range(B):
            for t in range(T):
                expected = rope(x_BTHK[b : b + 1, t : t + 1], int(positions_BT[b, t]))
                assert torch.equal(found[b : b + 1, t : t + 1], expected)


def test_decoding_takes_positions_of_its_own() -> None:
    attention, x_BTD = layer("sdpa-headwise"), numbers(B, T, D)
    positions_BT = torch.stack([torch.arange(T), torch.tensor([0, 0, 1, 4, 9, 3, 31, 7, 8])])
    cache = KVCache(n_layers=1, batch=B, max_seq_len=T, n_kv_heads=G, head_dim=K, dtype=torch.float64)
    out = []
    with torch.no_grad():
        for x, at in zip(x_BTD.split((4, 1, 4), dim=1), positions_BT.split((4, 1, 4), dim=1), strict=True):
            out.append(attention(x, cache=cache, positions_BT=at))
            cache.advance(x.shape[1])
        torch.testing.assert_close(torch.cat(out, dim=1), attention(x_BTD, positions_BT=positions_BT))


def test_positions_win_over_those_that_padding_gives() -> None:
    attention, x_BTD = layer(), numbers(1, T, D)
    is_token_BS = torch.arange(T)[None] >= 3
    counted = attention(x_BTD, is_token_BS=is_token_BS)
    given = attention(x_BTD, is_token_BS=is_token_BS, positions_BT=(torch.arange(T) - 3).clamp(min=0)[None])
    later = attention(x_BTD, is_token_BS=is_token_BS, positions_BT=torch.arange(T)[None])
    assert torch.equal(given, counted) and not torch.allclose(later[:, 3:], counted[:, 3:])


@pytest.mark.parametrize("wrong", [-1, 32])
def test_a_position_past_the_table_is_never_anothers(wrong: int) -> None:
    attention, x_BTD = layer(softmax=None), numbers(1, 4, D)
    positions_BT = torch.tensor([[0, 1, wrong, 3]])
    with pytest.raises(ValueError, match=rf"positions_BT from .*{wrong}.*: expected 0 to 31, as max_seq_len=32"):
        attention(x_BTD, positions_BT=positions_BT)
    torch.compiler.reset()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    with pytest.raises(IndexError, match="index out of range"):
        compiled(x_BTD, positions_BT=positions_BT)


def test_it_is_one_graph() -> None:
    torch.compiler.reset()
    attention, x_BTD = layer("sdpa-elementwise"), numbers(B, T, D)

    def packed(x_BTD: Tensor, ids_BT: Tensor) -> Tensor:
        return attention(x_BTD, segment_ids_BT=ids_BT, positions_BT=positions(ids_BT))

    ids_BT = segments(LENGTHS).expand(B, -1)
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x_BTD, ids_BT), packed(x_BTD, ids_BT))


def test_a_layer_without_values_yet_makes_its_table() -> None:
    made, x_BTD, ids_BT = layer().float(), torch.randn(B, T, D), segments(LENGTHS).expand(B, -1)
    with torch.device("meta"):
        attention = layer().float()
    attention.load_state_dict(made.state_dict(), assign=True)
    given = {"segment_ids_BT": ids_BT, "positions_BT": positions(ids_BT)}
    assert torch.equal(attention(x_BTD, **given), made(x_BTD, **given))


class _Count(TorchDispatchMode):
    """How often each operator of torch ran."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: dict[str, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.ran[name] = self.ran.get(name, 0) + 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("is_causal", [True, False])
def test_without_padding_and_positions_nothing_more_is_computed(is_causal: bool) -> None:
    """Products, heads, RoPE and attention, and no mask, table look-up or look at a value."""
    attention, x_BTD = layer("sdpa-headwise", softmax=None), numbers(B, T, D)
    with _Count() as count:
        attention(x_BTD, is_causal=is_causal)
    ran = count.ran
    assert ran.pop("mm") == 5 and ran.pop("_scaled_dot_product_flash_attention_for_cpu") == 1
    # RoPE of q and k: four products, a difference and a sum, and them side by side; the gate's one.
    assert (ran.pop("mul"), ran.pop("sub"), ran.pop("add"), ran.pop("cat")) == (9, 2, 2, 2)
    assert ran.pop("sigmoid") == 1
    views = {
        "t",
        "view",
        "_unsafe_view",
        "transpose",
        "slice",
        "unsqueeze",
        "split",
        "split_with_sizes",
        "detach",
        "alias",
        "promote_types",
    }
    assert set(ran) <= views


def test_lengths_are_numbers_of_documents() -> None:
    assert segments([2, 0, 3]).tolist() == [[0, 0, 2, 2, 2]]
    cu_seqlens = torch.tensor([0, 3, 4, 9], dtype=torch.int32)
    ids_BT = segments(cu_seqlens.diff())
    assert ids_BT.tolist() == [[0, 0, 0, 1, 2, 2, 2, 2, 2]] and ids_BT.dtype == torch.int64
    assert positions(ids_BT).tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 4]]
    assert segments([]).shape == (1, 0) and positions(segments([])).shape == (1, 0)
    rows = torch.cat([segments([1, 2]), segments([3])])
    assert positions(rows).tolist() == [[0, 0, 1], [0, 1, 2]]
    # A number that comes again, falling numbers, 32 bits.
    assert positions(torch.tensor([[7, 7, 2, 2, 7]], dtype=torch.int32)).tolist() == [[0, 1, 0, 1, 0]]


@pytest.mark.parametrize("lengths", [[3, -1], [[3, 1]], [1.5, 2.0], 4], ids=str)
def test_lengths_that_are_none_are_told(lengths: object) -> None:
    with pytest.raises(ValueError, match=r"^lengths=.*: expected the tokens of each document, whole numbers from 0"):
        segments(lengths)


def test_what_does_not_fit_is_told() -> None:
    x_BTD, counted = numbers(B, T, D), torch.arange(T)[None]
    for wrong in (counted[0], counted.expand(3, T), counted[:, 1:]):
        with pytest.raises(ValueError, match=r"positions_BT of shape .*: expected a position for each token, \(2, 9\)"):
            layer()(x_BTD, positions_BT=wrong)
    for dtype in (torch.float64, torch.bool, torch.uint8):
        with pytest.raises(ValueError, match=r"positions_BT of type .*: expected whole numbers from 0, torch.int64"):
            layer()(x_BTD, positions_BT=counted.to(dtype))
    with pytest.raises(ValueError, match=r"are rotary positions, and this layer has none \(rope_theta=None\)"):
        layer(rope_theta=None)(x_BTD, positions_BT=counted)
    with pytest.raises(ValueError, match="are rotary positions, and cross-attention has none: leave them out"):
        layer()(x_BTD, context_BSD=x_BTD, positions_BT=counted)
    cache = StreamingCache(first=1, last=3, n_layers=1, batch=B, n_kv_heads=G, head_dim=K, dtype=torch.float64)
    with pytest.raises(ValueError, match="positions_BT does not go together with a StreamingCache"):
        layer()(x_BTD, positions_BT=counted, cache=cache)
