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


def questions_of_papers(questions: list[dict[str, Any]], papers: list[dict[str, Any]]) -> tuple[PaperQuestion, ...]:
    """Questions none of whose evidence is a paragraph, but a table or a figure, are left out.

    Raises:
        TaskError: a question on no paper of the file, or without an answer.
    """
    of_title = {row["title"]: _paragraphs(row) for row in papers}
    found = []
    for number, row in enumerate(questions, 1):
        if row["title"] not in of_title:
            raise TaskError(f"row {number}: no paper of the title {row['title']!r}; give the papers that belong to it")
        answer, evidence = row["answer"], row["evidence"]
        if not isinstance(answer, str) or not answer.strip() or not isinstance(evidence, list):
            raise TaskError(
                f"row {number}: answer={answer!r}, evidence={evidence!r}: expected a text, and a list of texts"
            )
        paragraphs = of_title[row["title"]]
        gold = tuple(sorted({paragraphs[e.strip()] for e in evidence if e.strip() in paragraphs}))
        if gold:
            found.append(PaperQuestion(row["title"], row["question"].strip(), answer.strip(), tuple(paragraphs), gold))
    return tuple(found)


def _paragraphs(row: dict[str, Any]) -> dict[str, int]:
    """All different paragraphs that say something, with their numbers in the paper's order."""
    said = (text.strip() for section in row["full_text"]["paragraphs"] for text in section)
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
