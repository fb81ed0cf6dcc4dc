"""Soft-capped logits: c·tanh(z/c) before anything is added, as Gemma 2 has it, and whoever cannot do it says so."""

import math
import re

import pytest
import torch
from torch import Tensor

from gatelab.config import SinkLogit
from gatelab.nn.attention import GatedAttention
from gatelab.nn.cache import KVCache
from gatelab.nn.watch import Watch
from gatelab.ops.gated_attention import attention_weights, gated_attention
from gatelab.probes.capture import capture

B, T, D, H, G, K, CAP = 2, 7, 8, 4, 2, 6, 1.5


def layer(gate: str | None = None, **options: object) -> GatedAttention:
    fields = {"softcap": CAP, **options}
    return GatedAttention(d_model=D, n_heads=H, n_kv_heads=G, head_dim=K, gate=gate, **fields).double()


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    return tuple(3 * torch.randn(B, T, heads, K, dtype=torch.float64, requires_grad=True) for heads in (H, G, G))


def capped(q: Tensor, k: Tensor, v: Tensor, bias_BHTS: Tensor) -> Tensor:
    """Row by row, with the keys that a query sees alone."""
    out = torch.zeros(B, T, H, K, dtype=torch.float64)
    for b, t, h in ((b, t, h) for b in range(B) for t in range(T) for h in range(H)):
        z_S = k[b, : t + 1, h // (H // G)] @ q[b, t, h] / math.sqrt(K)
        weights_S = (CAP * torch.tanh(z_S / CAP) + bias_BHTS[b, h, t, : t + 1]).softmax(dim=-1)
        out[b, t, h] = weights_S @ v[b, : t + 1, h // (H // G)]
    return out


def test_the_op_is_the_formula_with_its_gradients() -> None:
    given, upstream = drawn(), torch.randn(B, T, H, K, dtype=torch.float64)
    bias_BHTS = torch.randn(B, H, T, T, dtype=torch.float64)
    found = gated_attention(*given, bias_BHTS=bias_BHTS, softcap=CAP)
    expected = capped(*given, bias_BHTS)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    for pair in zip(*(torch.autograd.grad((y * upstream).sum(), given) for y in (found, expected)), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-11, atol=1e-12)
    assert not torch.allclose(found, gated_attention(*given, bias_BHTS=bias_BHTS))


def test_a_wide_cap_is_none() -> None:
    given = drawn()
    torch.testing.assert_close(gated_attention(*given, softcap=1e7), gated_attention(*given), rtol=1e-10, atol=1e-11)


def test_it_is_the_layer_of_gemma_2() -> None:
    released = pytest.importorskip("transformers.models.gemma2.modeling_gemma2")
    config = released.Gemma2Config(
        hidden_size=D, num_attention_heads=H, num_key_value_heads=G, head_dim=K, query_pre_attn_scalar=K,
        attn_logit_softcapping=CAP, max_position_embeddings=T, attn_implementation="eager", num_hidden_layers=2,
        sliding_window=T + 1, intermediate_size=8, vocab_size=8, attention_dropout=0.0,
    )  # fmt: skip
    theirs, ours = released.Gemma2Attention(config, layer_idx=1).double(), layer()
    ours.load_state_dict(theirs.state_dict())
    x_BTD = 10 * torch.randn(B, T, D, dtype=torch.float64)
    cos_sin = released.Gemma2RotaryEmbedding(config)(x_BTD, torch.arange(T)[None])
    hidden_TT = torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1)
    expected_BTD, _ = theirs(x_BTD, position_embeddings=cos_sin, attention_mask=hidden_TT[None, None])
    torch.testing.assert_close(ours(x_BTD), expected_BTD, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gate", [None, "sdpa-headwise-lse", "scores-headwise-forget"])
@pytest.mark.parametrize("options", [{}, {"softmax": SinkLogit(), "window": 3}, {"dropout": 0.2}], ids=str)
def test_it_decodes_as_the_whole(gate: str | None, options: dict[str, object]) -> None:
    attention, x_BTD = layer(gate, **options).eval(), 5 * torch.randn(B, T, D, dtype=torch.float64)
    sizes = {"batch": B, "max_seq_len": T, "n_kv_heads": G, "head_dim": K, "n_score_heads": H}
    cache, out = KVCache(n_layers=1, dtype=torch.float64, **sizes), []
    with torch.no_grad():
        for piece_BTD in x_BTD.split((3, 1, 1, 2), dim=1):
            out.append(attention(piece_BTD, cache=cache))
            cache.advance(piece_BTD.shape[1])
        torch.testing.assert_close(torch.cat(out, dim=1), attention(x_BTD))


def test_padding_and_a_hidden_first_key_stay_hidden() -> None:
    """What hides is added after the cap, which would have made it small."""
    attention, x_BTD = layer(first_hidden_from=range(H)), torch.randn(1, T, D, dtype=torch.float64)
    other_BTD = torch.cat([torch.randn(1, 3, D, dtype=torch.float64), x_BTD[:, 3:]], dim=1)
    is_token_BS = torch.arange(T)[None] >= 2
    assert torch.equal(
        attention(other_BTD, is_token_BS=is_token_BS)[:, 3:], attention(x_BTD, is_token_BS=is_token_BS)[:, 3:]
    )


def test_a_watch_has_no_number() -> None:
    watch = Watch()
    layer()(torch.randn(1, T, D, dtype=torch.float64), watch=watch)
    assert watch.first_mass_BH[0].isnan().all()


def test_what_does_not_fit_is_told() -> None:
    for impl in ("sdpa", "flash", "short"):
        with pytest.raises(ValueError, match=rf"impl='{impl}' caps no logits, and softcap=1.5 came; take reference or"):
            layer(impl=impl)
        with pytest.raises(ValueError, match=rf"impl='{impl}' caps no logits, and softcap=1.5 came; take"):
            gated_attention(*drawn(), softcap=CAP, impl=impl)
    for cap in (0.0, -1.0, math.inf, math.nan, 1e300, 1e-300, True, "50"):
        with pytest.raises(ValueError, match=rf"softcap={re.escape(repr(cap))}: expected the bound of the logits"):
            layer(softcap=cap)
        with pytest.raises(ValueError, match=rf"softcap={re.escape(repr(cap))}: expected the bound of the logits"):
            gated_attention(*drawn(), softcap=cap)


def test_probes_see_capped_weights() -> None:
    attention, x_BTD = layer(rope_theta=None).float(), 10 * torch.randn(1, T, D)
    with capture(attention, ["sinks"]) as recorder:
        attention(x_BTD)
    (found,) = (r.value for r in recorder.rows() if r.metric == "first_token_mass" and r.layer is None)
    q_BTHK, k_BSGK = attention.q_proj(x_BTD).unflatten(-1, (H, K)), attention.k_proj(x_BTD).unflatten(-1, (G, K))
    weights_BHTS, _ = attention_weights(q_BTHK, k_BSGK, softcap=CAP)
    uncapped_BHTS, _ = attention_weights(q_BTHK, k_BSGK)
    assert found == pytest.approx(weights_BHTS[:, :, 1:, 0].mean().item(), rel=1e-5)
    assert found != pytest.approx(uncapped_BHTS[:, :, 1:, 0].mean().item(), rel=1e-2)
