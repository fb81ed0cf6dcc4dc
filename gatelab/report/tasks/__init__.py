"""The part of a study's page that shows tasks: accuracy by length and depth, how soon, citations, items to read."""

from .page import task_sections
from .table import tasks_csv

__all__ = ["task_sections", "tasks_csv"]
