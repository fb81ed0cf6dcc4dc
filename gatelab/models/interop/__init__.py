"""Whole models in and out: checkpoints of transformers to Gatelab model folders, and models of ours to transformers."""

from .export import Exported, export_model
from .families import FAMILIES, NOT_OURS
from .folder import Stored, is_model_folder, load_model, open_folder, save_folder, stored
from .importing import Imported, import_model
from .relayout import Relaid, relayout
from .runs import stored_run

__all__ = [
    "FAMILIES",
    "NOT_OURS",
    "Exported",
    "Imported",
    "Relaid",
    "Stored",
    "export_model",
    "import_model",
    "is_model_folder",
    "load_model",
    "open_folder",
    "relayout",
    "save_folder",
    "stored",
    "stored_run",
]
