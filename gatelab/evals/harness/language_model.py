"""The harness's language model over `Passes`: log-likelihoods, rolling ones, and what is written until a stop string.

Notable: scores are those of the harness's own model for transformers, HFLM, down to its truncation from the left; but what was
cut, split otherwise, tied or not finite is remarked of each item, and none of it counts as correct.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ...config import nearest
from ...models.generate import Sampling
from .beginnings import batches
from .passes import Passes
from .scoring import NOTHING, Scored, score
from .stops import Stops
from .tokens import Tokens

# What the harness takes for a model or a task that does not say.
MAX_TOKENS, NEW_TOKENS = 2048, 256
_GENERATION = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k")


@dataclass
class Remark:
    """What a reader of an item's score should know: tokens cut from the left of its context, and whether its first tokens
    were among them; whether its context is tokenized otherwise alone than with its answer; whether there is no score (an answer
    without tokens of its own, or with more than there are positions); logits that were not finite; a largest logit shared."""

    n_cut: int = 0
    lost_beginning: bool = False
    splits_otherwise: bool = False
    has_no_score: bool = False
    is_not_finite: bool = False
    is_tied: bool = False


class GatelabLM(TemplateLM):
    """A model for `lm_eval.evaluate`. `remarks`: by (task, number of the document)."""

    def __init__(
        self,
        passes: Passes,
        tokens: Tokens,
        *,
        batch_size: int,
        new_tokens: int | None = None,
        progress: Callable[[str, int, int], None] = lambda what, n, total: None,
    ):
        super().__init__()
        self.passes, self.tokens, self.batch_size, self.new_tokens = passes, tokens, batch_size, new_tokens
        self.tokenizer = tokens.tokenizer
        self.progress = progress
        self.remarks: dict[tuple[str | None, int | None], Remark] = {}

    @property
    def max_length(self) -> int:
        return self.passes.max_tokens or MAX_TOKENS

    @property
    def eot_token_id(self) -> int:
        return self.tokens.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        return self.tokens.first

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the tokenizer's own template writes it, without a system's turn where it allows none."""
        from jinja2 import TemplateError

        def said(turns: list[dict[str, str]]) -> str:
            return self.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        try:
            return said(chat_history)
        except TemplateError:
            return said([turn for turn in chat_history if turn["role"] != "system"])

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokens.tokenizer.name_or_path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_given: Any) -> list[int]:
        return self.tokens.encode([string], begins=add_special_tokens is not False)[0]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy decoding would write it) of each request's (context, continuation)."""
        pairs = self.tokens.pairs([request.args for request in requests])
        for request, pair in zip(requests, pairs, strict=True):
            if not pair.is_split:
                self._remark(request).splits_otherwise = True
        return self._answers(requests, [(pair.context, pair.continuation) for pair in pairs])

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_given: Any
    ) -> list[tuple[float, bool]]:
        scored = score(self.passes, [(c, e) for _, c, e in requests], batch_size=self.batch_size)
        return [(s.log_p, s.is_greedy) for s in scored]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability in nats of each request's text, in windows that share no target; the harness's own windows."""
        owners, windows = [], []
        for request in requests:
            ids = self.tokens.window(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                owners.append(request)
                windows.append(make_disjoint_window(window))
        sums = dict.fromkeys(map(id, requests), 0.0)
        for owner, (log_p, _) in zip(owners, self._answers(owners, windows), strict=True):
            sums[id(owner)] += log_p
        return [sums[id(request)] for request in requests]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each request's context, up to the first stop string; nothing where its logits were not
        finite.

        Raises:
            ValueError: a setting of generation that is not known, more new tokens than there are positions.
        """
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        written, n_done = [""] * len(requests), 0
        for numbers in groups.values():
            given = self._generation(requests[numbers[0]])
            prompts = self._prompts([requests[n] for n in numbers], given["max_gen_toks"])
            for batch in batches(self.passes, prompts, batch_size=self.batch_size, n_new=given["max_gen_toks"]):
                mine = [numbers[i] for i in batch.numbers]
                self._write(requests, mine, [prompts[i] for i in batch.numbers], given, batch.beginning, written)
                n_done += len(mine)
                self.progress("writing", n_done, len(requests))
        return written

    def _answers(self, requests: list[Instance], asked: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """The scores of tokens, each remarked upon."""
        most, fitting, places = self.max_length, [], []
        for place, (request, (context, continuation)) in enumerate(zip(requests, asked, strict=True)):
            if not 0 < len(continuation) <= most:
                self._remark(request).has_no_score = True
                continue
            n_cut = max(0, len(context) + len(continuation) - most - 1)
            self._remark_cut(request, n_cut)
            fitting.append((context[n_cut:], continuation))
            places.append(place)
        scored: list[Scored] = [NOTHING] * len(requests)
        n_done = 0

        def done(n: int) -> None:
            nonlocal n_done
            n_done += n
            self.progress("scoring", n_done, len(fitting))

        for place, found in zip(
            places, score(self.passes, fitting, batch_size=self.batch_size, done=done), strict=True
        ):
            scored[place] = found
            if not found.is_finite:
                self._remark(requests[place]).is_not_finite = True
            if found.is_tied:
                self._remark(requests[place]).is_tied = True
        return [(s.log_p, s.is_greedy) for s in scored]

    def _generation(self, request: Instance) -> dict[str, Any]:
        """A request's settings of generation, as the harness reads them."""
        given = dict(normalize_gen_kwargs(request.args[1], NEW_TOKENS))
        unknown = [name for name in given if name not in _GENERATION]
        if unknown:
            raise ValueError(
                f"{request.task_name}: its generation_kwargs have {unknown[0]}={given[unknown[0]]!r}; known are "
                f"{', '.join(_GENERATION)}{nearest(unknown[0], list(_GENERATION))}"
            )
        if self.new_tokens is not None:
            given["max_gen_toks"] = self.new_tokens
        if given["max_gen_toks"] >= self.max_length:
            raise ValueError(
                f"{request.task_name}: asks for {given['max_gen_toks']} new tokens, and the model has positions for "
                f"{self.max_length}, the prompt's among them; lower --new-tokens"
            )
        return given

    def _prompts(self, requests: list[Instance], n_new: int) -> list[list[int]]:
        """Contexts as ids, cut from the left to what leaves room for new tokens."""
        prompts = []
        for request, ids in zip(requests, self.tokens.encode(r.args[0] for r in requests), strict=True):
            ids = ids or [self.tokens.first]
            n_cut = max(0, len(ids) - (self.max_length - n_new))
            self._remark_cut(request, n_cut)
            prompts.append(ids[n_cut:])
        return prompts

    def _write(
        self,
        requests: list[Instance],
        numbers: list[int],
        prompts: list[list[int]],
        given: dict[str, Any],
        beginning: Any,
        written: list[str],
    ) -> None:
        sampling = Sampling(
            temperature=given.get("temperature", 0.0) if given.get("do_sample") else 0.0,
            top_k=given.get("top_k"),
            top_p=given.get("top_p", 1.0),
            seed=numbers[0],
        )
        stops = Stops(self.tokens, self.passes, given.get("until") or [])
        found = self.passes.write(
            prompts, given["max_gen_toks"], sampling, stops.ids, stops.is_done, beginning=beginning
        )
        for number, text in zip(numbers, found, strict=True):
            if text.is_finite:
                written[number] = stops.text(text.ids)
            else:
                self._remark(requests[number]).is_not_finite = True

    def _remark(self, request: Instance) -> Remark:
        return self.remarks.setdefault((request.task_name, request.doc_id), Remark())

    def _remark_cut(self, request: Instance, n_cut: int) -> None:
        if n_cut:
            remark = self._remark(request)
            remark.n_cut = max(remark.n_cut, n_cut)
            remark.lost_beginning = bool(self.tokens.begins)
