"""RULER's tasks: who reads the evidence alone is right, spans are where they are said to be, lengths hold, places are drawn."""

import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from prompt_cases import ESSAY, ROWS, TASKS_OF_PROMPTS, from_evidence, setting
from scipy.special import zeta

from gatelab.tasks import TaskError
from gatelab.tasks.prompt import Prompt, Setting, fitted_prompt
from gatelab.tasks.ruler import RULER
from gatelab.tasks.ruler.match import found, found_any
from gatelab.tasks.ruler.needles import FILLER
from gatelab.tasks.ruler.words import N_WORDS, pair

NEEDLES = [name for name in RULER if "niah" in name]
BUDGETS = dict.fromkeys(NEEDLES, 128) | {
    "ruler/vt": 30, "ruler/cwe": 120, "ruler/fwe": 50, "ruler/qa_1": 32, "ruler/qa_2": 32
}  # fmt: skip
WITH_DEPTH = [name for name, task in TASKS_OF_PROMPTS.items() if task.has_depth]


def in_fours(text: str) -> int:
    return -(-len(text) // 4)


def item(name: str, index: int = 0, length: int = 4096, **changes: object) -> Prompt:
    return fitted_prompt(TASKS_OF_PROMPTS[name], setting(name, length, **changes), index, in_fours)


def test_there_are_thirteen_with_the_answer_budgets_of_the_paper():
    assert {name: item(name).n_new for name in RULER} == BUDGETS and len(RULER) == 13


# What is asked without any text has no evidence.
READ = [name for name in TASKS_OF_PROMPTS if name != "middle/qa_closed_book"]


@pytest.mark.parametrize("layout", ["spread", "original"])
@pytest.mark.parametrize("name", READ)
def test_who_reads_the_evidence_alone_is_right(name: str, layout: str):
    task = TASKS_OF_PROMPTS[name]
    for index in range(4):
        prompt = item(name, index, layout=layout)
        assert task.judge(prompt, (from_evidence(prompt),)) == 1
        assert task.judge(prompt, prompt.answers) == 1
        assert task.judge(prompt, ("I do not know.",)) == 0
        assert not prompt.read().endswith((" ", "\n")) and prompt.answers[0][0] == " "


@pytest.mark.parametrize("name", READ)
def test_evidence_and_distractors_stand_apart_in_the_text(name: str):
    prompt = item(name, 1)
    spans = sorted([*prompt.evidence, *prompt.distractors])
    assert spans and all(0 <= a < b <= len(prompt.read()) for a, b in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    others = [prompt.whole[a:b] for a, b in prompt.distractors]
    told = {o for o in others if any(r in o for r in prompt.references)}
    # Other paragraphs of ours may name the answer's village, as HotpotQA's do.
    assert not told or name == "ruler/qa_2"


@pytest.mark.parametrize("length", [1500, 4096, 9000])
@pytest.mark.parametrize("name", TASKS_OF_PROMPTS)
def test_prompt_and_budget_are_as_long_as_asked_and_never_longer(name: str, length: int):
    for index in range(2):
        prompt = item(name, index, length)
        n = in_fours(prompt.read()) + prompt.n_new
        assert n <= length
        # One unit more of haystack has no room, unless there is none.
        task, given = TASKS_OF_PROMPTS[name], setting(name, length)
        size = next(iter(prompt.factors.values()))
        size = size - 10 if name == "ruler/cwe" else size
        if name != "ruler/fwe" and size < task.sizes(given, index)[1]:
            assert in_fours(task.make(given, index, size + 1).read()) + prompt.n_new > length
        assert name != "ruler/fwe" or n > length - 30


@pytest.mark.parametrize("name", TASKS_OF_PROMPTS)
def test_an_item_says_the_same_at_any_length(name: str):
    """The words of fwe are drawn for a length, as the benchmark has it."""
    if name != "ruler/fwe":
        short, long = item(name, 2, 2500), item(name, 2, 4000)
        assert short.references == long.references and short.options[:1] == long.options[:1]
        assert item(name, 2, 2500) == short and item(name, 3, 2500).whole != short.whole


@pytest.mark.parametrize("name", WITH_DEPTH)
def test_evidence_stands_at_the_depth_that_is_asked(name: str):
    for depth in (0.0, 0.5, 1.0):
        prompt = item(name, 1, depth=depth)
        assert prompt.depth == pytest.approx(depth, abs=0.1 if depth == 0.5 else 1e-9)
        before = sum(a for a, _ in prompt.evidence) / len(prompt.evidence) / len(prompt.read())
        assert before == pytest.approx(depth, abs=0.2)


@pytest.mark.parametrize("name", WITH_DEPTH)
def test_without_a_depth_evidence_stands_anywhere(name: str):
    depths = [item(name, i, 3000).depth for i in range(12)]
    assert max(depths) - min(depths) > 0.3 and len(set(depths)) > 4


def test_needles_are_of_the_kinds_and_numbers_of_the_paper():
    kinds = {"number": r"[1-9]\d{6}", "uuid": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "word": r"[a-z]+-[a-z]+"}
    expected = {
        "niah_single_1": ("word", "number", 1), "niah_single_2": ("word", "number", 1), "niah_single_3": ("word", "uuid", 1),
        "niah_multikey_1": ("word", "number", 4), "niah_multikey_2": ("word", "number", None),
        "niah_multikey_3": ("uuid", "uuid", None), "niah_multivalue": ("word", "number", 4),
        "niah_multiquery": ("word", "number", 4),
    }  # fmt: skip
    for name, (key, value, n) in expected.items():
        prompt = item(f"ruler/{name}")
        form = rf"One of the special magic (?:number|uuid)s for (?:{kinds[key]}) is: (?:{kinds[value]})\."
        needles = [prompt.whole[a:b] for a, b in (*prompt.evidence, *prompt.distractors)]
        assert all(re.fullmatch(form, needle) for needle in needles)
        assert len(needles) == (n or prompt.factors["n_haystack"] + 1)
        assert len(prompt.references) == (4 if name in ("niah_multivalue", "niah_multiquery") else 1)


@pytest.mark.parametrize(
    ("name", "chance"),
    [
        ("niah_single_1", 1 / 9e6),
        ("niah_multivalue", 4 / 9e6),
        ("niah_multikey_3", 2.0**-122),
        ("vt", 5 / 26**5),
        ("fwe", 3 / 26**6),
    ],
)
def test_as_many_answers_as_are_asked_drawn_at_random_score_chance(name: str, chance: float):
    """Each of the references is among them that often, to first order; the score is the mean over references."""
    assert item(f"ruler/{name}").chance == pytest.approx(chance, rel=1e-9)


def test_haystacks_are_filler_essays_and_needles():
    assert item("ruler/niah_single_1").read().count(FILLER) == item("ruler/niah_single_1").factors["n_haystack"]
    essay = item("ruler/niah_single_2")
    assert sum(sentence in essay.read() for sentence in ESSAY) == essay.factors["n_haystack"] > 100
    # An essay of one layout begins where it begins, of the other anywhere.
    starts = {
        re.search(r"In the year (\d+)", item("ruler/niah_single_2", i, layout="original").read())[1] for i in range(6)
    }
    assert starts == {"1000"}
    assert len({re.search(r"In the year (\d+)", item("ruler/niah_single_2", i).read())[1] for i in range(6)}) > 3


def test_a_chain_of_variables_leads_from_the_value_to_the_last_name():
    prompt = item("ruler/vt", 3)
    said = [prompt.whole[a:b] for a, b in prompt.evidence]
    value = re.fullmatch(rf"VAR {prompt.references[0]} = ([1-9]\d{{4}})", said[0])[1]
    for (before, name), statement in zip(
        zip(prompt.references, prompt.references[1:], strict=False), said[1:], strict=True
    ):
        assert statement == f"VAR {name} = VAR {before}"
    assert f"assigned the value {value}, they are:" in prompt.read()[-60:]
    # The worked example has a chain and an answer of its own.
    assert len(re.findall(r"VAR ([A-Z]{3}) = ", prompt.read())) == 5


@pytest.mark.parametrize(("length", "often", "seldom"), [(4096, 30, 3), (2048, 6, 1)])
def test_common_words_come_as_often_as_the_paper_says(length: int, often: int, seldom: int):
    prompt = item("ruler/cwe", 1, length)
    listed = prompt.read().rpartition("Below is a numbered list")[2]
    counts = Counter(re.findall(r"\d+\. ([a-z]+-[a-z]+)", listed))
    assert {counts[w] for w in prompt.references} == {often} and len(prompt.references) == 10
    assert {n for w, n in counts.items() if w not in prompt.references} == {seldom}
    assert len(counts) == prompt.factors["n_words"]


def test_no_word_of_a_list_is_found_within_another():
    words = [pair(n) for n in range(0, N_WORDS, 97)]
    assert len(set(words)) == len(words) and all(re.fullmatch("[a-z]+-[a-z]+", w) for w in words)
    adjectives, nouns = ({w.split("-")[i] for w in map(pair, range(N_WORDS))} for i in (0, 1))
    assert not [a for a in adjectives for b in adjectives if a != b and b.endswith(a)]
    assert not [a for a in nouns for b in nouns if a != b and b.startswith(a)]


def test_frequent_words_follow_the_zeta_law_below_the_dots():
    prompt = item("ruler/fwe", 2)
    text = prompt.read().partition("coded words. ")[2].partition("\nQuestion")[0].split()
    counts = Counter(text).most_common()
    # The first rank's share is 1 / ζ(2); the text's size is the n of the law, less what is rounded away.
    n = next(n for n in range(len(text), 2 * len(text)) if int(n / zeta(2.0)) == counts[0][1])
    assert counts[0][0] == "..." and [w for w, _ in counts[1:4]] == list(prompt.references)
    assert [c for _, c in counts[1:5]] == [int(n / zeta(2.0) / k**2) for k in (2, 3, 4, 5)]
    assert all(re.fullmatch("[a-z]{6}", w) for w, _ in counts[1:])


def test_scores_are_those_of_the_paper():
    prompt = replace(item("ruler/niah_multivalue"), references=("Alpha", "beta", "gamma", "delta"))
    assert found(prompt, ("\x01 ALPHA, xbetax and more\t gam\x00ma",)) == 0.5
    assert found_any(prompt, ("nothing",)) == 0 and found_any(prompt, ("delta",)) == 1
    assert found(prompt, (" ".join(prompt.references),)) == 1


# Of the benchmark's own generator: where its one gold paragraph stands, by the number of documents.
PLACES = {20: 0.95, 40: 0.74, 50: 0.39}


def test_the_original_layout_puts_the_gold_paragraph_at_one_place_for_a_number_of_documents():
    task, given = RULER["ruler/qa_1"], setting("ruler/qa_1", layout="original")
    for n, place in PLACES.items():
        found_at = set()
        for index in range(5):
            texts = re.findall(r"Document \d+:\n(.*)", task.make(given, index, n).read())
            found_at.add(next(i for i, text in enumerate(texts) if f"Keeper{index}x" in text))
        (at,) = found_at
        assert at / (n - 1) == pytest.approx(place, abs=0.006)
    spread = setting("ruler/qa_1")
    assert len({task.make(spread, index, 40).depth for index in range(8)}) > 5


def test_paragraphs_of_the_same_article_come_first_and_all_of_a_question_of_its_own():
    prompt = RULER["ruler/qa_1"].make(setting("ruler/qa_1"), 9, 4)
    assert set(re.findall(r"in town (\d+)", prompt.read())) == {"2"}
    prompt = RULER["ruler/qa_2"].make(setting("ruler/qa_2"), 4, 10)
    assert set(re.findall(r"Page (\d+)", prompt.read())) == {"4"}
    assert [prompt.whole[a:b].partition("\n")[0] for a, b in sorted(prompt.evidence)] in (
        ["Page 4 3", "Page 4 7"], ["Page 4 7", "Page 4 3"]
    )  # fmt: skip


def test_the_original_layout_keeps_the_order_of_needles_and_of_words():
    """The benchmark shuffles with seed 42 each time, so of four keys the third, say, always comes first."""
    order = list(range(4))
    Random(42).shuffle(order)
    task = RULER["ruler/niah_multivalue"]
    for index in range(3):
        prompt = task.make(setting(task.name, layout="original"), index, 60)
        seen = [prompt.whole[a:b].rpartition(": ")[2][:-1] for a, b in prompt.evidence]
        assert seen == [prompt.references[i] for i in order]
    task, given = RULER["ruler/cwe"], setting("ruler/cwe", layout="original")
    places = []
    for index in range(3):
        prompt = task.make(given, index, 50)
        listed = re.findall(r"\d+\. ([a-z]+-[a-z]+)", prompt.read().rpartition("Below is")[2])
        places.append([i for i, w in enumerate(listed) if w in prompt.references])
    assert places[0] == places[1] == places[2]
    spread = [task.make(setting("ruler/cwe"), i, 50).evidence[:3] for i in range(3)]
    assert spread[0] != spread[1]


@pytest.mark.parametrize(
    "name", [n for n, t in TASKS_OF_PROMPTS.items() if n.startswith("ruler/niah_single") or n.endswith("kv")]
)
def test_a_choice_has_eight_options_of_one_shape_and_the_right_one_first(name: str):
    prompt = item(name)
    assert prompt.options[0] == prompt.answers and len(set(prompt.options)) == 8
    assert len({len(option[0]) for option in prompt.options}) == 1


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("ruler/niah_single_2", {"essay": ()}, "its haystack is an essay, and there is none; give plain text with --haystack"),
        ("ruler/qa_1", {"held": ()}, "needs a file of JSON lines with question, answers, context; give one with --data-dir"),
        ("ruler/vt", {"depth": 0.5}, "ruler/vt: depth=0.5, and its evidence has no one place"),
        ("ruler/niah_single_1", {"depth": 1.5}, "depth=1.5: expected 0"),
        ("ruler/niah_single_1", {"depth": 0.5, "layout": "original"}, "layout=original places evidence itself"),
        ("ruler/niah_single_1", {"layout": "orginal"}, "did you mean 'original'?"),
    ],
)  # fmt: skip
def test_what_no_item_can_have_is_refused(name: str, changes: dict, says: str):
    with pytest.raises(TaskError, match=re.escape(says)):
        RULER[name].check(setting(name, **changes))


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("ruler/vt", Setting(length=100), "its shortest item has"),
        ("ruler/fwe", Setting(length=150), "a length below 200 has fewer than four words"),
        ("ruler/niah_single_2", Setting(essay=ESSAY[:50]), "the whole haystack, 50 sentences, makes an item of"),
        ("ruler/qa_1", setting("ruler/qa_1", 50), "its shortest item has"),
    ],
)
def test_an_item_that_does_not_fit_is_refused_and_never_cut(name: str, given: Setting, says: str):
    with pytest.raises(TaskError, match=says):
        fitted_prompt(RULER[name], given, 0, in_fours)


def test_questions_without_an_answer_are_left_out_and_there_are_no_more_than_the_rest():
    rows = [*ROWS["ruler/qa_1"][:3], {**ROWS["ruler/qa_1"][3], "answers": []}]
    bank = RULER["ruler/qa_1"].read(rows)
    assert len(bank) == 3 and len(bank.paragraphs) == 4
    with pytest.raises(TaskError, match="the file has 3 questions"):
        fitted_prompt(RULER["ruler/qa_1"], Setting(held=bank), 3, in_fours)


def test_hotpot_rows_may_have_columns_and_need_not_say_what_supports_them():
    row = ROWS["ruler/qa_2"][0]
    columns = {
        "question": row["question"], "answer": row["answer"],
        "context": {"title": [t for t, _ in row["context"]], "sentences": [s for _, s in row["context"]]},
    }  # fmt: skip
    bank = RULER["ruler/qa_2"].read([columns])
    assert bank.paragraphs == RULER["ruler/qa_2"].read([row]).paragraphs
    assert len(bank.questions[0].gold) == 10
