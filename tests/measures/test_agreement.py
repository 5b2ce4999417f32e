"""Agreement with people: by hand, and what held-out measures say of feedback."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from teams import One
from torch import Tensor, nn

from visgrpo.data.batches import CachedInputs
from visgrpo.data.roles import image_table
from visgrpo.data.table import Table
from visgrpo.errors import UserError
from visgrpo.feedback.reward import FeedbackReward
from visgrpo.measures.held_out import HeldOut, agreement, expected_reward
from visgrpo.rewards.sets import RewardSet, parse_rewards

CLASSES = ("cat", "dog", "owl")
POLICY = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.125, 0.125, 0.75], [0.6, 0.3, 0.1]])
VOTES = torch.tensor([[4.0, 4.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [9.0, 1.0, 0.0]])
LABELS = torch.tensor([1, 0, 2, 0])


def test_by_hand() -> None:
    """Image 2 has no votes. In a tie either answer is the people's; at 9 of 10 they agree."""
    found = agreement(POLICY.log(), VOTES, LABELS)
    cross = [
        -(math.log(0.5) + math.log(0.25)) / 2,
        -math.log(0.25),
        -0.9 * math.log(0.6) - 0.1 * math.log(0.3),
    ]
    entropy = [math.log(2), 0.0, -0.9 * math.log(0.9) - 0.1 * math.log(0.1)]
    assert found["people_cross_entropy"] == pytest.approx(sum(cross) / 3, rel=1e-6)
    assert found["people_kl"] == pytest.approx((sum(cross) - sum(entropy)) / 3, rel=1e-6)
    assert found["people_accuracy"] == pytest.approx(2 / 3)
    assert found["disagreed"] == pytest.approx(1 / 3)
    assert found["disagreed_accuracy"] == 0.0  # image 0: the answer is cat, the label dog


def test_peoples_own_distribution() -> None:
    votes = torch.tensor([[3.0, 2.0, 5.0], [8.0, 1.0, 1.0]])
    found = agreement(votes.log() + 3.0, votes, torch.tensor([2, 1]))
    assert found["people_kl"] == pytest.approx(0.0, abs=1e-7)
    assert found["people_accuracy"] == 1.0
    assert found["disagreed"] == 1.0
    assert found["disagreed_accuracy"] == 0.5


def test_nothing_is_said_of_disagreement_where_there_is_none() -> None:
    found = agreement(POLICY.log(), torch.eye(3)[[0, 1, 2, 2]], LABELS)
    assert found["disagreed"] == 0.0
    assert "disagreed_accuracy" not in found


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"logits \(4, 3\), votes \(4, 2\), labels \(4,\)"):
        agreement(POLICY, VOTES[:, :2], LABELS)
    with pytest.raises(UserError, match=r"labels \(3,\)"):
        agreement(POLICY, VOTES, LABELS[:3])
    with pytest.raises(UserError, match="None of these images has votes"):
        agreement(POLICY, VOTES * 0, LABELS)


# Held-out images, with what people said of them


WORTH = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 4.0], [8.0, 9.0, 7.0], [3.0, 1.0, 2.0]])
KNOWN = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0], [0, 1, 0]]).bool()


def dataset(rows: list[int]) -> Table:
    images = [Image.new("RGB", (2, 2))] * len(rows)
    labels = LABELS.numpy()[: len(rows)]
    return image_table("held out", CLASSES, labels, images, {"feedback_row": np.array(rows)})


def clicks(*, masks: bool = True) -> RewardSet:
    return parse_rewards(["clicks"], None, CLASSES, {"clicks": FeedbackReward(WORTH, KNOWN, masks)})


def test_the_expected_reward_leaves_images_without_feedback_out() -> None:
    """Rows 1, 2 and 3 of the table: (1/4·1 + 1/2·2) / (3/4), nothing, and 1."""
    logits = POLICY[[1, 2, 3]].log()
    value = expected_reward(clicks(), logits, dataset([1, 2, 3]))["reward"]
    assert value == pytest.approx((5 / 3 + 1.0) / 2, rel=1e-6)
    # With a guess for every label, row 2, of which all are guesses, is still left out.
    filled = expected_reward(clicks(masks=False), logits, dataset([1, 2, 3]))["reward"]
    assert filled == pytest.approx((0.25 + 1.0 + 1.0 + 1.8 + 0.3 + 0.2) / 2, rel=1e-6)


def test_no_image_with_feedback_has_no_expected_reward() -> None:
    for masks in (True, False):
        assert expected_reward(clicks(masks=masks), POLICY[:2].log(), dataset([2, 2])) == {}


def held_out(rewards: RewardSet | None, votes_MK: Tensor | None, rows: list[int]) -> HeldOut:
    inputs = CachedInputs(POLICY[: len(rows)].log())
    return HeldOut.at_start(nn.Identity(), dataset(rows), inputs, One(), rewards, votes_MK)


def test_measures_of_held_out_images() -> None:
    measured = held_out(clicks(), VOTES, [1, 2, 3, 3])
    for found in (measured.start(), measured.now(), measured.scalars()):
        assert found["people_accuracy"] == pytest.approx(2 / 3)
        assert found["kl"] == pytest.approx(0.0, abs=1e-9)
        assert found["reward"] == pytest.approx((4 / 3 + 1.0 + 1.0) / 3, rel=1e-6)


@pytest.mark.parametrize("votes_MK", [None, VOTES * 0])
def test_measures_without_votes_and_rewards(votes_MK: Tensor | None) -> None:
    for rewards, rows in ((None, [0, 1]), (clicks(), [2, 2])):
        votes = None if votes_MK is None else votes_MK[:2]
        found = held_out(rewards, votes, rows).scalars()
        assert "accuracy" in found
        assert "reward" not in found
        assert not [name for name in found if name.startswith("people")]
