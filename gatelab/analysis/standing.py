"""How arms stand for a use: the settings for them, against them and neither, counted, and never pooled.

An arm is favoured where it helps in more than half of the settings that can tell; of several such arms that with the highest rank
(`Standing.rank`), or those, where they are equal.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite, nan

from ..record import Finding
from .shares import exact_interval
from .uses import USES, Use
from .verdicts import EQUIVALENCE_LEVEL

SEEDS_NEEDED = 3
CONFIRMED, SCREEN, EXPLORATORY = "confirmed on fresh seeds", "screen", "exploratory"
PILOT, NOTHING = "pilot", "nothing seen"
NO_CASE = "nothing to tell"
DIVERGED = "runs diverged"
STRENGTHS = (CONFIRMED, SCREEN, EXPLORATORY)  # from the strongest on


@dataclass(frozen=True, slots=True)
class Told:
    """What one setting says of an arm: `finding` is at each arm's own best rate, its cell the setting; `side` 1 for it, −1 against,
    0 neither; `word` one of STRENGTHS where a side is taken, else `nothing seen`, `nothing to tell` (no spread, or all runs of both
    on the better side already), `runs diverged` (of the arm and not of the baseline: the others are never for it) or `pilot`. It
    `is_telling` with three pairs and something to test. Where fresh seeds confirmed an effect, `side` and `word` are that claim's,
    whatever the screen's own `finding` shows.

    `excluded` is the smallest gain that the data exclude; nan where nothing is. Of a metric that a seed shows or not it is a share
    of the seeds that could change for the better, and `changed` has how many did, of how many, and how many did for the worse.
    """

    use: Use
    setting: str
    arm: str
    finding: Finding
    side: int
    word: str
    is_telling: bool
    excluded: float
    changed: tuple[int, int, int] | None = None

    @property
    def is_within_nothing(self) -> bool:
        """Whether the effect is shown to lie inside the bound that was declared to count as nothing."""
        p = self.finding.p_equivalence
        return p is not None and p < EQUIVALENCE_LEVEL


@dataclass(frozen=True, slots=True)
class Against:
    """A case against an arm beside its settings: an effect at a learning rate that is not its best, or a claim of a screen (`rule`)
    that `is_confirmed` on fresh seeds."""

    use: Use
    arm: str
    rule: str
    cell: str
    is_confirmed: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """An arm for one use, over its settings."""

    arm: str
    told: list[Told]
    against: list[Against] = field(default_factory=list)

    @property
    def telling(self) -> list[Told]:
        """The settings that count."""
        return [t for t in self.told if t.is_telling]

    def on(self, side: int) -> list[Told]:
        """The settings for it (1), against it (−1), or neither."""
        return [t for t in self.telling if t.side == side]

    @property
    def confirmed(self) -> list[Told]:
        """Its settings with an effect for it that fresh seeds confirmed."""
        return [t for t in self.on(1) if t.word == CONFIRMED]

    @property
    def strength(self) -> str:
        """The strongest word of a setting for it; where there is none, why."""
        words = {t.word for t in self.on(1)}
        alone = PILOT if all(t.word == PILOT for t in self.told) else NO_CASE
        neither = {t.word for t in self.on(0)}
        seen = DIVERGED if neither == {DIVERGED} else NOTHING
        return next((w for w in STRENGTHS if w in words), seen if self.telling else alone)

    @property
    def is_favoured(self) -> bool:
        """Whether most settings that can tell are for it."""
        return 2 * len(self.on(1)) > len(self.telling) > 0

    @property
    def rank(self) -> tuple[float, int, int]:
        """The larger the better: the lower end of the exact 95% interval of k settings for it of n that can tell, which weighs how
        many against how many of; fewer settings against; strength."""
        n = len(self.telling)
        strength = -STRENGTHS.index(self.strength) if self.strength in STRENGTHS else -len(STRENGTHS)
        return exact_interval(len(self.on(1)), n)[0] if n else 0.0, -len(self.on(-1)), strength


@dataclass(frozen=True, slots=True)
class Answer:
    """What the evidence says of a use: `standings` from the best on; `favoured` arms of equal rank, none where no arm helps in most
    settings."""

    use: Use
    standings: list[Standing]
    favoured: list[str]

    @property
    def word(self) -> str:
        """`favoured`; `in places`, where some arm helps in some setting and none in most; `nothing seen`; `runs
        diverged`; `nothing to tell`; or `pilot`."""
        if self.favoured:
            return "favoured"
        if any(s.on(1) for s in self.standings):
            return "in places"
        words = {s.strength for s in self.standings}
        return next(w for w in (NOTHING, DIVERGED, NO_CASE, PILOT) if w in words)

    @property
    def shown(self) -> list[Standing]:
        """The arms that a reader is shown: favoured; or of those that help in places the best, and each with a confirmed effect; or
        none."""
        if self.favoured:
            return [s for s in self.standings if s.arm in self.favoured]
        best = self.standings[0].rank
        return [s for s in self.standings if s.on(1) and (s.rank == best or s.strength == CONFIRMED)]

    @property
    def worse(self) -> list[Standing]:
        """The arms that are worse somewhere than the baseline, at their best rates or confirmed elsewhere."""
        return [s for s in self.standings if s.on(-1) or any(a.is_confirmed for a in s.against)]

    @property
    def excluded(self) -> tuple[float, int, int]:
        """The smallest gain that every interval excludes, how many comparisons have an interval, and how many can tell."""
        telling = [t for s in self.standings for t in s.telling]
        gains = [t.excluded for t in telling if isfinite(t.excluded)]
        return max(gains, default=nan), len(gains), len(telling)


def answers(told: Iterable[Told], against: Iterable[Against]) -> list[Answer]:
    """One a use of which something is told."""
    told, against = list(told), list(against)
    out = []
    for use in USES:
        of_use = [t for t in told if t.use is use]
        if not of_use:
            continue
        standings = [
            Standing(arm, [t for t in of_use if t.arm == arm], [a for a in against if a.use is use and a.arm == arm])
            for arm in dict.fromkeys(t.arm for t in of_use)
        ]
        standings.sort(key=lambda s: s.rank, reverse=True)
        candidates = [s for s in standings if s.is_favoured]
        best = [s.arm for s in candidates if s.rank == candidates[0].rank]
        out.append(Answer(use, standings, best))
    return out
