"""Rewards over the class set against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.rewards.labels import (
    LABEL_REWARDS,
    ClassCredit,
    LabelReward,
    spread,
    uniformity,
    uniformity_of_wrong,
)
from visgrpo.rewards.sets import parse_rewards

CLASSES = ("sky", "cat", "dog", "car")
LABEL = torch.tensor([1, 3])
PROBABILITIES = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.7, 0.1, 0.15, 0.05]])
EVERY = torch.arange(4).expand(2, 4)
SUBSET = torch.tensor([[1, 3], [3, 0]])


def call(reward: LabelReward, outputs_NG: Tensor = EVERY) -> Tensor:
    rewards_NG = reward(outputs_NG, label=LABEL, probabilities=PROBABILITIES, classes=CLASSES)
    assert rewards_NG.dtype == torch.float32
    assert rewards_NG.shape == outputs_NG.shape
    return rewards_NG


def built_in(spec: str) -> LabelReward:
    return parse_rewards([spec], None, CLASSES).functions[0]


def close_to(rewards_NG: Tensor, expected: list[list[float]]) -> None:
    np.testing.assert_allclose(rewards_NG.numpy(), expected, atol=1e-7)


def test_uniformity() -> None:
    reward = built_in("uniformity")
    close_to(call(reward), [[-0.1, -0.4, -0.2, -0.3], [-0.7, -0.1, -0.15, -0.05]])
    close_to(call(reward, SUBSET), [[-0.4, -0.3], [-0.05, -0.7]])


def test_uniformity_of_wrong_classes() -> None:
    reward = built_in("uniformity-wrong")
    close_to(call(reward), [[-0.1, 0, -0.2, -0.3], [-0.7, -0.1, -0.15, 0]])
    close_to(call(reward, SUBSET), [[0, -0.3], [0, -0.7]])


def test_spread() -> None:
    """The wrong ones have .2 each on average in the first image, .95 / 3 in the second."""
    reward = built_in("spread")
    third = 0.95 / 3
    close_to(call(reward), [[0.1, 0, 0, -0.1], [third - 0.7, third - 0.1, third - 0.15, 0]])
    # A subset is still compared with all wrong classes, and not with those drawn.
    close_to(call(reward, SUBSET), [[0, -0.1], [0, third - 0.7]])


@pytest.mark.parametrize("n_classes", [2, 10, 1000])
def test_spread_says_nothing_of_the_total(n_classes: int) -> None:
    probabilities = torch.rand(5, n_classes, generator=torch.Generator().manual_seed(0)) ** 4
    probabilities = probabilities / probabilities.sum(dim=1, keepdim=True)
    rewards_NK = spread(
        torch.arange(n_classes).expand(5, -1),
        label=torch.zeros(5, dtype=torch.long),
        probabilities=probabilities,
    )
    assert rewards_NK[:, 0].count_nonzero() == 0
    np.testing.assert_allclose(rewards_NK[:, 1:].sum(dim=1).numpy(), 0, atol=1e-6)
    assert n_classes > 2 or rewards_NK.abs().max() < 1e-7  # one wrong class is evenly spread


@pytest.mark.parametrize("reward", [uniformity, uniformity_of_wrong, spread])
def test_outputs_may_repeat_and_come_in_any_order(reward: LabelReward) -> None:
    outputs_NG = torch.tensor([[3, 3, 1, 0, 2], [0, 2, 2, 3, 1]])
    assert torch.equal(call(reward, outputs_NG), call(reward).gather(1, outputs_NG))


# Credit by class


def credit_file(folder: Path, text: str, name: str = "credit.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return f"credit:{path}"


@pytest.mark.parametrize(
    ("name", "text"),
    [("credit.yaml", "cat: 0.5\ncar: -2\n"), ("credit.json", '{"cat": 0.5, "car": -2}')],
)
def test_credit_goes_to_the_right_answer_alone(tmp_path: Path, name: str, text: str) -> None:
    reward = built_in(credit_file(tmp_path, text, name))
    close_to(call(reward), [[0, 0.5, 0, 0], [0, 0, 0, -2]])
    close_to(call(reward, SUBSET), [[0.5, 0], [-2, 0]])


def test_a_class_without_credit_earns_one(tmp_path: Path) -> None:
    reward = built_in(credit_file(tmp_path, "sky: 0.5\n"))
    close_to(call(reward), [[0, 1, 0, 0], [0, 0, 0, 1]])
    assert isinstance(reward, ClassCredit)
    assert reward.credit_K.tolist() == [0.5, 1, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cta: 0.5\n", 'unknown class "cta". Did you mean "cat"?'),
        ("- cat\n- dog\n", 'maps classes to numbers, with lines such as "sky: 0.5"; a class'),
        ("cat,0.5\ndog,1\n", "must be YAML or JSON that maps classes to numbers"),
        ("", "must be YAML or JSON that maps classes to numbers"),
        ("cat: half\n", '"cat": "half" is not a number'),
        ("cat: [1]\n", "is not a number"),
        ("cat: .inf\n", "is not a"),
        ("cat: inf\n", '"inf" is not a finite number'),
        ("cat: {\n", "cannot be parsed"),
    ],
)
def test_credit_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        built_in(credit_file(tmp_path, text))
    assert message in str(caught.value)
    assert 'Credit "' in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_credit_file_that_is_not_there(tmp_path: Path) -> None:
    credit_file(tmp_path, "cat: 1\n", "credits.yaml")
    with pytest.raises(UserError, match=r'not found\. Did you mean "credits\.yaml"\?'):
        built_in(f"credit:{tmp_path / 'credit.yaml'}")


def test_arguments_of_names() -> None:
    assert {"uniformity", "uniformity-wrong", "spread", "credit"} <= set(LABEL_REWARDS)
    with pytest.raises(UserError, match='"credit" needs an argument: write for example'):
        built_in("credit")
    for name in ("uniformity", "uniformity-wrong", "spread"):
        with pytest.raises(UserError, match=f'"{name}" takes no argument'):
            built_in(f"{name}:3")
