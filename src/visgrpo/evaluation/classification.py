"""How good a classifier is, how sure, and how far from where it started."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.evaluation.calibration import check_labels, expected_calibration_error

Z_95 = 1.959963984540054
"""Quantile 0.975 of the standard normal distribution."""


def evaluate_logits(
    logits_MK: Tensor,
    labels_M: Tensor,
    classes: Sequence[str],
    reference_logits_MK: Tensor | None = None,
) -> dict[str, Any]:
    """Measure a classifier on M labelled examples, in float64.

    Args:
        logits_MK: unnormalised log-probabilities.
        labels_M: true class ids.
        classes: the K class names, position = class id.
        reference_logits_MK: the frozen reference's logits on the same examples.

    Returns:
        Plain numbers, ready for JSON:

        * `examples`: M;
        * `accuracy`, and `accuracy_interval`, its 95 % Wilson interval [low, high];
        * `top5_accuracy`, only when K > 5;
        * `per_class_accuracy`: {class: accuracy, or None if it has no example};
        * `balanced_accuracy`: their mean over the classes that have examples;
        * `confusion`: K×K counts, rows are the truth, columns the answers;
        * `nll` (mean, nats) and `ece` (15 bins);
        * `entropy` (mean, nats), and `entropy_normalized`, divided by log K;
        * `kl`: mean KL(π‖π_ref) in nats, only when a reference is given.

    Raises:
        UserError: shapes or class names do not fit, or a logit is NaN or infinite.
    """
    check_labels(logits_MK, labels_M, "logits")
    _check_finite(logits_MK, "logits")
    K = logits_MK.shape[1]
    if len(classes) != K:
        raise UserError(f"{len(classes)} class names for logits of {K} classes.")
    if len(set(classes)) != K:
        raise UserError("Two classes have the same name: give each class its own.")

    labels_M = labels_M.cpu().long()
    log_p_MK = _log_softmax(logits_MK)
    p_MK = log_p_MK.exp()
    confusion_KK = torch.bincount(labels_M * K + log_p_MK.argmax(dim=1), minlength=K * K).reshape(
        K, K
    )
    right = int(confusion_KK.diagonal().sum())
    per_class = _per_class_accuracy(confusion_KK, classes)
    present = [accuracy for accuracy in per_class.values() if accuracy is not None]
    entropy = -(p_MK * log_p_MK).sum(dim=1).mean().item()
    metrics: dict[str, Any] = {
        "examples": len(labels_M),
        "accuracy": right / len(labels_M),
        "accuracy_interval": list(wilson_interval(right, len(labels_M))),
        "balanced_accuracy": sum(present) / len(present),
        "per_class_accuracy": per_class,
        "confusion": confusion_KK.tolist(),
        "nll": -log_p_MK.gather(1, labels_M[:, None]).mean().item(),
        "ece": expected_calibration_error(p_MK, labels_M),
        "entropy": entropy,
        "entropy_normalized": entropy / math.log(K),
    }
    if K > 5:
        top_M5 = log_p_MK.topk(5, dim=1).indices
        metrics["top5_accuracy"] = (top_M5 == labels_M[:, None]).any(dim=1).double().mean().item()
    if reference_logits_MK is not None:
        if reference_logits_MK.shape != logits_MK.shape:
            raise UserError(
                f"Reference logits {tuple(reference_logits_MK.shape)} do not fit logits "
                f"{tuple(logits_MK.shape)}."
            )
        _check_finite(reference_logits_MK, "reference logits")
        log_ref_MK = _log_softmax(reference_logits_MK)
        metrics["kl"] = (p_MK * (log_p_MK - log_ref_MK)).sum(dim=1).mean().item()
    return metrics


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """95 % score interval for a proportion (Wilson 1927).

    With p = right / total, n = total and z the normal quantile:

        (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    """
    p, z2 = right / total, Z_95**2
    centre = p + z2 / (2 * total)
    half = Z_95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
    scale = 1 + z2 / total
    # The interval lies in [0, 1]; only rounding can push an end past it.
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def _log_softmax(logits_MK: Tensor) -> Tensor:
    # On the CPU, since some accelerators have no float64.
    return logits_MK.detach().cpu().double().log_softmax(dim=1)


def _per_class_accuracy(confusion_KK: Tensor, classes: Sequence[str]) -> dict[str, float | None]:
    rights, totals = confusion_KK.diagonal().tolist(), confusion_KK.sum(dim=1).tolist()
    return {
        name: right / total if total else None
        for name, right, total in zip(classes, rights, totals, strict=True)
    }


def _check_finite(logits_MK: Tensor, what: str) -> None:
    bad_M = ~logits_MK.isfinite().all(dim=1)
    if bad_M.any():
        raise UserError(
            f"NaN or infinity in the {what} of {int(bad_M.sum())} of {len(bad_M)} examples, first "
            f"in row {int(bad_M.nonzero()[0])}: the model has diverged; try a lower learning rate."
        )
