"""Advantages against tensors worked by hand and a numpy loop written from the formulas."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from visgrpo.errors import UserError
from visgrpo.objectives import advantages, all_equal, combine_rewards

# Group means 3 and 7, batch mean 5. Squared deviations: 6 and 50 in the groups, 80 in the batch.
REWARDS = [[1.0, 3.0, 3.0, 5.0, 3.0, 3.0, 4.0, 2.0], [12.0, 2.0, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0]]
R0, R1 = np.array(REWARDS)
GROUP_STD = (np.sqrt(10 / 7), np.sqrt(50 / 7))
BATCH_SQUARES = 10 + 50 + 16 * 2**2

HAND_WORKED = {
    ("group", "mean", "none"): (R0 - 3, R1 - 7),
    ("group", "mean", "std"): ((R0 - 3) / GROUP_STD[0], (R1 - 7) / GROUP_STD[1]),
    ("group", "mean", "batch_std"): tuple(
        d / np.sqrt(BATCH_SQUARES / 15) for d in (R0 - 3, R1 - 7)
    ),
    ("group", "mean", "mean"): (R0 / 3 - 1, R1 / 7 - 1),
    ("group", "leave_one_out", "none"): ((R0 - 3) * 8 / 7, (R1 - 7) * 8 / 7),
    ("group", "leave_one_out", "std"): (
        (R0 - 3) * 8 / 7 / GROUP_STD[0],
        (R1 - 7) * 8 / 7 / GROUP_STD[1],
    ),
    ("group", "none", "none"): (R0, R1),
    ("group", "none", "std"): (R0 / GROUP_STD[0], R1 / GROUP_STD[1]),
    ("group", "none", "mean"): (R0 / 3, R1 / 7),
    ("batch", "mean", "none"): (R0 - 5, R1 - 5),
    ("batch", "mean", "std"): tuple((r - 5) / np.sqrt(BATCH_SQUARES / 15) for r in (R0, R1)),
    ("batch", "mean", "batch_std"): tuple((r - 5) / np.sqrt(BATCH_SQUARES / 15) for r in (R0, R1)),
    ("batch", "mean", "mean"): (R0 / 5 - 1, R1 / 5 - 1),
    ("batch", "leave_one_out", "none"): ((R0 - 5) * 16 / 15, (R1 - 5) * 16 / 15),
    ("batch", "none", "none"): (R0, R1),
    ("batch", "none", "mean"): (R0 / 5, R1 / 5),
}


def doubles(values: object) -> torch.Tensor:
    return torch.tensor(np.array(values), dtype=torch.float64)


@pytest.mark.parametrize("knobs", HAND_WORKED, ids="-".join)
def test_hand_worked_tensors(knobs: tuple[str, str, str]) -> None:
    scope, baseline, scale = knobs
    result = advantages(doubles(REWARDS), scope=scope, baseline=baseline, scale=scale, eps=0.0)
    torch.testing.assert_close(result, doubles(HAND_WORKED[knobs]), rtol=1e-13, atol=1e-13)


def test_the_default_is_grpo_written_out() -> None:
    """Rewards 0, 0, 0, 1: mean 1/4, sample standard deviation 1/2."""
    expected = [[-0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, 0.75 / 0.5001]]
    result = advantages(doubles([[0.0, 0.0, 0.0, 1.0]]))
    torch.testing.assert_close(result, doubles(expected), rtol=1e-13, atol=0)


def loop_advantages(
    rewards: np.ndarray,
    scope: str,
    baseline: str,
    scale: str,
    eps: float,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """One reward at a time, from the formulas; the weighted moments are distributions' moments."""
    n_inputs, group_size = rewards.shape
    result = np.empty_like(rewards)

    def moments(values: np.ndarray, w: np.ndarray | None) -> tuple[float, float]:
        if w is None:
            return values.mean(), values.std(ddof=1)
        mean = np.average(values, weights=w)
        return mean, np.sqrt(np.average((values - mean) ** 2, weights=w))

    for n, g in product(range(n_inputs), range(group_size)):
        pool = rewards if scope == "batch" else rewards[n : n + 1]
        pool_weights = weights if scope == "batch" or weights is None else weights[n : n + 1]
        mean, std = moments(pool, pool_weights)
        base = {
            "mean": mean,
            "leave_one_out": (pool.sum() - rewards[n, g]) / (pool.size - 1),
            "none": 0.0,
        }[baseline]
        scales = {"std": std, "batch_std": moments(rewards, weights)[1], "mean": mean}
        divisor = 1.0 if scale == "none" else scales[scale] + eps
        result[n, g] = (rewards[n, g] - base) / divisor
    return result


@pytest.mark.parametrize("scope", ["group", "batch"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out", "none"])
@pytest.mark.parametrize("scale", ["std", "batch_std", "mean", "none"])
def test_every_combination_against_the_loop(scope: str, baseline: str, scale: str) -> None:
    rewards = np.random.default_rng(1).random((5, 6)) * np.array([[0.1], [1], [5], [9], [2]])
    result = advantages(
        doubles(rewards), scope=scope, baseline=baseline, scale=scale, eps=1e-3
    ).numpy()
    np.testing.assert_allclose(
        result, loop_advantages(rewards, scope, baseline, scale, 1e-3), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("kind", ["exact", "uniform"])
@pytest.mark.parametrize("scope", ["group", "batch"])
@pytest.mark.parametrize("baseline", ["mean", "none"])
@pytest.mark.parametrize("scale", ["std", "batch_std", "mean", "none"])
def test_weighted_moments_against_the_loop(
    kind: str, scope: str, baseline: str, scale: str
) -> None:
    rng = np.random.default_rng(2)
    rewards = rng.random((4, 5))
    weights = rng.dirichlet(np.ones(5), 4) if kind == "exact" else np.full((4, 5), 1 / 5)
    result = advantages(
        doubles(rewards),
        scope=scope,
        baseline=baseline,
        scale=scale,
        weights_NG=doubles(weights),
        eps=1e-3,
    ).numpy()
    expected = loop_advantages(rewards, scope, baseline, scale, 1e-3, weights)
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-14)


def test_weighted_advantages_by_hand() -> None:
    """A right class of probability 0.2: A is +2 and -1/2, mean 0 and variance 1 under the policy.

    With weights 1/K over 5 classes the same rewards give √(K - 1) = 2 as well; three classes tell
    the two apart: √2.
    """
    policy = doubles([[0.2, 0.5, 0.3]])
    rewards = doubles([[1.0, 0.0, 0.0]])
    exact = advantages(rewards, weights_NG=policy, eps=0.0)
    torch.testing.assert_close(exact, doubles([[2.0, -0.5, -0.5]]))
    uniform = advantages(rewards, weights_NG=doubles([[1 / 3] * 3]), eps=0.0)
    torch.testing.assert_close(uniform, doubles([[2**0.5, -(0.5**0.5), -(0.5**0.5)]]))


def test_leave_one_out_is_the_mean_baseline_times_g_over_g_minus_1() -> None:
    rewards = np.random.default_rng(3).normal(size=(7, 5))
    result = advantages(doubles(rewards), baseline="leave_one_out", scale="none").numpy()
    expected = 5 / 4 * (rewards - rewards.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("value", [0.1, 1 / 3, -7.7, 1e8 / 3, 0.0])
@pytest.mark.parametrize("scope", ["group", "batch"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["std", "batch_std", "mean", "none"])
@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_equal_rewards_give_exactly_zero(
    value: float, scope: str, baseline: str, scale: str, eps: float
) -> None:
    if scale == "mean":
        value = abs(value)
    for group_size, dtype in product((3, 8, 11), (torch.float64, torch.float32)):
        rewards = torch.full((2, group_size), value, dtype=dtype)
        result = advantages(rewards, scope=scope, baseline=baseline, scale=scale, eps=eps)
        assert torch.equal(result, torch.zeros_like(rewards))


def test_the_mean_of_equal_rewards_does_round() -> None:
    """The control: a zero that is computed and not set is rounding over rounding: of order 1."""
    rewards = torch.full((1, 3), 0.1, dtype=torch.float64)
    assert ((rewards - rewards.mean()) / rewards.std()).abs().max() > 0.5


def test_an_equal_group_is_zero_beside_an_unequal_one() -> None:
    rewards = doubles([[1 / 3] * 8, [0.0] * 7 + [1.0]])
    result = advantages(rewards, eps=0.0)
    assert torch.equal(result[0], torch.zeros(8, dtype=torch.float64))
    # One success of eight: mean 1/8, sample variance (7/64)·(8/7) = 1/8.
    expected = doubles([-(8**-0.5)] * 7 + [7 * 8**-0.5])
    torch.testing.assert_close(result[1], expected)


def test_all_equal() -> None:
    rewards = doubles([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.1 + 0.2, 0.3, 0.3], [0.3, 0.3, 0.3]])
    assert all_equal(rewards).tolist() == [True, False, False, True]


def test_half_precision_rewards_are_computed_in_float32() -> None:
    """The mean of these is 2 + 1/300, which bfloat16 would round to 2."""
    rewards = torch.full((1, 300), 2.0)
    rewards[0, 0] = 3.0
    result = advantages(rewards.bfloat16(), scale="none")
    assert result.dtype == torch.float32
    torch.testing.assert_close(result[0, 1].item(), -1 / 300, rtol=1e-4, atol=0)


# Two rewards, the second in units a hundred times larger.
TWO_REWARDS = [[[0.0, 100.0], [1.0, 300.0], [2.0, 200.0]]]


def test_sum_then_normalize_by_hand() -> None:
    """Sums with weights 1, 0.5: 50, 151, 102; mean 101, sample variance (51² + 50² + 1)/2."""
    result = combine_rewards(doubles(TWO_REWARDS), torch.tensor([1.0, 0.5]), eps=0.0)
    std = ((51**2 + 50**2 + 1) / 2) ** 0.5
    torch.testing.assert_close(result, doubles([[-51 / std, 50 / std, 1 / std]]))


def test_normalize_then_sum_by_hand() -> None:
    """Z-scores -1, 0, 1 and -1, 1, 0, whatever the units; then the weights."""
    result = combine_rewards(
        doubles(TWO_REWARDS),
        torch.tensor([1.0, 0.5]),
        combination="normalize_then_sum",
        eps=0.0,
    )
    torch.testing.assert_close(result, doubles([[-1.5, 0.5, 1.0]]))


@pytest.mark.parametrize("combination", ["sum_then_normalize", "normalize_then_sum"])
def test_combinations_against_the_loop(combination: str) -> None:
    rng = np.random.default_rng(5)
    rewards, policy = rng.random((4, 5, 3)), rng.dirichlet(np.ones(5), 4)
    reward_weights = np.array([1.0, -0.5, 2.0])
    knobs = ("batch", "mean", "std", 1e-3)
    if combination == "sum_then_normalize":
        expected = loop_advantages(rewards @ reward_weights, *knobs, weights=policy)
    else:
        expected = sum(
            w * loop_advantages(rewards[..., i], *knobs, weights=policy)
            for i, w in enumerate(reward_weights)
        )
    result = combine_rewards(
        doubles(rewards),
        torch.tensor(reward_weights),
        combination=combination,
        scope="batch",
        weights_NG=doubles(policy),
        eps=1e-3,
    ).numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"rewards_NG": [[1.0], [2.0]]}, "A group of one output has no baseline"),
        ({"rewards_NG": [[1.0], [2.0]], "baseline": "none"}, "A group of one output has no spread"),
        ({"rewards_NG": [[1.0]], "scope": "batch"}, "A batch of one output has no baseline"),
        (
            {"rewards_NG": [[1.0, 2.0]], "baseline": "leave_one_out", "weights_NG": [[0.5, 0.5]]},
            "needs sampled outputs",
        ),
        ({"rewards_NG": [[1.0, -2.0]], "scale": "mean"}, "needs rewards ≥ 0"),
    ],
)
def test_mistakes_are_named(knobs: dict[str, object], message: str) -> None:
    tensors = {k: doubles(v) if k.endswith("_NG") else v for k, v in knobs.items()}
    with pytest.raises(UserError, match=message):
        advantages(**tensors)


def test_a_group_of_one_is_fine_in_a_batch_or_without_baseline() -> None:
    rewards = doubles([[1.0], [3.0]])
    torch.testing.assert_close(
        advantages(rewards, scope="batch", scale="none"), doubles([[-1.0], [1.0]])
    )
    assert torch.equal(advantages(rewards, baseline="none", scale="none"), rewards)


def test_integer_rewards() -> None:
    """Counts and hits are integers: (outputs == label).long() is a natural reward."""
    result = advantages(torch.tensor([[1, 3]]), scale="none")
    torch.testing.assert_close(result, torch.tensor([[-1.0, 1.0]]))


def test_one_output_in_all_has_no_batch_std() -> None:
    with pytest.raises(UserError):
        advantages(doubles([[1.0]]), baseline="none", scale="batch_std")


def test_one_output_a_group_over_the_batch() -> None:
    """Without a baseline nothing is compared inside a group: the scale is the batch's."""
    rewards = doubles([[0.0], [1.0], [2.0]])
    result = advantages(rewards, baseline="none", scale="batch_std")
    np.testing.assert_allclose(result.numpy(), [[0], [1 / 1.0001], [2 / 1.0001]], atol=1e-12)
    same = advantages(doubles([[3.0], [3.0]]), baseline="none", scale="batch_std")
    assert same.tolist() == [[0], [0]]


@pytest.mark.parametrize("scale", ["std", "batch_std"])
def test_equal_rewards_teach_nothing_without_a_baseline_either(scale: str) -> None:
    """Not 0.5 / (0 + eps), which would be 5,000."""
    result = advantages(torch.full((2, 4), 0.5), baseline="none", scale=scale)
    assert result.tolist() == [[0.0] * 4] * 2


@pytest.mark.parametrize("scope", ["group", "batch"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_large_rewards_are_centred_in_float32(scope: str, baseline: str) -> None:
    small = torch.tensor([[0.0, 0.25, 0.5, 1.0], [0.5, 0.5, 0.0, 0.75]])
    large = advantages(small + 1e6, scope=scope, baseline=baseline)
    assert torch.equal(large, advantages(small, scope=scope, baseline=baseline))


MISSING = [[[0.0, 5.0], [1.0, 7.0]], [[0.0, math.nan], [1.0, math.nan]]]


def test_a_reward_that_does_not_apply_moves_no_advantage_over_a_batch() -> None:
    """The second reward's mean is 6, of the first input alone: there its part is -1 and 1."""
    result = combine_rewards(
        doubles(MISSING), doubles([1.0, 1.0]), scope="batch", baseline="mean", scale="none"
    )
    np.testing.assert_allclose(result.numpy(), [[-1.5, 1.5], [-0.5, 0.5]], atol=1e-12)


def test_a_reward_is_normalised_over_the_inputs_that_it_applies_to() -> None:
    knobs = {"combination": "normalize_then_sum", "scope": "batch", "eps": 0.0}
    result = combine_rewards(doubles(MISSING), doubles([1.0, 1.0]), **knobs)
    first, second = math.sqrt(3) / 2, math.sqrt(0.5)  # 0.5 / std(0, 1, 0, 1), 1 / std(5, 7)
    expected = [[-first - second, first + second], [-first, first]]
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("combination", ["sum_then_normalize", "normalize_then_sum"])
def test_a_reward_that_applies_nowhere_is_as_if_it_was_not_there(combination: str) -> None:
    rewards = doubles([[[0.0, math.nan], [1.0, math.nan]]])
    result = combine_rewards(rewards, doubles([1.0, 3.0]), combination=combination, scope="batch")
    alone = combine_rewards(rewards[..., :1], doubles([1.0]), scope="batch")
    assert torch.equal(result, alone)
