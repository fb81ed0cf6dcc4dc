"""An encoder-only model: every token sees all others; trained to fill in what was masked."""

from torch import Tensor

from ..nn.moe import Routing
from ..nn.watch import Watch
from .block import Pass
from .model import Model


class Encoder(Model):
    """Token ids [B, T], masked ones among them, to logits of the token at each position [B, T, V]."""

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        segment_ids_BT: Tensor | None = None,
        token_types_BT: Tensor | None = None,
        routed: list[Routing] | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Logits of what stands at every position, in the compute type.

        Args:
            segment_ids_BT: document numbers; attention stays within a document.
            token_types_BT: kinds of tokens from 0, below n_token_types; None: all 0.
            routed: a list to which each layer of experts appends what its router did.
            watch: nothing is added, as no layer is causal; here so that all architectures take the same.

        Raises:
            ValueError: when the sequence is longer than the positions, or kinds are given to a model without them.
        """
        x_BTD = self.hidden(
            tokens_BT, segment_ids_BT=segment_ids_BT, token_types_BT=token_types_BT, routed=routed, watch=watch
        )
        return self.head(x_BTD)

    def hidden(
        self,
        tokens_BT: Tensor,
        *,
        segment_ids_BT: Tensor | None = None,
        token_types_BT: Tensor | None = None,
        routed: list[Routing] | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """What the head reads, [B, T, D]; arguments and errors as of `forward`."""
        (stack,) = self.config.architecture.stacks
        return self.run(
            stack, tokens_BT, Pass(segment_ids_BT, routed=routed, watch=watch, token_types_BT=token_types_BT)
        )
