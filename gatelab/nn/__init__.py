"""Modules; each file one idea. Parameters get their values in `models/init.py`, keyed by name."""
