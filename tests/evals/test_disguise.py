"""Sinks as gates: planted gates are found, fits and R² are those of plain least squares, and what stands in is a gate."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from gatelab.evals.disguise import gate_fits
from gatelab.evals.intervene import effects
from gatelab.evals.ridge import PENALTIES, READS, Equations
from gatelab.evals.stand_in import SameHeads, gated_instead, stand_ins
from gatelab.models import build_model

V, D, H, G, K, T = 47, 24, 4, 2, 8, 20


def llama(n_layers: int = 2, **changes: object) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=D, intermediate_size=32, num_hidden_layers=n_layers, num_attention_heads=H,
        num_key_value_heads=G, head_dim=K, max_position_embeddings=64, attention_bias=True, **changes,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        mean = 1.0 if parameter.dim() == 1 else 0.0
        parameter.data = mean + 0.4 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def documents(n: int, seed: int) -> list[list[int]]:
    return torch.randint(0, V, (n, T), generator=torch.Generator().manual_seed(seed)).tolist()


TRAIN, TEST = documents(23, 0), documents(6, 1)


@torch.no_grad()
def numbers(model: nn.Module, ids: list[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """By layer, what q_proj reads [T, D] and eager attention's matrices [H, T, S]."""
    x, handles = [], []
    for layer in model.model.layers:
        handles.append(layer.self_attn.q_proj.register_forward_pre_hook(lambda _m, args: x.append(args[0][0])))
    model.set_attn_implementation("eager")
    out = model(torch.tensor([ids]), output_attentions=True, use_cache=False).attentions
    model.set_attn_implementation("sdpa")
    for handle in handles:
        handle.remove()
    return [a.double().numpy() for a in x], [a[0].double().numpy() for a in out]


def table(model: nn.Module, texts: list[list[int]], layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and logits of 1 − p₀ of all queries but the first of each text."""
    found = [(x[layer], a[layer]) for x, a in (numbers(model, ids) for ids in texts)]
    x_ND = np.concatenate([x[1:] for x, _ in found])
    position_N1 = np.log(np.tile(np.arange(1, T), len(texts)))[:, None]
    # Masses that float32 cannot hold are taken for its smallest number.
    tiny_mass = np.finfo(np.float32).tiny
    masses = [(a[:, 1:, 1:].sum(-1).clip(tiny_mass), a[:, 1:, 0].clip(tiny_mass)) for _, a in found]
    y_NH = np.concatenate([(np.log(rest_HT) - np.log(first_HT)).T for rest_HT, first_HT in masses])
    return np.concatenate([x_ND, position_N1], axis=1), y_NH


def ridge(x_NF: np.ndarray, y_N: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Slopes and intercept: least squares with rows added for the penalty."""
    scale_F = x_NF.std(axis=0)
    z_NF = (x_NF - x_NF.mean(axis=0)) / scale_F
    F = x_NF.shape[1]
    added = np.sqrt(penalty * len(x_NF)) * np.eye(F)
    slope_F = np.linalg.lstsq(np.concatenate([z_NF, added]), np.append(y_N - y_N.mean(), np.zeros(F)))[0] / scale_F
    return slope_F, y_N.mean() - x_NF.mean(axis=0) @ slope_F


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def r2(true: np.ndarray, fitted: np.ndarray) -> float:
    return 1 - ((true - fitted) ** 2).sum() / ((true - true.mean()) ** 2).sum()


@pytest.mark.parametrize("layer, head", [(0, 1), (1, 2)])
def test_fits_and_penalties_are_those_of_plain_least_squares_on_the_documents_they_may_see(layer: int, head: int):
    model = llama()
    fit = gate_fits(model, TRAIN, TEST).layers[layer]
    last = [i % 4 == 3 for i in range(len(TRAIN))]
    inner = table(model, [d for d, held in zip(TRAIN, last, strict=True) if not held], layer)
    inner_held = table(model, [d for d, held in zip(TRAIN, last, strict=True) if held], layer)
    whole, test = table(model, TRAIN, layer), table(model, TEST, layer)
    for reads, columns in {"position": [D], "token": range(D), "token+position": range(D + 1)}.items():
        pick = list(columns)
        errors = []
        for penalty in PENALTIES:
            slope, bias = ridge(inner[0][:, pick], inner[1][:, head], penalty)
            errors.append(((inner_held[0][:, pick] @ slope + bias - inner_held[1][:, head]) ** 2).sum())
        best = PENALTIES[int(np.argmin(errors))]
        assert fit.penalty_H[reads][head] == best
        slope, bias = ridge(whole[0][:, pick], whole[1][:, head], best)
        guess, true = test[0][:, pick] @ slope + bias, test[1][:, head]
        np.testing.assert_allclose(fit.weight_FH[reads][:, head].numpy()[[*pick, -1]], [*slope, bias], atol=2e-4)
        assert float(fit.r2_H[reads, "logit"][head]) == pytest.approx(r2(true, guess), abs=1e-4)
        assert float(fit.r2_H[reads, "score"][head]) == pytest.approx(r2(sigmoid(true), sigmoid(guess)), abs=1e-4)
    mean = whole[1][:, head].mean(), sigmoid(whole[1][:, head]).mean()
    assert float(fit.r2_H["constant", "logit"][head]) == pytest.approx(r2(test[1][:, head], mean[0]), abs=1e-4)
    assert float(fit.r2_H["constant", "score"][head]) == pytest.approx(r2(sigmoid(test[1][:, head]), mean[1]), abs=1e-4)
    assert float(fit.mass_H[head]) == pytest.approx(sigmoid(-test[1][:, head]).mean(), abs=1e-6)


@torch.no_grad()
def planted() -> nn.Module:
    """One layer. Heads 0 and 1 ask a linear function of x of first keys that are alike, and no other key answers; heads 2
    and 3 ask always the same, of keys that differ by token."""
    # The last pair of channels turns so slowly that positions do not matter.
    model = llama(n_layers=1, rope_parameters={"rope_type": "default", "rope_theta": 1e24})
    q, k = model.model.layers[0].self_attn.q_proj, model.model.layers[0].self_attn.k_proj
    for parameter in (q.bias, k.weight, k.bias, q.weight[2 * K :]):
        parameter.zero_()
    q.weight[: 2 * K] *= 3
    q.bias[2 * K :] = 1.0
    # RMSNorm's output of the first ids is that channel alone, and that channel is theirs alone.
    table_VD = model.model.embed_tokens.weight
    table_VD[:, 0] = 0.0
    table_VD[:5, 0] = 100.0
    k.weight[K // 2 - 1, 0] = 1.0
    k.weight[K + K // 2 - 1, 1:] = 3 * torch.randn(D - 1, generator=torch.Generator().manual_seed(5))
    return model


def begun(texts: list[list[int]]) -> list[list[int]]:
    """The same with one of the first ids in front, and nowhere else."""
    return [[i % 5, *(5 + t % (V - 5) for t in ids[1:])] for i, ids in enumerate(texts)]


def test_a_planted_gate_is_found_and_one_that_does_not_read_the_token_is_not():
    fit = gate_fits(planted(), begun(documents(60, 0)), begun(documents(20, 1))).layers[0]
    for stage in ("logit", "score"):
        assert (fit.r2_H["token+position", stage][:2] > 0.999).all()
        assert (fit.r2_H["token", stage][:2] > 0.5).all() and (fit.r2_H["position", stage][:2] < 0.5).all()
        assert (fit.r2_H["token", stage][2:].abs() < 0.1).all()
        assert (fit.r2_H["constant", stage].abs() < 0.1).all()


def test_test_documents_choose_nothing():
    model = llama()
    one, two = gate_fits(model, TRAIN, TEST), gate_fits(model, TRAIN, documents(3, 9))
    for a, b in zip(one.layers, two.layers, strict=True):
        assert all(torch.equal(a.weight_FH[r], b.weight_FH[r]) for r in READS)
        assert not torch.equal(a.r2_H["token", "logit"], b.r2_H["token", "logit"])
    assert (one.n_train, one.n_test) == (23 * (T - 1), 6 * (T - 1))


def test_features_that_do_not_vary_have_no_weight():
    x_NF = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_NF[:, 1], x_NF[:, 3] = 0.3, 1.0
    equations = Equations()
    equations.add(x_NF, 2 * x_NF[:, :1] - x_NF[:, 2:3] + 5)
    weight_F = equations.ridge(slice(0, -1), [1e-12])[0, :, 0]
    torch.testing.assert_close(weight_F, torch.tensor([2.0, 0.0, -1.0, 5.0], dtype=torch.float64))
    assert float(equations.squared_error(weight_F[None, :, None])) == pytest.approx(0, abs=1e-8)


def test_rows_name_what_was_read_and_the_stage():
    fits = gate_fits(llama(), TRAIN, TEST)
    rows = fits.rows("run", 3)
    assert len(rows) == 2 * H * len(READS) * 2 and {r.metric for r in rows} == {"sink_gate_r2"}
    row = next(r for r in rows if (r.layer, r.head, r.stage, r.domain) == (1, 2, "score", "token"))
    assert row.value == float(fits.layers[1].r2_H["token", "score"][2]) and (row.run, row.step) == ("run", 3)


@contextmanager
def outputs(model: nn.Module, ids: list[int]) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Of layer 0 in the pass run in this block: heads' outputs [T, H, K], values [T, G, K]."""
    attention, y, v = model.model.layers[0].self_attn, [], []
    handles = [
        attention.o_proj.register_forward_pre_hook(lambda _m, args: y.append(args[0][0].unflatten(-1, (H, K)).numpy())),
        attention.v_proj.register_forward_hook(lambda _m, _a, out: v.append(out[0].unflatten(-1, (G, K)).numpy())),
    ]
    with torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    yield y, v


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_head_is_its_attention_without_the_sink_times_a_gate_and_the_sinks_share_of_its_value(implementation: str):
    model, heads = llama(), [(0, 0), (0, 3)]
    fits = gate_fits(model, TRAIN, TEST)
    x_TD, a_HTS = (part[0] for part in numbers(model, TEST[0]))
    model.set_attn_implementation(implementation)
    y_THK = {}
    for name in ("untouched", None, "measured", "token+position", "constant"):
        around = nullcontext() if name == "untouched" else gated_instead(model, fits, heads, name)
        with around, outputs(model, TEST[0]) as (y, v):
            y_THK[name] = y[-1]
    gap_HT = np.log(a_HTS[:, 1:, 0]) - np.log(a_HTS[:, 1:, 1:].sum(-1))
    np.testing.assert_allclose(1 - a_HTS[:, 1:, 0], sigmoid(-gap_HT), atol=1e-6)
    for h in range(H):
        is_edited, first_K = (0, h) in heads, v[-1][0, h // (H // G)]
        for name, y in y_THK.items():
            np.testing.assert_allclose(y[0, h], first_K, atol=1e-5, err_msg=f"{name}: the first query has one key")
        if not is_edited:
            assert all(np.allclose(y[:, h], y_THK["untouched"][:, h], atol=1e-6) for y in y_THK.values())
            continue
        mass_T1, whole = a_HTS[h, 1:, :1], y_THK["untouched"][1:, h]
        np.testing.assert_allclose(y_THK["measured"][1:, h], whole - mass_T1 * first_K, atol=1e-5)
        np.testing.assert_allclose((1 - mass_T1) * y_THK[None][1:, h] + mass_T1 * first_K, whole, atol=1e-5)
        for name in ("token+position", "constant"):
            w_F = fits.layers[0].weight_FH[name][:, h].numpy()
            gate_T = sigmoid(x_TD[1:] @ w_F[:D] + np.log(np.arange(1, T)) * w_F[D] + w_F[-1])
            np.testing.assert_allclose(y_THK[name][1:, h], gate_T[:, None] * y_THK[None][1:, h], atol=1e-5)


def test_no_gate_is_masking_the_measured_one_a_zero_value_and_with_the_value_kept_nothing_changes():
    model, heads = llama(), [(0, 1), (1, 0), (1, 1)]
    found = stand_ins(model, TEST, gate_fits(model, TRAIN, TEST), heads, reads=("measured",))
    where = "l0h1,l1h0,l1h1"
    masked, zero = effects(
        model, TEST, [SameHeads(kind=kind, at="first", where=where) for kind in ("mask-key", "zero-value")], doses=[1.0]
    ).curves
    np.testing.assert_allclose(found["none"].changes, masked.changes[-1].changes, atol=1e-6)
    kept = stand_ins(model, TEST, gate_fits(model, TRAIN, TEST), heads, reads=("measured", "token"), keeps_value=True)
    np.testing.assert_allclose(kept["measured"].changes, 0, atol=1e-6)
    np.testing.assert_allclose(kept["none"].changes, found["none"].changes, atol=1e-12)
    assert min(np.abs(kept["token"].changes)) > 1e-5
    assert max(np.abs(np.subtract(found["measured"].changes, masked.changes[-1].changes))) > 1e-3
    # A zero value also silences the first query, which only its own next token need feel.
    assert np.corrcoef(found["measured"].changes, zero.changes[-1].changes)[0, 1] > 0.5
    assert zero.control.word == "zero-value@other-first:" + where


def test_where_a_window_hides_the_first_key_there_is_no_gate():
    transformers = pytest.importorskip("transformers")
    config = transformers.MistralConfig(
        vocab_size=V, hidden_size=D, intermediate_size=32, num_hidden_layers=1, num_attention_heads=H,
        num_key_value_heads=G, head_dim=K, max_position_embeddings=64, sliding_window=6, initializer_range=0.4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MistralForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    fits = gate_fits(model, TRAIN, TEST)
    assert fits.n_test == 6 * 5
    for name in ("token", "measured"):
        with outputs(model, TEST[0]) as (y, _):
            whole_THK = y[0]
        with gated_instead(model, fits, [(0, 2)], name, keeps_value=True), outputs(model, TEST[0]) as (y, _):
            np.testing.assert_allclose(y[-1][6:], whole_THK[6:], atol=1e-6)
            assert np.allclose(y[-1][1:6, 2], whole_THK[1:6, 2], atol=1e-6) == (name == "measured")


def test_nothing_is_left_behind():
    model, ids = llama(), torch.tensor([TEST[0]])
    with torch.no_grad():
        before = model(ids).logits
        fits = gate_fits(model, TRAIN, TEST)
        with pytest.raises(RuntimeError, match="on the way"), gated_instead(model, fits, [(0, 0)], "token"):
            raise RuntimeError("on the way")
        assert torch.equal(model(ids).logits, before)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    "train, test, penalties, why",
    [
        (TRAIN[:3], TEST, PENALTIES, "3 training and 6 test documents: expected 4 and one"),
        (TRAIN, [], PENALTIES, "23 training and 0 test documents"),
        (TRAIN, [[1, 2]], PENALTIES, "a document has 2 tokens, and two queries need three"),
        (TRAIN, [*TEST, TRAIN[4]], PENALTIES, "a test document is a training document too"),
        (TRAIN, TEST, [1.0, 0.0], "expected positive numbers"),
        (TRAIN, TEST, [], "expected positive numbers"),
        (TRAIN, [[1, V, 2]], PENALTIES, "a document has the id 47; this model has ids 0 to 46"),
        (TRAIN, [[1] * 65], PENALTIES, "a document has 65 tokens, and this model positions for 64"),
    ],
)
def test_what_cannot_be_fitted_is_refused(train: list, test: list, penalties: list, why: str):
    with pytest.raises(ValueError, match=why):
        gate_fits(llama(), train, test, penalties=penalties)


def test_models_and_heads_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="fits take a decoder of transformers"):
        gate_fits(build_model(tiny.model(vocab_size=V, max_seq_len=T)), TRAIN, TEST)
    with pytest.raises(ValueError, match="Linear has no GatedAttention layer and is not"):
        gate_fits(nn.Linear(2, 2), TRAIN, TEST)
    model = llama()
    fits = gate_fits(model, TRAIN, TEST)
    for heads, reads, why in (
        ([(0, H)], "token", "no fit of head 4 in layer 0"),
        ([(2, 0)], "token", "no fit of head 0 in layer 2"),
        ([], "token", "no heads: give"),
        ([(0, 0)], "tokens", "no gate reads 'tokens': expected None, measured, constant"),
    ):
        with pytest.raises(ValueError, match=why), gated_instead(model, fits, heads, reads):
            pass
    with pytest.raises(ValueError, match="training mode"):
        stand_ins(model.train(), TEST, fits, [(0, 0)])
