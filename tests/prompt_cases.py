"""Essays and rows of sentences of our own, and answers that are read out of nothing but an item's evidence."""

import re
from collections import Counter

from gatelab.tasks.middle import MIDDLE
from gatelab.tasks.prompt import Prompt, PromptTask, Setting
from gatelab.tasks.ruler import RULER

ESSAY = tuple(f"In the year {1000 + i} a gate was closed, and nobody wrote down why." for i in range(900))
FILLING = " and so it stayed for a while" * 4
ROWS = {
    "ruler/qa_1": [
        {
            "title": f"Town {i // 4}", "question": f"Who closed gate {i}?",
            "answers": {"text": [f"Keeper{i}x", f"Keeper{i}x himself"]},
            "context": f"Gate {i} was closed by Keeper{i}x in town {i // 4}{FILLING}.",
        }
        for i in range(60)
    ],
    "ruler/qa_2": [
        {
            "question": f"Where does the owner of gate {i} live?", "answer": f"Village{i}x",
            "context": [
                [f"Page {i} {j}", [f"It names Village{i}x." if j == 7 else "It names nobody.", FILLING]] for j in range(10)
            ],
            "supporting_facts": [[f"Page {i} 3", 0], [f"Page {i} 7", 0]],
        }
        for i in range(12)
    ],
    "middle/qa": [
        {
            "question": f"who closed gate {i}", "answers": [f"The Keeper{i}x!"],
            "ctxs": [
                {"title": f"Gate {i} {j}", "text": f"{f'keeper{i}x' if j == 2 else 'nobody'} closed it{FILLING}", "isgold": j == 2}
                for j in range(20)
            ],
        }
        for i in range(40)
    ],
}  # fmt: skip
ROWS["middle/qa_random"] = [{**row, "ctxs": [c for c in row["ctxs"] if c["isgold"]]} for row in ROWS["middle/qa"]]
ROWS |= {f"{name}_aware": ROWS[name] for name in ("middle/qa", "middle/qa_random")}
# A paper of twelve paragraphs in two sections, of which one question's evidence is a table alone.
ROWS["citations/papers"] = [
    {
        "title": f"On gate {n}",
        "full_text": {
            "section_name": ["Gates", "Sinks"],
            "paragraphs": [[f"Part {i} of paper {n}." for i in range(6)], [f"Part {i} of paper {n}." for i in (5, *range(6, 12))]],
        },
    }
    for n in range(4)
]  # fmt: skip
ROWS["citations/qasper"] = [
    {"title": f"On gate {n}", "question": f"Is gate {n} shut? ", "evidence": evidence, "answer": ("Yes", "No", "Half of it")[n % 3]}
    for n in range(4)
    for evidence in (
        [f"Part 3 of paper {n}.", f"Part 9 of paper {n}."], [f"Part 0 of paper {n}.", "FLOAT SELECTED: Table 1."],
        ["FLOAT SELECTED: Table 2."],
    )
]  # fmt: skip
ROWS["summary/qmsum"] = [
    {
        "meeting_transcripts": [{"speaker": f"Keeper {i % 3}", "content": f"Gate {i} of yard {n} stays shut ."} for i in range(20)],
        "specific_query_list": [
            {
                "query": f"What of gate {i}? ", "answer": f"Gate {i} of yard {n} stays shut.",
                "relevant_text_span": [[f"{i}", f"{i + 1}"]],
            }
            for i in (4, 11)
        ],
        "general_query_list": [{"query": "What was said?", "answer": f"All gates of yard {n} stay shut."}],
    }
    for n in range(3)
]  # fmt: skip
TASKS_OF_PROMPTS: dict[str, PromptTask] = {**RULER, **MIDDLE}


def setting(name: str, length: int = 4096, **changes: object) -> Setting:
    task = TASKS_OF_PROMPTS[name]
    return Setting(**{"length": length, "essay": ESSAY, "held": held(task), **changes})


def held(task: PromptTask) -> object:
    """What it makes of these rows."""
    return task.read(*(ROWS[source.names[0]] for source in task.sources)) if task.needs == "rows" else ()


def from_evidence(prompt: Prompt) -> str:
    """The answer, out of the evidence's own characters."""
    seen = [prompt.whole[start:end] for start, end in prompt.evidence]
    match prompt.task.split("/")[1]:
        case name if name.startswith("niah"):
            return " ".join(re.fullmatch(r"One of the special magic \w+ for \S+ is: (\S+)\.", s)[1] for s in seen)
        case "vt":
            return " ".join(re.match(r"VAR ([A-Z]{5}) = ", s)[1] for s in seen)
        case "cwe" | "fwe" as name:
            return " ".join(word for word, _ in Counter(seen).most_common(10 if name == "cwe" else 3))
        case "kv" | "kv_aware":
            return re.fullmatch(r'"\S+": "(\S+)"', seen[0])[1]
        case _:
            return next(
                word for s in seen for word in re.findall(r"\w+", s) if re.fullmatch(r"(?i)(keeper|village)\d+x", word)
            )
