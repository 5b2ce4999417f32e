"""How features lie on the unit sphere: are classes tight, and is the sphere filled?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.measures.classification import check_finite

PAIRS_AT_ONCE = 2**21
"""Pairs of rows whose distances exist at one time: 16 MiB of float64."""


def alignment(features_MD: Tensor, labels_M: Tensor) -> float:
    """Mean squared distance of two L2-normalised features of one class, from 0 (tight) to 4.

        E ‖x - y‖²  over all distinct pairs of equal label

    Wang & Isola 2020 (arXiv 2005.10242, eq. 4 with α = 2) take two *views* of one image as a
    pair. A labelled data set has one view of each image, so the pairs here are two images of the
    same class, and every pair counts alike: a class of n images weighs n(n-1)/2.

    Time and memory are linear in M, since Σ_{i<j} ‖x_i - x_j‖² = n Σ_i ‖x_i - mean‖².

    Raises:
        UserError: features are NaN, infinite or zero, shapes do not fit, or no two rows are of
            the same class.
    """
    check_rows(features_MD, labels_M)
    unit_MD = unit_rows(features_MD.detach().cpu().double())
    _, class_M, counts_K = torch.unique(labels_M.cpu(), return_inverse=True, return_counts=True)
    pairs = int((counts_K * (counts_K - 1)).sum()) // 2
    if pairs == 0:
        raise UserError(
            f"No two of the {len(labels_M)} rows are of the same class: alignment needs pairs; "
            "give more images."
        )
    sums_KD = unit_MD.new_zeros(len(counts_K), unit_MD.shape[1]).index_add_(0, class_M, unit_MD)
    means_KD = sums_KD / counts_K[:, None]
    spread_M = (unit_MD - means_KD[class_M]).square().sum(dim=1)
    return float((counts_K[class_M] * spread_M).sum()) / pairs


def uniformity(features_MD: Tensor) -> float:
    """Log mean Gaussian potential of L2-normalised features: 0 (one point) down to about -4.

        log E exp(-2 ‖x - y‖²)  over all distinct pairs

    Wang & Isola 2020 (arXiv 2005.10242, eq. 5 with t = 2). Lower is more even. Distances are made
    a few rows at a time.

    Raises:
        UserError: features are NaN, infinite or zero, or fewer than two.
    """
    check_rows(features_MD)
    unit_MD = unit_rows(features_MD.detach().cpu().double())
    M = len(unit_MD)
    if M < 2:
        raise UserError(f"Uniformity needs pairs of images, and there are {M}; give more.")
    total, size = 0.0, max(1, PAIRS_AT_ONCE // M)
    for start in range(0, M, size):
        cosines = unit_MD[start : start + size] @ unit_MD[start:].T
        # ‖x - y‖² = 2 - 2 x·y. Above the diagonal each pair is met once, and no row meets itself.
        total += float((4 * cosines - 4).exp().triu(diagonal=1).sum())
    return math.log(total / (M * (M - 1) / 2))


def unit_rows(features_MD: Tensor, what: str = "features") -> Tensor:
    """Return the rows at length 1.

    Raises:
        UserError: a row is all zeros, which has no direction.
    """
    lengths_M = features_MD.norm(dim=1)
    zero_M = lengths_M == 0
    if zero_M.any():
        raise UserError(
            f"The {what} of {int(zero_M.sum())} of {len(zero_M)} images are all zeros, first in "
            f"row {int(zero_M.nonzero()[0])}: they have no direction; use another pool or model."
        )
    return features_MD / lengths_M[:, None]


def check_rows(features_MD: Tensor, labels_M: Tensor | None = None, what: str = "features") -> None:
    """Raise `UserError` unless these are finite features of M rows, with a class id for each."""
    shapes = f"{what} {tuple(features_MD.shape)}"
    if features_MD.ndim != 2 or 0 in features_MD.shape:
        raise UserError(f"Shapes do not fit: {shapes}; expected (M, D), with at least one row.")
    if labels_M is not None and labels_M.shape != features_MD.shape[:1]:
        raise UserError(
            f"Shapes do not fit: {shapes} and labels {tuple(labels_M.shape)}; expected (M, D) "
            "and (M,)."
        )
    if labels_M is not None and labels_M.is_floating_point():
        raise UserError(f"Labels must be whole class ids, not {labels_M.dtype}.")
    check_finite([features_MD], what, "images")
