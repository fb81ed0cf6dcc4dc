"""What a gate must satisfy, exactly: identities between gated layers, plain layers and each other."""

import pytest
import torch
from torch import Tensor, nn

from gatelab import GateSpec
from gatelab.config import SinkLogit
from gatelab.nn.attention import GatedAttention
from gatelab.nn.gate import Gate
from gatelab.ops.gate_apply import apply_gate
from gatelab.ops.gated_attention import gated_attention
from gatelab.ops.gated_attention.reference import attention_weights

B, T, D, H, G, K = 2, 7, 16, 4, 2, 6
PRODUCT_SITES = ("sdpa-headwise", "sdpa-elementwise", "value-headwise", "value-elementwise", "out-elementwise")


def layer(gate: str | None = None, **options: object) -> GatedAttention:
    torch.manual_seed(1)
    return GatedAttention(
        **{"d_model": D, "n_heads": H, "n_kv_heads": G, "head_dim": K, "gate": gate, **options}
    ).double()


def with_gate(slug: str, plain: GatedAttention, logit: float | None = None, **options: object) -> GatedAttention:
    """The same layer with a gate; with `logit`, one that says the same for every input."""
    gated = layer(slug, **options)
    gated.load_state_dict(plain.state_dict(), strict=False)
    if logit is not None:
        nn.init.zeros_(only_gate(gated).g_proj.weight)
        nn.init.constant_(only_gate(gated).g_proj.bias, logit)
    return gated


def only_gate(attention: GatedAttention) -> Gate:
    (gate,) = attention.gates.values()
    return gate


def outputs(attention: GatedAttention, x_BTD: Tensor) -> Tensor:
    """y_BTHK, what W_O is given."""
    seen: list[Tensor] = []
    with attention.o_proj.register_forward_pre_hook(lambda _module, given: seen.append(given[0])):
        attention(x_BTD)
    return seen[0].unflatten(-1, (-1, attention.head_dim))


def hidden() -> Tensor:
    return torch.randn(B, T, D, dtype=torch.float64)


@pytest.mark.parametrize("slug", [*PRODUCT_SITES, "query-headwise", "query-elementwise", "key-headwise"])
def test_gate_open_equals_plain_attention(slug: str) -> None:
    x_BTD, plain = hidden(), layer()
    torch.testing.assert_close(with_gate(f"{slug}-bias", plain, logit=40.0)(x_BTD), plain(x_BTD))


@pytest.mark.parametrize("slug", PRODUCT_SITES)
def test_a_closed_gate_gives_zero(slug: str) -> None:
    closed = with_gate(f"{slug}-bias", layer(), logit=-800.0)
    assert torch.equal(closed(hidden()), torch.zeros(B, T, D, dtype=torch.float64))


@pytest.mark.parametrize("slug", ["query-headwise", "key-elementwise"])
def test_closed_queries_or_keys_attend_uniformly(slug: str) -> None:
    x_BTD, plain = hidden(), layer()
    v_BTGK = plain.v_proj(x_BTD).unflatten(-1, (G, K)).repeat_interleave(H // G, dim=2)
    mean_BTHK = v_BTGK.cumsum(1) / torch.arange(1, T + 1)[:, None, None]
    closed = with_gate(f"{slug}-bias", plain, logit=-800.0)
    torch.testing.assert_close(closed(x_BTD), plain.o_proj(mean_BTHK.flatten(2)))


@pytest.mark.parametrize("site", ["sdpa", "value", "key", "query"])
@pytest.mark.parametrize("rest", ["", "-silu-add", "-bias", "-first:5", "-rank=3"])
def test_headwise_is_elementwise_with_repeated_weights(site: str, rest: str) -> None:
    x_BTD, headwise = hidden(), layer(f"{site}-headwise{rest}")
    elementwise = layer(f"{site}-elementwise{rest}")
    weights = headwise.state_dict()
    for name in list(weights):
        if "g_proj" in name:
            weights[name] = weights[name].repeat_interleave(K, dim=0)
    elementwise.load_state_dict(weights)
    torch.testing.assert_close(elementwise(x_BTD), headwise(x_BTD))


def test_shared_scores_are_the_average_over_heads() -> None:
    spec = GateSpec.parse("sdpa-elementwise-shared")
    y_BTHK, logits_BTHK = torch.randn(B, T, H, K), torch.randn(B, T, H, K)
    mean_BTK = logits_BTHK.sigmoid().mean(dim=2)
    torch.testing.assert_close(apply_gate(y_BTHK, logits_BTHK, spec), y_BTHK * mean_BTK[:, :, None])


def test_shared_equals_specific_when_all_heads_agree() -> None:
    x_BTD, shared = hidden(), layer("sdpa-elementwise-shared")
    weight = shared.gates["sdpa"].g_proj.weight
    weight.data = weight.data[:K].repeat(H, 1)
    specific = layer("sdpa-elementwise")
    specific.load_state_dict(shared.state_dict())
    torch.testing.assert_close(shared(x_BTD), specific(x_BTD))


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_a_sink_logit_is_the_headwise_gate_sigmoid_of_lse_minus_s(impl: str) -> None:
    x_BTD, plain = hidden(), layer(impl=impl)
    control = layer(softmax=SinkLogit(), impl=impl)
    control.load_state_dict(plain.state_dict(), strict=False)
    control.sink.sink_logit_H.data = torch.tensor([-1.0, 0.5, 2.0, 4.0], dtype=torch.float64)
    q_BTHK = plain.rope(plain.q_proj(x_BTD).unflatten(-1, (H, K)))
    k_BTHK = plain.rope(plain.k_proj(x_BTD).unflatten(-1, (G, K))).repeat_interleave(H // G, dim=2)
    logits_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK, k_BTHK) / K**0.5
    lse_BHT = logits_BHTS.masked_fill(~torch.ones(T, T).tril().bool(), -torch.inf).logsumexp(-1)
    gate_BTH1 = (lse_BHT - control.sink.sink_logit_H[:, None]).sigmoid().transpose(1, 2)[..., None]
    y_BTHK = gated_attention(q_BTHK, k_BTHK, plain.v_proj(x_BTD).unflatten(-1, (G, K)).repeat_interleave(H // G, dim=2))
    expected = plain.o_proj((y_BTHK * gate_BTH1).flatten(2))
    torch.testing.assert_close(control(x_BTD), expected)


def test_a_sink_logit_far_below_is_the_plain_softmax() -> None:
    x_BTD, plain = hidden(), layer()
    control = layer(softmax=SinkLogit(init=-800.0))
    control.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(control(x_BTD), plain(x_BTD))


def test_a_static_gate_is_one_number_a_head_or_channel() -> None:
    x_BTD, plain = hidden(), layer()
    static = with_gate("sdpa-headwise-static", plain)
    assert [tuple(p.shape) for p in static.gates.parameters()] == [(H, 1)]
    static.gates["sdpa"].constant_HK.data = torch.linspace(-2, 2, H, dtype=torch.float64)[:, None]
    narrowed = layer()
    narrowed.load_state_dict(plain.state_dict())
    scores = static.gates["sdpa"].constant_HK.detach().sigmoid().repeat_interleave(K, dim=0)[:, 0]
    narrowed.o_proj.weight.data *= scores
    torch.testing.assert_close(static(x_BTD), narrowed(x_BTD))


def test_a_value_gate_that_is_constant_commutes_with_attention() -> None:
    """With as many kv heads as heads, scaling all values of a head scales its output."""
    x_BTD = hidden()
    options = {"d_model": D, "n_heads": H, "head_dim": K}
    torch.manual_seed(1)
    at_value = GatedAttention(**options, gate="value-elementwise-static").double()
    at_output = GatedAttention(**options, gate="sdpa-elementwise-static").double()
    at_value.gates["value"].constant_HK.data.normal_()
    weights = {n.replace("gates.value", "gates.sdpa"): w for n, w in at_value.state_dict().items()}
    at_output.load_state_dict(weights)
    torch.testing.assert_close(at_value(x_BTD), at_output(x_BTD))


def test_a_value_gate_reads_the_token_whose_value_it_scales() -> None:
    x_BTD, gated = hidden(), layer("value-headwise")
    P_BHTS, _ = attention_weights(
        gated.rope(gated.q_proj(x_BTD).unflatten(-1, (H, K))), gated.rope(gated.k_proj(x_BTD).unflatten(-1, (G, K)))
    )
    score_BTG1 = gated.gates["value"].g_proj(x_BTD).sigmoid()[..., None]
    v_BSHK = (gated.v_proj(x_BTD).unflatten(-1, (G, K)) * score_BTG1).repeat_interleave(H // G, dim=2)
    expected = gated.o_proj(torch.einsum("bhts,bshk->bthk", P_BHTS, v_BSHK).flatten(2))
    torch.testing.assert_close(gated(x_BTD), expected)


def test_the_out_gate_follows_the_output_projection() -> None:
    x_BTD, plain = hidden(), layer()
    gated = with_gate("out-elementwise", plain)
    torch.testing.assert_close(gated(x_BTD), plain(x_BTD) * gated.gates["out"].g_proj(x_BTD).sigmoid())


def test_an_added_gate_needs_no_attention() -> None:
    spec = GateSpec.parse("sdpa-elementwise-silu-add")
    y_BTHK, logits_BTHK = torch.randn(B, T, H, K), torch.randn(B, T, H, K)
    torch.testing.assert_close(apply_gate(y_BTHK, logits_BTHK, spec), y_BTHK + nn.functional.silu(logits_BTHK))


@pytest.mark.parametrize("slug", [*PRODUCT_SITES, "query-headwise", "key-elementwise", "sdpa-elementwise-shared"])
@pytest.mark.parametrize("form", ["", "-silu-add"])
def test_static_is_zero_weights_and_a_bias(slug: str, form: str) -> None:
    x_BTD, plain = hidden(), layer()
    static, biased = with_gate(f"{slug}{form}-static", plain), with_gate(f"{slug}{form}-bias", plain, logit=0.0)
    nn.init.normal_(only_gate(static).constant_HK)
    only_gate(biased).g_proj.bias.data = only_gate(static).constant_HK.data.flatten()
    torch.testing.assert_close(static(x_BTD), biased(x_BTD))
    assert not torch.allclose(static(x_BTD), plain(x_BTD))


@pytest.mark.parametrize("granularity", ["elementwise", "headwise"])
def test_adding_the_identity_is_a_skip_from_the_input_into_the_output_projection(granularity: str) -> None:
    x_BTD, plain = hidden(), layer()
    added = with_gate(f"sdpa-{granularity}-identity-add", plain)
    skip_BTHK = (x_BTD @ only_gate(added).g_proj.weight.mT).unflatten(-1, (H, -1)).expand(-1, -1, -1, K)
    torch.testing.assert_close(added(x_BTD), plain(x_BTD) + skip_BTHK.flatten(2) @ plain.o_proj.weight.mT)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_gates_on_weights_and_on_values_are_one_where_the_heads_of_a_group_agree(n_kv_heads: int) -> None:
    """Which they always do where each head has its own values."""
    x_BTD, at_value = hidden(), layer("value-headwise", n_kv_heads=n_kv_heads)
    at_scores = with_gate("scores-headwise", at_value, n_kv_heads=n_kv_heads)
    of_heads_HD = only_gate(at_scores).g_proj.weight
    of_heads_HD.data = only_gate(at_value).g_proj.weight.detach().repeat_interleave(H // n_kv_heads, dim=0)
    torch.testing.assert_close(at_scores(x_BTD), at_value(x_BTD))
    if n_kv_heads < H:
        # One head of a group now says something else, which no gate on the shared values can.
        nn.init.normal_(of_heads_HD[1])
        values_BTHK, scores_BTHK = outputs(at_value, x_BTD), outputs(at_scores, x_BTD)
        torch.testing.assert_close(scores_BTHK[:, :, 0], values_BTHK[:, :, 0])
        assert not torch.allclose(scores_BTHK[:, :, 1], values_BTHK[:, :, 1])


def test_first_channels_are_the_hidden_state_without_the_others() -> None:
    x_BTD, whole = hidden(), layer("sdpa-elementwise")
    assert torch.equal(with_gate(f"sdpa-elementwise-first:{D}", whole)(x_BTD), whole(x_BTD))
    first = layer("sdpa-elementwise-first:3")
    cut = with_gate("sdpa-elementwise", layer())
    cut.gates["sdpa"].g_proj.weight.data = nn.functional.pad(first.gates["sdpa"].g_proj.weight.data, (0, D - 3))
    cut.load_state_dict({n: w for n, w in first.state_dict().items() if "g_proj" not in n}, strict=False)
    torch.testing.assert_close(first(x_BTD), cut(x_BTD))


@pytest.mark.parametrize("slug", [*PRODUCT_SITES, "key-elementwise", "query-headwise", "scores-headwise"])
def test_low_rank_is_the_product_of_its_factors(slug: str) -> None:
    x_BTD, plain = hidden(), layer()
    low, full = with_gate(f"{slug}-rank=3", plain), with_gate(slug, plain)
    gate = only_gate(low)
    only_gate(full).g_proj.weight.data = gate.g_proj.weight.data @ gate.g_down.weight.data
    torch.testing.assert_close(low(x_BTD), full(x_BTD))


def test_an_mlp_is_a_layer_of_relus_before_the_projection() -> None:
    x_BTD, plain = hidden(), layer()
    deep = with_gate("out-elementwise-mlp=5-bias", plain)
    w1, b1, w2, b2 = (p.detach() for p in only_gate(deep).parameters())
    assert [tuple(p.shape) for p in (w1, b1, w2, b2)] == [(5, D), (5,), (D, 5), (D,)]
    logits_BTD = (x_BTD @ w1.mT + b1).clamp(min=0) @ w2.mT + b2
    torch.testing.assert_close(deep(x_BTD), plain(x_BTD) * logits_BTD.sigmoid())


@pytest.mark.parametrize(
    "slug", ["sdpa-elementwise", "sdpa-headwise", "value-elementwise", "key-headwise", "scores-headwise"]
)
def test_a_slice_a_head_is_a_block_diagonal_projection(slug: str) -> None:
    x_BTD, plain = hidden(), layer()
    sliced, full = with_gate(f"{slug}-head_slice", plain), with_gate(slug, plain)
    only_gate(full).g_proj.weight.data = torch.block_diag(*only_gate(sliced).g_proj.weight.data)
    torch.testing.assert_close(sliced(x_BTD), full(x_BTD))


@pytest.mark.parametrize("slug", ["sdpa-elementwise", "sdpa-headwise", "value-elementwise", "value-headwise"])
def test_a_gate_that_reads_the_values_has_their_projection_folded_in(slug: str) -> None:
    x_BTD, plain = hidden(), layer()
    of_value, of_hidden = with_gate(f"{slug}-value", plain), with_gate(slug, plain)
    only_gate(of_hidden).g_proj.weight.data = only_gate(of_value).g_proj.weight.data @ plain.v_proj.weight.data
    torch.testing.assert_close(of_value(x_BTD), of_hidden(x_BTD))


def test_a_gate_that_reads_the_values_reads_them_as_they_are_before_their_gate() -> None:
    x_BTD, both = hidden(), layer("sdpa-elementwise-value+value-headwise")
    other = layer("sdpa-elementwise+value-headwise")
    weights = both.state_dict()
    weights["gates.sdpa.g_proj.weight"] = weights["gates.sdpa.g_proj.weight"] @ both.v_proj.weight.data
    other.load_state_dict(weights)
    torch.testing.assert_close(both(x_BTD), other(x_BTD))


@pytest.mark.parametrize("granularity", ["elementwise", "headwise"])
def test_hybrid_is_hidden_and_output_added(granularity: str) -> None:
    x_BTD, plain = hidden(), layer()
    hybrid = with_gate(f"sdpa-{granularity}-hybrid", plain)
    of_x, of_y = only_gate(hybrid).g_proj.weight.data.split([D, H * K], dim=1)
    y_BTHK = outputs(plain, x_BTD)
    logits_BTHK = (x_BTD @ of_x.mT + y_BTHK.flatten(2) @ of_y.mT).unflatten(-1, (H, -1))
    torch.testing.assert_close(outputs(hybrid, x_BTD), y_BTHK * logits_BTHK.sigmoid())


@pytest.mark.parametrize(("source", "zero"), [("hidden", slice(D, None)), ("output", slice(0, D))])
def test_hybrid_with_zeros_on_one_block_is_the_other_source(source: str, zero: slice) -> None:
    x_BTD, plain = hidden(), layer()
    hybrid, one = with_gate("sdpa-elementwise-hybrid", plain), with_gate(f"sdpa-elementwise-{source}", plain)
    weight = only_gate(hybrid).g_proj.weight.data
    weight[:, zero] = 0
    only_gate(one).g_proj.weight.data = weight[:, :D] if source == "hidden" else weight[:, D:]
    torch.testing.assert_close(hybrid(x_BTD), one(x_BTD))


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_a_gate_on_the_log_sum_exp_is_a_sink_logit(impl: str) -> None:
    x_BTD, sink = hidden(), layer(softmax=SinkLogit(), impl=impl)
    nn.init.normal_(sink.sink.sink_logit_H)
    gated = layer("sdpa-headwise-lse", impl=impl)
    gated.load_state_dict({n: w for n, w in sink.state_dict().items() if "sink" not in n}, strict=False)
    only_gate(gated).constant_HK.data = -sink.sink.sink_logit_H.data[:, None]
    torch.testing.assert_close(gated(x_BTD), sink(x_BTD))


@pytest.mark.parametrize("gate", [None, "value-headwise"])
def test_what_xsa_gives_is_orthogonal_to_the_value_of_the_query_s_token(gate: str | None) -> None:
    x_BTD, plain, exclusive = hidden(), layer(gate), layer(gate, output_map="xsa", norm_eps=1e-30)
    values: list[Tensor] = []
    exclusive.tap_v.register_forward_hook(lambda _module, _given, v: values.append(v))
    y_BTHK = outputs(exclusive, x_BTD)
    v_BTHK = values[0].repeat_interleave(H // G, dim=2)
    assert (y_BTHK * v_BTHK).sum(-1).abs().max() < 1e-12
    before_BTHK = outputs(plain, x_BTD)
    share_BTH1 = (before_BTHK * v_BTHK).sum(-1, keepdim=True) / v_BTHK.square().sum(-1, keepdim=True)
    torch.testing.assert_close(y_BTHK + share_BTH1 * v_BTHK, before_BTHK)


def test_the_other_maps_are_their_formulas() -> None:
    x_BTD, plain = hidden(), layer()
    y_BTHK, rms_BTHK = outputs(plain, x_BTD), outputs(layer(output_map="rms", norm_eps=1e-30), x_BTD)
    torch.testing.assert_close(rms_BTHK.square().mean(-1), torch.ones(B, T, H, dtype=torch.float64))
    torch.testing.assert_close(rms_BTHK, y_BTHK / y_BTHK.norm(dim=-1, keepdim=True) * K**0.5)
    torch.testing.assert_close(outputs(layer(output_map="silu"), x_BTD), nn.functional.silu(y_BTHK))


def test_a_map_comes_before_the_gate() -> None:
    x_BTD, mapped = hidden(), layer(output_map="rms")
    gated = with_gate("sdpa-headwise", mapped, output_map="rms")
    score_BTH1 = only_gate(gated).g_proj(x_BTD).sigmoid()[..., None]
    torch.testing.assert_close(outputs(gated, x_BTD), outputs(mapped, x_BTD) * score_BTH1)


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_forgetting_nothing_is_plain_attention_and_a_constant_share_is_a_bias_by_distance(impl: str) -> None:
    x_BTD, plain = hidden(), layer(impl=impl)
    forgets = with_gate("scores-headwise-forget-static", plain, impl=impl)
    only_gate(forgets).constant_HK.data.fill_(40.0)
    torch.testing.assert_close(forgets(x_BTD), plain(x_BTD))
    theta_H = torch.linspace(-1, 2, H, dtype=torch.float64)
    only_gate(forgets).constant_HK.data = theta_H[:, None]
    distance_TS = torch.arange(T)[:, None] - torch.arange(T)
    bias_BHTS = (theta_H.sigmoid().log()[:, None, None] * distance_TS)[None]
    torch.testing.assert_close(forgets(x_BTD), plain(x_BTD, bias_BHTS=bias_BHTS))


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
@pytest.mark.parametrize("form", ["add", "forget"])
def test_a_gate_on_the_logits_is_a_bias_of_the_key(form: str, impl: str) -> None:
    x_BTD, plain = hidden(), layer(impl=impl)
    gated = with_gate(f"scores-headwise-{form}", plain, impl=impl)
    score_BHT = only_gate(gated).g_proj(x_BTD).sigmoid().mT
    if form == "add":
        bias_BHTS = score_BHT[:, :, None].expand(-1, -1, T, -1)
    else:
        # What is kept on the way from key s to query t, the key's own share not counted.
        steps = [[score_BHT[:, :, s + 1 : t + 1].prod(-1) for s in range(T)] for t in range(T)]
        bias_BHTS = torch.stack([torch.stack(row, -1) for row in steps], -2).log()
    torch.testing.assert_close(gated(x_BTD), plain(x_BTD, bias_BHTS=bias_BHTS.detach()))


def test_a_window_of_one_sees_the_own_value_alone() -> None:
    x_BTD, narrow = hidden(), layer(window=1)
    v_BTHK = narrow.v_proj(x_BTD).unflatten(-1, (G, K)).repeat_interleave(H // G, dim=2)
    torch.testing.assert_close(narrow(x_BTD), narrow.o_proj(v_BTHK.flatten(2)))


def test_in_cross_attention_a_gate_reads_the_side_that_it_belongs_to() -> None:
    slugs = [f"{site}-headwise" for site in ("sdpa", "value", "key", "query", "scores")] + ["out-elementwise"]
    crossing = layer("+".join(slugs), rope_theta=None, window=2)
    x_BTD, context_BSD = hidden(), torch.randn(B, 5, D, dtype=torch.float64)

    def score(site: str, source: Tensor, heads: int = H) -> Tensor:
        per_head = crossing.gates[site].g_proj(source).sigmoid()
        return per_head.repeat_interleave(heads // per_head.shape[-1], dim=-1)[..., None]

    q_BTHK = crossing.q_proj(x_BTD).unflatten(-1, (H, K)) * score("query", x_BTD)
    k_BSHK, v_BSHK = (
        p(context_BSD).unflatten(-1, (G, K)).repeat_interleave(H // G, dim=2) * score(site, context_BSD)
        for p, site in ((crossing.k_proj, "key"), (crossing.v_proj, "value"))
    )
    # Every query sees the whole context, whatever the window.
    P_BHTS = (torch.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK) / K**0.5).softmax(-1)
    P_BHTS = P_BHTS * score("scores", context_BSD).permute(0, 2, 3, 1)
    y_BTHK = torch.einsum("bhts,bshk->bthk", P_BHTS, v_BSHK) * score("sdpa", x_BTD)
    expected_BTD = crossing.o_proj(y_BTHK.flatten(2)) * score("out", x_BTD, D).squeeze(-1)
    torch.testing.assert_close(crossing(x_BTD, context_BSD=context_BSD), expected_BTD)


def test_the_gate_rounds_once() -> None:
    y_BTHK, logits_BTHK = torch.randn(B, T, H, K).bfloat16(), torch.randn(B, T, H, K).bfloat16()
    found = apply_gate(y_BTHK, logits_BTHK, GateSpec.parse("sdpa-elementwise"))
    assert torch.equal(found, (y_BTHK.float() * logits_BTHK.float().sigmoid()).bfloat16())
