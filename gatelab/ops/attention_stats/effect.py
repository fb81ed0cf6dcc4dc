"""Statistics of what the weights fetch, and of the gates: value norms, gate scores, what of the sink reaches the output."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ...config.gate import GateSpec
from ..gate_apply import apply_gate, gate_scores
from .block import Block
from .statistic import Statistic, joined

N_BINS = 50
# A score below is shut, above open.
SHUT, OPEN = 0.1, 0.9


class ValueNorms(Statistic):
    """`norm_BSG`: ‖v_j‖ of every key, a key/value head."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._n_keys = 0

    def add(self, block: Block) -> None:
        start = block.stretch.start_key
        new = slice(self._n_keys - start, block.n_keys)
        if new.start < new.stop:
            v_BSGK = block.stretch.v_BSGK[:, new]
            self._parts.append(torch.linalg.vector_norm(v_BSGK, dim=-1, dtype=torch.float32))
            self._n_keys = start + block.n_keys

    norm_BSG = property(lambda self: joined(self._parts, dim=1))


@dataclass
class SiteScores:
    """Sums over the scores of one gate, float64: by head over tokens and channels, and of a head's mean by token.

    `n`: how many scores a head has. `histogram_BN` counts, over heads too, scores in 50 equal bins over [0, 1] and, in the
    last place, those outside. `mean_BTH`, and `mean_size_BTH` of absolute scores, are over a head's channels.
    """

    n: int
    sum_BH: Tensor
    size_BH: Tensor
    square_BH: Tensor
    shut_BH: Tensor
    open_BH: Tensor
    histogram_BN: Tensor
    means: list[Tensor]
    mean_sizes: list[Tensor]

    mean_BTH = property(lambda self: joined(self.means, dim=1))
    mean_size_BTH = property(lambda self: joined(self.mean_sizes, dim=1))

    def __add__(self, other: "SiteScores") -> "SiteScores":
        # Numbers and tensors are summed, lists joined.
        return SiteScores(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Scores(Statistic):
    """`sites`: the scores of each gate of the layer, after the activation (and after averaging, when shared). Those of a
    constant gate are the same at every token and count once."""

    def __init__(self) -> None:
        self.sites: dict[str, SiteScores] = {}

    def add(self, block: Block) -> None:
        for site, (spec, logits_BTHK) in block.gates.items():
            if not spec.has_projection and site in self.sites:
                continue
            scores = _summed(gate_scores(logits_BTHK, spec).float())
            self.sites[site] = self.sites[site] + scores if site in self.sites else scores


def _summed(scores_BTHK: Tensor) -> SiteScores:
    flat_BHN = scores_BTHK.transpose(1, 2).flatten(2)
    size_BHN = flat_BHN.abs()
    index_BN = (scores_BTHK.flatten(1) * N_BINS).floor()
    # Values outside of [0, 1], and those that are no numbers, go to the last place.
    is_in_BN = (scores_BTHK.flatten(1) >= 0) & (scores_BTHK.flatten(1) <= 1)
    index_BN = torch.where(is_in_BN, index_BN.clamp(max=N_BINS - 1), N_BINS).long()
    histogram_BN = torch.zeros(len(index_BN), N_BINS + 1, dtype=torch.float64, device=flat_BHN.device)
    histogram_BN.scatter_add_(1, index_BN, torch.ones_like(index_BN, dtype=torch.float64))
    return SiteScores(
        n=flat_BHN.shape[2],
        sum_BH=flat_BHN.sum(dim=2, dtype=torch.float64),
        size_BH=size_BHN.sum(dim=2, dtype=torch.float64),
        square_BH=size_BHN.double().square_().sum(dim=2),
        shut_BH=(flat_BHN < SHUT).sum(dim=2).double(),
        open_BH=(flat_BHN > OPEN).sum(dim=2).double(),
        histogram_BN=histogram_BN,
        means=[scores_BTHK.mean(dim=3)],
        mean_sizes=[scores_BTHK.abs().mean(dim=3)],
    )


class Effect(Statistic):
    """What the first key writes into a head's output y, and what the gate at the output lets through, by query.

    `write_BHT`: ‖P(i, first) v_first‖ / ‖y_i‖, and `gated_write_BHT` the same with the gate's scores on the first key's
    share alone; not-a-number where y is 0, or of a normaliser that is no softmax. `openness_BHT`: ⟨y′, y⟩ / ⟨y, y⟩ with y′
    the gated output, of a headwise gate the score itself. What cannot be told is None: without values, without a gate,
    behind an output map, of a gate that reads the log-sum-exp.
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {"write": [], "gated_write": [], "openness": []}

    def add(self, block: Block) -> None:
        stretch = block.stretch
        spec, logits_BTHK = block.gates.get("sdpa", (None, None))
        if spec is not None and (spec.source == "lse" or (stretch.is_mapped and _needs_output(spec))):
            spec = None
        if stretch.v_BSGK is not None and stretch.normaliser.is_softmax:
            norm_BTH, mass_BTH = block.y_norm_BTH, block.first_mass_BHT.transpose(1, 2)
            value_BTG = block.first_value_norm_BTG
            value_BTH = value_BTG.repeat_interleave(mass_BTH.shape[2] // value_BTG.shape[2], dim=2)
            self._add("write", mass_BTH.abs() * value_BTH / norm_BTH)
            if spec is not None and spec.form == "mul":
                gated_BTHK = self._sink(block) * gate_scores(logits_BTHK, spec).float()
                self._add("gated_write", gated_BTHK.norm(dim=-1) / norm_BTH)
        if spec is None:
            return
        if not _needs_output(spec):
            scores_BTH = gate_scores(logits_BTHK, spec).float().squeeze(-1)
            self._add("openness", scores_BTH.expand(stretch.shape[0], len(block.query_T), stretch.shape[1]))
        elif stretch.v_BSGK is not None:
            gated_BTHK = apply_gate(block.y_BTHK, logits_BTHK.float(), spec)
            energy_BTH = block.y_BTHK.square().sum(-1)
            self._add("openness", (gated_BTHK * block.y_BTHK).sum(-1) / energy_BTH)

    def _add(self, name: str, value_BTH: Tensor) -> None:
        value_BHT = value_BTH.transpose(1, 2)
        self._parts[name].append(value_BHT.masked_fill(value_BHT.isinf(), torch.nan))

    @staticmethod
    def _sink(block: Block) -> Tensor:
        """What the first key's value adds to each output, [B, T, H, K]."""
        index_BT = (block.first_BT - block.stretch.start_key).clamp(min=0)
        v_BSGK = block.stretch.v_BSGK
        index_BTGK = index_BT[..., None, None].expand(*index_BT.shape, *v_BSGK.shape[2:])
        v_BTGK = v_BSGK.gather(1, index_BTGK).float()
        mass_BTH = block.first_mass_BHT.transpose(1, 2)
        return mass_BTH[..., None] * v_BTGK.repeat_interleave(mass_BTH.shape[2] // v_BTGK.shape[2], dim=2)

    def _joined(self, name: str) -> Tensor | None:
        return joined(self._parts[name]) if self._parts[name] else None

    write_BHT = property(lambda self: self._joined("write"))
    gated_write_BHT = property(lambda self: self._joined("gated_write"))
    openness_BHT = property(lambda self: self._joined("openness"))


def _needs_output(spec: GateSpec) -> bool:
    """Whether it does not treat all of a head's channels alike."""
    return spec.granularity == "elementwise" or spec.form != "mul"
