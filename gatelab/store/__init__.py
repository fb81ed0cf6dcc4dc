"""Run folders: JSON lines are the truth, Parquet a derived cache, DuckDB the query; "done" is written last.

    OUT/study.json                     what was asked: cells, arms, seeds, metrics, and the plan (one entry a run)
    OUT/runs/<fingerprint>/run.json    the run's canonical configuration
                           environment.json  versions, git state, device, what was really used
                           rows.jsonl    measurements, append-only; only the run's owner writes
                           items.jsonl   answers to items of tasks at the last step, where a run is asked some
                           clock.jsonl  progress.json  step times: they differ between machines, so they stand apart
                           checkpoint.safetensors      resumable state, gone when done
                           checkpoint/                 the same of several processes (train/checkpoint_folder.py)
                           weights.safetensors         the final weights
                           attempts/0001.json …  one file an attempt: who, when, how it ended; the newest is the lease
                           log.txt       what the workers printed
                           rows.parquet  derived from the rows of a finished run, when a query asks for them
                           digest-….ndjson  derived too, by the worker: what a page reads (analysis/run_digest.py)
                           done.json     written last: the result is complete, and its rows have so many bytes
    OUT/report.html  *.csv             derived, rewritten at will
    OUT/digest-….parquet               the same of finished runs that have none beside their rows (analysis/digest.py)

Two processes never write one file: a run folder belongs to the holder of its lease. Every other file is written under
a temporary name, flushed to the disk and renamed, so a reader or a crash never sees half of one.
"""

from .files import (
    Appender,
    DamagedError,
    StoreError,
    check_keys,
    read_json,
    read_stored,
    stamp_of,
    write_json,
    write_lines,
    write_text,
)
from .rows import fill, query, quoted, take_rows, to_read
from .run import RunFolder
from .study import StudyFolder, is_fingerprint, of_pack

__all__ = [
    "Appender",
    "DamagedError",
    "RunFolder",
    "StoreError",
    "StudyFolder",
    "check_keys",
    "fill",
    "is_fingerprint",
    "of_pack",
    "query",
    "quoted",
    "read_json",
    "read_stored",
    "stamp_of",
    "take_rows",
    "to_read",
    "write_json",
    "write_lines",
    "write_text",
]
