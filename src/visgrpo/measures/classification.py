"""How good a classifier is, how sure and how calibrated, and how far from where it started."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.rewards.labels import NO_ANSWER

Z_95 = 1.959963984540054
"""Quantile 0.975 of the standard normal distribution."""


MAX_CONFUSION_CLASSES = 200
"""Above it a confusion matrix is too large to list (5,000 classes: 25 million cells)."""
MOSTLY = 0.9
"""Share of the examples from which on one answer is one for all."""
NUMBERS_AT_ONCE = 2**20
"""Logits turned into float64 at one time, in whole rows: 8 MiB."""


class _Rows(NamedTuple):
    """What the measures need of each of M examples, float64 unless said otherwise."""

    labels_M: Tensor  # int64
    answers_M: Tensor  # int64
    confidence_M: Tensor
    nll_M: Tensor
    entropy_M: Tensor
    top5_M: Tensor | None  # bool: the label is among the five likeliest classes
    kl_M: Tensor | None

    @property
    def right_M(self) -> Tensor:
        return self.answers_M == self.labels_M


def scalar_measures(
    logits_MK: Tensor, labels_M: Tensor, reference_logits_MK: Tensor | None = None
) -> dict[str, float]:
    """Measure a classifier on M labelled examples by single numbers, in float64.

    Time and memory are those of one pass over the logits, whatever K: for use during training.

    Args:
        logits_MK: unnormalised log-probabilities.
        labels_M: true class ids.
        reference_logits_MK: the frozen reference's logits on the same examples.

    Returns:
        * `accuracy`;
        * `balanced_accuracy`: mean over the classes that have examples of their accuracy;
        * `top5_accuracy`, only when K > 5;
        * `nll` (mean, nats) and `ece` (15 bins);
        * `entropy` (mean, nats), and `entropy_normalized`, divided by log K;
        * `kl`: mean KL(π‖π_ref) in nats, only when a reference is given.

    Raises:
        UserError: shapes do not fit, or a logit is NaN or infinite.
    """
    return _scalars(_rows(logits_MK, labels_M, reference_logits_MK), logits_MK.shape[1])


def evaluate_logits(
    logits_MK: Tensor,
    labels_M: Tensor,
    classes: Sequence[str],
    reference_logits_MK: Tensor | None = None,
) -> dict[str, Any]:
    """Report on a classifier on M labelled examples, in float64.

    Args:
        logits_MK: unnormalised log-probabilities.
        labels_M: true class ids.
        classes: the K class names, position = class id.
        reference_logits_MK: the frozen reference's logits on the same examples.

    Returns:
        Plain numbers, ready for JSON: those of `scalar_measures`, and

        * `examples`: M;
        * `accuracy_interval`: the accuracy's 95 % Wilson interval [low, high];
        * `per_class_accuracy`: {class: accuracy, or None if it has no example};
        * where the last class is `NO_ANSWER`, `answered`, the share of examples that get another
          answer, and `answered_accuracy` on these;
        * `confusion`: K×K counts, rows are the truth, columns the answers; left out above 200
          classes.

    Raises:
        UserError: shapes or class names do not fit, or a logit is NaN or infinite.
    """
    check_labels(logits_MK, labels_M, "logits")
    K = logits_MK.shape[1]
    check_names(classes, K, "logits")
    rows = _rows(logits_MK, labels_M, reference_logits_MK)
    right = int(rows.right_M.sum())
    accuracy_K = _accuracy_of_classes(rows, K).tolist()
    report: dict[str, Any] = {
        "examples": len(labels_M),
        **_scalars(rows, K),
        "accuracy_interval": list(wilson_interval(right, len(labels_M))),
        "per_class_accuracy": {
            name: None if math.isnan(accuracy) else accuracy
            for name, accuracy in zip(classes, accuracy_K, strict=True)
        },
    }
    if classes[-1] == NO_ANSWER:
        answered_M = rows.answers_M != K - 1
        report["answered"] = answered_M.double().mean().item()
        if answered_M.any():
            report["answered_accuracy"] = rows.right_M[answered_M].double().mean().item()
    if K <= MAX_CONFUSION_CLASSES:
        counts = torch.bincount(rows.labels_M * K + rows.answers_M, minlength=K * K)
        report["confusion"] = counts.reshape(K, K).tolist()
    return report


def classification_report(
    confusion: Sequence[Sequence[int]], classes: Sequence[str]
) -> dict[str, Any]:
    """Return precision, recall and F1 of every class, in the shape of scikit-learn's report.

    Args:
        confusion: K × K counts, rows are the truth, columns the answers.

    Returns:
        {class: {"precision", "recall", "f1-score", "support"}}, and the same of "macro avg" (every
        class counts alike) and "weighted avg" (by its support), and "accuracy". What would divide
        by 0 is 0, as there.
    """
    counts_KK = torch.tensor(confusion, dtype=torch.float64)
    right_K, answered_K, support_K = counts_KK.diag(), counts_KK.sum(0), counts_KK.sum(1)
    columns = {
        "precision": (right_K / answered_K).nan_to_num(0.0),
        "recall": (right_K / support_K).nan_to_num(0.0),
        "f1-score": (2 * right_K / (answered_K + support_K)).nan_to_num(0.0),
    }
    shares_K, total = support_K / support_K.sum(), int(support_K.sum())
    asked_K = torch.tensor([name != NO_ANSWER for name in classes])  # it is no class of an image
    means = {
        "macro avg": {key: float(each[asked_K].mean()) for key, each in columns.items()},
        "weighted avg": {key: float((shares_K * each).sum()) for key, each in columns.items()},
    }
    return {
        **{
            name: {
                **{key: float(each[k]) for key, each in columns.items()},
                "support": int(support_K[k]),
            }
            for k, name in enumerate(classes)
        },
        "accuracy": float(right_K.sum() / total),
        **{name: {**mean, "support": total} for name, mean in means.items()},
    }


def one_for_all(report: Mapping[str, Any]) -> str | None:
    """Return a warning where nearly all examples get one answer that few of them have in truth.

    Args:
        report: of `evaluate_logits`; without a confusion matrix nothing is said.
    """
    confusion = report.get("confusion")
    if not isinstance(confusion, list):  # of counts it is a mapping, and numbers are no classes
        return None
    counts_KK = torch.tensor(confusion).double()
    total = counts_KK.sum().item()
    if not total:
        return None
    answered_K, true_K = counts_KK.sum(dim=0) / total, counts_KK.sum(dim=1) / total
    k = int(answered_K.argmax())
    if answered_K[k] < MOSTLY or true_K[k] > answered_K[k] - (1 - MOSTLY) * 2:
        return None
    name = list(report["per_class_accuracy"])[k]
    return (
        f'"{name}" is the answer to {100 * answered_K[k]:.0f} % of the images, and right for '
        f"{100 * true_K[k]:.0f} %: the model has hardly learned, or its rewards pay one answer for "
        "all."
    )


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


def _rows(logits_MK: Tensor, labels_M: Tensor, reference_logits_MK: Tensor | None) -> _Rows:
    """Go over the logits in pieces of whole rows, so that no M×K float64 copy is ever made."""
    check_labels(logits_MK, labels_M, "logits")
    size = max(1, NUMBERS_AT_ONCE // logits_MK.shape[1])
    logits = logits_MK.detach().split(size)
    check_finite(logits, "logits", "examples")
    reference: Sequence[Tensor | None] = [None] * len(logits)
    if reference_logits_MK is not None:
        if reference_logits_MK.shape != logits_MK.shape:
            raise UserError(
                f"Reference logits {tuple(reference_logits_MK.shape)} do not fit logits "
                f"{tuple(logits_MK.shape)}."
            )
        pieces = reference_logits_MK.detach().split(size)
        check_finite(pieces, "reference logits", "examples")
        reference = pieces
    labels = labels_M.cpu().long().split(size)
    columns: dict[str, Any] = dict.fromkeys(_Rows._fields)
    start = 0
    for piece in zip(logits, labels, reference, strict=True):
        # Copied into whole columns: small tensors kept between the large ones that come and go
        # would leave the allocator holes that fit none of them.
        for name, part in _some_rows(*piece)._asdict().items():
            if part is None:
                continue
            if columns[name] is None:
                columns[name] = part.new_empty(len(labels_M))
            columns[name][start : start + len(part)] = part
        start += len(piece[0])
    return _Rows(**columns)


def _some_rows(logits_MK: Tensor, labels_M: Tensor, reference_MK: Tensor | None) -> _Rows:
    log_p_MK = _log_softmax(logits_MK)
    p_MK = log_p_MK.exp()
    log_confidence_M, answers_M = log_p_MK.max(dim=1)
    top5_M = kl_M = None
    if log_p_MK.shape[1] > 5:
        top5_M = (log_p_MK.topk(5, dim=1).indices == labels_M[:, None]).any(dim=1)
    if reference_MK is not None:
        kl_M = (p_MK * (log_p_MK - _log_softmax(reference_MK))).sum(dim=1)
    return _Rows(
        labels_M=labels_M,
        answers_M=answers_M,
        confidence_M=log_confidence_M.exp(),
        nll_M=-log_p_MK.gather(1, labels_M[:, None])[:, 0],
        entropy_M=-(p_MK * log_p_MK).sum(dim=1),
        top5_M=top5_M,
        kl_M=kl_M,
    )


def _scalars(rows: _Rows, K: int) -> dict[str, float]:
    entropy = rows.entropy_M.mean().item()
    measures = {
        "accuracy": rows.right_M.double().mean().item(),
        "balanced_accuracy": _accuracy_of_classes(rows, K).nanmean().item(),
        "nll": rows.nll_M.mean().item(),
        "ece": calibration_gap(bin_confidences(rows.confidence_M, rows.right_M)),
        "entropy": entropy,
        "entropy_normalized": entropy / math.log(K),
    }
    if rows.top5_M is not None:
        measures["top5_accuracy"] = rows.top5_M.double().mean().item()
    if rows.kl_M is not None:
        measures["kl"] = rows.kl_M.mean().item()
    return measures


def _accuracy_of_classes(rows: _Rows, K: int) -> Tensor:
    """Return the accuracy of each class (K,), NaN for a class without examples."""
    totals_K = torch.bincount(rows.labels_M, minlength=K)
    rights_K = torch.bincount(rows.labels_M[rows.right_M], minlength=K)
    return rights_K.double() / totals_K


def _log_softmax(logits_MK: Tensor) -> Tensor:
    # On the CPU, since some accelerators have no float64.
    return logits_MK.cpu().double().log_softmax(dim=1)


# ---- calibration: does a classifier know how often it is right? ---------------------------------


@dataclass(frozen=True)
class Reliability:
    """The bins of a reliability diagram: bin b holds confidences in (lower[b], upper[b]].

    `confidence` and `accuracy` are means over a bin, None where it is empty.
    """

    lower: list[float]
    upper: list[float]
    count: list[int]
    confidence: list[float | None]
    accuracy: list[float | None]


def reliability(probabilities_MK: Tensor, labels_M: Tensor, bins: int = 15) -> Reliability:
    """Bin examples by their confidence, the probability of the most probable class.

    Args:
        probabilities_MK: class probabilities; each row sums to 1.
        labels_M: true class ids.
        bins: number of equal-width bins of (0, 1], each closed on the right.

    Raises:
        UserError: shapes do not fit, labels are no class ids, or the rows are no probabilities.
    """
    if bins < 1:
        raise UserError(f"The number of bins is {bins}: it must be at least 1.")
    check_labels(probabilities_MK, labels_M, "probabilities")
    probabilities_MK = probabilities_MK.detach().cpu().double()
    sums_M = probabilities_MK.sum(dim=1)
    # Written so that NaN fails too. float32 rows of thousands of classes sum to 1 within 1e-3.
    if not ((probabilities_MK >= 0).all() and ((sums_M - 1).abs() <= 1e-3).all()):
        raise UserError("Each row of probabilities must be ≥ 0 and sum to 1: apply a softmax.")
    confidence_M, predicted_M = probabilities_MK.max(dim=1)
    return bin_confidences(confidence_M, predicted_M == labels_M.cpu(), bins)


def bin_confidences(confidence_M: Tensor, right_M: Tensor, bins: int = 15) -> Reliability:
    """Bin examples by confidence (float64), given which answers were right."""
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    bin_M = torch.bucketize(confidence_M, edges)  # edges[b-1] < confidence <= edges[b]
    counts = torch.bincount(bin_M, minlength=bins).tolist()
    return Reliability(
        lower=[b / bins for b in range(bins)],
        upper=[(b + 1) / bins for b in range(bins)],
        count=counts,
        confidence=_means(bin_M, confidence_M, counts),
        accuracy=_means(bin_M, right_M.double(), counts),
    )


def expected_calibration_error(probabilities_MK: Tensor, labels_M: Tensor, bins: int = 15) -> float:
    """Expected calibration error of the top label, from 0 (calibrated) to 1.

        ECE = Σ_b (n_b / M) · |accuracy_b - confidence_b|

    over equal-width bins of the confidence (Guo et al. 2017, "On Calibration of Modern Neural
    Networks", eq. 3). Arguments and errors as for `reliability`.
    """
    return calibration_gap(reliability(probabilities_MK, labels_M, bins))


def calibration_gap(diagram: Reliability) -> float:
    """Return the calibration error of a diagram: its mean |accuracy - confidence|."""
    gaps = zip(diagram.count, diagram.accuracy, diagram.confidence, strict=True)
    total = sum(n * abs(a - c) for n, a, c in gaps if a is not None and c is not None)
    return total / sum(diagram.count)


def check_labels(scores_MK: Tensor, labels_M: Tensor, what: str) -> None:
    """Raise `UserError` unless `labels_M` are class ids for the rows of `scores_MK`."""
    shapes = f"{what} {tuple(scores_MK.shape)} and labels {tuple(labels_M.shape)}"
    if scores_MK.ndim != 2 or labels_M.shape != scores_MK.shape[:1]:
        raise UserError(f"Shapes do not fit: {shapes}; expected (M, K) and (M,).")
    if labels_M.is_floating_point():
        raise UserError(f"Labels must be whole class ids, not {labels_M.dtype}.")
    if scores_MK.shape[0] == 0 or scores_MK.shape[1] < 2:
        raise UserError(f"Nothing to evaluate: {shapes}; give examples and at least two classes.")
    check_ids(labels_M, scores_MK.shape[1])


def check_ids(labels_M: Tensor, classes: int, rows_of: str = "") -> None:
    """Raise `UserError` unless labels go from 0 to the number of classes."""
    outside_M = (labels_M < 0) | (labels_M >= classes)
    if outside_M.any():
        row = int(outside_M.nonzero()[0])
        where = f"Row {row} of {rows_of}" if rows_of else f"Row {row}"
        raise UserError(
            f"{where} has label {int(labels_M[row])}; class ids go from 0 to {classes - 1}."
        )


def check_finite(pieces: Sequence[Tensor], what: str, of: str) -> None:
    """Raise `UserError` where a row of these pieces, (n, …) each, is not finite."""
    bad_M = torch.cat([~piece.isfinite().all(dim=1) for piece in pieces])
    if bad_M.any():
        raise UserError(
            f"NaN or infinity in the {what} of {int(bad_M.sum())} of {len(bad_M)} {of}, first "
            f"in row {int(bad_M.nonzero()[0])}: the model has diverged; try a lower learning rate."
        )


def check_names(classes: Sequence[str], K: int, of: str) -> None:
    """Raise `UserError` unless these are names for K classes, each of its own."""
    if len(classes) != K:
        raise UserError(f"{len(classes)} class names for {of} of {K} classes.")
    if len(set(classes)) != K:
        raise UserError("Two classes have the same name: give each class its own.")


def _means(bin_M: Tensor, values_M: Tensor, counts: list[int]) -> list[float | None]:
    sums = torch.bincount(bin_M, weights=values_M, minlength=len(counts)).tolist()
    return [total / n if n else None for total, n in zip(sums, counts, strict=True)]
