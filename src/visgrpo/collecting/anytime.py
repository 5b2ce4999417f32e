"""Intervals that may be looked at after every judgement: confidence sequences.

Values X_1, X_2, … of a span of 1 are sub-Gaussian with variance 1/4 (Hoeffding). With their
conditional means μ_i, S_n = Σ (X_i - μ_i) and v = n/4, the mixture of exp(λ S - λ² v / 2) over
λ ~ N(0, 1/ρ) is a supermartingale that starts at 1, so with probability 1 - α at all n at once

    |S_n| <= sqrt((v + ρ) log((v + ρ) / (ρ α²)))

(Robbins 1970; the two-sided normal mixture, equation 14 of Howard, Ramdas, McAuliffe and Sekhon
2021, "Time-uniform, nonparametric, nonasymptotic confidence sequences"). The means may drift, as
those of a model that goes on learning do: S_n / n is then about their average so far.
"""

from __future__ import annotations

import math
from typing import NamedTuple

ALPHA = 0.05
_VARIANCE = 0.25  # of a span of 1, at most
# About the narrowest after some 100 values, at the α of either side of a difference: v / 10.
_RHO = 2.5


class Tally(NamedTuple):
    """How many values there are, and their mean."""

    size: int
    mean: float


def reach(count: int, alpha: float = ALPHA) -> float:
    """Return how far the mean of `count` values of a span of 1 may lie from its expectation, at all
    counts at once but with probability `alpha`."""
    total = _VARIANCE * count + _RHO
    return math.sqrt(total * math.log(total / (_RHO * alpha**2))) / count


def difference(first: Tally, second: Tally, *, span: float = 1.0) -> tuple[float, float, float]:
    """Return the mean of the second less that of the first, with an interval of 95 % around it that
    holds at all times at once: each side may leave its own with half of what is left.

    Args:
        span: the greatest value less the least; the difference lies within ±span.
    """
    change = second.mean - first.mean
    far = span * (reach(first.size, ALPHA / 2) + reach(second.size, ALPHA / 2))
    return change, max(-span, change - far), min(span, change + far)
