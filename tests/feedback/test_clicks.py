"""Click-through against the Beta distribution, and position bias against synthetic truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta

import visgrpo.feedback.worth.clicks
from visgrpo.errors import UserError
from visgrpo.feedback.worth.cells import ImpressionCells
from visgrpo.feedback.worth.clicks import Examination, click_posterior, fit_examination

EXAMINED = np.array([1.0, 0.7, 0.5, 0.3, 0.2])
K = 5


def cells_of(*rows: tuple[float, ...]) -> ImpressionCells:
    """Cells from rows of (image, label, position, shown, clicked)."""
    image, label, position, shown, clicked = np.array(rows, dtype=float).T
    whole = (column.astype(np.int64) for column in (image, label, position))
    return ImpressionCells(*whole, shown, clicked)


def simulated(images: int, each: int, seed: int, ups: float = 2, downs: float = 6):
    """A log whose policy puts attractive labels on top, and the truth r (M, K) behind it."""
    rng = np.random.default_rng(seed)
    r = rng.beta(ups, downs, images * K)
    top = rng.random((images * K, each)) < r[:, None]
    position = np.where(top, 0, rng.integers(0, len(EXAMINED), (images * K, each)))
    clicked = rng.random((images * K, each)) < EXAMINED[position] * r[:, None]
    cell = np.arange(images * K)[:, None] * len(EXAMINED) + position
    used, inverse = np.unique(cell, return_inverse=True)
    pair, slot = np.divmod(used, len(EXAMINED))
    shown = np.bincount(inverse.ravel()).astype(float)
    clicks = np.bincount(inverse.ravel(), weights=clicked.ravel())
    return ImpressionCells(pair // K, pair % K, slot + 1, shown, clicks), r.reshape(images, K)


def examination(*values: float) -> Examination:
    return Examination(np.arange(1, len(values) + 1), np.array(values), pairs=0, iterations=0)


def test_without_positions_it_is_the_beta_distribution() -> None:
    # Click-through 6/20; a prior of 10 impressions is Beta(3, 7).
    cells = cells_of((0, 0, 0, 12, 5), (1, 1, 0, 8, 1))
    posterior = click_posterior(cells, 2, 2, prior_strength=10)
    expected = {(0, 0): beta(8, 14), (0, 1): beta(3, 7), (1, 0): beta(3, 7), (1, 1): beta(4, 14)}
    for pair, distribution in expected.items():
        assert posterior.mean_MK[pair] == pytest.approx(distribution.mean(), rel=1e-12)
        assert posterior.sd_MK[pair] == pytest.approx(distribution.std(), rel=1e-12)
    assert posterior.known_MK.tolist() == [[True, False], [False, True]]


def test_positions_are_added_up_and_all_examined_means_no_correction() -> None:
    cells = cells_of((0, 0, 1, 4, 3), (0, 0, 2, 5, 1), (0, 1, 2, 6, 1), (1, 1, 1, 0, 0))
    plain = click_posterior(cells, 2, 2, prior_strength=3.5)
    assert plain.mean_MK[0, 0] == pytest.approx((3.5 * 5 / 15 + 4) / (3.5 + 9))
    assert plain.known_MK.tolist() == [[True, True], [False, False]]
    same = click_posterior(cells, 2, 2, prior_strength=3.5, examination=examination(1, 1))
    np.testing.assert_allclose(same.mean_MK, plain.mean_MK, rtol=1e-12)
    np.testing.assert_allclose(same.sd_MK, plain.sd_MK, rtol=1e-12)


def test_the_corrected_posterior_is_near_the_exact_one() -> None:
    # Overall: 9 clicks in 40 + 0.5 * 20 + 0.2 * 50 examined impressions.
    cells = cells_of((0, 0, 1, 40, 6), (0, 1, 2, 20, 2), (0, 1, 3, 50, 1))
    posterior = click_posterior(
        cells, 1, 2, prior_strength=20, examination=examination(1, 0.5, 0.2)
    )
    rate = 9 / 60

    def density(r: float, power: int = 0) -> float:
        likelihood = r**3 * (1 - 0.5 * r) ** 18 * (1 - 0.2 * r) ** 49
        return r**power * beta.pdf(r, 20 * rate, 20 * (1 - rate)) * likelihood

    mass, first, second = (quad(density, 0, 1, args=(power,))[0] for power in range(3))
    mean = first / mass
    assert posterior.mean_MK[0, 1] == pytest.approx(mean, rel=0.01)
    assert posterior.sd_MK[0, 1] == pytest.approx(np.sqrt(second / mass - mean**2), rel=0.03)


def test_no_clicks_at_all_leave_a_proper_prior() -> None:
    posterior = click_posterior(cells_of((0, 0, 0, 9, 0)), 1, 2, prior_strength=2)
    assert posterior.mean_MK[0].tolist() == pytest.approx([2 * 0.05 / 11, 0.05])
    assert (posterior.sd_MK > 0).all()
    full = click_posterior(cells_of((0, 0, 0, 9, 9)), 1, 2, prior_strength=2)
    assert full.mean_MK[0].tolist() == pytest.approx([(1.9 + 9) / 11, 0.95])


def test_examination_closed_form() -> None:
    """Two positions, shown equally often: the ratio of clicks on pairs shown at both."""
    cells = cells_of(
        *((0, 0, 1, 10, 6), (0, 0, 2, 10, 2), (1, 0, 1, 10, 3), (1, 0, 2, 10, 1)),
        (2, 0, 1, 10, 9),  # shown at one position: no say
        *((2, 1, 1, 10, 0), (2, 1, 2, 10, 0)),  # no clicks: no say
    )
    fitted = fit_examination(cells)
    assert fitted.positions_P.tolist() == [1, 2]
    assert fitted.examination_P.tolist() == pytest.approx([1, 3 / 9], rel=1e-9)
    assert fitted.pairs == 2


@pytest.mark.parametrize("weight", [1e-6, 1e-20, 1e-100])
def test_a_position_of_long_ago_is_still_compared(weight: float) -> None:
    # Where next to nothing is left of position 2, e_2/e_1 is Σ c_2/w over Σ c_1, here 5/10.
    cells = cells_of(
        (0, 0, 1, 10, 6), (0, 0, 2, 10 * weight, 3 * weight),
        (1, 0, 1, 10, 4), (1, 0, 2, 10 * weight, 2 * weight),
    )  # fmt: skip
    fitted = fit_examination(cells)
    assert fitted.examination_P == pytest.approx([1, 0.5], rel=1e-5)
    posterior = click_posterior(cells, 2, 1, prior_strength=1e-9, examination=fitted)
    assert posterior.mean_MK[:, 0] == pytest.approx([0.6, 0.4], rel=1e-5)
    assert posterior.known_MK.all()


def test_the_largest_examination_is_1_wherever_it_is() -> None:
    cells = cells_of((0, 0, 3, 10, 2), (0, 0, 7, 20, 8), (0, 1, 9, 5, 0))
    fitted = fit_examination(cells)
    assert fitted.examination_P.tolist() == pytest.approx([0.5, 1, 0])
    assert fitted.at(np.array([7, 3, 9, 7])).tolist() == pytest.approx([1, 0.5, 0, 1])


def test_the_bias_of_examination_shrinks_with_the_log() -> None:
    """Three impressions of each pair, attractive labels on top: more images, smaller error."""
    errors = {}
    for images in (400, 40_000):
        fitted = fit_examination(simulated(images, 3, seed=1)[0])
        errors[images] = np.abs(fitted.examination_P - EXAMINED).max()
    assert errors[40_000] < 0.01
    assert errors[400] > errors[40_000]


def em_for_every_pair(cells: ImpressionCells, iterations: int) -> np.ndarray:
    """Examination by the EM of Wang et al. (2018), with one r for every pair."""
    _, pair = np.unique(cells.image_C * K + cells.label_C, return_inverse=True)
    slot, shown, clicked = cells.position_C - 1, cells.shown_C, cells.clicked_C
    e, r = np.full(len(EXAMINED), 0.5), np.full(pair.max() + 1, 0.5)
    for _ in range(iterations):
        missed = (shown - clicked) / (1 - e[slot] * r[pair])
        examined = clicked + missed * e[slot] * (1 - r[pair])
        attracted = clicked + missed * (1 - e[slot]) * r[pair]
        e = np.bincount(slot, weights=examined) / np.bincount(slot, weights=shown)
        r = np.bincount(pair, weights=attracted) / np.bincount(pair, weights=shown)
    return e / e.max()


def test_a_log_with_few_impressions_of_a_pair_defeats_em_for_every_pair() -> None:
    cells, _ = simulated(4000, 2, seed=3)
    assert np.abs(fit_examination(cells).examination_P - EXAMINED).max() < 0.05
    assert np.abs(em_for_every_pair(cells, 200) - EXAMINED).max() > 0.25
    cells, _ = simulated(50, 1000, seed=3)  # with many it does as well
    assert np.abs(fit_examination(cells).examination_P - EXAMINED).max() < 0.03
    assert np.abs(em_for_every_pair(cells, 200) - EXAMINED).max() < 0.03


def test_intervals_cover_the_truth_only_when_corrected() -> None:
    cells, truth = simulated(4000, 50, seed=2)
    corrected = click_posterior(
        cells, 4000, K, prior_strength=8, examination=fit_examination(cells)
    )
    naive = click_posterior(cells, 4000, K, prior_strength=8)

    def coverage(posterior) -> float:
        return float((np.abs(posterior.mean_MK - truth) < 1.96 * posterior.sd_MK).mean())

    assert coverage(corrected) == pytest.approx(0.95, abs=0.01)
    assert coverage(naive) < 0.75
    assert (corrected.mean_MK - truth).mean() == pytest.approx(0, abs=0.006)
    assert (naive.mean_MK - truth).mean() < -0.03


def test_a_position_that_is_never_clicked_is_never_looked_at() -> None:
    fitted = fit_examination(cells_of((0, 0, 1, 9, 2), (0, 0, 2, 9, 0)))
    assert fitted.examination_P.tolist() == [1, 0]


def test_one_position_needs_no_correction() -> None:
    assert fit_examination(cells_of((0, 0, 4, 9, 1))).examination_P.tolist() == [1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, 0, 0, 3, 1), (0, 0, 1, 3, 1)], "3 impressions have no position"),
        ([(0, 0, 1, 3, 0), (0, 0, 2, 3, 0)], "Nothing was clicked"),
        ([(0, 0, 1, 3, 1), (0, 1, 2, 3, 1)], "shown at one position only"),
        (
            [(0, 0, 1, 3, 1), (0, 0, 2, 3, 1), (0, 1, 3, 3, 1), (0, 1, 4, 3, 1)],
            "Positions 1 and 3 cannot be compared",
        ),
        # Clicked at 1 whenever it could be clicked at 2 as well: the ratio has no bound.
        ([(0, 0, 1, 3, 1), (0, 0, 2, 3, 0), (0, 1, 2, 3, 1)], "Positions 1 and 2 cannot"),
        ([(0, 0, 1, 0, 0)], "No label was ever shown"),
    ],
)
def test_positions_that_cannot_be_told_apart(rows: list[tuple[float, ...]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_examination(cells_of(*rows))


def test_a_fit_that_does_not_settle_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visgrpo.feedback.worth.clicks, "MOST_ITERATIONS", 1)
    cells = cells_of((0, 0, 1, 10, 6), (0, 0, 2, 10, 2))
    with pytest.raises(UserError, match="examination of positions did not settle in 1 steps"):
        fit_examination(cells)
    with pytest.raises(UserError, match="probabilities did not settle in 1 steps"):
        click_posterior(cells, 1, 1, prior_strength=1, examination=examination(1, 0.5))


def test_what_the_posterior_refuses() -> None:
    cells = cells_of((0, 0, 3, 10, 6))
    with pytest.raises(UserError, match="prior strength"):
        click_posterior(cells, 1, 1, prior_strength=0)
    with pytest.raises(UserError, match="examination of position 3 is not known"):
        click_posterior(cells, 1, 1, prior_strength=1, examination=examination(1, 0.5))
    with pytest.raises(UserError, match="never looked at"):
        click_posterior(cells, 1, 1, prior_strength=1, examination=examination(1, 0.5, 0))
    with pytest.raises(UserError, match="--half-life leaves nothing of it"):
        click_posterior(cells_of((0, 0, 1, 1e-9, 0)), 1, 1, prior_strength=1)
    with pytest.raises(UserError, match="No label was ever shown"):
        click_posterior(cells_of((0, 0, 1, 0, 0)), 1, 1, prior_strength=1)
