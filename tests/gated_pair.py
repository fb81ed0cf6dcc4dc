"""The trained pair in tests/fixtures/gated_pair: one million weights without a gate and with G1, elementwise.

Trained by `gatelab run gated-pair` on 524 million tokens of English (docs/results/gated-pair.md); kept in bfloat16, with 64
held-out sequences of BOS and 256 tokens.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gatelab.config.model import ModelConfig
from gatelab.models import build_model
from gatelab.models.decoder import Decoder
from gatelab.train.checkpoint import load_weights

FOLDER = Path(__file__).parent / "fixtures" / "gated_pair"


def trained(arm: str) -> Decoder:
    """The model of an arm, `none` or `g1-elementwise`."""
    config = json.loads((FOLDER / "models.json").read_text())[arm]
    model = build_model(ModelConfig.model_validate(config)).eval()
    load_weights(model, FOLDER / f"{arm}.safetensors")
    return model


def heldout(n: int) -> Tensor:
    """Ids of the first n sequences, [n, 257]."""
    ids = np.fromfile(FOLDER / "heldout.bin", dtype="<u2").reshape(-1, 257)
    return torch.from_numpy(ids[:n].astype(np.int64))
