"""Whether a log can say anything about a policy; if not, why not, and what to do."""

from __future__ import annotations

import numpy as np

from visgrpo.errors import UserError
from visgrpo.feedback.off_policy import Overlap, overlap
from visgrpo.feedback.worth.cells import LogCells

_FAR = 0.1
"""A mean ratio this far from 1, and by `_ERRORS` standard errors, cannot be chance."""
_ERRORS = 4.0


def check_support(
    cells: LogCells,
    probabilities_MK: np.ndarray,
    *,
    least_share: float,
    groups: bool = False,
) -> tuple[Overlap, tuple[str, ...]]:
    """Refuse a log that cannot support a policy.

    Args:
        probabilities_MK: the policy's, as for `estimate_policy`.
        least_share: smallest effective sample size, as a share of the impressions.
        groups: whether advantages within an image are needed: then some image must have been shown
            with two labels.

    Returns:
        How much the log says, and remarks on what is doubtful but may be chance.

    Raises:
        UserError: naming the reason: too few effective samples, ratios whose mean is not 1, no
            image with two labels; and as `overlap`.
    """
    if groups:
        _check_groups(cells)
    found = overlap(cells, probabilities_MK)
    reason = unsupported(found, least_share)
    if reason:
        raise UserError(f"The log cannot support this policy: {reason}.")
    return found, remarks(found)


def unsupported(found: Overlap, least_share: float) -> str | None:
    """Return why a log cannot support a policy, and the mend; None where it can."""
    if found.effective_share < least_share:
        return (
            f"its effective sample size is {found.effective_samples:.3g} of "
            f"{found.impressions:.0f} impressions, {found.effective_share:.2%}, below "
            f"{least_share:.2%}: explore more when logging, or hold the policy nearer to the "
            "logging one (KL)"
        )
    ratio = found.mean_ratio
    distance = abs(ratio.value - 1)
    if distance <= _FAR or distance <= _ERRORS * ratio.error:
        return None
    told = f"its ratios to the propensities have mean {ratio.value:.3g} ± {ratio.error:.2g}, not 1"
    if ratio.value > 1:
        return f"{told}: the propensities are too small to be right; log what was drawn with"
    return (
        f"{told}: the propensities are too large to be right, or the logging policy could not show "
        "labels that this policy would; log what was drawn with, and give every label a chance"
    )


def remarks(found: Overlap) -> tuple[str, ...]:
    """Return what is doubtful about a supported policy's estimates but may be chance."""
    ratio = found.mean_ratio
    if ratio.low <= 1 <= ratio.high:
        return ()
    return (
        f"the mean ratio is {ratio.value:.3g} [{ratio.low:.3g}, {ratio.high:.3g}]; 1 lies outside: "
        "check that the propensities are those that labels were drawn with",
    )


def _check_groups(cells: LogCells) -> None:
    """Refuse a log in which no image was shown with two different labels."""
    labels_I = np.unique(cells.image_C, return_counts=True)[1]  # one cell for each label shown
    if labels_I.max() < 2:
        raise UserError(
            "No image of the log was shown with two different labels, so no group has a mean to "
            "compare with: explore more when logging, or take advantages over the batch."
        )
