"""Rewards that are looked up in a table over image and label, and which of its pairs are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.feedback.reward import FeedbackReward
from visgrpo.rewards.sets import RewardSet, parse_rewards

CLASSES = ("cat", "dog", "owl")
CPU = torch.device("cpu")
WORTH_MK = torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0], [0.5, 0.5, 8.0], [4.0, 5.0, 6.0]])
OBSERVED_MK = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 0], [0, 1, 0]]).bool()
LABEL = torch.tensor([0, 0, 0])


def table(worth_MK: Tensor = WORTH_MK, observed_MK: Tensor = OBSERVED_MK, **more: Any) -> Any:
    return FeedbackReward(worth_MK.clone(), observed_MK.clone(), **more)


def rewards_of(**feedback: FeedbackReward) -> RewardSet:
    return parse_rewards(list(feedback), None, CLASSES, feedback)


def test_the_table_is_looked_up_by_row_and_output() -> None:
    outputs_NG = torch.tensor([[2, 0], [1, 1], [0, 2]])
    earned = table()(outputs_NG, feedback_row=[3, 0, 2], label=LABEL, classes=CLASSES)
    assert earned.tolist() == torch.tensor([[6.0, 4.0], [0.2, 0.2], [0.5, 8.0]]).tolist()


def test_what_is_known_of_some_images() -> None:
    pairs = table().known({"feedback_row": [3, 1]}, CPU)
    assert pairs.observed_NK.tolist() == [[False, True, False], [True, True, True]]
    assert pairs.usable_NK is pairs.observed_NK
    filled = table(masks=False).known({"feedback_row": [3, 1]}, CPU)
    assert filled.observed_NK.tolist() == pairs.observed_NK.tolist()
    assert filled.usable_NK is None


def test_several_tables_know_what_each_of_them_knows() -> None:
    observed_MK = torch.tensor([[1, 1, 0]] * 4).bool()
    other = table(observed_MK=observed_MK)
    columns = {"feedback_row": [0, 1]}
    both = rewards_of(clicks=table(), dwell=other).known(columns, CPU)
    assert both is not None
    assert both.observed_NK.tolist() == [[True, False, False], [True, True, False]]
    assert both.usable_NK is not None
    assert both.usable_NK.tolist() == both.observed_NK.tolist()
    # Observed by both, usable where the one that masks has it.
    filled = table(observed_MK=observed_MK, masks=False)
    mixed = rewards_of(clicks=table(), dwell=filled).known(columns, CPU)
    assert mixed is not None
    assert mixed.observed_NK.tolist() == both.observed_NK.tolist()
    assert mixed.usable_NK is not None
    assert mixed.usable_NK.tolist() == [[True, False, True], [True, True, True]]


def test_other_rewards_know_all_pairs() -> None:
    rewards = parse_rewards(["hard"], None, CLASSES)
    assert rewards.known({}, CPU) is None
    assert not rewards.masks
    assert rewards_of(clicks=table()).masks
    assert not rewards_of(clicks=table(masks=False)).masks


def expected(rewards: RewardSet, rows: list[int], policy: list[list[float]]) -> Any:
    n_rows = len(rows)
    return rewards.expected(
        torch.tensor(policy), label=LABEL[:n_rows], classes=CLASSES, feedback_row=rows
    )


def test_the_expectation_is_over_what_is_known() -> None:
    """Row 0: (1/2·0.1 + 1/4·0.3) / (3/4); row 3: its one label; row 2: nothing at all."""
    policy = [[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]
    value_N, decided_N = expected(rewards_of(clicks=table()), [0, 3, 2], policy)
    assert value_N.tolist() == pytest.approx([0.5 / 3, 5.0, 0.0])
    assert decided_N.tolist() == [True, True, False]


def test_the_expectation_is_over_everything_where_nothing_is_masked() -> None:
    policy = [[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]
    value_N, decided_N = expected(rewards_of(clicks=table(masks=False)), [0, 2], policy)
    assert value_N.tolist() == pytest.approx([0.05 + 0.05 + 0.075, 0.125 + 0.125 + 4.0])
    assert decided_N.tolist() == [True, False]  # of row 2 there is nothing but guesses
    assert expected(parse_rewards(["hard"], None, CLASSES), [0], policy[:1])[1] is None


def test_the_expectation_of_several_rewards() -> None:
    """Weights 2 and -1; where clicks are unknown, "hard" does not count either."""
    rewards = parse_rewards(["clicks", "hard"], [2.0, -1.0], CLASSES, {"clicks": table()})
    value_N, _ = expected(rewards, [0, 3], [[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])
    assert value_N.tolist() == pytest.approx([2 * 0.5 / 3 - 2 / 3, 10.0])


def test_a_label_is_known_without_any_probability() -> None:
    """A policy that never says what people judged earns 0, and not NaN."""
    value_N, decided_N = expected(rewards_of(clicks=table()), [3], [[1.0, 0.0, 0.0]])
    assert value_N.tolist() == [0.0]
    assert decided_N.tolist() == [True]


def test_names_of_feedback_are_found() -> None:
    clicks = table()
    rewards = parse_rewards([" clicks ", "hard"], [0.5, 1.0], CLASSES, {"clicks": clicks})
    assert rewards.names == ("clicks", "hard")
    assert rewards.functions[0] is clicks
    with pytest.raises(UserError, match='Did you mean "clicks"'):
        parse_rewards(["click"], None, CLASSES, {"clicks": clicks})


@pytest.mark.parametrize(
    ("worth_MK", "observed_MK", "message"),
    [
        (WORTH_MK, OBSERVED_MK[:2], r"the shapes \(4, 3\) and \(2, 3\): give equal ones"),
        (WORTH_MK / torch.zeros(4, 1), OBSERVED_MK, "is not finite: mend its table"),
    ],
)
def test_tables_that_will_not_do(worth_MK: Tensor, observed_MK: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FeedbackReward(worth_MK, observed_MK)
