"""Whole numbers that a layer or a cache is built from, refused at construction."""

from numbers import Integral


def check_widths(**widths: int | None) -> None:
    """Refuses what is no whole number from 1; None is one that is left to the others.

    Raises:
        ValueError: naming it.
    """
    for name, value in widths.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
            raise ValueError(f"{name}={value!r}: take a whole number from 1")
