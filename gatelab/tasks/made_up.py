"""Made-up records and essays in the place of a user's files, so that a task which needs them can show what it asks.

Notable: nothing in them is true of anything, and no score is taken on them.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from .prompt import PromptTask, Setting
from .ruler.words import N_WORDS, pair

_FILLING = "Nobody in the valley wrote down more than that, and the pages before and after it are lost."
_TOWNS = ("Arvenholm", "Belmora", "Castrel", "Dunwick", "Esterby", "Fallowmere", "Gorsund", "Hartlow")
_BUILDERS = (
    "Ida Mortlake",
    "Otto Vane",
    "Ruth Calder",
    "Hugo Penrose",
    "Nell Ashby",
    "Karl Winter",
    "Mona Field",
    "Iver Holt",
)


_TURN = 0x9E3779B97F4A7C15F39CC0605CEDC834  # its multiples look like nothing
_IDS = [str(uuid.UUID(int=n * _TURN % 2**128, version=4)) for n in range(1, 17)]
_PAIRS = [[key, value] for key, value in zip(_IDS[::2], _IDS[1::2], strict=True)]


def _wall(i: int) -> str:
    return f"The north gate of {_TOWNS[i]} was built by {_BUILDERS[i]}. {_FILLING}"


def _page(i: int, is_gold: bool) -> dict[str, Any]:
    return {"title": _TOWNS[i], "text": _wall(i), "isgold": is_gold}


def _question(i: int) -> str:
    return f"Who built the north gate of {_TOWNS[i]}?"


# By the first name of its file: lines as the file has them.
RECORDS: dict[str, list[dict[str, Any]]] = {
    "ruler/qa_1": [
        {"title": town, "question": _question(i), "answers": {"text": [_BUILDERS[i]]}, "context": _wall(i)}
        for i, town in enumerate(_TOWNS)
    ],
    "ruler/qa_2": [
        {
            "question": f"In which town was the builder of the north gate of {town} born?",
            "answer": _TOWNS[i - 1],
            "context": [
                [town, [_wall(i)]],
                [_BUILDERS[i], [f"{_BUILDERS[i]} was born in {_TOWNS[i - 1]}. ", _FILLING]],
            ],
            "supporting_facts": [[town, 0], [_BUILDERS[i], 0]],
        }
        for i, town in enumerate(_TOWNS)
    ],
    "middle/kv": [
        {"ordered_kv_records": _PAIRS[i : i + 4], "key": _PAIRS[i + 1][0], "value": _PAIRS[i + 1][1]} for i in (0, 4)
    ],
    "middle/qa": [
        {
            "question": _question(i),
            "answers": [_BUILDERS[i]],
            "ctxs": [_page(j, is_gold=j == i) for j in range(len(_TOWNS))],
        }
        for i in range(len(_TOWNS))
    ],
    "middle/qa_random": [
        {"question": _question(i), "answers": [_BUILDERS[i]], "ctxs": [_page(i, is_gold=True)]}
        for i in range(len(_TOWNS))
    ],
    "summary/qmsum": [
        {
            "meeting_transcripts": [
                {"speaker": "Chair", "content": f"Let us begin with the north gate of {town} ."},
                {"speaker": _BUILDERS[i], "content": "It needs new hinges , and they cost more than we have ."},
                {"speaker": "Chair", "content": "Then we wait for the spring , when the tolls come in ."},
                {"speaker": _BUILDERS[i - 1], "content": "The well is dry again ."},
            ],
            "specific_query_list": [
                {
                    "query": "What was decided about the gate?",
                    "answer": f"The hinges of the gate of {town} wait for the spring, since they cost too much now.",
                    "relevant_text_span": [["1", "2"]],
                }
            ],
            "general_query_list": [
                {
                    "query": "Summarize the meeting.",
                    "answer": f"The gate of {town} waits for the spring; the well is dry.",
                }
            ],
        }
        for i, town in enumerate(_TOWNS[:4])
    ],
    "citations/qasper": [
        {
            "title": f"On the gates of {town}",
            "question": "Do the gates open at night?",
            "evidence": [f"All gates of {town} are shut from dusk to dawn."],
            "answer": "No",
        }
        for town in _TOWNS[:4]
    ],
    "citations/papers": [
        {
            "title": f"On the gates of {town}",
            "full_text": {
                "section_name": ["Gates", "Walls"],
                "paragraphs": [
                    [f"We counted the gates of {town} twice.", f"All gates of {town} are shut from dusk to dawn."],
                    [f"The walls of {town} are of stone.", "Their height was not measured.", _FILLING],
                ],
            },
        }
        for town in _TOWNS[:4]
    ],
}


def essay(n_sentences: int) -> tuple[str, ...]:
    """Sentences that say nothing of magic values."""
    step = 7919  # so that neighbours have no word in common
    return tuple(
        f"On page {i + 1} of the log a {pair(i * step % N_WORDS)} stands beside a {pair((i + 1) * step * 3 % N_WORDS)}."
        for i in range(n_sentences)
    )


def filled(task: PromptTask, setting: Setting) -> Setting:
    """The setting with made-up records, or an essay, in the place of what a user gives."""
    match task.needs:
        case "rows":
            return Setting(setting.length, setting.depth, setting.seed, setting.layout, held=task.read(*_rows(task)))
        case "essay":
            return Setting(setting.length, setting.depth, setting.seed, setting.layout, essay=essay(setting.length))
    return setting


def _rows(task: PromptTask) -> Sequence[list[dict[str, Any]]]:
    return [RECORDS[source.names[0]] for source in task.sources]
