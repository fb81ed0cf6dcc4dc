"""Layouts in which q, k, v and the gate are projections of their own, rows in plain head order.

They differ in names, in what may be missing, and in what the same tensors mean: Laguna's gate is a softplus and Step's a
sigmoid, Step's norms multiply by 1 + w. Names and modules: transformers' afmoe, laguna and step3p7, OLMo-core's attention.
"""

from ...config.gate_axes import ACTIVATIONS
from .layout import Block, Layout


def _separate(q: str, k: str, v: str, gate: str) -> dict[str, tuple[Block, ...]]:
    return {name: (Block((part,)),) for part, name in (("q", q), ("k", k), ("v", v), ("gate", gate))}


GATELAB = Layout(
    slug="gatelab",
    what="gatelab.nn.GatedAttention; without a gate also Llama, Mistral, Qwen3",
    projections=_separate("q_proj", "k_proj", "v_proj", "gates.sdpa.g_proj"),
    o_proj="o_proj",
    granularities=("elementwise", "headwise", None),
    biases=(("q", "k", "v", "o"), ("gate",)),
    activations=("sigmoid", *(name for name in ACTIVATIONS if name != "sigmoid")),
    needs_norm=False,
    model_types=("gatelab",),
)

OLMO_CORE = Layout(
    slug="olmo-core",
    what="OLMo-core's Attention with GateConfig; norms a head",
    projections=_separate("w_q", "w_k", "w_v", "w_g"),
    o_proj="w_out",
    granularities=("elementwise", "headwise", None),
    biases=(("q", "k", "v", "gate", "o"),),
    needs_norm=False,
)

AFMOE = Layout(
    slug="afmoe",
    what="AFMoE (Arcee Trinity) in transformers",
    projections=_separate("q_proj", "k_proj", "v_proj", "gate_proj"),
    o_proj="o_proj",
    granularities=("elementwise",),
    biases=(("q", "k", "v", "o"),),
    model_types=("afmoe",),
)

LAGUNA = Layout(
    slug="laguna",
    what="Laguna in transformers; the gate is a softplus",
    projections=_separate("q_proj", "k_proj", "v_proj", "g_proj"),
    o_proj="o_proj",
    granularities=("headwise", "elementwise"),
    biases=(("q", "k", "v", "o"),),
    activations=("softplus",),
    model_types=("laguna",),
    fields=("gating",),
)

STEP = Layout(
    slug="step",
    what="Step-3.5 and 3.7 (transformers' step3p7)",
    projections=_separate("q_proj", "k_proj", "v_proj", "g_proj"),
    o_proj="o_proj",
    granularities=("headwise",),
    biases=(("q", "k", "v", "o"),),
    gains=("1+w",),
    model_types=("step3p5", "step3p7"),
    fields=("use_head_wise_attn_gate", "head_wise_attn_gate", "attention_output_gate"),
)
