"""The attention layer: every gate runs, decoding equals the full pass, nothing sees what it may not."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from gatelab.config import ACTIVATIONS, SITES, ConfigError, GateSpec, SinkLogit, Softmax
from gatelab.nn.attention import GatedAttention
from gatelab.nn.cache import KVCache
from gatelab.nn.norm import Norm
from gatelab.nn.rope import Rope

B, T, D, H, G, K = 2, 9, 16, 4, 2, 6
SITE_SLUGS = [f"{site}-{SITES[site][2][0]}" for site in SITES]


def layer(gate: object = None, **options: object) -> GatedAttention:
    return GatedAttention(**{"d_model": D, "n_heads": H, "n_kv_heads": G, "head_dim": K, "gate": gate, **options})


def every_gate() -> list[str]:
    slugs = []
    for site, (_, _, granularities) in SITES.items():
        axes = (granularities, ("", "-shared"), ACTIVATIONS, ("", "-add"), ("", "-static", "-bias"))
        for granularity, sharing, activation, form, source in itertools.product(*axes):
            if not (site == "out" and sharing):
                slugs.append(f"{site}-{granularity}{sharing}-{activation}{form}{source}")
    return slugs


@pytest.mark.parametrize("site", SITES)
def test_every_gate_runs_forward_and_backward(site: str) -> None:
    x_BTD, upstream_BTD = torch.randn(2, B, T, D)
    slugs = [s for s in every_gate() if s.startswith(site)]
    assert len(slugs) == len(SITES[site][2]) * (1 if site == "out" else 2) * len(ACTIVATIONS) * 2 * 3
    for slug in slugs:
        attention = layer(slug)
        attention(x_BTD).backward(upstream_BTD)
        for name, parameter in attention.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), (slug, name)
            # Only the gate's own: one that starts at zero gives what it multiplies no gradient yet.
            assert parameter.grad.any() or "gates" not in name, (slug, name)


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


@pytest.mark.parametrize("softmax", [Softmax(), SinkLogit(init=0.7)], ids=lambda s: s.kind)
@pytest.mark.parametrize("gate", [None, *SITE_SLUGS, "+".join(SITE_SLUGS)])
@pytest.mark.parametrize("pieces", [(1,) * T, (4, 1, 1, 3)], ids=["one-by-one", "in-pieces"])
def test_decode_equals_full_forward(gate: str | None, softmax: Softmax, pieces: tuple[int, ...]) -> None:
    attention, x_BTD = layer(gate, softmax=softmax, qk_norm=True), torch.randn(B, T, D)
    cache = KVCache(n_layers=1, batch=B, max_seq_len=T, n_kv_heads=G, head_dim=K)
    # Room that was never written must not matter.
    cache.k_LBSGK.fill_(math.nan)
    cache.v_LBSGK.fill_(math.nan)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_norms_are_those_of_torch(dtype: torch.dtype, eps: float) -> None:
    x, weight, bias = torch.randn(3, 5, 8).to(dtype), torch.randn(8), torch.randn(8)
    rms, layer_norm = nn.RMSNorm(8, eps=eps, dtype=dtype), nn.LayerNorm(8, eps=eps, dtype=dtype)
    rms.weight.data = layer_norm.weight.data = weight.to(dtype)
    layer_norm.bias.data = bias.to(dtype)
    ours = {kind: Norm(8, kind, eps) for kind in ("rms", "rms-no-gain", "layer")}
    ours["rms"].weight.data = ours["layer"].weight.data = weight
    ours["layer"].bias.data = bias
    assert torch.equal(ours["rms"](x), rms(x)) and torch.equal(ours["layer"](x), layer_norm(x))
    wide = x.float()
    plain = wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt()
    torch.testing.assert_close(ours["rms-no-gain"](x), plain.to(dtype))
    assert not list(ours["rms-no-gain"].parameters())


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
        ({"gate": "sdpa-headwise+sdpa-elementwise"}, "one gate a site is the limit"),
        ({"gate": "spda-headwise"}, "no site 'spda'.*did you mean 'sdpa'"),
        ({"gate": "out-headwise"}, "out-headwise is impossible"),
        ({"qk_norm": "none"}, "qk_norm='none': expected False, True, 'rms' or 'rms-no-gain'"),
    ],
)
def test_an_impossible_layer_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(**options)


def test_errors_of_the_forward_pass() -> None:
    x_BTD = torch.randn(1, 3, D)
    cache = KVCache(n_layers=1, batch=1, max_seq_len=2, n_kv_heads=G, head_dim=K)
    with pytest.raises(ValueError, match="3 tokens do not fit into a cache for 2"):
        layer()(x_BTD, cache=cache)
    with pytest.raises(ValueError, match="segment_ids_BT and cache do not go together"):
        layer()(x_BTD, cache=cache, segment_ids_BT=torch.zeros(1, 3))
    with pytest.raises(ValueError, match="position 2 is past max_seq_len=2"):
        layer(max_seq_len=2)(x_BTD)
    with pytest.raises(ValueError, match="impl='triton': expected one of"):
        layer(impl="triton")(x_BTD)


def test_config_errors_are_value_errors() -> None:
    assert issubclass(ConfigError, ValueError)
