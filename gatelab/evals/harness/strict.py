"""Ties and scores that are not finite are never correct. The harness takes the first of equal options, and arg-max the first
not-a-number, so a model that says nothing scores 1.0 where the right option comes first (BLiMP).

Notable: a task's own `process_results` runs first, so that prompts, normalisations and groups stay the harness's; then the
accuracies of an item whose largest option is shared, or that has a score that is not finite, become 0. `<metric>_shared` beside
them gives each of k equal options 1/k, so a uniform model scores chance.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

# (right option, chosen option): whoever chooses none is wrong.
_CHOSEN = ("f1", "mcc")


def make_strict(task: ConfigurableTask) -> None:
    """Let a task of the harness count ties and scores that are not finite as wrong. Once is enough."""
    if task.OUTPUT_TYPE != "multiple_choice" or isinstance(task.process_results, partial):
        return
    task.process_results = partial(_strictly, task, task.process_results)
    for name in ("acc", "acc_norm", "acc_bytes", "acc_mutual_info"):
        if name in task.aggregation():
            task.aggregation()[f"{name}_shared"] = mean
            task.higher_is_better()[f"{name}_shared"] = True


def _strictly(
    task: ConfigurableTask,
    process: Callable[[Any, Any], dict[str, Any]],
    doc: dict[str, Any],
    results: Sequence[tuple[float, bool]],
) -> dict[str, Any]:
    # A softmax over not-a-number, and a division by an empty option's length, warn.
    with np.errstate(all="ignore"):
        found = process(doc, results)
        by_metric = scores(task, doc, results)
    gold = _right(task, doc) if by_metric else []
    is_finite = bool(np.isfinite([log_p for log_p, _ in results]).all())
    for name in list(found):
        if name in _CHOSEN and by_metric and not (is_finite and len(largest(by_metric["acc"])) == 1):
            found[name] = (found[name][0], -1)
        elif name in by_metric:
            best = largest(by_metric[name]) if is_finite else []
            found[name] = float(found[name]) if len(best) == 1 else 0.0
            found[f"{name}_shared"] = sum(i in gold for i in best) / len(best) if best else 0.0
        elif not is_finite and task.higher_is_better().get(name) and np.isscalar(found[name]):
            found[name] = 0.0
    return found


def scores(task: ConfigurableTask, doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, np.ndarray]:
    """What each accuracy of a multiple-choice item compares, an entry an option; none where a task scores options itself."""
    if callable(task.config.process_results):
        return {}
    options = task.doc_to_choice(doc)
    log_p = np.array([p for p, _ in results], dtype=np.float64)
    n = len(options)
    given, alone = log_p[:n], log_p[n:]
    n_letters = np.array([float(len(option)) for option in options])
    n_bytes = np.array([float(len(option.encode())) for option in options])
    found = {"acc": given, "acc_norm": given / n_letters, "acc_bytes": given / n_bytes}
    return found | ({"acc_mutual_info": given - alone} if len(alone) == n else {})


def largest(of_options: np.ndarray) -> list[int]:
    """The options that share the largest number; none where that is not a number."""
    return np.flatnonzero(of_options == of_options.max()).tolist()


def _right(task: ConfigurableTask, doc: dict[str, Any]) -> list[int]:
    """The right options, by number."""
    right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    options = task.doc_to_choice(doc)
    rights = right if isinstance(right, list) else [right]
    # The harness too counts a right answer that is no option as never given.
    return [
        options.index(r) if isinstance(r, str) else int(r) for r in rights if not isinstance(r, str) or r in options
    ]
