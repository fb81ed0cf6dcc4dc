"""The attention layer: gates go together, decoding equals the full pass, nothing sees what it may not."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from gatelab.config import SITES, ConfigError, GateSpec, SinkLogit
from gatelab.nn.attention import GatedAttention
from gatelab.nn.cache import KVCache
from gatelab.nn.rope import Rope

B, T, D, H, G, K = 2, 9, 16, 4, 2, 6
SITE_SLUGS = [f"{site}-{SITES[site].granularities[0]}" for site in SITES]


def layer(gate: object = None, **options: object) -> GatedAttention:
    return GatedAttention(**{"d_model": D, "n_heads": H, "n_kv_heads": G, "head_dim": K, "gate": gate, **options})


def new_cache(batch: int = B, max_seq_len: int = T, head_dim: int = K) -> KVCache:
    return KVCache(n_layers=1, batch=batch, max_seq_len=max_seq_len, n_kv_heads=G, head_dim=head_dim, n_score_heads=H)


def test_gates_at_all_sites_work_together() -> None:
    attention = layer(SITE_SLUGS, qk_norm=True, softmax=SinkLogit(), bias=True)
    attention(torch.randn(B, T, D)).square().sum().backward()
    assert list(attention.gates) == list(SITES)
    assert all(p.grad is not None for p in attention.parameters())


def test_gates_are_named_in_any_way() -> None:
    one = GateSpec.parse("sdpa-headwise")
    for gate in ("sdpa-headwise", one, [one], ("sdpa-headwise",)):
        assert [g.spec for g in layer(gate).gates.values()] == [one]
    assert list(layer("value-headwise+sdpa-elementwise").gates) == ["value", "sdpa"]
    assert not layer(None).gates and not layer("none").gates


KINDS = {
    "plain": {},
    "slot": {"softmax": SinkLogit(init=0.7)},
    "window": {"window": 3},
    "map": {"output_map": "xsa"},
    "experts": {"kv_experts": "kv-3top2"},
    "half-rope": {"rope_fraction": 0.5, "head_dim": 8},
}
PIECES = pytest.mark.parametrize("pieces", [(1,) * T, (4, 1, 1, 3)], ids=["one-by-one", "in-pieces"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gate", [None, *SITE_SLUGS, "+".join(SITE_SLUGS), "scores-headwise-forget"])
@PIECES
def test_decode_equals_full_forward(gate: str | None, kind: str, pieces: tuple[int, ...]) -> None:
    attention, x_BTD = layer(gate, qk_norm=True, **KINDS[kind]), torch.randn(B, T, D)
    cache = new_cache(head_dim=attention.head_dim)
    # Room that was never written must not matter.
    for store in (cache.k_LBSGK, cache.v_LBSGK, cache.score_logits_LBSH):
        store.fill_(math.nan)
    out = []
    with torch.no_grad():
        for piece_BTD in x_BTD.split(pieces, dim=1):
            out.append(attention(piece_BTD, cache=cache))
            cache.advance(piece_BTD.shape[1])
        torch.testing.assert_close(torch.cat(out, dim=1), attention(x_BTD))


@pytest.mark.parametrize("gate", [None, *SITE_SLUGS])
def test_future_tokens_do_not_matter(gate: str | None) -> None:
    attention, x_BTD = layer(gate, softmax=SinkLogit()), torch.randn(B, T, D)
    before = attention(x_BTD)[:, :5]
    x_BTD[:, 5:] = torch.randn(B, T - 5, D) * 100
    torch.testing.assert_close(attention(x_BTD)[:, :5], before)


def test_a_window_hides_what_is_farther_away() -> None:
    attention, x_BTD = layer("sdpa-elementwise", window=3), torch.randn(B, T, D)
    before = attention(x_BTD)
    x_BTD[:, :3] = torch.randn(B, 3, D) * 100
    torch.testing.assert_close(attention(x_BTD)[:, 5:], before[:, 5:])
    assert not torch.allclose(attention(x_BTD)[:, 4], before[:, 4])


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "window"])
def test_a_window_as_long_as_the_sequence_is_none(kind: str) -> None:
    attention, x_BTD = layer("value-headwise", **KINDS[kind]), torch.randn(B, T, D)
    plain_BTD = attention(x_BTD)
    attention.window = T
    torch.testing.assert_close(attention(x_BTD), plain_BTD)


def test_a_map_that_needs_the_own_value_is_left_out_of_cross_attention() -> None:
    x_BTD, context_BSD = torch.randn(B, T, D), torch.randn(B, 4, D)
    plain = layer("sdpa-headwise", rope_theta=None)
    for name, is_seen in (("xsa", False), ("rms", True)):
        mapped = layer("sdpa-headwise", rope_theta=None, output_map=name)
        mapped.load_state_dict(plain.state_dict())
        is_same = torch.allclose(mapped(x_BTD, context_BSD=context_BSD), plain(x_BTD, context_BSD=context_BSD))
        assert is_same != is_seen and not torch.allclose(mapped(x_BTD), plain(x_BTD))


def test_without_a_causal_mask_every_token_matters() -> None:
    attention, x_BTD = layer(), torch.randn(B, T, D)
    before = attention(x_BTD, is_causal=False)[:, 0]
    x_BTD[:, -1] += 1
    assert not torch.allclose(attention(x_BTD, is_causal=False)[:, 0], before)


@pytest.mark.parametrize("gate", [None, *SITE_SLUGS])
@pytest.mark.parametrize("rope_theta", [None, 100.0], ids=["no-positions", "rope"])
def test_packing_changes_nothing(gate: str | None, rope_theta: float | None) -> None:
    """Rotary positions run on across documents, and only differences count."""
    attention = layer(gate, rope_theta=rope_theta, softmax=SinkLogit())
    lengths = (3, 1, 5)
    documents = [torch.randn(B, n, D) for n in lengths]
    ids_BT = torch.cat([torch.full((B, n), i) for i, n in enumerate(lengths)], dim=1)
    packed = attention(torch.cat(documents, dim=1), segment_ids_BT=ids_BT)
    torch.testing.assert_close(packed, torch.cat([attention(d) for d in documents], dim=1))


def test_the_order_of_the_batch_does_not_matter() -> None:
    attention, x_BTD = layer("sdpa-elementwise"), torch.randn(5, T, D)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(attention(x_BTD[order]), attention(x_BTD)[order])


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_query_head_h_reads_kv_head_h_over_group_size(n_kv_heads: int, impl: str) -> None:
    attention = layer(n_kv_heads=n_kv_heads, impl=impl)
    nn.init.zeros_(attention.v_proj.weight)
    for g in range(n_kv_heads):
        # Whatever is attended to, kv head g answers with the first channel, times g + 1.
        attention.v_proj.weight.data[g * K, 0] = g + 1
    heads_BTHK: list[Tensor] = []
    attention.o_proj.register_forward_pre_hook(lambda _m, a: heads_BTHK.append(a[0].unflatten(-1, (H, K))))
    x_BTD = torch.randn(1, 3, D)
    x_BTD[..., 0] = 1.0
    attention(x_BTD)
    expected = [h // (H // n_kv_heads) + 1.0 for h in range(H)]
    torch.testing.assert_close(heads_BTHK[0][0, -1, :, 0], torch.tensor(expected))


def test_rope_scores_depend_on_differences_alone() -> None:
    rope = Rope(K, 100.0, 64)
    q_BTHK, k_BTHK = torch.randn(1, 8, 2, K), torch.randn(1, 8, 2, K)

    def scores(start: int) -> Tensor:
        return torch.einsum("bthk,bshk->bhts", rope(q_BTHK, start), rope(k_BTHK, start))

    torch.testing.assert_close(scores(0), scores(50), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rope(q_BTHK).norm(dim=-1), q_BTHK.norm(dim=-1))
    assert not torch.allclose(scores(0), torch.einsum("bthk,bshk->bhts", rope(q_BTHK), k_BTHK))


def test_rope_turns_channel_pairs_half_a_head_apart() -> None:
    rope = Rope(4, 10_000.0, 8)
    x_BTHK = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(1, 8, 1, 4)
    t = torch.arange(8.0)
    expected = torch.stack([t.cos(), -(t / 100).sin(), t.sin(), (t / 100).cos()], dim=-1)
    torch.testing.assert_close(rope(x_BTHK)[0, :, 0], expected)


def test_qk_norm_makes_the_scale_of_queries_irrelevant() -> None:
    attention, x_BTD = layer(qk_norm=True, norm_eps=1e-12), torch.randn(B, T, D)
    before = attention(x_BTD)
    attention.q_proj.weight.data *= 7
    torch.testing.assert_close(attention(x_BTD), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("gate", "value"), [("sdpa-headwise-bias-init=0.9", 0.9), ("value-elementwise-static-init=0.3", 0.3)]
)
def test_a_gate_starts_at_the_value_that_its_spec_states(gate: str, value: float) -> None:
    (module,) = layer(gate).gates.values()
    logits_BTHK = module.logits(torch.randn(B, T, D))
    torch.testing.assert_close(logits_BTHK.sigmoid(), torch.full_like(logits_BTHK, value))


def test_bfloat16_inputs_give_bfloat16_outputs_from_float32_weights() -> None:
    attention, x_BTD = layer("+".join(SITE_SLUGS), qk_norm=True, bias=True), torch.randn(B, T, D)
    out = attention(x_BTD.bfloat16())
    assert out.dtype == torch.bfloat16 and {p.dtype for p in attention.parameters()} == {torch.float32}
    torch.testing.assert_close(out.float(), attention(x_BTD), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("gate", ["sdpa-headwise-lse", "scores-headwise-forget", "value-elementwise+key-headwise"])
@pytest.mark.parametrize("softmax", [None, SinkLogit()])
def test_it_computes_under_autocast(gate: str, softmax: SinkLogit | None) -> None:
    attention, x_BTD = layer(gate, softmax=softmax, qk_norm=True), torch.randn(B, T, D)
    expected = attention(x_BTD)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(x_BTD)
    found.float().sum().backward()
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)


def test_taps_add_nothing_to_the_state_dict() -> None:
    names = set(layer("sdpa-headwise", softmax=SinkLogit()).state_dict())
    projections = {f"{p}_proj.weight" for p in "qkvo"}
    assert names == projections | {"gates.sdpa.g_proj.weight", "sink.sink_logit_H"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_kv_heads": 3}, "n_kv_heads=3 does not divide n_heads=4"),
        ({"d_model": 18, "head_dim": None}, "d_model=18 is not a multiple of n_heads=4; state head_dim"),
        ({"head_dim": 5}, "head_dim=5 is odd, and rope turns pairs"),
        ({"gate": "sdpa-headwise+sdpa-elementwise"}, "two gates at site 'sdpa'; one a site is the limit"),
        ({"gate": "sdpa-headwise-first:17"}, "reads 17 channels, and d_model=16"),
        (
            {"gate": "sdpa-headwise-lse", "output_map": "rms"},
            "belongs to the softmax and comes before output_map='rms'",
        ),
        ({"output_map": "gelu"}, "output_map='gelu': expected one of none, rms, silu, xsa"),
        ({"kv_experts": "v-2top3"}, "3 of 2 experts cannot be active"),
        ({"rope_fraction": 0.5}, "rope_fraction"),
        ({"gate": "spda-headwise"}, "no site 'spda'.*did you mean 'sdpa'"),
        ({"gate": "out-headwise"}, "out-headwise is impossible"),
        ({"qk_norm": "none"}, "qk_norm='none': expected False, True, 'rms', 'rms-no-gain' or 'rms-all-heads'"),
    ],
)
def test_an_impossible_layer_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(**options)


def test_errors_of_the_forward_pass() -> None:
    x_BTD = torch.randn(1, 3, D)
    cache = new_cache(batch=1, max_seq_len=2)
    with pytest.raises(ValueError, match="3 tokens do not fit into a cache for 2"):
        layer()(x_BTD, cache=cache)
    with pytest.raises(ValueError, match="1 sequences, and the cache is for 2; make it with batch=1"):
        layer()(x_BTD, cache=new_cache(batch=2))
    for other in ({"cache": cache}, {"context_BSD": x_BTD}):
        with pytest.raises(ValueError, match="segment_ids_BT does not go together with a cache or a context"):
            layer()(x_BTD, segment_ids_BT=torch.zeros(1, 3), **other)
    for nothing in (None, new_cache(batch=1)):
        with pytest.raises(ValueError, match="nothing to look at: give context_BSD, or a cache that has kept it"):
            layer()(x_BTD, is_cross=True, cache=nothing)
    with pytest.raises(
        ValueError, match="sdpa-headwise-value reads the query's own value, which cross-attention does not"
    ):
        layer("sdpa-headwise-value")(x_BTD, context_BSD=x_BTD)
    with pytest.raises(ValueError, match=r"form forget sums over the tokens .* needs is_causal=True"):
        layer("scores-headwise-forget")(x_BTD, is_causal=False)
    with pytest.raises(ValueError, match="gates the scores of 4 heads and the cache has room for 0"):
        without = KVCache(n_layers=1, batch=1, max_seq_len=3, n_kv_heads=G, head_dim=K)
        layer("scores-headwise")(x_BTD, cache=without)
    with pytest.raises(ValueError, match="position 2 is past max_seq_len=2"):
        layer(max_seq_len=2)(x_BTD)
    with pytest.raises(ValueError, match="impl='triton': expected one of"):
        layer(impl="triton")(x_BTD)


def test_config_errors_are_value_errors() -> None:
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize(
    "options",
    [{"gate": "sdpa-headwise-lse"}, {"output_map": "silu"}, {"output_map": "xsa", "softmax": SinkLogit()}],
    ids=str,
)
def test_a_copied_and_an_unpickled_layer_compute_the_same(options: dict[str, object]) -> None:
    attention, x_BTD = layer(**options), torch.randn(B, T, D)
    with torch.no_grad():
        for p in attention.parameters():
            p.add_(0.3 * torch.randn_like(p))
    for other in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
        assert torch.equal(other(x_BTD), attention(x_BTD))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_heads": 0}, "n_heads=0: take a whole number from 1"),
        ({"n_kv_heads": -2}, "n_kv_heads=-2: take a whole number from 1"),
        ({"window": 0}, "window=0: take a whole number from 1"),
        ({"max_seq_len": 0}, "max_seq_len=0: take a whole number from 1"),
        ({"d_model": "16"}, "d_model='16': take a whole number from 1"),
        ({"d_model": 16.0}, r"d_model=16\.0: take a whole number from 1"),
        ({"norm_eps": math.nan}, "norm_eps=nan: take a finite number above 0, such as 1e-6"),
        ({"norm_eps": math.inf}, "norm_eps=inf: take a finite number above 0"),
        ({"norm_eps": -5.0}, r"norm_eps=-5\.0: take a finite number above 0"),
        ({"norm_eps": "x"}, "norm_eps='x': take a finite number above 0"),
        (
            {"softmax": "sink-logit"},
            r"softmax='sink-logit': give a value of gatelab.config, as in softmax=SinkLogit\(\)",
        ),
        ({"rope_scaling": "yarn"}, "rope_scaling='yarn': give a value of gatelab.config.rope"),
        ({"impl": "flush"}, "impl='flush': expected one of auto, reference, sdpa"),
        ({"gate": True}, "gate=True: expected a slug such as sdpa-headwise"),
        ({"gate": {"site": "sdpa"}}, "expected a slug such as sdpa-headwise"),
        ({"gate": "gpt-oss"}, "'gpt-oss' changes no gate: use it as model.preset=gpt-oss"),
        ({"kv_experts": "v8top2"}, "^kv_experts='v8top2': expected v-<experts>top<active>"),
    ],
)
def test_a_slip_in_an_argument_is_told_before_anything_is_built(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(**options)


def test_shapes_that_do_not_fit_are_told() -> None:
    attention, x_BTD = layer(), torch.randn(B, T, D)
    with pytest.raises(ValueError, match=rf"x_BTD of shape \(9, 16\): expected \[batch, tokens, d_model={D}\]"):
        attention(x_BTD[0])
    with pytest.raises(ValueError, match=r"context_BSD of shape \(2, 4, 8\): expected"):
        attention(x_BTD, context_BSD=torch.randn(B, 4, 8))
    with pytest.raises(ValueError, match=r"k of shapes \(2, 9, 4, 6\), \(3, 4, 2, 6\): expected"):
        attention(x_BTD, context_BSD=torch.randn(3, 4, D))
    with pytest.raises(ValueError, match="9 queries and no key"):
        attention(x_BTD, context_BSD=torch.randn(B, 0, D))
    with pytest.raises(ValueError, match=r"segment_ids_BT of shape \(9,\): expected a document number for each token"):
        attention(x_BTD, segment_ids_BT=torch.zeros(T))
    with pytest.raises(ValueError, match=r"segment_ids_BT of type torch.bool: expected the numbers of documents"):
        attention(x_BTD, segment_ids_BT=torch.zeros(len(x_BTD), T, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"keys of \(heads, channels\) = \(2, 6\), and the cache is for \(2, 8\)"):
        attention(x_BTD, cache=new_cache(head_dim=8))
    with pytest.raises(ValueError, match="layer 1 of a cache for 1 layers"):
        layer(layer=1)(x_BTD, cache=new_cache())
    with pytest.raises(ValueError, match=r"x_BTD is a list: expected a tensor, \[batch, tokens, d_model=16\]"):
        attention(x_BTD.tolist())
    with pytest.raises(ValueError, match="x_BTD is a NoneType: expected a tensor"):
        layer()(None)
    with pytest.raises(ValueError, match=r"is_token_BS is a list: expected a tensor of torch.bool, \(1, 2\)"):
        layer()(torch.randn(1, 2, D), is_token_BS=[[True, True]])
    with pytest.raises(ValueError, match="x_BTD is a ndarray: expected a tensor"):
        attention(x_BTD.numpy())
    with pytest.raises(ValueError, match=r"cache=3: expected a cache, such as KVCache"):
        attention(x_BTD, cache=3)
    for named in ({"x_BTD": x_BTD.long()}, {"x_BTD": x_BTD, "context_BSD": x_BTD.int()}):
        with pytest.raises(ValueError, match=r"BT?S?D of type torch.int\d+: expected hidden states in a floating type"):
            attention(**named)


class _Pair(torch.nn.Module):
    """Two layers of someone's model."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([layer(first_hidden_from=(1,), layer=i) for i in range(2)])

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        for attention in self.layers:
            x_BTD = x_BTD + attention(x_BTD)
        return x_BTD


@pytest.mark.parametrize("how", ["to_empty", "under a device", "assign"])
def test_a_hidden_first_key_is_hidden_in_a_model_that_was_built_on_the_meta_device(how: str) -> None:
    """No checkpoint holds which heads these are."""
    made, x_BTD = _Pair(), torch.randn(B, T, D)
    with torch.device("meta"):
        model = _Pair()
        if how == "under a device":
            model.to_empty(device="cpu")
    if how == "to_empty":
        model.to_empty(device="cpu")
    model.load_state_dict(made.state_dict(), assign=how == "assign")
    assert torch.equal(model(x_BTD), made(x_BTD))
    assert all(torch.equal(a.hidden_H, b.hidden_H) for a, b in zip(model.layers, made.layers, strict=True))
    assert model.double()(x_BTD.double()).dtype == torch.float64
