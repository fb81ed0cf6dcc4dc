"""An encoder-decoder: gates in the encoder, in the decoder's self-attention and in its cross-attention."""

from torch import Tensor

from ..nn.cache import KVCache
from ..nn.moe import Routing
from ..nn.watch import Watch
from .block import Pass
from .model import Model


class EncoderDecoder(Model):
    """Source ids [B, S] and target ids [B, T] to logits of the next target [B, T, V]."""

    def forward(
        self,
        tokens_BS: Tensor,
        decoder_tokens_BT: Tensor,
        *,
        cache: KVCache | None = None,
        routed: list[Routing] | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Logits of the next target at every target position, in the compute type.

        Args:
            tokens_BS: what the encoder reads; read again at every call without a cache.
            decoder_tokens_BT: the targets so far, the start token first.
            cache: decoding: the targets continue at position cache.length; the encoder is run at the first call only,
                as its keys and values are kept.
            routed: a list to which each layer of experts appends what its router did, the encoder's first.
            watch: each layer of the decoder adds the first-token mass of its self-attention.

        Raises:
            ValueError: when a sequence is longer than the positions or the cache.
        """
        return self.head(self.hidden(tokens_BS, decoder_tokens_BT, cache=cache, routed=routed, watch=watch))

    def hidden(
        self,
        tokens_BS: Tensor,
        decoder_tokens_BT: Tensor,
        *,
        cache: KVCache | None = None,
        routed: list[Routing] | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """What the head reads, [B, T, D]; arguments and errors as of `forward`."""
        context_BSD = None if cache is not None and cache.context else self.encode(tokens_BS, routed=routed)
        return self._decoded(context_BSD, decoder_tokens_BT, Pass(cache=cache, routed=routed, watch=watch))

    def encode(self, tokens_BS: Tensor, *, routed: list[Routing] | None = None) -> Tensor:
        """The context that the decoder looks at, [B, S, D]."""
        return self.run(self.config.architecture.stacks[0], tokens_BS, Pass(routed=routed))

    def decode(
        self,
        context_BSD: Tensor | None,
        decoder_tokens_BT: Tensor,
        *,
        cache: KVCache | None = None,
        routed: list[Routing] | None = None,
    ) -> Tensor:
        """Logits [B, T, V] given the context; None when the cache has it."""
        return self.head(self._decoded(context_BSD, decoder_tokens_BT, Pass(cache=cache, routed=routed)))

    def _decoded(self, context_BSD: Tensor | None, decoder_tokens_BT: Tensor, given: Pass) -> Tensor:
        given.context_BSD = context_BSD
        return self.run(self.config.architecture.stacks[1], decoder_tokens_BT, given)
