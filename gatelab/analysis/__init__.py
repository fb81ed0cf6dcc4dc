"""Outcomes in, findings out: paired effects, false-discovery control, equivalence, power, shares. No torch here."""

from .effects import effects
from .paired import Outcome, PairingGain, pairing_gain
from .shares import Share, exact_interval, shares
from .student import detectable_effect, power

__all__ = [
    "Outcome",
    "PairingGain",
    "Share",
    "detectable_effect",
    "effects",
    "exact_interval",
    "pairing_gain",
    "power",
    "shares",
]
