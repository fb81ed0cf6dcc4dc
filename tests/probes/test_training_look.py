"""look: the probes' rows in the middle of a training, of any model, wrapped in anything; nothing is left behind."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_llama import V, ids, llama
from torch import Tensor, nn

from gatelab import GatedAttention, capture
from gatelab.probes.training import look

transformers = pytest.importorskip("transformers")


class Noisy(nn.Module):
    """Draws random numbers whenever it runs, and one of its layers is in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, 16)
        self.attention = GatedAttention(d_model=16, n_heads=4, n_kv_heads=2, gate="sdpa-headwise")
        self.drop, self.frozen = nn.Dropout(0.5), nn.Dropout(0.5).eval()

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.embedding(ids_BT) + 0.1 * torch.rand(16)
        return self.frozen(self.drop(x_BTD + self.attention(x_BTD)))


def test_random_numbers_and_modes_are_as_without_a_look() -> None:
    model = Noisy()
    torch.manual_seed(3)
    want = model(ids())
    torch.manual_seed(3)
    look(model, ids())
    assert torch.equal(model(ids()), want)
    assert model.training and not model.frozen.training
    assert all(p.grad is None for p in model.parameters())


def test_a_look_is_what_capture_gives_in_parts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(V, 16), GatedAttention(d_model=16, n_heads=4, n_kv_heads=2)).eval()
    parts = [ids(2, seed=3), ids(1, seed=4), ids(1, seed=5)]
    with torch.no_grad(), capture(model) as recorder:
        recorder.tokens_BT = torch.cat(parts)
        model(recorder.tokens_BT)
    found = look(model, parts, run="a", step=7)
    for one, other in zip(found, recorder.rows("a", 7), strict=True):
        assert (one.metric, one.layer, one.head, one.key) == (other.metric, other.layer, other.head, other.key)
        assert one.value == pytest.approx(other.value, rel=1e-5)


def test_a_look_computes_as_the_training_and_measures_in_float32() -> None:
    model, seen = llama().eval(), []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rows = look(model, ids(), ["sinks", "massive"])
        assert torch.is_autocast_enabled("cpu")
        handles = [b.register_forward_hook(lambda _m, _i, output: seen.append(output)) for b in model.model.layers]
        model.model(ids())
    for handle in handles:
        handle.remove()
    largest = {r.layer: r.value for r in rows if r.metric == "massive_max"}
    for layer, x_BTD in enumerate(seen):
        x_BTD = x_BTD[0] if isinstance(x_BTD, tuple) else x_BTD
        assert largest[layer] == pytest.approx(x_BTD.float().abs().amax(dim=(1, 2)).mean().item(), rel=1e-6)
    exact = {r.layer: r.value for r in look(model, ids(), ["massive"]) if r.metric == "massive_max"}
    assert largest != exact and {r.source for r in rows} == {"sinks", "massive"}


class Adapted(nn.Module):
    """As PEFT wraps a model."""

    def __init__(self, model: nn.Module, *, is_prompt_learning: bool = False):
        super().__init__()
        self.model, self.active_peft_config = model, SimpleNamespace(is_prompt_learning=is_prompt_learning)

    def get_base_model(self) -> nn.Module:
        return self.model


@pytest.mark.parametrize("wrap", [nn.DataParallel, Adapted, lambda m: torch.compile(m, backend="eager")])
def test_wrapped_models_are_looked_at_inside(wrap: Any) -> None:
    model = llama()
    assert look(wrap(model), ids()) == look(model, ids())


def test_a_model_that_is_compiled_in_place_stays_so() -> None:
    model = llama()
    plain = look(model, ids())
    model.model.layers[1].compile(backend="eager")
    compiled = model.model.layers[1]._compiled_call_impl
    assert look(model, ids()) == plain
    assert compiled is not None and model.model.layers[1]._compiled_call_impl is compiled


# peft reads a property that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_of_peft_is_looked_at_as_it_stands() -> None:
    peft = pytest.importorskip("peft")
    model = llama()
    before = look(model, ids(), ["sinks"])
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    rows = look(adapted, ids(), ["sinks"])
    assert len(rows) == len(before) and rows != before
    for one, merged in zip(rows, look(adapted.merge_and_unload(), ids(), ["sinks"]), strict=True):
        assert one.value == pytest.approx(merged.value, abs=1e-4)


def sharded() -> nn.Module:
    model = llama()
    next(model.parameters()).ds_id = 0
    return model


@pytest.mark.parametrize(
    "model, heldout, message",
    [
        (llama, ids()[0], r"ids of shape \(12,\) in torch.int64: expected whole numbers \[B, T\]"),
        (llama, ids(length=1), r"T of at least 2"),
        (llama, ids().float(), "torch.float32: expected whole numbers"),
        (llama, torch.full((2, 5), -100), "ids hold -100, which is a label's mark"),
        (llama, ids() + V, f"ids reach .*, and the model has {V}; is it another tokenizer's"),
        (llama, [], "an empty one came; expected token ids"),
        (llama, "a text", "str came; expected token ids"),
        (llama, {"input_ids": [[1, 2]]}, "a tokenizer gives them with return_tensors='pt'"),
        (sharded, ids(), "sharded over processes .* probe the checkpoints that the training saves"),
        (lambda: Adapted(llama(), is_prompt_learning=True), ids(), "puts learned tokens before the prompt"),
        (lambda: nn.Linear(2, 2), ids(), "Linear holds no GatedAttention layer"),
    ],
)
def test_what_cannot_be_looked_at_is_said(model: Any, heldout: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        look(model(), heldout)


def test_an_encoder_decoder_is_given_both_sequences() -> None:
    config = transformers.BartConfig(
        vocab_size=V, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config)
    with pytest.raises(ValueError, match="as a mapping with input_ids and decoder_input_ids"):
        look(model, ids())
    rows = look(model, {"input_ids": ids(), "decoder_input_ids": ids(length=7)}, ["sinks"])
    assert {r.stack for r in rows} == {None, "encoder", "cross"}
