"""A gate in a model of your own: a small language model built with plain PyTorch around `GatedAttention`.

Run it: `.venv/bin/python examples/drop_in.py`. It trains for a moment and prints how open the gates are.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from gatelab import GatedAttention, capture


class Layer(nn.Module):
    """Pre-norm attention and MLP; the gate reads what attention reads."""

    def __init__(self, width: int, gate: str):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = GatedAttention(d_model=width, n_heads=4, n_kv_heads=2, gate=gate)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def main(steps: int = 30) -> list:
    """Train on the bytes of this file; returns the rows of the last step."""
    torch.manual_seed(0)
    text = torch.frombuffer(bytearray(Path(__file__).read_bytes()), dtype=torch.uint8).long()
    model = nn.Sequential(
        nn.Embedding(256, 64), Layer(64, "sdpa-elementwise"), Layer(64, "sdpa-headwise"), nn.Linear(64, 256)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        start = torch.randint(0, len(text) - 65, (8,))
        batch = torch.stack([text[i : i + 65] for i in start])
        with capture(model, ["sinks", "gate_scores"]) as recorder:  # the probes may watch a training step
            loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    rows = recorder.rows(step=steps)
    for row in rows:
        if row.metric in ("gate_mean", "first_token_mass") and row.head is None and row.layer is not None:
            print(f"layer {row.layer}: {row.metric} {row.value:.3f}")
    print(f"loss {loss.item():.3f}")
    return rows


if __name__ == "__main__":
    main()
