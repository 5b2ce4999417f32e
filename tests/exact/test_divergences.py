"""Entropy and KL against numpy, scipy and closed forms; which estimators are right about what."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from visgrpo.objectives import aggregate, categorical_kl, entropy, normalized_entropy, token_kl


def doubles(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_logits(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(scale=2.0, size=shape))


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), logits)[0]


def test_entropy_by_hand() -> None:
    """A fair coin 1 bit, a class ruled out no matter, a certain class 0."""
    rows = doubles([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [1 / 3] * 3])
    expected = doubles([math.log(2), 1.5 * math.log(2), 0.0, math.log(3)])
    torch.testing.assert_close(entropy(rows.log()), expected)
    torch.testing.assert_close(normalized_entropy(rows.log()), expected / math.log(3))


def test_entropy_and_kl_against_scipy() -> None:
    logits, reference = random_logits(0, 4, 3, 7), random_logits(1, 4, 3, 7)
    p, q = logits.softmax(-1).numpy(), reference.softmax(-1).numpy()
    log_p, log_q = logits.log_softmax(-1), reference.log_softmax(-1)
    np.testing.assert_allclose(entropy(log_p), stats.entropy(p, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(
        normalized_entropy(log_p), stats.entropy(p, base=7, axis=-1), rtol=1e-12
    )
    np.testing.assert_allclose(categorical_kl(log_p, log_q), stats.entropy(p, q, axis=-1), 1e-12)


def test_kl_by_hand() -> None:
    """KL(1/2, 1/2 ‖ 1/4, 3/4) = log 2 - ½ log 3; the other way ¾ log 3 - log 2."""
    even, biased = doubles([0.5, 0.5]).log(), doubles([0.25, 0.75]).log()
    forth, back = categorical_kl(even, biased).item(), categorical_kl(biased, even).item()
    assert forth == pytest.approx(math.log(2) - 0.5 * math.log(3))
    assert back == pytest.approx(0.75 * math.log(3) - math.log(2))
    assert categorical_kl(biased, biased).item() == 0.0


def test_gradients_are_the_closed_forms() -> None:
    """∂H/∂z_k = -π_k (log π_k + H); ∂KL/∂z_k = π_k (log π_k/q_k - KL)."""
    logits = random_logits(2, 5, 6).requires_grad_()
    log_q = random_logits(3, 5, 6).log_softmax(-1)
    p, q = logits.detach().softmax(-1).numpy(), log_q.exp().numpy()
    h = stats.entropy(p, axis=-1)[:, None]
    kl = stats.entropy(p, q, axis=-1)[:, None]
    log_p = logits.log_softmax(-1)
    entropy_gradient = gradient(entropy(log_p), logits).numpy()
    np.testing.assert_allclose(entropy_gradient, -p * (np.log(p) + h), rtol=1e-10, atol=1e-13)
    log_p = logits.log_softmax(-1)
    kl_gradient = gradient(categorical_kl(log_p, log_q), logits).numpy()
    np.testing.assert_allclose(kl_gradient, p * (np.log(p / q) - kl), rtol=1e-10, atol=1e-13)


def test_ruled_out_classes_change_nothing() -> None:
    """-inf logits: value and gradient are those of the remaining classes, gradient 0 beside."""
    few = random_logits(4, 3, 4).requires_grad_()
    few_reference = random_logits(5, 3, 4)
    wall = torch.full((3, 2), -math.inf, dtype=torch.float64)
    many = torch.cat([few.detach(), wall], -1).requires_grad_()
    many_reference = torch.cat([few_reference, wall], -1)
    for function in (
        lambda z, ref: entropy(z.log_softmax(-1)),
        lambda z, ref: categorical_kl(z.log_softmax(-1), ref.log_softmax(-1)),
    ):
        narrow, wide = function(few, few_reference), function(many, many_reference)
        torch.testing.assert_close(wide, narrow)
        wide_gradient = gradient(wide, many)
        torch.testing.assert_close(wide_gradient[:, :4], gradient(narrow, few))
        assert torch.equal(wide_gradient[:, 4:], torch.zeros(3, 2, dtype=torch.float64))


def test_kl_to_a_reference_that_rules_a_class_out_is_infinite() -> None:
    certain = doubles([1.0, 0.0]).log()
    even = doubles([0.5, 0.5]).log()
    assert categorical_kl(even, certain).item() == math.inf
    assert categorical_kl(certain, even).item() == pytest.approx(math.log(2))


def test_kl_is_never_negative_beyond_rounding() -> None:
    logits = random_logits(6, 1000, 10).float()
    nudged = logits + 1e-4 * random_logits(7, 1000, 10).float()
    assert categorical_kl(logits.log_softmax(-1), nudged.log_softmax(-1)).min() > -1e-6


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [math.log(2), -math.log(2), 0.0]),
        ("k2", [math.log(2) ** 2 / 2, math.log(2) ** 2 / 2, 0.0]),
        ("k3", [math.log(2) - 1 / 2, 1 - math.log(2), 0.0]),
    ],
)
def test_token_kl_by_hand(estimator: str, expected: list[float]) -> None:
    """π twice, half and once the reference's probability: d = -log 2, log 2, 0."""
    log_probs, reference = doubles([0.5, 0.25, 0.3]).log(), doubles([0.25, 0.5, 0.3]).log()
    value = token_kl(log_probs, reference, estimator=estimator)
    torch.testing.assert_close(value, doubles(expected))
    thrice = token_kl(
        log_probs, reference, estimator=estimator, old_log_probs=log_probs - math.log(3)
    )
    torch.testing.assert_close(thrice, 3 * doubles(expected))


def test_k3_keeps_its_digits_near_the_reference() -> None:
    """At d = 1e-6 the value is d²/2 + d³/6; e^d - d - 1 in floats would keep 4 digits of it."""
    d = 1e-6
    expected = d**2 / 2 + d**3 / 6
    assert token_kl(doubles(0.0), doubles(d)).item() == pytest.approx(expected, rel=1e-9, abs=0)
    assert math.exp(d) - d - 1 != pytest.approx(expected, rel=1e-5, abs=0)  # the control


K = 6


def table_of_k() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits with gradient, log π, log π_ref and log π_old of one input over K classes."""
    logits = random_logits(8, K).requires_grad_()
    log_old = random_logits(10, K).log_softmax(-1)
    return logits, logits.log_softmax(-1), random_logits(9, K).log_softmax(-1), log_old


def expectation(sampler_log_probs: Tensor, values: Tensor) -> Tensor:
    """E over the sampler of a value per class. The sampler's probabilities are constants, as the
    tokens are in training: only the values carry gradient."""
    return (sampler_log_probs.detach().exp() * values).sum()


@pytest.mark.parametrize(("estimator", "unbiased"), [("k1", True), ("k2", False), ("k3", True)])
@pytest.mark.parametrize("stale", [False, True])
def test_expected_values(estimator: str, unbiased: bool, stale: bool) -> None:
    """k1 and k3 average to the KL, on policy and (weighted) off it; k2 does not."""
    _, log_p, log_q, log_old = table_of_k()
    exact = stats.entropy(log_p.detach().exp().numpy(), log_q.exp().numpy())
    values = token_kl(log_p, log_q, estimator=estimator, old_log_probs=log_old if stale else None)
    mean = expectation(log_old if stale else log_p, values).item()
    assert (abs(mean - exact) < 1e-12) == unbiased


def exact_kl_gradient(logits: Tensor, log_q: Tensor) -> np.ndarray:
    p, q = logits.detach().softmax(-1).numpy(), log_q.exp().numpy()
    return p * (np.log(p / q) - stats.entropy(p, q))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("stale", [False, True])
def test_expected_gradients_with_weights(estimator: str, stale: bool) -> None:
    """Weighted by π/π_old, with gradient but for k2, all three give the exact gradient of the KL.

    π_old may be π itself: the weight is then 1 and only its gradient counts.
    """
    logits, log_p, log_q, log_old = table_of_k()
    sampler = log_old if stale else log_p.detach()
    values = token_kl(log_p, log_q, estimator=estimator, old_log_probs=sampler)
    mean_gradient = gradient(expectation(sampler, values), logits).numpy()
    np.testing.assert_allclose(mean_gradient, exact_kl_gradient(logits, log_q), atol=1e-12)


def test_expected_gradients_without_weights() -> None:
    """On policy but unweighted, the roles change: only k2's mean gradient is that of the KL.

    k1's is 0, it regularises nothing; k3's is that of the *other* KL, KL(π_ref ‖ π): π - π_ref.
    """
    logits, log_p, log_q, _ = table_of_k()
    gradients = {
        estimator: gradient(
            expectation(log_p, token_kl(logits.log_softmax(-1), log_q, estimator=estimator)),
            logits,
        ).numpy()
        for estimator in ("k1", "k2", "k3")
    }
    p, q = log_p.detach().exp().numpy(), log_q.exp().numpy()
    np.testing.assert_allclose(gradients["k1"], np.zeros(K), atol=1e-14)
    np.testing.assert_allclose(gradients["k2"], exact_kl_gradient(logits, log_q), atol=1e-13)
    np.testing.assert_allclose(gradients["k3"], p - q, atol=1e-13)
    assert np.abs((p - q) - exact_kl_gradient(logits, log_q)).max() > 0.01


@pytest.mark.parametrize(
    ("estimator", "stale"),  # the weight of k2 off policy is a constant: see above
    [("k1", False), ("k1", True), ("k2", False), ("k3", False), ("k3", True)],
)
def test_token_gradients_by_finite_differences(estimator: str, stale: bool) -> None:
    _, log_p, log_q, log_old = table_of_k()

    def value(at: Tensor) -> Tensor:
        old = log_old if stale else None
        return token_kl(at, log_q, estimator=estimator, old_log_probs=old)

    assert torch.autograd.gradcheck(value, (log_p.detach().requires_grad_(),))


@pytest.mark.parametrize("junk", [-1e4, math.nan, -math.inf])
@pytest.mark.parametrize("which", ["new", "old"])
def test_masked_tokens_do_not_leak_into_the_penalty(junk: float, which: str) -> None:
    """Without the mask the loss would be clean and its gradient 0·inf = NaN."""
    log_probs = doubles([[[-1.0, junk if which == "new" else -1.0]]]).requires_grad_()
    old = doubles([[[-1.0, junk if which == "old" else -1.0]]])
    mask = torch.tensor([[[1, 0]]])
    values = token_kl(log_probs, doubles([[[-1.5, 0.0]]]), old_log_probs=old, mask=mask)
    aggregate(values, mask).backward()
    assert log_probs.grad.isfinite().all()


def test_kl_where_the_policy_underflows() -> None:
    """e^-200 is 0 in float32: the class cannot happen, and adds 0 instead of 0·inf = NaN."""
    log_probs = torch.tensor([0.0, -200.0]).log_softmax(-1)
    assert categorical_kl(log_probs, torch.tensor([0.0, -math.inf])) == 0.0
