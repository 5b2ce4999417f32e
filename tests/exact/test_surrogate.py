"""The surrogate against tensors worked by hand and a plain Python loop over tokens."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from visgrpo.objectives import aggregate, most_uncertain, surrogate

CLIPS = ["two_sided", "detached", "soft", "none"]
AGGREGATIONS = ["sequence_mean", "token_mean", "constant"]
LEVELS = ["token", "sequence"]


def doubles(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def single_tokens(ratios: list[float], advantages: list[float], **knobs: object) -> dict:
    """Loss, gradients (per output, times G) and shares for one group of outputs of one token."""
    old = doubles([-0.5] * len(ratios)).reshape(1, -1, 1)
    log_probs = (old + doubles(ratios).log().reshape(1, -1, 1)).requires_grad_()
    result = surrogate(log_probs, old, doubles([advantages]), **knobs)
    result.loss.backward()
    return {
        "loss": result.loss.item() * len(ratios),
        "gradient": (log_probs.grad * len(ratios)).flatten().tolist(),
        "low": result.clip_low.item(),
        "high": result.clip_high.item(),
        "ratio": result.ratio_mean.item(),
    }


# ρ = 1.5 and 0.5, each with A = 2 and -2; last, ρ = 1.1 inside the trust region.
RATIOS, ADVANTAGES = [1.5, 1.5, 0.5, 0.5, 1.1], [2.0, -2.0, 2.0, -2.0, 2.0]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_two_sided_by_hand(level: str, aggregation: str) -> None:
    """-min(ρA, clip(ρ)A): -2.4, +3, -1, +1.6, -2.2. Clipped tokens have gradient 0, others -ρA."""
    result = single_tokens(RATIOS, ADVANTAGES, ratio_level=level, aggregation=aggregation)
    assert result["loss"] == pytest.approx(-2.4 + 3 - 1 + 1.6 - 2.2, abs=1e-14)
    assert result["gradient"] == pytest.approx([0.0, 3.0, -1.0, 0.0, -2.2], abs=1e-14)
    assert (result["low"], result["high"]) == pytest.approx((0.2, 0.2))
    assert result["ratio"] == pytest.approx(5.1 / 5)


def test_asymmetric_by_hand() -> None:
    """Clip-higher: 1.25 passes with ε_high = 0.28 and not with 0.2; the low side stays at 0.8."""
    wide = single_tokens([1.25, 1.5, 0.5], [1.0, 1.0, -1.0], epsilon_high=0.28)
    assert wide["loss"] == pytest.approx(-1.25 - 1.28 + 0.8)
    assert wide["gradient"] == pytest.approx([-1.25, 0.0, 0.0])
    assert (wide["low"], wide["high"]) == pytest.approx((1 / 3, 1 / 3))
    narrow = single_tokens([1.25, 1.5, 0.5], [1.0, 1.0, -1.0])
    assert narrow["loss"] == pytest.approx(-1.2 - 1.2 + 0.8)
    assert narrow["high"] == pytest.approx(2 / 3)


def test_detached_by_hand() -> None:
    """CISPO: a weight of at most 5, no floor; the gradient is -weight·A, clipped or not."""
    ratios, advantages = [10.0, 10.0, 0.01, 2.0], [1.0, -1.0, 1.0, -3.0]
    result = single_tokens(ratios, advantages, clip="detached", epsilon_low=1.0, epsilon_high=4.0)
    weighted = [5.0, -5.0, 0.01, -6.0]
    log_probs = [-0.5 + math.log(ratio) for ratio in ratios]
    loss = -sum(w * log_prob for w, log_prob in zip(weighted, log_probs, strict=True))
    assert result["loss"] == pytest.approx(loss)
    assert result["gradient"] == pytest.approx([-w for w in weighted])
    assert (result["low"], result["high"]) == (0.0, 0.5)


def test_unclipped_by_hand() -> None:
    result = single_tokens(RATIOS, ADVANTAGES, clip="none")
    assert result["loss"] == pytest.approx(-3 + 3 - 1 + 1 - 2.2)
    assert result["gradient"] == pytest.approx([-3.0, 3.0, -1.0, 1.0, -2.2])
    assert (result["low"], result["high"]) == (0.0, 0.0)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("level", LEVELS)
def test_the_first_pass_is_the_plain_policy_gradient(clip: str, level: str) -> None:
    """With π = π_old every clip and level gives the gradient -A/(N·G·T) at every token."""
    log_probs = -torch.from_numpy(np.random.default_rng(0).random((2, 3, 4)))
    log_probs.requires_grad_()
    advantages = doubles([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    surrogate(log_probs, log_probs, advantages, clip=clip, ratio_level=level).loss.backward()
    expected = (-advantages / 24)[..., None].expand(2, 3, 4)
    torch.testing.assert_close(log_probs.grad, expected)


def test_sequence_ratio_by_hand() -> None:
    """Token ratios 2 and 8 make one of 4 over two tokens; a masked third must not count."""
    old = torch.zeros(1, 1, 3, dtype=torch.float64)
    log_probs = doubles([[[math.log(2), math.log(8), 5.0]]]).requires_grad_()
    mask = torch.tensor([[[1, 1, 0]]])
    result = surrogate(
        log_probs, old, doubles([[-1.5]]), mask_NGT=mask, ratio_level="sequence", clip="none"
    )
    result.loss.backward()
    assert result.loss.item() == pytest.approx(4 * 1.5)
    # d/dx of exp((x + y)/2)·1.5 is half of it for each token.
    torch.testing.assert_close(log_probs.grad, doubles([[[3.0, 3.0, 0.0]]]))
    assert result.ratio_mean.item() == pytest.approx(4)


# Outputs of 2, 1 and 0 tokens in the first group; 3, 3 and 1 in the second.
MASK = torch.tensor([[[1, 1, 0], [1, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1], [0, 1, 0]]])
VALUES = [[[1.0, 3.0, 9], [6.0, 9, 9], [9, 9, 9]], [[1.0, 2.0, 3.0], [0.0, 0.0, 3.0], [9, 5.0, 9]]]


def test_aggregations_by_hand() -> None:
    """Sums 4, 6, 0 | 6, 3, 5; tokens 2, 1, 0 | 3, 3, 1; weights 1/3 each."""
    values = doubles(VALUES)
    sequence_mean = aggregate(values, MASK, how="sequence_mean").item()
    assert sequence_mean == pytest.approx((2 + 6 + 0 + 2 + 1 + 5) / 6)
    assert aggregate(values, MASK, how="token_mean").item() == pytest.approx(24 / 10)
    assert aggregate(values, MASK, how="constant", constant=4.0).item() == pytest.approx(24 / 24)


def test_weighted_aggregations_by_hand() -> None:
    weights = doubles([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    values = doubles(VALUES)
    sequence_mean = aggregate(values, MASK, weights, how="sequence_mean").item()
    assert sequence_mean == pytest.approx((0.5 * 2 + 0.25 * 6 + 1) / 2)
    token_mean = aggregate(values, MASK, weights, how="token_mean").item()
    assert token_mean == pytest.approx((0.5 * 4 + 0.25 * 6 + 3) / (0.5 * 2 + 0.25 + 3))
    constant = aggregate(values, MASK, weights, how="constant", constant=4.0).item()
    assert constant == pytest.approx((0.5 * 4 + 0.25 * 6 + 3) / (2 * 4))


@pytest.mark.parametrize("weighted", [False, True])
def test_aggregations_agree_on_outputs_of_one_token(weighted: bool) -> None:
    rng = np.random.default_rng(4)
    values = torch.from_numpy(rng.normal(size=(3, 5, 1)))
    weights = torch.from_numpy(rng.dirichlet(np.ones(5), 3)) if weighted else None
    expected = (values[..., 0] * (0.2 if weights is None else weights)).sum().item() / 3
    for how in AGGREGATIONS:
        assert aggregate(values, None, weights, how=how).item() == pytest.approx(expected)


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_nothing_unmasked_is_zero(how: str) -> None:
    values = doubles([[[math.nan], [math.inf]]]).requires_grad_()
    loss = aggregate(values, torch.zeros(1, 2, 1), how=how)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(values.grad, torch.zeros(1, 2, 1, dtype=torch.float64))


def loop_loss(
    log_probs: np.ndarray,
    old: np.ndarray,
    advantages: np.ndarray,
    mask: np.ndarray,
    weights: np.ndarray | None,
    *,
    aggregation: str,
    level: str,
    clip: str,
    low: float,
    high: float,
    constant: float,
    caps_at: np.ndarray,
) -> float:
    """The formulas, one token at a time; CISPO's weights are those of the point ``caps_at``."""

    def ratio(at: np.ndarray, n: int, g: int, t: int) -> float:
        tokens = [t] if level == "token" else [s for s in range(at.shape[2]) if mask[n, g, s]]
        return math.exp(sum(at[n, g, s] - old[n, g, s] for s in tokens) / len(tokens))

    n_inputs, group_size, length = log_probs.shape
    total = weighted_tokens = 0.0
    for n, g in product(range(n_inputs), range(group_size)):
        w = 1 / group_size if weights is None else weights[n, g]
        tokens = [t for t in range(length) if mask[n, g, t]]
        losses = []
        for t in tokens:
            rho, a = ratio(log_probs, n, g, t), advantages[n, g]
            if clip == "two_sided":
                losses.append(-min(rho * a, min(max(rho, 1 - low), 1 + high) * a))
            elif clip == "detached":
                cap = min(max(ratio(caps_at, n, g, t), 1 - low), 1 + high)
                losses.append(-cap * a * log_probs[n, g, t])
            elif clip == "soft":
                tau = 1.0 if a > 0 else 1.05
                losses.append(-4 / tau / (1 + math.exp(-tau * (rho - 1))) * a)
            else:
                losses.append(-rho * a)
        weighted_tokens += w * len(tokens)
        length_norm = max(len(tokens), 1) if aggregation == "sequence_mean" else 1
        total += w * sum(losses) / length_norm
    if aggregation == "token_mean":
        return total / weighted_tokens
    return total / n_inputs / (constant if aggregation == "constant" else 1)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient_against_the_loop(
    aggregation: str, level: str, clip: str, weighted: bool
) -> None:
    """Central differences of the loop, at a point whose ratios all lie away from the kinks."""
    rng = np.random.default_rng(7)
    old = -rng.random((2, 3, 3))
    log_probs = old + rng.normal(scale=0.5, size=old.shape)
    advantages = rng.normal(size=(2, 3))
    weights = rng.dirichlet(np.ones(3), 2) if weighted else None
    knobs = {"aggregation": aggregation, "clip": clip, "constant": 5.0}
    tensor = torch.from_numpy(log_probs).requires_grad_()
    result = surrogate(
        tensor,
        torch.from_numpy(old),
        torch.from_numpy(advantages),
        mask_NGT=MASK,
        weights_NG=None if weights is None else torch.from_numpy(weights),
        ratio_level=level,
        epsilon_low=0.2,
        epsilon_high=0.3,
        **knobs,
    )
    result.loss.backward()

    def loop(at: np.ndarray) -> float:
        return loop_loss(
            at, old, advantages, MASK.numpy(), weights,
            level=level, low=0.2, high=0.3, caps_at=log_probs, **knobs,
        )  # fmt: skip

    assert result.loss.item() == pytest.approx(loop(log_probs), rel=1e-12)
    numeric = np.zeros_like(log_probs)
    for index in np.ndindex(log_probs.shape):
        step = np.zeros_like(log_probs)
        step[index] = 1e-6
        numeric[index] = (loop(log_probs + step) - loop(log_probs - step)) / 2e-6
    np.testing.assert_allclose(tensor.grad.numpy(), numeric, rtol=1e-7, atol=1e-9)
    if clip == "two_sided":
        assert result.clip_low + result.clip_high > 0


def test_delta_bounds_what_a_negative_advantage_weighs() -> None:
    """-min(min(ρ, δ) A, clip(ρ) A): above δ the loss is -δA, and nothing else has changed."""
    ratios = doubles([[0.5, 0.5, 1.1, 1.5, 3.0, 1.5, 3.0]])
    advantages = doubles([[1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0]])
    log_probs = ratios.log()[..., None].requires_grad_()
    result = surrogate(log_probs, torch.zeros_like(log_probs), advantages, delta=2.0)
    losses = [-0.5, 0.8, 1.1, -1.2, -1.2, 1.5, 2.0]
    assert result.loss.item() == pytest.approx(sum(losses) / 7)
    (gradient,) = torch.autograd.grad(result.loss, log_probs)
    expected = doubles([-0.5, 0.0, 1.1, 0.0, 0.0, 1.5, 0.0]) / 7
    torch.testing.assert_close(gradient.flatten(), expected)
    assert result.clip_low.item() == pytest.approx(1 / 7)
    assert result.clip_high.item() == pytest.approx(3 / 7)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("clip", CLIPS)
def test_the_off_policy_mask_leaves_out_what_is_bad_and_far(clip: str, level: str) -> None:
    """Mean drifts of .3, .3 and .1 nats; the third token of the last is masked, and far."""
    old = torch.zeros(1, 3, 3, dtype=torch.float64)
    log_probs = doubles([[[-0.6, 0.1, -0.4], [-0.6, 0.1, -0.4], [-0.3, 0.1, -9.0]]])
    mask = torch.tensor([[[1, 1, 1], [1, 1, 1], [1, 1, 0]]])
    advantages = doubles([[-1.0, 1.0, -1.0]])

    def slope(threshold: float | None, a: Tensor = advantages) -> tuple[Tensor, Any]:
        point = log_probs.clone().requires_grad_()
        knobs = {"mask_NGT": mask, "clip": clip, "ratio_level": level}
        result = surrogate(point, old, a, off_policy_mask=threshold, **knobs)
        return torch.autograd.grad(result.loss, point)[0], result

    here, result = slope(0.2)
    expected, without = slope(None, doubles([[0.0, 1.0, -1.0]]))
    torch.testing.assert_close(here, expected)
    torch.testing.assert_close(result.loss, without.loss)
    assert result.masked.item() == pytest.approx(3 / 8)
    everything, result = slope(0.31)
    torch.testing.assert_close(everything, slope(None)[0])
    assert (result.masked.item(), without.masked) == (0.0, None)


@pytest.mark.parametrize("clip", ["two_sided", "soft", "none"])
@pytest.mark.parametrize("level", LEVELS)
def test_gradcheck(clip: str, level: str) -> None:
    rng = np.random.default_rng(8)
    old = torch.from_numpy(-rng.random((2, 3, 3)))
    log_probs = (old + torch.from_numpy(rng.normal(scale=0.4, size=(2, 3, 3)))).requires_grad_()
    advantages = torch.from_numpy(rng.normal(size=(2, 3)))

    def loss(at: Tensor) -> Tensor:
        return surrogate(at, old, advantages, mask_NGT=MASK, ratio_level=level, clip=clip).loss

    assert torch.autograd.gradcheck(loss, (log_probs,))


def test_gradcheck_refuses_a_detached_weight() -> None:
    """The control: CISPO's gradient is not its loss's derivative, and the check can tell."""
    log_probs = doubles([[[-0.4]]]).requires_grad_()

    def loss(at: Tensor) -> Tensor:
        return surrogate(at, doubles([[[-0.5]]]), doubles([[1.0]]), clip="detached").loss

    assert not torch.autograd.gradcheck(loss, (log_probs,), raise_exception=False)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30, -1e30])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_masked_positions_do_not_leak(junk: float, clip: str, level: str, aggregation: str) -> None:
    rng = np.random.default_rng(9)
    old = torch.from_numpy(-rng.random((2, 3, 3)))
    new = old + torch.from_numpy(rng.normal(scale=0.4, size=(2, 3, 3)))
    advantages = torch.from_numpy(rng.normal(size=(2, 3)))
    results = []
    for new_value, old_value in [(0.0, 0.0), (junk, 0.0), (0.0, junk), (junk, junk)]:
        log_probs = torch.where(MASK.bool(), new, new_value).requires_grad_()
        result = surrogate(
            log_probs,
            torch.where(MASK.bool(), old, old_value),
            advantages,
            mask_NGT=MASK,
            clip=clip,
            ratio_level=level,
            aggregation=aggregation,
        )
        result.loss.backward()
        measures = (result.clip_low, result.clip_high, result.ratio_mean)
        results.append((result.loss.detach(), log_probs.grad, *measures))
    for other in results[1:]:
        for clean, dirty in zip(results[0], other, strict=True):
            assert torch.equal(clean, dirty)


def test_a_mask_after_the_exponential_would_leak() -> None:
    """The control: exp(big)·0 is NaN in the gradient, so the test above can fail."""
    log_probs = doubles([1e30, 0.0]).requires_grad_()
    (log_probs.exp() * doubles([0.0, 1.0])).sum().backward()
    assert log_probs.grad[0].isnan()


@pytest.mark.parametrize("log_ratio", [200.0, -200.0, 1e4, -1e4])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_huge_log_ratios_stay_finite(
    log_ratio: float, advantage: float, clip: str, level: str, dtype: torch.dtype
) -> None:
    old = torch.full((1, 2, 2), -1.0, dtype=dtype)
    log_probs = torch.full((1, 2, 2), -1.0, dtype=dtype)
    log_probs[0, 0, 0] += log_ratio
    log_probs.requires_grad_()
    advantages = torch.tensor([[advantage, 1.0]])
    result = surrogate(log_probs, old, advantages, clip=clip, ratio_level=level)
    result.loss.backward()
    assert result.loss.isfinite()
    assert log_probs.grad.isfinite().all()
    if clip == "two_sided" and log_ratio * advantage > 0:
        assert log_probs.grad[0, 0, 0] == 0.0


def test_shares_count_tokens_that_are_not_masked() -> None:
    """Five tokens count: one clipped high (ρ = 2, A > 0), two low (ρ = 0.1, A < 0)."""
    ratios = doubles([[[2.0, 1.0, 2.0], [0.1, 0.1, 2.0]]])
    mask = torch.tensor([[[1, 1, 0], [1, 1, 1]]])
    zeros = torch.zeros(1, 2, 3, dtype=torch.float64)
    result = surrogate(ratios.log(), zeros, doubles([[1.0, -1.0]]), mask_NGT=mask)
    assert result.clip_high.item() == pytest.approx(1 / 5)
    assert result.clip_low.item() == pytest.approx(2 / 5)
    assert result.ratio_mean.item() == pytest.approx((2 + 1 + 0.1 + 0.1 + 2) / 5)


def test_measures_follow_the_weights() -> None:
    """All classes weighted by π_old = (.98, .01, .01): E[π/π_old] = 0.96 + 0.02 + 0.02 = 1.

    The ratios are 0.96/0.98, 2 and 2; with A = (1, 1, -1) only the second is clipped, weight 0.01.
    """
    old, new = doubles([[0.98, 0.01, 0.01]]), doubles([[0.96, 0.02, 0.02]])
    knobs = {"weights_NG": old}
    result = surrogate(new.log()[..., None], old.log()[..., None], doubles([[1, 1, -1]]), **knobs)
    assert result.ratio_mean.item() == pytest.approx(1.0, abs=1e-14)
    assert result.clip_high.item() == pytest.approx(0.01)
    assert result.clip_low.item() == 0.0
    swapped = surrogate(old.log()[..., None], new.log()[..., None], doubles([[1, -1, 1]]), **knobs)
    assert swapped.clip_low.item() == pytest.approx(0.01)
    assert swapped.ratio_mean.item() == pytest.approx(0.98 * 0.98 / 0.96 + 0.01)


def test_weighted_shares_count_tokens() -> None:
    """Weights .75 and .25, two tokens and one: ρ = 2, 1 | 3 weigh .75, .75 | .25, 1.75 in all."""
    ratios = doubles([[[2.0, 1.0], [3.0, 9.0]]])
    mask, weights = torch.tensor([[[1, 1], [1, 0]]]), doubles([[0.75, 0.25]])
    result = surrogate(
        ratios.log(),
        torch.zeros(1, 2, 2, dtype=torch.float64),
        doubles([[1.0, -1.0]]),
        mask_NGT=mask,
        weights_NG=weights,
    )
    assert result.clip_high.item() == pytest.approx(0.75 / 1.75)
    assert result.clip_low.item() == 0.0
    assert result.ratio_mean.item() == pytest.approx((0.75 * 3 + 0.25 * 3) / 1.75)


def test_measures_of_nothing_unmasked_are_zero() -> None:
    tokens = doubles([[[-1.0], [-2.0]]])
    for weights in (None, doubles([[0.5, 0.5]])):
        result = surrogate(
            tokens, tokens, doubles([[1.0, 1.0]]), mask_NGT=torch.zeros(1, 2, 1), weights_NG=weights
        )
        measures = (result.clip_low, result.clip_high, result.ratio_mean)
        assert [measure.item() for measure in measures] == [0.0, 0.0, 0.0]


def test_no_gradient_reaches_old_log_probs_advantages_or_measures() -> None:
    log_probs = doubles([[[-1.0], [-2.0]]]).requires_grad_()
    old = doubles([[[-1.1], [-1.9]]]).requires_grad_()
    advantages = doubles([[1.0, -1.0]]).requires_grad_()
    result = surrogate(log_probs, old, advantages)
    result.loss.backward()
    assert old.grad is None
    assert advantages.grad is None
    assert not any(
        measure.requires_grad for measure in (result.clip_low, result.clip_high, result.ratio_mean)
    )


@pytest.mark.parametrize("ratio", [1.2 + 1e-9, 3.0, 1e6])
def test_a_clipped_token_is_a_fixed_point(ratio: float) -> None:
    """Beyond the trust region on its profitable side an output pulls no further, only back."""
    good = single_tokens([ratio], [1.0])
    assert good["gradient"] == [0.0]
    assert good["high"] == 1.0
    regret = single_tokens([ratio], [-1.0])
    assert regret["gradient"] == pytest.approx([ratio])
    mirrored = single_tokens([0.8 / ratio], [-1.0])
    assert mirrored["gradient"] == [0.0]
    assert mirrored["low"] == 1.0


def test_ruled_out_classes_are_masked() -> None:
    """Over enumerated classes one of probability 0 has log-ratio inf - inf: its mask makes it 0."""
    logits = doubles([[0.3, 1.0, -math.inf]]).requires_grad_()
    log_probs = logits.log_softmax(-1)
    policy = log_probs.detach().exp()
    advantages = doubles([[1.0, -2.0, 5.0]])
    tokens = log_probs[..., None]
    mask = log_probs.isfinite()[..., None]
    loss = surrogate(tokens, tokens, advantages, mask_NGT=mask, weights_NG=policy).loss
    loss.backward()
    p = policy[0, 0].item()
    assert loss.item() == pytest.approx(-(p - 2 * (1 - p)))
    torch.testing.assert_close(logits.grad, -3 * p * (1 - p) * doubles([[1.0, -1.0, 0.0]]))


# One advantage for each token


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("clip", CLIPS)
def test_advantages_of_tokens_against_one_token_at_a_time(
    clip: str, level: str, aggregation: str
) -> None:
    """The loss is linear in advantages of one sign: it is the sum of the tokens' own losses."""
    rng = np.random.default_rng(11)
    old = torch.from_numpy(-rng.random((2, 3, 3)))
    log_probs = old + torch.from_numpy(rng.normal(scale=0.4, size=old.shape))
    advantages = torch.from_numpy(rng.random((2, 3, 3)))
    knobs = {
        "mask_NGT": MASK, "ratio_level": level, "clip": clip, "aggregation": aggregation,
        "constant": 4.0,
    }  # fmt: skip

    def loss_and_gradient(a: Tensor) -> tuple[Tensor, Tensor]:
        point = log_probs.clone().requires_grad_()
        result = surrogate(point, old, a, **knobs)
        (slope,) = torch.autograd.grad(result.loss, point)
        return result.loss.detach(), slope

    loss, slope = loss_and_gradient(advantages.masked_fill(MASK == 0, torch.nan))
    parts = []
    for index in np.ndindex(2, 3, 3):
        alone = torch.zeros_like(advantages)
        alone[index] = advantages[index]
        parts.append(loss_and_gradient(alone))
    kept = [part for part, index in zip(parts, np.ndindex(2, 3, 3), strict=True) if MASK[index]]
    torch.testing.assert_close(loss, sum(part[0] for part in kept))
    torch.testing.assert_close(slope, sum(part[1] for part in kept))


@pytest.mark.parametrize("clip", CLIPS)
def test_equal_advantages_of_tokens_are_those_of_the_output(clip: str) -> None:
    rng = np.random.default_rng(12)
    old = torch.from_numpy(-rng.random((2, 3, 3)))
    log_probs = old + torch.from_numpy(rng.normal(scale=0.4, size=old.shape))
    advantages = torch.from_numpy(rng.normal(size=(2, 3)))
    each = advantages[..., None].expand(-1, -1, 3)
    whole = surrogate(log_probs, old, advantages, mask_NGT=MASK, clip=clip)
    by_token = surrogate(log_probs, old, each, mask_NGT=MASK, clip=clip)
    for name in ("loss", "clip_low", "clip_high", "ratio_mean"):
        assert torch.equal(getattr(whole, name), getattr(by_token, name))


def test_advantages_of_tokens_by_hand() -> None:
    """Ratios 1.5, 0.5, 1.1 of one output: -min(ρA, clip(ρ)A) with A = 1, -2, 3 and a NaN after."""
    old = doubles([[[-1.0, -1.0, -1.0, -1.0]]])
    log_probs = old + doubles([[[1.5, 0.5, 1.1, 1.0]]]).log()
    advantages = doubles([[[1.0, -2.0, 3.0, math.nan]]])
    mask = torch.tensor([[[1, 1, 1, 0]]])
    result = surrogate(log_probs, old, advantages, mask_NGT=mask)
    assert result.loss.item() == pytest.approx((-1.2 + 1.6 - 3.3) / 3)
    assert result.clip_low.item() == pytest.approx(1 / 3)
    assert result.clip_high.item() == pytest.approx(1 / 3)


def test_a_constant_may_be_a_tensor() -> None:
    """Mean tokens of the whole batch: pieces with it add up to the whole's mean over tokens."""
    values = torch.from_numpy(np.random.default_rng(13).normal(size=(2, 3, 3)))
    whole = aggregate(values, MASK, how="token_mean")
    mean_tokens = MASK.sum().double() / 6
    pieces = [
        aggregate(values[n : n + 1], MASK[n : n + 1], how="constant", constant=mean_tokens)
        for n in range(2)
    ]
    assert (sum(pieces) / 2).item() == pytest.approx(whole.item(), rel=1e-12)
    zeros = torch.zeros(2, 3, 3, dtype=torch.float64)
    result = surrogate(
        zeros, zeros, values.mean(-1), mask_NGT=MASK, aggregation="constant", constant=mean_tokens
    )
    again = surrogate(zeros, zeros, values.mean(-1), mask_NGT=MASK, aggregation="token_mean")
    assert result.loss.item() == pytest.approx(again.loss.item(), rel=1e-12)


def test_the_most_uncertain_tokens_are_those_above_the_quantile() -> None:
    """Against torch's quantile, with ties, all tokens, one token, and none."""
    generator = torch.Generator().manual_seed(3)
    for trial in range(200):
        mask = torch.rand(4, 6, generator=generator) < 0.7
        values = torch.randint(0, 9, (4, 6), generator=generator).double()
        junk = values.masked_fill(~mask, torch.nan)
        share = (trial % 20 + 1) / 20
        found = most_uncertain(junk, mask, share)
        expected = mask & (values >= values[mask].quantile(1 - share))
        assert torch.equal(found, expected)
        assert found.sum() >= share * (mask.sum() - 1)
    assert torch.equal(most_uncertain(junk, mask, 1.0), mask)
    nothing = torch.zeros_like(mask)
    assert not most_uncertain(junk, nothing, 0.5).any()
