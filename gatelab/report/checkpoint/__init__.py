"""A look at a checkpoint in, one offline HTML page and a CSV file out; and the rules of its off-switches. Free of torch."""

from .off_switch import SWITCHES, HeadValues, Thresholds, census, heads_of, off_switch
from .page import write_checkpoint_page
from .seen import Seen

__all__ = [
    "SWITCHES",
    "HeadValues",
    "Seen",
    "Thresholds",
    "census",
    "heads_of",
    "off_switch",
    "write_checkpoint_page",
]
