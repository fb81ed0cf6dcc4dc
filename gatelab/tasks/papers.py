"""Questions on papers whose gold paragraphs are known, out of two files of the user's: Qasper's (arXiv 2105.03011).

Notable: paragraphs keep the paper's order, and which of them stand beside the gold ones is drawn, so that no place in a text that
is shorter than the paper is a likelier one.
"""

from dataclasses import dataclass
from typing import Any

from .draws import Draws, key_of
from .prompt import Setting, Source
from .task import TaskError

QUESTIONS = Source(("citations/qasper", "qasper_yesno/questions"), ("title", "question", "evidence", "answer"))
PAPERS = Source(("citations/papers", "qasper_yesno/papers"), ("title", "full_text"))
YES_NO = ("Yes", "No")


@dataclass(frozen=True, slots=True)
class PaperQuestion:
    """A question, its answer, and the paper's paragraphs, of which the `gold` ones (numbers) hold the answer."""

    title: str
    text: str
    answer: str
    paragraphs: tuple[str, ...]
    gold: tuple[int, ...]

    def chosen(self, name: str, setting: Setting, index: int, size: int) -> list[int]:
        """Numbers of the `size` paragraphs that are read, in the paper's order, the gold ones among them."""
        others = [i for i in range(len(self.paragraphs)) if i not in self.gold]
        order = Draws(key_of(name, setting.seed), index).order(len(others))
        return sorted([*self.gold, *(others[i] for i in order[: size - len(self.gold)])])


@dataclass(frozen=True, slots=True)
class PaperQuestions:
    """Those that can be asked; `n_left_out`: how many others there are, none of whose evidence is a paragraph."""

    questions: tuple[PaperQuestion, ...]
    n_left_out: int

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> PaperQuestion:
        return self.questions[index]


def questions_of_papers(questions: list[dict[str, Any]], papers: list[dict[str, Any]]) -> PaperQuestions:
    """Questions none of whose evidence is a paragraph, but a table or a figure, are left out, and counted.

    Raises:
        TaskError: a question on no paper of the file, or without an answer; a paper of no lists of texts; none that can be asked.
    """
    of_title = {row["title"]: _paragraphs(number, row) for number, row in enumerate(papers, 1)}
    found = []
    for number, row in enumerate(questions, 1):
        if row["title"] not in of_title:
            raise TaskError(f"row {number}: no paper of the title {row['title']!r}; give the papers that belong to it")
        answer, evidence = row["answer"], row["evidence"]
        if not isinstance(answer, str) or not answer.strip() or not _is_texts(evidence):
            raise TaskError(
                f"row {number}: answer={answer!r}, evidence={evidence!r}: expected a text, and a list of texts"
            )
        paragraphs = of_title[row["title"]]
        gold = tuple(sorted({paragraphs[e.strip()] for e in evidence if e.strip() in paragraphs}))
        if gold:
            found.append(PaperQuestion(row["title"], row["question"].strip(), _answer(answer), tuple(paragraphs), gold))
    if questions and not found:
        n = len(questions)
        raise TaskError(f"no question can be asked: {n} of {n} have no evidence that is a paragraph of their paper")
    return PaperQuestions(tuple(found), len(questions) - len(found))


def _answer(answer: str) -> str:
    """Yes and No however they are written, anything else as it is."""
    plain = answer.strip().rstrip(".").capitalize()
    return plain if plain in YES_NO else answer.strip()


def _is_texts(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(text, str) for text in found)


def _paragraphs(number: int, row: dict[str, Any]) -> dict[str, int]:
    """All different paragraphs that say something, with their numbers in the paper's order; of sections in two columns, or one
    by one."""
    full = row["full_text"]
    if isinstance(full, dict):
        sections = full.get("paragraphs")
    else:
        sections = (
            [s.get("paragraphs") if isinstance(s, dict) else None for s in full] if isinstance(full, list) else None
        )
    if not isinstance(sections, list) or not all(_is_texts(section) for section in sections):
        raise TaskError(
            f"paper {number}, {row['title']!r}: full_text: expected {{paragraphs: a list of texts a section}}, or a list of "
            "{section_name, paragraphs: a list of texts}"
        )
    said = (text.strip() for section in sections for text in section)
    return {text: i for i, text in enumerate(dict.fromkeys(text for text in said if text))}


def paper_sizes(name: str, setting: Setting, index: int) -> tuple[int, int]:
    """The fewest and the most paragraphs of a question: its gold ones and one more, and the whole paper.

    Raises:
        TaskError: no such question, or none but gold paragraphs.
    """
    if index >= len(setting.held):
        raise TaskError(f"{name} {index}: the file has {len(setting.held)} questions; take a lower --limit")
    asked: PaperQuestion = setting.held[index]
    if len(asked.paragraphs) <= len(asked.gold):
        raise TaskError(f"{name} {index}: every paragraph of its paper is gold, so there is nothing to tell it from")
    return len(asked.gold) + 1, len(asked.paragraphs)
