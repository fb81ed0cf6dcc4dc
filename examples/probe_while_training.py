"""Probes in a training that is not Gatelab's: a loop of your own, and transformers' Trainer.

Run it: `.venv/bin/python examples/probe_while_training.py`. It prints how the attention to the first token develops.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import nn

from gatelab import GatedAttention
from gatelab.probes.training import ProbeCallback, emergence_rows, gradient_rows, look, read_rows

BYTES = torch.frombuffer(bytearray(Path(__file__).read_bytes()), dtype=torch.uint8).long()
DATA = BYTES[: len(BYTES) // 64 * 64].view(-1, 64)


class Layer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = GatedAttention(d_model=width, n_heads=4, n_kv_heads=2, gate="sdpa-headwise")
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def own_loop(steps: int, every: int) -> list:
    """Three lines in a loop."""
    model = nn.Sequential(nn.Embedding(256, 32), Layer(32), Layer(32), nn.Linear(32, 256))
    optimizer, rows = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for step in range(steps):
        batch = DATA[8 + torch.randint(len(DATA) - 8, (8,))]
        F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()
        if step % every == 0:
            rows += look(model, DATA[:8], ["sinks", "gate_scores"], step=step)
            rows += gradient_rows(model, step=step)
        optimizer.step()
        optimizer.zero_grad()
    return rows


def trainer(steps: int, every: int, folder: str) -> list:
    """A callback of transformers' Trainer."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    sizes = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes))
    args = TrainingArguments(
        folder, max_steps=steps, learning_rate=3e-3, report_to=[], save_strategy="no", use_cpu=True
    )
    data = [{"input_ids": ids, "labels": ids} for ids in DATA[8:]]
    own = Trainer(model, args, train_dataset=data)
    own.add_callback(ProbeCallback(DATA[:8], every=every, path=f"{folder}/probes.jsonl", log=own.log))
    own.train()
    return read_rows(f"{folder}/probes.jsonl")


def main(steps: int = 40, every: int = 10) -> dict[str, list]:
    """The rows of both trainings."""
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        found = {"own loop": own_loop(steps, every), "Trainer": trainer(steps, every, folder)}
    for name, rows in found.items():
        mass = [f"{r.value:.3f}" for r in rows if r.metric == "first_token_mass" and r.layer is None]
        emerged = [r for r in emergence_rows(rows) if r.value < float("inf") and r.head is not None]
        print(f"{name}: first-token mass {' '.join(mass)}; heads in which a sink emerged: {len(emerged)}")
    return found


if __name__ == "__main__":
    main()
