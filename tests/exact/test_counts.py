"""Scores of counts against every mask there is, and against losses written out by themselves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import pytest
import torch
from sklearn.metrics import fbeta_score, jaccard_score
from torch import Tensor

from visgrpo.objectives.counts import Counts, CountScore
from visgrpo.rewards.labels import COUNTED, count_reward

PIXELS, CLASSES = 6, 3
TRUTH = torch.tensor([0, 0, 0, 1, 1, 2])
MASKS = torch.tensor(list(itertools.product(range(CLASSES), repeat=PIXELS)))  # all 729
SCORES = {
    "miou": CountScore(1, 1, -1),
    "dice": CountScore(2, 1, 0),
    "fbeta": CountScore(1 + 0.5**2, 0.5**2, 0),
}


def counts_of(probabilities_RK: Tensor, labels_R: Tensor = TRUTH) -> Counts:
    return Counts.of(probabilities_RK, labels_R, torch.zeros_like(labels_R), 1)


def answers(mask_P: Tensor, n_classes: int = CLASSES) -> Tensor:
    return torch.nn.functional.one_hot(mask_P, n_classes).double()


@cache
def by_hand(name: str, mask_P: Sequence[int]) -> float:
    """The score of one mask in whole numbers, class by class."""
    truth_P = TRUTH.tolist()
    total, classes = Fraction(0), sorted(set(truth_P))
    for c in classes:
        both = sum(t == a == c for t, a in zip(truth_P, mask_P, strict=True))
        true, answered = truth_P.count(c), mask_P.count(c)
        total += {
            "miou": lambda b=both, t=true, a=answered: Fraction(b, t + a - b),
            "dice": lambda b=both, t=true, a=answered: Fraction(2 * b, t + a),
            "fbeta": lambda b=both, t=true, a=answered: Fraction(5 * b, 1 * t + 4 * a),
        }[name]()
    return float(total / len(classes))


@pytest.mark.parametrize("name", SCORES)
def test_the_score_of_every_mask(name: str) -> None:
    for mask_P in MASKS:
        ours = SCORES[name].scores(counts_of(answers(mask_P)))
        assert ours.item() == pytest.approx(by_hand(name, tuple(mask_P.tolist())))


@pytest.mark.parametrize("name", SCORES)
def test_the_score_is_scikit_learns(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    truth_R, answer_R = torch.randint(5, (2, 400), generator=generator)
    theirs = {
        "miou": lambda: jaccard_score(truth_R, answer_R, average="macro"),
        "dice": lambda: fbeta_score(truth_R, answer_R, beta=1, average="macro"),
        "fbeta": lambda: fbeta_score(truth_R, answer_R, beta=0.5, average="macro"),
    }[name]()
    ours = SCORES[name].scores(counts_of(answers(answer_R, 5), truth_R))
    assert ours.item() == pytest.approx(theirs)


def tables_of_others(name: str) -> Tensor:
    """The table's row of every pixel of every mask, from the counts of the others: (M, P, K)."""
    masks = len(MASKS)
    others_MPPK = answers(MASKS).unsqueeze(1).repeat(1, PIXELS, 1, 1)
    others_MPPK[:, range(PIXELS), range(PIXELS)] = 0  # true, but not answered
    scopes = torch.arange(masks * PIXELS).repeat_interleave(PIXELS)
    labels = TRUTH.repeat(masks * PIXELS)
    counts = Counts.of(others_MPPK.reshape(-1, CLASSES), labels, scopes, masks * PIXELS)
    right, wrong = (row.view(masks, PIXELS, CLASSES) for row in SCORES[name].changes(counts))
    return torch.where(answers(TRUTH) > 0, right, wrong)


@pytest.mark.parametrize("name", SCORES)
def test_the_table_is_what_one_more_answer_changes_in_every_mask(name: str) -> None:
    """Of all 729 masks, each pixel and each class: the difference of any two answers' scores."""
    for mask_P, table_PK in zip(MASKS, tables_of_others(name), strict=True):
        for pixel in range(PIXELS):
            scores_K = []
            for k in range(CLASSES):
                changed = mask_P.clone()
                changed[pixel] = k
                scores_K.append(by_hand(name, tuple(changed.tolist())))
            expected_K = torch.tensor(scores_K, dtype=torch.float64) - scores_K[0]
            assert (table_PK[pixel] - table_PK[pixel, 0] - expected_K).abs().max() < 1e-12


def gradient_of_all_masks(name: str, logits_PK: Tensor) -> Tensor:
    """∇ Σ_mask π(mask) S(mask), by enumeration."""
    leaf = logits_PK.clone().requires_grad_()
    log_probs_PK = leaf.log_softmax(dim=1)
    each_M = log_probs_PK[torch.arange(PIXELS), MASKS].sum(dim=1).exp()
    scores = [by_hand(name, tuple(mask_P.tolist())) for mask_P in MASKS]
    score_M = torch.tensor(scores, dtype=torch.float64)
    return torch.autograd.grad((each_M * score_M).sum(), leaf)[0]


def gradient_of_tables(logits_PK: Tensor, tables_PK: Tensor) -> Tensor:
    """∇ Σ_p Σ_a π_p(a)·table_p[a]."""
    leaf = logits_PK.clone().requires_grad_()
    return torch.autograd.grad((leaf.softmax(dim=1) * tables_PK).sum(), leaf)[0]


@pytest.mark.parametrize("name", SCORES)
def test_drawn_masks_give_the_exact_policy_gradient(name: str) -> None:
    """The mean over all 729 masks of the table's gradient is that of the expected score."""
    logits_PK = torch.randn(PIXELS, CLASSES, generator=torch.Generator().manual_seed(1)).double()
    log_probs_PK = logits_PK.log_softmax(dim=1)
    each_M = log_probs_PK[torch.arange(PIXELS), MASKS].sum(dim=1).exp()
    mean_PK = (each_M[:, None, None] * tables_of_others(name)).sum(dim=0)
    ours = gradient_of_tables(logits_PK, mean_PK)
    torch.testing.assert_close(ours, gradient_of_all_masks(name, logits_PK))


@pytest.mark.parametrize("name", SCORES)
def test_expected_counts_point_the_same_way_even_with_six_pixels(name: str) -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        logits_PK = torch.randn(PIXELS, CLASSES, generator=generator).double()
        right_1K, wrong_1K = SCORES[name].changes(counts_of(logits_PK.softmax(dim=1)))
        ours = gradient_of_tables(logits_PK, torch.where(answers(TRUTH) > 0, right_1K, wrong_1K))
        exact = gradient_of_all_masks(name, logits_PK)
        assert torch.cosine_similarity(ours.flatten(), exact.flatten(), dim=0) > 0.96


@pytest.mark.parametrize("name", SCORES)
def test_with_many_pixels_it_is_the_gradient_of_the_soft_loss(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    logits_RK = torch.randn(20_000, 4, generator=generator).double().requires_grad_()
    labels_R = torch.randint(4, (20_000,), generator=generator)
    p_RK, true_RK = logits_RK.softmax(dim=1), answers(labels_R, 4)
    both_K, sums_K = (p_RK * true_RK).sum(0), p_RK.sum(0) + true_RK.sum(0)
    soft = {
        "miou": lambda: (both_K / (sums_K - both_K)).mean(),
        "dice": lambda: (2 * both_K / sums_K).mean(),
        "fbeta": lambda: (1.25 * both_K / (0.25 * true_RK.sum(0) + p_RK.sum(0))).mean(),
    }[name]()
    counts = counts_of(p_RK, labels_R)
    torch.testing.assert_close(SCORES[name].scores(counts)[0], soft)
    right_1K, wrong_1K = (row.detach() for row in SCORES[name].changes(counts))
    table_RK = torch.where(true_RK > 0, right_1K, wrong_1K)
    theirs = torch.autograd.grad(soft, logits_RK, retain_graph=True)[0]
    ours = torch.autograd.grad((p_RK * table_RK).sum(), logits_RK)[0]
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-9)


def test_scopes_are_counted_apart() -> None:
    p_RK = torch.rand(7, 3, generator=torch.Generator().manual_seed(3)).double()
    labels_R, scopes_R = torch.tensor([0, 1, 2, 0, 1, 1, 0]), torch.tensor([0, 0, 0, 2, 2, 2, 2])
    together = Counts.of(p_RK, labels_R, scopes_R, 3).stacked()
    for scope in range(3):
        mine = scopes_R == scope
        alone = counts_of(p_RK[mine], labels_R[mine]).stacked()
        torch.testing.assert_close(together[:, scope], alone[:, 0])
    scores_S = SCORES["miou"].scores(Counts(*together))
    assert scores_S[1].isnan()  # nothing is in the truth of the second
    right_SK, wrong_SK = SCORES["miou"].changes(Counts(*together))
    assert not right_SK[1].any()
    assert not wrong_SK[1].any()
    assert right_SK[2, 2] == 0  # class 2 is not in the truth of the third


def test_names_have_these_scores() -> None:
    named = {"miou": SCORES["miou"], "dice": SCORES["dice"], "macro-f1": SCORES["dice"]}
    for name, score in named.items():
        assert CountScore(*count_reward(name, "").numbers) == score
    assert CountScore(*count_reward("fbeta", "0.5").numbers) == SCORES["fbeta"]
    assert set(COUNTED) == {*named, "fbeta"}
