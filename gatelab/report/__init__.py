"""Findings and a study folder in, one offline HTML page and three CSV files out. Free of torch."""

from .page import write_report

__all__ = ["write_report"]
