"""Each family of the table: its path, what is observed of it, and that this is what its own eager matrices say."""

import math
import re
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from families import FAMILIES, UNSEEN, WINDOW, T, build, look, run, table
from torch import nn

from gatelab.config import ProbeConfig
from gatelab.ops.attention_stats import Columns, FirstKey
from gatelab.probes.external import observe
from gatelab.probes.external.intercept import Fused, Intercepted, intercepted
from gatelab.probes.probe import AttentionView, Probe
from gatelab.record import Row

pytest.importorskip("transformers")

REGISTRY = [name for name, family in FAMILIES.items() if family.path == "registry"]
INTERCEPTED = [name for name, family in FAMILIES.items() if family.path == "intercepted"]
NONE = [name for name, family in FAMILIES.items() if family.path == "none"]
# Layers that attend within chunks: the first token is the chunk's.
CHUNKED = {("llama4", 0)}
# Their eager matrices are those before the sink takes its share.
BEFORE_SINK = {"granite_swa"}
# They return the logits.
LOGITS = {"prophetnet", "squeezebert"}
_CROSS = re.compile(r"encoder_attn|cross_attn")


def matrices(name: str) -> dict[str | None, list[np.ndarray]]:
    """What eager attention returns, [B, H, T, S] in float64 in the order of the layers, by stack; of self-attention under
    None."""
    model = build(name, "eager")
    out = run(model, output_attentions=True)
    if model.config.is_encoder_decoder:
        given = {"encoder": out.encoder_attentions, None: out.decoder_attentions, "cross": out.cross_attentions}
    else:
        given = {None: out.attentions}
    # Lightning attention returns its state.
    return {
        stack: [x.double().numpy() for x in layers if x.shape[-1] >= T - 7] for stack, layers in given.items() if layers
    }


class Views(Probe):
    """Keeps what the layers' statistics are."""

    name = "views"
    metrics: ClassVar = {}
    statistics: ClassVar = (FirstKey, Columns)

    def __init__(self) -> None:
        super().__init__(ProbeConfig(), ())
        self.seen: list[tuple[str | None, int, FirstKey, Columns]] = []

    def attention(self, view: AttentionView) -> None:
        self.seen.append((view.stack, view.layer, view.of(FirstKey), view.of(Columns)))

    def summaries(self, rows: list[Row]) -> list[Row]:
        return []


@pytest.mark.parametrize("name", [*FAMILIES])
def test_outputs_are_bit_for_bit_the_models_own(name: str) -> None:
    model = build(name)
    plain = run(model)[0]
    with observe(model, ["sinks", "massive"]), intercepted(model, lambda _: None):
        assert torch.equal(plain, run(model)[0])
    assert plain.isfinite().all() and torch.equal(plain, run(model)[0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", [*FAMILIES])
def test_the_path_is_the_expected_one(name: str) -> None:
    found, family = look(name), FAMILIES[name]
    assert found.path == family.path and not (found.registry and found.intercepted)
    assert {class_name: why for _, class_name, why in found.unobserved if class_name in family.why} == family.why
    if family.path == "registry":
        # Nothing else is without rows, and what has rows was called.
        assert {class_name for _, class_name, _ in found.unobserved} == set(family.why)
        missed = {module for module, _, _ in found.unobserved}
        assert len(found.rows) == len(set(found.registry) - missed)
    if family.path == "none":
        assert found.rows == () and found.unobserved


@pytest.mark.parametrize("name", REGISTRY)
def test_first_token_mass_and_importance_are_those_of_the_eager_matrices(name: str) -> None:
    model = build(name)
    with observe(model, []) as recorder:
        recorder.probes.append(views := Views())
        run(model)
    eager = matrices(name)
    left = {stack: list(layers) for stack, layers in eager.items()}
    for stack, layer, first, columns in views.seen:
        weights_BHTS = left[stack if stack in eager else None].pop(0)
        if name in BEFORE_SINK:
            assert np.allclose(weights_BHTS.sum(-1), 1) and (first.slot_BHT > 0.01).any()
            weights_BHTS = weights_BHTS * (1 - first.slot_BHT.double().numpy()[..., None])
        n_queries = weights_BHTS.shape[2]
        first_T = np.arange(n_queries) // WINDOW * WINDOW if (name, layer) in CHUNKED else np.zeros(n_queries, int)
        first_BHT = np.take_along_axis(weights_BHTS, first_T[None, None, :, None], axis=3)[..., 0]
        np.testing.assert_allclose(first.mass_BHT.numpy(), first_BHT, atol=1e-5)
        # A weight may be too small for its type; in some head it is not.
        seen_S = (weights_BHTS > 0).any(axis=(0, 1)).sum(axis=0)
        np.testing.assert_allclose(columns.importance_BHS.numpy(), weights_BHTS.sum(axis=2) / seen_S, atol=1e-5)
        assert weights_BHTS.std(axis=3).max() > 0.005
    if not FAMILIES[name].why:
        assert views.seen and not any(left.values())


def weighed(call: Intercepted) -> np.ndarray:
    """The weights of a call, of fused attention as torch defines it, in float64."""
    if not isinstance(call, Fused):
        return call.weights_BHTS.double().numpy()
    q_BHTK, k_BGSK = call.q_BHTK.double().numpy(), call.k_BGSK.double().numpy()
    k_BHSK = np.repeat(k_BGSK, q_BHTK.shape[1] // k_BGSK.shape[1], axis=1)
    scale = 1 / math.sqrt(q_BHTK.shape[3]) if call.scale is None else call.scale
    logits_BHTS = q_BHTK @ k_BHSK.swapaxes(-1, -2) * scale
    if call.bias_BHTS is not None:
        logits_BHTS = logits_BHTS + call.bias_BHTS.double().numpy()
    sees = np.ones(logits_BHTS.shape[2:], dtype=bool)
    sees = np.tril(sees) if call.is_causal else sees if call.mask is None else call.mask_B1TS.numpy()
    logits_BHTS = np.where(sees, logits_BHTS, -np.inf)
    weights_BHTS = np.exp(logits_BHTS - logits_BHTS.max(axis=-1, keepdims=True))
    return weights_BHTS / weights_BHTS.sum(axis=-1, keepdims=True)


def noticed(model: nn.Module) -> dict[str | None, list[Intercepted]]:
    """By stack, in the order of the layers; of self-attention under None."""
    calls: list[Intercepted] = []
    with intercepted(model, calls.append):
        run(model)
    found: dict[str | None, list[Intercepted]] = {}
    for call in calls:
        is_encoder = model.config.is_encoder_decoder and call.name.startswith("encoder.")
        stack = "cross" if _CROSS.search(call.name) else "encoder" if is_encoder else None
        found.setdefault(stack, []).append(call)
    return found


@pytest.mark.parametrize("implementation", [None, "eager"])
@pytest.mark.parametrize("name", INTERCEPTED)
def test_what_is_intercepted_is_what_eager_attention_returns(name: str, implementation: str | None) -> None:
    found, eager = noticed(build(name, implementation)), matrices(name)
    if name == "led":
        assert "encoder" not in found
        del eager["encoder"]
    assert set(found) == set(eager)
    for stack, calls in found.items():
        if name == "falcon_alibi" and implementation is None:
            continue  # its eager attention is another: see the next test
        for call, given_BHTS in zip(calls, eager[stack], strict=True):
            weights_BHTS = weighed(call)
            assert call.v_BGSK.shape[2] == weights_BHTS.shape[3]
            if name == "cpmant":
                # Of the tokens, not of its prompt.
                weights_BHTS = weights_BHTS[..., -T:, -T:]
            if (given_BHTS < 0).any():
                assert name in LOGITS
                np.testing.assert_allclose(call.logits_BHTS.double().numpy(), given_BHTS, rtol=1e-5, atol=1e-5)
            else:
                np.testing.assert_allclose(weights_BHTS, given_BHTS, atol=1e-5)
            assert weights_BHTS.std(axis=3).max() > 0.005


def test_falcons_eager_attention_adds_alibi_twice_and_the_fused_once() -> None:
    call, given_BHTS = noticed(build("falcon_alibi"))[None][0], matrices("falcon_alibi")[None][0]
    assert isinstance(call, Fused) and np.abs(weighed(call) - given_BHTS).max() > 0.01
    twice = replace(call, mask=call.mask + call.bias_BHTS)
    np.testing.assert_allclose(weighed(twice), given_BHTS, atol=1e-5)


@pytest.mark.parametrize("name", INTERCEPTED)
def test_the_mask_of_what_is_intercepted_is_read(name: str) -> None:
    for stack, calls in noticed(build(name)).items():
        for call in calls:
            mask_B1TS = call.mask_B1TS
            if mask_B1TS is None:
                assert isinstance(call, Fused) and call.is_causal
                continue
            seen_TS = (weighed(call) > 0).any(axis=(0, 1))
            assert (mask_B1TS.expand(2, 1, *seen_TS.shape).numpy() == seen_TS).all(), (stack, call.name)


def test_a_softmax_that_eager_attention_of_the_registry_calls_is_seen_by_one_path_alone() -> None:
    for name in ("llama", "mixtral", "gemma2"):
        calls: list[Intercepted] = []
        model = build(name, "eager")
        with intercepted(model, calls.append):
            run(model)
        assert [call.name for call in calls] == list(look(name).registry)
        for call, weights_BHTS in zip(calls, matrices(name)[None], strict=True):
            np.testing.assert_allclose(weighed(call), weights_BHTS, atol=1e-6)
        assert look(name).intercepted == ()


def test_the_table_has_a_line_for_each_family() -> None:
    assert len(FAMILIES) >= 40
    lines = table().splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == [*FAMILIES]
    assert f"| mamba | MambaModel | none | 0 | 0 | 2 MambaMixer: {UNSEEN} |" in lines
    assert "| llama | LlamaModel | registry | 2 | 2 |  |" in lines
    assert {line.split(" | ")[2] for line in lines[2:]} == {"registry", "intercepted", "none"}
