"""How a policy would have done, estimated from the log of another one.

An impression i showed label a_i of image x_i with propensity p_i and earned the click c_i. A policy
π would have shown that label ρ_i = π(a_i|x_i) / p_i times as often, so over n impressions

    IPS            (1/n) Σ ρ_i c_i
    SNIPS          Σ ρ_i c_i / Σ ρ_i
    direct         (1/n) Σ_i Σ_k π(k|x_i) q(x_i, k)
    doubly robust  direct + (1/n) Σ ρ_i (c_i - q(x_i, a_i))
    SNDR           direct + Σ ρ_i (c_i - q(x_i, a_i)) / Σ ρ_i
    clipped IPS    (1/n) Σ min(ρ_i, τ) c_i
    Switch-DR      direct + (1/n) Σ ρ_i [ρ_i <= τ] (c_i - q(x_i, a_i))

where q predicts click rates. IPS is unbiased (Horvitz and Thompson 1952); SNIPS trades a bias of
order 1/n for less variance and does not change when all rewards are shifted by a constant
(Swaminathan and Joachims 2015); doubly robust is consistent if p or q is right (Dudík, Langford and
Li 2011). SNDR is to doubly robust what SNIPS is to IPS (Thomas and Brunskill 2016). Clipped IPS
(Ionides 2008; Bottou et al. 2013) and Switch-DR (Wang, Agarwal and Dudík 2017), which trusts q
alone where ρ > τ, give up some of that for less variance. τ is chosen by a bound as in Su,
Dimakopoulou, Krishnamurthy and Dudík (2020): of quantiles of ρ, or none, the one with the least
error² + bias², the bias being at most the farther end of the interval of what cutting changed.

π is the same for all impressions of one image and label, so sums over the cells of a log are
enough. Every estimate is a ratio of two sums over images. Its standard error comes from the
influence of each image on that ratio: impressions of one image may depend on each other, images do
not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from scipy.stats import t as student

from visgrpo.errors import UserError
from visgrpo.feedback.worth.cells import Floats, LogCells, Whole
from visgrpo.feedback.worth.posterior import add_up

CONFIDENCE = 0.95
_SUM_TOLERANCE = 1e-4  # of probabilities that a model gave in float32
_FAR = 0.1
"""A mean ratio this far from 1, and by `_ERRORS` standard errors, cannot be chance."""
_ERRORS = 4.0
_QUANTILES = np.linspace(0.5, 1.0, 26)
"""Of ρ, at which it may be cut."""


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error and 95 % interval, by Student's t over the logged images.

    Attributes:
        influence_I: what each of the I logged images adds to the estimate's error; sums to 0.
    """

    value: float
    error: float
    low: float
    high: float
    influence_I: Floats = field(repr=False, compare=False)


@dataclass(frozen=True)
class Cut(Estimate):
    """An estimate that cuts large ratios at τ, infinite where nothing is cut.

    Its interval leaves out the bias of cutting.
    """

    at: float


@dataclass(frozen=True)
class Overlap:
    """How much a log says about a policy.

    Attributes:
        effective_samples: (Σρ)² / Σρ², impressions of the policy's own that say as much (Kong
            1992); 0 where it would show nothing that was logged.
        effective_share: the same as a share of the impressions.
        mean_ratio: of ρ. Its expectation is 1 wherever propensities are right and the logging
            policy could show every label that the policy would.
        largest_ratio: largest mean of ρ over the impressions of one image and label; the largest ρ
            itself where the logging policy did not change.
        impressions: n.
        images: images with impressions.
        uncovered: share of the policy's choices that fall on labels which the log never showed
            for their image.
    """

    effective_samples: float
    effective_share: float
    mean_ratio: Estimate
    largest_ratio: float
    impressions: float
    images: int
    uncovered: float


@dataclass(frozen=True)
class OffPolicy(Overlap):
    """What a policy would have earned per impression, by seven estimators, and what supports it.

    The direct estimate's interval covers the choice of images alone, not what is wrong with q.
    """

    ips: Estimate
    snips: Estimate
    direct: Estimate
    doubly_robust: Estimate
    sndr: Estimate
    clipped: Cut
    switch: Cut


def estimate_policy(cells: LogCells, probabilities_MK: Floats, rewards_MK: Floats) -> OffPolicy:
    """Estimate the clicks per impression of a policy on the images of a log.

    Args:
        probabilities_MK: the policy's; the rows of logged images sum to 1.
        rewards_MK: q, predicted click rates. Predictions for an image must not have seen its own
            clicks, or the doubly robust estimate repeats their noise: see `predicted_clicks`.

    Raises:
        UserError: for probabilities that are none, arrays that do not fit the cells, fewer than two
            logged images, and a policy that never shows what was logged.
    """
    sums = _Sums(cells, probabilities_MK)
    if rewards_MK.shape != probabilities_MK.shape:
        raise UserError(
            f"Predicted rewards are {rewards_MK.shape}, probabilities {probabilities_MK.shape}: "
            "give one of each for every image and label."
        )
    if not sums.ratio_I.sum() > 0:
        raise UserError(
            "The policy gives no probability to any label that the log showed: the log says "
            "nothing about it. Explore more when logging."
        )
    logged_MK = rewards_MK[sums.images_I]
    expected_I = sums.shown_I * np.einsum("ik,ik->i", probabilities_MK[sums.images_I], logged_MK)
    q_C = rewards_MK[cells.image_C, cells.label_C]
    residual_I = sums.clicks_I - sums.per_image(sums.policy_C * cells.inverse_C * q_C)
    direct = _ratio(expected_I, sums.shown_I)
    return OffPolicy(
        **vars(_overlap(cells, sums)),
        ips=_ratio(sums.clicks_I, sums.shown_I),
        snips=_ratio(sums.clicks_I, sums.ratio_I),
        direct=direct,
        doubly_robust=_ratio(expected_I + residual_I, sums.shown_I),
        sndr=_sum(direct, _ratio(residual_I, sums.ratio_I)),
        clipped=_least_bound(cells, sums, partial(_clipped, cells, sums)),
        switch=_least_bound(cells, sums, partial(_switch, cells, sums, expected_I, q_C)),
    )


def _least_bound(cells: LogCells, sums: _Sums, cut_at: Callable[[float], Cut]) -> Cut:
    """Return the estimate with the least bound of its squared error, over `_QUANTILES` of ρ."""
    order = np.argsort(sums.mean_ratio_C)
    share_C = np.cumsum(cells.count_C[order]) / cells.count_C.sum()
    places = np.searchsorted(share_C, _QUANTILES).clip(max=len(order) - 1)
    whole = cut_at(math.inf)

    def bound(each: Cut) -> float:
        away = difference(whole, each)
        return each.error**2 + max(-away.low, away.high) ** 2 * (each is not whole)

    cuts = np.unique(sums.mean_ratio_C[order[places]])[::-1]
    return min([whole, *map(cut_at, cuts.tolist())], key=bound)


def _clipped(cells: LogCells, sums: _Sums, at: float) -> Cut:
    over_C = (sums.mean_ratio_C - at).clip(min=0)
    cut_C = np.minimum(sums.mean_ratio_C, at) * cells.clicks_C
    all_C = sums.policy_C * cells.clicks_inverse_C
    clicks_I = sums.per_image(np.where(over_C > 0, cut_C, all_C))
    return Cut(**vars(_ratio(clicks_I, sums.shown_I)), at=at)


def _switch(cells: LogCells, sums: _Sums, expected_I: Floats, q_C: Floats, at: float) -> Cut:
    kept_C = sums.mean_ratio_C <= at
    ratio_C = sums.policy_C * cells.inverse_C
    residual_C = sums.policy_C * cells.clicks_inverse_C - ratio_C * q_C
    value_I = expected_I + sums.per_image(np.where(kept_C, residual_C, 0.0))
    return Cut(**vars(_ratio(value_I, sums.shown_I)), at=at)


def overlap(cells: LogCells, probabilities_MK: Floats) -> Overlap:
    """Return how much a log says about a policy.

    Raises:
        UserError: for probabilities that are none, and fewer than two logged images.
    """
    return _overlap(cells, _Sums(cells, probabilities_MK))


def logged_value(cells: LogCells) -> Estimate:
    """Return the clicks per impression of the policy that wrote the log.

    Raises:
        UserError: for fewer than two logged images.
    """
    images_I, index_C = _logged_images(cells)
    clicks_I = add_up(index_C, cells.clicks_C, len(images_I))
    shown_I = add_up(index_C, cells.count_C, len(images_I))
    return _ratio(clicks_I, shown_I)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """Return second - first on the same log, paired: what both share cancels out of the error."""
    if first.influence_I.shape != second.influence_I.shape:
        raise UserError(
            f"The estimates are from logs of {len(first.influence_I)} and "
            f"{len(second.influence_I)} images: compare policies on one log."
        )
    return _estimate(second.value - first.value, second.influence_I - first.influence_I)


class _Sums:
    """Sums over the cells of each logged image; all that estimates are made of.

    Attributes:
        images_I: the logged images, rows of the probabilities.
        policy_C: π of every cell.
        shown_I: impressions.
        ratio_I: Σρ.
        clicks_I: Σρc.
        covered_I: the policy's mass on labels that were logged for the image.
        mean_ratio_C: mean of ρ over the impressions of every cell, which is ρ itself where the
            logging policy did not change.
    """

    def __init__(self, cells: LogCells, probabilities_MK: Floats) -> None:
        self.images_I, self._index_C = _logged_images(cells)
        _check_probabilities(cells, probabilities_MK, self.images_I)
        self.policy_C = probabilities_MK[cells.image_C, cells.label_C].astype(np.float64)
        self.shown_I = self.per_image(cells.count_C)
        self.ratio_I = self.per_image(self.policy_C * cells.inverse_C)
        self.clicks_I = self.per_image(self.policy_C * cells.clicks_inverse_C)
        self.covered_I = self.per_image(self.policy_C)
        self.mean_ratio_C = self.policy_C * cells.inverse_C / cells.count_C

    def per_image(self, values_C: Floats) -> Floats:
        return add_up(self._index_C, values_C, len(self.images_I))


def _sum(first: Estimate, second: Estimate) -> Estimate:
    return _estimate(first.value + second.value, first.influence_I + second.influence_I)


def _overlap(cells: LogCells, sums: _Sums) -> Overlap:
    impressions = float(sums.shown_I.sum())
    squares = float((sums.policy_C**2 * cells.inverse_square_C).sum())
    effective = float(sums.ratio_I.sum()) ** 2 / squares if squares else 0.0
    return Overlap(
        effective_samples=effective,
        effective_share=effective / impressions,
        mean_ratio=_ratio(sums.ratio_I, sums.shown_I),
        largest_ratio=float(sums.mean_ratio_C.max()),
        impressions=impressions,
        images=len(sums.images_I),
        uncovered=max(0.0, float(sums.shown_I @ (1 - sums.covered_I)) / impressions),
    )


def _logged_images(cells: LogCells) -> tuple[Whole, Whole]:
    """Return the images of a log, ascending, and the place of each cell's image among them."""
    images_I, index_C = np.unique(cells.image_C, return_inverse=True)
    if len(images_I) < 2:
        raise UserError(
            f"An interval needs impressions of two images or more, not {len(images_I)}: log more."
        )
    return images_I, index_C


def _ratio(above_I: Floats, below_I: Floats) -> Estimate:
    """Estimate Σ above / Σ below by the delta method: image i moves it by (a_i - r b_i) / Σ b."""
    total = below_I.sum()
    value = above_I.sum() / total
    return _estimate(float(value), (above_I - value * below_I) / total)


def _estimate(value: float, influence_I: Floats) -> Estimate:
    images = len(influence_I)
    error = float(np.sqrt(images / (images - 1) * (influence_I**2).sum()))
    reach = error * float(student.ppf((1 + CONFIDENCE) / 2, images - 1))
    return Estimate(value, error, value - reach, value + reach, influence_I)


def _check_probabilities(cells: LogCells, probabilities_MK: Floats, images_I: Whole) -> None:
    images, classes = probabilities_MK.shape
    if images_I[-1] >= images or cells.label_C.max() >= classes:
        raise UserError(
            f"Probabilities are for {images} images and {classes} labels; the log has image "
            f"{images_I[-1]} and label {cells.label_C.max()}: give a row for every image."
        )
    logged_IK = probabilities_MK[images_I]
    wrong_I = ~np.isfinite(logged_IK).all(axis=1) | (logged_IK < 0).any(axis=1)
    wrong_I |= np.abs(logged_IK.sum(axis=1) - 1) > _SUM_TOLERANCE
    if wrong_I.any():
        raise UserError(
            f"Probabilities of image {images_I[wrong_I.argmax()]} are not a distribution: they "
            "must not be negative and must sum to 1."
        )


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
