"""What runs read: real text and unlimited streams, as batches that are pure functions of a seed and a step.

Free of torch; the libraries for tokenizers and Parquet are imported when first needed.
"""

from pathlib import Path

from gatelab.config import BigramBackcopy, Tasks, Text

from .batch import IGNORED, Batch, DataError, Source, check_lengths, joined
from .cache import default_cache
from .corpus import open_text
from .objectives import objective_batch, objective_batches, objective_heldout
from .streams import BigramBackcopySource
from .tasks import TaskSource
from .tokenizer import ByteTokenizer, LoadedTokenizer

__all__ = [
    "IGNORED",
    "Batch",
    "BigramBackcopySource",
    "ByteTokenizer",
    "DataError",
    "LoadedTokenizer",
    "Source",
    "TaskSource",
    "check_lengths",
    "default_cache",
    "joined",
    "objective_batch",
    "objective_batches",
    "objective_heldout",
    "open_source",
]


def open_source(data: BigramBackcopy | Text | Tasks, *, cache: Path | None = None) -> Source:
    """The source that a configuration describes.

    A text is tokenised once into `cache` (default: $GATELAB_CACHE or ~/.cache/gatelab) and mapped from there after;
    several processes may do so at once.

    Raises:
        DataError: when the data cannot be used, in one sentence.
    """
    if isinstance(data, BigramBackcopy):
        return BigramBackcopySource(data)
    if isinstance(data, Tasks):
        return TaskSource(data)
    return open_text(data, cache or default_cache())
