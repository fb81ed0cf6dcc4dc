"""Models in which a sink is planted, so that surgery has something to find.

One token, `BOS`, is alone in having channel 0 of its state; keys and values of the sink are made of it alone. Other tokens
have their last channel constant, so that σ(w·x + b) of their state can be any linear gate without a bias in q.
"""

import tiny
import torch
from torch import Tensor

from gatelab.config import ModelConfig
from gatelab.models import build_model
from gatelab.models.model import Model

V, D, H, G, K, BOS = 23, 16, 4, 2, 8, 0


def config(**changes: object) -> ModelConfig:
    fields = {"vocab_size": V, "d_model": D, "n_heads": H, "n_kv_heads": G, "head_dim": K, "positions": "none"}
    return tiny.model(**fields | {"max_seq_len": 64, "n_layers": 1, "norm": "rms", "init_std": 0.3} | changes)


@torch.no_grad()
def sunk(*, value: float = 0.05, slope: float = 2.0, heads: tuple[int, ...] = (0, 1, 2, 3), **changes: object) -> Model:
    """One layer whose keys are all 0 but for BOS's, so that of n other keys the logits are 0 and LSE is ln n; the first key's
    logit z₀ is what the query's state says, in these heads alone. All first values are one vector of size `value`."""
    model = build_model(config(**changes), seed=3).eval()
    model.embedding.weight[:, 0] = 0
    model.embedding.weight[BOS] = 0
    model.embedding.weight[BOS, 0] = 1.0
    attention = model.blocks[0].attention
    for projection in (attention.k_proj, attention.v_proj, attention.q_proj):
        projection.weight[:, 0] = 0
    attention.k_proj.weight.zero_()
    attention.k_proj.weight.view(G, K, D)[:, 0, 0] = 1.0
    attention.v_proj.weight.view(G, K, D)[:, 0, 0] = value
    q_HKD = attention.q_proj.weight.view(H, K, D)
    q_HKD[:, 0] *= slope
    q_HKD[[h for h in range(H) if h not in heads], 0] = 0
    return model


def texts(n: int, length: int, seed: int = 0) -> Tensor:
    """Sequences that begin with BOS and do not come back to it, [N, T]."""
    generator = torch.Generator().manual_seed(seed)
    ids_NT = torch.randint(1, V, (n, length), generator=generator)
    ids_NT[:, 0] = BOS
    return ids_NT
