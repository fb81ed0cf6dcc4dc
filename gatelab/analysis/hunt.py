"""The hunt: everything that one look at a study's runs for anomalies finds, as one value."""

from collections.abc import Sequence
from dataclasses import dataclass

from .anomalies.alarm import Rule
from .anomalies.gather import Gathered
from .anomalies.screen import Screened, screen
from .dispersion import Spread, dispersions
from .heterogeneity import Dependence, Pooled, dependences, pooled
from .stages import Claim, claims

# What is pooled over cells and asked for what it depends on, and whose spread is compared.
READINGS = ("val_loss", "first_token_mass", "massive_max", "value_drain")
PARTS = {"mass_spread_heads": "heads", "mass_spread_layers": "layers", "massive_spread_layers": "layers"}


@dataclass(frozen=True, slots=True)
class Hunt:
    """`claims` are what a confirmation would be asked to confirm; `notes` what to know before reading."""

    screened: Screened
    pooled: list[Pooled]
    dependences: list[Dependence]
    spreads: list[Spread]
    claims: list[Claim]
    notes: list[str]


def hunt(gathered: Gathered, rules: Sequence[Rule], *, fdr: float, notes: Sequence[str] = ()) -> Hunt:
    """Screen, pool, and compare spreads; each of the three has a false-discovery rate of its own."""
    evidence = gathered.evidence
    screened = screen(evidence, rules, fdr=fdr)
    over_cells = [
        found
        for reading in READINGS
        for arm in evidence.arms
        if reading in evidence.readings and (found := pooled(evidence, reading, arm)) is not None
    ]
    return Hunt(
        screened,
        over_cells,
        dependences(evidence, gathered.factors, READINGS),
        dispersions(evidence, READINGS, PARTS),
        claims(evidence, screened, gathered.primary, fdr),
        [*notes, *screened.flags],
    )
