"""Cross-entropy on the same loop, and the warm start with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from label_tools import LABELS, LOGITS, FixedReference, batch_of, graded, grpo, names
from torch import Tensor

from visgrpo.methods.supervised import Supervised, WarmStart
from visgrpo.rewards.sets import parse_rewards


def supervised(rewards: Any = ("hard",), **settings: Any) -> Supervised:
    return Supervised(parse_rewards(rewards, None, names(4)), names(4), **settings)


def test_loss_and_gradient_are_cross_entropy() -> None:
    ours, theirs = (LOGITS.float().requires_grad_() for _ in range(2))
    result = supervised().loss(lambda x: ours, batch_of(), None, 0)
    result.loss.backward()
    expected = F.cross_entropy(theirs, LABELS)
    expected.backward()
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert result.groups is None


def test_labelled_images_alone() -> None:
    logits = LOGITS.float().requires_grad_()
    result = supervised(labelled=lambda rows: rows == 1).loss(lambda x: logits, batch_of(), None, 0)
    result.loss.backward()
    expected = F.cross_entropy(LOGITS[1:2].float(), LABELS[1:2]) / 4
    torch.testing.assert_close(result.loss.detach(), expected)
    assert logits.grad is not None
    assert logits.grad[[0, 2, 3]].abs().max().item() == 0.0


def test_other_losses_are_of_labelled_images_too() -> None:
    method = supervised(labelled=lambda rows: rows < 2, losses=("gce", "dice"))
    loss = method.loss(lambda x: x, batch_of(), None, 0).loss
    p_NK = LOGITS[:2].softmax(-1)
    true_N = p_NK.gather(1, LABELS[:2, None])[:, 0]
    gce = ((1 - true_N**0.7) / 0.7).sum() / 4
    dice_K = [
        2 * p_NK[LABELS[:2] == k, k].sum() / ((LABELS[:2] == k).sum() + p_NK[:, k].sum())
        for k in LABELS[:2].unique()
    ]
    assert loss.item() == pytest.approx(float(gce + 1 - sum(dice_K) / len(dice_K)), rel=1e-5)
    nothing = supervised(labelled=lambda rows: rows < 0, losses=("gce",))
    assert nothing.loss(lambda x: x, batch_of(), None, 0).loss.item() == 0.0


def test_reward_is_the_expected_reward() -> None:
    probabilities_NK = LOGITS.softmax(-1)
    metrics = supervised().loss(lambda x: x, batch_of(), None, 0).metrics
    truth_N = probabilities_NK.gather(1, LABELS[:, None])
    assert metrics["reward"].item() == pytest.approx(truth_N.mean().item(), rel=1e-5)
    assert metrics["accuracy"].item() == 0.5
    entropy = torch.distributions.Categorical(probs=probabilities_NK).entropy().mean()
    assert metrics["entropy"].item() == pytest.approx(entropy.item(), rel=1e-5)
    assert "kl" not in metrics
    assert not any(value.requires_grad for value in metrics.values())


def test_reward_is_what_a_sampled_run_estimates() -> None:
    batch = batch_of()
    metrics = supervised([graded]).loss(lambda x: x, batch, None, 0).metrics
    sampled = grpo(rewards=[graded], group_size=20_000).loss(lambda x: x, batch, None, 0).metrics
    exact = grpo(rewards=[graded], estimator="exact").loss(lambda x: x, batch, None, 0).metrics
    assert metrics["reward"].item() == pytest.approx(exact["reward"].item(), rel=1e-6)
    assert metrics["reward"].item() == pytest.approx(sampled["reward"].item(), abs=5e-3)


def test_columns_reach_the_reward_and_kl_the_log() -> None:
    def paid(outputs: Tensor, price: list[float]) -> Tensor:
        return torch.tensor(price)[:, None].expand(outputs.shape)

    reference = FixedReference(LOGITS.flip(0))
    metrics = supervised([paid], reference=reference).loss(lambda x: x, batch_of(), None, 0).metrics
    assert metrics["reward"].item() == pytest.approx(2.5)
    expected = F.kl_div(LOGITS.flip(0).log_softmax(-1), LOGITS.softmax(-1), reduction="batchmean")
    assert metrics["kl"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_there_is_nothing_to_draw_or_show() -> None:
    policy = supervised()
    assert policy.rollout(lambda x: x, batch_of(), 0, chunk=4) is None
    assert policy.samples(grpo().groups(LOGITS, batch_of(), 0), 2) == []


def test_warm_start_switches_at_its_step() -> None:
    parts = supervised(), grpo(group_size=4)
    warm = WarmStart(*parts, steps=3)
    for step in range(6):
        result = warm.loss(lambda x: x, batch_of(), None, step)
        rollout = warm.rollout(lambda x: x, batch_of(), step, chunk=4)
        if step < 3:
            assert result.loss.item() == pytest.approx(F.cross_entropy(LOGITS, LABELS).item())
            assert result.groups is None
            assert rollout is None
        else:
            assert torch.equal(result.loss, parts[1].loss(lambda x: x, batch_of(), None, step).loss)
            assert rollout is not None
            assert len(warm.samples(rollout, 2)) == 2
