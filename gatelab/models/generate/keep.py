"""Which keys of a long text are kept, and the cache that keeps them.

Notable: with `first` tokens kept, ungated models stream as StreamingLLM found (arXiv 2309.17453, four are enough); a model
that has no sinks should not need them, which `gatelab.models.generate.streaming_losses` measures.
"""

import re
from typing import Any

from pydantic import model_serializer, model_validator

from ...config.base import Config
from ...config.model import ModelConfig
from ...nn.cache import Cache
from ...nn.recent import SlidingCache, StreamingCache
from ..model import Model


class Keep(Config):
    """`all`; `last-256`: a token sees the 256 last ones, itself among them; `first-4-last-252`: and the first four.

    Where something is dropped, positions are places among what is kept: the farthest key is `first + last − 1` away at
    most, however long the text. A model's registers are kept in any case, and not counted.
    """

    first: int = 0
    last: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_slug(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"all|(?:first-(\d{1,9})-)?last-(\d{1,9})", value)
        if found is None:
            raise ValueError(f"keep={value!r}: expected all, last-<n> or first-<k>-last-<n>, as in first-4-last-252")
        return {"first": int(found[1] or 0), "last": None if found[2] is None else int(found[2])}

    @model_validator(mode="after")
    def _possible(self) -> "Keep":
        if self.first < 0 or (self.last is not None and self.last < 1):
            raise ValueError(
                f"first={self.first}, last={self.last}: take 0 or more of the first tokens, and 1 or more of the last, or "
                "last=None for all"
            )
        if self.first and self.last is None:
            raise ValueError(f"first={self.first} without last keeps everything; state last, or leave first out")
        return self

    @property
    def slug(self) -> str:
        """`Keep` validated from its slug is equal."""
        if self.last is None:
            return "all"
        return f"first-{self.first}-last-{self.last}" if self.first else f"last-{self.last}"

    @model_serializer
    def _to_slug(self) -> str:
        return self.slug


def new_cache(model: Model, batch: int, n_tokens: int, keep: Keep, *, at_once: int = 1) -> Cache:
    """An empty cache of a model's causal stack for texts of `n_tokens` a row, of which `keep` says what stays.

    Layers with a window keep that alone. `n_bytes` is the memory that it takes.

    Args:
        at_once: the most tokens that one pass appends to a cache that drops tokens.

    Raises:
        ValueError: for a text, or what is kept of it, beyond the model's positions; for a `keep` that drops tokens of a model
            whose positions, or forget gate, count what was dropped.
    """
    c = model.config
    check_keep(c, keep, at_once=at_once)
    if keep.last is None and n_tokens > c.max_seq_len:
        raise ValueError(
            f"{n_tokens} tokens do not fit into max_seq_len={c.max_seq_len}; take fewer, or a Keep(last=…) that drops some"
        )
    stack = c.architecture.stacks[-1]
    windows = [None if c.is_global(layer) else c.window for layer in range(c.depth(stack))]
    # None of the windows hides anything where all are longer than the text.
    if keep.last is None and all(w is None or w >= n_tokens + c.registers for w in windows):
        return model.new_cache(batch, n_tokens)
    common = {
        "batch": batch,
        "n_kv_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "n_score_heads": c.n_heads if any(g.site == "scores" for g in c.gates(stack)) else 0,
        "dtype": model.compute_dtype or model.head.weight.dtype,
        "device": model.head.weight.device,
    }
    if keep.last is None:
        return SlidingCache(windows=windows, max_seq_len=n_tokens + c.registers, **common)
    return StreamingCache(first=keep.first + c.registers, last=keep.last, n_layers=len(windows), **common)


def check_keep(config: ModelConfig, keep: Keep, *, at_once: int = 1) -> None:
    """Refuses what is no `Keep`, to drop tokens of a model that counts them, and to keep more than it has positions for.

    Raises:
        ValueError: saying which.
    """
    c = config
    if not isinstance(keep, Keep):
        raise ValueError(
            f"keep={keep!r}: give a Keep, as in Keep(first=4, last=252) or Keep.model_validate('last-256')"
        )
    if keep.last is None:
        return
    if c.positions in ("learned", "relative"):
        raise ValueError(
            f"keep={keep.slug} counts positions inside the cache, and positions={c.positions!r} are those of the text; take "
            "keep=all, or a model with rope or no positions"
        )
    if keep.first and any(g.form == "forget" for g in c.gates(c.architecture.stacks[-1])):
        raise ValueError(
            f"keep={keep.slug} drops tokens between the first and the last, over which a forget gate sums; take first=0, or "
            "keep=all"
        )
    most = keep.first + keep.last - 1 + at_once
    if most > c.max_seq_len:
        raise ValueError(
            f"keep={keep.slug} and {at_once} tokens a pass take {most} positions, and max_seq_len={c.max_seq_len}; keep fewer"
        )
