"""Answers by costs and thresholds, and biases of classes, against enumeration."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from sklearn.metrics import f1_score

from visgrpo.errors import UserError
from visgrpo.measures.classification import evaluate_logits, one_for_all
from visgrpo.measures.decisions import Decision, fit_biases
from visgrpo.objectives.counts import CountScore

CLASSES = ("cat", "dog", "fox")


def some(rows: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels_M = torch.randint(3, (rows,), generator=generator)
    logits_MK = torch.randn(rows, 3, generator=generator)
    logits_MK[torch.arange(rows), labels_M] += 1
    return logits_MK, labels_M


def test_the_cheapest_answer_and_what_it_costs(tmp_path: Path) -> None:
    costs = [[0, 1, 5], [20, 0, 1], [3, 2, 0]]
    table = tmp_path / "costs.csv"
    table.write_text(
        "truth,cat,dog,fox\n"
        + "".join(f"{n},{','.join(map(str, r))}\n" for n, r in zip(CLASSES, costs, strict=True))
    )
    rule, (logits_MK, labels_M) = Decision.parse(f"cost:{table}", CLASSES), some()
    p_MK = logits_MK.double().softmax(1)
    expected = [
        min(range(3), key=lambda a: sum(p[k] * costs[k][a] for k in range(3)))
        for p in p_MK.tolist()
    ]
    assert rule.answers(p_MK).tolist() == expected
    measures = rule.measures(logits_MK, labels_M)
    pairs = list(zip(labels_M.tolist(), expected, strict=True))
    assert measures["cost"] == pytest.approx(sum(costs[t][a] for t, a in pairs) / 40)
    assert measures["accuracy"] == pytest.approx(sum(t == a for t, a in pairs) / 40)


def test_no_answer_below_the_threshold() -> None:
    logits_MK, labels_M = some()
    measures = Decision.parse("threshold:0.6", CLASSES).measures(logits_MK, labels_M)
    confidence_M, answers_M = logits_MK.double().softmax(1).max(1)
    sure_M, right_M = confidence_M >= 0.6, answers_M == labels_M
    assert 0 < sure_M.sum() < 40
    assert measures["answered"] == pytest.approx(sure_M.double().mean())
    assert measures["answered_accuracy"] == pytest.approx(right_M[sure_M].double().mean())
    assert measures["accuracy"] == pytest.approx((right_M & sure_M).double().mean())


@pytest.mark.parametrize("text", ["max", "cost:", "threshold:2", "threshold:x", "threshold:0"])
def test_other_rules_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"is no rule: write argmax, cost:FILE .* or threshold:T"):
        Decision.parse(text, CLASSES)


def test_biases_find_the_best_of_a_grid() -> None:
    """Two odds decide three classes: all pairs of places are tried, and are hardly better."""
    logits_MK, labels_M = some(rows=200, seed=1)
    logits_MK[:, 2] -= 2.0  # a class that is never likely enough

    def macro_f1(biases_K: torch.Tensor) -> float:
        answers_M = (logits_MK.double() + biases_K).argmax(1)
        return float(f1_score(labels_M, answers_M, average="macro"))

    ours = macro_f1(fit_biases(logits_MK, labels_M, CountScore(2, 1, 0)))
    places = torch.linspace(-3, 3, 61).tolist()
    best = max(
        macro_f1(torch.tensor([0.0, b, c], dtype=torch.float64))
        for b, c in itertools.product(places, places)
    )
    assert ours > macro_f1(torch.zeros(3)) + 0.1
    assert ours > best - 0.02


def test_one_answer_for_all_is_said() -> None:
    labels_M = torch.arange(40) % 3
    logits_MK = torch.tensor([0.0, 2.0, 1.0]).repeat(40, 1)
    said = one_for_all(evaluate_logits(logits_MK, labels_M, CLASSES))
    assert said is not None
    assert said.startswith('"dog" is the answer to 100 % of the images, and right for 32 %')
    assert one_for_all(evaluate_logits(*some(), CLASSES)) is None
    mostly_dogs = torch.where(torch.arange(40) < 37, 1, 0)
    assert one_for_all(evaluate_logits(logits_MK, mostly_dogs, CLASSES)) is None
    assert one_for_all({"miou": 0.5}) is None
