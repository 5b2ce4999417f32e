"""Running averages against direct sums over all events."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from visgrpo.errors import UserError
from visgrpo.feedback.source.events import open_events
from visgrpo.feedback.source.matching import match
from visgrpo.feedback.worth.cells import impression_cells
from visgrpo.feedback.worth.posterior import RunningAverage

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


def test_by_hand() -> None:
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


def test_what_it_refuses() -> None:
    with pytest.raises(UserError, match="half-life is 0 seconds"):
        RunningAverage(1, 1, half_life=0)
    average = RunningAverage(1, 1, half_life=1)
    zero = np.zeros(1, dtype=np.int64)
    with pytest.raises(UserError, match="time of an event is NaN"):
        average.update(zero, zero, np.ones(1), np.ones(1), np.full(1, np.nan))
    with pytest.raises(UserError, match="image 0 and label 1"):
        average.update(zero, zero + 1, np.ones(1), np.ones(1), np.ones(1))
