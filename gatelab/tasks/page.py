"""The page that an item is written on, in pure Python: BOS, noise, pieces in cells, then question and answer.

Notable: pieces lie in cells of one width, from position 1 on, so no two can overlap and every order of cells is
equally likely. `pages.py` is the same for many items at once.
"""

from typing import Any

from .draws import Draws, key_of
from .task import Knobs, Piece, Span, TaskError, TaskItem
from .vocabulary import BOS, FILL, N_FILL, N_MARKS

Tokens = int | tuple[int, ...] | list[int]


def n_cells_of(task: str, knobs: Knobs, tail: int, width: int, wanted: int) -> int:
    """How many cells of `width` tokens lie between BOS and the `tail` (question and answer) of an item.

    Raises:
        TaskError: when they are fewer than `wanted`.
    """
    n_cells = max(0, knobs.length - 1 - tail) // width
    if n_cells < wanted:
        lower = [k for k, v in (("distractors", knobs.distractors), ("hardness", knobs.hardness - 1)) if v]
        raise TaskError(
            f"{task}: length={knobs.length} has room for {n_cells} pieces of {width} tokens before a question of {tail}, "
            f"and {wanted} are to be there; take a length of at least {1 + tail + width * wanted}"
            + (f", or lower {' or '.join(lower)}" if lower else "")
        )
    return n_cells


def first_cell(knobs: Knobs, n_cells: int, n_evidence: int) -> int:
    """The first cell of evidence that lies side by side at `knobs.depth`."""
    return int(knobs.depth * (n_cells - n_evidence) + 0.5)


class Page:
    """An item being written; `tail` positions at its end are for the question and the answer."""

    def __init__(self, task: str, knobs: Knobs, index: int, *, tail: int):
        self.task, self.knobs, self.index, self.tail = task, knobs, index, tail
        self.draws = Draws(key_of(f"{task}/{knobs.split}", knobs.seed), index)
        self.tokens = [BOS, *(FILL + x for x in self.draws.many(knobs.length - 1, N_FILL))]
        self.cursor = knobs.length - tail
        self.pieces: list[Piece] = []
        self.asked: list[int] = []
        self.answers: list[int] = []
        self.width, self.n_cells, self.n_together = 0, 0, 1

    def places(self, width: int, n_evidence: int, n_others: int | None = None) -> tuple[list[int], list[int]]:
        """First positions of `n_evidence` pieces, in the order of the page, and of `n_others` (None: all the rest), in any."""
        n_cells = n_cells_of(self.task, self.knobs, self.tail, width, n_evidence + (n_others or 0))
        self.width, self.n_cells, self.n_together = width, n_cells, n_evidence
        n_others = n_cells - n_evidence if n_others is None else n_others
        if self.knobs.depth is None:
            cells = self.draws.order(n_cells)
            evidence, others = sorted(cells[:n_evidence]), cells[n_evidence : n_evidence + n_others]
        else:
            first = first_cell(self.knobs, n_cells, n_evidence)
            evidence = list(range(first, first + n_evidence))
            rest = self.draws.order(n_cells - n_evidence)[:n_others]
            others = [c + n_evidence if c >= first else c for c in rest]
        return [1 + width * c for c in evidence], [1 + width * c for c in others]

    def put(self, start: int, form: str, *parts: Tokens, role: str = "") -> int:
        """Write marks and fields from `start` on; the position after them. Text says the fields in the words of the form."""
        fields = [(p,) if isinstance(p, int) else tuple(p) for p in parts]
        tokens = [t for f in fields for t in f]
        self.tokens[start : start + len(tokens)] = tokens
        spoken = tuple(f for f in fields if f and f[0] >= N_MARKS)
        self.pieces.append(Piece(start, start + len(tokens), form, spoken, role))
        return start + len(tokens)

    def ask(self, form: str, *parts: Tokens) -> None:
        """Go on with a question."""
        self.cursor = self.put(self.cursor, form, *parts)

    def answer(self, *tokens: int) -> None:
        """Go on with an answer; the last token of an item is not read."""
        self.asked += range(self.cursor - 1, self.cursor - 1 + len(tokens))
        self.answers += tokens
        self.pieces.append(Piece(self.cursor, self.cursor + len(tokens), "", tuple((t,) for t in tokens), "answer"))
        room = len(self.tokens) - self.cursor
        self.tokens[self.cursor : self.cursor + len(tokens)] = tokens[:room]
        self.cursor += len(tokens)

    def item(
        self, *, floor: float, rivals: list[tuple[int, ...]] | None = None, factors: dict[str, Any] | None = None
    ) -> TaskItem:
        """The item as it is written now; rivals that are the answer itself are left out."""
        answer = tuple(self.answers)
        spans = {
            role: tuple((p.start, p.end) for p in self.pieces if p.role == role) for role in ("evidence", "distractor")
        }
        return TaskItem(
            task=self.task,
            index=self.index,
            tokens=tuple(self.tokens),
            asked=tuple(self.asked),
            answer=answer,
            evidence=spans["evidence"],
            distractors=spans["distractor"],
            depth=self._depth(spans["evidence"]),
            floor=floor,
            rivals=tuple(dict.fromkeys(r for r in rivals or [] if r != answer)),
            pieces=tuple(sorted(self.pieces, key=lambda p: p.start)),
            factors=factors or {},
            n_together=self.n_together,
        )

    def _depth(self, evidence: tuple[Span, ...]) -> float | None:
        """From 0 where it is as early as its number allows, to 1 where it is as late."""
        e = len(evidence)
        if not e or self.n_cells <= e:
            return None
        cells = sum((start - 1) // self.width for start, _ in evidence)
        return (cells - e * (e - 1) // 2) / (e * (self.n_cells - e))
