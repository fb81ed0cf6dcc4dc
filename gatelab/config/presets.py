"""Presets: the names people know for points of the space, as changes of a model's fields.

A preset is used in the place of a gate (`model.gate=qwen3-next`), or, where it changes more than the gate, as
`model.preset=marin/two-sigmoid`. Controls that depend on the model they change (more heads) are functions of it.
`results` are what their authors print, `note` what is uncertain or differs. Free of torch and of the rest of config.

The results of `paper/…` are those of arXiv 2505.06708, Tables 1, 3, 4 and 6: mixture of experts of 15B weights, 400B
tokens, one seed; the base has PPL 6.026, M-Act 1053, F-Attn 0.467. Facts about other code hold for the versions that
docs/gates.md names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Changes = dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """What a name changes in a model: fields of `ModelConfig`, or a function from a model to them.

    `adds` is the number of weights a layer where it is not that of one gate, with d, H, G, K as in the formulas and F the
    width of an expert; `printed` the millions that the authors print.
    """

    changes: Changes | Callable[[Any], Changes]
    formula: str
    source: str
    results: str = ""
    note: str = ""
    adds: str = ""
    printed: float | None = None

    def of(self, model: Any) -> Changes:
        """The fields it sets in this model."""
        return self.changes(model) if callable(self.changes) else self.changes

    def gate_alone(self, name: str) -> str:
        """The slug of a preset that is one gate and nothing else.

        Raises:
            ValueError: for any other, saying how to use it.
        """
        if callable(self.changes) or set(self.changes) != {"gate"} or "+" in self.changes["gate"]:
            what = "more than one gate" if callable(self.changes) or "gate" in self.changes else "no gate"
            raise ValueError(f"{name!r} changes {what}: use it as model.preset={name}")
        return self.changes["gate"]


def _more_query_heads(model: Any) -> Changes:
    # 48 for 32: half as many again, a multiple of the kv heads.
    kv = model.n_kv_heads or model.n_heads
    heads = -(-3 * model.n_heads // 2 // kv) * kv if model.n_kv_heads else 3 * model.n_heads // 2
    changes = {"n_heads": heads, "head_dim": model.head_dim or model.d_model // model.n_heads}
    return changes | ({"n_kv_heads": kv} if model.n_kv_heads else {})


def _more_kv_heads(model: Any) -> Changes:
    kv = model.n_kv_heads or model.n_heads
    if 2 * kv > model.n_heads:
        raise ValueError(
            f"the kv heads are doubled, and n_kv_heads={kv} of n_heads={model.n_heads} cannot be; state fewer in the base"
        )
    return {"n_kv_heads": 2 * kv}


def _more_experts(model: Any) -> Changes:
    if model.moe is None:
        raise ValueError("4 experts are added to a mixture, and this model has none; state moe")
    return {"moe": model.moe.model_copy(update={"n_experts": model.moe.n_experts + 4, "top_k": model.moe.top_k + 4})}


def _wide_mlp(model: Any) -> Changes:
    return {"gate": f"sdpa-headwise-head_slice-mlp={model.d_model // model.n_heads}-bias"}


_PAPER = "arXiv 2505.06708"
_QT = "arXiv 2306.12929 and its code"
_ORDER = "the order to q/k-norm and RoPE is not known"
_GRANULARITY = "the granularity is our reading"

PRESETS: dict[str, Preset] = {
    "paper/base": Preset(
        {"gate": "none"}, "y", f"{_PAPER}, Table 1 row 1", "PPL 6.026, M-Act 1053, F-Attn 0.467", printed=0
    ),
    "paper/kv8": Preset(
        _more_kv_heads, "twice the kv heads", f"{_PAPER}, Table 1 row 2", "PPL 5.979", adds="2·d·G·K", printed=50
    ),
    "paper/q48": Preset(
        _more_query_heads, "1.5 × the query heads", f"{_PAPER}, Table 1 row 3", "PPL 5.953", adds="d·H·K", printed=201
    ),
    "paper/more-experts": Preset(
        _more_experts,
        "4 experts more, all of them active",
        f"{_PAPER}, Table 1 row 4",
        "PPL 5.964",
        "the printed number is not that of the formula; a router of 4 rows is counted here",
        adds="12·d·F + 4·d",
        printed=400,
    ),
    "paper/g1-elementwise": Preset(
        {"gate": "sdpa-elementwise"},
        "y ⊙ σ(x W_g)",
        f"{_PAPER}, Table 1 row 5",
        "PPL 5.761, gate mean 0.116, M-Act 94, F-Attn 0.048",
        printed=201,
    ),
    "paper/g2-elementwise": Preset(
        {"gate": "value-elementwise"},
        "v ⊙ σ(x W_g)",
        f"{_PAPER}, Table 1 row 6",
        "PPL 5.820, gate mean 0.221, M-Act 125, F-Attn 0.297",
        "GSM8k is 53.97 in Table 1 and 51.33 in Table 4",
        printed=25,
    ),
    "paper/g3-elementwise": Preset(
        {"gate": "key-elementwise"}, "k ⊙ σ(x W_g)", f"{_PAPER}, Table 1 row 7", "PPL 6.016", _ORDER, printed=25
    ),
    "paper/g4-elementwise": Preset(
        {"gate": "query-elementwise"}, "q ⊙ σ(x W_g)", f"{_PAPER}, Table 1 row 8", "PPL 5.981", _ORDER, printed=201
    ),
    "paper/g5": Preset(
        {"gate": "out-elementwise"}, "(W_O y) ⊙ σ(x W_g)", f"{_PAPER}, Table 1 row 9", "PPL 6.017", printed=100
    ),
    "paper/g1-headwise": Preset(
        {"gate": "sdpa-headwise"},
        "y_h σ(x w_h)",
        f"{_PAPER}, Table 1 row 10",
        "PPL 5.792, gate mean 0.172, M-Act 98, F-Attn 0.073",
        printed=1.6,
    ),
    "paper/g2-headwise": Preset(
        {"gate": "value-headwise"}, "v_g σ(x w_g)", f"{_PAPER}, Table 1 row 11", "PPL 5.808", printed=0.2
    ),
    "paper/g1-shared": Preset(
        {"gate": "sdpa-elementwise-shared"},
        "y_h ⊙ mean over h of σ(x W_h)",
        f"{_PAPER}, Table 1 row 12",
        "PPL 5.801, gate mean 0.271, M-Act 286, F-Attn 0.301",
        "averaged after the sigmoid: the text says that scores are averaged",
        printed=201,
    ),
    "paper/g2-shared": Preset(
        {"gate": "value-elementwise-shared"},
        "v_g ⊙ mean over g of σ(x W_g)",
        f"{_PAPER}, Table 1 row 13",
        "PPL 5.867",
        "averaged over the kv heads, the only ones that values have",
        printed=25,
    ),
    "paper/g1-additive-silu": Preset(
        {"gate": "sdpa-elementwise-silu-add"},
        "y + SiLU(x W_g)",
        f"{_PAPER}, Table 1 row 14",
        "PPL 5.821",
        printed=201,
    ),
    "paper/g1-silu": Preset(
        {"gate": "sdpa-elementwise-silu"}, "y ⊙ SiLU(x W_g)", f"{_PAPER}, Table 1 row 15", "PPL 5.822", printed=201
    ),
    "paper/g1-rmsnorm": Preset(
        {"output_map": "rms"},
        "y_h / rms(y_h)",
        f"{_PAPER}, Table 3",
        "PPL 5.847",
        "there with almost no weights, here with none",
        adds="0",
    ),
    "paper/g1-silu-no-weights": Preset({"output_map": "silu"}, "SiLU(y)", f"{_PAPER}, Table 3", "PPL 5.975", adds="0"),
    "paper/g1-additive-identity": Preset(
        {"gate": "sdpa-elementwise-identity-add"}, "y + x W_g", f"{_PAPER}, Table 3", "PPL 5.882"
    ),
    "paper/g1-input-independent": Preset(
        {"gate": "sdpa-elementwise-static"},
        "y ⊙ σ(θ), θ from 0",
        f"{_PAPER}, Table 4 row 6",
        "PPL 5.917, gate mean 0.335, M-Act 471, F-Attn 0.364",
    ),
    "paper/g1-ns-sigmoid": Preset(
        {"gate": "sdpa-elementwise-ns_sigmoid"},
        "y ⊙ (½ + ½σ(x W_g))",
        f"{_PAPER}, Table 4 row 7",
        "PPL 5.900, gate mean 0.653, M-Act 892, F-Attn 0.451",
    ),
    "paper/switch-kv-8top8": Preset(
        {"kv_experts": "kv-8top8"},
        "k and v are Σ over 8 experts",
        f"{_PAPER}, Table 6",
        "PPL 5.847",
        adds="14·d·G·K + 16·d·G",
        printed=38,
    ),
    "paper/switch-kv-4top4": Preset(
        {"kv_experts": "kv-4top4"},
        "k and v are Σ over 4 experts",
        f"{_PAPER}, Table 6",
        "PPL 5.935",
        adds="6·d·G·K + 8·d·G",
        printed=13,
    ),
    "paper/switch-v-4top4": Preset(
        {"kv_experts": "v-4top4"},
        "v is Σ over 4 experts",
        f"{_PAPER}, Table 6",
        "PPL 5.820",
        adds="3·d·G·K + 4·d·G",
        printed=13,
    ),
    "paper/switch-v-8top2": Preset(
        {"kv_experts": "v-8top2"},
        "v is Σ over the best 2 of 8 experts",
        f"{_PAPER}, Table 6",
        "PPL 5.870",
        adds="7·d·G·K + 8·d·G",
        printed=25,
    ),
    "paper/switch-v-1top1": Preset(
        {"kv_experts": "v-1top1"},
        "v_g σ(x w_g)",
        f"{_PAPER}, Table 6",
        "PPL 5.808",
        "is paper/g2-headwise",
        adds="d·G",
        printed=3,
    ),
    "paper/sandwich": Preset(
        {"norm_position": "sandwich"},
        "x + norm(f(norm x))",
        f"{_PAPER}, Table 2 row 7",
        "dense, 48 layers, rate 8e-3: PPL 7.407; without 9.195",
        adds="2·d",
    ),
    "paper/clip-300": Preset(
        {"residual_clip": 300.0}, "x + clip(f(norm x), ±300)", f"{_PAPER}, A.6", "fails at rate 8e-3 too", adds="0"
    ),
    "paper/clip-100": Preset(
        {"residual_clip": 100.0}, "x + clip(f(norm x), ±100)", f"{_PAPER}, A.6", "fails at rate 8e-3 too", adds="0"
    ),
    "paper/inserted-open": Preset(
        {"gate": "sdpa-elementwise-two_sigmoid-init=1"},
        "y ⊙ 2σ(x W_g), W_g from 0",
        "qiuzh20/gated_attention issue 10",
        "in a trained model: the gate hardly moves, nothing is gained",
        f"for a trained model; {_GRANULARITY}",
    ),
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
