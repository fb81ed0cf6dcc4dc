"""Does a gate help a model of 33 million weights to four times its length, and to sixteen by YaRN? `paper-long-context` at a size
that one GPU trains.

    gatelab run text-longer-context data.paths=a.bin.xz,b.bin.xz data.val_paths=val.bin
"""

from gatelab.studies.paper_long_context import recipe
from gatelab.studies.sinks_on_text import text

study = recipe(
    text.model,
    text.data,
    short=1024,
    lengths=(4, 16),
    tokens=(4000 * 65_536, 400 * 65_536),
    name="text-longer-context",
)
