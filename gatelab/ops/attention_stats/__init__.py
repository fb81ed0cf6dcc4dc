"""Statistics of the attention matrix without the matrix: blocks of queries, float32."""

from .blocks import Block, attention_blocks
from .reference import AttentionStats, attention_stats
from .statistic import Columns, FirstKey, LargestLogit, Output, Spread, Statistic, one_pass

__all__ = [
    "AttentionStats",
    "Block",
    "Columns",
    "FirstKey",
    "LargestLogit",
    "Output",
    "Spread",
    "Statistic",
    "attention_blocks",
    "attention_stats",
    "one_pass",
]
