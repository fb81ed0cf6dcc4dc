"""Layouts in which q, gate, k and v are one projection, linear_qkv: Megatron-LM, unsharded.

The norm's weight that Transformer Engine keeps in linear_qkv (`layer_norm_weight`) is the block's, not the attention's, and
is refused here. Sources: megatron/core/transformer/attention.py; the headwise tail is of its development branch and of
Megatron-Bridge, which has it without biases.
"""

from .layout import Block, Layout

MEGATRON = Layout(
    slug="megatron",
    what="Megatron-LM with attention_output_gate: of each kv head its query, gate, key and value rows",
    projections={"linear_qkv": (Block(("q", "gate", "k", "v"), per="kv head"),)},
    o_proj="linear_proj",
    granularities=("elementwise", None),
    biases=(("q", "gate", "k", "v"), ("o",)),
    gains=("w", "1+w"),
    norms=("q_layernorm", "k_layernorm"),
    needs_norm=False,
    fields=("attention_output_gate",),
)

MEGATRON_HEADWISE = Layout(
    slug="megatron-headwise",
    what="Megatron-LM's headwise gate: of each kv head its query, key and value rows, and the gate rows of all heads at the end",
    projections={"linear_qkv": (Block(("q", "k", "v"), per="kv head"), Block(("gate",)))},
    o_proj="linear_proj",
    granularities=("headwise",),
    biases=(),
    gains=("w", "1+w"),
    norms=("q_layernorm", "k_layernorm"),
    needs_norm=False,
    fields=("use_head_wise_attn_gate", "head_wise_attn_gate"),
)
