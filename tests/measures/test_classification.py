"""Classification metrics against scikit-learn, torchmetrics, scipy and values by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import sklearn.metrics as skm
import torch
from scipy.stats import binomtest, entropy
from torchmetrics.functional.classification import multiclass_calibration_error

from visgrpo.errors import UserError
from visgrpo.measures import classification, evaluate_logits, scalar_measures, wilson_interval

K = 8
CLASSES = tuple(f"class {k}" for k in range(K))


def example(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels (never class 7) and reference logits of 300 examples."""
    generator = torch.Generator().manual_seed(seed)
    logits_MK, reference_MK = 2 * torch.randn(2, 300, K, generator=generator)
    labels_M = torch.randint(K - 1, (300,), generator=generator)
    logits_MK[torch.arange(300), labels_M] += 1.5
    return logits_MK, labels_M, reference_MK


def test_against_sklearn() -> None:
    logits_MK, labels_M, _ = example()
    metrics = evaluate_logits(logits_MK, labels_M, CLASSES)
    p_MK = logits_MK.double().softmax(dim=1).numpy()
    labels, answers, ids = labels_M.numpy(), p_MK.argmax(1), np.arange(K)
    present = ids[:-1]
    recalls = skm.recall_score(labels, answers, labels=present, average=None)
    assert metrics["accuracy"] == pytest.approx(skm.accuracy_score(labels, answers))
    assert metrics["confusion"] == skm.confusion_matrix(labels, answers, labels=ids).tolist()
    assert metrics["nll"] == pytest.approx(skm.log_loss(labels, p_MK, labels=ids))
    assert metrics["top5_accuracy"] == pytest.approx(
        skm.top_k_accuracy_score(labels, p_MK, k=5, labels=ids)
    )
    assert metrics["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert list(metrics["per_class_accuracy"]) == list(CLASSES)
    assert list(metrics["per_class_accuracy"].values())[:-1] == pytest.approx(list(recalls))
    assert metrics["per_class_accuracy"]["class 7"] is None
    assert metrics["examples"] == 300


def test_distributions_against_scipy_and_torchmetrics() -> None:
    logits_MK, labels_M, reference_MK = example(1)
    metrics = evaluate_logits(logits_MK, labels_M, CLASSES, reference_MK)
    p_MK, q_MK = logits_MK.double().softmax(1), reference_MK.double().softmax(1)
    assert metrics["entropy"] == pytest.approx(entropy(p_MK, axis=1).mean())
    assert metrics["entropy_normalized"] == pytest.approx(
        entropy(p_MK, axis=1).mean() / math.log(K)
    )
    assert metrics["kl"] == pytest.approx(entropy(p_MK, q_MK, axis=1).mean())
    ece = multiclass_calibration_error(p_MK, labels_M, K, n_bins=15, norm="l1").item()
    assert metrics["ece"] == pytest.approx(ece, abs=1e-6)


def test_by_hand() -> None:
    """Answers 0, 0, 1 for truths 0, 1, 1, each with probability 3/4, out of three classes."""
    log6 = math.log(6.0)  # 6 : 1 : 1 is 3/4, 1/8, 1/8
    logits_MK = torch.tensor([[log6, 0, 0], [log6, 0, 0], [0, log6, 0]], dtype=torch.float64)
    labels_M = torch.tensor([0, 1, 1])
    metrics = evaluate_logits(logits_MK, labels_M, ("a", "b", "c"), logits_MK + 5)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["per_class_accuracy"] == {"a": 1.0, "b": 0.5, "c": None}
    assert metrics["balanced_accuracy"] == pytest.approx(0.75)
    assert metrics["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert metrics["nll"] == pytest.approx((2 * math.log(4 / 3) + math.log(8)) / 3)
    assert metrics["ece"] == pytest.approx(3 / 4 - 2 / 3)
    assert metrics["entropy"] == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(8))
    assert metrics["kl"] == pytest.approx(0, abs=1e-12)
    assert "top5_accuracy" not in metrics


def test_json_and_optional_keys() -> None:
    logits_MK, labels_M, _ = example()
    metrics = evaluate_logits(logits_MK.requires_grad_(), labels_M, CLASSES)
    assert "kl" not in metrics
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_labels_of_any_whole_type() -> None:
    logits_MK, labels_M, _ = example()
    expected = evaluate_logits(logits_MK, labels_M, CLASSES)
    assert evaluate_logits(logits_MK, labels_M.to(torch.uint8), CLASSES) == expected


def test_extreme_confidence_stays_finite() -> None:
    """A probability that underflows to 0 adds 0 to the entropy, not NaN."""
    metrics = evaluate_logits(torch.tensor([[2000.0, 0.0]]), torch.tensor([1]), ("a", "b"))
    assert metrics["entropy"] == 0
    assert metrics["nll"] == 2000


SCALARS = {
    "accuracy",
    "balanced_accuracy",
    "top5_accuracy",
    "nll",
    "ece",
    "entropy",
    "entropy_normalized",
    "kl",
}


def test_scalar_measures_are_those_of_the_full_report() -> None:
    logits_MK, labels_M, reference_MK = example()
    scalars = scalar_measures(logits_MK, labels_M, reference_MK)
    assert set(scalars) == SCALARS
    report = evaluate_logits(logits_MK, labels_M, CLASSES, reference_MK)
    assert {name: report[name] for name in SCALARS} == scalars
    assert set(scalar_measures(logits_MK, labels_M)) == SCALARS - {"kl"}
    assert "top5_accuracy" not in scalar_measures(logits_MK[:, :5], labels_M % 5)


def test_rows_are_taken_in_pieces_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_MK, labels_M, reference_MK = example()
    whole = scalar_measures(logits_MK, labels_M, reference_MK)
    seen = []
    log_softmax = torch.Tensor.log_softmax
    monkeypatch.setattr(
        torch.Tensor, "log_softmax", lambda x, dim: seen.append(x.numel()) or log_softmax(x, dim)
    )
    monkeypatch.setattr(classification, "NUMBERS_AT_ONCE", 7 * K)
    assert scalar_measures(logits_MK, labels_M, reference_MK) == whole
    assert max(seen) == 7 * K
    assert sum(seen) == 2 * 300 * K


@pytest.mark.parametrize(("classes", "listed"), [(200, True), (201, False)])
def test_many_classes_have_no_confusion_matrix(classes: int, listed: bool) -> None:
    logits_MK = 30 * torch.eye(classes)
    names = [str(k) for k in range(classes)]
    report = evaluate_logits(logits_MK, torch.arange(classes), names)
    assert ("confusion" in report) == listed
    assert report["per_class_accuracy"] == dict.fromkeys(names, 1.0)


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (3, 7), (150, 200), (1, 1)])
def test_wilson_interval_against_scipy(right: int, total: int) -> None:
    theirs = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right, total) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_mistakes() -> None:
    logits_MK, labels_M, reference_MK = example()
    broken_MK = logits_MK.clone()
    broken_MK[5, 1], broken_MK[9, 0] = torch.nan, torch.inf
    for arguments, message in [
        ((logits_MK, labels_M[1:], CLASSES), r"logits \(300, 8\) and labels \(299,\)"),
        ((logits_MK, labels_M, CLASSES[1:]), "7 class names for logits of 8 classes"),
        ((logits_MK, labels_M, (*CLASSES[1:], "class 1")), "Two classes have the same name"),
        ((logits_MK, labels_M, CLASSES, reference_MK[:, 1:]), r"\(300, 7\) do not fit"),
        ((broken_MK, labels_M, CLASSES), "the logits of 2 of 300 examples, first in row 5"),
        ((logits_MK, labels_M, CLASSES, broken_MK), "the reference logits of 2 of 300"),
    ]:
        with pytest.raises(UserError, match=message):
            evaluate_logits(*arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the logits of 2 of 300 examples, first in row 5"):
        scalar_measures(broken_MK, labels_M)
    with pytest.raises(UserError, match=r"\(300, 7\) do not fit"):
        scalar_measures(logits_MK, labels_M, reference_MK[:, 1:])


def test_the_report_is_scikit_learn_s() -> None:
    """Also of a class that was never answered, and one without examples."""
    labels, answers = [0, 0, 1, 1, 1, 2, 2, 0], [0, 1, 1, 1, 0, 0, 1, 0]
    names = ["a", "b", "c", "d"]
    confusion = [[0] * 4 for _ in names]
    for label, answer in zip(labels, answers, strict=True):
        confusion[label][answer] += 1
    expected = skm.classification_report(
        labels, answers, labels=range(4), target_names=names, output_dict=True, zero_division=0
    )
    accuracy = expected.pop("micro avg", None) or {"precision": expected.get("accuracy")}
    expected["accuracy"] = accuracy["precision"]
    found = classification.classification_report(confusion, names)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values), name
