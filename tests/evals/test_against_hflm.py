"""Scores equal those of the harness's own model for transformers, HFLM, on the same weights."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

from asked import both
from benchmark_files import write_files
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate as asked_by_harness
from lm_eval.models.huggingface import HFLM

from gatelab.evals.harness.language_model import GatelabLM, Remark
from gatelab.evals.harness.passes import Passes
from gatelab.evals.harness.tasks import Asking, find, load
from gatelab.evals.harness.tokens import Tokens
from gatelab.models.external import External

SIDES = ("transformers", "ours")
SENTENCE = "a gate may close and a sink may stay where the first token stands, or elsewhere. "
CONTEXTS = ["a gate may close and", "", "a gate  ", "stands, or elsewhere.\n", SENTENCE * 2, SENTENCE * 6]
CONTINUATIONS = [" a sink", "sink may stay", " the", " elsewhere. a gate may close and", "\n"]


@pytest.fixture(scope="module", params=[True, False], ids=["with BOS", "without BOS"])
def sides(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[External, dict[str, Passes]]]:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    yield both(tmp_path_factory.mktemp("hflm"), begins=request.param, max_position_embeddings=96)


def theirs(found: External, batch_size: int = 3) -> HFLM:
    return HFLM(pretrained=found.model, tokenizer=found.tokenizer, batch_size=batch_size)


def ours(found: External, passes: Passes, batch_size: int = 3) -> GatelabLM:
    return GatelabLM(passes, Tokens(found.tokenizer, passes.n_ids), batch_size=batch_size)


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, given, 0, ("task", number, 1)) for number, given in enumerate(arguments)]


@pytest.mark.parametrize("side", SIDES)
def test_log_likelihoods(side: str, sides: tuple[External, dict[str, Passes]]) -> None:
    found, passes = sides
    asked = requests("loglikelihood", [(c, e) for c in CONTEXTS for e in CONTINUATIONS])
    expected = theirs(found).loglikelihood(asked, disable_tqdm=True)
    lm = ours(found, passes[side])
    for (log_p, is_greedy), (log_p_theirs, is_greedy_theirs) in zip(lm.loglikelihood(asked), expected, strict=True):
        assert math.isclose(log_p, log_p_theirs, abs_tol=1e-4) and is_greedy == is_greedy_theirs
    # The last context is longer than 96 positions, and that is remarked of each of its requests and of no other.
    cut = {number for (_, number), remark in lm.remarks.items() if remark.n_cut}
    assert cut == set(range(len(asked) - len(CONTINUATIONS), len(asked)))


@pytest.mark.parametrize("side", SIDES)
def test_rolling_log_likelihoods(side: str, sides: tuple[External, dict[str, Passes]]) -> None:
    found, passes = sides
    asked = requests("loglikelihood_rolling", [("a gate",), (SENTENCE,), (SENTENCE * 9,)])
    expected = theirs(found).loglikelihood_rolling(asked, disable_tqdm=True)
    assert ours(found, passes[side]).loglikelihood_rolling(asked) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("until", [["\n"], ["st", " g"], []])
def test_what_is_written(side: str, until: list[str], sides: tuple[External, dict[str, Passes]]) -> None:
    found, passes = sides
    given = {"until": until, "max_gen_toks": 20, "do_sample": False}
    asked = requests("generate_until", [(context or "sink", dict(given)) for context in CONTEXTS])
    expected = theirs(found, 2).generate_until(asked, disable_tqdm=True)
    assert ours(found, passes[side], 2).generate_until(asked) == expected
    assert any(expected) and len(set(expected)) > 2


@pytest.mark.parametrize("side", SIDES)
def test_every_benchmark_in_a_folder(side: str, sides: tuple[External, dict[str, Passes]], tmp_path: Path) -> None:
    found, passes = sides
    asking = Asking(("hellaswag", "arc_easy", "piqa", "lambada_openai", "mmlu_anatomy", "blimp_adjunct_island", "gsm8k"),
                    write_files(tmp_path / "files"))  # fmt: skip
    results = []
    for lm in (theirs(found), ours(found, passes[side])):
        draft = tmp_path / type(lm).__name__
        draft.mkdir()
        loaded = load(asking, find(asking, print, draft=draft, tokenizer=tmp_path))
        for task in loaded.tasks.values():
            if task.OUTPUT_TYPE == "generate_until":
                task.set_config("generation_kwargs", {"until": ["\n"], "max_gen_toks": 8, "do_sample": False})
        given = {"tasks": loaded.tasks, "groups": loaded.groups}
        results.append(asked_by_harness(lm, given, bootstrap_iters=0)["results"])
    a, b = results
    assert a.keys() == b.keys() and len(a) == 7
    for task in a:
        numbers = {k: v for k, v in a[task].items() if isinstance(v, int | float)}
        assert {k: b[task][k] for k in numbers} == pytest.approx(numbers, rel=1e-4)


def test_scores_do_not_depend_on_the_batch(sides: tuple[External, dict[str, Passes]]) -> None:
    found, passes = sides
    asked = requests("loglikelihood", [(c, e) for c in CONTEXTS for e in CONTINUATIONS])
    one, many = (ours(found, passes["ours"], n).loglikelihood(asked) for n in (1, 64))
    assert [p for p, _ in one] == pytest.approx([p for p, _ in many], abs=1e-4)


def test_what_is_cut_is_counted_and_whether_the_beginning_went_with_it(
    sides: tuple[External, dict[str, Passes]],
) -> None:
    found, passes = sides
    lm = ours(found, passes["ours"])
    context, continuation = SENTENCE * 6, " a sink"
    lm.loglikelihood(requests("loglikelihood", [(context, continuation)]))
    n_tokens = len(found.tokenizer(context + continuation).input_ids)
    begins = bool(lm.tokens.begins)
    assert lm.remarks == {("task", 0): Remark(n_cut=n_tokens - 97, lost_beginning=begins)}
    assert n_tokens > 97


def test_an_answer_without_a_score_is_not_a_number_and_remarked(sides: tuple[External, dict[str, Passes]]) -> None:
    found, passes = sides
    lm = ours(found, passes["ours"])
    (nothing, too_long, scored) = lm.loglikelihood(
        requests("loglikelihood", [("a gate", ""), ("a gate", SENTENCE * 6), ("a gate", " a")])
    )
    assert math.isnan(nothing[0]) and math.isnan(too_long[0]) and not (nothing[1] or too_long[1])
    assert math.isfinite(scored[0])
    assert {number for (_, number), r in lm.remarks.items() if r.has_no_score} == {0, 1}


def test_an_answer_that_is_split_otherwise_in_context_is_remarked(sides: tuple[External, dict[str, Passes]]) -> None:
    found, passes = sides
    lm = ours(found, passes["ours"])
    # "to" and "ken" are one token together, in the words that the tokenizer was trained on.
    assert len(found.tokenizer(" token", add_special_tokens=False).input_ids) == 1
    lm.loglikelihood(requests("loglikelihood", [("the first to", "ken stands"), ("the first", " token stands")]))
    assert {number for (_, number), r in lm.remarks.items() if r.splits_otherwise} == {0}


def test_settings_of_generation_that_are_not_known_are_refused(sides: tuple[External, dict[str, Passes]]) -> None:
    found, passes = sides
    lm = ours(found, passes["ours"])
    with pytest.raises(ValueError, match=r"task: .*temperatur='?1.*did you mean 'temperature'"):
        lm.generate_until(requests("generate_until", [("a", {"until": [], "temperatur": 1, "max_gen_toks": 4})]))
    with pytest.raises(ValueError, match=r"asks for 96 new tokens.*positions for 96.*--new-tokens"):
        lm.generate_until(requests("generate_until", [("a", {"until": [], "max_gen_toks": 96})]))
    lm.new_tokens = 4
    (text,) = lm.generate_until(requests("generate_until", [("a", {"until": [], "max_gen_toks": 96})]))
    assert len(found.tokenizer(text, add_special_tokens=False).input_ids) <= 4


@pytest.mark.parametrize("side", SIDES)
def test_nothing_is_written_from_logits_that_are_not_finite(
    side: str, sides: tuple[External, dict[str, Passes]]
) -> None:
    found, passes = sides
    model = passes[side].model
    head = model.head if side == "ours" else model.lm_head
    handle = head.register_forward_hook(lambda module, given, out: out * float("nan"))
    try:
        lm = ours(found, passes[side])
        given = {"until": [], "max_gen_toks": 4, "do_sample": False}
        assert lm.generate_until(requests("generate_until", [("a gate", given)])) == [""]
        assert lm.remarks["task", 0].is_not_finite
    finally:
        handle.remove()


# A system's turn is refused, as some models do.
CHAT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% if not loop.last %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}\n<assistant>{% endif %}"
)
SYSTEM = CHAT.replace("{{ raise_exception('no system') }}", "!")


@pytest.mark.parametrize("template", [CHAT, SYSTEM, "{{ bos_token }}" + CHAT], ids=["no system", "system", "begins"])
@pytest.mark.parametrize("shots", [0, 2])
def test_a_conversation_is_written_and_scored_as_by_hflm(
    template: str, shots: int, sides: tuple[External, dict[str, Passes]], tmp_path: Path
) -> None:
    found, passes = sides
    # mmlu has a description, which is the system's turn; gsm8k is written.
    asking = Asking(("mmlu_anatomy", "gsm8k"), write_files(tmp_path / "files"), shots=shots)
    (tmp_path / "draft").mkdir()
    tasks = load(asking, find(asking, print, draft=tmp_path / "draft", tokenizer=tmp_path)).tasks
    tasks["gsm8k"].set_config("generation_kwargs", {"until": ["\n"], "max_gen_toks": 8, "do_sample": False})
    before, asked = found.tokenizer.chat_template, []
    found.tokenizer.chat_template = template
    try:
        lms = theirs(found), ours(found, passes["ours"])
        for lm in lms:
            made = {}
            for name, task in tasks.items():
                task.set_fewshot_seed(1)
                task.build_all_requests(
                    limit=2, apply_chat_template=True, fewshot_as_multiturn=True, chat_template=lm.apply_chat_template
                )
                made[name] = list(task.instances)
            asked.append(made)
        prompts = [{name: [i.args for i in made[name]] for name in made} for made in asked]
        assert prompts[0] == prompts[1]
        first = prompts[1]["mmlu_anatomy"][0][0]
        assert first.count("<user>") == shots + 1 and first.count("</assistant>") == shots and "<assistant>" in first
        assert ("<system>" in first) == (template == SYSTEM)
        a, b = (lm.loglikelihood(asked[0]["mmlu_anatomy"]) for lm in lms)
        assert [p for p, _ in a] == pytest.approx([p for p, _ in b], abs=1e-3)
        assert lms[0].generate_until(asked[0]["gsm8k"]) == lms[1].generate_until(asked[0]["gsm8k"])
    finally:
        found.tokenizer.chat_template = before
