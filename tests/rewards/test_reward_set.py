"""Several rewards at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from visgrpo.errors import UserError
from visgrpo.rewards.labels import Known
from visgrpo.rewards.sets import RewardSet, parse_rewards

CLASSES = ("cat", "dog", "car")
LABEL = torch.tensor([0, 2])
OUTPUTS_NG = torch.tensor([[0, 1], [2, 1]])
PROBABILITIES = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.375, 0.125]])


def votes_for(outputs: torch.Tensor, votes: list[list[float]]) -> torch.Tensor:
    return torch.tensor(votes).gather(1, outputs)


def test_rewards_are_stacked_unweighted() -> None:
    rewards = parse_rewards(["hard", "soft", votes_for], [1.0, 0.5, -2.0], CLASSES)
    assert rewards.names == ("hard", "soft", "votes_for")
    assert rewards.weights_R.tolist() == [1.0, 0.5, -2.0]
    rewards_NGR = rewards(
        OUTPUTS_NG,
        label=LABEL,
        probabilities=PROBABILITIES,
        classes=CLASSES,
        votes=[[7, 8, 9], [4, 5, 6]],
        caption=["unused", "unused"],
    )
    assert rewards_NGR.tolist() == [
        [[1, 0.5, 7], [0, 0.5, 8]],
        [[1, 0.125, 6], [0, 0.125, 5]],
    ]


def test_weights_default_to_one() -> None:
    assert parse_rewards(["hard", "top-k:2"], None, CLASSES).weights == (1.0, 1.0)


def test_no_gradient_flows_through_rewards() -> None:
    logits = PROBABILITIES.log().requires_grad_()
    rewards_NGR = parse_rewards(["soft"], None, CLASSES)(
        OUTPUTS_NG, label=LABEL, probabilities=logits.softmax(dim=1), classes=CLASSES
    )
    assert not rewards_NGR.requires_grad


@pytest.mark.parametrize(
    ("specs", "weights", "message"),
    [
        ([], None, "Name at least one reward"),
        (["hard", "soft"], [1.0], "1 reward weights for 2 rewards (hard, soft)"),
        (["hard", "top-k:1", "top-k:2"], None, 'Two rewards are called "top-k"'),
        (["hard"], [float("nan")], 'The weight of reward "hard" is nan'),
    ],
)
def test_mistakes(specs: list[str], weights: list[float] | None, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_rewards(specs, weights, CLASSES)
    assert message in str(caught.value)


def test_functions_must_match_names() -> None:
    with pytest.raises(UserError, match="0 functions for 1 reward names"):
        RewardSet(("hard",), (), (1.0,))


def test_scope_is_batch_if_any_part_is() -> None:
    assert parse_rewards(["hard", "top-k:2"], None, CLASSES).scope == "any"
    assert parse_rewards(["hard", "soft"], None, CLASSES).scope == "batch"


class Partial:
    """A reward that is known of some labels; the others are masked, or have one all the same."""

    def __init__(self, known: list[bool], masks: bool) -> None:
        self.known_K, self.masks = torch.tensor(known), masks

    def known(self, columns: Any, device: torch.device) -> Known:
        observed_NK = self.known_K.expand(2, -1)
        return Known(observed_NK, observed_NK if self.masks else None)

    def __call__(self, outputs_NG: torch.Tensor, /, **_: Any) -> torch.Tensor:
        return outputs_NG.float()


def test_only_masks_take_outputs_away() -> None:
    """A pair must have been seen by all rewards to be observed, by those that mask to be usable."""
    clicks = Partial([True, True, False], masks=True)
    grades = Partial([True, False, True], masks=False)
    rewards = RewardSet.of([("clicks", clicks), ("grades", grades)], None)
    known = rewards.known({}, torch.device("cpu"))
    assert rewards.masks
    assert known is not None
    assert known.usable_NK is not None
    assert known.observed_NK.tolist() == [[True, False, False]] * 2
    assert known.usable_NK.tolist() == [[True, True, False]] * 2
    seen = RewardSet.of([("grades", grades)], None).known({}, torch.device("cpu"))
    assert seen is not None
    assert seen.usable_NK is None


def test_soft_is_refused_inside_groups() -> None:
    rewards = parse_rewards(["hard", "soft"], None, CLASSES)
    rewards.validate("batch")
    with pytest.raises(UserError) as caught:
        rewards.validate("group")
    assert str(caught.value) == (
        'Reward "soft" is the same number for every output of one image, so its advantage inside '
        'that image\'s group is zero and teaches nothing: take advantages over the "batch", or '
        "choose another reward."
    )


def test_columns_are_checked_before_the_run() -> None:
    rewards = parse_rewards([votes_for], None, CLASSES)
    rewards.validate("group", ["votes", "caption"])
    with pytest.raises(UserError, match=r'needs "votes".*Did you mean "vote"\?'):
        rewards.validate("group", ["vote"])
    with pytest.raises(UserError, match='The data has a column "classes"'):
        rewards.validate("group", ["votes", "classes"])
