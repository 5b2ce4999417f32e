"""When rewards teach nothing, a run says so once, and stops where it may not go on."""

from __future__ import annotations

import pytest

from visgrpo.errors import UserError
from visgrpo.training.metrics import MetricMeans, Silence


def test_a_mean_of_ones_that_rounds_is_silence_too() -> None:
    """Images without feedback are weighted away: float32 makes 0.9999998 of a mean of ones."""
    silence = Silence(allowed=0)
    remark = silence.mind({"frac_reward_zero_std": 0.9999998}, steps=10, step=10)
    assert remark is not None
    assert "up to step 10 the outputs of every group earned the same" in remark
    assert silence.mind({"frac_reward_zero_std": 1.0}, steps=10, step=20) is None  # said once


def test_one_group_that_differs_breaks_the_silence() -> None:
    silence = Silence(allowed=30)
    assert silence.mind({"frac_reward_zero_std": 0.999}, steps=20, step=20) is None
    assert silence.steps == 0
    assert silence.mind({}, steps=20, step=40) is None
    silence.mind({"frac_reward_zero_std": 1.0}, steps=20, step=60)
    with pytest.raises(UserError, match="For 40 steps"):
        silence.mind({"frac_reward_zero_std": 1.0}, steps=20, step=80)


def test_a_reward_that_applies_to_nothing_is_said_once() -> None:
    """It was None for every completion: a column that it asks for may be called otherwise."""
    means, silence = MetricMeans(), Silence(allowed=0)
    for _ in range(2):
        means.add({"rewards/mine/mean": 0.0, "reward": 1.0}, {"rewards/mine/mean": 0.0})
    assert means.take() == {"reward": 1.0}
    (remark,) = silence.unpaid(means.of_nothing, step=2)
    assert remark.startswith('warning: up to step 2 reward "mine" applied to nothing')
    assert silence.unpaid(means.of_nothing, step=4) == []
    means.add({"rewards/mine/mean": 0.5}, {"rewards/mine/mean": 3.0})
    assert means.take() == {"rewards/mine/mean": 0.5}
    assert means.of_nothing == ()
