"""Objective: what a run predicts, as a value: the next token, masked tokens, answers, corrupted spans, or a continuation.

Notable: how many tokens are masked, and how many spans of them there are, is arithmetic on the sequence length; only
where they lie is drawn. So every batch of a run has one shape and one number of targets, and losses are comparable.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Config

_Share = Annotated[float, Field(ge=0, le=1)]


class NextToken(Config):
    """Every token from those before it."""

    kind: Literal["next-token"] = "next-token"

    def extra_ids(self, seq_len: int) -> int:
        """None: the source's ids are enough."""
        return 0

    def lengths(self, seq_len: int) -> tuple[int, int | None]:
        """(tokens that the stack reads, tokens that a decoder reads besides or None), of `seq_len` source tokens."""
        return seq_len, None


class MaskedTokens(Config):
    """A share of the tokens, from all the others on both sides (BERT, arXiv 1810.04805).

    Of the chosen tokens a share `keep` stays as it is, a share `random` becomes any id of the source, and the rest
    becomes the mask; each chosen token is drawn by itself.
    """

    kind: Literal["masked"] = "masked"
    share: Annotated[float, Field(gt=0, le=1)] = 0.15
    keep: _Share = 0.1
    random: _Share = 0.1

    @model_validator(mode="after")
    def _room(self) -> "MaskedTokens":
        if self.keep + self.random > 1:
            raise ValueError(
                f"keep={self.keep:g} and random={self.random:g} are shares of the chosen tokens and sum to more than "
                f"1; lower one"
            )
        return self

    def extra_ids(self, seq_len: int) -> int:
        """The mask."""
        return 1

    def lengths(self, seq_len: int) -> tuple[int, int | None]:
        """As `NextToken.lengths`: an encoder reads all of the sequence."""
        return seq_len, None

    def n_chosen(self, seq_len: int, *, has_bos: bool) -> int:
        """How many tokens of a sequence are targets, at least one; a BOS at its beginning may not be.

        Raises:
            ValueError: when `seq_len` is less than 2.
        """
        _refuse_too_short(seq_len, self.kind)
        return max(1, round(self.share * (seq_len - has_bos)))


class Answers(Config):
    """What a task asks, from all the rest on both sides: a mask stands for each token of an answer that a sequence goes on
    with, and the answer is predicted where it is asked, at the token before it."""

    kind: Literal["answers"] = "answers"

    def extra_ids(self, seq_len: int) -> int:
        """The mask."""
        return 1

    def lengths(self, seq_len: int) -> tuple[int, int | None]:
        """As `NextToken.lengths`: an encoder reads all of the sequence."""
        return seq_len, None


class SpanCorruption(Config):
    """Spans of tokens, from what is left when a sentinel stands for each (T5, arXiv 1910.10683).

    The encoder reads `a ⟨0⟩ d e ⟨1⟩` for `a b c d e f`, and the decoder says `⟨0⟩ b c ⟨1⟩ f ⟨2⟩`. `share` of the
    tokens are taken out, in spans of `mean_span` tokens on average. As in T5 clear and taken spans alternate, a clear
    one first: the first token always stays and the last is always taken, and where there is but one span (30 tokens
    or fewer at these defaults) it lies at the end of every sequence.
    """

    kind: Literal["span-corruption"] = "span-corruption"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    mean_span: Annotated[float, Field(ge=1)] = 3.0

    def extra_ids(self, seq_len: int) -> int:
        """A sentinel a span, the final one, and the decoder's start (unused where the source has a BOS)."""
        return self.counts(seq_len)[1] + 2

    def lengths(self, seq_len: int) -> tuple[int, int | None]:
        """As `NextToken.lengths`: an encoder reads one sentinel a span, a decoder one more than that."""
        n_taken, n_spans = self.counts(seq_len)
        return seq_len - n_taken + n_spans, n_taken + n_spans + 1

    def counts(self, seq_len: int) -> tuple[int, int]:
        """(tokens taken out, spans of them), both rounded half to even as T5 does, at least one.

        T5 leaves it open what more spans than clear tokens mean; here there are then as many as clear tokens.

        Raises:
            ValueError: when `seq_len` is less than 2.
        """
        _refuse_too_short(seq_len, self.kind)
        n_taken = min(max(1, round(self.share * seq_len)), seq_len - 1)
        return n_taken, min(max(1, round(n_taken / self.mean_span)), seq_len - n_taken)


class Continuation(Config):
    """The end of a sequence from its beginning: an encoder reads the first `share`, a decoder continues it."""

    kind: Literal["continuation"] = "continuation"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5

    def extra_ids(self, seq_len: int) -> int:
        """None: the decoder starts from the last token that the encoder read."""
        return 0

    def lengths(self, seq_len: int) -> tuple[int, int | None]:
        """As `NextToken.lengths`: a decoder reads the encoder's last token and the rest.

        Raises:
            ValueError: when `seq_len` is less than 2.
        """
        _refuse_too_short(seq_len, self.kind)
        n_read = min(max(1, round(self.share * seq_len)), seq_len - 1)
        return n_read, seq_len - n_read + 1


Objective = Annotated[NextToken | MaskedTokens | Answers | SpanCorruption | Continuation, Field(discriminator="kind")]


def _refuse_too_short(seq_len: int, kind: str) -> None:
    if seq_len < 2:
        raise ValueError(
            f"seq_len={seq_len}: {kind!r} predicts a part of a sequence from another; give it at least 2 tokens"
        )
