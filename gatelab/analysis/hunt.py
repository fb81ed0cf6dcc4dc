"""The hunt: everything that one look at a study's runs for anomalies finds, as one value."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from .anomalies.alarm import Rule
from .anomalies.gather import Gathered
from .anomalies.screen import Screened, screen
from .dispersion import Spread, dispersions
from .heterogeneity import Dependence, Pooled, dependences, pooled
from .registration import Claim
from .stages import claims

# What is pooled over cells and asked for what it depends on, and whose spread is compared.
READINGS = ("val_loss", "first_token_mass", "massive_max", "value_drain")
PARTS = {"mass_spread_heads": "heads", "mass_spread_layers": "layers", "massive_spread_layers": "layers"}
# Of these the reading whose spread over heads or layers each one is.
OF_PARTS = {"mass_spread_heads": "first-token mass", "mass_spread_layers": "first-token mass", "massive_spread_layers":
            "largest activation"}  # fmt: skip


@dataclass(frozen=True)
class Hunt:
    """The screen, and what to know before reading; the rest is worked out where it is asked for, which a page never does.
    Each of screen, pooling and spreads has a false-discovery rate of its own."""

    screened: Screened
    notes: list[str]
    gathered: Gathered

    @cached_property
    def pooled(self) -> list[Pooled]:
        """The readings over all cells, gate by gate."""
        evidence = self.gathered.evidence
        return [
            found
            for reading in READINGS
            for arm in evidence.arms
            if reading in evidence.readings and (found := pooled(evidence, reading, arm)) is not None
        ]

    @cached_property
    def dependences(self) -> list[Dependence]:
        """What the effects depend on."""
        return dependences(self.gathered.evidence, self.gathered.factors, READINGS)

    @cached_property
    def spreads(self) -> list[Spread]:
        """Whose spread a gate changes."""
        return dispersions(self.gathered.evidence, READINGS, PARTS)

    @cached_property
    def claims(self) -> list[Claim]:
        """What a confirmation would be asked to confirm."""
        return claims(self.gathered.evidence, self.screened, self.gathered.primary, self.screened.fdr)


def hunt(gathered: Gathered, rules: Sequence[Rule], *, fdr: float, notes: Sequence[str] = ()) -> Hunt:
    """Screen the evidence."""
    screened = screen(gathered.evidence, rules, fdr=fdr)
    return Hunt(screened, [*notes, *gathered.refusals.notes, *screened.flags], gathered)
