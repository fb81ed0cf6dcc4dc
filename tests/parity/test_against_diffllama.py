"""DiffLlama, a whole decoder with differential attention (arXiv 2410.05258), against our `Differential`.

Layout: heads h and h + H/2 are a pair in both. The pair's output is norm(P_h − λ P_{h+H/2}) of both heads' values: its 2K
channels lie side by side in transformers, pair after pair, and ours leaves each head its K, so the columns of `o_proj`
are permuted. Its norm has no gain (ours is 1), and `rms_norm_eps` for eps, where ours is 10⁻⁵ as in the paper's code.
Both compute λ₀ from the layer's index, so two layers are compared.
"""

import pytest
import torch
from peers import LLAMA, Weights, assert_another, assert_same, call, drawn, modeling, renamed
from torch import Tensor, nn

from gatelab.config import ModelConfig
from gatelab.config.normaliser import Differential
from gatelab.models import model_class

B, T, V, D, L, K, F = 2, 11, 19, 24, 2, 8, 20
# Pairs that share their values, two or four, and pairs that do not.
heads = pytest.mark.parametrize("n_heads, n_kv_heads", [(4, 2), (8, 4), (4, 4)])

NAMES = [*LLAMA, (r"attention\.lambda_([qk]\d)", r"attention.sink.lambda_\1_K")]


def theirs(n_heads: int, n_kv_heads: int) -> nn.Module:
    code = modeling("diffllama")
    config = code.DiffLlamaConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        head_dim=K,
        intermediate_size=F,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        pad_token_id=None,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    model = drawn(code.DiffLlamaForCausalLM(config))
    for name, weight in model.named_parameters():
        if "lambda" in name:
            # Eight products of standard normal numbers would make an e³ of λ now and then.
            nn.init.normal_(weight, std=0.4)
    return model


def ours(n_heads: int, n_kv_heads: int) -> nn.Module:
    config = ModelConfig(
        vocab_size=V,
        max_seq_len=T,
        d_model=D,
        n_layers=L,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=K,
        d_ff=F,
        norm_eps=1e-5,
        rope_theta=100.0,
        softmax=Differential(),
    )
    return model_class(config)(config.resolved(V, T))


def in_our_order(o_DN: Tensor, n_heads: int) -> Tensor:
    """Columns [H/2, 2, K] as [2, H/2, K]."""
    return o_DN.unflatten(1, (n_heads // 2, 2, K)).transpose(1, 2).flatten(1)


def converted(weights: Weights, n_heads: int) -> Weights:
    made = renamed(weights, NAMES)
    made = {n: in_our_order(w, n_heads) if "o_proj" in n else w for n, w in made.items()}
    gains = {f"blocks.{i}.attention.sink.gain_2K": torch.ones(2 * K) for i in range(L)}
    return made | gains


@heads
def test_diffllama_is_our_decoder_with_differential_attention(n_heads: int, n_kv_heads: int) -> None:
    model, tokens_BT = theirs(n_heads, n_kv_heads), torch.randint(V, (B, T))
    weights = dict(model.named_parameters())
    expected_BTV = model(tokens_BT).logits
    found_BTV = call(ours(n_heads, n_kv_heads), converted(weights, n_heads), tokens_BT)
    assert_same(expected_BTV, found_BTV, weights)


@heads
def test_columns_in_their_order_are_another_decoder(n_heads: int, n_kv_heads: int) -> None:
    model, tokens_BT = theirs(n_heads, n_kv_heads), torch.randint(V, (B, T))
    weights = dict(model.named_parameters())
    unpermuted = {n: w for n, w in renamed(weights, NAMES).items() if "o_proj" in n}
    expected_BTV = model(tokens_BT).logits
    found_BTV = call(ours(n_heads, n_kv_heads), converted(weights, n_heads) | unpermuted, tokens_BT)
    assert_another(expected_BTV, found_BTV)


def test_the_index_of_the_layer_matters() -> None:
    """λ₀ is 0.2 in the first layer and 0.36 in the second, in both."""
    model, tokens_BT = theirs(4, 2), torch.randint(V, (B, T))
    mine = ours(4, 2)
    first = mine.blocks[0].attention
    first.heads = mine.blocks[1].attention.heads
    found_BTV = call(mine, converted(dict(model.named_parameters()), 4), tokens_BT)
    expected_BTV = model(tokens_BT).logits
    assert_another(expected_BTV, found_BTV, share=0.01)
