"""effects: the loss by plain arithmetic, changes paired over the same targets, intervals, and models that have no such loss."""

import math
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from gatelab.evals import next_token
from gatelab.evals.changes import Change, Curve, Effects, interval
from gatelab.evals.intervene import effects
from gatelab.models import build_model
from gatelab.probes.interventions import intervened, parse

V = 61
SHAPE = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 40, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "Llama": SHAPE,
    "GPT2": {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40},
    "Gemma2": SHAPE | {"query_pre_attn_scalar": 3, "sliding_window": 20, "final_logit_softcapping": 2.0},
    "Cohere": SHAPE | {"logit_scale": 0.3},
    "Afmoe": SHAPE | {
        "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "num_dense_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5,
    },
}  # fmt: skip
HEADS = {"GPT2": "GPT2LMHeadModel"}


def randomised(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    return model.eval()


def family(name: str, kind: str | None = None, **changes: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(**FAMILIES.get(name, SHAPE) | changes)
    made = getattr(transformers, kind or HEADS.get(name, f"{name}ForCausalLM"))
    return randomised(made._from_config(config, attn_implementation="eager" if name == "Gemma2" else "sdpa"))


def decoder(**changes: Any) -> nn.Module:
    return randomised(build_model(tiny.model(**{"n_heads": 4, "n_kv_heads": 2, "max_seq_len": 24} | changes)))


def documents(n: int = 7, length: int = 16) -> list[list[int]]:
    return torch.randint(1, 17, (n, length), generator=torch.Generator().manual_seed(3)).tolist()


def token_losses(model: nn.Module, ids: list[int]) -> np.ndarray:
    """Of each token but the first, from all logits at once."""
    with torch.no_grad():
        out = model(torch.tensor([ids]))
    logits = out if isinstance(out, torch.Tensor) else out.logits
    return F.cross_entropy(logits[0, :-1].double(), torch.tensor(ids[1:]), reduction="none").numpy()


@pytest.mark.parametrize("name", ["own", "Llama", "GPT2", "Gemma2", "Cohere", "Afmoe"])
def test_the_loss_is_that_of_the_models_own_logits_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch):
    model = decoder() if name == "own" else family(name)
    monkeypatch.setattr(next_token, "_LOGITS", 5 * V)  # five positions at once
    expected = np.mean([token_losses(model, ids).mean() for ids in documents()])
    assert effects(model, documents(), []).loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["own", "Llama", "Afmoe"])
def test_dose_zero_changes_nothing_at_all(name: str):
    gated = ["gate=open", "like-gate=open"][: 0 if name == "Llama" else 1]
    model = decoder(gate="sdpa-headwise") if name == "own" else family(name)
    words = ["zero-value@first", "mask-key@first", "prepend=1", "clip-massive=2x", "clip-massive-frozen=2x", *gated]
    found = effects(model, documents(3), words, doses=(0, 1), with_divergence=True)
    for curve in found.curves:
        zero, one = curve.changes
        assert (zero.dose, zero.changes, zero.mean, zero.low, zero.high) == (0, (0, 0, 0), 0, 0, 0)
        assert zero.divergence == 0 and one.divergence > 0
        assert all(change != 0 for change in one.changes)
        assert all(change != 0 for change in curve.control_changes[0].changes)


@pytest.mark.parametrize("name", ["own", "Llama", "GPT2"])
def test_a_value_times_one_leaves_the_loss_bit_by_bit(name: str):
    model = decoder() if name == "own" else family(name)
    curve = effects(model, documents(3), ["value@first=1:l1h2", "value@2=1"]).curves[0]
    assert {c for change in (*curve.changes, *curve.control_changes) for c in change.changes} == {0.0}


@pytest.mark.parametrize("name", ["own", "Llama"])
def test_a_change_is_the_edited_loss_less_the_untouched(name: str):
    model, words = decoder() if name == "own" else family(name), ("zero-value@first:l0h1", "mask-key@3~0.5")
    found = effects(model, documents(2), words)
    for word, curve in zip(words, found.curves, strict=True):
        for d, ids in enumerate(documents(2)):
            with intervened(model, parse(word)):
                edited = token_losses(model, ids).mean()
            change = edited - token_losses(model, ids).mean()
            assert curve.changes[-1].changes[d] == pytest.approx(change, abs=2e-6)
    assert [c.dose for c in found.curves[0].changes] == [0, 0.25, 0.5, 1]
    assert [c.dose for c in found.curves[1].changes] == [0, 0.5]  # the one that the word states


@pytest.mark.parametrize("name", ["own", "Llama"])
def test_edits_of_the_text_are_compared_over_the_same_targets(name: str):
    model = decoder() if name == "own" else family(name)
    found = effects(model, documents(2), ["drop-first", "prepend=4"], doses=(2,), seed=5)
    for d, ids in enumerate(documents(2)):
        clean = token_losses(model, ids)
        # What neither edit, nor its control, drops or leaves first.
        gone = parse("drop-middle~2").edited(ids, 5 + d).position
        counted = [j for j in range(3, len(ids)) if gone[j] >= 0]
        edited = token_losses(model, ids[2:])
        expected = np.mean([edited[j - 3] - clean[j - 1] for j in counted])
        assert found.curves[0].changes[1].changes[d] == pytest.approx(expected, abs=2e-6)
        after = token_losses(model, [4, 4, *ids])
        expected = np.mean([after[j + 1] - clean[j - 1] for j in range(1, len(ids))])
        assert found.curves[1].changes[1].changes[d] == pytest.approx(expected, abs=2e-6)


def test_what_all_depends_on_the_first_value_is_told_from_its_control():
    """All values but the first key's are zero, so that editing another changes nothing."""
    model = decoder()
    for block in model.blocks:
        block.attention.v_proj.register_forward_hook(
            lambda _m, _i, out: torch.cat([out[:, :1], torch.zeros_like(out[:, 1:])], dim=1)
        )
    curve = effects(model, documents(), ["zero-value@first"]).curves[0]
    assert {c for change in curve.control_changes for c in change.changes} == {0.0}
    assert all(abs(c) > 1e-4 for c in curve.changes[-1].changes)


def test_keys_and_gates_from_elsewhere_are_given_by_document():
    model = decoder(gate="sdpa-headwise")
    tables = [{(0, 1): 2}, {(1, 3): 5}]
    found = effects(model, documents(2), ["zero-value@strongest"], positions=tables)
    for d, word in enumerate(("zero-value@2:l0h1", "zero-value@5:l1h3")):
        alone = effects(model, documents(2)[d : d + 1], [word])
        assert found.curves[0].changes[-1].changes[d] == pytest.approx(alone.curves[0].changes[-1].mean, abs=1e-7)
    twin = decoder(gate="sdpa-headwise")
    twin.load_state_dict(model.state_dict())
    same = effects(model, documents(3), ["gate-transplant"], donor=twin).curves[0]
    other = effects(model, documents(3), ["gate-transplant"]).curves[0]
    assert same.changes[-1].mean == pytest.approx(0, abs=1e-7)
    assert abs(other.changes[-1].mean) > 1e-4


def test_intervals_are_over_documents():
    values = np.random.default_rng(1).gamma(1.0, size=30)
    expected = stats.bootstrap((values,), np.mean, method="BCa", random_state=np.random.default_rng(0))
    assert interval(values.tolist()) == pytest.approx(tuple(expected.confidence_interval))
    few = stats.t.interval(0.95, 4, loc=values[:5].mean(), scale=stats.sem(values[:5]))
    assert interval(values[:5].tolist()) == pytest.approx(few)
    assert interval([0.5] * 9) == (0.5, 0.5)
    assert all(math.isnan(x) for x in (*interval([0.5]), *interval([0.5, math.inf, 1, 2, 3, 4, 5])))


def test_rows_hold_the_dose_as_a_coordinate():
    def change(dose: float) -> Change:
        return Change(dose, 0.5, 0.25, 0.75, (0.5, 0.5), 0.125)

    edit = parse("gate=0.5:l1~0.3")
    found = Effects(2.0, (8, 8), (Curve(edit, edit.control(), (change(0), change(0.3)), (change(0.3),)),))
    rows = found.rows("run", 3)
    assert {r.intervention for r in rows} == {"gate=0.5:l1", "control of gate=0.5:l1"}
    assert len(rows) == 12 and {(r.run, r.step, r.source, r.unit, r.length) for r in rows} == {
        ("run", 3, "intervene", "nats", 8)
    }
    at = {(r.metric, r.dose): r.value for r in rows if r.intervention == "gate=0.5:l1"}
    assert at["loss_change", 0.3] == 0.5 and at["loss_change_low", 0.3] == 0.25
    assert at["loss_change_high", 0.3] == 0.75 and at["output_divergence", 0] == 0.125
    text = "\n".join(found.lines())
    assert "2 documents, Student's t" in text and "(control: like-gate=0.5:l1~0.3)" in text
    assert "dose 0.3  +0.5000 nats [+0.2500, +0.7500]   control +0.5000" in text


@pytest.mark.parametrize("name", ["own", "Llama"])
def test_the_model_is_left_as_it_was(name: str):
    model = (decoder() if name == "own" else family(name)).train()
    before = {n: dict(m.__dict__) for n, m in model.named_modules()}
    effects(model, documents(2), ["zero-value@first"])
    with pytest.raises(ValueError, match="keys 0 to 15"):
        effects(model, documents(2), ["zero-value@30"])
    for n, m in model.named_modules():
        assert m.training and m.__dict__.keys() == before[n].keys()
        assert not (m._forward_hooks or m._forward_pre_hooks)


def test_models_without_a_next_token_loss_are_refused():
    bert = {k: v for k, v in SHAPE.items() if k not in ("num_key_value_heads", "head_dim")}
    for model, sentence in (
        (build_model(tiny.model(arch="encoder")), "architecture encoder has no next-token loss"),
        (build_model(tiny.model(arch="encoder-decoder")), "architecture encoder-decoder has no next-token loss"),
        (family("Llama", "LlamaModel"), "no language-model head"),
        (family("Bert", "BertForMaskedLM", **bert), "is an encoder"),
        (nn.Linear(2, 2), "neither a decoder of Gatelab nor a model of transformers"),
    ):
        with pytest.raises(ValueError, match=sentence):
            effects(model, documents(2), ["zero-value@first"])


def test_a_decoder_whose_configuration_does_not_call_itself_one_has_a_loss():
    neox = {k: v for k, v in SHAPE.items() if k not in ("num_key_value_heads", "head_dim")}
    model = family("GPTNeoX", "GPTNeoXForCausalLM", **neox)
    (text,) = documents(1)
    ids = torch.tensor([text])
    model_loss = model(input_ids=ids, labels=ids).loss
    own = next_token.next_token(model)
    with torch.no_grad():
        losses, _ = own.losses(own.states(text), list(range(len(text) - 1)), text[1:])
    torch.testing.assert_close(losses.mean().float(), model_loss.detach(), rtol=1e-5, atol=1e-5)


def test_a_model_that_goes_around_its_base_is_refused_and_not_misread():
    opt = {k: v for k, v in SHAPE.items() if k in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    model = family("OPT", "OPTForCausalLM", ffn_dim=32, word_embed_proj_dim=SHAPE["hidden_size"], **opt)
    with pytest.raises(ValueError, match="OPTForCausalLM calls a part of its OPTModel and not the whole"):
        effects(model, documents(2), ["zero-value@first"])


@pytest.mark.parametrize(
    "texts, words, sentence",
    [
        ([], ["zero-value@first"], "no documents"),
        ([[3]], ["zero-value@first"], "document 0 has 1 tokens"),
        ([[3, 4], [3, 99]], ["zero-value@first"], "document 1 has the id 99"),
        ([[3] * 50], ["zero-value@first"], "positions for"),
        ([[3] * 24], ["prepend=4"], "the edited text has 25 tokens"),
        ([[3] * 8], ["prepend=40"], "and no 40"),
        ([[3] * 8], ["gate=1"], "has no gate"),
        ([[3] * 8], ["gate-suffle"], "did you mean 'gate-shuffle'"),
        ([[3] * 8], ["mask-key@first", "mask-key@first"], "named twice"),
        ([[3] * 8], ["zero-value@other-first"], "is a control itself"),
        ([[3] * 3], ["drop-first~2"], "leaves 1 of 3 tokens"),
    ],
)
def test_what_cannot_be_asked_is_refused(texts: list[list[int]], words: list[str], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        effects(decoder(), texts, words)


def test_doses_that_a_kind_does_not_have_are_refused():
    with pytest.raises(ValueError, match="between 0, nothing changed"):
        effects(decoder(), documents(2), ["mask-key@first"], doses=(2,))
    with pytest.raises(ValueError, match="counts tokens"):
        effects(decoder(), documents(2), ["drop-first"], doses=(0.5,))
    with pytest.raises(ValueError, match="of 8 tokens, and this one has 16"):
        effects(decoder(gate="sdpa-headwise"), [*documents(1), [3] * 8], ["gate-transplant"])
    with pytest.raises(ValueError, match="1 tables of positions and 2 documents"):
        effects(decoder(), documents(2), ["zero-value@strongest"], positions=[{(0, 0): 1}])
