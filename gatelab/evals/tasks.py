"""Asking a model items of tasks: what it says, and how sure it is (answers.py says what that is worth).

Notable: what is asked is a reader, logits at some positions of some tokens, so an oracle is asked like a model. An answer
of several tokens is the model's own all the way: from the first wrong one on it goes on from what it said itself.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..config.objective import Continuation, Objective
from ..models.encoder import Encoder
from ..models.encoder_decoder import EncoderDecoder
from ..models.model import Model
from ..record import Item, Row
from ..tasks import VOCAB_SIZE, Knobs, Task, TaskError, TaskItem, open_task
from ..tasks.metrics import Verdict, choice
from ..tasks.options import N_OPTIONS, options_of
from ..tasks.text import TokenItem
from .answers import Answer, items_of, rows_of
from .next_token import NextToken
from .reach import reaching

# Tokens [B, T] and positions [B, A] to the logits [B, A, V] of what comes after each.
Reader = Callable[[Tensor, Tensor], Tensor]

# Bounds memory, not the result: tokens a forward pass.
_TOKENS = 2**15
LENGTHS = (1, 2, 4, 8)  # times the length of training


def reader_of(model: Model, objective: Objective | None = None) -> Reader:
    """A decoder, an encoder of items whose answers are hidden (`hidden`), or an encoder-decoder, as a reader.

    The encoder of an encoder-decoder reads the beginning that `objective` gives it (None: half), and the decoder goes on from
    there; what is asked before that is asked of an encoder that reads up to it. Logits are computed in float32.

    Raises:
        ValueError: what is no model of Gatelab; when it reads, tokens that are none of its ids, or more than it has positions for.
    """
    if not isinstance(model, Model):
        raise ValueError(
            f"model is a {type(model).__name__}: expected a model of Gatelab, as build_model(config) makes it"
        )
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
        TaskError: for the knobs, or no item. ValueError: as the reader does.
    """
    if n_items < 1:
        raise TaskError(f"n_items={n_items}: ask at least one")
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
