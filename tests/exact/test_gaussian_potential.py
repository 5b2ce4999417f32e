"""The log mean Gaussian potential of features against closed forms and loops over pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from visgrpo.errors import UserError
from visgrpo.objectives.losses import gaussian_potential


def by_pairs(features_ND: np.ndarray, t: float) -> float:
    z_ND = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)
    pairs = itertools.permutations(z_ND, 2)
    return math.log(np.mean([math.exp(-t * ((x - y) ** 2).sum()) for x, y in pairs]))


@pytest.mark.parametrize("t", [0.5, 2.0, 5.0])
def test_closed_forms(t: float) -> None:
    """Distances² on the sphere: 0 for one point, 2 at right angles, 4 for opposite ones."""
    one = torch.tensor([[3.0, 4.0], [0.6, 0.8], [30.0, 40.0]])
    assert gaussian_potential(one, t=t).item() == pytest.approx(0, abs=1e-6 * t)
    axes = torch.eye(4) * torch.tensor([1.0, 2.0, 0.1, 7.0])
    assert gaussian_potential(axes, t=t).item() == pytest.approx(-2 * t, rel=1e-6)
    opposite = torch.tensor([[1.0, -2.0], [-3.0, 6.0]])
    assert gaussian_potential(opposite, t=t).item() == pytest.approx(-4 * t, rel=1e-6)
    # The corners of a square: each has two neighbours at 2 and one at 4.
    square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    mean = (2 * math.exp(-2 * t) + math.exp(-4 * t)) / 3
    assert gaussian_potential(square, t=t).item() == pytest.approx(math.log(mean), rel=1e-6)


def test_equals_the_loop_over_ordered_pairs() -> None:
    features_ND = np.random.default_rng(0).normal(size=(7, 5))
    ours = gaussian_potential(torch.from_numpy(features_ND)).item()
    assert ours == pytest.approx(by_pairs(features_ND, 2.0), rel=1e-5)


def test_far_apart_features_do_not_underflow() -> None:
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert gaussian_potential(opposite, t=100.0).item() == pytest.approx(-400)


def test_gradient_by_finite_differences() -> None:
    features_ND = np.random.default_rng(1).normal(size=(4, 3))
    leaf = torch.from_numpy(features_ND).requires_grad_()
    gaussian_potential(leaf).backward()
    assert leaf.grad is not None
    for row, column in np.ndindex(features_ND.shape):
        shift = np.zeros_like(features_ND)
        shift[row, column] = 1e-6
        ahead, behind = (by_pairs(features_ND + sign * shift, 2.0) for sign in (1, -1))
        slope = (ahead - behind) / 2e-6
        assert leaf.grad[row, column].item() == pytest.approx(slope, abs=1e-5)
    # Only directions count: nothing pulls along a feature.
    assert (leaf.grad * leaf).sum(dim=1).abs().max() < 1e-5


def test_descent_spreads_the_features() -> None:
    features_ND = torch.tensor([[1.0, 0.1], [1.0, 0.0], [1.0, -0.1]], requires_grad=True)
    for _ in range(300):
        (slope,) = torch.autograd.grad(gaussian_potential(features_ND), features_ND)
        with torch.no_grad():
            features_ND -= 0.1 * slope
    z_ND = features_ND.detach() / features_ND.detach().norm(dim=1, keepdim=True)
    cosines = (z_ND @ z_ND.T)[[0, 0, 1], [1, 2, 2]]
    assert cosines.tolist() == pytest.approx([-0.5] * 3, abs=0.01)  # thirds of a circle


def test_autocast_changes_nothing() -> None:
    """Features close together differ in the digits that bf16 leaves out."""
    generator = torch.Generator().manual_seed(0)
    features_ND = torch.ones(8, 16) + 0.02 * torch.randn(8, 16, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = gaussian_potential(features_ND)
    assert mixed.item() == pytest.approx(gaussian_potential(features_ND).item(), rel=1e-3)


@pytest.mark.parametrize("n_inputs", [0, 1])
def test_one_image_forms_no_pair(n_inputs: int) -> None:
    with pytest.raises(UserError, match="compares pairs: it needs two images or more"):
        gaussian_potential(torch.ones(n_inputs, 4))
