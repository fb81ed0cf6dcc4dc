"""Other papers' and codebases' gates, and what they are compared with. Facts about code hold for the versions that docs/gates.md
names."""

from typing import Any

from .preset import Changes, Preset


def _wide_mlp(model: Any) -> Changes:
    return {"gate": f"sdpa-headwise-head_slice-mlp={model.d_model // model.n_heads}-bias"}


_QT = "arXiv 2306.12929 and its code"
_GRANULARITY = "the granularity is our reading"

KNOWN: dict[str, Preset] = {
    "bondarenko/linear": Preset(
        {"gate": "sdpa-headwise-head_slice-bias-around=0.5"},
        "y_h σ(x_h w_h + b), b from logit π",
        _QT,
        note="π = 0.5 here; 0.25 to 0.9 were useful in BERT, 0.1 to 0.5 in ViT",
    ),
    "bondarenko/mlp": Preset(
        {"gate": "sdpa-headwise-head_slice-mlp=1/4-bias"},
        "y_h σ(MLP(x_h)), a quarter of the slice hidden",
        _QT,
        note="its code gives π to the linear predictor alone",
    ),
    "bondarenko/mlp-wide": Preset(
        _wide_mlp, "y_h σ(MLP(x_h)), hidden as wide as the slice", _QT, adds="d·(d/H + 2) + H"
    ),
    "bondarenko/all-features": Preset({"gate": "sdpa-headwise-bias"}, "y_h σ(x w_h + b)", _QT),
    "bondarenko/unconditional": Preset(
        {"gate": "sdpa-headwise-static"}, "y_h σ(θ_h), θ from 0", _QT, note="one number a head, whatever the input"
    ),
    "bondarenko/clipped-softmax": Preset(
        {"softmax": {"kind": "clipped"}},
        "clip((ζ − γ) softmax + γ, 0, 1)",
        _QT,
        "fails on OPT: kurtosis 1778 → 19728",
        "γ = −4 / max_seq_len here; α 2 to 4 are theirs, 12 in the script for OPT",
        adds="0",
    ),
    "vga/output": Preset(
        {"gate": "sdpa-headwise-value"},
        "y_h σ(V w_h)",
        "arXiv 2510.09017",
        "OPT-125M: PPL 15.49; without 15.95",
        f"its code; its text gates the values; {_GRANULARITY}",
    ),
    "vga/values": Preset(
        {"gate": "value-headwise-value"},
        "v_g σ(V w_g)",
        "arXiv 2510.09017",
        note=f"its text; its code gates the output; {_GRANULARITY}",
    ),
    "qwen3-next": Preset(
        {"gate": "sdpa-elementwise"},
        "y ⊙ σ(x W_g)",
        "transformers, qwen3_next",
        note="on its full-attention layers, one in four; rows of q_proj are [q_h, gate_h] a head",
    ),
    "qwen3.5": Preset(
        {"gate": "sdpa-elementwise"}, "y ⊙ σ(x W_g)", "transformers, qwen3_5", note="stored as qwen3-next stores it"
    ),
    "afmoe": Preset(
        {"gate": "sdpa-elementwise"},
        "y ⊙ σ(x W_g)",
        "transformers, afmoe (arXiv 2602.17004)",
        "no loss spike in 10 to 17T tokens",
        "beside Muon and sandwich norms, so the gate is not the known cause",
    ),
    "muse-glimmer": Preset({"gate": "sdpa-elementwise"}, "y ⊙ σ(x W_g)", "transformers, muse_glimmer"),
    "megatron": Preset(
        {"gate": "sdpa-elementwise"},
        "y ⊙ σ(x W_g)",
        "NVIDIA/Megatron-LM, attention_output_gate",
        note="rows of linear_qkv are [q, gate, k, v] a kv head",
    ),
    "step-3.5": Preset(
        {"gate": "sdpa-headwise"},
        "y_h σ(x w_h)",
        "Step-3.5-Flash (arXiv 2602.10604)",
        "said to beat fixed sink tokens",
        "beside sliding windows",
    ),
    "laguna": Preset(
        {"gate": "sdpa-headwise-softplus"},
        "y_h ln(1 + exp(x w_h))",
        "transformers, laguna",
        note="whether its bare flag means a score a head or a channel is disputed; the weight's shape decides",
    ),
    "laguna/elementwise": Preset(
        {"gate": "sdpa-elementwise-softplus"}, "y ⊙ ln(1 + exp(x W_g))", "transformers, laguna"
    ),
    "olmo-core": Preset(
        {"gate": "sdpa-headwise"}, "y_h σ(x w_h)", "allenai/OLMo-core PR 508", note="its default; σ in float32"
    ),
    "olmo-core/elementwise": Preset({"gate": "sdpa-elementwise"}, "y ⊙ σ(x W_g)", "allenai/OLMo-core PR 508"),
    "keras": Preset(
        {"gate": "sdpa-elementwise"}, "y ⊙ σ(x W_g), x of the query", "Keras PR 22372", note="in cross-attention too"
    ),
    "modded-nanogpt/12-channels": Preset(
        {"gate": "sdpa-headwise-first:12-init=0.5"},
        "y_h σ(x[:12] w_h), w from 0",
        "KellerJordan/modded-nanogpt PR 117",
        "12 channels beat 96, and these all 768",
        "there the gate learns at a tenth of the rate, which no preset can say",
    ),
    "marin/two-sigmoid": Preset(
        {"gate": "sdpa-headwise-two_sigmoid-init=1", "output_map": "xsa"},
        "z_h 2σ(x w_h), w from 0, z = y − proj_v y",
        "marin-community/marin, experiments/grug",
        adds="d·H",
    ),
    "marin/truncated": Preset(
        {"gate": "sdpa-headwise-two_sigmoid-first:1/16-init=1", "output_map": "xsa"},
        "z_h 2σ(x[:d/16] w_h), w from 0",
        "marin-community/marin 4038",
        adds="d/16·H",
    ),
    "x-transformers/values": Preset(
        {"gate": "sdpa-elementwise-bias-init=0.9999546021312976"},
        "y ⊙ σ(x W_g + b), W_g from 0, b from 10",
        "lucidrains/x-transformers, attn_gate_values",
        note="earlier versions start b at 1",
    ),
    "x-transformers/value-heads": Preset(
        {"gate": "sdpa-headwise-bias-init=0.9999546021312976"},
        "y_h σ(x w_h + b), w from 0, b from 10",
        "lucidrains/x-transformers, attn_gate_value_heads",
    ),
    "x-transformers/output-gate": Preset(
        {"gate": "sdpa-elementwise-output-init=0.5"},
        "y ⊙ σ(y W_g), W_g from 0",
        "lucidrains/x-transformers, attn_output_gate (arXiv 2608.11805)",
        note="reads the attention output, not x",
    ),
    "hyga": Preset(
        {"gate": "sdpa-elementwise-hybrid-rank=32", "softmax": {"kind": "sink-logit"}},
        "y ⊙ σ([x, y] W_down W_up)",
        "arXiv 2608.11805",
        "MoE of 5B: average 42.23; G1 40.70",
        "without its cross-head gate; one shared factor of rank 32 for both branches",
        adds="32·(d + 2·H·K) + H",
    ),
    "low-rank": Preset({"gate": "sdpa-elementwise-rank=32"}, "y ⊙ σ(x W_down W_up), rank 32", "arXiv 2608.11805"),
    "forgetting-transformer": Preset(
        {"gate": "scores-headwise-forget-bias"}, "softmax(q k + Σ ln σ(x w + b)) v", "arXiv 2503.02130"
    ),
    "fla/forgetting-gated": Preset(
        {"gate": "scores-headwise-forget-bias+sdpa-elementwise"},
        "(softmax(q k + Σ ln σ(x w + b)) v) ⊙ σ(x W_g)",
        "fla-org/flash-linear-attention, ForgettingAttention with use_output_gate",
        adds="d·H + H + d·H·K",
    ),
    "gated-norm": Preset(
        {"norm": "gated-rms"},
        "n σ(SiLU(n W_down) W_up), n = x / rms(x) · w, rank 16",
        "arXiv 2601.22966",
        "3 × the rate: spikes in 10k steps 32.0 → 3.2, clip crossings 256 → 20",
        "the final norm has its 32·d weights once more",
        adds="64·d",
    ),
    "xsa": Preset(
        {"output_map": "xsa"},
        "y − (y·v) v / v·v",
        "arXiv 2603.09078",
        "modded-nanogpt dropped its gates with it, at equal loss (PR 317)",
        adds="0",
    ),
    "gpt-oss": Preset(
        {"softmax": {"kind": "sink-logit"}},
        "y_h σ(lse_h − s_h)",
        "transformers, gpt_oss",
        adds="H",
        note="s from 0 here; small random numbers there",
    ),
    "mimo-v2-flash": Preset(
        {"softmax": {"kind": "sink-logit"}},
        "y_h σ(lse_h − s_h)",
        "MiMo-V2-Flash, mlx-lm",
        adds="H",
        note="attention alone; how s starts is not in our record",
    ),
    "softmax-1": Preset(
        {"softmax": {"kind": "off-by-one"}},
        "y σ(lse)",
        "softmax with 1 added to the denominator (Evan Miller, Attention Is Off By One, 2023)",
        adds="0",
    ),
}
