"""A tokenizer's own rule for how a text begins, and contexts with continuations as ids.

Notable: as the harness's model for transformers does it (`lm_eval.models.huggingface`), so that scores can be compared: a context
and its continuation are tokenized together and cut where the context ends, its last blanks going to the continuation. What
that hides is told: whether the context's own ids are the first of the whole's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any


@dataclass(frozen=True)
class Pair:
    """Ids of a context and of a continuation; `is_split`: the context alone is tokenized as it is in the whole."""

    context: list[int]
    continuation: list[int]
    is_split: bool = True


class Tokens:
    """A tokenizer of transformers, for a model with `n_ids` ids. `begins` are the ids that it puts before a text; `prefix`
    stands where a context is empty: its BOS, or its end of text where it has none."""

    def __init__(self, tokenizer: Any, n_ids: int):
        self.tokenizer, self.n_ids = tokenizer, n_ids
        bare, full = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
        start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        self.begins: list[int] = full[:start]
        stated = (getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos"))
        self.prefix: int | None = next((i for i in stated if i is not None), None)
        self._begin_text = None if self.prefix is None else tokenizer.decode([self.prefix])

    @property
    def rule(self) -> str:
        """How a text begins, in a sentence."""
        name = self.tokenizer.convert_ids_to_tokens
        begins = f"with {', '.join(repr(name(i)) for i in self.begins)}" if self.begins else "with nothing before it"
        empty = "an empty context is refused" if self.prefix is None else f"an empty context is {name(self.prefix)!r}"
        return f"a text begins as its tokenizer has it, {begins}; {empty}"

    @property
    def chat_template(self) -> str:
        """The template that a conversation is written with.

        Raises:
            ValueError: the tokenizer has none, or several and none for all.
        """
        stated = self.tokenizer.chat_template
        found = stated.get("default") if isinstance(stated, dict) else stated
        if not found:
            which = f"has templates {', '.join(sorted(stated))} and no default" if stated else "has no chat template"
            raise ValueError(f"--chat: this model's tokenizer {which}; leave --chat out")
        return found

    @property
    def chat_rule(self) -> str:
        """The template in words: a digest by which it is known, and how it begins.

        Raises:
            ValueError: as `chat_template`.
        """
        start = " ".join(self.chat_template.split())
        digest = sha256(self.chat_template.encode()).hexdigest()[:12]
        return f"{digest}: {start[:60]}" + ("…" if len(start) > 60 else "")

    def encode(self, texts: Iterable[str], *, begins: bool = True) -> list[list[int]]:
        """The ids of each text, begun by the tokenizer's rule unless the text spells its own beginning.

        Raises:
            ValueError: an id that the model does not have.
        """
        texts = list(texts)
        if not texts:
            return []
        found = self.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
        most = max((max(ids, default=0) for ids in found), default=0)
        if most >= self.n_ids:
            word = self.tokenizer.convert_ids_to_tokens(most)
            raise ValueError(
                f"the tokenizer gives {word!r} the id {most}, and the model has {self.n_ids} ids; take the tokenizer that it was "
                "trained with"
            )
        if not begins or not self.begins:
            return found
        own = self._begin_text
        return [
            ids if own and text.startswith(own) else [*self.begins, *ids]
            for text, ids in zip(texts, found, strict=True)
        ]

    def n_bytes(self, text: str, n: int) -> int:
        """How many bytes of a text the ids say that stand behind the first one among its first n, what begins a text included;
        a letter that is cut in two counts whole."""
        own = self._begin_text
        n_before = 0 if own and text.startswith(own) else len(self.begins)
        if not self.tokenizer.is_fast:
            ids = self.encode([text])[0][max(1, n_before) : n]
            return len(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False).encode())
        spans = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        ).offset_mapping[0 if n_before else 1 : n - n_before]
        return len(text[spans[0][0] : spans[-1][1]].encode()) if spans else 0

    def pairs(self, texts: Sequence[tuple[str, str]]) -> list[Pair]:
        """Contexts and continuations as ids.

        Raises:
            ValueError: an empty context where the tokenizer has nothing to put there; as `encode` does.
        """
        moved = [_moved(context, continuation) for context, continuation in texts]
        wanted = dict.fromkeys(text for c, t in moved if c for text in (c, c + t))
        ids = dict(zip(wanted, self.encode(wanted), strict=True))
        bare = dict.fromkeys(t for c, t in moved if not c)
        ids_bare = dict(zip(bare, self.encode(bare, begins=False), strict=True))
        return [
            self._after_nothing(ids_bare[t]) if not c else _cut(ids[c], ids[c + t]) for c, t in moved
        ]  # fmt: skip

    def window(self, text: str) -> list[int]:
        """A whole text for rolling log-likelihoods."""
        return self.encode([text])[0]

    @property
    def first(self) -> int:
        """The id that stands before everything.

        Raises:
            ValueError: the tokenizer has none.
        """
        if self.prefix is None:
            raise ValueError(
                "the tokenizer has neither a BOS nor an end-of-text token, so a text without context has no first token to be "
                "predicted from; take tasks with contexts, or state bos_token in tokenizer_config.json"
            )
        return self.prefix

    def _after_nothing(self, ids: list[int]) -> Pair:
        return Pair(ids[:1], ids[1:]) if ids and ids[0] == self.first else Pair([self.first], ids)


def _moved(context: str, continuation: str) -> tuple[str, str]:
    """The last blanks of a context belong to the continuation's first token."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def _cut(context: list[int], whole: list[int]) -> Pair:
    n = len(context)
    return Pair(context, whole[n:], whole[:n] == context)
