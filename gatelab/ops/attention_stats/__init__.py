"""Statistics of the attention matrix without the matrix: blocks of queries, float32."""

from .reference import AttentionStats, attention_stats

__all__ = ["AttentionStats", "attention_stats"]
