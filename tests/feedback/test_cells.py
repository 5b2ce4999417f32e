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
def matched(path: Path, **options: Any) -> Iterator[Matched]:
    with open_events(str(path), **options) as events:
        yield match(events, [[f"i{m}"] for m in range(IMAGES)], CLASSES)


def made(
    tmp_path: Path, columns: Mapping[str, Any], ask: Callable[..., Any], **options: Any
) -> Any:
    """What a function makes of a table."""
    with matched(write_parquet(tmp_path / "log.parquet", columns)) as table:
        return ask(table, **options)


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

    c = made(tmp_path, columns, cells.impression_cells, half_life=half_life)
    dwell = made(tmp_path, columns, cells.dwell_cells, half_life=half_life)
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
    c = made(tmp_path, columns, cells.impression_cells)
    assert not c.position_C.any()
    assert len(c.position_C) == IMAGES * len(CLASSES)


def test_log_cells(tmp_path: Path) -> None:
    columns = impressions()
    c = made(tmp_path, columns, cells.log_cells)

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
    path = write_parquet(tmp_path / "v.parquet", columns)
    with matched(path, drop_duplicates=True) as table:
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
    c = made(tmp_path, columns, cells.preference_cells)

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
    c = made(tmp_path, columns, cells.grade_cells)
    late = made(tmp_path, columns, cells.grade_cells, half_life=0.5)
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
    c = made(tmp_path, columns, cells.dwell_cells)
    # i0: a click of ln e, none, a row that was passed over and 3 of 5; i2: nothing is known.
    assert lines(c.image_C, c.count_C, c.sum_C, c.square_C) == [(0, 5, 1, 1), (1, 1, 0, 0)]


def test_what_was_shown_long_ago_was_still_shown(tmp_path: Path) -> None:
    columns = {
        "image": ["i0", "i1", "i2"], "label": ["cat"] * 3, "clicked": [1, 0, 1],
        "dwell": [1.0, None, 2.0], "time": [0.0, 1e5, 1e5 + 1],
    }  # fmt: skip
    c = made(tmp_path, columns, cells.impression_cells, half_life=1.0)
    dwell = made(tmp_path, columns, cells.dwell_cells, half_life=1.0)
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


VOTE = {"image": ["i0"], "label": ["cat"], "votes": [1]}
CLICK = {"image": ["i0"], "label": ["cat"], "clicked": [1]}


@pytest.mark.parametrize(
    ("columns", "ask", "options", "message"),
    [
        (VOTE, cells.impression_cells, {},
         "log.parquet holds votes; this needs impressions, with the columns image, label, clicked"),
        (VOTE, cells.dwell_cells, {}, "this needs impressions"),
        (VOTE, cells.log_cells, {}, "this needs impressions"),
        (VOTE, cells.preference_cells, {}, "this needs preferences"),
        (VOTE, cells.grade_cells, {}, "this needs grades"),
        (VOTE, cells.rater_votes, {},
         'Weighting raters needs the column "user", which log.parquet does not'),
        ({"image": ["i0", "i1"], "label": ["cat"] * 2, "votes": [1, 1], "user": ["u", None]},
         cells.rater_votes, {}, "row 2: user is missing. Weighting raters needs one"),
        (CLICK, cells.vote_cells, {}, "this needs votes"),
        (CLICK, cells.dwell_cells, {}, 'Reward by dwell time needs the column "dwell"'),
        (CLICK, cells.log_cells, {},
         'Learning from logs off-policy needs the column "propensity"'),
        (CLICK, cells.impression_cells, {"half_life": 5}, 'A half-life needs the column "time"'),
        (CLICK, cells.impression_cells, {"half_life": 0}, "above 0, not 0"),
        (CLICK, cells.impression_cells, {"half_life": math.nan}, "above 0, not nan"),
        ({"image": ["i0", "i1", "i9"], "label": ["cat"] * 3, "clicked": [1, 0, 1],
          "dwell": [None, 3.0, 2.0]},
         cells.dwell_cells, {}, "^log.parquet: no click on an image .* has a dwell time"),
    ],
)  # fmt: skip
def test_tables_that_will_not_do(
    tmp_path: Path,
    columns: Mapping[str, Any],
    ask: Callable[..., object],
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        made(tmp_path, columns, ask, **options)


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
