"""What probes file comes to the host once and unrounded, and becomes the means of its layers however they were filed."""

from typing import Any

import numpy as np
import pytest
import torch
from test_side_by_side import TOGETHER, model
from torch import Tensor

from gatelab.probes import probe as probe_module
from gatelab.probes.external import observe
from gatelab.probes.filed import Filed, by_layer, fetched, filed_as, means_of

B, H = 3, 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def means(filed: dict[Filed, list[Tensor]]) -> dict[tuple[str, int | None], tuple[float | None, list[float]]]:
    """By metric and layer, the whole's and each place's."""
    found = by_layer(filed)
    return {
        (name.metric, layer): (whole, by_place)
        for name, (wholes, places) in zip(found, means_of(found), strict=True)
        for layer, (whole,), (by_place,) in zip(name.layers, wholes, places, strict=True)
    }


def test_what_is_fetched_is_what_was_filed_to_the_last_bit() -> None:
    places, halves = torch.tensor([[2**24 + 1, -1]]), torch.randn(2, 3).bfloat16()
    given = [drawn(4).float(), places, halves, places]
    here = list(fetched(given))
    assert all(
        x.dtype == torch.float64 and x.shape == t.shape and torch.equal(x, t.double())
        for x, t in zip(here, given, strict=True)
    )
    assert here[1] is here[3]


def test_layers_filed_together_have_the_means_that_each_has_alone() -> None:
    value_LBH = drawn(2, B, H)
    value_LBH[1, 0, 2] = torch.nan
    together = {filed_as("m", {"layer": (5, 7)}, "head", "mean"): [value_LBH.flatten(0, 1)]}
    alone = {filed_as("m", {"layer": n}, "head", "mean"): [x] for n, x in zip((5, 7), value_LBH, strict=True)}
    assert means(together) == means(alone)
    for layer, value_BH in zip((5, 7), value_LBH.numpy(), strict=True):
        whole, by_head = means(together)["m", layer]
        np.testing.assert_allclose(whole, np.nanmean(value_BH, axis=1).mean(), rtol=1e-12)
        np.testing.assert_allclose(by_head, np.nanmean(value_BH, axis=0), rtol=1e-12)


def test_a_layer_filed_with_others_and_without_them_has_the_mean_of_both() -> None:
    with_others, without = drawn(2 * B, H), drawn(1, H, seed=1)
    filed = {
        filed_as("m", {"layer": (0, 1)}, "head", "max"): [with_others],
        filed_as("m", {"layer": 1}, "head", "max"): [without],
    }
    found = means(filed)
    expected_H = torch.cat([with_others[B:], without]).mean(dim=0)
    assert [*found] == [("m", 0), ("m", 1)] and found["m", 1][1] == pytest.approx(expected_H.tolist(), rel=1e-12)
    both = torch.cat([with_others[B:], without]).amax(dim=1).mean()
    assert found["m", 1][0] == pytest.approx(float(both), rel=1e-12)


def test_parts_of_several_widths_and_thresholds_of_one_tensor() -> None:
    value_BH = drawn(B, H)
    filed: dict[Filed, list[Tensor]] = {filed_as("bins", {}, "bin", None): [drawn(1, 2), drawn(1, 3, seed=1)]}
    for above in (-0.5, 0.5):
        filed[filed_as(f"above {above}", {"layer": 0, "threshold": above}, "head", "mean", above)] = [value_BH]
    found = means(filed)
    both, wider = (drawn(1, 2)[0] + drawn(1, 3, seed=1)[0, :2]) / 2, drawn(1, 3, seed=1)[0, 2:]
    assert found["bins", None] == (None, pytest.approx([*both.tolist(), *wider.tolist()], rel=1e-12))
    for above in (-0.5, 0.5):
        assert found[f"above {above}", 0][0] == pytest.approx(float((value_BH > above).double().mean()), rel=1e-12)


def test_rows_of_all_probes_are_fetched_together(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(tensors: list[Tensor]) -> Any:
        asked.append(len(tensors))
        return fetched(tensors)

    monkeypatch.setattr(probe_module, "fetched", counted)
    net = model()
    with torch.no_grad(), observe(net, TOGETHER) as recorder:
        net(torch.arange(20)[None])
    rows = recorder.rows()
    assert recorder.rows() == rows and asked[0] > 20 and not any(asked[1:])
