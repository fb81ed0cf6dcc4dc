"""Prompts of tasks put to a language model: what it writes greedily, and which option it finds likeliest.

Notable: an item is made to fit the asked length in the model's own tokens, the answer's among them, and nothing is ever cut. One
that does not fit, or whose answer the tokenizer joins to what stands before it, is refused and counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, nan

from ..models.generate import Sampling
from ..tasks import TaskError
from ..tasks.guesses import HALF, floor_with_evidence
from ..tasks.metrics import Verdict, choice
from ..tasks.prompt import ROOM, Prompt, PromptTask, Setting, fitted_prompt, in_turn
from .harness.beginnings import batches
from .harness.passes import Passes
from .harness.scoring import Scored, score
from .harness.stops import Stops
from .harness.tokens import Tokens

Progress = Callable[[str, int, int], None]


@dataclass
class Said:
    """What became of one item. `problem`: why it was not asked; nothing else is known of it then.

    written: by answer. value: the task's score, 0 where a logit was no number or the answer's place shared. choice, margin: of its
    options, ln p(right) less that of the best other, in nats; not-a-number without options, or where one has no number.
    """

    index: int
    prompt: Prompt | None = None
    problem: str | None = None
    n_tokens: int = 0
    written: list[str] = field(default_factory=list)
    value: float = 0.0
    choice: Verdict | None = None
    margin: float = nan
    is_tied: bool = False
    is_nan: bool = False

    @property
    def is_sure(self) -> bool:
        """Whether what was written was neither tied for the best nor no number."""
        return not self.is_nan and not self.is_tied

    def scores(self, metric: str) -> dict[str, float]:
        """The task's score, named `metric`, and the choice, where there are options."""
        return {metric: self.value} | ({} if self.choice is None else {"choice": self.choice.credit})


def ask_prompts(
    passes: Passes,
    tokens: Tokens,
    task: PromptTask,
    setting: Setting,
    n_items: int,
    *,
    batch_size: int,
    new_tokens: int | None = None,
    chat: bool = False,
    progress: Progress = lambda what, n, total: None,
) -> list[Said]:
    """Items 0 … n_items − 1; at a depth those of them alone that have evidence.

    Args:
        batch_size: rows a pass.
        new_tokens: that an answer may have, in the place of the task's own number; not of answers that are compared as a whole.
        chat: the prompt is a turn of the user, in the tokenizer's chat template, and the answers begin the assistant's.

    Raises:
        TaskError: a setting that no item can have.
        ValueError: a length beyond the model's positions.
    """
    task.check(setting)
    check_length(task.name, setting.length, passes.max_tokens)
    if chat:
        task = in_chat(task, tokens)
    made = []
    for index in range(n_items):
        made.append(_made(tokens, task, setting, index, new_tokens))
        progress(f"making {task.name}", len(made), n_items)
    if setting.depth is not None and task.name in HALF:
        made = [_placed(said) for said in made if said.prompt is None or said.prompt.evidence]
    _answer(passes, tokens, task, made, batch_size, progress)
    return made


def _placed(said: Said) -> Said:
    """One whose evidence is there, beside what copying scores of those."""
    if (prompt := said.prompt) is not None:
        floor = floor_with_evidence(prompt.task, prompt.floor, prompt.evidence + prompt.distractors)
        said.prompt = replace(prompt, floor=floor)
    return said


def asked_again(
    passes: Passes,
    tokens: Tokens,
    task: PromptTask,
    said: Sequence[Said],
    *,
    batch_size: int,
    writes: bool,
    progress: Progress = lambda what, n, total: None,
) -> list[Said]:
    """The same prompts put to another model with the same tokenizer; without `writes` only its choices are asked."""
    again = [Said(s.index, s.prompt, n_tokens=s.n_tokens) for s in said if s.prompt is not None]
    again = [s for s in again if writes or s.prompt.options]
    _answer(
        passes, tokens, task, again, batch_size, lambda what, n, total: progress(f"{what}, untrained", n, total), writes
    )
    return again


def _answer(
    passes: Passes,
    tokens: Tokens,
    task: PromptTask,
    made: Sequence[Said],
    batch_size: int,
    progress: Progress,
    writes: bool = True,
) -> None:
    asked = [said for said in made if said.prompt is not None]
    if asked and writes:
        _write(passes, tokens, task, asked, batch_size, progress)
    if asked:
        _choose(passes, tokens, [s for s in asked if s.prompt.options], batch_size, progress)
    for said in asked if writes else ():
        said.value = task.judge(said.prompt, tuple(said.written)) if said.is_sure else 0.0


def check_length(name: str, length: int, max_tokens: int | None) -> None:
    """Refuse a length beyond the positions of a model (None: not said).

    Raises:
        ValueError: naming both.
    """
    if max_tokens is not None and length > max_tokens:
        raise ValueError(
            f"{name}: --lengths {length}, and this model has positions for {max_tokens} tokens; ask for at most as many"
        )


def in_chat(task: PromptTask, tokens: Tokens) -> PromptTask:
    """The task, its prompts being turns of the user.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    template = tokens.chat_template

    def write(text: str) -> str:
        turns = [{"role": "user", "content": text}]
        return tokens.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, chat_template=template
        )

    return replace(task, make=lambda setting, index, size: in_turn(task.make(setting, index, size), write))


def _made(tokens: Tokens, task: PromptTask, setting: Setting, index: int, new_tokens: int | None) -> Said:
    def encode(text: str) -> list[int]:
        return tokens.encode([text])[0]

    def budgeted(setting: Setting, index: int, size: int) -> Prompt:
        prompt = task.make(setting, index, size)
        return prompt if prompt.n_new is None or new_tokens is None else replace(prompt, n_new=new_tokens)

    try:
        prompt = fitted_prompt(replace(task, make=budgeted), setting, index, lambda text: len(encode(text)))
    except TaskError as error:
        return Said(index, problem=str(error))
    ids = encode(prompt.whole)
    for number, answer in enumerate(prompt.answers):
        before = prompt.read(number)
        start = encode(before)
        if encode(before + answer)[: len(start)] != start:
            return Said(index, problem=f"{task.name} {index}: the tokenizer joins {answer!r} to what stands before it")
    if task.guesses is not None:
        chance, copying = task.guesses(setting, prompt)
        prompt = replace(prompt, chance=chance, floor=copying)
    return Said(index, prompt, n_tokens=len(ids))


def _write(
    passes: Passes, tokens: Tokens, task: PromptTask, asked: list[Said], batch_size: int, progress: Progress
) -> None:
    """What the model writes in the place of each answer, the right ones standing before it."""
    jobs: dict[int, list[Job]] = {}
    for said in asked:
        said.written = [""] * len(said.prompt.answers)
        for number, answer in enumerate(said.prompt.answers):
            before = said.prompt.read(number)
            ids, with_answer = tokens.encode([before, before + answer])
            n_new = said.prompt.n_new or len(with_answer) - len(ids) + ROOM
            jobs.setdefault(n_new, []).append((ids, said, number))
    stops = Stops(tokens, passes, task.stops)
    n_done, n_all = 0, sum(map(len, jobs.values()))
    for n_new, of_one in sorted(jobs.items(), reverse=True):
        prompts = [ids for ids, _, _ in of_one]
        for batch in batches(passes, prompts, batch_size=batch_size, n_new=n_new):
            mine = [prompts[i] for i in batch.numbers]
            found = passes.write(
                mine, n_new, Sampling(temperature=0.0), stops.ids, stops.is_done, beginning=batch.beginning
            )
            for i, text in zip(batch.numbers, found, strict=True):
                _, said, number = of_one[i]
                said.written[number] = stops.text(text.ids) if text.is_finite else ""
                said.is_nan |= not text.is_finite
            n_done += len(mine)
            progress(f"writing {task.name}", n_done, n_all)


Job = tuple[list[int], Said, int]  # a prompt, and whose answer of which number is to be written


def _choose(passes: Passes, tokens: Tokens, asked: list[Said], batch_size: int, progress: Progress) -> None:
    """The log-probability of each option, each of its answers after its own before."""
    pairs, owners = [], []
    for said in asked:
        for n_option, option in enumerate(said.prompt.options):
            for number, answer in enumerate(option):
                pairs.append((said.prompt.read(number, option), answer))
                owners.append((said, n_option))
    found = tokens.pairs(pairs)
    n_done = 0

    def done(n: int) -> None:
        nonlocal n_done
        n_done += n
        progress("scoring options", n_done, len(pairs))

    scored = score(passes, [(p.context, p.continuation) for p in found], batch_size=batch_size, done=done)
    parts: dict[tuple[int, int], list[Scored]] = {}
    for (said, n_option), one in zip(owners, scored, strict=True):
        parts.setdefault((id(said), n_option), []).append(one)
    for said in asked:
        mine = [parts[id(said), n] for n in range(len(said.prompt.options))]
        log_p = [sum(one.log_p for one in option) for option in mine]
        said.choice = choice(log_p, 0)
        right, others = log_p[0], log_p[1:]
        said.margin = right - max(others) if all(map(isfinite, log_p)) else nan
        # What is written takes the first of tied tokens, which is not to have known the right one.
        said.is_tied = any(one.is_tied for one in mine[0])
