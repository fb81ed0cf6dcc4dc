"""How the next token is taken from logits: the most likely one, or drawn at a temperature from the top k or the top p.

Notable: a row draws with one uniform number a token, from a stream of its own seed, through the inverse of its cumulative
distribution. So a row's tokens do not depend on its neighbours, nor on the device, and nothing is drawn while it decodes.
"""

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor

from ...config.base import Config


class Sampling(Config):
    """What each next token is.

    `temperature` 0 takes the most likely token; otherwise it is drawn from softmax(logits / temperature), of the `top_k` most
    likely tokens, and of those the fewest that have at least a share `top_p` of their probability (nucleus, arXiv
    1904.09751). The first of equal logits counts as the most likely. `seed`: one for all rows, where row b has a stream of
    its own, or one a row, as each would have alone.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | tuple[int, ...] = 0

    @model_validator(mode="after")
    def _possible(self) -> "Sampling":
        if not self.temperature >= 0:
            raise ValueError(
                f"temperature={self.temperature:g}: expected 0 for the most likely token, or a number above 0"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: expected how many tokens may be drawn, 1 or more, or None for all")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p:g}: expected a share of the probability above 0, and 1 at most")
        if any(s < 0 for s in (self.seed if isinstance(self.seed, tuple) else (self.seed,))):
            raise ValueError(f"seed={self.seed}: expected whole numbers from 0")
        return self

    def uniforms(self, n_rows: int, n_tokens: int) -> Tensor | None:
        """One number in [0, 1) a row and token, [B, N] float64 on the CPU; None where nothing is drawn.

        Raises:
            ValueError: when there is a seed a row, and another number of rows.
        """
        seeds = self.seed if isinstance(self.seed, tuple) else None
        if seeds is not None and len(seeds) != n_rows:
            raise ValueError(f"{len(seeds)} seeds for {n_rows} prompts; give one a prompt, or one number for all")
        if self.temperature == 0:
            return None
        keys = [(self.seed, b) for b in range(n_rows)] if seeds is None else [(s, 0) for s in seeds]
        # NumPy guarantees this generator's bits, and 53 of them make a float64.
        words = [np.random.Philox(key=np.array(key, np.uint64)).random_raw(n_tokens) for key in keys]
        return torch.from_numpy((np.array(words).reshape(n_rows, n_tokens) >> np.uint64(11)) * 2.0**-53)


def next_tokens(logits_BV: Tensor, sampling: Sampling, uniform_B: Tensor | None) -> Tensor:
    """The next token of each row, [B] int64; `uniform_B` as `Sampling.uniforms` gives it, not read at temperature 0."""
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    # Over a large vocabulary sums in float32 lose the rare tokens. Less the largest logit, since logits over a small
    # temperature overflow.
    logits_BV = logits_BV.double()
    logits_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / sampling.temperature
    if sampling.top_k is None and sampling.top_p == 1:
        return _drawn(logits_BV.softmax(dim=-1), uniform_B)
    ordered_BV, token_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        ordered_BV, token_BV = ordered_BV[:, : sampling.top_k], token_BV[:, : sampling.top_k]
    p_BV = ordered_BV.softmax(dim=-1)
    is_kept_BV = p_BV.cumsum(dim=-1) - p_BV < sampling.top_p
    return token_BV.gather(1, _drawn(p_BV * is_kept_BV, uniform_B)[:, None])[:, 0]


def _drawn(p_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The column at which the sums of a row pass its share `uniform_B` of the whole; never one of probability 0."""
    sums_BV = p_BV.cumsum(dim=-1)
    column_B = (sums_BV <= uniform_B[:, None] * sums_BV[:, -1:]).sum(dim=-1)
    return column_B.clamp(max=p_BV.shape[-1] - 1)
