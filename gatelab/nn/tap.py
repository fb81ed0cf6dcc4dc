"""Tap: a named identity where a probe may look. Adds nothing to the state dict; costs nothing when compiled.

A module that was compiled before a hook was added ignores the hook; `probes.capture` therefore takes plain modules.
"""

from torch import Tensor, nn


class Tap(nn.Module):
    """Returns its input; probes hook here."""

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        return x
