"""What answers that a model writes are worth beside the harness's own score: how likely the right one was, in bits a byte, and how
often the output begins as the prompt does.

Notable: bits of gold answers differ where nobody solves an item yet, and compare across tokenizers. A target that is no text, or a
program that judges, is no answer.
"""

from math import log
from typing import Any

from ...record import Row
from ...tasks.metrics import copied_from_start
from ...tasks.prompt import words_in
from .language_model import GatelabLM
from .scoring import score

_SHOWN = 3  # words of an output in which a copied beginning shows


def written_rows(run: str, lm: GatelabLM, tasks: dict[str, Any], samples: dict[str, Any], *, chat: bool) -> list[Row]:
    """`answer_bits_per_byte` and `copied_from_start` of the tasks whose answers are written; docs/eval.md defines them."""
    rows = []
    for name, of_task in samples.items():
        task = tasks[name]
        if task.OUTPUT_TYPE != "generate_until":
            continue
        own = list({sample["doc_id"]: sample for sample in of_task}.values())
        copied = [_is_copied(sample["arguments"][0][0], sample["resps"][0][0]) for sample in own]
        rows.append(Row(run, 0, "harness", "copied_from_start", sum(copied) / len(own), "share", task=name))
        if task.config.unsafe_code:
            continue
        pairs = [
            (s["arguments"][0][0], s["target"]) for s in own if isinstance(s["target"], str) and s["target"].strip()
        ]
        bits = _bits_per_byte(lm, pairs, "" if chat else task.config.target_delimiter)
        if bits is not None:
            rows.append(Row(run, 0, "harness", "answer_bits_per_byte", bits, "bits/byte", task=name))
    return rows


def _is_copied(prompt: str, text: str) -> bool:
    return copied_from_start(words_in(text)[:_SHOWN], ["", *words_in(prompt)[:_SHOWN]])


def _bits_per_byte(lm: GatelabLM, pairs: list[tuple[str, str]], delimiter: str) -> float | None:
    """−Σ log2 p over all answers that have room, a UTF-8 byte of them; contexts are cut from the left as everywhere. None without
    any, or where one is not finite."""
    found = lm.tokens.pairs([(context, delimiter + answer) for context, answer in pairs])
    asked, n_bytes = [], 0
    for pair, (_, answer) in zip(found, pairs, strict=True):
        if 0 < len(pair.continuation) <= lm.max_length:
            n_cut = max(0, len(pair.context) + len(pair.continuation) - lm.max_length - 1)
            asked.append((pair.context[n_cut:], pair.continuation))
            n_bytes += len(answer.encode())
    if not asked:
        return None
    scored = score(lm.passes, asked, batch_size=lm.batch_size)
    return -sum(s.log_p for s in scored) / log(2) / n_bytes if all(s.is_finite for s in scored) else None
