"""How one run is laid out over processes: a mesh of data, tensor and expert ranks, and what of the weights each one holds.

Nothing here changes a result beyond rounding, so it is part of `Execution` and of no fingerprint.
"""

from typing import Annotated, Literal

from pydantic import Field

from .base import Config, ConfigError
from .model import ModelConfig
from .normaliser import Differential, Normaliser

Ranks = Annotated[int, Field(gt=0, le=65_536)]


class ParallelConfig(Config):
    """`dp` ranks share each batch (0: as many as `tp` leaves), `tp` ranks share each layer, head by head and channel by
    channel; `ep` of the data ranks share the experts, and tokens travel to them.

    `shard`: `none`, every data rank holds all weights of its part; `zero2`, weights, gradients and the optimiser's state are
    shared out, and what was gathered for a forward pass stays until the backward pass; `zero3` lets go of each block's
    weights in between.
    """

    dp: Annotated[int, Field(ge=0, le=65_536)] = 0
    tp: Ranks = 1
    ep: Ranks = 1
    shard: Literal["none", "zero2", "zero3"] = "none"

    @property
    def is_plain(self) -> bool:
        """Whether every rank holds the whole model."""
        return self.tp == self.ep == 1 and self.shard == "none"

    @property
    def fewest(self) -> int:
        """Processes that it needs at least; where dp is stated, exactly."""
        return max(self.dp, self.ep) * self.tp

    def data_ranks(self, processes: int) -> int:
        """How many ranks share a batch.

        Raises:
            ValueError: a mesh that is not one of so many processes.
        """
        dp = self.dp or processes // self.tp
        if dp * self.tp != processes:
            asked = f"dp={self.dp} tp={self.tp}" if self.dp else f"tp={self.tp}"
            raise ValueError(
                f"execution.parallel: {asked} does not make {processes} processes; dp × tp must be their number, or leave dp out"
            )
        if dp % self.ep:
            raise ValueError(
                f"execution.parallel.ep={self.ep} does not divide the {dp} data ranks, which share the experts; take a divisor"
            )
        return dp

    def check(self, model: ModelConfig, batch_size: int, processes: int) -> None:
        """Refuse a mesh that does not fit a resolved model or its batches.

        Raises:
            ConfigError: with one sentence for each thing that does not divide.
        """
        try:
            problems = [*_data(self.data_ranks(processes), batch_size), *self._tensor(model), *self._expert(model)]
        except ValueError as error:
            problems = [str(error)]
        if problems:
            raise ConfigError(problems)

    def _tensor(self, model: ModelConfig) -> list[str]:
        tp, word = self.tp, f"execution.parallel.tp={self.tp}"
        if tp == 1:
            return []
        problems = unshareable_heads(tp, model.n_heads, model.n_kv_heads, model.softmax, word=word, names="model.")
        widths = {"d_ff": model.d_ff}
        if model.moe is not None:
            widths = {"moe.d_expert": model.moe.d_expert}
        problems += [f"{word} does not divide model.{k}={v}; take a divisor" for k, v in widths.items() if v % tp]
        if self.ep > 1:
            problems.append(f"{word} and ep={self.ep}: experts are shared by one of the two; leave the other at 1")
        return problems

    def _expert(self, model: ModelConfig) -> list[str]:
        if self.ep == 1:
            return []
        word = f"execution.parallel.ep={self.ep}"
        if model.moe is None:
            return [f"{word} shares experts, and this model has none; leave it at 1, or state model.moe"]
        if model.moe.n_experts % self.ep:
            return [f"{word} does not divide model.moe.n_experts={model.moe.n_experts}; take a divisor"]
        return []


def unshareable_heads(
    tp: int, n_heads: int, n_kv_heads: int, softmax: Normaliser, *, word: str, names: str = ""
) -> list[str]:
    """Why `tp` ranks cannot share the heads of an attention layer, a sentence each, in which `word` states them."""
    problems = []
    if n_heads % tp:
        problems.append(f"{word} does not divide {names}n_heads={n_heads}; take a divisor")
    elif n_kv_heads % tp and tp % n_kv_heads:
        problems.append(
            f"{word} and {names}n_kv_heads={n_kv_heads}: ranks must share kv heads evenly, so one must divide the other"
        )
    if isinstance(softmax, Differential):
        problems.append(f"{word}: {names}softmax=differential pairs heads that other ranks hold; take one rank")
    return problems


def _data(dp: int, batch_size: int) -> list[str]:
    if batch_size < dp:
        return [f"train.batch_size={batch_size} has fewer sequences than {dp} data ranks; take fewer processes"]
    if batch_size % dp:
        return [f"train.batch_size={batch_size} does not divide among {dp} processes; take a divisor"]
    return []
