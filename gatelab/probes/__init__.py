"""What to look at: one file a phenomenon. `PROBES` is the list; `capture` collects from a model in anyone's loop."""

from .capture import PROBES, Recorder, capture

__all__ = ["PROBES", "Recorder", "capture"]
