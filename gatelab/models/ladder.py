"""The ladder of sizes, 1 million to 70 billion weights, as configurations; what their sources print; the paper's gates.

    from gatelab.models.ladder import SIZES
    Run(model=SIZES["60m"].model, …)                                          # a run or a study's cell takes one as it is
    override(SIZES["60m"].model, {"gate": "sdpa-headwise", "vocab_size": None})   # and a field of it may be changed

Every model is resolved: its vocabulary and context are stated, and data of fewer ids may be read with it. Widths are of
published models where there is one; `PRINTED` holds their totals and names whatever ours has not. `PRINTED_ADDED` is what
arXiv 2505.06708 prints beside its variants, `PRINTED_EXCEPTIONS` the rows that no formula of ours gives. Free of torch.
"""

from dataclasses import dataclass, field

from ..config.model import ModelConfig
from ..config.moe import MoE
from ..config.presets import PRESETS


@dataclass(frozen=True)
class Size:
    """A resolved model, what it is, and where its widths are from."""

    model: ModelConfig
    what: str
    source: str


@dataclass(frozen=True)
class Printed:
    """The `total` (and `active`) that a size's source prints, in weights, true to ± `within`.

    `differences` and `active_differences` are weights that the printed number has besides ours, by name; one that the
    name leaves out is negative.
    """

    total: float
    within: float
    differences: dict[str, int] = field(default_factory=dict)
    active: float | None = None
    active_differences: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ExceptionalRow:
    """Added weights, in millions as printed and in weights by our formula, and why they differ as far as one can know."""

    printed: float
    by_formula: int
    why: str


def _plain(d_model: int, n_layers: int, n_heads: int, vocab_size: int, max_seq_len: int = 1024) -> ModelConfig:
    c = ModelConfig(d_model=d_model, n_layers=n_layers, n_heads=n_heads, tied_embeddings=True)
    return c.resolved(vocab_size, max_seq_len)


def _llama(d_model: int, n_layers: int, n_heads: int, d_ff: int, *, is_tied: bool = False) -> ModelConfig:
    return ModelConfig(
        d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=8, d_ff=d_ff,
        rope_theta=500_000.0, norm_eps=1e-5, tied_embeddings=is_tied,
    ).resolved(128_256, 8192)  # fmt: skip


def _qwen(
    d_model: int,
    n_layers: int,
    heads: tuple[int, int],
    ffn: int | MoE,
    *,
    rope_theta: float = 1e4,
    is_tied: bool = False,
) -> ModelConfig:
    d_ff, moe = (None, ffn) if isinstance(ffn, MoE) else (ffn, None)
    return ModelConfig(
        d_model=d_model, n_layers=n_layers, n_heads=heads[0], n_kv_heads=heads[1], head_dim=128, d_ff=d_ff, moe=moe,
        qk_norm="rms", rope_theta=rope_theta, tied_embeddings=is_tied,
    ).resolved(151_936, 4096)  # fmt: skip


def _t5(d_model: int, n_layers: int, n_heads: int, d_ff: int) -> ModelConfig:
    return ModelConfig(
        arch="encoder-decoder", d_model=d_model, n_layers=n_layers, n_encoder_layers=n_layers, n_heads=n_heads,
        head_dim=64, d_ff=d_ff, mlp="relu", positions="relative", tied_embeddings=True,
    ).resolved(32_128, 512)  # fmt: skip


_SET_UP_C = ModelConfig(d_model=512, n_layers=8, n_heads=4, d_ff=1344, tied_embeddings=True)
_FINE_GRAINED = ModelConfig(
    d_model=512, n_layers=8, n_heads=4, moe=MoE(n_experts=32, top_k=8, d_expert=168), tied_embeddings=True
)
_COARSE = ModelConfig(
    d_model=1024, n_layers=12, n_heads=8, moe=MoE(n_experts=8, top_k=2, d_expert=1408), tied_embeddings=True
)
_SINKS = ModelConfig(d_model=768, n_layers=10, n_heads=8, d_ff=1536)
_LLAMA_2 = ModelConfig(d_model=4096, n_layers=32, n_heads=32, d_ff=11_008, norm_eps=1e-5)
_BERT = ModelConfig(
    arch="encoder", d_model=768, n_layers=12, n_heads=12, d_ff=3072, mlp="gelu", bias=True,
    norm="layer", norm_position="post", norm_eps=1e-12, positions="learned", tied_embeddings=True,
)  # fmt: skip
_PAPER = "arXiv 2505.06708, Table 7"
_GPT3 = "arXiv 2005.14165, Table 2.1"

SIZES: dict[str, Size] = {
    "1m": Size(_plain(128, 4, 4, 2048), "4 heads of 32, 2,048 ids", "ours"),
    "3m": Size(_plain(192, 6, 6, 2048), "6 heads of 32, 2,048 ids", "ours"),
    "10m": Size(_plain(320, 7, 5, 4096), "5 heads of 64, 4,096 ids", "ours"),
    "30m": Size(
        _SET_UP_C.resolved(16_384, 1024),
        "4 heads of 128 without q/k-norm, 16,384 ids, where sinks form on text",
        "gatelab.studies.sinks_on_text",
    ),
    "60m": Size(
        _SINKS.resolved(50_432, 2048),
        "the default of the attention-sink experiments, 59 million without embeddings, 50,432 ids",
        "arXiv 2410.10781",
    ),
    "125m": Size(_plain(768, 12, 12, 50_257, 2048), "GPT-3 Small's widths in a Llama block, 50,257 ids", _GPT3),
    "350m": Size(_plain(1024, 24, 16, 50_257, 2048), "GPT-3 Medium's widths in a Llama block, 50,257 ids", _GPT3),
    "760m": Size(_plain(1536, 24, 16, 50_257, 2048), "GPT-3 Large's widths in a Llama block, 50,257 ids", _GPT3),
    "1b": Size(
        _llama(2048, 16, 32, 8192, is_tied=True),
        "Llama 3.2 1B, 128,256 ids, without its stretched positions",
        "Llama 3.2 model card",
    ),
    "paper/1.7b-28l": Size(
        _qwen(2048, 28, (16, 8), 6144, is_tied=True),
        "dense, 28 layers; the ids are Qwen3's 151,936",
        _PAPER,
    ),
    "paper/1.7b-48l": Size(
        _qwen(1536, 48, (16, 8), 4608, is_tied=True),
        "dense, 48 layers; the ids are Qwen3's 151,936",
        _PAPER,
    ),
    "paper/15a2b": Size(
        _qwen(2048, 24, (32, 4), MoE(n_experts=128, top_k=8, d_expert=768)),
        "8 of 128 experts; the ids are Qwen3's 151,936",
        _PAPER,
    ),
    "7b": Size(_LLAMA_2.resolved(32_000, 4096), "Llama 2 7B, 32,000 ids", "arXiv 2307.09288"),
    "8b": Size(_llama(4096, 32, 32, 14_336), "Llama 3 8B, 128,256 ids", "arXiv 2407.21783, Table 3"),
    "14b": Size(_qwen(5120, 40, (40, 8), 17_408, rope_theta=1e6), "Qwen3-14B, 151,936 ids", "arXiv 2505.09388"),
    "32b": Size(_qwen(5120, 64, (64, 8), 25_600, rope_theta=1e6), "Qwen3-32B, 151,936 ids", "arXiv 2505.09388"),
    "70b": Size(_llama(8192, 80, 64, 28_672), "Llama 3 70B, 128,256 ids", "arXiv 2407.21783, Table 3"),
    "moe-80m": Size(
        _FINE_GRAINED.resolved(16_384, 1024),
        "30m with 8 of 32 experts, as wide together as its d_ff, 16,384 ids",
        "ours",
    ),
    "moe-480m": Size(_COARSE.resolved(16_384, 1024), "2 of 8 experts, 8 heads of 128, 16,384 ids", "ours"),
    "bert-base": Size(
        _BERT.resolved(30_522, 512),
        "BERT-base, 30,522 ids; one kind of token, no norm on the embeddings, no pooler",
        "arXiv 1810.04805",
    ),
    "t5-small": Size(_t5(512, 6, 8, 2048), "T5-small, 32,128 ids; its attention scaled by 1/√K", "arXiv 1910.10683"),
    "t5-base": Size(_t5(768, 12, 12, 3072), "T5-base, 32,128 ids; its attention scaled by 1/√K", "arXiv 1910.10683"),
}


def _gpt3_differences(d_model: int, n_layers: int, d_ff: int) -> dict[str, int]:
    # GPT-3: a GELU layer of 4 d; biases of q, k, v, o (4 d), of the MLP (5 d) and of two norms (2 d) a layer.
    return {
        "a GELU layer of 4 d_model in the place of SwiGLU": n_layers * (8 * d_model**2 - 3 * d_model * d_ff),
        "biases": (11 * n_layers + 1) * d_model,
        "learned positions": 2048 * d_model,
    }


PRINTED: dict[str, Printed] = {
    "30m": Printed(33e6, 5e5),
    "60m": Printed(60e6, 5e6, {"embeddings and head, which the name leaves out": -2 * 50_432 * 768}),
    "125m": Printed(125e6, 5e5, _gpt3_differences(768, 12, 2048)),
    # Counted out it is 356 million.
    "350m": Printed(350e6, 6e6, _gpt3_differences(1024, 24, 2752)),
    "760m": Printed(760e6, 5e6, _gpt3_differences(1536, 24, 4096)),
    # Cut, not rounded.
    "1b": Printed(1.23e9, 1e7),
    "paper/1.7b-28l": Printed(1.7e9, 5e7),
    "paper/1.7b-48l": Printed(1.7e9, 5e7),
    # Its own table gives the total without embeddings and head, as no other of its names does; what its active weights
    # have besides ours is 4.9 more experts a token, of which the paper says nothing.
    "paper/15a2b": Printed(
        15e9,
        5e8,
        {"embeddings and head, if the name leaves them out": -2 * 151_936 * 2048},
        active=2.54e9,
        active_differences={"not explained by Table 7": 552_317_696},
    ),
    "7b": Printed(7e9, 5e8),
    "8b": Printed(8.03e9, 5e6),
    "14b": Printed(14.8e9, 5e7),
    "32b": Printed(32.8e9, 5e7),
    "70b": Printed(70.55e9, 5e6),
    "bert-base": Printed(
        110e6,
        1e6,
        {"kinds of tokens": 2 * 768, "norm of the embeddings": 2 * 768, "pooler": 768 * 769},
    ),
    "t5-small": Printed(60e6, 1e6),
    "t5-base": Printed(220e6, 5e6),
}

# The rows of Tables 1 and 6 whose printed numbers are not those of the formula.
PRINTED_EXCEPTIONS: dict[str, ExceptionalRow] = {
    "paper/more-experts": ExceptionalRow(
        400, 453_181_440, "4 experts of 768 channels are 453 million in 24 layers; their routers are 0.2 million of it"
    ),
    "paper/switch-kv-8top8": ExceptionalRow(38, 355_467_264, "unknown: 12 · 24 d 64 would be 37.7"),
    "paper/switch-kv-4top4": ExceptionalRow(13, 152_567_808, "unknown: 4 · 24 d 64 would be 12.6"),
    "paper/switch-v-4top4": ExceptionalRow(13, 76_283_904, "unknown: 4 · 24 d 64 would be 12.6"),
    "paper/switch-v-8top2": ExceptionalRow(25, 177_733_632, "unknown: 8 · 24 d 64 would be 25.2"),
    "paper/switch-v-1top1": ExceptionalRow(
        3, 196_608, "unknown: 24 d 64 would be 3.1; the map itself is the baseline's"
    ),
}

# Preset -> added weights in millions, as Table 1 of the paper prints them, to be had at paper/15a2b.
PRINTED_ADDED: dict[str, float] = {
    name: preset.printed for name, preset in PRESETS.items() if preset.printed and name not in PRINTED_EXCEPTIONS
}
