"""Cells against sums in plain Python loops."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from event_files import WRITERS, write_parquet

from visgrpo.errors import UserError
from visgrpo.feedback.source.events import open_events
from visgrpo.feedback.source.matching import Matched, match
from visgrpo.feedback.worth import cells

CLASSES = ("cat", "dog", "owl")
IMAGES = 7
Row = Mapping[str, Any]


@contextmanager
def matched(path: Path) -> Iterator[Matched]:
    with open_events(str(path)) as events:
        yield match(events, [[f"i{m}"] for m in range(IMAGES)], CLASSES)


def log(seed: int, rows: int, **columns: Callable[[np.random.Generator], Any]) -> dict[str, list]:
    """Random rows about images i0 to i7, of which the last is unknown."""
    rng = np.random.default_rng(seed)
    image = [f"i{rng.integers(IMAGES + 1)}" for _ in range(rows)]
    found = {"image": image}
    return found | {name: [draw(rng) for _ in range(rows)] for name, draw in columns.items()}


def impressions(rows: int = 400) -> dict[str, list]:
    columns = log(
        1, rows,
        label=lambda rng: CLASSES[rng.integers(3)],
        shown=lambda rng: int(rng.integers(0, 4)),
        propensity=lambda rng: float(rng.uniform(0.01, 1)),
        position=lambda rng: [None, 1, 2][rng.integers(3)],
        dwell=lambda rng: [None, float(rng.exponential(10))][rng.integers(2)],
    )  # fmt: skip
    rng = np.random.default_rng(2)
    columns["clicked"] = [int(rng.integers(0, shown + 1)) for shown in columns["shown"]]
    columns["time"] = [1.7e9 + float(t) for t in rng.integers(0, 5000, size=rows)]
    columns["user"] = [f"u{n}" for n in range(rows)]
    return columns


def sums(
    columns: Mapping[str, Sequence[Any]],
    key: Callable[[Row], tuple[int, ...]],
    values: Callable[[Row], Sequence[float]],
    keep: int | None = 0,
) -> list[tuple[float, ...]]:
    """Sum values up by key in a loop, sorted; only cells whose value number `keep` is above 0."""
    totals: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for line in zip(*columns.values(), strict=True):
        row = dict(zip(columns, line, strict=True))
        if row["image"] == f"i{IMAGES}":
            continue
        got = values(row)
        old = totals.setdefault(key(row), [0.0] * len(got))
        totals[key(row)] = [a + b for a, b in zip(old, got, strict=True)]
    kept = {k: v for k, v in totals.items() if keep is None or v[keep] > 0}
    return [(*k, *kept[k]) for k in sorted(kept)]


def pair(row: Row) -> tuple[int, int]:
    return int(row["image"][1:]), CLASSES.index(row["label"])


def lines(*columns: np.ndarray) -> list[tuple[float, ...]]:
    return [tuple(float(value) for value in row) for row in zip(*columns, strict=True)]


def check(found: list[tuple[float, ...]], expected: list[tuple[float, ...]]) -> None:
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("half_life", [None, 700.0])
def test_impression_cells(tmp_path: Path, half_life: float | None) -> None:
    columns = impressions()
    known = [t for t, i in zip(columns["time"], columns["image"], strict=True) if i != f"i{IMAGES}"]

    def weight(row: Row) -> float:
        return 1.0 if half_life is None else 0.5 ** ((max(known) - row["time"]) / half_life)

    with matched(write_parquet(tmp_path / "log.parquet", columns)) as table:
        c = cells.impression_cells(table, half_life=half_life)
        dwell = cells.dwell_cells(table, half_life=half_life)
    expected = sums(
        columns,
        lambda row: (*pair(row), row["position"] or 0),
        lambda row: (weight(row) * row["shown"], weight(row) * row["clicked"]),
    )
    check(lines(c.image_C, c.label_C, c.position_C, c.shown_C, c.clicked_C), expected)

    def seconds(row: Row) -> tuple[float, ...]:
        if row["dwell"] is None:  # only what was not clicked is known to be 0
            return weight(row) * (row["shown"] - row["clicked"]), 0.0, 0.0
        x = math.log(1 + row["dwell"])
        return tuple(
            weight(row) * v for v in (row["shown"], row["clicked"] * x, row["clicked"] * x**2)
        )

    found = lines(dwell.image_C, dwell.label_C, dwell.count_C, dwell.sum_C, dwell.square_C)
    check(found, sums(columns, pair, seconds))
    for whole in (c.image_C, c.label_C, c.position_C, dwell.image_C):
        assert whole.dtype == np.int64
    for real in (c.shown_C, c.clicked_C, dwell.sum_C):
        assert real.dtype == np.float64


def test_positions_are_0_where_the_log_has_none(tmp_path: Path) -> None:
    columns = impressions()
    del columns["position"]
    with matched(write_parquet(tmp_path / "log.parquet", columns)) as table:
        c = cells.impression_cells(table)
    assert not c.position_C.any()
    assert len(c.position_C) == IMAGES * len(CLASSES)


def test_log_cells(tmp_path: Path) -> None:
    columns = impressions()
    with matched(write_parquet(tmp_path / "log.parquet", columns)) as table:
        c = cells.log_cells(table)

    def values(row: Row) -> tuple[float, ...]:
        s, k, p = row["shown"], row["clicked"], row["propensity"]
        return s, k, s / p, s / p**2, k / p

    found = lines(
        c.image_C, c.label_C, c.count_C, c.clicks_C, c.inverse_C, c.inverse_square_C,
        c.clicks_inverse_C,
    )  # fmt: skip
    check(found, sums(columns, pair, values))


def test_votes_and_their_raters(tmp_path: Path) -> None:
    columns = log(
        3, 300,
        label=lambda rng: CLASSES[rng.integers(3)],
        votes=lambda rng: int(rng.integers(0, 3)),
        user=lambda rng: f"{'abc'[rng.integers(3)]}{rng.integers(9)}",
    )  # fmt: skip
    columns["user"] = [f"{user}-{n}" if n % 3 else user for n, user in enumerate(columns["user"])]
    columns["votes"][:2] = [2, 2]
    with open_events(
        str(write_parquet(tmp_path / "v.parquet", columns)), drop_duplicates=True
    ) as e:
        table = match(e, [[f"i{m}"] for m in range(IMAGES)], CLASSES)
        c, v = cells.vote_cells(table), cells.rater_votes(table)
    unique = sorted(set(zip(*columns.values(), strict=True)))
    columns = dict(zip(columns, map(list, zip(*unique, strict=True)), strict=True))
    check(lines(c.image_C, c.label_C, c.votes_C), sums(columns, pair, lambda row: (row["votes"],)))
    known = [
        user
        for image, user, votes in zip(
            columns["image"], columns["user"], columns["votes"], strict=True
        )
        if image != f"i{IMAGES}" and votes
    ]
    assert v.users == tuple(sorted(set(known)))
    expected = sums(
        columns, lambda row: (*pair(row), _place(v.users, row["user"])), lambda row: (row["votes"],)
    )
    check(lines(v.image_V, v.label_V, v.user_V, v.votes_V), expected)


def _place(users: Sequence[str], user: str) -> int:
    return users.index(user) if user in users else -1


def test_preferences_and_ties(tmp_path: Path) -> None:
    columns = log(
        4, 300,
        preferred=lambda rng: CLASSES[rng.integers(3)],
        tie=lambda rng: [None, False, True][rng.integers(3)],
    )  # fmt: skip
    rng = np.random.default_rng(5)
    columns["rejected"] = [
        CLASSES[(CLASSES.index(label) + rng.integers(1, 3)) % 3] for label in columns["preferred"]
    ]
    with matched(write_parquet(tmp_path / "log.parquet", columns)) as table:
        c = cells.preference_cells(table)

    def key(row: Row) -> tuple[int, ...]:
        labels = [CLASSES.index(row[name]) for name in ("preferred", "rejected")]
        return int(row["image"][1:]), *(sorted(labels) if row["tie"] else labels)

    def values(row: Row) -> tuple[int, int]:
        return (0, 1) if row["tie"] else (1, 0)

    found = lines(c.image_C, c.preferred_C, c.rejected_C, c.wins_C, c.ties_C)
    check(found, sums(columns, key, values, keep=None))


def test_grades(tmp_path: Path) -> None:
    columns = log(
        6, 200,
        label=lambda rng: CLASSES[rng.integers(3)],
        grade=lambda rng: float(rng.normal()),
        time=lambda rng: float(rng.uniform(0, 100)),
    )  # fmt: skip
    with matched(write_parquet(tmp_path / "log.parquet", columns)) as table:
        c = cells.grade_cells(table)
        late = cells.grade_cells(table, half_life=0.5)
    expected = sums(columns, pair, lambda row: (1, row["grade"], row["grade"] ** 2))
    check(lines(c.image_C, c.label_C, c.count_C, c.sum_C, c.square_C), expected)
    assert len(late.count_C) == len(c.count_C)
    assert 0 < late.count_C.min() < 1e-15 < 1 <= late.count_C.max()


def test_clicks_without_a_dwell_time_are_left_out(tmp_path: Path) -> None:
    columns = {
        "image": ["i0"] * 4 + ["i1"] * 2 + ["i2"], "label": ["cat"] * 7,
        "shown": [1, 1, 1, 5, 1, 1, 2], "clicked": [1, 1, 0, 2, 1, 0, 2],
        "dwell": [math.e - 1, None, 30.0, None, None, None, None],
    }  # fmt: skip
    with matched(write_parquet(tmp_path / "log.parquet", columns)) as table:
        c = cells.dwell_cells(table)
    # i0: a click of ln e, none, a row that was passed over and 3 of 5; i2: nothing is known.
    assert lines(c.image_C, c.count_C, c.sum_C, c.square_C) == [(0, 5, 1, 1), (1, 1, 0, 0)]


def test_what_was_shown_long_ago_was_still_shown(tmp_path: Path) -> None:
    columns = {
        "image": ["i0", "i1", "i2"], "label": ["cat"] * 3, "clicked": [1, 0, 1],
        "dwell": [1.0, None, 2.0], "time": [0.0, 1e5, 1e5 + 1],
    }  # fmt: skip
    with matched(write_parquet(tmp_path / "log.parquet", columns)) as table:
        c = cells.impression_cells(table, half_life=1.0)
        dwell = cells.dwell_cells(table, half_life=1.0)
    assert c.shown_C.tolist() == [1e-100, 0.5, 1]
    assert c.clicked_C.tolist() == [1e-100, 0, 1]
    assert dwell.count_C.tolist() == [1e-100, 0.5, 1]


def test_every_source_gives_the_same_bits(tmp_path: Path) -> None:
    columns = impressions(2000)
    found = []
    for name, write in WRITERS.items():
        with matched(write(tmp_path / name, columns)) as table:
            log_sums, dwell = cells.log_cells(table), cells.dwell_cells(table)
            found.append([log_sums.inverse_C, log_sums.inverse_square_C, dwell.square_C])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert one.tobytes() == two.tobytes()


def test_threads_do_not_change_the_bits(tmp_path: Path) -> None:
    """Rounding depends on the order of a sum, and this log is large enough for several threads."""
    path = tmp_path / "log.parquet"
    duckdb.execute(
        f"""
        COPY (SELECT 'i' || (n % {IMAGES}) AS image, 'cat' AS label, n % 2 AS clicked,
              0.001 + (hash(n) % 1000) / 1001.0 AS propensity FROM range(400000) AS r(n))
        TO '{path}'
        """
    )
    with matched(path) as table:
        first = cells.log_cells(table).inverse_square_C.tobytes()
        for _ in range(3):
            assert cells.log_cells(table).inverse_square_C.tobytes() == first


# ---- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (cells.impression_cells, "log.parquet holds votes; this needs impressions, with the col"),
        (cells.dwell_cells, "this needs impressions"),
        (cells.log_cells, "this needs impressions"),
        (cells.preference_cells, "this needs preferences"),
        (cells.grade_cells, "this needs grades"),
        (cells.rater_votes, 'Weighting raters needs the column "user", which log.parquet does not'),
    ],
)
def test_votes_are_no_other_feedback(
    tmp_path: Path, ask: Callable[[Matched], object], message: str
) -> None:
    columns = {"image": ["i0"], "label": ["cat"], "votes": [1]}
    with (
        matched(write_parquet(tmp_path / "log.parquet", columns)) as table,
        pytest.raises(UserError, match=message),
    ):
        ask(table)


def test_clicks_alone_are_not_everything(tmp_path: Path) -> None:
    columns = {"image": ["i0"], "label": ["cat"], "clicked": [1]}
    with matched(write_parquet(tmp_path / "log.parquet", columns)) as table:
        for ask, message in (
            (cells.vote_cells, "this needs votes"),
            (cells.dwell_cells, 'Reward by dwell time needs the column "dwell"'),
            (cells.log_cells, 'Learning from logs off-policy needs the column "propensity"'),
            (
                lambda t: cells.impression_cells(t, half_life=5),
                'A half-life needs the column "time"',
            ),
            (lambda t: cells.impression_cells(t, half_life=0), "above 0, not 0"),
            (lambda t: cells.impression_cells(t, half_life=math.nan), "above 0, not nan"),
        ):
            with pytest.raises(UserError, match=message):
                ask(table)


@pytest.mark.parametrize("ask", [cells.impression_cells, cells.dwell_cells])
def test_a_half_life_that_leaves_nothing(tmp_path: Path, ask: Callable[..., object]) -> None:
    columns = {
        "image": ["i0", "i1", "i2"], "label": ["cat"] * 3, "clicked": [1, 0, 1],
        "dwell": [1.0, None, 2.0], "time": [0.0, 4000.0, 5000.0],
    }  # fmt: skip
    with matched(write_parquet(tmp_path / "log.parquet", columns)) as table:
        message = (
            r"^log.parquet spans 5,000 seconds, of which --half-life 0.001 leaves only the latest "
            "event: take a longer one, in seconds.$"
        )
        with pytest.raises(UserError, match=message):
            ask(table, half_life=1e-3)
        ask(table, half_life=60.0)
    alone = {name: values[:1] * 2 for name, values in columns.items()} | {"user": ["a", "b"]}
    with matched(write_parquet(tmp_path / "log.parquet", alone)) as table:
        ask(table, half_life=1e-3)  # of one time: nothing is older


def test_dwell_times_that_are_all_missing(tmp_path: Path) -> None:
    columns = {
        "image": ["i0", "i1", "i9"], "label": ["cat"] * 3, "clicked": [1, 0, 1],
        "dwell": [None, 3.0, 2.0],
    }  # fmt: skip
    with (
        matched(write_parquet(tmp_path / "log.parquet", columns)) as table,
        pytest.raises(UserError, match=r"^log.parquet: no click on an image .* has a dwell time"),
    ):
        cells.dwell_cells(table)


def test_raters_need_a_name_in_every_row(tmp_path: Path) -> None:
    columns = {"image": ["i0", "i1"], "label": ["cat"] * 2, "votes": [1, 1], "user": ["u", None]}
    with (
        matched(write_parquet(tmp_path / "log.parquet", columns)) as table,
        pytest.raises(UserError, match=r"row 2: user is missing. Weighting raters needs one"),
    ):
        cells.rater_votes(table)
