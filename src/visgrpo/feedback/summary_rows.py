"""Rows of a summary, and the intervals beside their values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.959963984540054  # two-sided 95 %


@dataclass(frozen=True)
class Row:
    """A value of one label, position or user, made of `count` observations.

    `low` and `high` are its 95 % interval, None where there is none; observations are taken to be
    independent.
    """

    name: str
    count: float
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Bin:
    """How many things lie between two values, both inclusive for counts, else [low, high)."""

    low: float
    high: float
    count: int


def share_row(name: str, part: float, count: float) -> Row:
    """Return the share part/count with Wilson's score interval.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    return Row(name, count, part / count, *wilson(part, count))


def wilson(part: float, count: float) -> tuple[float, float]:
    """Return the ends of Wilson's 95 % interval of part/count; count is above 0."""
    share, spread = part / count, Z**2 / count
    middle = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return (
        max(0.0, (middle - half) / (1 + spread)),
        min(1.0, (middle + half) / (1 + spread)),
    )


def mean_row(name: str, count: int, mean: float, deviation: float | None) -> Row:
    """Return a mean with its normal interval; one observation has no deviation, and no interval."""
    if deviation is None:
        return Row(name, count, mean)
    half = Z * deviation / math.sqrt(count)
    return Row(name, count, mean, mean - half, mean + half)


def doubling_bins(counts: Sequence[tuple[int, int]]) -> list[Bin]:
    """Put whole numbers ≥ 1 into the bins 1, 2, 3 to 4, 5 to 8, ….

    Args:
        counts: (exponent of the bin's end, how many) in order of the exponent.
    """
    return [Bin(2 ** (n - 1) + 1 if n else 1, 2**n, count) for n, count in counts]
