"""What a page of a checkpoint is made from: `Seen`, a light value, and `Table`, its rows by what the figures ask for.

Notable: a row is found by all of its coordinates but the length, so that a figure of the model's heads never takes in a
domain's or another gate's; two rows with the same coordinates are refused, because a page shows one look.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

from ...record import Row

# stack coordinate -> words, in the order of the page.
STACKS: dict[str | None, str] = {None: "causal self-attention", "encoder": "encoder", "cross": "cross-attention"}


@dataclass(frozen=True)
class Seen:
    """One look at one checkpoint.

    Args:
        name: the page's title.
        description: a sentence: text, length, first token, precision, whether weights were dequantised.
        facts: sentences, the three most telling ones first.
        rows: what the probes measured, without interventions.
        unobserved: (module, class, why) of what ran and has no attention rows.
        notes: sentences that a reader has to know before believing the numbers.
        tokens: {id: text} of the token ids that rows list.
        effects: rows `loss_change`, `loss_change_low`, `loss_change_high` with the coordinates intervention and dose; a
            control's intervention begins with `control of `.

    Raises:
        ValueError: rows of several runs or looks; an intervention among the rows, or none in an effect.
    """

    name: str
    description: str
    facts: Sequence[str]
    rows: Sequence[Row]
    unobserved: Sequence[tuple[str, str, str]] = ()
    notes: Sequence[str] = ()
    tokens: Mapping[int, str] = field(default_factory=dict)
    effects: Sequence[Row] = ()

    def __post_init__(self) -> None:
        looks = sorted({(row.run, row.step) for row in self.rows})
        if len(looks) > 1:
            raise ValueError(
                f"rows of {len(looks)} looks, {looks[0]} and {looks[1]} among them: a page shows one; give the rows of one"
            )
        edited = next((row.intervention for row in self.rows if row.intervention is not None), None)
        if edited is not None:
            raise ValueError(f"rows hold the intervention {edited!r}: the page's figures are of the model as it is; give it"
                             " in `effects`")  # fmt: skip
        bare = next((row.metric for row in self.effects if row.intervention is None), None)
        if bare is not None:
            raise ValueError(f"effects hold a row of {bare!r} without an intervention; give such rows in `rows`")


Heads = dict[tuple[int, int], float]
Layers = dict[int, float]
Key = tuple[str | None, str | None, str | None, float | None, str | None]


class Table:
    """The finite rows of a look. Every method takes a metric and the coordinates `stack`, `site`, `stage`, `threshold` and
    `domain`, None where they are not given."""

    def __init__(self, rows: Iterable[Row]):
        self._found: dict[str, dict[Key, list[Row]]] = defaultdict(lambda: defaultdict(list))
        met = set()
        for row in rows:
            at = (row.metric, row.layer, row.head, row.stack, row.site, row.stage, row.query, row.key, row.bin, row.channel,
                  row.threshold, row.domain, row.depth, row.task, row.split)  # fmt: skip
            if at in met:
                raise ValueError(
                    f"two rows of {row.metric} are of the same place (layer {row.layer}, head {row.head}): a page shows one"
                    " look at one length; give the rows of one"
                )
            met.add(at)
            if isfinite(row.value):
                self._found[row.metric][row.stack, row.site, row.stage, row.threshold, row.domain].append(row)
        self.n_layers = 1 + max((at[1] for at in met if at[1] is not None), default=-1)

    def rows(
        self,
        metric: str,
        stack: str | None = None,
        *,
        site: str | None = None,
        stage: str | None = None,
        threshold: float | None = None,
        domain: str | None = None,
    ) -> list[Row]:
        """All rows of a metric at the coordinates, heads, layers and the model's."""
        return self._found[metric][stack, site, stage, threshold, domain] if metric in self._found else []

    def heads(self, metric: str, stack: str | None = None, **at: str | float | None) -> Heads:
        """{(layer, head): value}."""
        return {(r.layer, r.head): r.value for r in self.rows(metric, stack, **at) if None not in (r.layer, r.head)}

    def layers(self, metric: str, stack: str | None = None, **at: str | float | None) -> Layers:
        """{layer: value}."""
        found = self.rows(metric, stack, **at)
        return {r.layer: r.value for r in found if r.layer is not None and r.head is None and r.bin is None}

    def model(self, metric: str, stack: str | None = None, **at: str | float | None) -> float | None:
        """The model's value, None where there is none."""
        found = self.rows(metric, stack, **at)
        return next((r.value for r in found if r.layer is None and r.head is None and r.bin is None), None)

    def bins(self, metric: str, stack: str | None = None, **at: str | float | None) -> dict[int | None, Layers]:
        """{layer: {bin: value}}, the model's under None."""
        out: dict[int | None, Layers] = {}
        for r in self.rows(metric, stack, **at):
            if r.bin is not None and r.head is None:
                out.setdefault(r.layer, {})[r.bin] = r.value
        return out

    def stacks(self, *metrics: str) -> list[str | None]:
        """The stacks that have rows of one of the metrics, in the order of the page."""
        met = {key[0] for metric in metrics if metric in self._found for key in self._found[metric]}
        return [stack for stack in STACKS if stack in met] + sorted(met - set(STACKS))

    def sites(self, metric: str, stack: str | None) -> list[str]:
        """The sites of gates that have rows of a metric."""
        found = self._found.get(metric, {})
        return sorted({key[1] for key in found if key[0] == stack and key[1] is not None})

    def thresholds(self, metric: str, stack: str | None = None) -> list[float]:
        """The thresholds that a metric has rows at."""
        found = self._found.get(metric, {})
        return sorted({key[3] for key in found if key[0] == stack and key[3] is not None})

    def length(self, stack: str | None = None) -> int | None:
        """Tokens a sequence, where a row says it."""
        return next((r.length for by in self._found.values() for key, rows in by.items() if key[0] == stack for r in rows
                     if r.length is not None), None)  # fmt: skip
