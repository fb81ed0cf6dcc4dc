"""Where what a model writes ends: stop strings, and the ids that end a text."""

from collections.abc import Sequence

from .passes import Passes
from .tokens import Tokens


class Stops:
    """Stop strings, to which the text of the tokenizer's end of text is added as the harness does, and stop ids: the
    tokenizer's, and those of a checkpoint's generation_config."""

    def __init__(self, tokens: Tokens, passes: Passes, until: Sequence[str]):
        tokenizer = tokens.tokenizer
        end = tokenizer.eos_token_id
        stated = getattr(getattr(passes.model, "generation_config", None), "eos_token_id", None)
        ids = [*(stated if isinstance(stated, list) else [stated]), end]
        self.ids = frozenset(i for i in ids if i is not None and i < tokens.n_ids)
        text = [] if end is None else [tokenizer.decode([end])]
        self.strings = [s for s in dict.fromkeys([*until, *text]) if s]
        self._tokenizer = tokenizer
        # A token holds a byte at least, and one more may hold the blank that a decoder drops in front.
        self._reach = 1 + max((len(s.encode()) for s in self.strings), default=0)

    def is_done(self, ids: Sequence[int]) -> bool:
        """Whether a stop string ends among the last of these."""
        tail = self._tokenizer.decode(list(ids[-self._reach :]))
        return any(s in tail for s in self.strings)

    def text(self, ids: Sequence[int]) -> str:
        """The text before the first stop string, without special tokens."""
        found = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        for string in self.strings:
            found = found.split(string)[0]
        return found
