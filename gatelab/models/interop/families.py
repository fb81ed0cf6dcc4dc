"""The families of transformers that are imported, by `model_type`, and well-known ones that are not, with the reason."""

from .bert import BERT, ROBERTA
from .experts import EXPERTS
from .family import Family
from .gpt_oss import GPT_OSS
from .llama import LLAMA
from .qwen3 import QWEN3
from .qwen3_next import QWEN3_NEXT
from .t5 import T5

FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "eurobert": LLAMA,
    "gpt_oss": GPT_OSS,
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": EXPERTS,
    "olmo": LLAMA,
    "olmo2": LLAMA,
    "qwen2": LLAMA,
    "qwen2_moe": EXPERTS,
    "qwen3": QWEN3,
    "qwen3_moe": EXPERTS,
    "qwen3_next": QWEN3_NEXT,
    "roberta": ROBERTA,
    "t5": T5,
}
NOT_OURS: dict[str, str] = {
    "smollm3": "some of its layers have no rotary positions (no_rope_layers)",
}
