"""A folder of benchmark files as docs/eval.md lays it out, of sentences of our own."""

import gzip
import json
from pathlib import Path
from typing import Any

FILES: dict[str, list[dict[str, Any]]] = {
    "hellaswag/validation.jsonl": [
        {
            "activity_label": "Closing a gate", "ctx_a": "A gate stands open.", "ctx_b": f"it may close {n} times",
            "endings": ["and stay.", "or a sink may stay.", "where the first token stands.", "elsewhere."], "label": str(n),
        }
        for n in range(4)
    ],
    "arc/arc_easy_test.jsonl": [
        {
            "question": f"What may close after {n} tokens?", "answerKey": "B",
            "choices": {"text": ["A sink", "A gate", "A token"], "label": ["A", "B", "C"]},
        }
        for n in range(3)
    ],
    "piqa/validation.jsonl": [{"goal": "Close a gate", "sol1": "push it", "sol2": "sink it", "label": n % 2} for n in range(3)],
    "lambada_openai/test.jsonl": [
        {"text": "a gate may close and a sink may stay where the first token stands"},
        {"text": "a sink may stay where the first token stands, or elsewhere"},
    ],
    "gsm8k/test.jsonl": [{"question": f"A gate and {n} gates?", "answer": f"1 + {n}\n#### {n + 1}"} for n in range(3)],
    "gsm8k/train.jsonl": [{"question": f"{n} gates less one?", "answer": f"{n} - 1\n#### {n - 1}"} for n in range(5, 12)],
    "mmlu/test.jsonl": [
        {"question": f"Which letter {n}?", "subject": subject, "choices": ["one", "two", "three", "four"], "answer": n % 4}
        for subject in ("anatomy", "virology")
        for n in range(3)
    ],
    "mmlu/dev.jsonl": [
        {"question": f"Which {n}?", "subject": "anatomy", "choices": ["one", "two", "three", "four"], "answer": n % 4}
        for n in range(5)
    ],
    "blimp/blimp.jsonl": [
        {"UID": "adjunct_island", "sentence_good": f"a gate may close {n}", "sentence_bad": f"a gate close may {n}"}
        for n in range(4)
    ],
    "humaneval/HumanEval.jsonl": [
        {
            "task_id": f"own/{n}", "prompt": f'def shut(x):\n    """x without {n}"""\n', "entry_point": "shut",
            "test": f"def check(shut):\n    assert shut({n}) == 0\n",
        }
        for n in range(2)
    ],
    "mbpp/test.jsonl": [
        {
            "task_id": n, "text": "Write a function that shuts a gate.", "code": "def shut(x): return 0",
            "test_list": [f"assert shut({n}) == 0"] * 3,
        }
        for n in range(2)
    ],
}  # fmt: skip


def write_files(folder: Path, *, gzipped: tuple[str, ...] = ()) -> Path:
    """All of them; the named ones gzipped."""
    for name, rows in FILES.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in gzipped:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text, encoding="utf-8")
    return folder
