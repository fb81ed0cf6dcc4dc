"""A model asked by lm-evaluation-harness (arXiv 2405.14782), through its `evaluate`."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lm_eval.evaluator import evaluate as asked_by_harness

from ...models.external import External
from ..untrained import Untrained
from ..untrained import untrained as untrained_model
from .external import passes_of
from .language_model import GatelabLM
from .passes import Passes
from .quiet import quiet
from .results import Found, beside, of_results, records
from .shortest import that_end
from .tasks import Asking, Loaded, find, load
from .tokens import Tokens
from .written import written_rows

# Draws for the standard error of what is no mean, such as a perplexity.
_DRAWS = 1000


def evaluate(
    open_model: Callable[[], External],
    asking: Asking,
    *,
    batch_size: int = 8,
    limit: int | None = None,
    new_tokens: int | None = None,
    chat: bool = False,
    untrained: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
    progress: Callable[[str, int, int], None] = lambda what, n, total: None,
) -> Found:
    """Scores of a model on tasks of the harness.

    Args:
        open_model: gives a decoder of ours or a causal model of transformers, in evaluation mode, with its tokenizer; called
            when the tasks are known to be there.
        batch_size: rows a pass.
        limit: the first items of each task.
        new_tokens: in the place of what tasks allow an answer.
        chat: questions and answers are turns of a conversation, which the tokenizer's own template writes.
        untrained: the seed of the same model before training, which is asked the same (None: none is); its rows end in _untrained.
        progress: told what is being done, how many requests of it are answered, and of how many.

    Raises:
        ConfigError, DataError, ValueError: a task that is not known, allowed, or had; a model that has no next-token loss, or, with
            `chat`, no chat template.
    """
    with TemporaryDirectory(prefix="gatelab-eval-") as place:
        draft, home = Path(place) / "tasks", Path(place) / "tokenizer"
        draft.mkdir()
        manager = find(asking, tell, draft=draft, tokenizer=home)
        tell("loading the model")
        found = open_model()
        passes = passes_of(found.model)
        tokens = Tokens(found.tokenizer, passes.n_ids)
        template = tokens.chat_template if chat else None
        lm = GatelabLM(passes, tokens, batch_size=batch_size, new_tokens=new_tokens, progress=progress)
        found.tokenizer.save_pretrained(home)  # for items that the harness writes itself
        asking, of_ruler = that_end(asking, manager, lambda text: len(found.tokenizer(text, verbose=False).input_ids))
        tell("reading the items")
        # Anew, so that it is shown the same worked examples.
        loaded, again = (load(asking, manager) if is_asked else None for is_asked in (True, untrained is not None))

    def ask(lm: GatelabLM, loaded: Loaded) -> dict[str, Any]:
        with quiet(), _alone():
            return asked_by_harness(
                lm,
                {"tasks": loaded.tasks, "groups": loaded.groups, "group_map": loaded.group_map},
                limit=limit,
                bootstrap_iters=_DRAWS,
                log_samples=True,
                confirm_run_unsafe_code=asking.runs_code,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )

    results = ask(lm, loaded)
    made = of_results(found.name, results, loaded, lm.remarks)
    made.rows += written_rows(found.name, lm, loaded.tasks, results["samples"], chat=chat)
    if again is not None:
        tell("asking the same model before training")
        fresh = GatelabLM(
            passes_of(untrained_model(found.model, untrained)), tokens, batch_size=batch_size, new_tokens=new_tokens,
            progress=lambda what, n, total: progress(f"{what}, untrained", n, total),
        )  # fmt: skip
        made.rows += beside(of_results(found.name, ask(fresh, again), again, fresh.remarks).rows)
    names = [n for n in results["results"] if n in asking.names] or list(results["results"])
    made.records = records(made.rows, names, results)
    made.notes = [
        f"{tokens.rule}; {_of_chat(tokens) if chat else 'no chat template'}",
        *found.notes,
        *_of_passes(passes, lm),
        *([] if again is None else [Untrained(untrained, is_whole=True).note(found.model)]),
        *of_ruler,
        *loaded.notes,
    ]
    outcomes = {} if loaded.code is None else dict(loaded.code.outcomes)
    if outcomes:
        made.notes.append("of the programs, " + ", ".join(f"{n} {what}" for what, n in sorted(outcomes.items())))
    made.about = {
        "model": found.name,
        "tasks": list(asking.names),
        "versions": results["versions"],
        "shots": results["n-shot"],
        "items": results["n-samples"],
        "limit": limit,
        "batch_size": batch_size,
        "new_tokens": new_tokens,
        "chat_template": template,
        "notes": made.notes,
        "code": outcomes,
        "packages": {package: version(package) for package in ("gatelab", "lm_eval", "torch", "transformers")},
        "max_tokens": lm.max_length,
    }
    return made


def _of_chat(tokens: Tokens) -> str:
    """What a reader is told of the template."""
    digest, _, start = tokens.chat_rule.partition(": ")
    return f"chat template {digest}, each worked example a turn of the user and one of the assistant: {start}"


def _of_passes(passes: Passes, lm: GatelabLM) -> list[str]:
    said = []
    if passes.max_tokens is None:
        said.append(
            f"the model does not say how many positions it has; {lm.max_length} were taken, as the harness does"
        )
    if not passes.heads_apart:
        said.append("all logits of a row are computed: its head cannot be run apart from its stack")
    if not passes.shares:
        said.append("every row is read whole: from a cache, with padding in front, the model gives other numbers")
    return said


@contextmanager
def _alone() -> Iterator[None]:
    """The harness's bootstrap starts no processes."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before
