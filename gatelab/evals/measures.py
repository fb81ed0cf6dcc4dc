"""What `gatelab eval` measures of a model beside what it answers: the literal table of their names. Free of torch.

Notable: `found/…` and `deletion/…` ask the items of a task, `kv` for `middle/kv`; `long_ppl`, `position_loss` and `skipped_reads`
read texts.
"""

from dataclasses import dataclass

# Of our fifteen those whose evidence has a place, before what is asked; half of the items of absent and conflict have none.
_ASKED = (
    "needle", "multikey", "multivalue", "multiquery", "track", "cite", "select", "identifier", "find", "conflict", "absent",
    "associate",
)  # fmt: skip
# A short name -> the task whose items are asked.
ASKED = {"kv": "middle/kv", "qa": "middle/qa", "qa_random": "middle/qa_random"} | {name: name for name in _ASKED}


@dataclass(frozen=True, slots=True)
class Measure:
    """One way to measure: `source` is that of its rows; `of` is `items` of a task, or a `text`."""

    name: str
    what: str
    mirrors: str
    source: str
    of: str


MEASURES = {
    made.name: made
    for made in (
        Measure(
            "found", "whether attention finds the gold document, and what reweighting it does",
            "Found in the Middle (arXiv 2406.16008)", "middle", "items",
        ),
        Measure("deletion", "what an answer loses without its evidence", "faithfulness by deletion", "deletion", "items"),
        Measure(
            "long_ppl", "perplexity over the tokens that need a long context", "LongPPL (arXiv 2410.23771)", "long-ppl",
            "text",
        ),
        Measure("position_loss", "loss by position in a text", "what a longer context is worth", "position", "text"),
        Measure(
            "skipped_reads", "what leaving keys and values behind a shut gate unread saves and costs", "ours", "skipped-reads",
            "text",
        ),
    )
}  # fmt: skip
TEXTS = tuple(name for name, measure in MEASURES.items() if measure.of == "text")
# A name of `gatelab eval` -> its measure and the task.
EVIDENCE = {
    f"{measure}/{short}": (measure, task)
    for measure in MEASURES
    if measure not in TEXTS
    for short, task in ASKED.items()
}
