"""The memory that a look at a transformers checkpoint takes, from its configuration alone, and whether it is there.

Notable: weights are exact, and so is the cache (that of transformers' `DynamicCache`); the rest are estimates, whose terms
stand where they are added up. Recurrent states of state-space and linear-attention layers, which do not grow with the
length, are left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Of the probes, float32: numbers of every token that a head keeps, and the copies of a block of weights that live at once.
N_VECTORS, N_BLOCKS = 8, 4
_GIB = 2**30
_WINDOWED = {"sliding_attention": "sliding_window", "hybrid_sliding": "sliding_window",
             "chunked_attention": "attention_chunk_size"}  # fmt: skip
_WITHOUT_ATTENTION = ("linear_attention", "conv", "mamba", "mamba2", "recurrent", "dummy", "moe", "mlp")


@dataclass(frozen=True)
class Prefill:
    """How sequences are read, `batch` sequences at a time. `chunk`: tokens a pass, whose keys and values are kept for the next
    one; None: the whole sequence at once, and no cache. `block`: queries whose weights the probes hold at a time.
    `builds_maps`: its attention is eager, or of a family that does it in its own code, and builds the weights."""

    n_tokens: int
    chunk: int | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch: int = 1
    block: int = 256
    has_head: bool = False
    builds_maps: bool = False

    @property
    def tokens_a_pass(self) -> int:
        return min(self.chunk or self.n_tokens, self.n_tokens)


@dataclass(frozen=True)
class Footprint:
    """Bytes. `str()` says the total and its terms in GiB."""

    weights: int
    cache: int
    activations: int
    logits: int
    statistics: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations + self.logits + self.statistics

    def __str__(self) -> str:
        terms = ", ".join(f"{name} {_gib(value)}" for name, value in vars(self).items() if value)
        return f"about {_gib(self.total)} GiB ({terms})"


def needed(config: Any, n_weights: int, prefill: Prefill) -> Footprint:
    """The memory of a prefill.

    Args:
        config: of transformers.
        n_weights: how many the model has, as `Checkpoint.n_weights` counts them.
    """
    b, C = BYTES[prefill.dtype], prefill.tokens_a_pass
    layers = list(attention_layers(config))
    kept = sum(layer.kept_values(prefill.n_tokens) for layer in layers) if prefill.chunk else 0
    logits = C * _text(config).vocab_size * (b + 4) if prefill.has_head else 0  # and their log-softmax, float32
    return Footprint(
        weights=n_weights * b,
        cache=prefill.batch * b * kept,
        activations=prefill.batch * b * _activations(config, layers, prefill),
        logits=prefill.batch * logits,
        statistics=prefill.batch * 4 * _statistics(layers, prefill),
    )


def check_fits(config: Any, n_weights: int, prefill: Prefill, *, free: int | None) -> Footprint:
    """The memory of a prefill that has `free` bytes; None: not known, and all fits.

    Raises:
        ValueError: it takes more; how much, and what would fit.
    """
    need = needed(config, n_weights, prefill)
    if free is None or need.total <= free:
        return need
    smaller = replace(prefill, dtype="bfloat16")
    ways = []
    for tried, words in ((prefill, ""), (smaller, " --dtype bfloat16")):
        if tried is smaller and BYTES[prefill.dtype] <= BYTES["bfloat16"]:
            continue
        length = _longest(config, n_weights, tried, free)
        if length == prefill.n_tokens:
            ways.append(words.strip())
        elif length and not (ways and "bfloat16" in words):
            ways.append(f"--length {length}{words}")
    advice = " or ".join(ways) or "a machine with more memory, or a smaller model"
    raise ValueError(f"{prefill.n_tokens} tokens need {need}, and {_gib(free)} GiB are free; take {advice}")


@dataclass(frozen=True)
class AttentionLayer:
    """H query and G key/value heads; a head's queries and keys have `qk_dim` channels, its values `v_dim`. `latent`:
    values that a token has in the cache where they are not the keys and values. `window`: tokens seen; None: all."""

    n_heads: int
    n_kv_heads: int
    qk_dim: int
    v_dim: int
    latent: int | None
    window: int | None

    def kept_values(self, n_tokens: int) -> int:
        """How many values the cache has of it behind n_tokens; of a window's tokens the last is not needed again."""
        kept = n_tokens if self.window is None else min(n_tokens, self.window - 1)
        return kept * (self.n_kv_heads * (self.qk_dim + self.v_dim) if self.latent is None else self.latent)


def attention_layers(config: Any) -> Iterator[AttentionLayer]:
    """The layers that have attention; of an encoder-decoder the encoder's, the decoder's, and those that cross."""
    if not getattr(config, "is_encoder_decoder", False):
        yield from _stack(_text(config), "num_hidden_layers", "num_attention_heads")
        return
    encoder, decoder = getattr(config, "encoder", config), getattr(config, "decoder", config)
    yield from _stack(encoder, "encoder_layers", "encoder_attention_heads")
    own = list(_stack(decoder, "decoder_layers", "decoder_attention_heads"))
    yield from own
    yield from (replace(layer, window=None) for layer in own)


def _stack(c: Any, depth: str, heads: str) -> Iterator[AttentionLayer]:
    n_layers = _first(c, depth, *(["num_decoder_layers"] if depth == "decoder_layers" else []), "num_hidden_layers")
    types = getattr(c, "layer_types", None) or [_only_type(c)] * n_layers
    for number, kind in enumerate(types[:n_layers]):
        if kind in _WITHOUT_ATTENTION:
            continue
        H = _of_layer(_first(c, heads, "num_attention_heads"), number)
        G = _of_layer(_first(c, "num_key_value_heads", default=H), number)
        if getattr(c, "multi_query", False) and not getattr(c, "new_decoder_architecture", False):
            G = 1
        K = _first(c, "head_dim", default=_first(c, "hidden_size") // H)
        latent = None
        if rank := getattr(c, "kv_lora_rank", None):
            # Multi-head latent attention keeps the latent and the rotated part of the key (arXiv 2405.04434).
            latent = rank + c.qk_rope_head_dim
            G, K = H, c.qk_nope_head_dim + c.qk_rope_head_dim
        window = getattr(c, _WINDOWED[kind], None) if kind in _WINDOWED else None
        yield AttentionLayer(H, G, K, _first(c, "v_head_dim", default=K) if latent else K, latent, window)


def _only_type(c: Any) -> str:
    """As transformers takes the type of all layers where a configuration does not list them."""
    return next((kind for kind, name in _WINDOWED.items() if getattr(c, name, None) is not None), "full_attention")


def _activations(config: Any, layers: list[AttentionLayer], prefill: Prefill) -> int:
    """Values that the widest layer has at once: three residual streams, and three times the feed-forward network's width, or
    eight times what linear attention projects to, or what attention has."""
    c, C, D = _text(config), prefill.tokens_a_pass, _text(config).hidden_size
    wide = _first(c, "intermediate_size", "d_ff", "encoder_ffn_dim", "ffn_dim", "n_inner", default=4 * D)
    top_k = _first(c, "num_experts_per_tok", "num_experts_per_token", default=0)
    mixed = sum(
        2 * _first(c, f"linear_num_{name}_heads", default=0) * _first(c, f"linear_{name}_head_dim", default=0)
        for name in ("key", "value")
    )
    has_bias = _first(c, "relative_attention_num_buckets") is not None
    attention = (_attention_values(layer, prefill, has_bias=has_bias) for layer in layers)
    F = max(wide, top_k * _first(c, "moe_intermediate_size", default=wide))
    return 3 * C * D + max(3 * C * F, 8 * C * mixed, *attention)


def _attention_values(layer: AttentionLayer, prefill: Prefill, *, has_bias: bool) -> int:
    """Queries and keys before and after the rotation, values and the output; with a cache also its keys and values, joined
    and repeated for every head, and the mask, boolean and as what is added to the logits. Where the weights themselves are
    built there are two copies of them, and four with a learned bias; torch builds them where keys and values differ in
    width."""
    a, b, T, C = layer, BYTES[prefill.dtype], prefill.n_tokens, prefill.tokens_a_pass
    values = C * (2 * (a.n_heads + a.n_kv_heads) * a.qk_dim + (a.n_kv_heads + a.n_heads) * a.v_dim)
    if prefill.chunk:
        seen = T if a.window is None else min(T, a.window - 1 + C)
        repeated = a.n_heads if a.n_heads != a.n_kv_heads or a.latent else 0
        values += seen * (a.n_kv_heads + repeated) * (a.qk_dim + a.v_dim) + C * seen * (1 + b) // b
    n_maps = 4 if has_bias else 2 if prefill.builds_maps or a.qk_dim != a.v_dim else 0
    return values + n_maps * C * T * a.n_heads


def _statistics(layers: list[AttentionLayer], prefill: Prefill) -> int:
    """float32 values: N_VECTORS a token and head of every layer; of one layer N_BLOCKS blocks of weights, and copies of
    its keys and values."""
    T = prefill.n_tokens
    rows = N_VECTORS * T * sum(layer.n_heads for layer in layers)
    one = (N_BLOCKS * min(prefill.block, T) * T * a.n_heads + T * a.n_kv_heads * (a.qk_dim + a.v_dim) for a in layers)
    return rows + max(one, default=0)


def _longest(config: Any, n_weights: int, prefill: Prefill, free: int) -> int | None:
    """The length that fits: the one asked for, or the largest power of two below it; None where not even 2 tokens do."""
    lengths = [prefill.n_tokens, *(2**i for i in range(30, 0, -1) if 2**i < prefill.n_tokens)]
    return next((n for n in lengths if needed(config, n_weights, replace(prefill, n_tokens=n)).total <= free), None)


def _text(config: Any) -> Any:
    return config if getattr(config, "is_encoder_decoder", False) else config.get_text_config()


def _first(c: Any, *names: str, default: Any = None) -> Any:
    """The first of these that a configuration states."""
    return next((value for name in names if (value := getattr(c, name, None)) is not None), default)


def _of_layer(value: Any, number: int) -> int:
    return value[number] if isinstance(value, list | tuple) else value


def _gib(n_bytes: int) -> str:
    value = n_bytes / _GIB
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.095 else f"{value:.2f}"
