"""What a gate must satisfy, exactly: identities between gated layers, plain layers and each other."""

import pytest
import torch
from torch import Tensor, nn

from gatelab import GateSpec
from gatelab.config import SinkLogit
from gatelab.nn.attention import GatedAttention
from gatelab.ops.gate_apply import apply_gate
from gatelab.ops.gated_attention import gated_attention
from gatelab.ops.gated_attention.reference import attention_weights

B, T, D, H, G, K = 2, 7, 16, 4, 2, 6
PRODUCT_SITES = ("sdpa-headwise", "sdpa-elementwise", "value-headwise", "value-elementwise", "out-elementwise")


def layer(gate: str | None = None, **options: object) -> GatedAttention:
    torch.manual_seed(1)
    return GatedAttention(d_model=D, n_heads=H, n_kv_heads=G, head_dim=K, gate=gate, **options).double()


def with_gate(slug: str, plain: GatedAttention, logit: float | None = None) -> GatedAttention:
    """The same layer with a gate; with `logit`, one that says the same for every input."""
    gated = layer(slug)
    gated.load_state_dict(plain.state_dict(), strict=False)
    if logit is not None:
        (gate,) = gated.gates.values()
        nn.init.zeros_(gate.g_proj.weight)
        nn.init.constant_(gate.g_proj.bias, logit)
    return gated


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
@pytest.mark.parametrize("rest", ["", "-shared", "-silu-add", "-bias"])
def test_headwise_is_elementwise_with_repeated_weights(site: str, rest: str) -> None:
    x_BTD, headwise = hidden(), layer(f"{site}-headwise{rest}")
    elementwise = layer(f"{site}-elementwise{rest}")
    weights = headwise.state_dict()
    for name in list(weights):
        if "g_proj" in name:
            weights[name] = weights[name].repeat_interleave(K, dim=0)
    elementwise.load_state_dict(weights)
    torch.testing.assert_close(elementwise(x_BTD), headwise(x_BTD))


@pytest.mark.parametrize("granularity", ["headwise", "elementwise"])
def test_shared_scores_are_the_average_over_heads(granularity: str) -> None:
    spec = GateSpec.parse(f"sdpa-{granularity}-shared")
    width = K if granularity == "elementwise" else 1
    y_BTHK, logits_BTHK = torch.randn(B, T, H, K), torch.randn(B, T, H, width)
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
    P_BHTS = attention_weights(
        gated.rope(gated.q_proj(x_BTD).unflatten(-1, (H, K))),
        gated.rope(gated.k_proj(x_BTD).unflatten(-1, (G, K))),
        is_causal=True,
        mask_BTS=None,
        sink_logit_H=None,
    )[..., :-1]
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


def test_the_gate_rounds_once() -> None:
    y_BTHK, logits_BTHK = torch.randn(B, T, H, K).bfloat16(), torch.randn(B, T, H, K).bfloat16()
    found = apply_gate(y_BTHK, logits_BTHK, GateSpec.parse("sdpa-elementwise"))
    assert torch.equal(found, (y_BTHK.float() * logits_BTHK.float().sigmoid()).bfloat16())
