"""What to look at: one file a phenomenon. `PROBES` is the list; `capture` collects from a model in anyone's loop, and
`watching` tells the first-token mass of every training pass."""

from .capture import PROBES, Recorder, capture
from .watching import Seen, watching

__all__ = ["PROBES", "Recorder", "Seen", "capture", "watching"]
