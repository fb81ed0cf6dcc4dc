"""Summaries of meetings, scored by ROUGE-L against a reference, out of a file of the user's: QMSum (arXiv 2104.05938).

Notable: a specific question names the turns of the transcript that its answer is made of, which are the evidence. They are always
read, and as many others as fit, those nearest them first; so a short text is what was said around them, a long one the whole
meeting. Questions on the whole meeting come last, and are asked where all of it fits.
"""

from dataclasses import dataclass
from typing import Any

from .draws import Draws, key_of
from .metrics import rouge_l
from .prompt import Prompt, PromptTask, Script, Setting, Source, place_of
from .task import TaskError

_NAME = "summary/qmsum"
_N_NEW = 128
_FIELDS = ("meeting_transcripts", "specific_query_list", "general_query_list")
_ASK = "Answer the question about the meeting in a few sentences.\n\n"


@dataclass(frozen=True, slots=True)
class MeetingQuestion:
    """A question on meeting number `meeting`, the reference answer, and the turns, of which the `gold` ones (numbers) are what
    it is made of; `is_whole`: of all."""

    meeting: int
    text: str
    answer: str
    turns: tuple[str, ...]
    gold: tuple[int, ...]
    is_whole: bool

    def chosen(self, size: int) -> list[int]:
        """Numbers of the `size` turns that are read, in the meeting's order."""
        others = [i for i in range(len(self.turns)) if i not in self.gold]
        others.sort(key=lambda i: min(abs(i - g) for g in self.gold))
        return sorted([*self.gold, *others[: size - len(self.gold)]])


def questions_of_meetings(rows: list[dict[str, Any]]) -> tuple[MeetingQuestion, ...]:
    """The specific questions of all meetings, then the general ones.

    Raises:
        TaskError: a span of turns that the meeting does not have, a reference that is no text; meetings without a question.
    """
    specific, general = [], []
    for number, row in enumerate(rows):
        turns = tuple(f"{turn['speaker']}: {turn['content']}" for turn in row["meeting_transcripts"])
        for asked in row["specific_query_list"]:
            spans = [(int(first), int(last)) for first, last in asked["relevant_text_span"]]
            if not spans or not all(0 <= first <= last < len(turns) for first, last in spans):
                raise TaskError(
                    f"row {number + 1}: relevant_text_span={asked['relevant_text_span']!r}: expected pairs of turns, the first "
                    f"and the last, from 0 to {len(turns) - 1}"
                )
            gold = tuple(sorted({i for first, last in spans for i in range(first, last + 1)}))
            specific.append(MeetingQuestion(number, *_asked(number, asked), turns, gold, False))
        for asked in row["general_query_list"]:
            general.append(MeetingQuestion(number, *_asked(number, asked), turns, tuple(range(len(turns))), True))
    if rows and not specific and not general:
        raise TaskError(f"no question can be asked: {len(rows)} of {len(rows)} meetings have none, specific or general")
    return (*specific, *general)


def _asked(number: int, asked: dict[str, Any]) -> tuple[str, str]:
    answer = asked["answer"]
    if not isinstance(answer, str) or not answer.strip():
        raise TaskError(f"row {number + 1}: answer={answer!r}: expected a text, not empty")
    return asked["query"].strip(), answer.strip()


def _make(setting: Setting, index: int, size: int) -> Prompt:
    asked: MeetingQuestion = setting.held[index]
    chosen = asked.chosen(size)
    script = Script()
    script.say(f"{_ASK}Transcript:\n", "kept")
    # What a question on all of it is made of has no place.
    is_gold = [not asked.is_whole and i in asked.gold for i in chosen]
    script.say_all(
        [("evidence" if gold else "distractor", asked.turns[i]) for i, gold in zip(chosen, is_gold, strict=True)], "\n"
    )
    script.say(f"\n\nQuestion: {asked.text}\nAnswer:", "kept")
    return Prompt(
        task=_NAME,
        index=index,
        parts=(script.text,),
        answers=(f" {asked.answer}",),
        options=(),
        references=(asked.answer,),
        n_new=_N_NEW,
        evidence=tuple(script.spans["evidence"]),
        distractors=tuple(script.spans["distractor"]),
        depth=place_of([place for place, gold in enumerate(is_gold) if gold], len(chosen)),
        chance=0.0,
        floor=None,
        factors={"n_turns": size, "of_turns": len(asked.turns), "is_whole": asked.is_whole},
        kept=tuple(script.spans["kept"]),
    )


def _sizes(setting: Setting, index: int) -> tuple[int, int]:
    if index >= len(setting.held):
        raise TaskError(f"{_NAME} {index}: the file has {len(setting.held)} questions; take a lower --limit")
    asked: MeetingQuestion = setting.held[index]
    return len(asked.gold), len(asked.turns)


def _guesses(setting: Setting, prompt: Prompt) -> tuple[float, float]:
    """ROUGE-L of the answer to a drawn question on another meeting; and of the transcript's beginning, as many words of it as the
    reference has."""
    asked: MeetingQuestion = setting.held[prompt.index]
    (right,) = prompt.references
    order = Draws(key_of(f"{_NAME}/other", setting.seed), prompt.index).order(len(setting.held))
    other = next((setting.held[i].answer for i in order if setting.held[i].meeting != asked.meeting), "")
    words = " ".join(prompt.whole[start:end] for start, end in sorted((*prompt.evidence, *prompt.distractors))).split()
    return rouge_l(other, right), rouge_l(" ".join(words[: len(right.split())]), right)


def _judge(prompt: Prompt, written: tuple[str, ...]) -> float:
    return rouge_l(written[0], prompt.references[0])


SUMMARIES: dict[str, PromptTask] = {
    _NAME: PromptTask(
        _NAME, "answers a question about a meeting in a few sentences", "QMSum (arXiv 2104.05938), by ROUGE-L",
        _make, _sizes, _judge, "rouge_l", stops=("\n\n",), has_depth=False, needs="rows",
        sources=(Source((_NAME, "qmsum/test"), _FIELDS),), read=questions_of_meetings, package="rouge_score", guesses=_guesses,
    )
}  # fmt: skip
