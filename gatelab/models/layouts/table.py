"""LAYOUTS: every layout of gated attention that is read and written."""

from .layout import Layout
from .megatron import MEGATRON, MEGATRON_HEADWISE
from .qwen import QWEN3_NEXT, QWEN_GATED_ELEMENTWISE, QWEN_GATED_HEADWISE
from .separate import AFMOE, GATELAB, LAGUNA, OLMO_CORE, STEP

LAYOUTS: dict[str, Layout] = {
    "afmoe": AFMOE,
    "gatelab": GATELAB,
    "laguna": LAGUNA,
    "megatron": MEGATRON,
    "megatron-headwise": MEGATRON_HEADWISE,
    "olmo-core": OLMO_CORE,
    "qwen-gated-elementwise": QWEN_GATED_ELEMENTWISE,
    "qwen-gated-headwise": QWEN_GATED_HEADWISE,
    "qwen3-next": QWEN3_NEXT,
    "step": STEP,
}
