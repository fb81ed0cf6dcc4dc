"""The small models and runs that the tests of models, training, probes and studies share."""

from typing import Any

from gatelab.config import BigramBackcopy, ModelConfig, OptimConfig, ProbeConfig, Run, TrainConfig


def model(**changes: Any) -> ModelConfig:
    """Resolved: two layers of two heads; 17 ids, as many as the stream of `run` has."""
    fields = {"vocab_size": 17, "max_seq_len": 16, "d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 24}
    config = ModelConfig(**{**fields, **changes})
    return config.resolved(config.vocab_size, config.max_seq_len)


def run(*, steps: int = 6, seed: int = 0, **changes: Any) -> Run:
    """A few steps of four sequences of eight tokens from the Bigram-Backcopy stream, looked at before and after."""
    fields = {
        "model": model(gate="sdpa-headwise", max_seq_len=8),
        "data": BigramBackcopy(vocab_size=16),
        "optim": OptimConfig(lr=1e-2),
        "train": TrainConfig(tokens=steps * 32, batch_size=4, seq_len=8),
        "probe": ProbeConfig(times=1, sequences=2, eval_sequences=3),
        "seed": seed,
    }
    return Run(**{**fields, **changes})


def toy(tokens: int = 16) -> Run:
    """Of studies that nobody trains: their rows are written by hand."""
    return Run(
        model=ModelConfig(d_model=16, n_layers=1, n_heads=2, mlp="relu"),
        data=BigramBackcopy(vocab_size=16),
        train=TrainConfig(tokens=tokens, batch_size=2, seq_len=8),
        probe=ProbeConfig(times=1, sequences=1, eval_sequences=1),
    )
