"""Questions: those of tasks as ids and as text have the same documents, and what cannot be one is refused."""

import re
from pathlib import Path

import pytest

from gatelab.data import ByteTokenizer
from gatelab.evals.question import Question, filled, of_item, of_text
from gatelab.tasks import TASKS, Knobs, open_task
from gatelab.tasks.text import as_text

KNOBS = Knobs(length=96)
BYTES = ByteTokenizer()


def encode(text: str) -> list[int]:
    return BYTES.encode([text.encode()])[0].tolist()


def decoded(ids: tuple[int, ...]) -> str:
    return bytes(ids).decode()


@pytest.mark.parametrize("name", TASKS)
def test_an_item_is_a_question_whose_gold_documents_are_its_evidence(name: str):
    task = open_task(name)
    item = next(i for i in (task.item(KNOBS, n) for n in range(20)) if i.evidence)
    question = of_item(item)
    assert sorted(question.evidence) == sorted(item.evidence)
    assert set(question.documents) == {*item.evidence, *item.distractors}
    assert question.prompt == item.tokens[: item.asked[0] + 1] and question.answer == item.answer
    assert (question.task, question.index, question.depth) == (name, item.index, item.depth)
    text = of_text(task, item, encode, bos_id=BYTES.bos_id)
    words = as_text(task, item)
    assert [decoded(text.ids[s:e]) for s, e in text.evidence] == [words.text[s:e] for s, e in sorted(words.evidence)]
    assert len(text.documents) == len(question.documents) and text.gold == question.gold
    assert all(text.ids[p + 1] == t for p, t in zip(text.asked, text.answer, strict=True))


def test_the_question_itself_is_kept_as_ids_and_as_text():
    task = open_task("needle")
    item = task.item(KNOBS, 3)
    question = of_item(item)
    assert question.kept == ((0, 1), (94, 96))
    text = of_text(task, item, encode, bos_id=BYTES.bos_id)
    start, end = text.kept[1]
    key = as_text(task, item).text[slice(*as_text(task, item).evidence[0])].split()[3]
    assert text.kept[0] == (0, 1) and end == len(text.prompt) and key in decoded(text.ids[start:end])


def test_items_without_evidence_and_those_that_cannot_be_asked_are_refused():
    task = open_task("absent")
    blank = next(i for i in (task.item(KNOBS, n) for n in range(20)) if not i.evidence)
    with pytest.raises(ValueError, match=f"absent {blank.index} has no evidence, so no document is gold"):
        of_item(blank)
    needle = open_task("needle")
    with pytest.raises(ValueError, match=r"needle 0: the item has .* tokens, and the model reads 20"):
        of_text(needle, needle.item(KNOBS, 0), encode, max_tokens=20)


IDS = tuple(range(10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": ((1, 3), (2, 5))}, "document 2 to 5 of 10 tokens after one that ends at 3"),
        ({"documents": ((1, 1),)}, "none empty"),
        ({"documents": ((1, 3), (8, 12))}, "document 8 to 12 of 10 tokens"),
        ({"gold": ()}, "one at least"),
        ({"gold": (0, 0)}, "each document that holds the answer once"),
        ({"gold": (2,)}, "there are documents 0 to 1"),
        ({"asked": (10,)}, "give each token the place after which it is right"),
        ({"answer": (1, 2)}, "2 tokens of an answer"),
    ],
)
def test_what_is_no_question_is_refused(changes: dict[str, tuple], message: str):
    fields = {"ids": IDS, "asked": (9,), "answer": (1,), "documents": ((1, 3), (5, 7)), "gold": (1,)} | changes
    with pytest.raises(ValueError, match=message):
        Question(**fields)


def test_spans_are_filled_from_the_filling_s_first_id_on():
    assert filled(IDS, ((1, 4), (6, 8)), (77, 78)) == (0, 77, 78, 77, 4, 5, 77, 78, 8, 9)


@pytest.mark.parametrize(("page", "what"), [("tasks", "gatelab.evals.middle"), ("eval", "gatelab.evals.long_ppl")])
def test_the_examples_of_the_pages_run(page: str, what: str):
    text = (Path(__file__).parents[2] / "docs" / f"{page}.md").read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if what in b]
    names: dict[str, object] = {}
    exec(compile(block, f"docs/{page}.md", "exec"), names)
    assert names["rows"] and all(row.run == "mine" for row in names["rows"])
