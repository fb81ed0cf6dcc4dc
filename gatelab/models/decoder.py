"""A decoder-only language model of equal blocks, dense or with experts."""

from torch import Tensor

from ..nn.cache import KVCache
from ..nn.moe import Routing
from ..nn.watch import Watch
from .block import Pass
from .model import Model


class Decoder(Model):
    """Token ids [B, T] to logits of the next token [B, T, V]."""

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        segment_ids_BT: Tensor | None = None,
        cache: KVCache | None = None,
        routed: list[Routing] | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Logits of the next token at every position, in the compute type.

        Args:
            segment_ids_BT: document numbers; attention stays within a document.
            cache: decoding: the tokens continue at position cache.length, which moves on.
            routed: a list to which each layer of experts appends what its router did.
            watch: each layer adds its first-token mass; one with a window adds no number.

        Raises:
            ValueError: when the sequence is longer than the positions or the cache.
        """
        return self.head(self.hidden(tokens_BT, segment_ids_BT=segment_ids_BT, cache=cache, routed=routed, watch=watch))

    def hidden(
        self,
        tokens_BT: Tensor,
        *,
        segment_ids_BT: Tensor | None = None,
        cache: KVCache | None = None,
        routed: list[Routing] | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """What the head reads, [B, T, D]; arguments and errors as of `forward`."""
        (stack,) = self.config.architecture.stacks
        return self.run(stack, tokens_BT, Pass(segment_ids_BT, cache, routed=routed, watch=watch))
