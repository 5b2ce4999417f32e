"""Learning-rate schedules as literal numbers, and batches that cannot be split."""

from __future__ import annotations

import math

import pytest

from visgrpo.errors import UserError
from visgrpo.training.options import TrainingOptions


def _rates(**settings: object) -> list[float]:
    options = TrainingOptions(
        **{"steps": 8, "batch_size": 4, "learning_rate": 1.0, "warmup": 0.25, **settings}
    )
    return [options.learning_rate_at(step) for step in range(options.steps)]


def test_cosine_rises_for_a_quarter_then_falls_along_half_a_cosine() -> None:
    half, third = math.sqrt(3) / 2, 0.5
    falling = [1.0, (1 + half) / 2, (1 + third) / 2, 0.5, (1 - third) / 2, (1 - half) / 2]
    assert _rates(schedule="cosine") == pytest.approx([0.5, 1.0, *falling])


def test_linear_falls_by_equal_amounts() -> None:
    falling = [1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert _rates(schedule="linear") == pytest.approx([0.5, 1.0, *falling])


def test_constant_stays_after_the_rise() -> None:
    assert _rates(schedule="constant") == [0.5, *[1.0] * 7]


def test_linear_falls_to_the_final_share() -> None:
    rates = _rates(schedule="linear", warmup=0.0, steps=4, final_learning_rate=0.2)
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_cosine_falls_to_the_final_share() -> None:
    rates = _rates(schedule="cosine", warmup=0.0, steps=2, final_learning_rate=0.5)
    assert rates == pytest.approx([1.0, 0.75])


def test_a_warm_up_of_part_of_a_step_takes_one_step() -> None:
    assert _rates(schedule="constant", warmup=0.01, steps=4) == [1.0] * 4


def test_warm_up_over_the_whole_run_never_falls() -> None:
    assert _rates(warmup=1.0, steps=4) == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("settings", "world_size", "multiple"),
    [
        ({"minibatches": 3}, 1, 3),
        ({"accumulation": 5}, 1, 5),
        ({"minibatches": 2, "accumulation": 4}, 2, 16),
        ({}, 3, 3),
    ],
)
def test_a_batch_that_cannot_be_split_evenly(
    settings: dict[str, int], world_size: int, multiple: int
) -> None:
    options = TrainingOptions(steps=1, batch_size=8, learning_rate=1.0, **settings)
    with pytest.raises(UserError, match=rf"--batch-size 8 .* take a multiple of {multiple}\."):
        options.check_batches(world_size)


@pytest.mark.parametrize(
    "name", ["steps", "batch_size", "inner_passes", "minibatches", "accumulation"]
)
def test_counts_must_be_above_0(name: str) -> None:
    settings = {"steps": 1, "batch_size": 8, "learning_rate": 1.0, name: 0}
    flag = name.replace("_", "-")
    with pytest.raises(UserError, match=f"--{flag} must be above 0, not 0"):
        TrainingOptions(**settings).check_batches(1)  # type: ignore[arg-type]


def test_a_batch_that_can_be_split() -> None:
    options = TrainingOptions(
        steps=1, batch_size=16, learning_rate=1.0, minibatches=2, accumulation=4
    )
    options.check_batches(2)
    assert not options.one_forward_is_enough
