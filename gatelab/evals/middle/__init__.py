"""Found in the middle (arXiv 2406.16008): attention to documents, calibrated by where they stand, and put to use."""

from .attention import FORMS, DocumentAttention, document_attention
from .recall import DocumentRecall, recall_at
from .reweight import Focus, reweighted
from .use import Reweighted, reweighting_effect

__all__ = [
    "FORMS", "DocumentAttention", "DocumentRecall", "Focus", "Reweighted", "document_attention", "recall_at",
    "reweighted", "reweighting_effect",
]  # fmt: skip
