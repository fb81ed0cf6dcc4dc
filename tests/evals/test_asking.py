"""What a run on tasks is asked: an oracle of each architecture is right in all, whatever the length and depth; what cannot be
asked is left out and said."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor, nn

from gatelab.config import AskConfig, ConfigError, Continuation, Run, Tasks, TrainConfig, fingerprint, override
from gatelab.config.rope import YaRN
from gatelab.evals import asking
from gatelab.evals.asking import asked, left_out, questions
from gatelab.evals.own_asking import OwnAsking
from gatelab.evals.own_ids import _knobs
from gatelab.evals.reach import reaching, stretched
from gatelab.evals.tasks import ask, ask_items, at_lengths, reader_of
from gatelab.models import build_model
from gatelab.models.encoder_decoder import EncoderDecoder
from gatelab.nn.rope import Rope
from gatelab.tasks import VOCAB_SIZE, Knobs, TaskItem, open_task

T, D = 64, 48


def run(
    arch: str = "decoder", *, ask: dict | None = None, names: tuple[str, ...] = ("needle",), **changes: object
) -> Run:
    """Unresolved no more: a tiny model of 4,096 ids, trained at 64 tokens."""
    model = changes.pop("model", {})
    base = Run(
        model=tiny.model(arch=arch, vocab_size=VOCAB_SIZE + (arch == "encoder"), max_seq_len=T, **model),
        data=Tasks(names=names, distractors=None if names != ("needle",) else 2),
        objective={"encoder": "answers", "encoder-decoder": "continuation"}.get(arch),
        train=TrainConfig(tokens=4 * T, batch_size=1, seq_len=T),
        ask=AskConfig(**({"items": 22, "times": (1, 2)} | (ask or {}))),
    )
    return base.model_copy(update=changes)


class Knowing(EncoderDecoder):
    """An encoder-decoder that knows the answers by heart: what comes after every beginning of the items, and nothing else."""

    def learn(self, items: Iterable[TaskItem]) -> "Knowing":
        self.known = {
            item.tokens[: at + 1]: answer for item in items for at, answer in zip(item.asked, item.answer, strict=True)
        }
        self.read: set[int] = set()
        self.head.weight = nn.Parameter(torch.nn.functional.normalize(torch.randn(VOCAB_SIZE, D), dim=1))
        return self

    def hidden(self, tokens_BS: Tensor, decoder_tokens_BT: Tensor) -> Tensor:
        assert torch.equal(tokens_BS[:, -1], decoder_tokens_BT[:, 0]), "the decoder goes on where the encoder ends"
        self.read.add(tokens_BS.shape[1])
        whole = torch.cat([tokens_BS, decoder_tokens_BT[:, 1:]], dim=1).tolist()
        first, out_BTD = tokens_BS.shape[1], torch.zeros(*decoder_tokens_BT.shape, D)
        for b, tokens in enumerate(whole):
            for t in range(decoder_tokens_BT.shape[1]):
                if (answer := self.known.get(tuple(tokens[: first + t]))) is not None:
                    out_BTD[b, t] = 50 * self.head.weight[answer].detach()
        return out_BTD


@pytest.mark.parametrize("name", ["needle", "cite", "mqar", "multiquery", "multivalue"])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_an_encoder_decoder_that_knows_is_right_in_all(name: str, share: float) -> None:
    torch.manual_seed(0)
    config = tiny.model(arch="encoder-decoder", vocab_size=VOCAB_SIZE, max_seq_len=128, d_model=D, n_layers=1)
    task, knobs = open_task(name), Knobs(length=128)
    model = Knowing(config).learn(items := [task.item(knobs, i) for i in range(4)])
    reader = reader_of(model, Continuation(share=share))
    answers = ask(reader, task, knobs, 4)
    assert all(a.verdict.is_right and a.given == a.item.answer and a.margin > 0 for a in answers)
    n_read = int(128 * share)
    early = {at + 1 for item in items for at in item.asked if at < n_read - 1}
    assert model.read == {n_read} | early, "what is asked early is asked of an encoder that reads up to it"
    forgetful = Knowing(config).learn(items[1:])
    wrong = ask(reader_of(forgetful, Continuation(share=share)), task, knobs, 4)
    assert [a.verdict.is_right for a in wrong] == [False, True, True, True]


def test_an_encoder_decoder_is_asked_as_it_is_trained() -> None:
    config = tiny.model(arch="encoder-decoder", vocab_size=VOCAB_SIZE, max_seq_len=T)
    model, task = build_model(config), open_task("needle")
    items = [task.item(Knobs(length=T, distractors=2), i) for i in range(3)]
    answers = ask_items(reader_of(model, Continuation(share=0.5)), items)
    for answer, item in zip(answers, items, strict=True):
        tokens = torch.tensor([item.tokens])
        with torch.no_grad():
            logits_TV = model(tokens[:, : T // 2], tokens[:, T // 2 - 1 :])[0]
        assert answer.given == (int(logits_TV[item.asked[0] - T // 2 + 1].argmax()),)


def test_items_are_spread_over_eleven_depths_and_told_by_them() -> None:
    r = run(names=("needle", "bracket"))
    model = build_model(r.model)
    rows, items = asked(model, r, fingerprint="f", step=3, is_whole=True)
    needles = [i for i in items if i.task == "needle" and i.factors["length"] == T]
    assert [i.factors["knobs"]["asked_depth"] for i in needles[:12]] == [*(d / 10 for d in range(11)), 0.0]
    assert [i.factors["depth"] for i in needles[:11]] == pytest.approx([d / 10 for d in range(11)], abs=0.07)
    by_depth = [r for r in rows if r.bin is not None]
    assert {r.task for r in by_depth} == {"needle"} and {r.metric for r in by_depth} == {"exact_match", "answer_margin"}
    assert {(r.length, r.bin, r.depth) for r in by_depth} == {(n, b, b / 10) for n in (T, 2 * T) for b in range(11)}
    of_all = {(r.task, r.length): r for r in rows if r.metric == "answer_margin" and r.bin is None}
    assert set(of_all) == {(t, n) for t in ("needle", "bracket") for n in (T, 2 * T)}
    margins = [i.score for i in needles]
    assert of_all["needle", T].value == pytest.approx(sum(margins) / 22)
    (third,) = (r for r in by_depth if (r.length, r.bin, r.metric) == (T, 3, "answer_margin"))
    assert third.value == pytest.approx((margins[3] + margins[14]) / 2)


def test_an_item_can_be_made_again_from_its_record() -> None:
    r = run()
    _, items = asked(build_model(r.model), r, fingerprint="f", step=3, is_whole=True)
    for record in items[::7]:
        f = record.factors
        knobs = Knobs(f["length"], f["knobs"]["asked_depth"], f["knobs"]["distractors"], f["knobs"]["hardness"])
        item = open_task(record.task).item(knobs, record.item)
        assert record.answer == " ".join(map(str, item.answer)) and "distractors" not in f
        assert f["evidence"] == [list(span) for span in item.evidence]


def test_keys_are_asked_by_number_of_pairs_at_the_length_of_training_when_all_is() -> None:
    r = run(data=Tasks(names=("mqar",), distractors=5))
    model = build_model(r.model)
    rows, items = asked(model, r, fingerprint="f", step=3, is_whole=True)
    by_pairs = [x for x in rows if x.bin is not None]
    assert {(x.length, x.step, x.task) for x in by_pairs} == {(T, 3, "mqar")}
    room = [n for n in (4, 8, 16, 32, 64) if 1 + 3 * n <= T]
    assert sorted({x.bin for x in by_pairs}) == room and len(by_pairs) == 3 * len(room)
    floors = [next(x.value for x in by_pairs if (x.metric, x.bin) == ("query_accuracy_floor", n)) for n in room]
    assert floors == pytest.approx([1 / n for n in room], rel=0.1)
    of_all = {(x.metric, x.length) for x in rows if x.bin is None}
    assert {("query_accuracy", T), ("query_accuracy", 2 * T), ("query_accuracy_chance", T)} <= of_all
    assert {len(i.answer.split()) for i in items} == {6}, "items are those of the run's own number"
    rows, _ = asked(model, r, fingerprint="f", step=1, is_whole=False)
    assert not [x for x in rows if x.bin is not None]


def test_a_task_of_a_mixture_is_asked_items_of_its_own_knobs() -> None:
    own = {"cite": {"distractors": 1, "depth": 0.5}, "mqar": {"distractors": 5}}
    r = run(data=Tasks(names=("cite", "mqar", "track"), hardness=1, knobs=own), ask={"items": 11, "times": (1,)})
    found = {name: questions(r, name, T)[:11] for name in r.data.names}
    assert {len(item.distractors) for item in found["cite"]} == {1} and {item.depth for item in found["cite"]} == {0.5}
    assert {len(item.answer) for item in found["mqar"]} == {6}
    assert {len(item.distractors) for item in found["track"]} == {3 * 2} and len({i.depth for i in found["track"]}) > 3
    _, items = asked(build_model(r.model), r, fingerprint="f", step=1, is_whole=False)
    for record in items:
        f = record.factors
        knobs = Knobs(f["length"], f["knobs"]["asked_depth"], f["knobs"]["distractors"], f["knobs"]["hardness"])
        assert record.answer == " ".join(map(str, open_task(record.task).item(knobs, record.item).answer))
    trained = [_knobs(r, open_task(name), OwnAsking(()), T, None) for name in ("cite", "mqar", "track", "needle")]
    assert [(k.depth, k.distractors, k.hardness) for k in trained] == [
        (0.5, 1, 1), (None, 5, 1), (None, None, 1), (None, None, None)
    ]  # fmt: skip
    stated = _knobs(r, open_task("cite"), OwnAsking((), distractors=2), T, 0.0)
    assert (stated.depth, stated.distractors, stated.hardness) == (0.0, 2, 1)


def test_between_looks_the_length_of_training_alone_is_asked() -> None:
    r = run(ask={"stretch": ("none", "yarn"), "times": (1, 2, 4)})
    model = build_model(r.model)
    some, _ = asked(model, r, fingerprint="f", step=1, is_whole=False)
    assert {(x.length, x.intervention) for x in some} == {(T, None)}
    whole, _ = asked(model, r, fingerprint="f", step=1, is_whole=True)
    assert {(x.length, x.intervention, x.dose) for x in whole} == {
        (T, None, None), (2 * T, None, None), (2 * T, "yarn", 2.0), (4 * T, None, None), (4 * T, "yarn", 4.0)
    }  # fmt: skip


@pytest.mark.parametrize("arch", ["decoder", "encoder", "encoder-decoder"])
@pytest.mark.parametrize("positions", ["rope", "relative", "none", "learned"])
def test_every_architecture_is_asked_as_far_as_its_positions_reach(arch: str, positions: str) -> None:
    r = run(arch, model={"positions": positions}, ask={"items": 2})
    model = build_model(r.model)
    rows, items = asked(model, r, fingerprint="f", step=0, is_whole=True)
    # The decoder of an encoder-decoder reads half of 128 tokens, and the token before it.
    reach = {T} if positions == "learned" else {T, 2 * T}
    assert {x.length for x in rows} == reach and len(items) == 2 * len(reach)
    said = left_out(model, r)
    assert said == (
        [] if len(reach) == 2 else ["not asked at 128 tokens: learned positions for 64 tokens (model.max_seq_len)"]
    )


def test_an_objective_that_does_not_say_answers_where_they_are_asked_is_left_out() -> None:
    r = Run.model_validate(
        {
            "model": tiny.model(arch="encoder", vocab_size=VOCAB_SIZE + 1, max_seq_len=T), "objective": "masked",
            "data": {"kind": "tasks", "targets": "all"}, "train": {"tokens": T, "batch_size": 1, "seq_len": T},
        }
    )  # fmt: skip
    model = build_model(r.model)
    assert asked(model, r, fingerprint="f", step=0, is_whole=True) == ([], [])
    (said,) = left_out(model, r)
    assert said.startswith("not asked at 64, 128, 256, 512 tokens: the objective 'masked' does not say answers")


@pytest.mark.parametrize(("n_items", "n_made"), [(1, 1), (2, 2), (4, 4), (5, 10)])
def test_items_are_made_once_but_for_those_that_are_too_many_to_keep(
    n_items: int, n_made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, task = [], open_task("associate")
    counted = replace(task, define=lambda knobs, index: made.append(index) or task.define(knobs, index))
    monkeypatch.setattr(asking, "open_task", lambda name: counted)
    monkeypatch.setattr(asking, "_KEPT", T)
    knobs = Knobs(T, depth=0.5, seed=n_items)
    looks = [asking._questions("associate", knobs, n_items, "next-token") for _ in range(2)]
    assert looks[0] == looks[1] and len(made) == n_made


def test_a_task_without_room_at_a_length_is_left_out_there_and_said() -> None:
    """Everything of `multikey` is pairs, and of 8,192 tokens there would be more of them than ids."""
    r = run(names=("multikey", "needle"), ask={"items": 1, "times": (1, 128)})
    model = build_model(r.model)
    rows, items = asked(model, r, fingerprint="f", step=0, is_whole=True)
    assert [(x.task, x.factors["length"]) for x in items] == [("multikey", T), ("needle", T), ("needle", 128 * T)]
    assert {(x.task, x.length) for x in rows} == {("multikey", T), ("needle", T), ("needle", 128 * T)}
    (said,) = left_out(model, r)
    assert said.startswith("not asked at 8,192 tokens: multikey: an item of this length asks for 4094 different tokens")


@pytest.mark.parametrize("registers", [0, 2])
def test_the_same_weights_reach_further_and_yarn_turns_them_as_it_should(registers: int) -> None:
    model = build_model(tiny.model(max_seq_len=16, registers=registers))
    longer = reaching(model, 40)
    assert {id(p) for p in longer.parameters()} == {id(p) for p in model.parameters()}
    tokens_BT = torch.randint(0, 17, (2, 40), generator=torch.Generator().manual_seed(0))
    built = build_model(tiny.model(max_seq_len=40, registers=registers))
    with torch.no_grad():
        assert torch.equal(longer(tokens_BT), built(tokens_BT))
        assert torch.equal(longer(tokens_BT[:, :16]), model(tokens_BT[:, :16]))
    stretched = reaching(model, 40, trained=16)
    scaling = YaRN(factor=2.5, original_seq_len=16)
    built = build_model(tiny.model(max_seq_len=40, registers=registers, rope_scaling=scaling))
    with torch.no_grad():
        assert torch.equal(stretched(tokens_BT), built(tokens_BT))
    assert stretched.config.rope_scaling == scaling and model.config.max_seq_len == 16
    assert {m.max_seq_len for m in model.modules() if isinstance(m, Rope)} == {16 + registers}, (
        "the one given stays as it is"
    )
    with torch.no_grad():
        model.head.weight.mul_(2)
    assert torch.equal(stretched.head.weight, model.head.weight), "what is trained on is asked"


def test_positions_are_stretched_by_a_factor_from_those_that_were_trained() -> None:
    model = build_model(tiny.model(max_seq_len=16))
    for given, reach, scaling in (
        ({}, 40, YaRN(factor=2.5, original_seq_len=16)),
        ({"trained": 4}, 16, YaRN(factor=2.5, original_seq_len=4)),
    ):
        longer, note = stretched(model, 2.5, "tiny", **given)
        built = build_model(tiny.model(max_seq_len=reach, rope_scaling=scaling))
        tokens_BT = torch.randint(0, 17, (2, reach), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(longer(tokens_BT), built(tokens_BT))
        assert (
            note
            == f"its positions were extended from {given.get('trained', 16)} to {40 if not given else 10} tokens (yarn)"
        )
    learned = build_model(tiny.model(positions="learned", max_seq_len=16))
    with pytest.raises(
        ValueError, match=r"--yarn 4: stretches plain rotary .*, and tiny has positions=learned; leave it out"
    ):
        stretched(learned, 4, "tiny")
    with pytest.raises(ValueError, match=r"tiny has rotary positions scaled already \(yarn\)"):
        stretched(longer, 4, "tiny")


def test_what_cannot_reach_is_refused() -> None:
    learned = build_model(tiny.model(positions="learned", max_seq_len=16))
    with pytest.raises(
        ValueError, match="length=17: this model has learned positions for 16 tokens; ask at most so many"
    ):
        reaching(learned, 17)
    with pytest.raises(ValueError, match="YaRN stretches plain rotary positions, and this model has positions=learned"):
        reaching(learned, 16, trained=8)


def test_rotary_models_are_asked_beyond_their_tables() -> None:
    model = build_model(tiny.model(vocab_size=VOCAB_SIZE, max_seq_len=24))
    rows, _ = at_lengths(model, "bracket", Knobs(length=24), 2, run="r", step=1)
    assert [r.length for r in rows if r.metric == "exact_match"] == [24, 48, 96, 192]


def test_half_precision_does_not_tie_what_is_likely() -> None:
    model = build_model(tiny.model(vocab_size=VOCAB_SIZE, max_seq_len=T))
    model.compute_dtype = torch.bfloat16
    answers = ask(reader_of(model), open_task("needle"), Knobs(length=T, distractors=2), 22)
    assert not any(a.verdict.is_tied for a in answers)


def test_when_a_run_is_asked() -> None:
    r = run(train=TrainConfig(tokens=10 * T, batch_size=1, seq_len=T))
    assert r.ask_steps() == [0, 10]
    assert override(r, {"ask.every": 4}).ask_steps() == [0, 4, 8, 10]
    assert override(r, {"ask.items": 0}).ask_steps() == []
    assert tiny.run().ask_steps() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ask.times": "2,4"}, "ask.times: 2,4: multiples of the length of training rise from 1, as in 1,2,4,8"),
        ({"ask.times": (1, 4, 2)}, "1,4,2: multiples"),
        ({"ask.times": 1.5}, r"ask.times.*1.5.*(whole number|valid integer)"),
        ({"ask.stretch": "yarn"}, "ask.stretch: yarn: none comes first"),
        ({"ask.stretch": "none,yarn", "model.positions": "learned"}, "this model has model.positions=learned; take"),
        ({"ask.stretch": ("none", "yarn"), "model.rope_scaling": YaRN(factor=2, original_seq_len=T)},
         "this model has model.rope_scaling=yarn"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_in_a_sentence(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(run(), change)


def test_asking_names_a_run_where_it_changes_its_rows_and_only_there() -> None:
    r = run()
    assert fingerprint(r, "") != fingerprint(override(r, {"ask.items": 23}), "")
    assert fingerprint(override(r, {"ask": AskConfig()}), "") == fingerprint(
        override(r, {"ask.times": "1,2,4,8", "ask.items": 110}), ""
    )
    stream = tiny.run()
    assert fingerprint(stream, "") == fingerprint(override(stream, {"ask.items": 5}), "")
