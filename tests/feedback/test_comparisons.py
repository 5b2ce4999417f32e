"""Bradley–Terry and Davidson scores: closed forms, a published table, an independent optimiser."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq, minimize
from scipy.special import expit

import visgrpo.feedback.worth.comparisons
from visgrpo.errors import UserError
from visgrpo.feedback.worth.cells import PreferenceCells
from visgrpo.feedback.worth.comparisons import davidson_posterior, davidson_scores

# Games won by the row over the column in the American League East, 1987.
TEAMS = ("Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore")
WINS = np.array(
    [
        [0, 7, 9, 7, 7, 9, 11],
        [6, 0, 7, 5, 11, 9, 9],
        [4, 6, 0, 7, 7, 8, 12],
        [6, 8, 6, 0, 6, 7, 10],
        [6, 2, 6, 7, 0, 7, 12],
        [4, 4, 5, 6, 6, 0, 6],
        [2, 4, 1, 3, 1, 7, 0],
    ]
)
# Agresti (2002), Categorical Data Analysis, 2nd edition, Table 10.11, column 3: relative to
# Baltimore; standard errors are "about 0.3".
PUBLISHED = (1.58, 1.44, 1.29, 1.25, 1.11, 0.68, 0)


def cells_of(*rows: tuple[int, ...]) -> PreferenceCells:
    """Cells from rows of (image, preferred, rejected, wins, ties)."""
    image, preferred, rejected, wins, ties = np.array(rows, dtype=np.int64).T
    return PreferenceCells(image, preferred, rejected, wins.astype(float), ties.astype(float))


def random_cells(images: int, classes: int, seed: int, ties: int = 3) -> PreferenceCells:
    rng = np.random.default_rng(seed)
    rows = [
        (m, i, j, rng.integers(0, 5), rng.integers(0, ties) if i < j else 0)
        for m in range(images)
        for i in range(classes)
        for j in range(classes)
        if i != j and rng.random() < 0.5
    ]
    return cells_of(*rows)


def loss(scores: np.ndarray, log_tie: float, cells: PreferenceCells, prior_sd: float) -> float:
    """Minus the log of Davidson's likelihood, as he writes it, and of the prior."""
    pi, nu = np.exp(scores), np.exp(log_tie)
    total = float((scores**2).sum() / 2 / prior_sd**2)
    columns = zip(*(getattr(cells, name) for name in cells.__dataclass_fields__), strict=True)
    for m, i, j, wins, ties in columns:
        middle = nu * np.sqrt(pi[m, i] * pi[m, j])
        whole = pi[m, i] + pi[m, j] + middle
        total -= wins * np.log(pi[m, i] / whole)
        total -= ties * np.log(middle / whole) if ties else 0
    return total


def test_published_table() -> None:
    rows = [(0, i, j, WINS[i, j], 0) for i in range(7) for j in range(7) if i != j]
    posterior = davidson_posterior(cells_of(*rows), 1, 7, prior_sd=1000)
    scores = posterior.mean_MK[0] - posterior.mean_MK[0, TEAMS.index("Baltimore")]
    assert scores.round(2).tolist() == list(PUBLISHED)


def test_two_labels_closed_form() -> None:
    """log(a/b) apart, with variance 1/a + 1/b of the difference: each score has half of it."""
    posterior = davidson_posterior(cells_of((0, 0, 2, 9, 0), (0, 2, 0, 3, 0)), 2, 3, prior_sd=1e3)
    assert posterior.mean_MK[0].tolist() == pytest.approx([np.log(3) / 2, 0, -np.log(3) / 2])
    assert posterior.known_MK.tolist() == [[True, False, True], [False] * 3]
    assert posterior.sd_MK[0, 1] == 1e3
    assert not posterior.mean_MK[1].any()


def test_two_labels_with_a_prior() -> None:
    """s = (x, -x) with 9 - 12·σ(2x) = x/sd²; information [[v + 1, -v], [-v, v + 1]]."""
    posterior = davidson_posterior(cells_of((0, 0, 1, 9, 0), (0, 1, 0, 3, 0)), 1, 2, prior_sd=1)
    x = brentq(lambda x: 9 - 12 * expit(2 * x) - x, 0, 5)
    assert posterior.mean_MK[0].tolist() == pytest.approx([x, -x], rel=1e-9)
    v = 12 * expit(2 * x) * expit(-2 * x)
    assert posterior.sd_MK[0].tolist() == pytest.approx([np.sqrt((v + 1) / (2 * v + 1))] * 2)


def test_two_labels_with_ties_closed_form() -> None:
    """The model fits three shares exactly: log(a/b) apart, and ν = ties/√(a·b)."""
    cells = cells_of((0, 0, 1, 8, 5), (0, 1, 0, 2, 0))
    fitted = davidson_scores(cells, 1, 2, prior_sd=1e4)
    assert fitted.tie == pytest.approx(5 / 4, rel=1e-6)
    assert np.ptp(fitted.posterior.mean_MK) == pytest.approx(np.log(4), rel=1e-6)


def test_balanced_ties() -> None:
    """At equal scores P(tie) = ν/(2 + ν) = 1/3."""
    fitted = davidson_scores(cells_of((0, 0, 1, 3, 3), (0, 1, 0, 3, 0)), 1, 2, prior_sd=2)
    assert fitted.tie == pytest.approx(1)
    assert fitted.posterior.mean_MK.tolist() == [[0, 0]]


@pytest.mark.parametrize("ties", [1, 3])
def test_an_independent_optimiser(ties: int) -> None:
    cells = random_cells(3, 4, seed=ties, ties=ties)
    start = np.append(np.zeros(12), 0.0)

    def of(x: np.ndarray) -> float:
        return loss(x[:12].reshape(3, 4), x[12] if ties > 1 else -50.0, cells, 1.5)

    best = minimize(of, start, method="BFGS", options={"gtol": 1e-6})
    fitted = davidson_scores(cells, 3, 4, prior_sd=1.5)
    np.testing.assert_allclose(fitted.posterior.mean_MK.ravel(), best.x[:12], atol=1e-5)
    assert fitted.tie == (pytest.approx(np.exp(best.x[12]), rel=1e-4) if ties > 1 else 0)


def test_curvature_by_finite_differences() -> None:
    cells = random_cells(1, 4, seed=5)
    fitted = davidson_scores(cells, 1, 4, prior_sd=0.8)
    steps = 1e-3 * np.eye(4)

    def at(shift: np.ndarray) -> float:
        return loss(fitted.posterior.mean_MK + shift, np.log(fitted.tie), cells, 0.8)

    slope = [(at(e) - at(-e)) / 2e-3 for e in steps]
    np.testing.assert_allclose(slope, 0, atol=1e-5)
    hessian = [
        [(at(e + f) - at(e - f) - at(f - e) + at(-e - f)) / 4e-6 for f in steps] for e in steps
    ]
    variance = np.diagonal(np.linalg.inv(hessian))
    np.testing.assert_allclose(fitted.posterior.sd_MK[0] ** 2, variance, rtol=1e-4)


def test_images_are_fitted_alone_whatever_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = random_cells(40, 5, seed=7, ties=1)
    whole = davidson_posterior(cells, 41, 5, prior_sd=2)
    monkeypatch.setattr(visgrpo.feedback.worth.comparisons, "NUMBERS_AT_ONCE", 60)
    split = davidson_posterior(cells, 41, 5, prior_sd=2)
    np.testing.assert_allclose(split.mean_MK, whole.mean_MK, atol=1e-9)
    np.testing.assert_allclose(split.sd_MK, whole.sd_MK, rtol=1e-7)
    one = cells.image_C == 17
    columns = (getattr(cells, name)[one] for name in cells.__dataclass_fields__)
    alone = davidson_posterior(PreferenceCells(*columns), 41, 5, prior_sd=2)
    np.testing.assert_allclose(alone.mean_MK[17], whole.mean_MK[17], atol=1e-9)


def test_scores_of_compared_labels_have_mean_0() -> None:
    posterior = davidson_posterior(random_cells(6, 5, seed=3), 6, 5, prior_sd=1)
    np.testing.assert_allclose(posterior.mean_MK.sum(axis=1), 0, atol=1e-9)


def test_a_label_that_always_wins_stays_finite() -> None:
    posterior = davidson_posterior(cells_of((0, 0, 1, 1000, 0)), 1, 2, prior_sd=10)
    x = brentq(lambda x: 1000 * expit(-2 * x) - x / 100, 0, 50)
    assert posterior.mean_MK[0].tolist() == pytest.approx([x, -x], rel=1e-9)


def test_intervals_cover_the_truth() -> None:
    """Scores drawn from the prior, twelve comparisons of random pairs of each image's labels."""
    rng = np.random.default_rng(11)
    truth = rng.normal(0, 1, (1500, 4))
    image = np.repeat(np.arange(1500), 12)
    first = rng.integers(0, 4, len(image))
    second = (first + rng.integers(1, 4, len(image))) % 4
    won = rng.random(len(image)) < expit(truth[image, first] - truth[image, second])
    winner, loser = np.where(won, first, second), np.where(won, second, first)
    cells = PreferenceCells(image, winner, loser, np.ones(len(image)), np.zeros(len(image)))
    posterior = davidson_posterior(cells, 1500, 4, prior_sd=1)
    inside = np.abs(posterior.mean_MK - truth) < 1.96 * posterior.sd_MK
    assert inside[posterior.known_MK].mean() == pytest.approx(0.95, abs=0.01)


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = cells_of((0, 0, 1, 3, 0))
    with pytest.raises(UserError, match="prior deviation of scores is 0"):
        davidson_posterior(cells, 1, 2, prior_sd=0)
    with pytest.raises(UserError, match="Every comparison is a tie"):
        davidson_posterior(cells_of((0, 0, 1, 0, 4)), 1, 2, prior_sd=1)
    with pytest.raises(UserError, match="There are no comparisons"):
        davidson_posterior(PreferenceCells(*np.zeros((5, 0), dtype=int)), 1, 2, prior_sd=1)
    monkeypatch.setattr(visgrpo.feedback.worth.comparisons, "MOST_ITERATIONS", 1)
    with pytest.raises(UserError, match="did not settle in 1 steps"):
        davidson_posterior(cells, 1, 2, prior_sd=1)
