"""What is timed, held to the numeric contract (`ops.contract`) at the shape that it is timed at.

Notable: a reference in float64 makes whole matrices, so of long sequences it is asked for some queries alone: those at the end
and others spread evenly. With an upstream gradient at these alone, everything that it says of them is exact: the output, the
gradients of their queries and logits, and those of all keys and values. With all queries, output and gradients are compared with
those of the first candidate of the same gate that held: of two that hold each may err by what the contract allows.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..config.gate import GateSpec
from ..ops.contract import Verdict, check
from ..ops.gated_attention import gated_attention
from .candidates import Call, Candidate
from .plan import OpsPlan
from .room import no_room
from .seen import Seen
from .slices import Arguments, on_slices
from .timing import OVER, Budget, why_not

_LAST, _SPREAD = 64, 256  # queries of a sequence: at its end, and about so many of the others
_MATRICES = 4  # of float64 that the reference and its backward pass hold at once
_QUERIES = ("q_BTHK", "gate_logits_BTHK", "grad_BTHK")  # what has a row a query


def held(call: Call, reference: Call, arguments: Arguments, budget: Budget) -> str:
    """`holds`, `FAIL` with the worst tensor, or why it could not be held to the contract."""
    if not budget.left:
        return OVER
    try:
        return said(check(call, reference, arguments))
    except Exception as error:
        return why_not(error)


def said(verdicts: Sequence[Verdict]) -> str:
    """`holds`, or `FAIL` with the worst tensor."""
    broken = [v for v in verdicts if not v.holds]
    if not broken:
        return "holds"
    worst = max(broken, key=lambda v: v.error / v.allowed)
    return f"FAIL {worst.tensor}: error {worst.error:.2g}, allowed {worst.allowed:.2g}"


def queries(length: int) -> list[int]:
    """Positions that are held to the reference: all of a short sequence."""
    # An odd stride, so that they lie at all places of a tile.
    return sorted({*range(0, length, length // _SPREAD | 1), *range(max(0, length - _LAST), length)})


class HeldAttention:
    """Candidates of one gate, or of none, on what they are timed on."""

    def __init__(self, plan: OpsPlan, spec: GateSpec | None, arguments: Arguments, budget: Budget):
        self._plan, self._spec, self._arguments, self._budget = plan, spec, arguments, budget
        self._seen = Seen.of(plan)
        self._first: tuple[str, dict[str, Tensor]] | None = None

    def verdict(self, candidate: Candidate) -> str:
        """As `held`; the first that holds is whom later ones are compared with."""
        T = self._plan.length
        rows = queries(T)
        n_bytes = 8 * _MATRICES * self._plan.tokens * len(rows) * self._plan.heads
        if why := no_room(n_bytes, self._plan.device):
            return f"{why} for the contract"
        if not self._budget.left:
            return OVER
        rows_R = torch.tensor(rows, device=self._plan.device)
        given = self._arguments | {
            name: _leaf(self._arguments[name][:, rows_R]) for name in _QUERIES if name in self._arguments
        }
        try:
            verdicts = check(partial(self._among_all, candidate.call, rows_R), partial(self._alone, rows_R), given)
            verdict = said(verdicts)
            return verdict if verdict != "holds" else self._compared(candidate, verdicts)
        except Exception as error:
            return why_not(error)

    def _among_all(self, call: Call, rows_R: Tensor, **given: Tensor) -> Tensor:
        """The rows' output by a candidate, which is given all rows."""
        whole = {
            name: self._arguments[name].detach().index_copy(1, rows_R, t) if name in _QUERIES else t
            for name, t in given.items()
        }
        return on_slices(call, **whole)[:, rows_R]

    def _alone(self, rows_R: Tensor, **given: Tensor) -> Tensor:
        """The rows' output by the specification."""
        seen_RS = self._seen.among(rows_R[:, None], torch.arange(self._plan.length, device=rows_R.device))
        return gated_attention(**given, gate=self._spec, is_causal=False, mask_BTS=seen_RS[None], impl="reference")

    def _compared(self, candidate: Candidate, verdicts: list[Verdict]) -> str:
        """All rows with those of the first candidate, which is remembered where there is room."""
        found = _outputs(candidate.call, self._arguments)
        for name, t in found.items():
            if not t.isfinite().all():
                return f"FAIL {name}: not finite"
        if self._first is None:
            n_bytes = sum(t.numel() * t.element_size() for t in found.values())
            self._first = candidate.name, {} if no_room(n_bytes, self._plan.device) else found
            return "holds"
        name, first = self._first
        allowed = {v.tensor: 2 * v.allowed for v in verdicts}
        for tensor, wanted in first.items():
            size = _norm(wanted) or _norm(self._arguments["grad_BTHK"])
            apart = _norm(found[tensor] - wanted) / size
            if not apart <= allowed[tensor]:
                return f"FAIL {tensor}: {apart:.2g} from {name}'s, allowed {allowed[tensor]:.2g}"
        return "holds"


def _outputs(call: Call, arguments: Arguments) -> dict[str, Tensor]:
    """Output and gradients of what is timed, by the names that verdicts have."""
    inputs = {name: t for name, t in arguments.items() if name != "grad_BTHK"}
    z_BTHK = call(**inputs)
    gradients = torch.autograd.grad(z_BTHK, list(inputs.values()), arguments["grad_BTHK"])
    return {"output": z_BTHK.detach(), **{f"d {name}": g for name, g in zip(inputs, gradients, strict=True)}}


def _leaf(t: Tensor) -> Tensor:
    return t.detach().requires_grad_(t.requires_grad)


def _norm(t: Tensor) -> float:
    return torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)).item()
