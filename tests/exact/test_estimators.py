"""Drawing outputs, and the weights of the three estimators."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from visgrpo.objectives import draw, estimator_weights

ALMOST_ONE = 1 - 2**-53


def doubles(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def uniforms(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape))


def test_literal_uniforms_give_literal_classes() -> None:
    """Quarters are exact in binary: class k is drawn for u in [F(k - 1), F(k))."""
    log_probs = doubles([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]]).log()
    u = doubles([[0.0, 0.2, 0.3, 0.7, 0.8, 0.99], [0.0, 0.49, 0.51, 0.74, 0.76, 0.99]])
    assert draw(log_probs, u).tolist() == [[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]]


def test_impossible_classes_are_never_drawn() -> None:
    """First, middle and last; at u = 0, at the largest u below 1, and at a rounded u of 1."""
    probabilities = doubles([[0.0, 0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0]])
    u = doubles([[0.0, ALMOST_ONE, 1.0], [0.0, ALMOST_ONE, 1.0]])
    assert draw(probabilities.log(), u).tolist() == [[1, 3, 3], [3, 3, 3]]
    many = draw(probabilities.log(), uniforms(0, 2, 10_000))
    assert set(many[0].tolist()) == {1, 3}
    assert set(many[1].tolist()) == {3}


def test_a_naive_inversion_would_draw_them() -> None:
    """The control: the same cases with searchsorted's default side land on impossible classes."""
    cumulative = doubles([0.0, 0.5, 0.5, 1.0, 1.0])
    assert torch.searchsorted(cumulative, doubles([0.0])).item() == 0
    assert torch.searchsorted(cumulative, doubles([1.0]), right=True).item() == 5


@pytest.mark.parametrize("total", [0.9999999, 1.0000001, 0.5])
def test_log_probs_that_do_not_sum_to_one(total: float) -> None:
    """Float32 rounding of the total is shared out, and the last u still finds a class."""
    log_probs = (torch.tensor([[0.3, 0.3, 0.4]]) * total).log()
    u = doubles([[0.0, 0.29, 0.31, 0.59, 0.61, ALMOST_ONE]])
    assert draw(log_probs, u).tolist() == [[0, 0, 1, 1, 2, 2]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_frequencies_follow_the_probabilities(dtype: torch.dtype) -> None:
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 10))).to(dtype)
    draws = draw(logits.log_softmax(-1), uniforms(2, 3, 100_000))
    for row, row_logits in zip(draws, logits.double(), strict=True):
        expected = torch.softmax(row_logits, -1).numpy() * 100_000
        observed = np.bincount(row.numpy(), minlength=10)
        assert chisquare(observed, expected).pvalue > 1e-3
        # The control: the neighbouring classes' probabilities are refused at once.
        assert chisquare(observed, np.roll(expected, 1)).pvalue < 1e-12


def test_draws_do_not_depend_on_the_batch() -> None:
    logits = torch.from_numpy(np.random.default_rng(3).normal(size=(33, 17))).float()
    log_probs, u = logits.log_softmax(-1), uniforms(4, 33, 9)
    whole = draw(log_probs, u)
    assert whole.dtype == torch.int64
    for i in range(33):
        assert torch.equal(whole[i : i + 1], draw(log_probs[i : i + 1], u[i : i + 1]))
    assert torch.equal(whole[8:21, :4], draw(log_probs[8:21], u[8:21, :4]))


def test_draws_carry_no_gradient() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    assert not draw(logits.log_softmax(-1), uniforms(5, 2, 4)).requires_grad


def test_weights_by_hand() -> None:
    log_probs = doubles([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]]).log().requires_grad_()
    assert estimator_weights("sampled", log_probs) is None
    exact = estimator_weights("exact", log_probs)
    torch.testing.assert_close(exact, doubles([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]]))
    assert not exact.requires_grad
    uniform = estimator_weights("uniform", log_probs)
    torch.testing.assert_close(uniform, doubles([[1 / 3] * 3] * 2))
    assert not uniform.requires_grad
    assert math.isclose(uniform.sum().item(), 2.0)


def test_uniforms_need_not_be_contiguous() -> None:
    log_probs, u = torch.zeros(3, 4).log_softmax(-1), uniforms(6, 5, 3).T
    assert torch.equal(draw(log_probs, u), draw(log_probs, u.contiguous()))
