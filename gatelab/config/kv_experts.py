"""KVExperts: values, or keys and values, as sigmoid-routed sums of expert maps (Switch-Head, arXiv 2312.07987)."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer, model_validator

from .base import Config


class KVExperts(Config):
    """`v-8top2`: each kv head has 8 value maps; v_g = Σ over the 2 with the largest score of σ(x w_e) · x W_e.

    `kv-…` routes the keys in the same way, with scores of their own. One expert is a headwise value gate (G2). Adds
    (n − 1)·d·G·K weights of maps and n·d·G of scores for each of v and k: the paper prints fewer for its rows of Table 6
    and does not say how it counts them.
    """

    what: Literal["v", "kv"]
    n: Annotated[int, Field(gt=0, le=1024)]
    top: Annotated[int, Field(gt=0, le=1024)]

    @model_validator(mode="before")
    @classmethod
    def _from_slug(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"(v|kv)-(\d{1,4})top(\d{1,4})", value)
        if found is None:
            raise ValueError(f"kv_experts={value!r}: expected v-<experts>top<active> or kv-…, as in v-8top2; or null")
        return {"what": found[1], "n": int(found[2]), "top": int(found[3])}

    @model_validator(mode="after")
    def _possible(self) -> "KVExperts":
        if self.top > self.n:
            raise ValueError(
                f"kv_experts={self.slug!r}: {self.top} of {self.n} experts cannot be active; take {self.n} at most"
            )
        return self

    @property
    def slug(self) -> str:
        """`KVExperts` validated from its slug is equal."""
        return f"{self.what}-{self.n}top{self.top}"

    @model_serializer
    def _to_slug(self) -> str:
        return self.slug
