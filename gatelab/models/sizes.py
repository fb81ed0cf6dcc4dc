"""Parameter counts from a configuration alone, without torch: what matching and planning need."""

from math import prod

from ..config.model import ModelConfig, SinkLogit

Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(config: ModelConfig) -> Shapes:
    """Name and shape of every parameter of the model that a resolved configuration builds (tied ones once)."""
    c = config
    shapes: Shapes = {"embedding.weight": (c.vocab_size, c.d_model)}
    if c.positions == "learned":
        shapes["position_embedding.weight"] = (c.max_seq_len, c.d_model)
    for layer in range(c.n_layers):
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in _block(c).items()}
    if c.norm_position != "post":
        shapes |= _norm("final_norm", c.d_model, c.norm)
    if not c.tied_embeddings:
        shapes["head.weight"] = (c.vocab_size, c.d_model)
    return shapes


def count_parameters(config: ModelConfig) -> int:
    """Number of weights of a resolved configuration."""
    return sum(prod(shape) for shape in parameter_shapes(config).values())


def match_d_ff(config: ModelConfig, target: int, unit: int = 1) -> ModelConfig:
    """The same model with the d_ff, a multiple of `unit`, whose parameter count is nearest to `target`.

    The paper narrows the FFN in the same way (arXiv 2505.06708, Table 2). What remains is `count_parameters(result) − target`.

    Raises:
        ValueError: when no positive width comes near, naming the counts.
    """
    with_one, with_two = (count_parameters(config.model_copy(update={"d_ff": f})) for f in (1, 2))
    weights = with_two - with_one
    d_ff = round((target - with_one + weights) / (weights * unit)) * unit
    if d_ff < 1:
        raise ValueError(
            f"cannot match {target} parameters by narrowing the FFN: with d_ff=1 the model has {with_one}; "
            "take a wider baseline FFN or a smaller gate"
        )
    return config.model_copy(update={"d_ff": d_ff})


def _block(c: ModelConfig) -> Shapes:
    shapes: Shapes = {}
    before, after = c.norm_position in ("pre", "sandwich"), c.norm_position in ("post", "sandwich")
    inner, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    shapes |= _norm("attention_norm", c.d_model, c.norm) if before else {}
    for name, d_out, d_in in (
        ("q", inner, c.d_model),
        ("k", kv, c.d_model),
        ("v", kv, c.d_model),
        ("o", c.d_model, inner),
    ):
        shapes |= _linear(f"attention.{name}_proj", d_out, d_in, c.bias)
    for spec in c.gate:
        heads = {"key": c.n_kv_heads, "value": c.n_kv_heads, "out": 1}.get(spec.site, c.n_heads)
        channels = c.d_model if spec.site == "out" else c.head_dim
        width = channels if spec.granularity == "elementwise" else 1
        if spec.source == "static":
            shapes[f"attention.gates.{spec.site}.constant_HK"] = (heads, width)
        else:
            shapes |= _linear(f"attention.gates.{spec.site}.g_proj", heads * width, c.d_model, spec.bias)
    if c.qk_norm == "rms":
        shapes |= _norm("attention.q_norm", c.head_dim, "rms") | _norm("attention.k_norm", c.head_dim, "rms")
    if isinstance(c.softmax, SinkLogit):
        shapes["attention.sink.sink_logit_H"] = (c.n_heads,)
    shapes |= _norm("attention_post_norm", c.d_model, c.norm) if after else {}
    shapes |= _norm("mlp_norm", c.d_model, c.norm) if before else {}
    shapes |= _linear("mlp.w1", c.d_ff, c.d_model, c.bias) | _linear("mlp.w2", c.d_model, c.d_ff, c.bias)
    if c.mlp == "swiglu":
        shapes |= _linear("mlp.w3", c.d_ff, c.d_model, c.bias)
    return shapes | (_norm("mlp_post_norm", c.d_model, c.norm) if after else {})


def _norm(name: str, width: int, kind: str) -> Shapes:
    weight = {f"{name}.weight": (width,)}
    return weight | {f"{name}.bias": (width,)} if kind == "layer" else weight


def _linear(name: str, d_out: int, d_in: int, bias: bool) -> Shapes:
    return {f"{name}.weight": (d_out, d_in)} | ({f"{name}.bias": (d_out,)} if bias else {})
