"""What features are worth to a simple classifier, and how they lie on the unit sphere."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.measures.classification import check_finite, check_ids
from visgrpo.progress import tracked

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression


C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse strengths of the L2 penalty that softmax regression tries, the strongest first."""
MAX_ITERATIONS = 1000
TOLERANCE = 1e-6
"""Of the gradient; at scikit-learn's 1e-4 a fit with a strong penalty ends too early."""
NEIGHBOURS = (1, 5, 20)
TEMPERATURE = 0.07
"""Of weighted votes, as DINO's."""
RETENTION_NEIGHBOURS = 20
SIMILARITIES_AT_ONCE = 2**24
"""Similarities of queries and training rows that exist at one time: 64 MiB of float32."""


class Labelled(NamedTuple):
    """Features of M images and their class ids."""

    features_MD: Tensor
    labels_M: Tensor


@dataclass(frozen=True)
class ProbeResult:
    """What softmax regression came to.

    Attributes:
        accuracy: on the test rows.
        C: the inverse penalty chosen on the validation rows.
        validation_accuracy: of every C that was tried.
        converged: whether the fit at `C` ended by itself, not at the limit of iterations.
    """

    accuracy: float
    C: float
    validation_accuracy: dict[float, float]
    converged: bool


def softmax_regression(
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    *,
    classes: int,
    grid: Sequence[float] = C_GRID,
    max_iterations: int = MAX_ITERATIONS,
) -> ProbeResult:
    """Fit scikit-learn's logistic regression on frozen features, and score it on test rows.

    Features are standardised by the mean and deviation of the train rows; a constant feature
    becomes 0. C is the best on the validation rows, the smallest of equals, and validation rows
    are never fitted. L-BFGS in float64 draws nothing at random: equal features, equal result. A
    class without train rows is never answered, so its rows count as wrong.

    Args:
        train: rows to fit.
        validation: rows to choose C on.
        test: rows to score.
        classes: K; labels are 0 to K - 1.
        grid: values of C, each above 0.
        max_iterations: of L-BFGS for each C.

    Raises:
        UserError: features are NaN or infinite, shapes or labels do not fit, the grid is empty or
            not positive, or train has fewer than two classes.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if not grid or min(grid) <= 0:
        raise UserError(f"C must be one or more numbers above 0, not {list(grid)}.")
    _check(classes, train=train, validation=validation, test=test)
    if len(train.labels_M.unique()) < 2:
        raise UserError("All train rows are of one class: a probe needs rows of two or more.")
    scaler = StandardScaler().fit(_float64(train.features_MD))
    train_x, validation_x, test_x = (
        scaler.transform(_float64(rows.features_MD)) for rows in (train, validation, test)
    )
    train_y, validation_y, test_y = (
        rows.labels_M.cpu().numpy() for rows in (train, validation, test)
    )

    # Each fit starts at the last one's weights, which are near: the penalty only grows weaker.
    model = LogisticRegression(max_iter=max_iterations, tol=TOLERANCE, warm_start=True)
    validation_accuracy: dict[float, float] = {}
    tried = []
    for C in tracked(sorted(set(grid)), "softmax regression, penalties"):
        converged = _fit(model.set_params(C=C), train_x, train_y)
        validation_accuracy[C] = float(model.score(validation_x, validation_y))
        accuracy = float(model.score(test_x, test_y))
        tried.append(ProbeResult(accuracy, C, validation_accuracy, converged))
    return max(tried, key=lambda result: validation_accuracy[result.C])  # the first of equals


def knn(
    train: Labelled,
    queries: Labelled,
    *,
    classes: int,
    ks: Sequence[int] = NEIGHBOURS,
    temperature: float | None = None,
) -> dict[int, float]:
    """Return the accuracy of k-nearest-neighbour votes by cosine similarity, {k: accuracy}.

    The k nearest train rows have one vote each. Ties go to the class with the larger summed
    similarity, then to the smaller class id; of train rows equally near, the earlier ones are
    taken. Computed in float32 on the features' device, a few queries at a time.

    Args:
        train: rows that vote.
        queries: rows to classify.
        classes: K; labels are 0 to K - 1.
        ks: numbers of neighbours.
        temperature: T, by which a vote weighs exp(similarity / T) (Wu et al. 2018,
            arXiv:1805.01978, eq. 9; DINO's kNN has T = .07); None for votes that all weigh 1.

    Raises:
        UserError: features are NaN, infinite or zero, shapes or labels do not fit, or a k is below
            1 or above the number of train rows.
    """
    _check(classes, train=train, queries=queries)
    for k in ks:
        if not 1 <= k <= len(train.labels_M):
            raise UserError(
                f"k = {k} neighbours: choose a k from 1 to the number of train rows, "
                f"{len(train.labels_M)}."
            )
    device = train.features_MD.device
    train_MD = unit_rows(train.features_MD.detach().float(), "train features")
    query_MD = unit_rows(queries.features_MD.detach().to(device).float(), "query features")
    train_labels_M = train.labels_M.to(device)
    size = max(1, SIMILARITIES_AT_ONCE // len(train_MD))
    right = dict.fromkeys(ks, 0)
    for query_ND, labels_N in zip(
        query_MD.split(size), queries.labels_M.to(device).split(size), strict=True
    ):
        similarity_NJ, row_NJ = _nearest(query_ND @ train_MD.T, max(ks))
        labels_NJ = train_labels_M[row_NJ]
        for k in ks:
            answers_N = _vote(similarity_NJ[:, :k], labels_NJ[:, :k], temperature)
            right[k] += int((answers_N == labels_N).sum())
    return {k: hits / len(query_MD) for k, hits in right.items()}


def _nearest(similarity_NM: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return similarities and rows (N, k) of the nearest; of equals, the lower row first."""
    values_NJ, rows_NJ = similarity_NM.topk(min(k + 1, similarity_NM.shape[1]), dim=1)
    # topk returns equals in any order. Only where some lie across the last place can it have
    # chosen the wrong ones, and only those few rows are worth a whole sort.
    if values_NJ.shape[1] > k:
        torn_N = values_NJ[:, k - 1] == values_NJ[:, k]
        values_NJ, rows_NJ = values_NJ[:, :k].clone(), rows_NJ[:, :k].clone()
        values, rows = similarity_NM[torn_N].sort(dim=1, descending=True, stable=True)
        values_NJ[torn_N], rows_NJ[torn_N] = values[:, :k], rows[:, :k]
    rows_NJ, order_NJ = rows_NJ.sort(dim=1)
    values_NJ = values_NJ.gather(1, order_NJ)
    values_NJ, order_NJ = values_NJ.sort(dim=1, descending=True, stable=True)
    return values_NJ, rows_NJ.gather(1, order_NJ)


def _vote(similarity_NJ: Tensor, labels_NJ: Tensor, temperature: float | None) -> Tensor:
    """Return the class (N,) with most of the J votes; no tensor has a dimension of K classes."""
    same_NJJ = labels_NJ[:, :, None] == labels_NJ[:, None, :]
    weights_NJ = torch.ones_like(similarity_NJ)
    if temperature is not None:  # the nearest weighs 1
        weights_NJ = ((similarity_NJ - similarity_NJ[:, :1]) / temperature).exp()
    votes_NJ = (same_NJJ * weights_NJ[:, None, :]).sum(dim=2)
    leads_NJ = votes_NJ == votes_NJ.amax(dim=1, keepdim=True)
    sums_NJ = (same_NJJ * similarity_NJ[:, None, :]).sum(dim=2)
    sums_NJ = sums_NJ.masked_fill(~leads_NJ, -torch.inf)
    leads_NJ = sums_NJ == sums_NJ.amax(dim=1, keepdim=True)
    beyond = torch.iinfo(labels_NJ.dtype).max
    return labels_NJ.masked_fill(~leads_NJ, beyond).amin(dim=1)


def _fit(model: LogisticRegression, features: np.ndarray, labels: np.ndarray) -> bool:
    """Fit, and return whether the solver converged instead of warning that it did not."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(features, labels)
    for other in caught:
        if not issubclass(other.category, ConvergenceWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return not any(issubclass(each.category, ConvergenceWarning) for each in caught)


def _check(classes: int, **parts: Labelled) -> None:
    widths = {name: rows.features_MD.shape[-1] for name, rows in parts.items()}
    for name, (features_MD, labels_M) in parts.items():
        check_rows(features_MD, labels_M, f"{name} features")
        check_ids(labels_M, classes, name)
    if len(set(widths.values())) > 1:
        shown = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise UserError(f"Features differ in width ({shown}): take them from one model and pool.")


def _float64(features_MD: Tensor) -> np.ndarray:
    return features_MD.detach().cpu().double().numpy()


# ---- what a backbone's own features are worth ---------------------------------------------------


def feature_measures(
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    *,
    classes: int,
    probes: Collection[str],
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Measure features by the probes asked for, and by alignment and uniformity on test images.

    Args:
        train: rows that probes learn from or vote with.
        validation: rows that softmax regression's penalty is chosen on.
        test: rows to report on.
        classes: K; labels are 0 to K - 1.
        probes: of "knn", "knn-weighted" and "softmax-regression".
        device: where kNN compares features.

    Returns:
        Plain numbers, ready for JSON: `uniformity`, `alignment` (unless every class has one test
        image), and as asked for `knn` and `knn_weighted`, {k: accuracy} for every k of 1, 5 and 20
        that there are train rows for, `softmax_regression` (accuracy) and
        `softmax_regression_fit` (C, converged).

    Raises:
        UserError: as the probes.
    """
    measures: dict[str, Any] = {}
    for probe, temperature in (("knn", None), ("knn-weighted", TEMPERATURE)):
        if probe not in probes:
            continue
        ks = [k for k in NEIGHBOURS if k <= len(train.labels_M)]
        votes = Labelled(train.features_MD.to(device), train.labels_M)
        accuracies = knn(votes, test, classes=classes, ks=ks, temperature=temperature)
        by_k = {str(k): accuracy for k, accuracy in accuracies.items()}
        measures[probe.replace("-", "_")] = by_k
    if "softmax-regression" in probes:
        result = softmax_regression(train, validation, test, classes=classes)
        measures["softmax_regression"] = result.accuracy
        measures["softmax_regression_fit"] = {"C": result.C, "converged": result.converged}
    if test.labels_M.bincount().max() > 1:
        measures["alignment"] = alignment(*test)
    measures["uniformity"] = uniformity(test.features_MD)
    return measures


def retention_measure(train: Labelled, test: Labelled, *, classes: int) -> float:
    """Return the kNN accuracy (k = 20, or as many rows as there are) on another data set."""
    k = min(RETENTION_NEIGHBOURS, len(train.labels_M))
    return knn(train, test, classes=classes, ks=[k])[k]


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
