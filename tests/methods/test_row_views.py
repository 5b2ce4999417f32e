"""Rows of a view against loops over images and pixels, and what every row counts for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from label_tools import grpo
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.methods.class_set import (
    ClassSetGRPO,
    ClassSetSupervised,
    ImageView,
    OldPolicy,
    PixelView,
    Rows,
    inputs_at_once,
)

K, IGNORED = 4, 255


def upsample(logits_NHWK: Tensor, size: Sequence[int], stride: int = 2) -> Tensor:
    """Bilinear to whole cells, then the padding cut off."""
    padded = [cells * stride for cells in logits_NHWK.shape[1:3]]
    up = F.interpolate(logits_NHWK.permute(0, 3, 1, 2), size=padded, mode="bilinear")
    return up[..., : size[0], : size[1]].permute(0, 2, 3, 1)


def view(decide_at: Any = "patch", stride: int = 2, ignore_index: int = IGNORED) -> PixelView:
    return PixelView(stride, ignore_index, upsample, decide_at)


def masks(*, height: int = 5, width: int = 7, ignored: float = 0.4, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, K, (4, height, width))
    ids[rng.random(ids.shape) < ignored] = IGNORED
    return torch.from_numpy(ids)


def logits_for(masks_NHW: Tensor, stride: int = 2) -> Tensor:
    count, height, width = masks_NHW.shape
    shape = (count, math.ceil(height / stride), math.ceil(width / stride), K)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def listed(rows: Rows) -> list[tuple[int, int, float, list[float]]]:
    """(input, label, weight, logits) of every row."""
    weights_R = torch.ones(len(rows.labels_R)) if rows.weights_R is None else rows.weights_R
    return list(
        zip(
            rows.inputs_R.tolist(),
            rows.labels_R.tolist(),
            weights_R.tolist(),
            rows.logits_RK.tolist(),
            strict=True,
        )
    )


# Rows


def test_images() -> None:
    logits, labels = torch.randn(3, K, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    rows = ImageView().rows(logits, labels)
    assert rows.logits_RK is logits
    assert rows.labels_R.tolist() == rows.inputs_R.tolist() == [0, 1, 2]
    assert rows.weights_R is None
    assert rows.one_per_input
    assert ImageView().numbers_of_one(logits, labels) == K


@pytest.mark.parametrize("ignored", [0.0, 0.4, 0.95])
@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 3)])
def test_pixels_equal_the_loop(ignored: float, size: tuple[int, int]) -> None:
    labels_NHW = masks(height=size[0], width=size[1], ignored=ignored)
    labels_NHW[2] = torch.where(labels_NHW[2] == IGNORED, 1, labels_NHW[2])
    logits = logits_for(labels_NHW)
    pixels = upsample(logits, size)
    kept = [[tuple(at) for at in (mask != IGNORED).nonzero().tolist()] for mask in labels_NHW]
    total = sum(map(len, kept))
    expected = [
        (n, int(labels_NHW[n][at]), total / (4 * len(kept[n])), pixels[n][at].tolist())
        for n in range(4)
        for at in kept[n]
    ]
    rows = view("pixel").rows(logits, labels_NHW)
    assert rows.labels_R.dtype == rows.inputs_R.dtype == torch.long
    assert not rows.one_per_input
    for ours, theirs in zip(listed(rows), expected, strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2] == pytest.approx(theirs[2], rel=1e-6)
        assert ours[3] == pytest.approx(theirs[3])


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("ignored", [0.0, 0.7])
def test_patches_equal_the_loop(stride: int, ignored: float) -> None:
    """Sides of 5 and 7 are no multiples: the last cells are partly padding."""
    labels_NHW = masks(ignored=ignored)
    logits = logits_for(labels_NHW, stride)
    kept: list[tuple[int, int, list[float]]] = []
    for n, row, column in np.ndindex(*logits.shape[:3]):
        cell = labels_NHW[n, row * stride :, column * stride :][:stride, :stride]
        votes = [int((cell == k).sum()) for k in range(K)]
        if any(votes):
            kept.append((n, votes.index(max(votes)), logits[n, row, column].tolist()))
    counts = [sum(n == image for image, *_ in kept) for n in range(4)]
    expected = [(n, k, len(kept) / (4 * counts[n]), place) for n, k, place in kept]
    rows = listed(view(stride=stride).rows(logits, labels_NHW))
    for ours, theirs in zip(rows, expected, strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2] == pytest.approx(theirs[2], rel=1e-6)
        assert ours[3] == theirs[3]


@pytest.mark.parametrize("ignore_index", [-1, 0, 255])
def test_any_value_may_be_the_ignored_one(ignore_index: int) -> None:
    """Also a class id: that class then never counts."""
    mask = torch.tensor([[[1, ignore_index], [ignore_index, 3]]])
    rows = view("pixel", 1, ignore_index).rows(torch.zeros(1, 2, 2, K), mask)
    assert rows.labels_R.tolist() == [1, 3]
    assert view("patch", 2, ignore_index).rows(torch.zeros(1, 1, 1, K), mask).labels_R.tolist() == [
        1
    ]


@pytest.mark.parametrize("decide_at", ["patch", "pixel"])
def test_the_gradient_reaches_labelled_places_alone(decide_at: Any) -> None:
    mask = torch.full((1, 4, 4), IGNORED)
    mask[0, 0, 0] = 2
    logits = logits_for(mask).requires_grad_()
    view(decide_at).rows(logits, mask).logits_RK.sum().backward()
    assert logits.grad is not None
    reached = logits.grad[0].abs().sum(-1) > 0
    assert reached.tolist() == [[True, False], [False, False]]


def test_equal_counts_need_no_weights() -> None:
    mask = torch.tensor([[[0, 1], [2, IGNORED]], [[IGNORED, 1], [2, 3]]])
    assert view("pixel").rows(torch.zeros(2, 1, 1, K), mask).weights_R is None


def test_nothing_labelled() -> None:
    mask = torch.full((2, 4, 4), IGNORED)
    for decide_at in ("patch", "pixel"):
        rows = view(decide_at).rows(logits_for(mask), mask)
        assert rows.logits_RK.shape == (0, K)
        assert len(rows.labels_R) == len(rows.inputs_R) == 0


def test_numbers_of_one() -> None:
    mask = masks()
    logits = logits_for(mask)
    batch = Batch(torch.arange(4), logits, mask, {})
    assert view("patch").numbers_of_one(logits, mask) == 3 * 4 * K
    assert view("pixel").numbers_of_one(logits, mask) == 5 * 7 * K
    assert inputs_at_once(view(), logits, batch) > 4
    big = torch.zeros(1, 1, 1, 1).expand(4, 1024, 1024, 21_000)
    assert inputs_at_once(view(), big, batch) == 1


# The loss


def mean_over_images(logits: Tensor, labels_NHW: Tensor) -> float:
    """Cross-entropy by loops: the mean over images of the mean over labelled pixels."""
    pixels = upsample(logits, labels_NHW.shape[1:]).double()
    means = []
    for image, mask in zip(pixels, labels_NHW, strict=True):
        places = [tuple(at) for at in (mask != IGNORED).nonzero().tolist()]
        nlls = [float(image[at].logsumexp(-1) - image[at][int(mask[at])]) for at in places]
        means.append(sum(nlls) / len(nlls) if nlls else 0.0)
    return sum(means) / len(means)


def test_every_image_counts_the_same_in_cross_entropy() -> None:
    labels_NHW = masks(ignored=0.5)
    labels_NHW[1, 1:] = IGNORED  # few pixels
    logits = logits_for(labels_NHW)
    batch = Batch(torch.arange(4), logits, labels_NHW, {})
    result = ClassSetSupervised(view("pixel")).loss(lambda inputs: inputs, batch, None, 0)
    expected = mean_over_images(logits, labels_NHW)
    assert result.loss.item() == pytest.approx(expected, rel=1e-5)


def test_every_image_counts_the_same_in_grpo() -> None:
    """At π = π_old the gradient at a labelled patch is -A_k / K over images × patches of its."""
    labels_NHW = masks(ignored=0.8, seed=5)
    logits = logits_for(labels_NHW)
    batch = Batch(torch.arange(4), logits, labels_NHW, {})
    method = ClassSetGRPO(
        grpo(rewards=("hard", "uniformity"), n_classes=K, estimator="uniform"), view()
    )
    leaf = logits.clone().requires_grad_()
    result = method.loss(lambda inputs: leaf, batch, None, 0)
    result.loss.backward()
    assert leaf.grad is not None

    rows = view().rows(logits, labels_NHW)
    counts = torch.bincount(rows.inputs_R, minlength=4).tolist()
    assert len(set(counts)) > 1
    expected = np.zeros((len(rows.labels_R), K))
    accuracies = np.zeros(4)
    for r, (n, label, _, place) in enumerate(listed(rows)):
        p_K = np.exp(place) / np.exp(place).sum()
        rewards_K = np.eye(K)[label] - p_K
        centred = rewards_K - rewards_K.mean()
        expected[r] = -centred / (math.sqrt((centred**2).mean()) + 1e-4) / K / counts[n] / 4
        accuracies[n] += (np.argmax(p_K) == label) / counts[n]
    at_rows = view().rows(leaf.grad, labels_NHW).logits_RK
    np.testing.assert_allclose(at_rows.numpy(), expected, rtol=1e-3, atol=1e-7)
    assert leaf.grad.abs().sum() == pytest.approx(np.abs(expected).sum(), rel=1e-4)
    assert result.metrics["accuracy"].item() == pytest.approx(accuracies.mean(), abs=1e-6)


@pytest.mark.parametrize("decide_at", ["patch", "pixel"])
@pytest.mark.parametrize("supervised", [False, True])
@pytest.mark.parametrize("stale", [False, True])
def test_four_images_are_two_times_two(decide_at: Any, supervised: bool, stale: bool) -> None:
    """Accumulation: labelled pixels differ in number, and one image has none."""
    labels_NHW = masks(ignored=0.7, seed=2)
    labels_NHW[3] = IGNORED
    logits = logits_for(labels_NHW)
    batch = Batch(torch.arange(4), logits, labels_NHW, {})
    policy = grpo(
        rewards=("hard", "uniformity"), n_classes=K, estimator="uniform", entropy_weight=0.2
    )
    method: Any = (
        ClassSetSupervised(view(decide_at)) if supervised else ClassSetGRPO(policy, view(decide_at))
    )
    old = (
        OldPolicy(replace(batch, inputs=logits + 0.4 * logits.roll(1, 0)), 0)
        if stale and not supervised
        else None
    )

    def loss_of(rows: list[int]) -> tuple[float, Tensor]:
        leaf, chosen = logits.clone().requires_grad_(), torch.tensor(rows)
        part = None if old is None else old.select(chosen)
        loss = method.loss(lambda inputs: leaf[chosen], batch.select(chosen), part, 0).loss
        return loss.item(), torch.autograd.grad(loss, leaf)[0]

    whole, first, second = (loss_of(rows) for rows in ([0, 1, 2, 3], [0, 2], [3, 1]))
    assert whole[0] == pytest.approx((first[0] + second[0]) / 2, abs=1e-6)
    torch.testing.assert_close(whole[1], (first[1] + second[1]) / 2, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("supervised", [False, True])
def test_a_batch_without_any_label_teaches_nothing(supervised: bool) -> None:
    labels_NHW = torch.full((4, 5, 7), IGNORED)
    logits = logits_for(labels_NHW).requires_grad_()
    batch = Batch(torch.arange(4), logits.detach(), labels_NHW, {})
    policy = grpo(rewards=("hard", "uniformity"), n_classes=K, estimator="uniform")
    method: Any = ClassSetSupervised(view()) if supervised else ClassSetGRPO(policy, view())
    loss = method.loss(lambda inputs: logits, batch, None, 0).loss
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.count_nonzero() == 0
