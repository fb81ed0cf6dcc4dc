"""The first key hidden from some heads: as a mask says it, decoded, padded, probed, exported; refused where it cannot be."""

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from gatelab.config import ConfigError, ModelConfig, Run, canonical, validate
from gatelab.models import build_model
from gatelab.models.generate import Keep, continuations, generate, streaming_losses
from gatelab.models.model import Model
from gatelab.nn.attention import GatedAttention
from gatelab.probes import capture

HEADS = ((0, 3), (), (1,))
T = 9


def model(hidden: Any = HEADS, **changes: Any) -> Model:
    fields = {"n_heads": 4, "n_kv_heads": 2, "n_layers": 3, "gate": "sdpa-headwise", "init_std": 0.4}
    return build_model(tiny.model(**fields | changes, first_hidden_from=hidden)).eval()


def ids(n: int = 2, length: int = T) -> Tensor:
    return torch.randint(0, 17, (n, length), generator=torch.Generator().manual_seed(1))


def masked_by_hand(given: Model, heads: Any) -> None:
    """The same as −∞ on the logits of the first key, of all queries but the first."""
    for block, hidden in zip(given.blocks, heads, strict=True):
        bias_1HTS = torch.zeros(1, 4, T, T)
        bias_1HTS[:, list(hidden), 1:, 0] = -math.inf
        attend = block.attention.forward

        def forward(x_BTD: Tensor, attend: Any = attend, bias: Tensor = bias_1HTS, **keywords: Any) -> Tensor:
            return attend(x_BTD, **keywords | {"bias_BHTS": bias})

        block.attention.forward = forward


def test_it_is_a_mask_of_the_first_key_in_those_heads():
    by_hand = model(hidden=())
    plain = by_hand(ids())
    masked_by_hand(by_hand, HEADS)
    torch.testing.assert_close(model()(ids()), by_hand(ids()), rtol=1e-5, atol=1e-5)
    assert (plain - by_hand(ids())).abs().max() > 0.1


def test_gradients_are_those_of_the_mask():
    own, by_hand = model(), model(hidden=())
    masked_by_hand(by_hand, HEADS)
    for each in (own, by_hand):
        each(ids()).square().mean().backward()
    for (name, p), q in zip(own.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_hides_it_too(dtype: torch.dtype):
    layer = GatedAttention(d_model=16, n_heads=2, head_dim=256, first_hidden_from=(0, 1)).to(dtype)
    x_BTD = torch.randn(1, T, 16, dtype=dtype)
    changed = x_BTD.clone()
    changed[:, 0] += 1
    y, z = layer(x_BTD), layer(changed)
    assert torch.isfinite(y).all()
    torch.testing.assert_close(y[:, 1:], z[:, 1:], rtol=0, atol=0)
    assert not torch.equal(y[:, 0], z[:, 0])


def test_the_only_key_is_seen():
    for given in (model(), model(hidden=())):
        given.blocks[0].attention.gates.clear()
    layer, plain = model().blocks[0].attention, model(hidden=()).blocks[0].attention
    x_BTD = torch.randn(1, 1, 16)
    torch.testing.assert_close(layer(x_BTD), plain(x_BTD))


def test_decoding_equals_the_whole_pass():
    given, whole = model(), model()(ids())
    cache = given.new_cache(2, T)
    parts = [given(part_BT, cache=cache) for part_BT in ids().split([3, 1, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_prompts_of_unequal_length_are_what_they_are_alone():
    given, prompts = model(), [[1, 2, 3], [4], [5, 6]]
    together = continuations(given, prompts, 5)
    assert together == [continuations(given, [p], 5)[0] for p in prompts]


def test_a_window_hides_it_as_well():
    given, whole = model(window=4), None
    whole = given(ids())
    out = generate(given, ids()[:, :3], 5)
    again = [out[:, :3]]
    for _ in range(5):
        again.append(given(torch.cat(again, dim=1))[:, -1].argmax(dim=-1, keepdim=True))
    assert torch.equal(torch.cat(again, dim=1), out) and torch.isfinite(whole).all()


def test_what_streams_without_its_first_tokens_is_finite_and_short_texts_are_whole():
    losses = streaming_losses(model(), ids(), [Keep(), Keep(last=12), Keep(first=1, last=3)])
    torch.testing.assert_close(losses["all"], losses["last-12"])
    assert torch.isfinite(losses["first-1-last-3"]).all()


@pytest.mark.parametrize("at_once", [1, 5])
def test_a_cache_that_has_dropped_the_first_key_hides_no_other(at_once: int):
    # Of one layer without positions a query sees what is kept, and nothing through it.
    def losses(hidden: tuple[int, ...], keep: Keep) -> Tensor:
        given = model(hidden=(hidden,), n_layers=1, positions="none", max_seq_len=64)
        return streaming_losses(given, ids(2, 30), [keep], at_once=at_once)[keep.slug]

    own, plain = losses((0, 3), Keep(last=8)), losses((), Keep(last=8))
    assert not torch.equal(own[:, 1:7], plain[:, 1:7])
    torch.testing.assert_close(own[:, 12:], plain[:, 12:])
    # A first key that is kept is still hidden.
    torch.testing.assert_close(losses((0, 1, 2, 3), Keep(first=1, last=7))[:, 12:], losses((), Keep(last=7))[:, 12:])


def test_the_probes_see_no_first_key_there():
    given = model()
    with capture(given, ["sinks", "anywhere"]) as recorder:
        given(ids())
    mass = {
        (r.layer, r.head): r.value for r in recorder.rows() if r.metric == "first_token_mass" and r.head is not None
    }
    hidden = {(layer, h) for layer, heads in enumerate(HEADS) for h in heads}
    assert {place for place, value in mass.items() if value == 0} == hidden and len(mass) == 12


def test_a_configuration_keeps_it():
    config = tiny.model(n_heads=4, n_layers=3, first_hidden_from=HEADS)
    assert validate(ModelConfig, canonical(config)) == config
    assert tiny.model() == tiny.model(first_hidden_from=())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"first_hidden_from": ((0,),)}, "a tuple for each layer"),
        ({"first_hidden_from": ((0,), (2,))}, "expected heads from 0 to 1"),
        ({"first_hidden_from": ((0,), ()), "gate": "scores-headwise-forget"}, "a gate on the scores"),
        ({"first_hidden_from": ((0,), ()), "arch": "encoder"}, "it takes a decoder"),
    ],
)
def test_what_cannot_be_hidden_is_refused(changes: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        validate(ModelConfig, canonical(tiny.model()) | changes)


def test_documents_in_one_sequence_are_refused():
    with pytest.raises(ValueError, match="not of its documents"):
        model()(ids(), segment_ids_BT=torch.zeros(2, T, dtype=torch.int64))
    text = {"kind": "text", "paths": ("stdlib",), "document_mask": True}
    hidden = canonical(tiny.model()) | {"first_hidden_from": ((0,), ())}
    with pytest.raises(ConfigError, match="first_hidden_from hides the first key"):
        validate(Run, {"model": hidden, "data": text, "train": {"seq_len": 8}})


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_transformers_computes_it_from_the_exported_folder(tmp_path: Path, implementation: str):
    transformers = pytest.importorskip("transformers")
    from gatelab.models.interop import Stored, export_model
    from gatelab.models.interop.tensors import of_model

    given = model(bias=True)
    made = export_model(Stored("it", given.config, of_model("it", given)), tmp_path / "out")
    assert made.family == "gatelab"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True, attn_implementation=implementation
    )
    torch.testing.assert_close(theirs(ids()).logits, given(ids()), rtol=1e-4, atol=1e-4)
    said = theirs.generate(
        ids()[:, :3], attention_mask=torch.ones(2, 3), max_new_tokens=5, do_sample=False, pad_token_id=0
    )
    assert torch.equal(said, generate(given, ids()[:, :3], 5))
    padded = torch.cat([torch.zeros(2, 2, dtype=torch.int64), ids()[:, :3]], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1]] * 2)
    said = theirs.generate(padded, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(said[:, 2:], generate(given, ids()[:, :3], 5))
