"""The supervised contrastive loss: closed forms, and its formula as plain loops, with gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visgrpo.objectives.losses import supervised_contrastive_loss

GROUPS = {
    "pairs": [0, 0, 1, 1, 2, 2],
    "pairs, apart": [2, 0, 1, 0, 2, 1],
    "classes of unequal size": [7, 7, 3, 7, 3, 7],
    "one class": [0] * 6,
}


def vectors(count: int = 6, length: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, length, generator=generator, dtype=torch.float64)


def by_loops(vectors_VE: Tensor, groups: list[int], temperature: float) -> Tensor:
    """The mean over views of equation 2, written out."""
    z = [v / (v * v).sum().sqrt() for v in vectors_VE]
    total = torch.zeros((), dtype=vectors_VE.dtype)
    for i, anchor in enumerate(z):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if groups[p] == groups[i]]
        denominator = sum(
            (torch.exp((anchor * z[a]).sum() / temperature) for a in others), total * 0
        )
        for p in positives:
            share = torch.exp((anchor * z[p]).sum() / temperature) / denominator
            total = total - torch.log(share) / len(positives)
    return total / len(z)


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_formula_and_gradient_by_plain_loops(groups: list[int], temperature: float) -> None:
    ours, theirs = vectors().requires_grad_(), vectors().requires_grad_()
    loss = supervised_contrastive_loss(ours, torch.tensor(groups), temperature)
    expected = by_loops(theirs, groups, temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)
    assert ours.grad is not None
    assert float(ours.grad.abs().max()) > 1e-3


def test_gradient_by_finite_differences() -> None:
    groups = torch.tensor(GROUPS["classes of unequal size"])
    start = vectors().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: supervised_contrastive_loss(v, groups, 0.5), start)


def test_views_of_images_alone_are_simclr() -> None:
    """NT-Xent as cross-entropy: of all other views, choose the one of the same image."""
    first, second = vectors(5, 8), vectors(10, 8)[5:]
    unit = F.normalize(torch.cat([first, second]), dim=1)
    similarity = unit @ unit.T / 0.2
    similarity.fill_diagonal_(-torch.inf)
    partner = torch.arange(10).roll(5)
    expected = F.cross_entropy(similarity, partner)
    images = torch.arange(5).repeat(2)
    loss = supervised_contrastive_loss(torch.cat([first, second]), images, 0.2)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_groups_that_are_points_at_right_angles(temperature: float) -> None:
    """N groups of m equal views on N axes: log(m - 1 + m (N - 1) e^(-1/τ)), for every view."""
    for groups, size in [(3, 2), (4, 5)]:
        at = torch.arange(groups).repeat_interleave(size)
        points = torch.eye(groups, dtype=torch.float64)[at]
        expected = math.log(size - 1 + size * (groups - 1) * math.exp(-1 / temperature))
        loss = supervised_contrastive_loss(points, at, temperature)
        assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_views_that_are_all_alike_cost_the_logarithm_of_the_others() -> None:
    alike = torch.ones(8, 3, dtype=torch.float64)
    loss = supervised_contrastive_loss(alike, torch.arange(4).repeat(2), 0.1)
    assert loss.item() == pytest.approx(math.log(7), rel=1e-12)


def test_length_order_and_names_of_groups_do_not_matter() -> None:
    groups = torch.tensor(GROUPS["pairs, apart"])
    expected = supervised_contrastive_loss(vectors(), groups, 0.3)
    lengths = torch.tensor([1.0, 3.0, 0.2, 5.0, 1.0, 2.0], dtype=torch.float64)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    changed = (vectors() * lengths[:, None])[order]
    loss = supervised_contrastive_loss(changed, 100 - 7 * groups[order], 0.3)
    torch.testing.assert_close(loss, expected)


def test_small_temperatures_do_not_overflow() -> None:
    start = vectors().float().requires_grad_()
    loss = supervised_contrastive_loss(start, torch.tensor(GROUPS["pairs"]), 1e-3)
    loss.backward()
    assert bool(loss.isfinite())
    assert start.grad is not None
    assert bool(start.grad.isfinite().all())


def test_a_view_alone_in_its_group_is_not_papered_over() -> None:
    loss = supervised_contrastive_loss(vectors(3), torch.tensor([0, 0, 1]), 0.5)
    assert bool(loss.isnan())
