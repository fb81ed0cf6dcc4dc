"""What attention is, in NumPy and float64, one query of one head at a time: the formulas of the papers as they stand.

Nothing here is shared with the library: a row of visible logits x goes in, weights come out.
"""

import math
from typing import Any

import numpy as np
from torch import Tensor

ACTIVATIONS = {
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "ns_sigmoid": lambda z: 0.5 + 0.5 / (1 + np.exp(-z)),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "softplus": lambda z: np.log(1 + np.exp(z)),
}


def softmax(x_S: np.ndarray, slot: float | None = None) -> np.ndarray:
    return np.exp(x_S) / (np.exp(x_S).sum() + (0.0 if slot is None else math.exp(slot)))


def row_weights(arguments: dict[str, Any], x_S: np.ndarray, q_K: np.ndarray, h: int) -> np.ndarray:
    """Weights of one row's visible keys, for every kind that weighs rows by themselves."""
    kind, n = arguments["normaliser"], arguments["heads"]
    learned = {name: array(value) for name, value in arguments["learned"].items()}
    p_S = softmax(x_S)
    if kind.kind in ("softmax", "differential"):
        return p_S
    if kind.kind == "sink-logit":
        return softmax(x_S, learned["sink_logit_H"][h])
    if kind.kind == "off-by-one":
        return np.exp(x_S) / (1 + np.exp(x_S).sum())
    if kind.kind == "key-bias":
        key_K = learned["key_bias_GK"][h // (n.n_heads // n.n_kv_heads)]
        return softmax(np.append(x_S, q_K @ key_K / math.sqrt(n.head_dim)))[:-1]
    if kind.kind == "clipped":
        gamma = kind.gamma if kind.gamma is not None else -kind.alpha / n.max_seq_len
        return np.clip((kind.zeta - gamma) * p_S + gamma, 0, 1)
    if kind.kind == "softpick":
        return np.maximum(np.exp(x_S) - 1, 0) / (np.abs(np.exp(x_S) - 1).sum() + 1e-6)
    if kind.kind == "sigmoid":
        return 1 / (1 + np.exp(-(x_S - math.log(len(x_S)) + kind.bias)))
    raise NotImplementedError(f"write the formula of {kind.kind!r} here, as its paper has it")


def attention(**arguments: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y [B, T, H, K], weights [B, H, T, S] and the log-sum-exp over visible keys [B, H, T] of `gated_attention`."""
    q, k, v = (array(arguments[name]) for name in ("q_BTHK", "k_BSGK", "v_BSGK"))
    (B, T, H, K), (S, G) = q.shape, k.shape[1:3]
    allowed = np.ones((B, T, S), bool) if arguments["mask_BTS"] is None else array(arguments["mask_BTS"]) > 0
    bias = np.zeros((B, H, T, S)) if arguments["bias_BHTS"] is None else array(arguments["bias_BHTS"])
    bias = np.broadcast_to(bias, (B, H, T, S))
    gate, scores = arguments["gate"], arguments["score_gate"]
    weights, lse = np.zeros((B, H, T, S)), np.zeros((B, H, T))
    key_scores = None
    if scores is not None:
        key_scores = ACTIVATIONS[scores.activation](array(arguments["score_logits_BSH"]))
    for b, h, t in np.ndindex(B, H, T):
        own = t + S - T
        keys = [s for s in range(S) if allowed[b, t, s] and not (arguments["is_causal"] and s > own)]
        keys = [s for s in keys if arguments["window"] is None or abs(own - s) < arguments["window"]]
        x = np.array([q[b, t, h] @ k[b, s, h // (H // G)] / math.sqrt(K) + bias[b, h, t, s] for s in keys])
        if scores is not None and scores.form == "add":
            x = x + key_scores[b, keys, h]
        if scores is not None and scores.form == "forget":
            x = x + np.array([np.log(key_scores[b, s + 1 : own + 1, h]).sum() for s in keys])
        weights[b, h, t, keys] = row_weights(arguments, x, q[b, t, h], h)
        lse[b, h, t] = np.log(np.exp(x).sum())
    if arguments["normaliser"].kind == "differential":
        weights = differences(weights, arguments)
    if scores is not None and scores.form == "mul":
        weights = weights * key_scores.transpose(0, 2, 1)[:, :, None]
    y = np.zeros((B, T, H, K))
    for b, h, t in np.ndindex(B, H, T):
        y[b, t, h] = weights[b, h, t] @ v[b, :, h // (H // G)]
    if arguments["normaliser"].kind == "differential":
        y = pairs_normed(y, arguments)
    if gate is None:
        return y, weights, lse
    logits = array(arguments["gate_logits_BTHK"])
    if gate.source == "lse":
        logits = logits + lse.transpose(0, 2, 1)[..., None]
    score = ACTIVATIONS[gate.activation](logits)
    score = score.mean(axis=2, keepdims=True) if gate.sharing == "shared" else score
    return (y * score if gate.form == "mul" else y + score), weights, lse


def differences(weights: np.ndarray, arguments: dict[str, Any]) -> np.ndarray:
    """P_h − λ P_{h+H/2} for both heads of each pair (arXiv 2410.05258, equation 1)."""
    learned = {name: array(value) for name, value in arguments["learned"].items()}
    half, out = weights.shape[1] // 2, np.zeros_like(weights)
    lambda_ = np.exp(learned["lambda_q1_K"] @ learned["lambda_k1_K"])
    lambda_ = lambda_ - np.exp(learned["lambda_q2_K"] @ learned["lambda_k2_K"])
    lambda_ = lambda_ + 0.8 - 0.6 * math.exp(-0.3 * arguments["heads"].layer)
    for h in range(half):
        out[:, h] = out[:, h + half] = weights[:, h] - lambda_ * weights[:, h + half]
    return out


def pairs_normed(y: np.ndarray, arguments: dict[str, Any]) -> np.ndarray:
    """The 2K channels of a pair over their root mean square, times the gain and 1 − λ₀."""
    half, K = y.shape[2] // 2, y.shape[3]
    start = 0.8 - 0.6 * math.exp(-0.3 * arguments["heads"].layer)
    out = np.zeros_like(y)
    for h in range(half):
        pair = np.concatenate([y[:, :, h], y[:, :, h + half]], axis=-1)
        pair = pair / np.sqrt((pair**2).mean(axis=-1, keepdims=True) + 1e-5) * array(arguments["learned"]["gain_2K"])
        out[:, :, h], out[:, :, h + half] = pair[..., :K] * (1 - start), pair[..., K:] * (1 - start)
    return out


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()
