"""Measures on held-out data: the expected reward by hand, and the precision of training."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from teams import One
from torch import Tensor

from visgrpo.data.batches import CachedInputs
from visgrpo.data.roles import image_table
from visgrpo.data.table import Table
from visgrpo.measures.held_out import HeldOut, expected_reward
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.load import load_clip
from visgrpo.rewards.sets import parse_rewards

CLASSES = ("cat", "dog", "owl")


def dataset(**columns: list[float]) -> Table:
    images = [Image.new("RGB", (2, 2))] * 2
    return image_table("two", CLASSES, np.array([0, 2]), images, columns)


def test_expected_reward_by_hand() -> None:
    """π = (1/2, 1/4, 1/4) and (1/4, 1/4, 1/2); r = 2·hard + price, π·r = 1 + 3 and 1 + 5."""

    def price(outputs: Tensor, *, price: list[float]) -> Tensor:
        return torch.tensor(price)[:, None].expand(outputs.shape)

    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])
    rewards = parse_rewards(["hard", price], [2.0, 1.0], CLASSES)
    found = expected_reward(rewards, probabilities.log(), dataset(price=[3.0, 5.0]))
    assert math.isclose(found["reward"], (1 + 3 + 1 + 5) / 2, rel_tol=1e-6)
    half = 1.959963984540054 * 1.0 / math.sqrt(2)  # 4 and 6: their deviation is 1
    assert found["reward_interval"] == pytest.approx([5 - half, 5 + half], rel=1e-6)


def test_start_and_now_are_measured_in_the_precision_of_training(tiny_clip_folder: Path) -> None:
    """Otherwise the KL to the start would not be 0 at the start."""
    parts = load_clip(str(tiny_clip_folder))
    policy = ClipClassifier(parts.model, parts.tokenizer, CLASSES, ["a {}"])
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    held_out = HeldOut.at_start(policy, dataset(), CachedInputs(pixels), One(torch.bfloat16))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = policy.eval()(pixels).float()
    assert torch.equal(held_out.start_logits_MK, expected)
    assert held_out.scalars()["kl"] == pytest.approx(0.0, abs=1e-12)
    assert held_out.start()["accuracy"] == held_out.now()["accuracy"]


def test_the_objective_at_the_temperature_chooses() -> None:
    """At 1 the milder of two classifiers would win, at 3, where they learn, the surer does."""
    data = image_table(
        name="data",
        classes=("a", "b", "c"),
        labels=np.zeros(4, dtype=np.int64),
        images=[Image.new("RGB", (1, 1))] * 4,
    )
    sure, mild = (torch.tensor([[x, 0.0, 0.0]]).expand(4, 3) for x in (6.0, 3.0))
    rewards = parse_rewards(("hard",), None, data.classes)

    def objective(logits_MK: torch.Tensor, temperature: float) -> float:
        inputs = CachedInputs(logits_MK.contiguous())
        held_out = HeldOut.at_start(
            torch.nn.Identity(), data, inputs, One(), rewards, None, temperature
        )
        measures = held_out.scalars()
        return measures["reward"] + 0.5 * measures["entropy"]

    assert objective(sure, 1.0) < objective(mild, 1.0)
    assert objective(sure, 3.0) > objective(mild, 3.0)
    p = math.exp(1) / (math.exp(1) + 2)
    rest = (1 - p) / 2
    entropy = -p * math.log(p) - 2 * rest * math.log(rest)
    assert objective(mild, 3.0) == pytest.approx(p + 0.5 * entropy, abs=1e-6)
