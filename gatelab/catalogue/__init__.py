"""What there is: gates and what they are made of, sizes, probes; and what this machine can do. Lists of plain records."""

from .gates import gate_catalogue, gate_detail, refusal
from .machine import intervention_records, machine_records, probe_records
from .prompts import measure_records, prompt_items, prompt_records, prompt_tasks, refusal_of
from .sizes import size_records
from .tasks import task_items, task_records
from .weights import PAPER_SHAPE, added_weights, equation, gate_weights

__all__ = [
    "PAPER_SHAPE",
    "added_weights",
    "equation",
    "gate_catalogue",
    "gate_detail",
    "gate_weights",
    "intervention_records",
    "machine_records",
    "measure_records",
    "probe_records",
    "prompt_items",
    "prompt_records",
    "prompt_tasks",
    "refusal",
    "refusal_of",
    "size_records",
    "task_items",
    "task_records",
]
