"""Asking a model items of tasks: what it says, how sure it is, and what that is worth; by task, length and depth.

Notable: what is asked is a reader, logits at some positions of some tokens, so an oracle is asked like a model. An answer
of several tokens is the model's own all the way: from the first wrong one on it goes on from what it said itself.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..config.objective import Continuation, Objective
from ..models.encoder import Encoder
from ..models.encoder_decoder import EncoderDecoder
from ..models.model import Model
from ..record import Item, Row
from ..tasks import VOCAB_SIZE, Knobs, Task, TaskError, TaskItem, open_task
from ..tasks.errors import UNITS, Key, errors_of, means
from ..tasks.guesses import copies, guesses_of
from ..tasks.metrics import Verdict, choice, cited, copied_from_start, edit_similarity, overlap
from ..tasks.options import N_OPTIONS, chance_of, copied_choice, options_of
from ..tasks.text import TokenItem
from .next_token import NextToken
from .reach import reaching

# Tokens [B, T] and positions [B, A] to the logits [B, A, V] of what comes after each.
Reader = Callable[[Tensor, Tensor], Tensor]

# Bounds memory, not the result: tokens a forward pass.
_TOKENS = 2**15
LENGTHS = (1, 2, 4, 8)  # times the length of training


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to an item. `margin`: the least, over the answer's tokens, of the right one's log-probability less
    the best wrong one's, in nats, each after the right ones before it; not-a-number where a logit is. `verdict` is of the
    exact match: a tie or no number anywhere is wrong. `rights`: the same of each token, after the right ones before it."""

    item: TaskItem
    given: tuple[int, ...]
    log_p: float
    margin: float
    verdict: Verdict
    rights: tuple[bool, ...] = ()


def reader_of(model: Model, objective: Objective | None = None) -> Reader:
    """A decoder, an encoder of items whose answers are hidden (`hidden`), or an encoder-decoder, as a reader.

    The encoder of an encoder-decoder reads the beginning that `objective` gives it (None: half), and the decoder goes on from
    there; what is asked before that is asked of an encoder that reads up to it. Logits are computed in float32.

    Raises:
        ValueError: when it reads, tokens that are none of its ids, or more than it has positions for.
    """
    cut = Continuation() if objective is None else objective
    is_both = isinstance(model, EncoderDecoder)
    device, dtype = model.head.weight.device, torch.promote_types(model.head.weight.dtype, torch.float32)

    @torch.no_grad()
    def read(tokens_BT: Tensor, at_BA: Tensor) -> Tensor:
        config, T = model.config, tokens_BT.shape[1]
        longest = max(n for n in cut.lengths(T) if n is not None) if is_both else T
        if config.positions in ("rope", "learned") and longest > config.max_seq_len:
            raise ValueError(
                f"items of {T} tokens, and this model has positions for {config.max_seq_len}; ask shorter ones, or train "
                f"with model.max_seq_len={longest}"
            )
        if (highest := int(tokens_BT.max())) >= config.vocab_size:
            raise ValueError(
                f"token {highest} is no id of this model, whose vocabulary has {config.vocab_size}; ask a model that was "
                f"trained with data=tasks, or ask in text"
            )
        tokens_BT, at_BA = tokens_BT.to(device), at_BA.to(device)
        if is_both:
            x_BAD = _of_both(model, tokens_BT, at_BA, cut.lengths(T)[0])
        else:
            x_BAD = _at(model.hidden(tokens_BT), at_BA)
        # A few positions only: rounded to half precision, likely tokens would tie.
        return model.head(x_BAD.to(dtype)).float().cpu()

    return read


def _at(x_BTD: Tensor, at_BA: Tensor) -> Tensor:
    return x_BTD.gather(1, at_BA[:, :, None].expand(-1, -1, x_BTD.shape[-1]))


def _of_both(model: EncoderDecoder, tokens_BT: Tensor, at_BA: Tensor, n_read: int) -> Tensor:
    """What the head reads at every position, [B, A, D]; the encoder has read `n_read` tokens, or, where fewer stand up to the
    position, those."""
    x_BTD = model.hidden(tokens_BT[:, :n_read], tokens_BT[:, n_read - 1 :])
    x_BAD = _at(x_BTD, (at_BA - n_read + 1).clamp(min=0))
    for at in at_BA[at_BA < n_read - 1].unique().tolist():
        b, a = (at_BA == at).nonzero(as_tuple=True)
        rows, place = b.unique(return_inverse=True)
        x_BAD[b, a] = model.hidden(tokens_BT[rows, : at + 1], tokens_BT[rows, at : at + 1])[place, 0]
    return x_BAD


def hidden(item: TaskItem, mask_id: int = VOCAB_SIZE) -> TaskItem:
    """The item with a mask in the place of every token of the answer that it goes on with, for a model that sees both ways
    (the objective `answers`)."""
    said = {
        at + 1 for at, token in zip(item.asked, item.answer, strict=True) if item.tokens[at + 1 : at + 2] == (token,)
    }
    return replace(item, tokens=tuple(mask_id if i in said else t for i, t in enumerate(item.tokens)))


def ask(reader: Reader, task: Task, knobs: Knobs, n_items: int) -> list[Answer]:
    """Items 0 … n_items − 1, of a model that sees one way.

    Raises:
        TaskError: for the knobs. ValueError: as the reader does.
    """
    return ask_items(reader, [task.item(knobs, index) for index in range(n_items)])


def ask_items(reader: Reader, items: Sequence[TaskItem]) -> list[Answer]:
    """Items of one task and length; of hidden answers every token is said at once.

    Raises:
        ValueError: as the reader does.
    """
    n_items = len(items)
    at_once = max(1, _TOKENS // max((len(item.tokens) for item in items), default=1))
    return [a for i in range(0, n_items, at_once) for a in _ask(reader, items[i : i + at_once])]


def _ask(reader: Reader, items: list[TaskItem]) -> list[Answer]:
    tokens_BT, at_BA, right_BA = (
        torch.tensor([getattr(item, name) for item in items]) for name in ("tokens", "asked", "answer")
    )
    logits_BAV = reader(tokens_BT, at_BA)
    judged = [_judged(logits_AV, right_A) for logits_AV, right_A in zip(logits_BAV, right_BA, strict=True)]
    given_BA = logits_BAV.argmax(dim=-1)
    wrong = [i for i, (verdict, *_) in enumerate(judged) if not verdict.is_right and not verdict.is_nan]
    if wrong and at_BA.shape[1] > 1:
        given_BA[wrong] = _continued(reader, tokens_BT[wrong], at_BA[wrong], right_BA[wrong], given_BA[wrong])
    return [
        Answer(item, tuple(given_A), log_p, margin, verdict, rights)
        for item, given_A, (verdict, log_p, margin, rights) in zip(items, given_BA.tolist(), judged, strict=True)
    ]


def _judged(logits_AV: Tensor, right_A: Tensor) -> tuple[Verdict, float, float, tuple[bool, ...]]:
    """Of one answer: the exact match, the log-probability, the margin, and whether each token is right."""
    log_p_AV, right_A1 = logits_AV.double().log_softmax(dim=-1), right_A[:, None]
    right_p_A = log_p_AV.gather(1, right_A1)[:, 0]
    margin = (right_p_A - log_p_AV.scatter(1, right_A1, -math.inf).amax(dim=-1)).amin()
    best_A = logits_AV.amax(dim=-1)
    if not torch.isfinite(best_A).all() or logits_AV.isnan().any():
        return Verdict(False, 0.0, is_nan=True), math.nan, math.nan, (False,) * len(right_A)
    is_best_A = logits_AV.gather(1, right_A1)[:, 0] == best_A
    n_best_A = (logits_AV == best_A[:, None]).sum(dim=-1)
    is_tied = bool((n_best_A > 1).any())
    credit = float((is_best_A / n_best_A).prod())
    verdict = Verdict(bool(is_best_A.all()) and not is_tied, credit, is_tied)
    rights = tuple((is_best_A & (n_best_A == 1)).tolist())
    return verdict, float(right_p_A.sum()), float(margin), rights


def _continued(reader: Reader, tokens_BT: Tensor, at_BA: Tensor, right_BA: Tensor, given_BA: Tensor) -> Tensor:
    """Greedy answers, each token after the model's own before it, where the item goes on with the answer."""
    tokens_BT, given_BA = tokens_BT.clone(), given_BA.clone()
    rows, is_other_B = torch.arange(len(tokens_BT)), torch.zeros(len(tokens_BT), dtype=torch.bool)
    for i in range(1, at_BA.shape[1]):
        next_B = at_BA[:, i - 1] + 1
        goes_on_B = tokens_BT[rows, next_B] == right_BA[:, i - 1]
        is_other_B |= goes_on_B & (given_BA[:, i - 1] != right_BA[:, i - 1])
        tokens_BT[rows, next_B] = torch.where(goes_on_B, given_BA[:, i - 1], tokens_BT[rows, next_B])
        # What was said so far is what stood there, and always is in mqar: the answer that was given holds.
        if is_other_B.any():
            at_O1 = at_BA[is_other_B, i : i + 1]
            given_BA[is_other_B, i] = reader(tokens_BT[is_other_B], at_O1)[:, 0].argmax(dim=-1)
    return given_BA


def choices(reader: Reader, items: Sequence[TaskItem]) -> list[Verdict]:
    """Whether the answer is the likeliest of the item's options (`gatelab.tasks.options`), by the sum of log-probabilities.

    Items are of one task and length.
    """
    at_once = max(1, _TOKENS // max((N_OPTIONS * len(item.tokens) for item in items), default=1))
    return [v for i in range(0, len(items), at_once) for v in _choose(reader, items[i : i + at_once])]


def _choose(reader: Reader, items: Sequence[TaskItem]) -> list[Verdict]:
    options = [options_of(item) for item in items]
    said_NT = [_with_answer(item, option) for item, own in zip(items, options, strict=True) for option in own]
    at_NA = [item.asked for item, own in zip(items, options, strict=True) for _ in own]
    options_NA1 = torch.tensor([option for own in options for option in own])[:, :, None]
    logits_NAV = reader(torch.tensor(said_NT), torch.tensor(at_NA))
    # One by one, for in float64 all of them may be a gigabyte.
    log_p = (
        float(logits_AV.double().log_softmax(dim=-1).gather(1, option_A1).sum())
        for logits_AV, option_A1 in zip(logits_NAV, options_NA1, strict=True)
    )
    return [choice([next(log_p) for _ in own], 0) for own in options]


def _with_answer(item: TaskItem, option: tuple[int, ...]) -> list[int]:
    """The item's tokens, going on with another answer where it goes on with its own."""
    tokens = list(item.tokens)
    for i, at in enumerate(item.asked[:-1]):
        if tokens[at + 1] == item.answer[i]:
            tokens[at + 1] = option[i]
    return tokens


@torch.no_grad()
def ask_text(model: NextToken, item: TokenItem) -> tuple[Verdict, float, tuple[int, ...]]:
    """(exact match, margin, what is likeliest at each token of the answers) of an item in a model's own tokens.

    Each token is asked after the right ones before it, so the first wrong one is what the model would say, and the
    following what it would say had it been right.

    Raises:
        ValueError: an item that has a problem, which is said.
    """
    if item.problem is not None:
        raise ValueError(f"{item.task} {item.index}: {item.problem}")
    model.check(len(item.ids), f"{item.task} {item.index}")
    positions = [p - 1 for start, end in item.answers for p in range(start, end)]
    logits_AV = model.logits(model.states(list(item.ids)), torch.tensor(positions, device=model.device)).float().cpu()
    verdict, _, margin, _ = _judged(logits_AV, torch.tensor([item.ids[p + 1] for p in positions]))
    return verdict, margin, tuple(logits_AV.argmax(dim=-1).tolist())


def items_of(answers: Sequence[Answer], knobs: Knobs, *, run: str, step: int) -> list[Item]:
    """One record an answer; its score is the margin, its factors the length, the depth, what guessing scores, and why it is
    not counted where it is not."""
    return [
        Item(
            run=run,
            step=step,
            task=a.item.task,
            item=a.item.index,
            correct=a.verdict.is_right,
            score=a.margin,
            answer=" ".join(map(str, a.item.answer)),
            given=" ".join(map(str, a.given)),
            factors={
                "length": knobs.length,
                "depth": a.item.depth,
                "floor": a.item.floor,
                "log_p": a.log_p if math.isfinite(a.log_p) else str(a.log_p),
                "tied": a.verdict.is_tied,
                "nan": a.verdict.is_nan,
                "copied_from_start": copied_from_start(a.given, a.item.tokens),
                "evidence": [list(span) for span in a.item.evidence],
                "distractors": [list(span) for span in a.item.distractors],
                **a.item.factors,
            },
        )
        for a in answers
    ]


def scores_of(a: Answer, task: Task) -> dict[str, float]:
    """{metric: share} of one answer: all of it, and by parts where the task's answer has some."""
    out = {"exact_match": float(a.verdict.is_right)}
    match task.answer:
        case "set":
            share = overlap(a.given, a.item.answer)
        case "cite":
            is_right, share = cited(a.given, a.item.answer)
            out["answer_exact"] = float(is_right)
        case "each":
            return out | {"query_accuracy": float(np.mean(a.rights))}
        case _:
            return out
    what = "citation" if task.answer == "cite" else "answer"
    return out | {f"{what}_{name}": getattr(share, name) for name in ("precision", "recall", "f1")}


def rows_of(answers: Sequence[Answer], task: Task, knobs: Knobs, *, run: str, step: int) -> list[Row]:
    """What docs/metrics.md says of source `tasks`: means over the items of one task and length.

    Raises:
        ValueError: without answers.
    """
    if not answers:
        raise ValueError(f"{task.name}: no answers; ask at least one item")

    def row(metric: str, values: Sequence[float], unit: str = "share") -> Row:
        return Row(
            run,
            step,
            "tasks",
            metric,
            float(np.mean(values)),
            unit,
            task=task.name,
            length=knobs.length,
            depth=knobs.depth,
        )

    margins = [a.margin for a in answers if math.isfinite(a.margin)]
    scores = [scores_of(a, task) for a in answers]
    guesses = [guesses_of(task, a.item) for a in answers]
    rows = [
        *(row(metric, [s[metric] for s in scores]) for metric in scores[0]),
        *(
            row(f"{metric}_{end}", [g[metric][i] for g in guesses])
            for metric in guesses[0]
            for i, end in enumerate(("chance", "floor"))
        ),
        row("answer_floor", [a.item.floor for a in answers]),
        row("answer_chance", [chance_of(a.item) for a in answers]),
        row("answer_ties", [a.verdict.is_tied for a in answers]),
        row("answer_nan", [a.verdict.is_nan for a in answers]),
        row("edit_similarity", [edit_similarity(a.given, a.item.answer) for a in answers]),
        row("copied_from_start", [copied_from_start(a.given, a.item.tokens) for a in answers]),
    ]
    if margins:
        rows.append(row("answer_margin", margins, "nats"))
    errors = means([_errors(a) for a in answers if not a.verdict.is_nan])
    return rows + [replace(row(metric, [value], UNITS[metric]), bin=b) for (metric, b), value in errors.items()]


def loads_of(task: Task, knobs: Knobs) -> list[Knobs]:
    """The knobs at which a task is asked too, with other numbers of distractors: as many as have room."""
    out = []
    for n in task.loads:
        at = replace(knobs, distractors=n)
        try:
            task.item(at, 0)
        except TaskError:
            continue
        out.append(at)
    return out


def load_rows(answers: Sequence[Answer], task: Task, knobs: Knobs, *, run: str, step: int) -> list[Row]:
    """`query_accuracy` of items of so many pairs, chance and copying beside it, the number being the coordinate `bin`."""
    rows = rows_of(answers, task, knobs, run=run, step=step)
    return [replace(row, bin=1 + knobs.distractors) for row in rows if row.metric.startswith("query_accuracy")]


def _errors(a: Answer) -> dict[Key, float]:
    item = a.item
    others = {token for rival in item.rivals for token in rival} if item.task == "multikey" else ()
    return errors_of(item.task, a.given, item.answer, factors=item.factors, others=others, n_pieces=len(item.evidence))


def choice_rows(
    verdicts: Sequence[Verdict], items: Sequence[TaskItem], task: Task, knobs: Knobs, *, run: str, step: int
) -> list[Row]:
    """`choices` as rows: the score, ties by their share, beside that of chance."""
    values = {
        "choice": [v.credit for v in verdicts],
        "choice_chance": [1 / len(options_of(item)) for item in items],
        "choice_floor": [_copied(item) for item in items],
        "choice_ties": [v.is_tied for v in verdicts],
        "choice_nan": [v.is_nan for v in verdicts],
    }
    return [
        Row(
            run, step, "tasks", name, float(np.mean(v)), "share", task=task.name, length=knobs.length, depth=knobs.depth
        )
        for name, v in values.items()
    ]


def _copied(item: TaskItem) -> float:
    """What blind copying scores in the item's choice; of `absent` and `conflict` what one answer always does."""
    if not copies(item.task, item.floor):
        return item.floor
    return copied_choice(options_of(item), set(item.tokens[: item.asked[0] + 1]))


def at_lengths(
    model: Model, name: str, knobs: Knobs, n_items: int, *, run: str, step: int, times: Sequence[int] = LENGTHS
) -> tuple[list[Row], list[Item]]:
    """The task at `times` the length of `knobs`, which is that of training: rows and items. Rotary positions go on turning as
    trained.

    Raises:
        TaskError, ValueError: as `ask` does; learned positions that do not reach.
    """
    task = open_task(name)
    rows, items = [], []
    for factor in times:
        longer = Knobs(knobs.length * factor, knobs.depth, knobs.distractors, knobs.hardness, knobs.seed, knobs.split)
        asked = [task.item(longer, index) for index in range(n_items)]
        reader = reader_of(reaching(model, longer.length))
        answers = ask_items(reader, [hidden(item) for item in asked] if isinstance(model, Encoder) else asked)
        rows += rows_of(answers, task, longer, run=run, step=step)
        items += items_of(answers, longer, run=run, step=step)
    return rows, items
