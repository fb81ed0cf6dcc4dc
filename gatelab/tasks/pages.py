"""Many pages at once, in NumPy: what `page.py` defines, an item a row."""

import numpy as np

from .draws import DrawRows, key_of
from .page import first_cell, n_cells_of
from .task import Knobs, TaskBatch
from .vocabulary import BOS, FILL, N_FILL

Column = int | np.ndarray  # of the same token everywhere, (B,), or (B, N) with a token a piece


class Pages:
    """Items first … first + n − 1 being written."""

    def __init__(self, task: str, knobs: Knobs, first: int, n: int, *, tail: int):
        self.task, self.knobs, self.tail = task, knobs, tail
        self.draws = DrawRows(key_of(f"{task}/{knobs.split}", knobs.seed), first, n)
        self.tokens_BT = np.empty((n, knobs.length), np.int64)
        self.tokens_BT[:, 0] = BOS
        np.add(self.draws.many(knobs.length - 1, N_FILL), FILL, out=self.tokens_BT[:, 1:])
        self._flat = self.tokens_BT.reshape(-1)
        self._row_B1 = np.arange(n)[:, None] * knobs.length
        self.cursor = knobs.length - tail
        self.asked: list[int] = []
        self.answers: list[np.ndarray] = []
        self.width, self.n_cells = 0, 0

    @property
    def n(self) -> int:
        return len(self.tokens_BT)

    def places(self, width: int, n_evidence: int, n_others: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """`Page.places`: (B, n_evidence) and (B, n_others)."""
        n_cells = n_cells_of(self.task, self.knobs, self.tail, width, n_evidence + (n_others or 0))
        self.width, self.n_cells = width, n_cells
        n_others = n_cells - n_evidence if n_others is None else n_others
        if self.knobs.depth is None:
            cells_BN = self.draws.order(n_cells)
            evidence_BE = np.sort(cells_BN[:, :n_evidence], axis=1)
            others_BO = cells_BN[:, n_evidence : n_evidence + n_others]
        else:
            first = first_cell(self.knobs, n_cells, n_evidence)
            evidence_BE = np.broadcast_to(np.arange(first, first + n_evidence), (self.n, n_evidence))
            others_BO = self.draws.order(n_cells - n_evidence)[:, :n_others]
            others_BO = others_BO + n_evidence * (others_BO >= first)
        return 1 + width * evidence_BE, 1 + width * others_BO

    def put(self, starts_BN: np.ndarray, *columns: Column) -> None:
        """Write a piece at each start, column by column."""
        where_BN = self._row_B1 + starts_BN
        for i, column in enumerate(columns):
            self._flat[where_BN + i] = column

    def ask(self, *columns: Column) -> None:
        """Go on with a question."""
        for column in columns:
            self.tokens_BT[:, self.cursor] = column
            self.cursor += 1

    def answer(self, *columns: np.ndarray) -> None:
        """Go on with an answer; the last token of an item is not read."""
        for column in columns:
            self.asked.append(self.cursor - 1)
            self.answers.append(column)
            if self.cursor < self.tokens_BT.shape[1]:
                self.tokens_BT[:, self.cursor] = column
            self.cursor += 1

    def batch(
        self, evidence_BE: np.ndarray, distractors_BE: np.ndarray, *, is_there_B: np.ndarray | None = None
    ) -> TaskBatch:
        """The items as they are written now, of pieces as wide as a cell; `is_there_B` says in which of them the evidence is."""
        evidence_BE2 = self.spans(evidence_BE)
        depth_B = self._depth(evidence_BE)
        if is_there_B is not None:
            evidence_BE2 = evidence_BE2 * is_there_B[:, None, None]
            depth_B = np.where(is_there_B, depth_B, np.nan)
        asked_BA = np.broadcast_to(np.array(self.asked), (self.n, len(self.asked)))
        answer_BA = np.stack(self.answers, axis=1)
        return TaskBatch(self.tokens_BT, asked_BA, answer_BA, evidence_BE2, self.spans(distractors_BE), depth_B)

    def spans(self, starts_BE: np.ndarray) -> np.ndarray:
        """[start, end) of the cells that begin there, (B, E, 2)."""
        return np.stack([starts_BE, starts_BE + self.width], axis=-1)

    def _depth(self, starts_BE: np.ndarray) -> np.ndarray:
        e = starts_BE.shape[1]
        if not e or self.n_cells <= e:
            return np.full(self.n, np.nan)
        cells_B = ((starts_BE - 1) // self.width).sum(axis=1)
        return (cells_B - e * (e - 1) // 2) / (e * (self.n_cells - e))
