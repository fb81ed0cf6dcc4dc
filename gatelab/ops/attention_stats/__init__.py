"""Statistics of the attention matrix without the matrix: blocks of queries, float32."""

from .block import Block, Gates
from .effect import N_BINS, OPEN, SHUT, Effect, Scores, SiteScores, ValueNorms
from .first_mass import mean_first_token_mass
from .reference import AttentionStats, attention_stats
from .sampled import Places, Rank, by_octave, octave, ranks, sampled_queries
from .statistic import Columns, FirstKey, LargestLogit, Spread, Statistic, joined, n_bytes_of, one_pass
from .stretch import Stretch, along_batch

__all__ = [
    "N_BINS",
    "OPEN",
    "SHUT",
    "AttentionStats",
    "Block",
    "Columns",
    "Effect",
    "FirstKey",
    "Gates",
    "LargestLogit",
    "Places",
    "Rank",
    "Scores",
    "SiteScores",
    "Spread",
    "Statistic",
    "Stretch",
    "ValueNorms",
    "along_batch",
    "attention_stats",
    "by_octave",
    "joined",
    "mean_first_token_mass",
    "n_bytes_of",
    "octave",
    "one_pass",
    "ranks",
    "sampled_queries",
]
