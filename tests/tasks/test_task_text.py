"""Items as text and as a tokenizer's tokens: spans are where the words are, and what cannot be asked is said."""

import pytest

from gatelab.data import LoadedTokenizer
from gatelab.data.prepare import train_bpe
from gatelab.tasks import TASKS, Knobs, TaskError, TaskItem, open_task
from gatelab.tasks.text import Encode, TextItem, as_text, fitted, tokenised
from gatelab.tasks.vocabulary import word


def of_bytes(text: str) -> list[int]:
    return list(text.encode())


def in_pairs(text: str) -> list[int]:
    """Two characters a token: a text of an odd length ends in a token that a longer one has not."""
    return [hash(text[i : i + 2]) for i in range(0, len(text), 2)]


def text_of(name: str, index: int = 0, **knobs: int) -> tuple[TaskItem, TextItem]:
    task = open_task(name)
    item = task.item(Knobs(**{"length": 130, **knobs}), index)
    return item, as_text(task, item)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Encode:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    train_bpe((text_of(name, i)[1].text.encode() for name in TASKS for i in range(4)), 700, path)
    tokenizer = LoadedTokenizer(path)

    def encode(text: str) -> list[int]:
        return tokenizer.encode([text.encode()])[0].tolist()

    encode.decode = tokenizer.decode
    return encode


@pytest.mark.parametrize("name", TASKS)
def test_the_answer_stands_behind_its_question_in_the_words_of_its_tokens(name: str):
    for index in range(4):
        item, text = text_of(name, index)
        said = " ".join(text.text[start:end].strip() for start, end in text.answers)
        assert said == " ".join(word(t) for t in item.answer)
        assert all(text.text[start] == " " for start, _ in text.answers)
        assert name == "mqar" or text.answers[-1][1] == len(text.text)


@pytest.mark.parametrize("name", TASKS)
def test_spans_of_text_hold_the_words_of_their_pieces(name: str):
    item, text = text_of(name, 1)
    for spans, tokens in ((text.evidence, item.evidence), (text.distractors, item.distractors)):
        assert len(spans) == len(tokens)
        for (start, end), (first, last) in zip(sorted(spans), sorted(tokens), strict=True):
            words = [word(t) for t in item.tokens[first:last] if t >= 8]
            assert all(w in text.text[start:end] for w in words) and words


@pytest.mark.parametrize("name", TASKS)
def test_tokens_of_a_span_are_its_bytes(name: str):
    _, text = text_of(name, 2)
    tokens = tokenised(text, of_bytes, bos_id=256)
    assert tokens.problem is None and tokens.ids[0] == 256 and bytes(tokens.ids[1:]).decode() == text.text
    pairs = zip(
        text.answers + text.evidence + text.distractors,
        tokens.answers + tokens.evidence + tokens.distractors,
        strict=True,
    )
    for (start, end), (first, last) in pairs:
        assert bytes(tokens.ids[first:last]).decode() == text.text[start:end]


@pytest.mark.parametrize("name", TASKS)
def test_tokens_of_a_bpe_hold_their_span(name: str, bpe: Encode):
    _, text = text_of(name, 3)
    tokens = tokenised(text, bpe)
    assert tokens.problem is None
    for (start, end), (first, last) in zip(text.answers, tokens.answers, strict=True):
        assert bpe.decode(tokens.ids[first:last]) == text.text[start:end]
    for (start, end), (first, last) in zip(text.evidence, tokens.evidence, strict=True):
        held = bpe.decode(tokens.ids[first:last])
        assert text.text[start:end] in held and len(held) <= end - start + 12


def test_a_tokenizer_that_joins_the_answer_to_the_question_is_reported_for_those_items_alone():
    problems = {}
    for index in range(20):
        _, text = text_of("needle", index)
        tokens = tokenised(text, in_pairs)
        ((start, end),) = text.answers
        problems.setdefault(start % 2, []).append(tokens.problem)
        if tokens.problem is None:
            ((first, last),) = tokens.answers
            assert (2 * first, min(2 * last, len(text.text))) == (start, end)
    assert set(problems) == {0, 1} and problems[0] == [None] * len(problems[0])
    assert all("the tokenizer joins the answer ' " in p for p in problems[1])


def test_an_item_longer_than_the_model_reads_is_reported_and_never_cut():
    _, text = text_of("needle")
    n = len(of_bytes(text.text))
    assert tokenised(text, of_bytes, max_tokens=n).problem is None
    tokens = tokenised(text, of_bytes, bos_id=256, max_tokens=n)
    assert tokens.problem == f"the item has {n + 1} tokens, and the model reads {n}; make it from a smaller length"
    assert len(tokens.ids) == n + 1


@pytest.mark.parametrize("name", ["needle", "multikey", "cite", "bracket"])
def test_an_item_is_fitted_to_a_number_of_tokens_and_a_longer_one_would_not_fit(name: str):
    task = open_task(name)
    text = fitted(task, Knobs(length=500), 0, of_bytes, 900)
    n = len(text.text)
    assert 900 - 60 < n <= 900


def test_nothing_that_fits_is_refused():
    with pytest.raises(TaskError, match="cite: no item of these knobs has at most 50 tokens"):
        fitted(open_task("cite"), Knobs(), 0, of_bytes, 50)
