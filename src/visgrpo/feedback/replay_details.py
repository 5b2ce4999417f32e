"""What the page of a replay shows besides its estimates: spread of ratios, quality of q."""

from __future__ import annotations

from typing import Any

import numpy as np

from visgrpo.feedback.summary_details import wilson
from visgrpo.feedback.worth.cells import Floats, LogCells

FEWEST, MOST = 2.0**-6, 2.0**10
"""Ratios below and above share one bin each."""
CALIBRATION_BINS = 10


def ratio_bins(cells: LogCells, probabilities_MK: Floats) -> list[dict[str, float]]:
    """Return how many impressions have a ratio ρ = π/p in each of bins a power of 2 wide.

    ρ is the mean over the impressions of one image and label, as in `Overlap.largest_ratio`.
    """
    policy_C = probabilities_MK[cells.image_C, cells.label_C]
    ratio_C = policy_C * cells.inverse_C / cells.count_C
    power_C = np.floor(np.log2(ratio_C.clip(FEWEST, MOST))).astype(np.int64)
    least, most = int(power_C.min()), int(power_C.max())
    count_B = np.bincount(power_C - least, weights=cells.count_C, minlength=most - least + 1)
    return [
        {"low": 2.0**power, "high": 2.0 ** (power + 1), "count": float(count_B[power - least])}
        for power in range(least, most + 1)
    ]


def calibration_bins(cells: LogCells, clicks_MK: Floats) -> list[dict[str, Any]]:
    """Return the click rates that were predicted and seen, over tenths of the impressions.

    Impressions are in the order of their predicted rate. The intervals of what was seen are
    Wilson's. A click model that is right has points on the diagonal.
    """
    predicted_C = clicks_MK[cells.image_C, cells.label_C]
    order_C = np.argsort(predicted_C, kind="stable")
    reached_C = np.cumsum(cells.count_C[order_C]) - cells.count_C[order_C] / 2
    tenth_C = (reached_C / cells.count_C.sum() * CALIBRATION_BINS).astype(np.int64)
    bins = []
    for tenth in np.unique(tenth_C):
        rows = order_C[tenth_C == tenth]
        count, clicks = cells.count_C[rows].sum(), cells.clicks_C[rows].sum()
        low, high = wilson(float(clicks), float(count))
        bins.append(
            {
                "predicted": float(predicted_C[rows] @ cells.count_C[rows] / count),
                "value": float(clicks / count),
                "low": low,
                "high": high,
                "count": float(count),
            }
        )
    return bins
