"""The families of transformers that are imported, by `model_type`, and well-known ones that are not, with the reason."""

from .family import Family
from .llama import LLAMA
from .qwen3_next import QWEN3_NEXT
from .t5 import T5

FAMILIES: dict[str, Family] = {
    "eurobert": LLAMA,
    "llama": LLAMA,
    "mistral": LLAMA,
    "olmo": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "qwen3_next": QWEN3_NEXT,
    "t5": T5,
}

NOT_OURS: dict[str, str] = {
    "bert": "it norms the sum of its embeddings (embeddings.LayerNorm), and a ModelConfig norms blocks alone",
    "roberta": "it norms the sum of its embeddings (embeddings.LayerNorm), and a ModelConfig norms blocks alone",
    "gpt_oss": "its experts clamp what they compute (swiglu_limit) and have biases, as their router has; its attention is "
    "that of softmax=sink-logit",
    "olmo2": "it norms what attention and MLP give and not what they read, and its q/k-norms span all heads (q_norm of "
    "num_attention_heads · head_dim channels); a ModelConfig norms what they read, and each head by itself",
    "smollm3": "some of its layers have no rotary positions (no_rope_layers)",
}
