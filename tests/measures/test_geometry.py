"""Alignment and uniformity against closed forms and loops over pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.measures import probes
from visgrpo.measures.probes import alignment, uniformity


def features(rows: int, width: int = 5) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))


def squared_distances(features_MD: Tensor) -> dict[tuple[int, int], float]:
    x = features_MD.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return {(i, j): ((x[i] - x[j]) ** 2).sum() for i, j in itertools.combinations(range(len(x)), 2)}


def test_orthonormal_features() -> None:
    """Every squared distance is 2; lengths do not matter."""
    basis = torch.eye(6) * torch.arange(1.0, 7)[:, None]
    assert alignment(basis, torch.zeros(6).long()) == pytest.approx(2)
    assert uniformity(basis) == pytest.approx(-4)


def test_antipodal_features() -> None:
    """±e: of six pairs two are 0 apart and four at squared distance 4."""
    x = torch.tensor([[1.0, 0], [-2, 0], [3, 0], [-4, 0]])
    assert alignment(x, torch.tensor([0, 0, 1, 1])) == pytest.approx(4)
    assert alignment(x, torch.tensor([0, 1, 0, 1])) == pytest.approx(0)
    assert uniformity(x) == pytest.approx(math.log((2 + 4 * math.exp(-8)) / 6))


def test_one_point_is_perfectly_aligned_and_not_at_all_uniform() -> None:
    x = torch.tensor([[3.0, 4]]).repeat(5, 1)
    assert alignment(x, torch.zeros(5).long()) == pytest.approx(0, abs=1e-15)
    assert uniformity(x) == pytest.approx(0, abs=1e-15)


def test_alignment_against_a_loop_over_pairs() -> None:
    x, labels = features(40), torch.arange(40) % 7 * 3  # ids with gaps; classes of 6 and of 5
    same = [d for (i, j), d in squared_distances(x).items() if labels[i] == labels[j]]
    assert alignment(x, labels) == pytest.approx(np.mean(same), rel=1e-12)


@pytest.mark.parametrize("pairs_at_once", [1, 90, 10_000])
def test_uniformity_against_a_loop_over_pairs(
    monkeypatch: pytest.MonkeyPatch, pairs_at_once: int
) -> None:
    monkeypatch.setattr(probes, "PAIRS_AT_ONCE", pairs_at_once)
    x = features(40)
    expected = np.log(np.mean(np.exp(-2 * np.array([*squared_distances(x).values()]))))
    assert uniformity(x) == pytest.approx(expected, rel=1e-12)


def test_features_spread_over_a_sphere_come_near_to_minus_four() -> None:
    """In many dimensions random directions are nearly orthogonal."""
    assert uniformity(features(300, 512)) == pytest.approx(-4, abs=0.05)


def test_half_precision_is_measured_in_float64() -> None:
    x = features(20).bfloat16()
    assert uniformity(x) == uniformity(x.double())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_no_numbers(bad: float) -> None:
    x = features(4)
    x[2, 1] = bad
    with pytest.raises(UserError, match=r"NaN or infinity in the features of 1 of 4.*row 2"):
        uniformity(x)
    with pytest.raises(UserError, match="diverged"):
        alignment(x, torch.zeros(4).long())


def test_zero_features_have_no_direction() -> None:
    x = features(4)
    x[1] = 0
    with pytest.raises(UserError, match=r"1 of 4 images are all zeros, first in row 1"):
        uniformity(x)


def test_too_few_to_make_a_pair() -> None:
    with pytest.raises(UserError, match="needs pairs of images, and there are 1"):
        uniformity(features(1))
    with pytest.raises(UserError, match="No two of the 3 rows are of the same class"):
        alignment(features(3), torch.arange(3))


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"features \(3,\); expected \(M, D\)"):
        uniformity(torch.ones(3))
    with pytest.raises(UserError, match=r"features \(3, 5\) and labels \(2,\)"):
        alignment(features(3), torch.zeros(2).long())
    with pytest.raises(UserError, match=r"whole class ids, not torch\.float32"):
        alignment(features(3), torch.zeros(3))
