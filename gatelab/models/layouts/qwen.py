"""Layouts in which the gate's rows lie in q_proj: the official code of arXiv 2505.06708, and Qwen3-Next.

Notable: the official code groups rows by kv head and transformers' Qwen3-Next by query head, with the same names and the
same shapes. Read as the other, all shapes fit and only one head in r = H / G has its own query, so that shapes never decide
between the two.
"""

from .layout import Block, Layout

_K_AND_V = {"k_proj": (Block(("k",)),), "v_proj": (Block(("v",)),)}
_ALL = (("q", "gate", "k", "v", "o"),)

QWEN_GATED_ELEMENTWISE = Layout(
    slug="qwen-gated-elementwise",
    what="the official code of arXiv 2505.06708: of each kv head all query rows, then all gate rows",
    projections={"q_proj": (Block(("q", "gate"), per="kv head"),)} | _K_AND_V,
    o_proj="o_proj",
    granularities=("elementwise",),
    biases=_ALL,
    needs_norm=False,
    any_rope=False,
    fields=("elementwise_attn_output_gate",),
)

QWEN_GATED_HEADWISE = Layout(
    slug="qwen-gated-headwise",
    what="the official code of arXiv 2505.06708: of each kv head all query rows, then one gate row a head",
    projections={"q_proj": (Block(("q", "gate"), per="kv head"),)} | _K_AND_V,
    o_proj="o_proj",
    granularities=("headwise",),
    biases=_ALL,
    needs_norm=False,
    any_rope=False,
    fields=("headwise_attn_output_gate",),
)

QWEN3_NEXT = Layout(
    slug="qwen3-next",
    what="Qwen3-Next and 3.5 in transformers (also vLLM, SGLang, mlx-lm, llama.cpp): of each query head its query rows, then "
    "its gate rows",
    projections={"q_proj": (Block(("q", "gate"), per="head"),)} | _K_AND_V,
    o_proj="o_proj",
    granularities=("elementwise",),
    biases=_ALL,
    gains=("1+w",),
    model_types=("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"),
    fields=("attn_output_gate",),
)
