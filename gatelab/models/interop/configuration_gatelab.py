"""The configuration of a Gatelab decoder, as transformers keeps it; shipped beside its weights with modeling_gatelab.py."""

from typing import Any

from transformers import PreTrainedConfig


class GatelabConfig(PreTrainedConfig):
    """A decoder with a gate on its attention output (arXiv 2505.06708).

    `gate` headwise has one score a head, elementwise one a channel, None: no gate. `rope_frequencies` are radians a token,
    one for each channel pair that turns, the first ones of a head; empty: none. `learned_positions` adds a table at the bottom.
    `layer_types` says which layers have the window. `norm_position` is pre, post, sandwich or reordered;
    `first_hidden_from` names, by layer, the heads from which the key at position 0 is hidden; empty: none.
    `qk_norm` none, rms, rms-no-gain or rms-all-heads.
    """

    model_type = "gatelab"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 256,
        intermediate_size: int = 704,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        num_key_value_heads: int = 4,
        head_dim: int = 64,
        max_position_embeddings: int = 2048,
        gate: str | None = None,
        gate_activation: str = "sigmoid",
        gate_bias: bool = False,
        qk_norm: str = "none",
        norm: str = "rms",
        norm_position: str = "pre",
        norm_eps: float = 1e-6,
        mlp: str = "swiglu",
        bias: bool = False,
        rope_frequencies: list[float] | None = None,
        rope_amplitude: float = 1.0,
        learned_positions: bool = False,
        sliding_window: int | None = None,
        layer_types: list[str] | None = None,
        first_hidden_from: list[list[int]] | None = None,
        use_cache: bool = True,
        **kwargs: Any,
    ):
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.num_key_value_heads, self.head_dim = num_key_value_heads, head_dim
        self.max_position_embeddings, self.use_cache = max_position_embeddings, use_cache
        self.gate, self.gate_activation, self.gate_bias = gate, gate_activation, gate_bias
        self.qk_norm, self.norm, self.norm_position, self.norm_eps = qk_norm, norm, norm_position, norm_eps
        self.mlp, self.bias = mlp, bias
        self.rope_frequencies, self.rope_amplitude = rope_frequencies or [], rope_amplitude
        self.learned_positions, self.sliding_window = learned_positions, sliding_window
        self.layer_types = layer_types or ["full_attention"] * num_hidden_layers
        self.first_hidden_from = first_hidden_from or []
        super().__init__(**kwargs)
