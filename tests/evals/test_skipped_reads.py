"""Reads behind a shut gate: a planted gate that shuts for known tokens gives shares and bytes, and decoding gives the loss."""

import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatelab.evals.changes import interval
from gatelab.evals.position_loss import token_losses
from gatelab.evals.skipped_reads import _as_many, skipped_reads
from gatelab.models import build_model
from gatelab.models.decoder import Decoder

SHUT = 16
# The third and the sixth token of each.
DOCUMENTS = [[1, 4, SHUT, 7, 9, SHUT, 3, 2], [5, 2, SHUT, 8, 1, SHUT, 6, 6, 4]]
N_TOKENS, N_KEYS = 17, 36 + 45
H, G, K = 4, 2, 4


def planted(gate: str = "sdpa-headwise", rows: slice = slice(None), **changes: object) -> Decoder:
    """In the first layer the token SHUT shuts gates to 0 and every other opens them to 1, of the rows of the gate's projection
    that are named; elsewhere a gate has the score one half."""
    sizes = {"n_heads": H, "n_kv_heads": G, "d_model": H * K, "max_seq_len": 32, "positions": "rope"}
    model = build_model(tiny.model(gate=gate, **(sizes | changes)), seed=0).eval()
    with torch.no_grad():
        model.embedding.weight[:, 0] = 3.0
        model.embedding.weight[SHUT, 0] = -3.0
        gates = [m for name, m in model.named_modules() if name.endswith("gates.sdpa")]
        for g in gates:
            g.g_proj.weight.zero_()
        gates[0].g_proj.weight[rows, 0] = 100.0
    return model


def test_a_gate_that_shuts_for_known_tokens_gives_the_share_and_the_bytes():
    found = skipped_reads(planted(), DOCUMENTS, [0.1, 0.4])
    for level in found.levels:
        assert level.heads == (4 * G) / (N_TOKENS * 2 * G)
        # The third token reads three keys and the sixth six, its own among them, in one layer of two.
        assert level.reads == pytest.approx(2 * (3 + 6) / (2 * N_KEYS))
    shares = [9 / 72, 9 / 90]
    assert found.levels[0].reads_low < found.levels[0].reads < found.levels[0].reads_high
    assert min(shares) < found.levels[0].reads < max(shares)
    assert found.bytes_a_token == pytest.approx(N_KEYS * 2 * G * 2 * K * 4 / N_TOKENS)


def test_what_is_zero_already_costs_nothing_and_random_heads_do():
    model = planted()
    found = skipped_reads(model, DOCUMENTS, [0.1, 0.6])
    shut, everything = found.levels
    assert shut.change.changes == pytest.approx((0.0, 0.0), abs=1e-6) and abs(shut.control.mean) > 1e-5
    assert shut.excess.changes == pytest.approx(tuple(-c for c in shut.control.changes), abs=1e-6)
    # Of the open first layer nothing is left out, of the second everything.
    assert everything.reads == pytest.approx((18 + N_KEYS) / (2 * N_KEYS)) and abs(everything.change.mean) > 1e-5
    assert found.loss == pytest.approx(np.mean([x.mean() for x in token_losses(model, DOCUMENTS)]))
    assert (everything.change.low, everything.change.high) == interval(everything.change.changes)


def test_a_window_bounds_what_would_be_read():
    (level,) = skipped_reads(planted(window=4), DOCUMENTS, [0.1]).levels
    keys = [sum(min(t, 4) for t in range(1, n + 1)) for n in (8, 9)]
    assert level.reads == pytest.approx(2 * (3 + 4) / (2 * sum(keys)))


@pytest.mark.parametrize(
    ("rows", "share"), [(slice(0, 1), 0.0), (slice(0, 2), 0.5), (slice(1, 3), 0.0), (slice(0, 3), 0.5)]
)
def test_a_head_is_left_out_only_where_all_that_it_serves_are_shut(rows: slice, share: float):
    (level,) = skipped_reads(planted(rows=rows), DOCUMENTS, [0.1]).levels
    assert level.reads == pytest.approx(share * 18 / (2 * N_KEYS))


def test_a_headwise_score_is_an_elementwise_gates_largest_or_their_mean():
    model = planted("sdpa-elementwise")
    with torch.no_grad():
        # One channel of four stays at one half.
        next(m for name, m in model.named_modules() if name.endswith("gates.sdpa")).g_proj.weight[::K] = 0
    largest, mean = (skipped_reads(model, DOCUMENTS, [0.2], channels=c).levels[0] for c in ("max", "mean"))
    assert largest.reads == 0 and largest.change.mean == pytest.approx(0, abs=1e-6)
    assert mean.reads == pytest.approx(18 / (2 * N_KEYS)) and abs(mean.change.mean) > 1e-6


@torch.no_grad()
def decoded(model: Decoder, ids: list[int], threshold: float) -> tuple[float, float]:
    """Mean loss, and the share of reads left out, of a text read token by token with a cache; heads' outputs are emptied where
    they enter the output projection."""
    scores: dict[nn.Module, Tensor] = {}
    n_skipped, handles = 0, []

    def empty(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        nonlocal n_skipped
        is_shut_H = scores[module].sigmoid()[0, 0].amax(-1) < threshold
        is_shut_G = is_shut_H.view(G, -1).all(-1)
        n_skipped += int(is_shut_G.sum()) * (cache.length + 1)
        y_BTHK = inputs[0].unflatten(-1, (H, -1)).clone()
        y_BTHK[:, :, is_shut_G.repeat_interleave(H // G)] = 0
        return (y_BTHK.flatten(-2),)

    for block in model.blocks:
        attention = block.attention

        def keep(_m: nn.Module, _i: object, logits: Tensor, key: nn.Module = attention.o_proj) -> None:
            scores[key] = logits

        handles.append(attention.gates["sdpa"].tap_logits.register_forward_hook(keep))
        handles.append(attention.o_proj.register_forward_pre_hook(empty))
    cache, losses = model.new_cache(1), []
    for t, token in enumerate(ids):
        logits_BTV = model(torch.tensor([[token]]), cache=cache)
        if t + 1 < len(ids):
            losses.append(float(F.cross_entropy(logits_BTV[0], torch.tensor([ids[t + 1]]))))
    for handle in handles:
        handle.remove()
    return float(np.mean(losses)), n_skipped / (len(ids) * (len(ids) + 1) / 2 * G * len(model.blocks))


@pytest.mark.parametrize("gate", ["sdpa-headwise", "sdpa-elementwise"])
def test_a_pass_of_a_text_is_what_decoding_it_token_by_token_would_be(gate: str):
    model = build_model(
        tiny.model(gate=gate, n_heads=H, n_kv_heads=G, max_seq_len=32, positions="rope", d_model=H * K, n_layers=3),
        seed=1,
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(40 if "g_proj" in name else 8 if "proj" in name else 1)
    ids = [(7 * t + t * t) % 16 for t in range(24)]
    (plain,) = token_losses(model, [ids])
    threshold = 0.45 if gate == "sdpa-headwise" else 0.9
    (level,) = skipped_reads(model, [ids], [threshold]).levels
    loss, share = decoded(model, ids, threshold)
    assert 0.05 < share < 0.95 and level.reads == pytest.approx(share)
    assert level.change.mean == pytest.approx(loss - plain.mean(), abs=1e-5) and abs(level.change.mean) > 1e-4
    assert math.isnan(level.change.low)  # one document


def test_as_many_heads_at_random_are_as_many_in_every_layer():
    masks = {
        0: np.arange(30).reshape(10, 3) % 7 == 0,
        2: np.ones((10, 3), dtype=bool),
        5: np.zeros((10, 3), dtype=bool),
    }
    made, again, other = _as_many(masks, 3), _as_many(masks, 3), _as_many(masks, 4)
    assert {i: m.sum() for i, m in made.items()} == {0: 5, 2: 30, 5: 0}
    assert (made[0] == again[0]).all() and (made[0] != other[0]).any() and made[0].shape == (10, 3)


def test_a_layer_without_a_gate_is_read_and_counts():
    model = build_model(
        tiny.model(gate="sdpa-headwise", gate_layers="first-third", n_layers=3, positions="rope"), seed=0
    )
    (level,) = skipped_reads(model, [[1, 2, 3, 4]], [2.0]).levels
    assert level.heads == level.reads == pytest.approx(1 / 3)


def test_a_family_of_transformers_is_asked_as_ours_are():
    transformers = pytest.importorskip("transformers")
    config = transformers.AfmoeConfig(
        vocab_size=17, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=4, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16, num_dense_layers=2,
        layer_types=["sliding_attention", "full_attention"], sliding_window=5, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AfmoeForCausalLM(config).eval()
    none, everything = skipped_reads(model, DOCUMENTS, [1e-9, 2.0]).levels
    assert none.reads == 0 and none.change.mean == pytest.approx(0, abs=1e-6)
    assert everything.heads == everything.reads == everything.control_reads == 1
    found = skipped_reads(model, DOCUMENTS[:1], [2.0])
    keys = 36 + sum(min(t, 5) for t in range(1, 9))
    assert found.bytes_a_token == keys * 2 * 2 * 4 * 4 / 8
    (before,) = token_losses(model, DOCUMENTS[:1])
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
    (after,) = token_losses(model, DOCUMENTS[:1])
    assert found.levels[0].change.mean == pytest.approx(float(after.mean() - before.mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("gate", "given", "says"),
    [
        (None, {}, "Decoder has no gate after attention that is known here"),
        ("value-elementwise", {}, "has no gate after attention"),
        ("sdpa-elementwise-silu-add", {}, "of layer 0 adds its scores, so it leaves no key unread"),
        ("sdpa-headwise-output", {}, "of layer 0 reads what attention gives"),
        ("sdpa-headwise-lse", {}, "of layer 0 reads what attention gives"),
        ("sdpa-headwise", {"thresholds": []}, "expected numbers above 0, each once"),
        ("sdpa-headwise", {"thresholds": [0.1, 0.1]}, "expected numbers above 0, each once"),
        ("sdpa-headwise", {"thresholds": [math.nan]}, "expected numbers above 0, each once"),
        ("sdpa-headwise", {"channels": "least"}, "channels='least': expected 'max' or 'mean'"),
        ("sdpa-headwise", {"documents": []}, "no documents"),
        ("sdpa-headwise", {"documents": [[1]]}, "document 0 has 1 tokens"),
    ],
)
def test_what_cannot_be_left_out_is_refused(gate: str | None, given: dict, says: str):
    model = build_model(tiny.model(gate=gate, positions="rope"), seed=0)
    with pytest.raises(ValueError, match=says):
        skipped_reads(model, **({"documents": DOCUMENTS} | given))
    assert all(not m._forward_hooks for m in model.modules())


def test_rows_are_those_that_the_page_defines():
    rows = skipped_reads(planted(), DOCUMENTS, [0.1]).rows("r", 3)
    assert {(r.run, r.step, r.source) for r in rows} == {("r", 3, "skipped-reads")}
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert all(f"| `{r.metric}` | {r.unit} |" in page for r in rows)
    of = {(r.metric, r.intervention): r.value for r in rows}
    assert of["reads_skipped", "skip"] == pytest.approx(1 / 9) and of["kv_bytes", None] > 0
    excess = of["loss_change", "skip"] - of["loss_change", "control of skip"]
    assert of["loss_change", "skip less its control"] == pytest.approx(excess)
