"""Posteriors over (image, label), and tables made from cells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import dirichlet

from visgrpo.errors import UserError
from visgrpo.feedback.source.events import open_events
from visgrpo.feedback.source.matching import match
from visgrpo.feedback.worth.cells import ValueCells, VoteCells, impression_cells
from visgrpo.feedback.worth.posterior import (
    SMALLEST_SD,
    Posterior,
    RunningAverage,
    check_prior,
    log_share_posterior,
    scatter,
    share_posterior,
    value_posterior,
)

KNOWN = np.array([[True, False], [True, True]])


def test_pessimism_takes_deviations_off() -> None:
    posterior = Posterior(np.array([[1.0, 2], [3, 4]]), np.array([[0.5, 1], [0, 2]]), KNOWN)
    lower = posterior.pessimistic(1.5)
    assert lower.mean_MK.tolist() == [[0.25, 0.5], [3, 1]]
    assert lower.sd_MK is posterior.sd_MK
    assert lower.known_MK is KNOWN
    assert np.array_equal(posterior.pessimistic(0).mean_MK, posterior.mean_MK)


@pytest.mark.parametrize("z", [-1.0, float("nan"), float("inf")])
def test_pessimism_is_a_number_from_0(z: float) -> None:
    posterior = Posterior(np.zeros((2, 2)), np.ones((2, 2)), KNOWN)
    with pytest.raises(UserError, match="number of standard deviations ≥ 0"):
        posterior.pessimistic(z)


@pytest.mark.parametrize(
    ("mean", "sd", "message"),
    [
        (np.zeros((2, 3)), np.ones((2, 2)), r"Shapes do not fit: means \(2, 3\)"),
        (np.zeros(2), np.ones(2), "Shapes do not fit"),
        (np.full((2, 2), np.nan), np.ones((2, 2)), "NaN or infinite"),
        (np.zeros((2, 2)), np.full((2, 2), np.inf), "NaN or infinite"),
        (np.zeros((2, 2)), np.full((2, 2), -1.0), "below 0"),
    ],
)
def test_what_is_no_posterior(mean: np.ndarray, sd: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Posterior(mean, sd, KNOWN)


def test_cells_of_one_pair_are_added() -> None:
    image, label = np.array([1, 0, 1]), np.array([2, 0, 2])
    table = scatter(image, label, np.array([0.5, 3, 2]), 3, 3)
    assert table.tolist() == [[3, 0, 0], [0, 0, 2.5], [0, 0, 0]]


@pytest.mark.parametrize(("image", "label"), [(3, 0), (0, 2), (-1, 0), (0, -1)])
def test_cells_outside_the_table(image: int, label: int) -> None:
    with pytest.raises(UserError, match=f"image {image} and label {label}, of 3 images and 2"):
        scatter(np.array([image]), np.array([label]), np.ones(1), 3, 2)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan"), float("inf")])
def test_priors_count_for_something(strength: float) -> None:
    with pytest.raises(UserError, match=r"prior strength is .*: it must be a number above 0"):
        check_prior(strength)


VOTES = VoteCells(np.array([0, 0, 2]), np.array([0, 2, 1]), np.array([7.0, 2, 1.5]))
ALPHAS = np.array([[7.5, 0.5, 2.5], [0.5, 0.5, 0.5], [0.5, 2, 0.5]])
VOTED = [[True] * 3, [False] * 3, [True] * 3]


def test_shares_are_the_dirichlet_mean_and_deviation() -> None:
    posterior = share_posterior(VOTES, 3, 3, prior=0.5)
    for m, alpha in enumerate(ALPHAS):
        np.testing.assert_allclose(posterior.mean_MK[m], dirichlet.mean(alpha))
        np.testing.assert_allclose(posterior.sd_MK[m] ** 2, dirichlet.var(alpha))
    assert posterior.known_MK.tolist() == VOTED


def test_log_shares_by_drawing() -> None:
    posterior = log_share_posterior(VOTES, 3, 3, prior=0.5)
    for m, alpha in enumerate(ALPHAS[:1]):
        logs = np.log(np.random.default_rng(m).dirichlet(alpha, 200_000))
        np.testing.assert_allclose(posterior.mean_MK[m], logs.mean(axis=0), atol=0.02)
        np.testing.assert_allclose(posterior.sd_MK[m], logs.std(axis=0), rtol=0.02)
    assert posterior.known_MK.tolist() == VOTED


def test_log_shares_closed_form() -> None:
    # ψ(2) - ψ(3) = -1/2, ψ(1) - ψ(3) = -3/2; ψ'(2) - ψ'(3) = 1/4, ψ'(1) - ψ'(3) = 5/4.
    cells = VoteCells(np.array([0]), np.array([0]), np.array([1.0]))
    posterior = log_share_posterior(cells, 1, 2, prior=1)
    assert posterior.mean_MK[0].tolist() == pytest.approx([-0.5, -1.5])
    assert posterior.sd_MK[0].tolist() == pytest.approx([0.5, np.sqrt(1.25)])


def test_many_votes_end_at_the_people_s_shares() -> None:
    cells = VoteCells(np.zeros(3, dtype=np.int64), np.arange(3), np.array([6e6, 3e6, 1e6]))
    share, log_share = (f(cells, 1, 3, prior=1) for f in (share_posterior, log_share_posterior))
    np.testing.assert_allclose(share.mean_MK, [[0.6, 0.3, 0.1]], atol=1e-6)
    np.testing.assert_allclose(np.exp(log_share.mean_MK), [[0.6, 0.3, 0.1]], atol=1e-6)
    assert log_share.sd_MK.max() < 0.002


def values_of(values: dict[tuple[int, int], list[float]]) -> ValueCells:
    image, label = np.array(list(values)).T
    lists = [np.array(some) for some in values.values()]
    count = np.array([len(some) for some in lists], dtype=float)
    sums = np.array([some.sum() for some in lists])
    squares = np.array([(some**2).sum() for some in lists])
    return ValueCells(image, label, count, sums, squares)


def test_values_by_hand() -> None:
    # Mean of all 18/6 = 3; within pairs (1 + 1) + (0 + 0 + 0) squares over 1 + 2, s² = 2/3.
    posterior = value_posterior(
        values_of({(0, 0): [1, 3], (1, 1): [4, 4, 4], (1, 0): [2]}), 2, 2, prior_strength=2
    )
    assert posterior.mean_MK[0].tolist() == pytest.approx([(6 + 4) / 4, 3])
    assert posterior.mean_MK[1].tolist() == pytest.approx([(6 + 2) / 3, (6 + 12) / 5])
    variances = [[2 / 3 / 4, 2 / 3 / 2], [2 / 3 / 3, 2 / 3 / 5]]
    np.testing.assert_allclose(posterior.sd_MK**2, variances)
    assert posterior.known_MK.tolist() == [[True, False], [True, True]]


def test_single_values_take_the_deviation_of_all() -> None:
    posterior = value_posterior(values_of({(0, 0): [1], (0, 1): [3]}), 1, 2, prior_strength=1)
    assert posterior.mean_MK.tolist() == [[1.5, 2.5]]
    assert posterior.sd_MK.tolist() == pytest.approx(np.full((1, 2), np.sqrt(1 / 2)))


def test_values_that_never_vary_keep_a_little_doubt() -> None:
    posterior = value_posterior(values_of({(0, 0): [5, 5]}), 1, 1, prior_strength=2)
    assert posterior.sd_MK[0, 0] == pytest.approx(SMALLEST_SD / 2)


def test_intervals_of_values_cover_the_truth() -> None:
    """Means drawn from N(2, 0.5²), values from N(mean, 1): κ = 1/0.25 is the right prior."""
    rng = np.random.default_rng(0)
    truth = rng.normal(2, 0.5, (2000, 5))
    count = rng.integers(1, 10, truth.shape)
    image, label = np.divmod(np.repeat(np.arange(truth.size), count.ravel()), 5)
    value = rng.normal(truth[image, label], 1)
    ones = np.ones(len(value))
    cells = ValueCells(image, label, ones, value, value**2)  # cells of a pair are added
    posterior = value_posterior(cells, 2000, 5, prior_strength=4)
    inside = np.abs(posterior.mean_MK - truth) < 1.96 * posterior.sd_MK
    assert inside.mean() == pytest.approx(0.95, abs=0.01)


HALF_LIFE = 50.0


def events(count: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Images, labels, times shown, clicks, times."""
    rng = np.random.default_rng(seed)
    shown = rng.integers(0, 4, count).astype(float)
    clicked = rng.binomial(shown.astype(int), 0.4).astype(float)
    time = rng.uniform(1e9, 1e9 + 500, count)
    return rng.integers(0, 3, count), rng.integers(0, 4, count), shown, clicked, time


def fed(columns: tuple[np.ndarray, ...], order: np.ndarray, batch: int) -> RunningAverage:
    average = RunningAverage(3, 4, half_life=HALF_LIFE)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        average.update(*(column[rows] for column in columns))
    return average


def test_a_stream_in_any_order_is_the_direct_sum() -> None:
    columns = events(60)
    count, total = np.zeros((3, 4)), np.zeros((3, 4))
    for m, k, shown, clicked, time in zip(*columns, strict=True):
        weight = 2 ** (-(columns[4].max() - time) / HALF_LIFE)
        count[m, k] += weight * shown
        total[m, k] += weight * clicked
    by_time = np.argsort(columns[4])
    shuffled = np.random.default_rng(1).permutation(60)
    for order, batch in ((by_time, 1), (by_time, 7), (by_time[::-1], 10), (shuffled, 60)):
        average = fed(columns, order, batch)
        np.testing.assert_allclose(average.count_MK, count, rtol=1e-9)
        np.testing.assert_allclose(average.total_MK, total, rtol=1e-9)
        assert average.time == columns[4].max()


def test_a_stream_equals_the_half_life_of_a_table(tmp_path: Path) -> None:
    columns = events(40)
    table = tmp_path / "log.csv"
    lines = ["image,label,shown,clicked,time"]
    for m, k, shown, clicked, time in zip(*columns, strict=True):
        lines.append(f"i{m},l{k},{int(shown)},{int(clicked)},{float(time)!r}")
    table.write_text("\n".join(lines))
    with open_events(str(table)) as opened:
        matched = match(opened, [[f"i{m}"] for m in range(3)], [f"l{k}" for k in range(4)])
        expected = impression_cells(matched, half_life=HALF_LIFE)
    cells = fed(columns, np.arange(40), 9).cells()
    assert cells.image_C.tolist() == expected.image_C.tolist()
    assert cells.label_C.tolist() == expected.label_C.tolist()
    np.testing.assert_allclose(cells.shown_C, expected.shown_C)
    np.testing.assert_allclose(cells.clicked_C, expected.clicked_C)


def test_a_running_average_by_hand() -> None:
    average = RunningAverage(1, 2, half_life=10)
    one, zero = np.ones(1), np.zeros(1, dtype=np.int64)
    average.update(zero, zero, one, 4 * one, 0 * one)
    average.update(zero, zero, one, 1 * one, 20 * one)  # two half-lives later
    assert average.count_MK[0].tolist() == [1.25, 0]
    assert average.means(unknown=-1)[0].tolist() == [pytest.approx(2 / 1.25), -1]
    cells = average.cells()
    assert (cells.image_C.tolist(), cells.label_C.tolist()) == ([0], [0])
    assert (cells.shown_C.tolist(), cells.clicked_C.tolist()) == ([1.25], [2])
    assert cells.position_C.tolist() == [0]


def test_nothing_changes_nothing() -> None:
    average = RunningAverage(1, 1, half_life=1)
    average.update(*(np.zeros(0, dtype=np.int64) for _ in range(5)))
    assert average.time is None
    assert not average.known_MK.any()


def test_events_that_no_average_takes() -> None:
    with pytest.raises(UserError, match="half-life is 0 seconds"):
        RunningAverage(1, 1, half_life=0)
    average = RunningAverage(1, 1, half_life=1)
    zero = np.zeros(1, dtype=np.int64)
    with pytest.raises(UserError, match="time of an event is NaN"):
        average.update(zero, zero, np.ones(1), np.ones(1), np.full(1, np.nan))
    with pytest.raises(UserError, match="image 0 and label 1"):
        average.update(zero, zero + 1, np.ones(1), np.ones(1), np.ones(1))


NOTHING = np.zeros((2, 1), dtype=np.int64), np.zeros((3, 1))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: share_posterior(VOTES, 3, 3, prior=0), "The prior is 0"),
        (lambda: log_share_posterior(VoteCells(*NOTHING[0], np.zeros(1)), 1, 1, prior=1),
         "no votes"),
        (lambda: value_posterior(values_of({(0, 0): [1]}), 1, 1, prior_strength=0),
         "prior strength is 0"),
        (lambda: value_posterior(ValueCells(*NOTHING[0], np.full(1, 1e-9), *NOTHING[1][1:]), 1, 1,
                                 prior_strength=1),
         "--half-life leaves nothing of it"),
        (lambda: value_posterior(ValueCells(*NOTHING[0], *NOTHING[1]), 1, 1, prior_strength=1),
         "no values"),
    ],
)  # fmt: skip
def test_what_nothing_can_be_learned_from(ask: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ask()
