"""The sink moves at a fixed gate, and the gate at a fixed sink: what is kept is kept, and only the rest answers."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from gatelab.evals.intervene import effects
from gatelab.models import build_model
from gatelab.ops.gate_apply import gate_scores
from gatelab.probes import capture
from gatelab.probes.interventions import control, intervened, parse, recorded

GATES = "sdpa-elementwise+value-headwise-bias"
IDS_BT = torch.randint(1, 17, (2, 12), generator=torch.Generator().manual_seed(1))
MOVE_SINK = ("zero-value-frozen@first", "mask-key-frozen@first", "mask-key-frozen@first:l0h1")
MOVE_GATE = ("gate-frozen=0.2", "gate-mean-frozen:l0", "gate-shuffle-frozen", "like-gate-shuffle-frozen")


def model(**changes: object) -> nn.Module:
    torch.manual_seed(3)
    built = build_model(tiny.model(**{"n_heads": 4, "n_kv_heads": 2, "gate": GATES} | changes)).eval()
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.4)
    return built


@contextmanager
def frozen(built: nn.Module, word: str, ids_BT: Tensor = IDS_BT) -> Iterator[None]:
    with recorded(built, parse(word)) as recording:
        built(ids_BT)
    with intervened(built, parse(word), recorded=recording):
        yield


def scores(built: nn.Module) -> dict[tuple[int, str], Tensor]:
    """What gates are while the model reads the text; hooks that come later than the edit's see what it put there."""
    found: dict[tuple[int, str], Tensor] = {}
    handles = [
        gate.tap_logits.register_forward_hook(
            lambda _m, _i, logits, at=(layer, site), gate=gate: found.update({at: gate_scores(logits, gate.spec)})
        )
        for layer, block in enumerate(built.blocks)
        for site, gate in block.attention.gates.items()
    ]
    built(IDS_BT)
    for handle in handles:
        handle.remove()
    return found


def masses(built: nn.Module) -> dict[tuple[int | None, int | None], float]:
    with capture(built, ["sinks"]) as recorder:
        built(IDS_BT)
    return {(r.layer, r.head): r.value for r in recorder.rows() if r.metric == "first_token_mass"}


@torch.no_grad()
@pytest.mark.parametrize("word", MOVE_SINK)
def test_a_moved_sink_meets_the_gates_as_they_were(word: str) -> None:
    built = model()
    clean = scores(built)
    with frozen(built, word):
        held = scores(built)
    assert clean.keys() == held.keys() and all(torch.equal(held[at], clean[at]) for at in clean)
    with intervened(built, parse(word.replace("-frozen", ""))):
        answering = scores(built)
    assert torch.equal(answering[0, "sdpa"], clean[0, "sdpa"])
    assert not torch.allclose(answering[1, "sdpa"], clean[1, "sdpa"], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("word", MOVE_SINK)
def test_it_is_the_plain_edit_with_the_texts_own_gates_transplanted(word: str) -> None:
    built = model()
    with frozen(built, word):
        found = built(IDS_BT)
    with recorded(built, parse("gate-transplant")) as own:
        built(IDS_BT)
    with (
        intervened(built, parse(word.replace("-frozen", ""))),
        intervened(built, parse("gate-transplant"), recorded=own),
    ):
        expected = built(IDS_BT)
    torch.testing.assert_close(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("word", MOVE_GATE)
@pytest.mark.parametrize("gate", [GATES, f"{GATES}+scores-headwise-forget-bias+key-headwise"])
def test_a_moved_gate_meets_the_sink_as_it_was(gate: str, word: str) -> None:
    built = model(gate=gate)
    clean, logits = masses(built), built(IDS_BT)
    with frozen(built, word):
        held, edited = masses(built), built(IDS_BT)
    assert held == pytest.approx(clean, abs=1e-7) and not torch.allclose(edited, logits, atol=1e-3)
    with intervened(built, parse(f"{word.replace('-frozen', '')}")):
        answering = masses(built)
    assert abs(answering[1, 0] - clean[1, 0]) > 1e-4


@torch.no_grad()
def test_the_second_layer_is_the_old_weights_times_the_new_values_by_hand() -> None:
    """P of the untouched pass, v and the gates of the edited one, in float64."""
    built = model(gate="sdpa-headwise", n_kv_heads=4).double()
    attention, seen = built.blocks[1].attention, {}

    def watch(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _m, _i, out: seen.update({name: out.detach().numpy()}))

    for name in "qkv":
        watch(name, getattr(attention, f"tap_{name}"))
    attention.o_proj.register_forward_pre_hook(lambda _m, inputs: seen.update(y=inputs[0].detach().numpy()))
    built(IDS_BT)
    logits = np.einsum("bthk,bshk->bhts", seen["q"], seen["k"]) / 4**0.5
    logits += np.where(np.triu(np.ones((12, 12), dtype=bool), 1), -np.inf, 0)
    pattern = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    unedited = seen["v"]
    with frozen(built, "gate-frozen=0.2"):
        built(IDS_BT)
    assert np.abs(seen["v"] - unedited).max() > 0.01
    expected = 0.2 * np.einsum("bhts,bshk->bthk", pattern, seen["v"])
    np.testing.assert_allclose(seen["y"].reshape(expected.shape), expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_in_the_only_layer_nothing_is_there_to_answer() -> None:
    built = model(n_layers=1)
    for word in ("mask-key-frozen@first", "gate-shuffle-frozen"):
        with frozen(built, word):
            found = built(IDS_BT)
        with intervened(built, parse(word.replace("-frozen", ""))):
            torch.testing.assert_close(built(IDS_BT), found)


@torch.no_grad()
def test_the_control_of_a_moved_gate_is_as_large_at_the_same_sink() -> None:
    built, outputs = model(), {}
    built.blocks[0].attention.register_forward_hook(lambda _m, _i, out: outputs.update(y=out))
    built(IDS_BT)
    clean, sizes = outputs["y"], []
    for word in ("gate-shuffle-frozen", control(parse("gate-shuffle-frozen")).word):
        with frozen(built, word):
            # The control stands in a hook that comes first, and so does what this one sees.
            built(IDS_BT)
        sizes.append((outputs["y"] - clean).norm(dim=-1))
    torch.testing.assert_close(sizes[0], sizes[1], rtol=1e-4, atol=1e-5)
    assert control(parse("mask-key-frozen@first")).word == "mask-key-frozen@other-first"


@torch.no_grad()
def test_layers_without_a_gate_are_kept_too_and_have_none_to_move() -> None:
    built = model(n_layers=3, gate_layers="first-third")
    clean = masses(built)
    with frozen(built, "gate-mean-frozen"):
        assert masses(built) == pytest.approx(clean, abs=1e-7)
    with (
        pytest.raises(ValueError, match="layer 2 has no gate; layers with one are 0"),
        frozen(built, "gate-mean-frozen:l2"),
    ):
        pass


@pytest.mark.parametrize("word", [*MOVE_SINK, *MOVE_GATE])
@torch.no_grad()
def test_nothing_of_it_is_left(word: str) -> None:
    built = model()
    clean, hooks = built(IDS_BT), [len(m._forward_hooks) for m in built.modules()]
    with frozen(built, word):
        pass
    assert [len(m._forward_hooks) for m in built.modules()] == hooks and torch.equal(built(IDS_BT), clean)


def test_changes_of_loss_are_measured_beside_their_controls() -> None:
    texts = [[1, 5, 2, 9, 3, 7, 4, 8], [2, 4, 6, 8, 1, 3, 5, 7]]
    words = ["mask-key-frozen@first", "gate-shuffle-frozen", "gate-shuffle"]
    found = {curve.intervention.word: curve for curve in effects(model(), texts, words).curves}
    assert set(found) == set(words)
    for curve in found.values():
        assert curve.changes[0].mean == 0 and curve.changes[-1].mean != 0 != curve.control_changes[-1].mean
    assert found["gate-shuffle-frozen"].changes[-1].mean != found["gate-shuffle"].changes[-1].mean


@pytest.mark.parametrize(
    ("changes", "word", "says"),
    [
        ({"gate": "none"}, "mask-key-frozen@first", "Decoder has no gate to keep; take mask-key@first"),
        ({"gate": "sdpa-headwise-lse"}, "zero-value-frozen@first", "makes its scores inside of attention"),
        ({"gate": "query-headwise"}, "gate-mean-frozen", "has no gate that is known here"),
    ],
)
def test_what_cannot_be_kept_is_refused(changes: dict[str, str], word: str, says: str) -> None:
    with pytest.raises(ValueError, match=says), torch.no_grad(), frozen(model(**changes), word):
        pass


def test_a_gate_that_makes_the_pattern_is_not_moved_beside_it() -> None:
    with pytest.raises(
        ValueError, match="a gate at query makes the pattern that is kept; take one of sdpa, value, out"
    ):
        parse("gate-mean-frozen@query")


@torch.no_grad()
def test_only_the_text_that_was_recorded_can_be_run() -> None:
    for word in ("mask-key-frozen@first", "gate-mean-frozen"):
        says = "run it inside `recorded` and hand it over"
        with pytest.raises(ValueError, match=says), intervened(model(), parse(word)):
            pass
        with pytest.raises(ValueError, match="record the text that is run"), frozen(built := model(), word):
            built(IDS_BT[:, :7])


def test_a_model_of_transformers_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 17, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
    built = transformers.LlamaModel(config).eval()
    for word in ("mask-key-frozen@first", "gate-mean-frozen"):
        says = "in Gatelab's own layers alone, and this is a LlamaModel"
        with pytest.raises(ValueError, match=says), recorded(built, parse(word)):
            pass
