"""Sampled rows of the weights: which they are, how far and where they look, and the ranks of their matrix."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gatelab.config.normaliser import SinkLogit
from gatelab.ops.attention_stats import Places, Rank, Stretch, octave, one_pass, sampled_queries
from gatelab.ops.attention_stats.sampled import ranks

B, H, G, K = 2, 4, 2, 8


@pytest.mark.parametrize("n_queries", [1, 2, 3, 17, 63, 64, 65, 66, 127, 128, 129, 1000, 4097, 131072])
def test_sampled_queries_are_few_apart_and_end_with_the_last(n_queries: int) -> None:
    places = sampled_queries(n_queries)
    assert places == sorted(set(places)) and len(places) == max(1, min(64, n_queries - 1))
    assert places[-1] == n_queries - 1
    # Query 0 sees itself alone.
    assert n_queries == 1 or places[0] > 0
    steps = np.diff(places)
    assert not len(steps) or steps.max() - steps.min() <= 1


def test_octaves_begin_one_before_the_powers_of_two() -> None:
    expected = [math.floor(math.log2(i + 1)) for i in range(40)]
    assert octave(torch.arange(40)).tolist() == expected
    # A float32 does not tell these from their neighbours.
    for n in (24, 30, 40):
        edges = torch.tensor([2**n - 2, 2**n - 1, 2 ** (n + 1) - 2, 2 ** (n + 1) - 1])
        assert octave(edges).tolist() == [n - 1, n, n, n + 1]


def drawn(T: int, S: int) -> tuple[Tensor, Tensor]:
    return 2 * torch.randn(B, T, H, K), 2 * torch.randn(B, S, G, K)


def weights_of(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    *,
    is_causal: bool = True,
    window: int | None = None,
    documents_BT: Tensor | None = None,
    sink_H: Tensor | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax in NumPy and float64, row by row: weights [B, H, T, S] and which keys are seen [B, T, S]."""
    q, k = q_BTHK.double().numpy(), k_BSGK.double().numpy()
    T, S = q.shape[1], k.shape[1]
    weights, seen = np.zeros((B, H, T, S)), np.zeros((B, T, S), bool)
    for b, t in np.ndindex(B, T):
        for s in range(S):
            is_near = window is None or abs(t - s) < window
            is_own = documents_BT is None or documents_BT[b, t] == documents_BT[b, s]
            seen[b, t, s] = is_near and is_own and (s <= t or not is_causal)
        keys = np.flatnonzero(seen[b, t])
        for h in range(H):
            e = np.exp(k[b, keys, h // (H // G)] @ q[b, t, h] / math.sqrt(K))
            weights[b, h, t, keys] = e / (e.sum() + (0 if sink_H is None else math.exp(sink_H[h])))
    return weights, seen


def places_of(weights: np.ndarray, seen: np.ndarray, rows: list[int]) -> dict[str, np.ndarray]:
    """What docs/metrics.md says of distances and positions, one weight at a time."""
    n_octaves = int(math.log2(weights.shape[2] + 1)) + 1
    out = {
        "distance_BHN": np.zeros((B, H, n_octaves)),
        "distance_uniform_BN": np.zeros((B, n_octaves)),
        "position_BHN": np.zeros((B, H, n_octaves)),
        "position_uniform_BN": np.zeros((B, n_octaves)),
        "mean_distance_BH": np.zeros((B, H)),
    }
    for b in range(B):
        counted = [i for i in rows if seen[b, i].sum() > 1]
        for i in counted:
            keys = np.flatnonzero(seen[b, i])
            for j in keys:
                near, at = int(math.log2(abs(i - j) + 1)), int(math.log2(j + 1))
                out["distance_BHN"][b, :, near] += weights[b, :, i, j] / len(counted)
                out["position_BHN"][b, :, at] += weights[b, :, i, j] / len(counted)
                out["distance_uniform_BN"][b, near] += 1 / len(keys) / len(counted)
                out["position_uniform_BN"][b, at] += 1 / len(keys) / len(counted)
            row_HS = weights[b, :, i, keys].T
            far_H = (row_HS * np.abs(i - keys)).sum(1) / row_HS.sum(1)
            out["mean_distance_BH"][b] += far_H / len(counted)
    return out


def agrees(places: Places, expected: dict[str, np.ndarray]) -> None:
    for name, value in expected.items():
        found = getattr(places, name)
        assert found.dtype == torch.float32
        # Octaves that no key reaches may be there, and are empty.
        n = value.shape[-1] if name.endswith("N") else found.shape[-1]
        assert found.shape[-1] >= n and not found[..., n:].any()
        np.testing.assert_allclose(found[..., :n].numpy(), value, rtol=2e-5, atol=1e-6, err_msg=name)


DOCUMENTS_BT = torch.tensor([[0] * 25 + [1] + [2] * 44, [0] * 70])
SETTINGS: dict[str, dict[str, Any]] = {
    "causal": {},
    "window": {"window": 9},
    "window-of-one": {"window": 2},
    "both-ways": {"is_causal": False},
    "both-ways-window": {"is_causal": False, "window": 9},
    "documents": {"documents_BT": DOCUMENTS_BT},
    "documents-window": {"documents_BT": DOCUMENTS_BT, "window": 6},
    "sink-logit": {"sink_H": torch.tensor([-1.0, 0.0, 1.0, 3.0])},
}


def stretch_of(q_BTHK: Tensor, k_BSGK: Tensor, setting: dict[str, Any], **changes: Any) -> Stretch:
    given = {"segment_ids_BT" if name == "documents_BT" else name: value for name, value in setting.items()}
    if (sink_H := given.pop("sink_H", None)) is not None:
        given |= {"normaliser": SinkLogit(), "learned": {"sink_logit_H": sink_H}}
    return Stretch(q_BTHK=q_BTHK, k_BSGK=k_BSGK, **{**given, **changes})


@pytest.mark.parametrize("block", [7, 256])
@pytest.mark.parametrize("setting", SETTINGS)
def test_distances_and_positions_are_those_of_a_loop_over_the_weights(setting: str, block: int) -> None:
    q_BTHK, k_BSGK = drawn(70, 70)
    places = Places()
    one_pass([places], stretch_of(q_BTHK, k_BSGK, SETTINGS[setting]), block=block)
    rows = sampled_queries(70)
    agrees(places, places_of(*weights_of(q_BTHK, k_BSGK, **SETTINGS[setting]), rows))


@pytest.mark.parametrize("at_once", [2, 23, 64, 69])
@pytest.mark.parametrize("setting", ["causal", "window", "sink-logit"])
def test_stretches_with_a_cache_add_up(setting: str, at_once: int) -> None:
    """A window's cache has given up the keys that no query of the stretch sees."""
    q_BTHK, k_BSGK = drawn(70, 70)
    places, rank, whole = Places(), Rank(), Rank()
    for start in range(0, 70, at_once):
        end = min(start + at_once, 70)
        first = max(0, start - SETTINGS[setting].get("window", 70) + 1)
        held = {"start_key": first, "n_tokens": 70}
        stretch = stretch_of(q_BTHK[:, start:end], k_BSGK[:, first:end], SETTINGS[setting], **held)
        one_pass([places, rank], stretch, block=16)
    agrees(places, places_of(*weights_of(q_BTHK, k_BSGK, **SETTINGS[setting]), sampled_queries(70)))
    one_pass([whole], stretch_of(q_BTHK, k_BSGK, SETTINGS[setting]))
    torch.testing.assert_close(rank.effective_BH, whole.effective_BH, rtol=1e-4, atol=0)
    torch.testing.assert_close(rank.stable_BH, whole.stable_BH, rtol=1e-4, atol=0)


def test_masses_of_a_softmax_sum_to_one() -> None:
    q_BTHK, k_BSGK = drawn(33, 33)
    places = Places()
    one_pass([places], Stretch(q_BTHK=q_BTHK, k_BSGK=k_BSGK), block=8)
    for name in ("distance_BHN", "distance_uniform_BN", "position_BHN", "position_uniform_BN"):
        sums = getattr(places, name).sum(dim=-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize("is_causal", [True, False])
def test_uniform_attention_is_its_own_reference(is_causal: bool) -> None:
    _, k_BSGK = drawn(40, 40)
    places = Places()
    one_pass([places], Stretch(q_BTHK=torch.zeros(B, 40, H, K), k_BSGK=k_BSGK, is_causal=is_causal))
    for mass_BHN, uniform_BN in (
        (places.distance_BHN, places.distance_uniform_BN),
        (places.position_BHN, places.position_uniform_BN),
    ):
        torch.testing.assert_close(mass_BHN, uniform_BN[:, None].expand_as(mass_BHN))
    mean = np.mean([np.abs(np.arange(i + 1 if is_causal else 40) - i).mean() for i in range(1, 40)])
    torch.testing.assert_close(places.mean_distance_BH, torch.full((B, H), mean, dtype=torch.float32))


def test_queries_that_see_one_key_are_nowhere() -> None:
    q_BTHK, k_BSGK = drawn(20, 20)
    places = Places()
    one_pass([places], Stretch(q_BTHK=q_BTHK, k_BSGK=k_BSGK, window=1))
    assert places.mean_distance_BH.isnan().all() and places.distance_uniform_BN.isnan().all()


@pytest.mark.parametrize(("T", "setting"), [*((70, s) for s in SETTINGS), (5, "causal"), (150, "both-ways-window")])
def test_ranks_are_those_of_the_singular_values_of_the_sampled_rows(T: int, setting: str) -> None:
    q_BTHK, k_BSGK = drawn(T, T)
    rank = Rank()
    one_pass([rank], stretch_of(q_BTHK, k_BSGK, SETTINGS[setting]), block=16)
    weights, _ = weights_of(q_BTHK, k_BSGK, **SETTINGS[setting])
    singular = np.linalg.svd(weights[:, :, sampled_queries(T)], compute_uv=False)
    share = singular / singular.sum(-1, keepdims=True)
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(-1)
    # Rows are kept in 16 bits.
    np.testing.assert_allclose(rank.effective_BH.numpy(), np.exp(entropy), rtol=2e-3)
    np.testing.assert_allclose(rank.stable_BH.numpy(), (singular**2).sum(-1) / singular[..., 0] ** 2, rtol=2e-3)
    assert (rank.stable_BH <= rank.effective_BH * (1 + 1e-5)).all() and rank.effective_BH.max() <= min(64, T - 1)


def test_ranks_of_cross_attention_are_of_its_own_queries_and_keys() -> None:
    q_BTHK, k_BSGK = drawn(90, 11)
    rank = Rank()
    one_pass([rank], Stretch(q_BTHK=q_BTHK, k_BSGK=k_BSGK, is_causal=False), block=32)
    weights, _ = weights_of(q_BTHK, k_BSGK, is_causal=False)
    singular = np.linalg.svd(weights[:, :, sampled_queries(90)], compute_uv=False)
    np.testing.assert_allclose(rank.stable_BH.numpy(), (singular**2).sum(-1) / singular[..., 0] ** 2, rtol=2e-3)
    assert rank.effective_BH.max() < 11


def test_rows_that_are_alike_have_rank_one() -> None:
    _, k_BSGK = drawn(50, 50)
    rank = Rank()
    one_pass([rank], Stretch(q_BTHK=torch.ones(B, 50, H, K), k_BSGK=k_BSGK, is_causal=False), block=16)
    torch.testing.assert_close(rank.effective_BH, torch.ones(B, H), rtol=1e-5, atol=0)
    torch.testing.assert_close(rank.stable_BH, torch.ones(B, H), rtol=1e-5, atol=0)


def test_every_query_at_itself_has_full_rank() -> None:
    q_BTHK = 60.0 * torch.eye(40)[None, :, None]
    rank = Rank()
    one_pass([rank], Stretch(q_BTHK=q_BTHK, k_BSGK=q_BTHK))
    torch.testing.assert_close(rank.effective_BH, torch.tensor([[39.0]]), rtol=1e-3, atol=0)
    torch.testing.assert_close(rank.stable_BH, torch.tensor([[39.0]]), rtol=1e-3, atol=0)


def test_a_head_that_is_no_number_has_no_rank_and_leaves_the_others_theirs() -> None:
    q_BTHK, k_BSGK = drawn(20, 20)
    alone, spoiled = Rank(), Rank()
    one_pass([alone], Stretch(q_BTHK=q_BTHK, k_BSGK=k_BSGK))
    q_BTHK[1, 7, 2, 0] = torch.nan
    one_pass([spoiled], Stretch(q_BTHK=q_BTHK, k_BSGK=k_BSGK))
    is_spoiled_BH = spoiled.effective_BH.isnan()
    assert is_spoiled_BH.nonzero().tolist() == [[1, 2]] == spoiled.stable_BH.isnan().nonzero().tolist()
    torch.testing.assert_close(spoiled.effective_BH[~is_spoiled_BH], alone.effective_BH[~is_spoiled_BH])


def test_a_matrix_that_the_solver_gives_up_on_leaves_the_others_their_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    solve, bad = torch.linalg.eigvalsh, 7.0

    def gives_up(gram: Tensor) -> Tensor:
        if (gram == bad).any():
            raise torch.linalg.LinAlgError("did not converge")
        return solve(gram)

    gram_BHRR = torch.eye(5, dtype=torch.float64).repeat(2, 3, 1, 1)
    gram_BHRR[1, 2, 0, 0] = bad
    monkeypatch.setattr(torch.linalg, "eigvalsh", gives_up)
    for rank_BH in ranks(gram_BHRR):
        assert rank_BH[1, 2].isnan() and rank_BH.isnan().sum() == 1
        torch.testing.assert_close(rank_BH[0], torch.full((3,), 5.0))
