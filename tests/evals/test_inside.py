"""What is read inside of a decoder for every item: attention by plain arithmetic, gates that are clamped, documents by hand."""

import math

import pytest
import tiny
import torch
from tapped import queries_and_keys

from gatelab.config import AskConfig, Run, Tasks, TrainConfig
from gatelab.evals import inside
from gatelab.evals.asking import asked
from gatelab.evals.inside import read_inside, with_inside
from gatelab.models import build_model
from gatelab.models.model import Model
from gatelab.nn.attention import GatedAttention
from gatelab.tasks import VOCAB_SIZE, Knobs, TaskItem, open_task

T = 96


def run(arch: str = "decoder", names: tuple[str, ...] = ("cite",), **model: object) -> Run:
    return Run(
        model=tiny.model(arch=arch, vocab_size=VOCAB_SIZE + 1, max_seq_len=T, **model),
        data=Tasks(names=names),
        objective="answers" if arch == "encoder" else None,
        train=TrainConfig(tokens=T, batch_size=1, seq_len=T),
        ask=AskConfig(items=12, times=(1, 2), stretch=("none", "yarn")),
    )


def sharp(config: object) -> Model:
    """A model whose attention is not even."""
    model = build_model(config)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, GatedAttention):
                layer.q_proj.weight.mul_(300)
    return model


def weights_of(model: Model, item: TaskItem, registers: int) -> list[torch.Tensor]:
    """By layer, the mean over heads of the attention weights [T, T], from queries and keys."""
    found = []
    for q_THK, k_THK in queries_and_keys(model, item.tokens):
        logits_HTS = torch.einsum("thk,shk->hts", q_THK, k_THK) / math.sqrt(q_THK.shape[-1])
        future_TS = torch.ones_like(logits_HTS[0], dtype=torch.bool).triu(1)
        weights_HTS = logits_HTS.masked_fill(future_TS, -math.inf).softmax(dim=-1)
        found.append(weights_HTS.mean(dim=0)[registers:, registers:])
    return found


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize(("name", "changes"), [("cite", {"hardness": 2}), ("mqar", {}), ("select", {})])
def test_attention_to_the_evidence_is_that_of_all_that_is_asked(name: str, changes: dict, registers: int) -> None:
    model = sharp(tiny.model(vocab_size=VOCAB_SIZE + 1, max_seq_len=T, registers=registers))
    items = [open_task(name).item(Knobs(T, **changes), i) for i in range(3)]
    for item, found in zip(items, read_inside(model, items), strict=True):
        each = [0.0] * len(item.asked)
        for number, weights_TS in enumerate(weights_of(model, item, registers)):
            paid_S = weights_TS[list(item.asked)].mean(dim=0)
            for where, spans in (("evidence", item.evidence), ("distractors", item.distractors), ("first", [(0, 1)])):
                expected = sum(float(paid_S[start:end].sum()) for start, end in spans)
                if (name, where) == ("mqar", "evidence"):
                    own = [float(weights_TS[at, item.tokens.index(item.tokens[at]) :][:2].sum()) for at in item.asked]
                    expected, each = sum(own) / len(own), [a + b for a, b in zip(each, own, strict=True)]
                assert found[where][number] == pytest.approx(expected, abs=2e-5)
        evidence = {t for start, end in item.evidence for t in range(start, end)}
        even = [(2 if name == "mqar" else sum(t <= at for t in evidence)) / (at + 1) for at in item.asked]
        assert found.get("of_each") == (pytest.approx([x / 2 for x in each], abs=2e-5) if name == "mqar" else None)
        assert found["even"] == pytest.approx(sum(even) / len(even), abs=1e-5) and found["gates"] == {}
        assert ("attended" in found) == (name == "cite")


def test_the_documents_that_are_paid_most_are_named_of_the_tokens_before_a_number() -> None:
    model = sharp(tiny.model(vocab_size=VOCAB_SIZE + 1, max_seq_len=T))
    for hardness in (1, 3):
        items = [open_task("cite").item(Knobs(T, hardness=hardness, distractors=4), i) for i in range(5)]
        for item, found in zip(items, read_inside(model, items), strict=True):
            mean_TS = torch.stack(weights_of(model, item, 0)).mean(dim=0)
            paid_S = mean_TS[list(item.asked[1:])].mean(dim=0)
            spans = (*item.evidence, *item.distractors)
            best = sorted(spans, key=lambda span: -float(paid_S[span[0] : span[1]].sum()))[:hardness]
            assert found["attended"] == [item.tokens[start + 1] for start, _ in best]


def test_gates_are_read_at_the_evidence_and_at_what_is_asked() -> None:
    model = build_model(tiny.model(vocab_size=VOCAB_SIZE + 1, max_seq_len=T, gate="sdpa-headwise+value-elementwise"))
    seen: list[torch.Tensor] = []
    handles = []
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, GatedAttention)):
            layer.gates["sdpa"].g_proj.weight.zero_()
            tap = layer.gates["value"].tap_logits
            handles.append(tap.register_forward_hook(lambda _m, _i, out: seen.append(out.sigmoid())))
    item = open_task("cite").item(Knobs(T), 0)
    (found,) = read_inside(model, [item])
    for handle in handles:
        handle.remove()
    assert found["gates"]["sdpa"] == {key: [0.5, 0.5] for key in ("evidence", "asked", "all")}
    (start, end), at = item.evidence[0], list(item.asked)
    for number, scores_BTHK in enumerate(seen):
        of_T = scores_BTHK[0].flatten(1).mean(dim=1)
        expected = (of_T[start:end].mean(), of_T[at].mean(), of_T.mean())
        own = [found["gates"]["value"][where][number] for where in ("evidence", "asked", "all")]
        assert own == pytest.approx([float(x) for x in expected], abs=2e-5)


def test_every_item_that_was_asked_has_its_own_and_how_many_go_through_does_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    r = run(names=("cite", "absent"))
    model = sharp(r.model)
    _, items = asked(model, r, fingerprint="f", step=0, is_whole=True)
    found = with_inside(model, r, items)
    assert len(found) == 2 * 3 * 12
    without = [x for x in found if "inside" not in x.factors]
    assert without and all(x.task == "absent" and x.factors["evidence"] == [] for x in without)
    assert all(len(x.factors["inside"]["evidence"]) == 2 for x in found if x not in without)
    reads = {
        (x.factors["length"], x.factors.get("intervention")): x.factors["inside"]["evidence"]
        for x in found
        if x.task == "cite" and x.item == 3
    }
    assert len(reads) == 3 and reads[2 * T, None] != reads[2 * T, "yarn"]
    item = open_task("cite").item(Knobs(T, found[3].factors["knobs"]["asked_depth"]), 3)
    (alone,) = read_inside(model, [item])
    assert reads[T, None] == pytest.approx(alone["evidence"], abs=2e-5)
    monkeypatch.setattr(inside, "_TOKENS", T)
    monkeypatch.setattr(inside, "_ROWS", 1)
    for one, other in zip(found, with_inside(model, r, items), strict=True):
        if "inside" in one.factors:
            assert one.factors["inside"]["evidence"] == pytest.approx(other.factors["inside"]["evidence"], abs=2e-5)


def test_attention_that_forgets_is_read_from_all_rows() -> None:
    config = tiny.model(vocab_size=VOCAB_SIZE + 1, max_seq_len=T, gate="scores-headwise-forget")
    item = open_task("mqar").item(Knobs(T, distractors=5), 0)
    (found,) = read_inside(build_model(config), [item])
    total = [a + b for a, b in zip(found["evidence"], found["first"], strict=True)]
    assert all(0 < x <= 1 for x in total)


def test_what_is_no_decoder_is_left_as_it_came() -> None:
    r = run("encoder").model_copy(update={"ask": AskConfig(items=4, times=(1,))})
    model = build_model(r.model)
    _, items = asked(model, r, fingerprint="f", step=0, is_whole=True)
    assert with_inside(model, r, items) == items
