"""T5, from token ids to logits: relative biases, cross-attention, RMSNorm before each part, tied embeddings.

Layout: `encoder.block.0.layer.0.SelfAttention.q`; the decoder's layer 1 is cross-attention and its last one the MLP,
`wi` w1 and `wo` w2 (gated: `wi_0` w1, `wi_1` w3). The first block of a stack holds the bias table of all. T5 does not
divide logits by √K, so its q is ours divided by √K; where embeddings are tied it divides the decoder's output by √D,
which is a part of our final norm.
"""

from typing import Any

import pytest
import torch
from peers import Weights, assert_another, assert_close, assert_same, call, drawn, modeling, renamed
from torch import Tensor, nn

from gatelab.config import ModelConfig
from gatelab.models import model_class

V, D, H, K, F, N_ENCODER, N_DECODER = 23, 20, 3, 8, 28, 3, 2
# The far bucket begins at 128 tokens.
B, S, T = 2, 140, 135
EPS = 1e-5

NAMES = [
    ("shared", "embedding"),
    ("lm_head", "head"),
    (r"^(encoder|decoder)\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias", r"\1_relative.table"),
    (r"(\.\d+)\.layer\.0\.SelfAttention\.([qkvo])\.", r"\1.attention.\2_proj."),
    (r"(\.\d+)\.layer\.1\.EncDecAttention\.([qkvo])\.", r"\1.cross_attention.\2_proj."),
    (r"^(decoder\.block\.\d+)\.layer\.1\.layer_norm", r"\1.cross_norm"),
    (r"\.layer\.0\.layer_norm", ".attention_norm"),
    (r"\.layer\.[12]\.layer_norm", ".mlp_norm"),
    (r"\.layer\.[12]\.DenseReluDense\.wi(_0)?\.", ".mlp.w1."),
    (r"\.layer\.[12]\.DenseReluDense\.wi_1\.", ".mlp.w3."),
    (r"\.layer\.[12]\.DenseReluDense\.wo\.", ".mlp.w2."),
    (r"\.block\.", "_blocks."),
    (r"\.final_layer_norm", "_final_norm"),
    (r"^decoder_", ""),
]
# feed_forward_proj of T5, and ours.
MLPS = {"relu": "relu", "gelu": "gelu", "gated-silu": "swiglu"}


def theirs(mlp: str, *, is_tied: bool) -> nn.Module:
    code = modeling("t5")
    config = code.T5Config(
        vocab_size=V,
        d_model=D,
        d_kv=K,
        d_ff=F,
        num_layers=N_ENCODER,
        num_decoder_layers=N_DECODER,
        num_heads=H,
        feed_forward_proj=mlp,
        layer_norm_epsilon=EPS,
        tie_word_embeddings=is_tied,
        decoder_start_token_id=0,
        pad_token_id=0,
        attn_implementation="eager",
    )
    model = code.T5ForConditionalGeneration(config)
    if not is_tied:
        # T5 1.1 has a head of its own; here transformers leaves out the division by √D and ties it all the same.
        model.lm_head.weight = nn.Parameter(torch.empty(V, D))
    return drawn(model)


def ours(mlp: str, *, is_tied: bool) -> nn.Module:
    config = ModelConfig(
        arch="encoder-decoder",
        vocab_size=V,
        max_seq_len=S,
        d_model=D,
        n_layers=N_DECODER,
        n_encoder_layers=N_ENCODER,
        n_heads=H,
        head_dim=K,
        d_ff=F,
        mlp=MLPS[mlp],
        positions="relative",
        norm_eps=EPS,
        tied_embeddings=is_tied,
    )
    return model_class(config)(config.resolved(V, S))


def converted(weights: Weights, *, is_tied: bool) -> Weights:
    made = {n: w * K**0.5 if "q_proj" in n else w for n, w in renamed(weights, NAMES).items()}
    return made | ({"final_norm.weight": made["final_norm.weight"] * D**-0.5} if is_tied else {})


def tokens() -> tuple[Tensor, Tensor]:
    return torch.randint(V, (B, S)), torch.randint(V, (B, T))


@pytest.mark.parametrize("mlp", MLPS)
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_t5_is_our_encoder_decoder(mlp: str, is_tied: bool) -> None:
    model, (source_BS, target_BT) = theirs(mlp, is_tied=is_tied), tokens()
    weights = dict(model.named_parameters())
    expected_BTV = model(input_ids=source_BS, decoder_input_ids=target_BT).logits
    found_BTV = call(ours(mlp, is_tied=is_tied), converted(weights, is_tied=is_tied), source_BS, target_BT)
    assert_same(expected_BTV, found_BTV, weights)


def test_the_context_is_the_output_of_their_encoder() -> None:
    model, mine, (source_BS, _) = theirs("relu", is_tied=True), ours("relu", is_tied=True), tokens()
    mine.load_state_dict(converted(dict(model.named_parameters()), is_tied=True), strict=False)
    with torch.no_grad():
        expected_BSD = model.encoder(source_BS).last_hidden_state
        assert_close(expected_BSD, mine.encode(source_BS))


def test_target_by_target_our_decoder_gives_the_logits_of_theirs() -> None:
    model, mine, (source_BS, target_BT) = theirs("relu", is_tied=True), ours("relu", is_tied=True), tokens()
    mine.load_state_dict(converted(dict(model.named_parameters()), is_tied=True), strict=False)
    n_steps = 9
    with torch.no_grad():
        expected_BTV = model(input_ids=source_BS, decoder_input_ids=target_BT[:, :n_steps]).logits
        cache = mine.new_cache(B)
        found_BTV = torch.cat([mine(source_BS, target_BT[:, t : t + 1], cache=cache) for t in range(n_steps)], dim=1)
    assert_close(expected_BTV, found_BTV)


def unscaled(made: Weights) -> Weights:
    return {n: w / K**0.5 if "q_proj" in n else w for n, w in made.items()}


def with_the_others_bias(made: Weights) -> Weights:
    table, other = made["relative.table.weight"], made["encoder_relative.table.weight"]
    return made | {"relative.table.weight": other, "encoder_relative.table.weight": table}


def crossed(made: Weights) -> Weights:
    """Keys of cross-attention in the place of values."""
    return {n: made[n.replace("cross_attention.k_proj", "cross_attention.v_proj")] for n in made}


@pytest.mark.parametrize("changed", [unscaled, with_the_others_bias, crossed], ids=lambda f: f.__name__)
def test_another_reading_of_the_weights_is_another_model(changed: Any) -> None:
    model, (source_BS, target_BT) = theirs("relu", is_tied=True), tokens()
    expected_BTV = model(input_ids=source_BS, decoder_input_ids=target_BT).logits
    made = changed(converted(dict(model.named_parameters()), is_tied=True))
    found_BTV = call(ours("relu", is_tied=True), made, source_BS, target_BT)
    assert_another(expected_BTV, found_BTV)
