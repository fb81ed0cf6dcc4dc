"""Parameter counts from a configuration alone, without torch: what matching and planning need."""

from dataclasses import dataclass
from math import prod

from ..config.architecture import Stack
from ..config.gate import GateSpec
from ..config.model import ModelConfig
from ..config.normaliser import Heads

Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(config: ModelConfig) -> Shapes:
    """Name and shape of every parameter of the model that a resolved configuration builds (tied ones once)."""
    c = config
    shapes: Shapes = {"embedding.weight": (c.vocab_size, c.d_model)}
    for stack in c.architecture.stacks:
        prefix = stack.blocks.removesuffix("blocks")
        if c.positions == "learned":
            shapes[f"{prefix}position_embedding.weight"] = (c.max_seq_len, c.d_model)
        if c.n_token_types:
            shapes[f"{prefix}token_type_embedding.weight"] = (c.n_token_types, c.d_model)
        if c.embedding_norm != "none":
            shapes |= _norm(f"{prefix}embedding_norm", c, c.embedding_norm)
        if c.registers:
            shapes[f"{prefix}registers_RD"] = (c.registers, c.d_model)
        if c.positions == "relative":
            shapes[f"{prefix}relative.table.weight"] = (32, c.n_heads)
        for layer in range(c.depth(stack)):
            shapes |= {f"{stack.blocks}.{layer}.{name}": s for name, s in _block(c, stack, layer).items()}
        if c.norm_position != "post":
            shapes |= _norm(f"{prefix}final_norm", c)
    if not c.tied_embeddings:
        shapes["head.weight"] = (c.vocab_size, c.d_model)
    return shapes


def count_parameters(config: ModelConfig) -> int:
    """Number of weights of a resolved configuration."""
    return sum(prod(shape) for shape in parameter_shapes(config).values())


def count_active(config: ModelConfig) -> int:
    """Number of weights that one token meets: all but those of experts that were not chosen."""
    c = config
    if c.moe is None:
        return count_parameters(c)
    blocks = sum(c.depth(stack) for stack in c.architecture.stacks)
    idle, D, F = c.moe.n_experts - c.moe.top_k, c.d_model, c.moe.d_expert
    return count_parameters(c) - blocks * idle * (3 * D * F + (2 * F + D if c.moe.bias else 0))


def gate_parameters(config: ModelConfig) -> int:
    """Number of weights that all gates of a resolved configuration have."""
    return sum(prod(s) for name, s in parameter_shapes(config).items() if ".gates." in name)


@dataclass(frozen=True)
class Match:
    """A model narrowed to a baseline's size. `target` and `n_parameters` are counts; `unmatched` is what remains,
    n_parameters − target; `d_ff` and `d_ff_before` the widths."""

    config: ModelConfig
    target: int
    n_parameters: int
    d_ff: int
    d_ff_before: int

    @property
    def unmatched(self) -> int:
        return self.n_parameters - self.target

    def __str__(self) -> str:
        share = self.unmatched / self.target
        return (
            f"d_ff {self.d_ff_before} → {self.d_ff}: {self.n_parameters:,} parameters for {self.target:,}, "
            f"{self.unmatched:+,} ({share:+.3%}) remain unmatched"
        )


def match_parameters(baseline: ModelConfig, config: ModelConfig, unit: int = 1) -> Match:
    """`config` with the feed-forward width, a multiple of `unit`, that brings it nearest to the baseline's count.

    Both resolved. The paper narrows the FFN in the same way (arXiv 2505.06708, Table 2).

    Raises:
        ValueError: when no positive width comes near, naming the counts; a model that is not resolved.
    """
    for name, model in (("baseline", baseline), ("config", config)):
        if None in (model.vocab_size, model.max_seq_len, model.n_kv_heads, model.head_dim, model.d_ff):
            raise ValueError(f"{name} has open fields, so its weights cannot be counted; give {name}.resolved(…)")
    target = count_parameters(baseline)
    matched = match_d_ff(config, target, unit)
    return Match(matched, target, count_parameters(matched), matched.d_ff, config.d_ff)


def match_d_ff(config: ModelConfig, target: int, unit: int = 1) -> ModelConfig:
    """The same model with the d_ff, a multiple of `unit`, whose parameter count is nearest to `target`; with experts,
    the width of each.

    What remains is `count_parameters(result) − target`.

    Raises:
        ValueError: when no positive width comes near, naming the counts.
    """
    with_one, with_two = (count_parameters(_with_width(config, f)) for f in (1, 2))
    weights = with_two - with_one
    d_ff = round((target - with_one + weights) / (weights * unit)) * unit
    if d_ff < 1:
        raise ValueError(
            f"cannot match {target} parameters by narrowing the FFN: with d_ff=1 the model has {with_one}; "
            "take a wider baseline FFN or a smaller gate"
        )
    return _with_width(config, d_ff)


def _with_width(c: ModelConfig, d_ff: int) -> ModelConfig:
    moe = None if c.moe is None else c.moe.model_copy(update={"d_expert": d_ff})
    return c.model_copy(update={"d_ff": d_ff, "moe": moe})


def _block(c: ModelConfig, stack: Stack, layer: int) -> Shapes:
    shapes = _attention(c, c.gates(stack, layer), "attention", layer)
    if stack.has_cross:
        shapes |= _attention(c, c.gates(stack, layer, is_cross=True), "cross_attention", layer)
    shapes |= _norm("mlp_norm", c) if _before(c) else {}
    if c.moe is None:
        shapes |= _mlp("mlp", c, c.d_ff, c.mlp, c.bias)
    else:
        X, F = c.moe.n_experts, c.moe.d_expert
        shapes |= _linear("mlp.router", X, c.d_model, c.moe.router_bias)
        for w, (d_out, d_in) in {"w1": (F, c.d_model), "w3": (F, c.d_model), "w2": (c.d_model, F)}.items():
            own = _linear(f"mlp.{w}", d_out, d_in, c.moe.bias)
            shapes |= {name: (X, *shape) for name, shape in own.items()}
        if c.moe.n_shared:
            shapes |= _mlp("mlp.shared", c, c.moe.n_shared * F, "swiglu", False)
        if c.moe.shared_weight == "sigmoid":
            shapes["mlp.shared_router.weight"] = (1, c.d_model)
    return shapes | (_norm("mlp_post_norm", c) if _after(c) else {})


def _attention(c: ModelConfig, gates: tuple[GateSpec, ...], name: str, layer: int) -> Shapes:
    inner, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    short = name.removesuffix("_attention") if name != "attention" else name
    shapes = _norm(f"{short}_norm", c) if _before(c) else {}
    shapes |= _linear(f"{name}.q_proj", inner, c.d_model, c.bias)
    for tensor in ("k", "v"):
        if c.kv_experts is not None and tensor in c.kv_experts.what:
            n = c.kv_experts.n
            shapes |= _linear(f"{name}.{tensor}_proj.proj", n * kv, c.d_model, c.bias)
            shapes |= _linear(f"{name}.{tensor}_proj.router", n * c.n_kv_heads, c.d_model, False)
        else:
            shapes |= _linear(f"{name}.{tensor}_proj", kv, c.d_model, c.bias)
    shapes |= _linear(f"{name}.o_proj", c.d_model, inner, c.bias)
    for spec in gates:
        own = spec.parameter_shapes(c.d_model, c.n_heads, c.n_kv_heads, c.head_dim)
        shapes |= {f"{name}.gates.{spec.site}.{word}": shape for word, shape in own.items()}
    if c.qk_norm == "rms":
        shapes |= {f"{name}.{tensor}_norm.weight": (c.head_dim,) for tensor in "qk"}
    if c.qk_norm == "rms-all-heads":
        shapes |= {f"{name}.q_norm.weight": (inner,), f"{name}.k_norm.weight": (kv,)}
    heads = Heads(c.n_heads, c.n_kv_heads, c.head_dim, layer, c.max_seq_len)
    shapes |= {f"{name}.sink.{word}": learned.shape for word, learned in c.softmax.learned(heads).items()}
    return shapes | (_norm(f"{short}_post_norm", c) if _after(c) else {})


def _mlp(name: str, c: ModelConfig, d_ff: int, kind: str, bias: bool) -> Shapes:
    shapes = _linear(f"{name}.w1", d_ff, c.d_model, bias) | _linear(f"{name}.w2", c.d_model, d_ff, bias)
    return shapes | (_linear(f"{name}.w3", d_ff, c.d_model, bias) if kind == "swiglu" else {})


def _before(c: ModelConfig) -> bool:
    return c.norm_position in ("pre", "sandwich")


def _after(c: ModelConfig) -> bool:
    return c.norm_position in ("post", "sandwich", "reordered")


def _norm(name: str, c: ModelConfig, kind: str | None = None) -> Shapes:
    kind = kind or c.norm
    shapes: Shapes = {f"{name}.weight": (c.d_model,)}
    if kind == "layer":
        shapes[f"{name}.bias"] = (c.d_model,)
    if kind == "gated-rms":
        shapes |= {f"{name}.down.weight": (c.norm_rank, c.d_model), f"{name}.up.weight": (c.d_model, c.norm_rank)}
    return shapes


def _linear(name: str, d_out: int, d_in: int, bias: bool) -> Shapes:
    return {f"{name}.weight": (d_out, d_in)} | ({f"{name}.bias": (d_out,)} if bias else {})
