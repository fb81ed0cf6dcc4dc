"""Learning-rate schedules, as functions of the step."""

import math

from ..config.run import OptimConfig


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """The rate of step 0 … steps − 1: linear warm-up over `warmup` of the steps, then the schedule."""
    warmup = round(optim.warmup * steps)
    if step < warmup:
        return optim.lr * (step + 1) / (warmup + 1)
    if optim.schedule == "constant":
        return optim.lr
    if optim.schedule == "cosine":
        progress = (step - warmup) / max(1, steps - 1 - warmup)
        return optim.lr * (optim.final + (1 - optim.final) * 0.5 * (1 + math.cos(math.pi * progress)))
    decay = round(optim.decay * steps)
    left = steps - step  # wsd: from 1 to `final` over the last `decay` steps
    share = 1.0 if left > decay else optim.final + (1 - optim.final) * (left - 1) / max(1, decay)
    return optim.lr * share
