"""Reads behind a shut gate: a planted gate that shuts for known tokens gives the shares and bytes, and costs what it must."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from gatelab.evals.changes import interval
from gatelab.evals.position_loss import token_losses
from gatelab.evals.skipped_reads import SkippedReads, skipped_reads
from gatelab.models import build_model
from gatelab.models.decoder import Decoder
from gatelab.probes import capture

SHUT = (2, 5)  # tokens at these positions
DOCUMENTS = [[1, 4, 16, 7, 9, 16, 3, 2], [5, 2, 16, 8, 1, 16, 6, 6, 4]]  # id 16 stands there, and nowhere else


def planted(gate: str = "sdpa-headwise-bias", *, shut: float = -40.0, **changes: object) -> Decoder:
    """In the first layer id 16 shuts every gate to σ(shut), and every other id opens it; the second layer's gates are open."""
    model = build_model(tiny.model(gate=gate, positions="rope", **changes), seed=0).eval()
    with torch.no_grad():
        for layer, block in enumerate(model.modules_with_gates):
            block.g_proj.weight.zero_()
            block.g_proj.bias.fill_(20.0)
            if layer == 0:
                first = block
        model.plant(first, shut)
    return model
