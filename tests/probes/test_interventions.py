"""Interventions against plain arithmetic in float64: keys, texts, gates, massive activations; controls; nothing left behind."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from planting import values
from torch import Tensor, nn

from gatelab.config import SinkLogit
from gatelab.models import build_model
from gatelab.nn.attention import GatedAttention
from gatelab.ops.gate_apply import gate_scores
from gatelab.probes import capture
from gatelab.probes.external import observe
from gatelab.probes.external.interpose import interposed
from gatelab.probes.interventions import InputEdit, control, intervened, parse, recorded, strongest_keys
from gatelab.record import Row

T, H, G, K, D, V = 12, 4, 2, 8, 32, 61
SHAPE = {
    "vocab_size": V, "hidden_size": D, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": H,
    "num_key_value_heads": G, "max_position_embeddings": 64, "head_dim": K, "pad_token_id": 0,
}  # fmt: skip
DELTA = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
EXPERTS = {
    "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip
FAMILIES = {
    "Llama": SHAPE,
    "GPT2": {"vocab_size": V, "n_embd": D, "n_layer": 2, "n_head": H, "n_positions": 64},
    "Mistral": SHAPE | {"sliding_window": 5},
    "GptOss": SHAPE | {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 5},
    "Bert": {k: v for k, v in SHAPE.items() if k not in ("num_key_value_heads", "head_dim")},
    "Falcon": {"vocab_size": V, "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": H},
    "Afmoe": SHAPE | {
        "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "num_dense_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5,
    },
    "Qwen3Next": SHAPE | EXPERTS | DELTA,
    "Laguna": SHAPE | EXPERTS | {"layer_types": ["full_attention", "full_attention"]},
    "Step3p7Text": SHAPE | {"sliding_window": 5},
    "MuseGlimmerText": SHAPE,
}  # fmt: skip
GATED = ["Afmoe", "Qwen3Next", "Laguna", "Step3p7Text", "MuseGlimmerText"]


def randomised(model: nn.Module) -> nn.Module:
    """Large queries and keys make attention uneven, and no bias is zero."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    return model.eval()


def family(name: str, implementation: str = "sdpa") -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(**FAMILIES[name])
    return randomised(getattr(transformers, f"{name}Model")._from_config(config, attn_implementation=implementation))


def decoder(**changes: Any) -> nn.Module:
    return randomised(build_model(tiny.model(**{"n_heads": H, "n_kv_heads": G, "max_seq_len": 32} | changes)))


def layer(gate: str | None = None, **changes: Any) -> GatedAttention:
    """In float64, so that it can be compared to 12 digits."""
    return randomised(GatedAttention(d_model=D, n_heads=H, n_kv_heads=G, gate=gate, **changes)).double()


def tokens(batch: int = 2, length: int = T) -> Tensor:
    return torch.randint(1, 17, (batch, length), generator=torch.Generator().manual_seed(1))


def hidden() -> Tensor:
    return torch.randn(2, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@contextmanager
def entering(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module is given."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
    yield seen
    handle.remove()


@contextmanager
def leaving(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module returns."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(
        lambda _module, _inputs, output: seen.append((output[0] if isinstance(output, tuple) else output).detach())
    )
    yield seen
    handle.remove()


def qkv(attention: GatedAttention, x_BTD: Tensor) -> list[np.ndarray]:
    """q, k, v as they enter the softmax, of H heads each, [B, H, T, K]."""
    with leaving(attention.tap_q) as q, leaving(attention.tap_k) as k, leaving(attention.tap_v) as v:
        attention(x_BTD)
    k, v = (t[0].repeat_interleave(H // G, dim=2) for t in (k, v))
    return [t.transpose(1, 2).double().numpy() for t in (q[0], k, v)]


def weights(q: np.ndarray, k: np.ndarray, hidden_TS: np.ndarray, scale: float = 1 / math.sqrt(K)) -> np.ndarray:
    logits = np.where(hidden_TS, -np.inf, np.einsum("bhtk,bhsk->bhts", q, k) * scale)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def before_output(attention: GatedAttention, x_BTD: Tensor, word: str | None = None, **given: Any) -> np.ndarray:
    """The heads' outputs, [B, H, T, K], under an intervention."""
    keywords = given.pop("keywords", {})
    with entering(attention.o_proj) as seen:
        if word is None:
            attention(x_BTD, **keywords)
        else:
            with intervened(attention, parse(word), **given):
                attention(x_BTD, **keywords)
    return seen[0].unflatten(-1, (H, K)).transpose(1, 2).numpy()


LATER = np.triu(np.ones((T, T), dtype=bool), 1)


# Words


@pytest.mark.parametrize(
    "word",
    [
        "zero-value@first", "zero-value@first:l18h8,l19", "value@37=0~0.5", "value@first=-1.5", "mean-value@strongest:l0",
        "mask-key@other-first", "drop-first~2", "prepend=5", "gate=open", "gate@value=0.5", "gate-shuffle:l1h2~0.25",
        "gate-scale=1e-05", "clip-massive=q0.999:l5", "like-clip-massive-frozen=100x", "like-gate=0.5",
    ],
)  # fmt: skip
def test_an_intervention_prints_as_the_word_it_was_parsed_from(word: str):
    assert parse(word).word == word
    assert parse(parse(word).word) == parse(word)


def test_numbers_are_spelt_one_way():
    assert parse("value@first=0.50~.250") == parse("value@first=0.5~0.25")


@pytest.mark.parametrize(
    "word, sentence",
    [
        ("zero-valu@first", "did you mean 'zero-value'"),
        ("zero-value", "say which key"),
        ("zero-value@frist", "did you mean 'first'"),
        ("zero-value@first=3", "takes no '='"),
        ("value@first", "'=' takes a number"),
        ("value@first=1.2.3", "'=' takes a number"),
        ("value@first=0=1", "at most once"),
        ("gate@sdp=1", "did you mean 'sdpa'"),
        ("gate=wide", "a score such as 0.5, or open"),
        ("gate=1~2", "between 0, nothing changed, and 1"),
        ("gate=1~", "nothing follows '~'"),
        ("gate=1:h2", "layers and heads such as l18h8"),
        ("drop-first:l1", "all layers read"),
        ("drop-first~0.5", "counts tokens"),
        ("clip-massive=5", "a quantile"),
        ("clip-massive=1x:l2h3", "name no heads"),
        ("like-zero-value@first", "leave out 'like-'"),
        ("zero-value@first:other-l3", "name heads"),
    ],
)
def test_a_wrong_word_is_refused_with_what_is_allowed(word: str, sentence: str):
    with pytest.raises(ValueError, match="(?s)" + sentence.replace("(", r"\(")):
        parse(word)


# Keys, in layers of our own


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
def test_a_zeroed_value_takes_its_summand_out_of_the_output(impl: str):
    attention, x = layer(impl=impl), hidden()
    q, k, v = qkv(attention, x)
    p = weights(q, k, LATER)
    clean = before_output(attention, x)
    np.testing.assert_allclose(clean, p @ v, atol=1e-12)
    edited = before_output(attention, x, "zero-value@first")
    np.testing.assert_allclose(edited, clean - p[..., :1] * v[:, :, :1], atol=1e-12)
    half = before_output(attention, x, "value@3=0.5:l0h1~0.5")
    expected = clean.copy()
    expected[:, 1] -= 0.25 * p[:, 1, :, 3:4] * v[:, 1, 3:4]
    np.testing.assert_allclose(half, expected, atol=1e-12)


def test_the_mean_is_of_the_heads_own_values():
    attention, x = layer(), hidden()
    q, k, v = qkv(attention, x)
    p = weights(q, k, LATER)
    edited = before_output(attention, x, "mean-value@first:l0h2")
    expected = p @ v
    expected[:, 2] += p[:, 2, :, :1] * (v[:, 2].mean(axis=1, keepdims=True) - v[:, 2, :1])
    np.testing.assert_allclose(edited, expected, atol=1e-12)


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
@pytest.mark.parametrize("key", [0, 4])
def test_a_masked_key_is_left_out_of_the_softmax(impl: str, key: int):
    attention, x = layer(impl=impl), hidden()
    q, k, v = qkv(attention, x)
    masked = LATER.copy()
    masked[1:, key] = True  # the first query sees nothing else, and keeps it
    expected = weights(q, k, masked) @ v
    np.testing.assert_allclose(before_output(attention, x, f"mask-key@{key}"), expected, atol=1e-12)
    some = before_output(attention, x, f"mask-key@{key}:l0h3")
    np.testing.assert_allclose(some[:, 3], expected[:, 3], atol=1e-12)
    np.testing.assert_allclose(some[:, :3], before_output(attention, x)[:, :3], atol=1e-12)


def test_a_dose_of_masking_scales_the_weight_before_the_row_is_normalised():
    attention, x = layer(), hidden()
    q, k, v = qkv(attention, x)
    p = weights(q, k, LATER)
    p[:, :, 1:, 0] *= 0.25
    expected = (p / p.sum(-1, keepdims=True)) @ v
    np.testing.assert_allclose(before_output(attention, x, "mask-key@first~0.75"), expected, atol=1e-12)


def test_packed_documents_have_a_first_key_each():
    attention, x = layer(), hidden()
    segments = torch.tensor([[0] * 5 + [1] * 7, [3] * 12])
    q, k, v = qkv(attention, x)
    apart = segments.numpy()[:, :, None] != segments.numpy()[:, None]
    p = weights(q, k, (LATER | apart)[:, None])
    edited_v = v.copy()
    edited_v[:, :, 0] = edited_v[0, :, 5] = 0
    edited = before_output(attention, x, "zero-value@first", keywords={"segment_ids_BT": segments})
    np.testing.assert_allclose(edited, p @ edited_v, atol=1e-12)
    masked = LATER | apart
    masked[:, 1:, 0] = True
    masked[0, 1:5, 0], masked[0, 6:, 5] = True, True
    expected = weights(q, k, masked[:, None]) @ v
    found = before_output(attention, x, "mask-key@first", keywords={"segment_ids_BT": segments})
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_heads_of_one_kv_head_may_have_keys_of_their_own():
    attention, x = layer(), hidden()
    q, k, v = qkv(attention, x)
    p = weights(q, k, LATER)
    edited = before_output(attention, x, "zero-value@strongest", positions={(0, 0): 2, (0, 1): 7})
    expected = p @ v
    for head, key in ((0, 2), (1, 7)):
        expected[:, head] -= p[:, head, :, key, None] * v[:, head, key : key + 1]
    np.testing.assert_allclose(edited, expected, atol=1e-12)


def test_masking_counts_with_a_sink_logit_and_a_window():
    attention, x = layer(softmax=SinkLogit(), window=3), hidden()
    q, k, v = qkv(attention, x)
    sink = attention.sink.sink_logit_H.detach().numpy()[None, :, None, None]
    hidden_TS = LATER | np.tril(np.ones((T, T), dtype=bool), -3)
    hidden_TS[3:, 2] = hidden_TS[2, 2] = True
    logits = np.where(hidden_TS, -np.inf, np.einsum("bhtk,bhsk->bhts", q, k) / math.sqrt(K))
    p = np.exp(logits) / (np.exp(sink) + np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(before_output(attention, x, "mask-key@2"), p @ v, atol=1e-12)


def test_other_keys_are_as_many_and_not_the_same():
    attention, x = layer(), hidden()
    clean = before_output(attention, x)
    q, k, v = qkv(attention, x)
    p = weights(q, k, LATER)
    found = set()
    for seed in range(8):
        edited = before_output(attention, x, control(parse("zero-value@4")).word, seed=seed)
        keys = [s for s in range(T) if np.allclose(edited, clean - p[..., s : s + 1] * v[:, :, s : s + 1], atol=1e-12)]
        assert len(keys) == 1
        found.update(keys)
    assert found <= {3, 5, 6, 7, 8} and len(found) > 1  # of the middle half, without the fourth


def test_other_heads_are_as_many_and_not_the_same():
    attention, x = layer(), hidden()
    clean = before_output(attention, x)
    found = set()
    for seed in range(8):
        edited = before_output(attention, x, control(parse("zero-value@first:l0h1")).word, seed=seed)
        changed = np.abs(edited - clean).max(axis=(0, 2, 3)) > 1e-9
        assert changed.sum() == 1 and not changed[1]
        found.update(np.flatnonzero(changed).tolist())
    assert len(found) > 1


# Keys, in models of transformers


@contextmanager
def calls(model: nn.Module) -> Iterator[list[tuple[Any, ...]]]:
    """(q, k, v, output) of each call of an attention function."""
    seen: list[tuple[Any, ...]] = []

    def around(attend: Any, module: nn.Module, *args: Any, **keywords: Any) -> Any:
        output = attend(module, *args, **keywords)
        seen.append((*args[:3], output[0]))
        return output

    with interposed(model, around):
        yield seen


def first_layer(model: nn.Module, word: str | None = None, **given: Any) -> tuple[Tensor, list[np.ndarray]]:
    """The output of layer 0's attention function, [B, T, H, K], and float64 q, k, v as it is given them untouched."""
    keywords = {"input_ids": tokens(), "use_cache": False} | given.pop("keywords", {})
    with torch.no_grad(), calls(model) as clean:
        model(**keywords)
    q, k, v = (t.double() for t in clean[0][:3])
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    arrays = [t.numpy() for t in (q, k, v)]
    if word is None:
        return clean[0][3], arrays
    # The inner block is called first, so that what it gets back is edited.
    with torch.no_grad(), intervened(model, parse(word), **given), calls(model) as edited:
        model(**keywords)
    return edited[0][3], arrays


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Mistral", "Bert"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_values_and_masks_in_transformers_equal_the_arithmetic(name: str, implementation: str):
    model = family(name, implementation)
    _, (q, k, v) = first_layer(model)
    unseen = np.zeros((T, T), dtype=bool) if name == "Bert" else LATER
    if name == "Mistral":
        unseen = unseen | np.tril(np.ones((T, T), dtype=bool), -5)
    p = weights(q, k, unseen)
    found, _ = first_layer(model, "zero-value@first:l0")
    expected = p @ v - p[..., :1] * v[:, :, :1]
    np.testing.assert_allclose(found.transpose(1, 2).numpy(), expected, atol=2e-5)
    found, _ = first_layer(model, "zero-value@3:l0h1")
    expected = p @ v
    expected[:, 1] -= p[:, 1, :, 3:4] * v[:, 1, 3:4]
    np.testing.assert_allclose(found.transpose(1, 2).numpy(), expected, atol=2e-5)
    masked = unseen.copy()
    masked[0 if name == "Bert" else 1 :, 0] = True
    expected = weights(q, k, masked) @ v
    found, _ = first_layer(model, "mask-key@first:l0")
    np.testing.assert_allclose(found.transpose(1, 2).numpy(), expected, atol=2e-5)
    found, _ = first_layer(model, "mask-key@first:l0h2,l1")
    expected[:, [0, 1, 3]] = (p @ v)[:, [0, 1, 3]]
    np.testing.assert_allclose(found.transpose(1, 2).numpy(), expected, atol=2e-5)
    doses = p.copy()
    doses[:, :, 0 if name == "Bert" else 1 :, 0] *= 0.5
    found, _ = first_layer(model, "mask-key@first:l0~0.5")
    np.testing.assert_allclose(found.transpose(1, 2).numpy(), doses / doses.sum(-1, keepdims=True) @ v, atol=2e-5)


def test_masking_leaves_a_row_to_a_learned_sink():
    model = family("GptOss", "eager")
    _, (q, k, v) = first_layer(model)
    sink = model.layers[0].self_attn.sinks.detach().double().numpy()[None, :, None, None]
    unseen = LATER | np.tril(np.ones((T, T), dtype=bool), -5)
    unseen[1:, 0] = True
    logits = np.where(unseen, -np.inf, np.einsum("bhtk,bhsk->bhts", q, k) / math.sqrt(K))
    p = np.exp(logits) / (np.exp(sink) + np.exp(logits).sum(-1, keepdims=True))
    found, _ = first_layer(model, "mask-key@first:l0")
    np.testing.assert_allclose(found.transpose(1, 2).numpy(), p @ v, atol=2e-5)


@pytest.mark.parametrize("word", ["zero-value@strongest", "mask-key@strongest"])
def test_heads_of_one_kv_head_of_transformers_may_have_keys_of_their_own(word: str):
    model, table = family("Llama"), {(0, 0): 2, (0, 1): 7}
    clean, (q, k, v) = first_layer(model)
    found, _ = first_layer(model, word, positions=table)
    expected = clean.transpose(1, 2).double().numpy()
    for head, key in ((0, 2), (1, 7)):
        masked = LATER.copy()
        masked[1:, key] = True
        p = weights(q, k, masked if word.startswith("mask") else LATER)
        kept = v.copy()
        kept[:, :, key] *= float(word.startswith("mask"))
        expected[:, head] = (p @ kept)[:, head]
    np.testing.assert_allclose(found.transpose(1, 2).numpy(), expected, atol=2e-5)
    assert model.layers[0].self_attn.num_key_value_groups == H // G


@pytest.mark.parametrize(
    "word", ["zero-value@first", "mask-key@first", "mean-value@first:l0h1", "zero-value@other-first"]
)
def test_padding_on_the_left_changes_nothing(word: str):
    model = family("Llama")
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), tokens()], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    positions = torch.arange(-3, T).clamp(min=0).expand(2, -1)
    with torch.no_grad(), intervened(model, parse(word)):
        alone = model(input_ids=tokens(), use_cache=False).last_hidden_state
        behind = model(input_ids=padded, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
    torch.testing.assert_close(behind[:, 3:], alone, atol=2e-5, rtol=2e-5)


def test_positions_of_the_strongest_keys_come_from_a_probes_rows():
    rows = [
        Row("", 0, "anywhere", "sink_position", 0.4, "share", layer=1, head=0, key=0),
        Row("", 0, "anywhere", "sink_position", 0.6, "share", layer=1, head=0, key=9),
        Row("", 0, "anywhere", "sink_position", 0.9, "share", layer=1, head=3, key=-1),
        Row("", 0, "anywhere", "sink_importance", 0.9, "share", layer=0, head=3),
    ]
    assert strongest_keys(rows) == {(1, 0): 9}


# Texts


def test_edited_texts_say_where_their_tokens_went():
    ids = list(range(10, 22))
    assert parse("drop-first~2").edited(ids).ids == ids[2:]
    assert parse("drop-first~2").edited(ids).position == [-1, -1, *range(10)]
    assert parse("prepend=3~2").edited(ids).ids == [3, 3, *ids]
    assert parse("repeat-first").edited(ids).ids == [10, *ids]
    for kind in ("drop-middle~2", "repeat-middle", "insert-middle=3~2"):
        edited = parse(kind).edited(ids, seed=5)
        kept = [j for j, p in enumerate(edited.position) if p >= 0]
        assert [edited.ids[edited.position[j]] for j in kept] == [ids[j] for j in kept]
        assert edited.ids[0] == 10 and edited.position[0] == 0
    assert len({tuple(parse("drop-middle").edited(ids, seed).ids) for seed in range(8)}) > 1


@pytest.mark.parametrize("name", ["own", "Llama"])
def test_a_model_reads_the_edited_text(name: str):
    model = decoder() if name == "own" else family(name)
    ids = tokens()
    longer = torch.cat([torch.full((2, 1), 3), ids], dim=1)
    with torch.no_grad():
        with intervened(model, parse("prepend=3")):
            edited = model(ids)
        expected = model(longer)
    pick = (lambda out: out) if name == "own" else (lambda out: out.last_hidden_state)
    assert torch.equal(pick(edited), pick(expected))


# Gates


@pytest.mark.parametrize(
    "gate", ["sdpa-headwise", "sdpa-elementwise-shared", "value-elementwise", "out-elementwise-tanh"]
)
def test_a_gate_clamped_at_one_is_a_model_without_it(gate: str):
    gated, x = layer(gate), hidden()
    plain = layer(None)
    plain.load_state_dict({name: p for name, p in gated.state_dict().items() if not name.startswith("gates")})
    for word in ("gate=1", "gate=open"):
        with intervened(gated, parse(word)):
            torch.testing.assert_close(gated(x), plain(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("gate", ["sdpa-headwise-silu", "sdpa-elementwise-ns_sigmoid"])
def test_a_clamp_may_lie_outside_of_the_activations_range(gate: str):
    gated, x = layer(gate), hidden()
    plain = before_output(gated, x, "gate=1")
    np.testing.assert_allclose(before_output(gated, x, "gate=-2.5"), -2.5 * plain, atol=1e-12)
    clean = before_output(gated, x)
    np.testing.assert_allclose(before_output(gated, x, "gate=-2.5~0.5"), (clean - 2.5 * plain) / 2, atol=1e-12)


def test_a_gate_that_adds_is_shut_by_zero_and_one_that_forgets_by_one():
    plain, x = layer(None), hidden()
    for gate, word in (("sdpa-elementwise-add", "gate=0"), ("scores-headwise-forget", "gate=1")):
        gated = layer(gate)
        plain.load_state_dict({name: p for name, p in gated.state_dict().items() if not name.startswith("gates")})
        with intervened(gated, parse(word)):
            torch.testing.assert_close(gated(x), plain(x), atol=1e-12, rtol=0)


def scores(attention: GatedAttention, x: Tensor, word: str, **given: Any) -> tuple[Tensor, Tensor]:
    """The gate's scores untouched, and edited."""
    gate = attention.gates["sdpa"]
    with leaving(gate.tap_logits) as seen:
        attention(x)
    clean = gate_scores(seen[0], gate.spec)
    with intervened(attention, parse(word), **given), leaving(gate.tap_logits) as seen:
        attention(x)
    return clean, seen[0]


def test_shuffling_keeps_the_scores_and_moves_them():
    clean, edited = scores(layer("sdpa-elementwise"), hidden(), "gate-shuffle")
    assert torch.equal(clean.sort(dim=1).values, edited.sort(dim=1).values)
    assert not torch.equal(clean, edited)
    clean, edited = scores(layer("sdpa-elementwise"), hidden(), "gate-shuffle:l0h1")
    assert torch.equal(clean[:, :, [0, 2, 3]], edited[:, :, [0, 2, 3]])
    assert not torch.equal(clean[:, :, 1], edited[:, :, 1])


def test_the_mean_is_over_the_text_and_scaling_is_of_logits():
    clean, edited = scores(layer("sdpa-elementwise"), hidden(), "gate-mean")
    torch.testing.assert_close(edited, clean.mean(dim=1, keepdim=True).expand_as(clean))
    clean, edited = scores(layer("sdpa-elementwise"), hidden(), "gate-scale=3~0.5")
    torch.testing.assert_close(edited, (2 * clean.logit()).sigmoid())


def test_a_transplant_is_the_other_texts_gates():
    attention, x = layer("sdpa-headwise"), hidden()
    edit = parse("gate-transplant")
    with recorded(attention, edit) as recording:
        attention(x.flip(0))
    clean, edited = scores(attention, x, edit.word, recorded=recording)
    assert torch.equal(edited, clean.flip(0))
    assert not torch.equal(clean, edited)
    with pytest.raises(ValueError, match="equal length"), intervened(attention, edit, recorded=recording):
        attention(x[:, 1:])


@pytest.mark.parametrize("name", GATED)
def test_gates_of_families_are_clamped_and_shuffled(name: str):
    """Before the output projection stands the attention output times the score."""
    model = family(name)
    last = model.layers[1].self_attn

    def output(word: str | None) -> Tensor:
        with torch.no_grad(), entering(last.o_proj) as seen:
            if word is None:
                model(tokens(), use_cache=False)
            else:
                with intervened(model, parse(word)):
                    model(tokens(), use_cache=False)
        return seen[0]

    with torch.no_grad(), calls(model) as seen:
        model(tokens(), use_cache=False)
    y_BTN = seen[-1][3].flatten(-2)
    clean = output(None)
    torch.testing.assert_close(output("gate=open:l1"), y_BTN)
    torch.testing.assert_close(output("gate@sdpa=0.25:l1"), y_BTN / 4)
    torch.testing.assert_close(output("gate-scale=1:l1"), clean)
    torch.testing.assert_close(output("gate=0:l1~0.75"), clean / 4)
    shuffled = (output("gate-shuffle:l1") / y_BTN).sort(dim=1).values
    torch.testing.assert_close(shuffled, (clean / y_BTN).sort(dim=1).values, rtol=1e-3, atol=1e-5)
    one = output("gate=open:l1h2").unflatten(-1, (H, K))
    torch.testing.assert_close(one[:, :, 2], y_BTN.unflatten(-1, (H, K))[:, :, 2])
    torch.testing.assert_close(one[:, :, :2], clean.unflatten(-1, (H, K))[:, :, :2])


def test_a_transplant_of_the_text_itself_changes_nothing():
    model, edit = family("Afmoe"), parse("gate-transplant")
    with torch.no_grad():
        with recorded(model, edit) as recording:
            clean = model(tokens(), use_cache=False).last_hidden_state
        with intervened(model, edit, recorded=recording):
            torch.testing.assert_close(model(tokens(), use_cache=False).last_hidden_state, clean)
    assert set(recording.gates) == {(0, "sdpa"), (1, "sdpa")}


@pytest.mark.parametrize("name", ["own", "Afmoe"])
@pytest.mark.parametrize("word", ["gate=0.2:l0", "gate-shuffle:l0~0.5"])
def test_a_gates_control_is_as_large_as_the_edit(name: str, word: str):
    model = decoder(gate="sdpa-headwise+value-elementwise") if name == "own" else family(name)
    attention = model.blocks[0].attention if name == "own" else model.layers[0].self_attn
    changes = []
    with torch.no_grad():
        with leaving(attention) as seen:
            model(tokens())
        for edit in (parse(word), control(parse(word))):
            with intervened(model, edit), leaving(attention) as edited:
                model(tokens())
            changes.append(edited[0] - seen[0])
    torch.testing.assert_close(changes[0].norm(dim=-1), changes[1].norm(dim=-1), rtol=1e-4, atol=1e-5)
    cosine = torch.cosine_similarity(*changes, dim=-1)
    assert cosine.abs().mean() < 0.6


# Massive activations


def first_block(model: nn.Module) -> nn.Module:
    """What gives the residual stream after the first block."""
    if hasattr(model, "blocks"):
        return model.blocks[0].tap_residual
    return model.h[0] if hasattr(model, "h") else model.layers[0]


@pytest.mark.parametrize("name", ["own", "Llama", "GPT2"])
def test_clipping_is_to_a_multiple_of_the_median_or_a_quantile(name: str):
    model = decoder() if name == "own" else family(name)
    block = first_block(model)
    with torch.no_grad():
        with leaving(block) as seen:
            model(tokens())
        size = seen[0].abs().flatten(1)
        for word, limit in (
            ("clip-massive=1.5x:l0", 1.5 * size.median(dim=1).values),
            ("clip-massive=q0.9:l0", size.sort(dim=1).values[:, math.ceil(0.9 * size.shape[1]) - 1]),
        ):
            with intervened(model, parse(word)), leaving(block) as edited:
                model(tokens())
            expected = seen[0].clamp(-limit[:, None, None], limit[:, None, None])
            assert torch.equal(edited[0], expected)
            assert not torch.equal(edited[0], seen[0])
            with intervened(model, control(parse(word))), leaving(block) as other:
                model(tokens())
            torch.testing.assert_close((other[0] - seen[0]).norm(dim=-1), (expected - seen[0]).norm(dim=-1))


@pytest.mark.parametrize("name", ["own", "own-layer", "Llama", "GPT2", "Mistral"])
@pytest.mark.parametrize("kind", ["frozen", "held"])
def test_replayed_norms_change_nothing_where_nothing_is_clipped(name: str, kind: str):
    model = decoder(norm="layer" if name == "own-layer" else "rms") if name.startswith("own") else family(name)
    edit = parse(f"clip-massive-{kind}=1e6x")
    pick = (lambda out: out) if name.startswith("own") else (lambda out: out.last_hidden_state)
    with torch.no_grad():
        with recorded(model, edit) as recording:
            clean = pick(model(tokens()))
        with intervened(model, edit, recorded=recording):
            assert torch.equal(pick(model(tokens())), clean)
    assert len(recording.norms) == 5  # two a block, and the last


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
@pytest.mark.parametrize("kind", ["frozen", "held"])
def test_a_replayed_norm_divides_by_the_untouched_root_mean_square(name: str, kind: str):
    model, edit = family(name), parse(f"clip-massive-{kind}=1.5x:l1")
    norm = model.norm if name == "Llama" else model.ln_f
    with torch.no_grad():
        with recorded(model, edit) as recording, entering(norm) as clean:
            model(tokens())
        # As if another layer had made some tokens larger than they were.
        grown = model.layers[1] if name == "Llama" else model.h[1]
        handle = grown.register_forward_hook(lambda _m, _i, out: scaled(out, 1 + torch.arange(T)[:, None] / 4))
        with intervened(model, edit, recorded=recording), entering(norm) as edited:
            found = model(tokens()).last_hidden_state
        handle.remove()
    x, was = edited[0].double(), clean[0].double()
    if name == "GPT2":
        x, was = x - x.mean(-1, keepdim=True), was - was.mean(-1, keepdim=True)
    root, own = ((t.square().mean(-1, keepdim=True) + (1e-5 if name == "GPT2" else 1e-6)).sqrt() for t in (was, x))
    assert (own > root).any() and (own < root).any()
    root = root if kind == "frozen" else torch.maximum(root, own)
    expected = x / root * norm.weight.double() + (norm.bias.double() if name == "GPT2" else 0)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def scaled(output: Any, factor: Tensor) -> Any:
    return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor


def test_a_norm_that_is_more_than_a_scale_is_not_frozen():
    model, edit = decoder(norm="gated-rms"), parse("clip-massive-frozen=2x")
    with pytest.raises(ValueError, match="cannot be frozen"), recorded(model, edit):
        pass


# What holds for all


EVERY = [
    "zero-value@first", "mean-value@first:l1h1", "mask-key@first", "prepend=3", "gate=0.5", "gate-shuffle:l1h1", "like-gate=0.5",
    "gate-transplant", "clip-massive=2x", "clip-massive-frozen=2x:l0", "clip-massive-held=2x:l0",
    "like-clip-massive=2x",
]  # fmt: skip


def trace(model: nn.Module) -> dict[str, object]:
    """What an edit could leave behind."""
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    kept = {
        f"{name}.{attribute}": value
        for name, m in model.named_modules()
        for attribute in ("spec", "heads", "num_key_value_groups", "forward")
        if (value := m.__dict__.get(attribute)) is not None
    }
    config = getattr(model, "config", None)
    return {"hooks": hooks, "kept": kept, "implementation": getattr(config, "_attn_implementation", None)}


@pytest.mark.parametrize("name", ["own", "Afmoe"])
@pytest.mark.parametrize("word", EVERY)
def test_nothing_is_left_behind(name: str, word: str):
    model = decoder(gate="sdpa-headwise") if name == "own" else family(name)
    pick = (lambda out: out) if name == "own" else (lambda out: out.last_hidden_state)
    edit = parse(word)
    with torch.no_grad():
        clean, before = pick(model(tokens())), trace(model)
        recording = None
        if edit.needs:
            with recorded(model, edit) as recording:
                model(tokens().flip(0))
        with intervened(model, edit, recorded=recording):
            assert not torch.equal(pick(model(tokens()))[:, -1], clean[:, -1])
        assert trace(model) == before
        with pytest.raises(KeyError), intervened(model, edit, recorded=recording):
            model(tokens())
            raise KeyError
        assert trace(model) == before
        assert torch.equal(pick(model(tokens())), clean)
        with intervened(model, edit.at_dose(0), recorded=recording):
            assert torch.equal(pick(model(tokens())), clean)


@pytest.mark.parametrize("word", [w for w in EVERY if not w.startswith("like-")])
def test_every_kind_has_a_control_that_has_none(word: str):
    edit = control(parse(word))
    assert edit != parse(word) and parse(edit.word) == edit
    with pytest.raises(ValueError, match="is a control itself"):
        control(edit)


def test_the_probes_see_an_edited_model_of_our_own():
    model = decoder(gate="sdpa-headwise")
    edits = [parse(word) for word in ("gate=0.25", "clip-massive=2x:l0", "zero-value@first")]
    with torch.no_grad(), capture(model, ["gate_scores", "massive", "anywhere"]) as recorder, ExitStack() as stack:
        for edit in edits:
            stack.enter_context(intervened(model, edit))
        model(tokens())
    rows = recorder.rows()
    assert values(rows, "gate_mean", site="sdpa") == pytest.approx(dict.fromkeys(values(rows, "gate_mean"), 0.25))
    assert values(rows, "massive_ratio")[0, None] == pytest.approx(2, rel=1e-5)


def test_the_probes_see_an_edited_model_of_transformers():
    model = family("Llama")
    with torch.no_grad(), observe(model, ["massive", "shape"]) as clean:
        model(tokens(), use_cache=False)
    with torch.no_grad(), observe(model, ["massive", "shape"]) as recorder, ExitStack() as stack:
        for word in ("clip-massive=2x:l0", "mask-key@first:l0"):
            stack.enter_context(intervened(model, parse(word)))
        model(tokens(), use_cache=False)
    rows = recorder.rows()
    assert values(rows, "massive_ratio")[0, None] == pytest.approx(2, rel=1e-5)
    entropy, was = (values(r, "attention_entropy")[0, 1] for r in (rows, clean.rows()))
    assert entropy != pytest.approx(was, rel=1e-3)


def test_gradients_flow_through_an_edit():
    attention, x = layer("sdpa-headwise"), hidden().requires_grad_()
    with intervened(attention, parse("zero-value@first~0.5")), intervened(attention, parse("gate-mean")):
        attention(x).sum().backward()
    assert x.grad.abs().sum() > 0


REFUSED = [
    ("zero-value@first:l9", "layers 0 to 1, and no layer 9"),
    ("zero-value@first:l0h9", "heads 0 to 3, and no head 9"),
    ("zero-value@40", "keys 0 to 11"),
    ("zero-value@strongest", "hand over positions"),
    ("zero-value@first:other-l0h0,l0h1,l0h2", "1 heads besides the 3"),
    ("prepend=999", "and no 999"),
    ("drop-first~11", "two at least"),
    ("clip-massive-frozen=2x", "recorded"),
]


@pytest.mark.parametrize("name", ["own", "Llama"])
@pytest.mark.parametrize("word, sentence", REFUSED)
def test_what_cannot_be_edited_is_refused(name: str, word: str, sentence: str):
    model = decoder() if name == "own" else family(name)
    before = trace(model)
    with pytest.raises(ValueError, match=sentence), intervened(model, parse(word)):
        model(tokens())
    assert trace(model) == before


@pytest.mark.parametrize("name", ["own", "Llama"])
def test_a_gate_that_is_not_there_is_not_edited(name: str):
    model = decoder() if name == "own" else family(name)
    with pytest.raises(ValueError, match="has no gate that is known here"), intervened(model, parse("gate=1")):
        pass


def test_gates_that_an_edit_does_not_fit_are_refused():
    for gate, word, sentence in (
        ("sdpa-headwise", "gate@value=1", "no gate at the site value"),
        ("sdpa-elementwise-add", "gate=open", "none of them is open"),
        ("scores-headwise-forget", "gate=0", "above 0"),
        ("value-elementwise", "gate=0:l0h1", "not of query heads"),
        ("sdpa-headwise-lse", "gate-mean", "not known before"),
    ):
        with pytest.raises(ValueError, match=sentence), intervened(layer(gate), parse(word)):
            pass
    edited = intervened(family("Qwen3Next"), parse("gate=1:l0"))
    with pytest.raises(ValueError, match="layer 0 has no gate; layers with one are 1"), edited:
        pass


def test_an_edit_that_did_not_happen_is_an_error():
    for name, word in (("Qwen3Next", "zero-value@first:l0"), ("Falcon", "mask-key@first")):
        model = family(name)
        with (
            torch.no_grad(),
            pytest.raises(ValueError, match="no call of an attention"),
            intervened(model, parse(word)),
        ):
            model(tokens(), use_cache=False)
    model = family("Qwen3Next")
    with torch.no_grad(), intervened(model, parse("zero-value@first")):
        model(tokens(), use_cache=False)  # of two layers one has attention


def test_models_that_cannot_be_taken_hold_of_are_refused():
    edit = parse("zero-value@first")
    for model, sentence in (
        (nn.Linear(2, 2), "nothing in it can be edited"),
        (build_model(tiny.model(arch="encoder-decoder")), "two stacks"),
        (torch.compile(decoder(), backend="eager"), "is compiled"),
    ):
        with pytest.raises(ValueError, match=sentence), intervened(model, edit):
            pass
    model = decoder()
    with pytest.raises(ValueError, match="without a cache"), intervened(model, edit):
        model(tokens(1), cache=model.new_cache(1))


def test_a_text_edit_takes_ids_alone():
    model = family("Llama")
    mask = torch.ones(2, T, dtype=torch.long)
    mask[0, :2] = 0
    with pytest.raises(ValueError, match="without padding"), intervened(model, parse("drop-first")):
        model(input_ids=tokens(), attention_mask=mask)
    assert isinstance(parse("drop-first"), InputEdit)
