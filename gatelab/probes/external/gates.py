"""Where known families of transformers keep the gate of their attention output, as a table of its classes.

The activation is that of the family's preset; whether a head has one score or one a channel, the projection's width
says.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...config.gate import GateSpec

# The projection's output [B, T, N] and the numbers of heads H and channels K -> logits [B, T, H, K or 1].
Read = Callable[[Tensor, int, int], Tensor]


def _by_head(output_BTN: Tensor, H: int, K: int) -> Tensor:
    return output_BTN.unflatten(-1, (H, -1))


def _second_half(output_BTN: Tensor, H: int, K: int) -> Tensor:
    """Of each head's [query, gate]."""
    return output_BTN.unflatten(-1, (H, 2 * K))[..., K:]


@dataclass(frozen=True)
class Family:
    """A gate after the attention: the projection its logits come out of, how to read them, and the preset."""

    projection: str
    read: Read
    preset: str

    def gate(self, output_BTN: Tensor, H: int, K: int) -> tuple[GateSpec, Tensor]:
        """The gate's spec and its logits, [B, T, H, K or 1]."""
        logits_BTHK = self.read(output_BTN, H, K)
        granularity = "headwise" if logits_BTHK.shape[-1] == 1 and K > 1 else "elementwise"
        return GateSpec.parse(self.preset).model_copy(update={"granularity": granularity}), logits_BTHK


# The attention's class -> its gate.
FAMILIES: dict[str, Family] = {
    "AfmoeAttention": Family("gate_proj", _by_head, "afmoe"),
    "LagunaAttention": Family("g_proj", _by_head, "laguna"),
    "MuseGlimmerTextAttention": Family("gate_proj", _by_head, "muse-glimmer"),
    "Qwen3NextAttention": Family("q_proj", _second_half, "qwen3-next"),
    "Qwen3_5Attention": Family("q_proj", _second_half, "qwen3.5"),
    "Qwen3_5MoeAttention": Family("q_proj", _second_half, "qwen3.5"),
    "Step3p7Attention": Family("g_proj", _by_head, "step-3.5"),
}
