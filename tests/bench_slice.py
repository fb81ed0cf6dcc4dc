"""A few items of four benchmarks, made up and in the harness's own format (`tests/fixtures/bench`), as requests of its tasks."""

import logging
import math
from pathlib import Path

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from gatelab.evals.harness.language_model import GatelabLM
from gatelab.evals.harness.passes import Passes
from gatelab.evals.harness.tasks import Asking, find, load
from gatelab.evals.harness.tokens import Tokens
from gatelab.models.external import External

BENCH = Path(__file__).parent / "fixtures" / "bench"
CHOSEN, WRITTEN = ("hellaswag", "arc_easy", "lambada_openai"), "gsm8k"

Requests = dict[str, list[Instance]]  # by task


def slice_of(place: Path, *, limit: int, shots: int, new_tokens: int) -> Requests:
    """The first items of each, gsm8k's behind `shots` worked ones and with its own stops; `place` is an empty folder."""
    found: Requests = {}
    for names, n_shots in ((CHOSEN, None), ((WRITTEN,), shots)):
        asking = Asking(names, BENCH, shots=n_shots)
        draft = place / names[0]
        draft.mkdir()
        for name, task in load(asking, find(asking, print, draft=draft, tokenizer=place)).tasks.items():
            if name == WRITTEN:
                given = dict(task.get_config("generation_kwargs")) | {"max_gen_toks": new_tokens}
                task.set_config("generation_kwargs", given)
            task.build_all_requests(limit=limit)
            found[name] = list(task.instances)
    return found


def of_hflm(found: External, asked: Requests, batch_size: int) -> tuple[list[tuple[float, bool]], list[str]]:
    """What the harness's own model says: of each choice its score, and what is written."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm = HFLM(pretrained=found.model, tokenizer=found.tokenizer, batch_size=batch_size)
    chosen = [request for name in CHOSEN for request in asked[name]]
    return lm.loglikelihood(chosen, disable_tqdm=True), lm.generate_until(asked[WRITTEN], disable_tqdm=True)


def agrees(
    found: External,
    passes: Passes,
    asked: Requests,
    expected: tuple[list[tuple[float, bool]], list[str]],
    *,
    batch_size: int,
    off: float,
) -> None:
    """Every choice of every item has the score of HFLM up to `off` nats, and every text is the same."""
    lm = GatelabLM(passes, Tokens(found.tokenizer, passes.n_ids), batch_size=batch_size)
    scored = lm.loglikelihood([request for name in CHOSEN for request in asked[name]])
    for (log_p, is_greedy), (log_p_theirs, is_greedy_theirs) in zip(scored, expected[0], strict=True):
        assert math.isclose(log_p, log_p_theirs, abs_tol=off) and is_greedy == is_greedy_theirs
    assert lm.generate_until(asked[WRITTEN]) == expected[1]
    assert not lm.remarks or all(remark.n_cut == 0 for remark in lm.remarks.values())
