"""What a backbone's own features are worth: probes, and how they lie on the sphere."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch

from visgrpo.measures.geometry import alignment, uniformity
from visgrpo.measures.probes import NEIGHBOURS, Labelled, knn, softmax_regression

Probe = Literal["knn", "softmax-regression"]
RETENTION_NEIGHBOURS = 20


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
        probes: of "knn" and "softmax-regression".
        device: where kNN compares features.

    Returns:
        Plain numbers, ready for JSON: `uniformity`, `alignment` (unless every class has one test
        image), and as asked for `knn`, {k: accuracy} for every k of 1, 5 and 20 that there are
        train rows for, `softmax_regression` (accuracy) and `softmax_regression_fit` (C, converged).

    Raises:
        UserError: as the probes.
    """
    measures: dict[str, Any] = {}
    if "knn" in probes:
        ks = [k for k in NEIGHBOURS if k <= len(train.labels_M)]
        votes = Labelled(train.features_MD.to(device), train.labels_M)
        accuracies = knn(votes, test, classes=classes, ks=ks)
        measures["knn"] = {str(k): accuracy for k, accuracy in accuracies.items()}
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
