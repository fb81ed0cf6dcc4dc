"""RULER (arXiv 2404.06654): its thirteen tasks as prompts, written anew from their definitions. One file a family.

Notable: lengths count the answer's budget, everywhere; prompts end without a blank, so that an answer's first token begins with
it. The prompts' words are the benchmark's.
"""

from ..prompt import PromptTask
from . import common, documents, frequent, needles, tracing

RULER: dict[str, PromptTask] = {
    made.name: made
    for made in (
        *map(needles.task, needles.NEEDLES),
        tracing.task(),
        common.task(),
        frequent.task(),
        documents.squad(),
        documents.hotpot(),
    )
}

__all__ = ["RULER"]
