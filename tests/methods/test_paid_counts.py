"""GRPO on scores of whole masks and batches: its gradient is that of the score itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from label_tools import batch_of
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.methods.class_set import ClassSetGRPO, ImageView, PixelView
from visgrpo.methods.counts import FORGET, Counting, CountScope
from visgrpo.methods.labels import LabelGRPO
from visgrpo.objectives import Objective
from visgrpo.rewards.sets import parse_rewards

NAMES = ("sky", "apple", "leaf", "twig")
IGNORED = 255


def method_of(
    scope: CountScope, *rewards: str, weights: tuple[float, ...] | None = None, **more: Any
) -> ClassSetGRPO:
    parsed = parse_rewards(rewards, weights, NAMES)
    policy = LabelGRPO(parsed, Objective(scale="none"), NAMES, estimator="exact", **more)
    view = PixelView(1, IGNORED, lambda logits, size: logits, "pixel")
    return ClassSetGRPO(policy, view, counting=Counting(parsed, scope))


def masks(images: int = 5, side: int = 40, seed: int = 0) -> Batch:
    """Images that differ in how many of their pixels have a label; the last has none."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (images, side, side), generator=generator)  # no twig anywhere
    for number in range(images - 1):
        labels[number, : 6 * number] = IGNORED
    labels[-1] = IGNORED
    labels[0][labels[0] == 2] = 0  # no leaf in the first
    logits = torch.randn(images, side, side, len(NAMES), generator=generator)
    return Batch(torch.arange(images), logits, labels)


def gradient(method: ClassSetGRPO, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    leaf = batch.inputs.clone().requires_grad_()
    result = method.loss(lambda inputs: leaf, batch, None, step)
    return torch.autograd.grad(result.loss, leaf)[0], result.metrics


def soft_score(name: str, p_RK: Tensor, labels_R: Tensor) -> Tensor:
    """A soft score, written out; over the classes in the truth."""
    true_RK = torch.nn.functional.one_hot(labels_R, len(NAMES)).to(p_RK)
    both_K, sums_K = (p_RK * true_RK).sum(0), p_RK.sum(0) + true_RK.sum(0)
    each_K = both_K / (sums_K - both_K) if name == "miou" else 2 * both_K / sums_K
    return each_K[true_RK.sum(0) > 0].mean()


def soft_gradient(name: str, batch: Batch, scope: str) -> tuple[Tensor, float]:
    leaf = batch.inputs.clone().requires_grad_()
    p, labelled = leaf.softmax(dim=-1), batch.labels_N != IGNORED
    if scope == "image":
        scores = [
            soft_score(name, p[n][labelled[n]], batch.labels_N[n][labelled[n]])
            for n in range(len(batch))
            if labelled[n].any()
        ]
        total, score = torch.stack(scores).sum() / len(batch), torch.stack(scores).mean()
    else:
        total = score = soft_score(name, p[labelled], batch.labels_N[labelled])
    return torch.autograd.grad(total, leaf)[0], score.item()


@pytest.mark.parametrize("name", ["miou", "dice"])
@pytest.mark.parametrize("scope", ["image", "batch"])
def test_the_step_climbs_the_score(scope: CountScope, name: str) -> None:
    batch = masks()
    ours, metrics = gradient(method_of(scope, name), batch)
    theirs, score = soft_gradient(name, batch, scope)
    torch.testing.assert_close(-ours, theirs, rtol=0.02, atol=2e-7)  # 1/U: some hundred pixels
    assert metrics[f"rewards/{name}/mean"].item() == pytest.approx(score, rel=1e-4)
    assert metrics["reward"].item() == pytest.approx(score, rel=1e-4)


def test_running_counts_are_those_of_the_batches_before() -> None:
    method, first, second = method_of("running", "miou"), masks(seed=1), masks(seed=2)
    alone = method_of("batch", "miou")
    torch.testing.assert_close(gradient(method, first)[0], gradient(alone, first)[0])
    kept = method.counting.state()
    ours, metrics = gradient(method, second)

    leaf = second.inputs.clone().requires_grad_()
    labelled = [batch.labels_N != IGNORED for batch in (first, second)]
    p_RK = torch.cat([first.inputs.softmax(-1)[labelled[0]], leaf.softmax(-1)[labelled[1]]])
    labels_R = torch.cat([first.labels_N[labelled[0]], second.labels_N[labelled[1]]])
    weights_R = torch.cat(
        [torch.full((int(labelled[0].sum()),), FORGET), p_RK.new_ones(int(labelled[1].sum()))]
    )
    true_RK = torch.nn.functional.one_hot(labels_R, 4) * weights_R[:, None]
    both_K = (p_RK * true_RK).sum(0)
    sums_K = (p_RK * weights_R[:, None]).sum(0) + true_RK.sum(0)
    score = (both_K / (sums_K - both_K))[:3].mean()
    theirs = torch.autograd.grad(score, leaf)[0] * (1 + FORGET)  # in units of one batch
    torch.testing.assert_close(-ours, theirs, rtol=0.02, atol=2e-7)
    assert metrics["rewards/miou/mean"].item() == pytest.approx(score.item(), rel=1e-4)

    resumed = method_of("running", "miou")
    resumed.counting.restore(kept)
    assert torch.equal(gradient(resumed, second)[0], ours)
    assert resumed.counting.state() == method.counting.state()


@pytest.mark.parametrize("scope", ["image", "batch", "running"])
def test_pieces_of_a_rollout_add_up(scope: CountScope) -> None:
    batch, method = masks(images=4), method_of(scope, "hard", "miou", weights=(0.5, 2.0))
    whole, _ = gradient(method_of(scope, "hard", "miou", weights=(0.5, 2.0)), batch)
    groups = method.rollout(lambda inputs: inputs, batch, 0, chunk=2)
    parts = []
    for rows in (torch.arange(2), torch.arange(2, 4)):
        small = batch.select(rows)
        leaf = small.inputs.clone().requires_grad_()
        loss = method.loss(lambda inputs, leaf=leaf: leaf, small, groups.select(rows), 0).loss
        parts.append(torch.autograd.grad(loss, leaf)[0] / 2)
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-8, rtol=1e-4)


def test_images_have_the_score_of_their_batch() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(600, 4, generator=generator)
    batch = batch_of(torch.randint(4, (600,), generator=generator), logits)
    rewards = parse_rewards(["macro-f1"], None, NAMES)
    policy = LabelGRPO(rewards, Objective(scale="none"), NAMES, estimator="exact")
    method = ClassSetGRPO(policy, ImageView(), counting=Counting(rewards, "batch"))
    ours, metrics = gradient(method, batch)
    leaf = logits.clone().requires_grad_()
    score = soft_score("dice", leaf.softmax(-1), batch.labels_N)
    torch.testing.assert_close(-ours, torch.autograd.grad(score, leaf)[0], rtol=0.02, atol=1e-7)
    assert metrics["reward"].item() == pytest.approx(score.item(), rel=1e-4)
    result = method.loss(lambda inputs: inputs.requires_grad_(), batch, None, 0)
    sample = method.samples(result.groups, 2)[0]
    assert sample["outputs"][0] == NAMES[int(batch.labels_N[0])]
    assert sample["rewards"][0] > 0 > min(sample["rewards"])
