"""Encoders: BERT's stack (LayerNorm after each part, biases, exact GELU), and EuroBERT from token ids to logits.

Layout: BERT's `layer.0.attention.self.query`, `attention.output`, `intermediate.dense` w1, `output.dense` w2. BERT norms
the sum of its embeddings, which no model of ours does, so its stack is compared from the same hidden state. EuroBERT has
Llama's layout: RMSNorm before each part, rotary positions, grouped queries.
"""

import torch
from peers import LLAMA, Weights, assert_another, assert_same, call, drawn, hidden, modeling, renamed
from torch import Tensor, nn

from gatelab.config import ModelConfig
from gatelab.models import model_class
from gatelab.models.block import Pass

B, T, V, D, L, H, G, K, F = 2, 11, 19, 24, 2, 4, 2, 8, 28
EPS, THETA = 1e-5, 100.0

BERT = [
    (r"^layer", "blocks"),
    (r"attention\.self\.query", "attention.q_proj"),
    (r"attention\.self\.key", "attention.k_proj"),
    (r"attention\.self\.value", "attention.v_proj"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"attention\.output\.LayerNorm", "attention_post_norm"),
    (r"intermediate\.dense", "mlp.w1"),
    (r"output\.dense", "mlp.w2"),
    (r"output\.LayerNorm", "mlp_post_norm"),
]


class Stack(nn.Module):
    """The blocks of an encoder and nothing around them."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.blocks = model_class(config)(config.resolved(V, T)).blocks

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        for block in self.blocks:
            x_BTD = block(x_BTD, Pass())
        return x_BTD


def bert() -> nn.Module:
    code = modeling("bert")
    config = code.BertConfig(
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=H,
        intermediate_size=F,
        hidden_act="gelu",
        layer_norm_eps=EPS,
        attn_implementation="sdpa",
    )
    return drawn(code.BertEncoder(config))


def our_bert() -> Stack:
    config = ModelConfig(
        arch="encoder",
        vocab_size=V,
        max_seq_len=T,
        d_model=D,
        n_layers=L,
        n_heads=H,
        d_ff=F,
        norm="layer",
        norm_position="post",
        norm_eps=EPS,
        positions="learned",
        mlp="gelu",
        bias=True,
    )
    return Stack(config)


def test_the_stack_of_bert_is_ours() -> None:
    stack, x_BTD = bert(), hidden(B, T, D)
    weights: Weights = dict(stack.named_parameters())
    expected_BTD = stack(x_BTD).last_hidden_state
    found_BTD = call(our_bert(), renamed(weights, BERT), x_BTD)
    assert_same(expected_BTD, found_BTD, {"x": x_BTD, **weights})


def test_norms_in_one_anothers_place_are_another_stack() -> None:
    stack, x_BTD = bert(), hidden(B, T, D)
    made = renamed(dict(stack.named_parameters()), BERT)
    swapped = {
        n: made[n.replace("attention_post", "?").replace("mlp_post", "attention_post").replace("?", "mlp_post")]
        for n in made
    }
    expected_BTD, found_BTD = stack(x_BTD).last_hidden_state, call(our_bert(), swapped, x_BTD)
    assert_another(expected_BTD, found_BTD)


def eurobert() -> nn.Module:
    code = modeling("eurobert")
    config = code.EuroBertConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=H,
        num_key_value_heads=G,
        head_dim=K,
        intermediate_size=F,
        rms_norm_eps=EPS,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        pad_token_id=None,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    return drawn(code.EuroBertForMaskedLM(config))


def our_eurobert(arch: str) -> nn.Module:
    config = ModelConfig(
        arch=arch,
        vocab_size=V,
        max_seq_len=T,
        d_model=D,
        n_layers=L,
        n_heads=H,
        n_kv_heads=G,
        head_dim=K,
        d_ff=F,
        norm_eps=EPS,
        rope_theta=THETA,
    )
    return model_class(config)(config.resolved(V, T))


def test_eurobert_is_our_encoder_and_not_our_decoder() -> None:
    model, tokens_BT = eurobert(), torch.randint(V, (B, T))
    weights: Weights = dict(model.named_parameters())
    expected_BTV, made = model(tokens_BT).logits, renamed(weights, LLAMA)
    assert_same(expected_BTV, call(our_eurobert("encoder"), made, tokens_BT), weights)
    causal_BTV = call(our_eurobert("decoder"), made, tokens_BT)
    assert_another(expected_BTV, causal_BTV)
