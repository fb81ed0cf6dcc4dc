"""observe: transformers models, against the matrices of their own eager attention; what it refuses and leaves behind."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from planting import values
from torch import Tensor, nn

from gatelab.config import ProbeConfig
from gatelab.ops.attention_stats import Columns
from gatelab.probes.external import observe
from gatelab.probes.external.masks import read_mask
from gatelab.probes.probe import AttentionView, Probe
from gatelab.record import Row

transformers = pytest.importorskip("transformers")

T, V = 72, 61
CONFIG = ProbeConfig(thresholds=(0.02, 0.05))
DECODER = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {
    "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip


def build(family: str, implementation: str | None = "sdpa", **changes: Any) -> nn.Module:
    """A model of two layers with random parameters, none of them zero; implementation None: the family's default."""
    given = SIZES[family] | changes
    config = getattr(transformers, f"{family}Config")(**given)
    torch.manual_seed(0)
    chosen = {} if implementation is None else {"attn_implementation": implementation}
    model = getattr(transformers, f"{family}Model")._from_config(config, **chosen)
    for parameter in model.parameters():
        # Norms' gains are near one elsewhere; large queries and keys make attention uneven.
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    return model.eval()


SIZES: dict[str, dict[str, Any]] = {
    "Llama": DECODER,
    "Qwen3": DECODER,
    "GPT2": {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "GPTNeoX": {k: v for k, v in DECODER.items() if k not in ("num_key_value_heads", "head_dim")},
    "OPT": {
        "vocab_size": V, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 128, "word_embed_proj_dim": 32,
    },
    "Mistral": DECODER | {"sliding_window": 20},
    "Gemma2": DECODER | {"query_pre_attn_scalar": 3, "sliding_window": 20},
    "GptOss": DECODER | {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 20},
    "Bert": {k: v for k, v in DECODER.items() if k not in ("num_key_value_heads", "head_dim")},
    "T5": {
        "vocab_size": V, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "relative_attention_num_buckets": 8, "decoder_start_token_id": 0, "pad_token_id": 0,
    },
    "Bart": {
        "vocab_size": V, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 128,
    },
    "Qwen3Next": DECODER | EXPERTS | {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "decoder_sparse_step": 1,
    },
    "Afmoe": DECODER | {
        "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "num_dense_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 20,
    },
    "Laguna": DECODER | EXPERTS | {"layer_types": ["full_attention", "full_attention"]},
    "Qwen3_5Text": DECODER | {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    "Step3p7Text": DECODER | {"sliding_window": 20},
    "MuseGlimmerText": DECODER,
    "MPNet": {k: v for k, v in DECODER.items() if k not in ("num_key_value_heads", "head_dim")},
    "DeepseekV3": DECODER | {
        "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
        "v_head_dim": 8, "first_k_dense_replace": 2, "head_dim": 8,
    },
    "Falcon": {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
}  # fmt: skip


def tokens(batch: int = 2, length: int = T) -> Tensor:
    return torch.randint(1, V, (batch, length), generator=torch.Generator().manual_seed(1))


def run(model: nn.Module, **given: Any) -> Any:
    """The model on two sequences; an encoder-decoder's decoder reads 41 tokens."""
    if model.config.is_encoder_decoder:
        given = {"decoder_input_ids": tokens(length=41)} | given
    with torch.no_grad():
        return model(**{"input_ids": tokens()} | given)


def observed(model: nn.Module, names: list[str] | None = None, **given: Any) -> list[Row]:
    with observe(model, names, config=CONFIG) as recorder:
        run(model, **given)
    return recorder.rows()


def expected(weights_BHTS: np.ndarray, *, is_causal: bool) -> dict[str, np.ndarray]:
    """By head: first-token mass (queries that see their own key alone left out) and sink rate at the lower threshold."""
    first = weights_BHTS[..., 1:, 0] if is_causal else weights_BHTS[..., 0]
    if not is_causal:
        importance = weights_BHTS.mean(axis=2)
    else:
        # A key's mean over the queries that see it, known by their weights.
        seen = (weights_BHTS > 0).sum(axis=2)
        importance = weights_BHTS.sum(axis=2) / np.maximum(seen, 1)
    return {
        "first_token_mass": first.mean(axis=(0, 2)),
        "sink_rate": (importance[..., 0] > 0.02).mean(axis=0),
    }


def agree(rows: list[Row], layers: dict[int, Tensor], *, stack: str | None = None) -> None:
    """The heads' rows of a stack against eager matrices by layer, and that no other layer has any."""
    found = values(rows, "first_token_mass", stack=stack, threshold=None)
    assert {layer for layer, head in found if head is not None} == set(layers)
    rates = values(rows, "sink_rate", stack=stack, threshold=0.02)
    for layer, weights in layers.items():
        want = expected(weights.double().numpy(), is_causal=stack is None)
        for head in range(weights.shape[1]):
            assert found[layer, head] == pytest.approx(want["first_token_mass"][head], abs=1e-5)
            assert rates[layer, head] == pytest.approx(want["sink_rate"][head], abs=1e-6)


@pytest.mark.parametrize(
    "family", ["Llama", "Qwen3", "GPT2", "GPTNeoX", "OPT", "Mistral", "GptOss", "Bert", "Afmoe", "DeepseekV3"]
)
@pytest.mark.parametrize("length", [64, 128])
def test_rows_equal_those_of_the_eager_matrices(family: str, length: int) -> None:
    ids = tokens(length=length)
    rows = observed(build(family, None if family == "GptOss" else "sdpa"), input_ids=ids)
    eager = run(build(family, "eager"), input_ids=ids, output_attentions=True).attentions
    agree(rows, dict(enumerate(eager)), stack="encoder" if family == "Bert" else None)


class Views(Probe):
    """Keeps what the probes are shown."""

    name = "views"
    metrics: ClassVar = {}

    def __init__(self) -> None:
        super().__init__(CONFIG, ())
        self.seen: list[AttentionView] = []

    def attention(self, view: AttentionView) -> None:
        self.seen.append(view)

    def summaries(self, rows: list[Row]) -> list[Row]:
        return []


@pytest.mark.parametrize("family", ["Llama", "OPT", "Mistral", "GptOss"])
def test_every_keys_importance_is_that_of_the_eager_matrices(family: str) -> None:
    model = build(family, None)
    with observe(model, ["sinks"]) as recorder:
        recorder.probes.append(views := Views())
        run(model)
    eager = run(build(family, "eager"), output_attentions=True).attentions
    for view, weights_BHTS in zip(views.seen, eager, strict=True):
        stats = view.of(Columns)
        want = weights_BHTS.double().numpy()
        seen = (want > 0).sum(axis=2)
        np.testing.assert_allclose(stats.importance_BHS.numpy(), want.sum(axis=2) / np.maximum(seen, 1), atol=1e-5)
        # Heads that share a key are not repeated.
        assert view.last.k_BSGK.shape[2] == (4 if family == "OPT" else 2)


@pytest.mark.parametrize("family", ["T5", "Bart"])
def test_an_encoder_decoder_has_three_stacks(family: str) -> None:
    rows = observed(build(family))
    eager = run(build(family, "eager"), output_attentions=True)
    agree(rows, dict(enumerate(eager.encoder_attentions)), stack="encoder")
    agree(rows, dict(enumerate(eager.decoder_attentions)))
    agree(rows, dict(enumerate(eager.cross_attentions)), stack="cross")
    assert {r.stack for r in rows if r.metric == "massive_max"} == {None, "encoder"}


def test_sinks_take_their_share_of_the_softmax() -> None:
    model = build("GptOss", None)
    rows = observed(model)
    eager = run(build("GptOss", "eager"), output_attentions=True).attentions
    slot = values(rows, "sink_slot_mass")
    for layer, weights in enumerate(eager):
        taken = 1 - weights.double()[:, :, 1:].sum(-1).mean(dim=(0, 2))
        assert taken.max() > 0.01
        assert [slot[layer, h] for h in range(4)] == pytest.approx(taken.tolist(), abs=1e-5)


@pytest.mark.parametrize("family", [*SIZES])
def test_observing_leaves_the_output_and_the_model_as_they_were(family: str) -> None:
    model = build(family, None)
    before, implementation = run(model), model.config._attn_implementation
    with observe(model) as recorder:
        during = run(model)
        assert recorder.rows() or recorder.unobserved
    assert torch.equal(before[0], during[0]) and torch.equal(before[0], run(model)[0])
    assert model.config._attn_implementation == implementation
    assert not any("gatelab" in key for key in transformers.AttentionInterface._global_mapping)
    assert not any("gatelab" in key for key in transformers.AttentionMaskInterface._global_mapping)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model = build("Llama")
    with pytest.raises(KeyError), observe(model):
        raise KeyError
    assert model.config._attn_implementation == "sdpa" and not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Bert", "Afmoe"])
def test_padding_changes_nothing(family: str, side: str) -> None:
    model, ids = build(family), tokens(batch=1, length=50)
    plain = observed(model, input_ids=ids)
    pad, kept = torch.zeros(1, 14, dtype=torch.long), torch.ones(1, 50, dtype=torch.long)
    order = (pad, ids) if side == "left" else (ids, pad)
    mask = torch.cat((pad, kept) if side == "left" else (kept, pad), dim=1)
    given = {"input_ids": torch.cat(order, dim=1), "attention_mask": mask}
    # Tokens keep their positions.
    given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    padded = observed(model, **given)
    assert len(plain) == len(padded)
    for a, b in zip(plain, padded, strict=True):
        assert (a.metric, a.layer, a.head) == (b.metric, b.layer, b.head)
        assert a.value == pytest.approx(b.value, rel=1e-3, abs=1e-5)


def test_sequences_of_two_lengths_are_two_sequences() -> None:
    model, ids = build("Llama"), tokens()
    kept = torch.ones_like(ids)
    kept[1, :30] = 0
    together = observed(model, input_ids=ids, attention_mask=kept, position_ids=(kept.cumsum(1) - 1).clamp(min=0))
    short, long = observed(model, input_ids=ids[1:, 30:]), observed(model, input_ids=ids[:1])
    for apart in (short, long):
        for row in (r for r in apart if r.length is not None and r.layer is not None and r.key is None):
            where = replace(row, value=0.0)
            same = [r for r in together if replace(r, value=0.0) == where]
            assert [r.value for r in same] == [pytest.approx(row.value, rel=1e-3, abs=1e-5)]
    largest = [values(rows, "massive_max")[1, None] for rows in (together, short, long)]
    assert largest[0] == pytest.approx((largest[1] + largest[2]) / 2, rel=1e-4)


def test_packed_documents_are_told_apart() -> None:
    model, ids = build("Llama"), tokens(batch=1, length=60)
    positions = torch.cat([torch.arange(25), torch.arange(35)])[None]
    # With a cache transformers takes documents for one sequence.
    rows = observed(model, ["sinks"], input_ids=ids, position_ids=positions, use_cache=False)
    packed = values(rows, "first_token_mass")
    parts = [values(observed(model, ["sinks"], input_ids=x), "first_token_mass") for x in ids.split([25, 35], dim=1)]
    for layer in range(2):
        for head in range(4):
            want = (24 * parts[0][layer, head] + 34 * parts[1][layer, head]) / 58
            assert packed[layer, head] == pytest.approx(want, abs=1e-5)


def test_massive_activations_are_those_of_the_blocks_outputs() -> None:
    model = build("Llama")
    outputs = []
    handles = [block.register_forward_hook(lambda _m, _i, output: outputs.append(output)) for block in model.layers]
    found = values(observed(model, ["massive"]), "massive_max")
    for handle in handles:
        handle.remove()
    for layer, x_BTD in enumerate(outputs):
        x_BTD = x_BTD if isinstance(x_BTD, Tensor) else x_BTD[0]
        assert found[layer, None] == pytest.approx(x_BTD.abs().amax(dim=(1, 2)).mean().item())


def test_capped_logits_are_capped_as_eager_attention_caps_them() -> None:
    model = build("Gemma2", None, attn_logit_softcapping=2.0)
    eager = run(build("Gemma2", "eager", attn_logit_softcapping=2.0), output_attentions=True).attentions
    agree(observed(model), dict(enumerate(eager)))


def test_linear_attention_is_named_and_has_no_rows() -> None:
    model = build("Qwen3Next")
    with observe(model) as recorder:
        run(model)
    assert [u.class_name for u in recorder.unobserved] == ["Qwen3NextGatedDeltaNet"]
    assert {r.layer for r in recorder.rows() if r.source == "sinks"} == {None, 1}
    assert {r.layer for r in recorder.rows() if r.metric == "massive_max"} == {None, 0, 1}


@pytest.mark.parametrize("family", ["Falcon", "MPNet"])
def test_a_family_beside_the_registry_is_watched_in_its_own_code(family: str) -> None:
    model = build(family, None)
    with observe(model, config=CONFIG) as recorder:
        run(model)
    eager = run(build(family, "eager"), output_attentions=True).attentions
    agree(recorder.rows(), dict(enumerate(eager)), stack=None if family == "Falcon" else "encoder")
    assert not recorder.unobserved


def test_gemma2_without_a_cap_is_observed_with_its_own_scale() -> None:
    changes = {"attn_logit_softcapping": None}
    rows = observed(build("Gemma2", None, **changes))
    agree(rows, dict(enumerate(run(build("Gemma2", "eager", **changes), output_attentions=True).attentions)))


def gate_inputs(model: nn.Module, layer: int) -> Callable[[], np.ndarray]:
    """What the attention of a layer reads, taken as it passes."""
    seen: list[Tensor] = []
    attention = model.layers[layer].self_attn
    attention.register_forward_pre_hook(
        lambda _m, args, kw: seen.append(kw["hidden_states"] if "hidden_states" in kw else args[0]), with_kwargs=True
    )
    return lambda: seen[-1].double().numpy()


def by_hand(family: str, attention: nn.Module, x_BTD: np.ndarray) -> np.ndarray:
    """Gate scores [B, T, H, K or 1]."""
    if family in ("Qwen3Next", "Qwen3_5Text"):
        weight = attention.q_proj.weight.detach().double().numpy().reshape(4, 2, 8, 32)[:, 1]  # [H, (q, gate), K, D]
        return 1 / (1 + np.exp(-np.einsum("btd,hkd->bthk", x_BTD, weight)))
    if family in ("Afmoe", "MuseGlimmerText"):
        weight = attention.gate_proj.weight.detach().double().numpy().reshape(4, 8, 32)
        return 1 / (1 + np.exp(-np.einsum("btd,hkd->bthk", x_BTD, weight)))
    logits = np.einsum("btd,hkd->bthk", x_BTD, attention.g_proj.weight.detach().double().numpy().reshape(4, -1, 32))
    return 1 / (1 + np.exp(-logits)) if family == "Step3p7Text" else np.log1p(np.exp(logits))


@pytest.mark.parametrize("family", ["Qwen3Next", "Qwen3_5Text", "Afmoe", "MuseGlimmerText", "Laguna", "Step3p7Text"])
def test_gates_of_known_families_are_those_computed_by_hand(family: str) -> None:
    model = build(family)
    read = gate_inputs(model, 1)
    rows = observed(model, ["gate_scores"])
    scores = by_hand(family, model.layers[1].self_attn, read())
    mean, below = values(rows, "gate_mean", site="sdpa"), values(rows, "gate_below", site="sdpa", threshold=0.1)
    for head in range(4):
        assert mean[1, head] == pytest.approx(scores[:, :, head].mean(), abs=1e-5)
        assert below[1, head] == pytest.approx((scores[:, :, head] < 0.1).mean(), abs=1e-5)
    assert np.ptp(scores.mean(axis=(0, 1, 3))) > 0.01


@pytest.mark.parametrize(
    ("family", "slug"),
    [("Qwen3Next", "sdpa-elementwise"), ("Step3p7Text", "sdpa-headwise"), ("Laguna", "sdpa-headwise-softplus")],
)
def test_gates_have_the_spec_of_their_preset(family: str, slug: str) -> None:
    model = build(family)
    with observe(model, []) as recorder:
        recorder.probes.append(views := Views())
        run(model)
    spec, logits_BTHK = views.seen[-1].last.gates["sdpa"]
    assert spec.slug == slug and logits_BTHK.shape == (2, T, 4, 1 if spec.granularity == "headwise" else 8)


@pytest.mark.parametrize(("implementation", "stack"), [("sdpa", None), ("eager", "encoder")])
def test_without_a_mask_a_block_is_causal_as_its_implementation_is(implementation: str, stack: str | None) -> None:
    model = build("Llama", implementation)
    x_BTD = torch.randn(1, 9, 32)
    positions = model.rotary_emb(x_BTD, torch.arange(9)[None])
    with torch.no_grad(), observe(model, ["sinks"]) as recorder:
        model.layers[0](x_BTD, attention_mask=None, position_embeddings=positions)
    assert {r.stack for r in recorder.rows()} == {stack}


def test_masks_are_read_as_rules_or_not_at_all() -> None:
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    band = causal & ~torch.ones(9, 9, dtype=torch.bool).tril(-3)
    prefix = causal.clone()
    prefix[:4, :4] = True
    holes = causal.clone()
    holes[6, 2] = False

    def read(mask_TS: Tensor) -> Any:
        parts = read_mask(mask_TS[None, None], 9, 9, is_causal=True, is_cross=False)
        return None if parts is None else [(p.start, p.end, p.is_causal, p.window) for p in parts]

    assert read(causal) == [(0, 9, True, None)]
    assert read(band) == [(0, 9, True, 3)]
    assert read(torch.ones(9, 9, dtype=torch.bool)) == [(0, 9, False, None)]
    assert read(band | band.T) == [(0, 9, False, 3)]
    # One row for all queries: padding in front.
    assert read(torch.arange(9)[None] >= 2) == [(2, 9, False, None)]
    assert read(prefix) is None and read(holes) is None
    biased = torch.where(causal, 0.0, torch.finfo(torch.float32).min)
    assert read(biased) == [(0, 9, True, None)]
    biased[5, 2] = -1.5
    assert read(biased) is None


def test_continuing_a_cache_is_not_observed() -> None:
    model = build("Llama")
    cache = run(model, input_ids=tokens(length=8), use_cache=True).past_key_values
    with observe(model, ["sinks"]) as recorder:
        run(model, input_ids=tokens(length=3), past_key_values=cache)
    assert "3 queries meet 11 keys" in recorder.unobserved[0].why
    assert recorder.rows() == []


def test_wrong_inputs_are_refused_in_a_sentence() -> None:
    model = build("Llama")
    with pytest.raises(ValueError, match=r"no probe 'sink'.*sinks"), observe(model, ["sink"]):
        pass
    with pytest.raises(ValueError, match="Linear is not a model of transformers"), observe(nn.Linear(2, 2)):
        pass
    with pytest.raises(ValueError, match="compiled"), observe(torch.compile(model, backend="eager")):
        pass
    with observe(model) as recorder, pytest.raises(ValueError, match="no forward pass was seen"):
        recorder.rows()


def test_a_trained_model_is_read_as_its_eager_matrices_say() -> None:
    folder = Path(__file__).parents[3] / "shared" / "data" / "stories260k-hf"
    if not folder.is_dir():
        pytest.skip("the shared data is not beside the project")
    load = transformers.AutoModel.from_pretrained
    ids = torch.randint(3, 512, (2, 96), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = 1
    model = load(folder, attn_implementation="sdpa")
    rows = observed(model, ["sinks"], input_ids=ids)
    eager = run(load(folder, attn_implementation="eager"), input_ids=ids, output_attentions=True).attentions
    agree(rows, dict(enumerate(eager)))
    assert math.isfinite(rows[0].value)


def test_one_row_of_domains_is_that_of_every_sequence() -> None:
    model, ids_BT = build("Llama"), torch.randint(1, V, (3, 24), generator=torch.Generator().manual_seed(3))
    one_1T = (torch.arange(24) >= 12).long()[None]

    def rows(domain_BT: Tensor) -> dict[tuple[Any, ...], float]:
        with torch.no_grad(), observe(model, ["sinks", "anywhere"], domains=("early", "late")) as recorder:
            recorder.domain_BT = domain_BT
            model(ids_BT)
        return {(r.metric, r.layer, r.head, r.domain, r.threshold, r.key, r.bin): r.value for r in recorder.rows()}

    found, expected = rows(one_1T), rows(one_1T.expand(3, -1))
    assert any(key[3] == "late" for key in found)
    assert found == pytest.approx(expected, nan_ok=True)
