"""Feedback summed up by image and label, in the database: what statistics are made of.

All cells are sorted by image, then label, then what else tells them apart. Sums run over the rows
in their order, on one thread: the same log gives the same bits, wherever it is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from visgrpo.errors import UserError
from visgrpo.feedback.source.matching import Matched
from visgrpo.feedback.source.schemas import SCHEMAS, Kind, only_row

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
VANISHED = 1e-6
"""Weight of many rows together, in rows, below which a half-life leaves nothing of them."""
_LEAST_WEIGHT = 1e-100
"""Of a row, which never rounds to 0: what was shown long ago was still shown."""


@dataclass(frozen=True)
class ImpressionCells:
    """Impressions and clicks (C,) of a label of an image at a position, 0 where it is unknown.

    With a half-life they are sums of weights, else counts.
    """

    image_C: Whole
    label_C: Whole
    position_C: Whole
    shown_C: Floats
    clicked_C: Floats


@dataclass(frozen=True)
class ValueCells:
    """Number, sum and sum of squares (C,) of the values that a label of an image was given."""

    image_C: Whole
    label_C: Whole
    count_C: Floats
    sum_C: Floats
    square_C: Floats


@dataclass(frozen=True)
class VoteCells:
    """Votes (C,) of all users together for a label of an image."""

    image_C: Whole
    label_C: Whole
    votes_C: Floats


@dataclass(frozen=True)
class RaterVotes:
    """Votes (V,) of one user for a label of an image; user u is called users[u]."""

    image_V: Whole
    user_V: Whole
    label_V: Whole
    votes_V: Floats
    users: tuple[str, ...]


@dataclass(frozen=True)
class PreferenceCells:
    """How often one label of an image was preferred to another (C,), and how often neither was.

    A tie is counted once, where the preferred label is the one that comes first in the classes.
    """

    image_C: Whole
    preferred_C: Whole
    rejected_C: Whole
    wins_C: Floats
    ties_C: Floats


@dataclass(frozen=True)
class LogCells:
    """Impressions of a policy with known propensities p: what off-policy estimates are made of.

    Attributes:
        count_C: impressions.
        clicks_C: clicks.
        inverse_C: sum of 1/p over impressions.
        inverse_square_C: sum of 1/p² over impressions.
        clicks_inverse_C: sum of 1/p over clicks.
    """

    image_C: Whole
    label_C: Whole
    count_C: Floats
    clicks_C: Floats
    inverse_C: Floats
    inverse_square_C: Floats
    clicks_inverse_C: Floats


C = TypeVar("C", ImpressionCells, ValueCells, VoteCells, RaterVotes, PreferenceCells, LogCells)


def of_images(cells: C, keep_M: NDArray[np.bool_]) -> C:
    """Return the cells about some images; users keep their numbers."""
    columns = {column.name: getattr(cells, column.name) for column in fields(cells)}
    image = next(iter(columns.values()))  # the first column of all of them
    kept = keep_M[image]
    return replace(
        cells,
        **{name: c[kept] for name, c in columns.items() if isinstance(c, np.ndarray)},
    )


def impression_cells(matched: Matched, half_life: float | None = None) -> ImpressionCells:
    """Sum impressions and clicks up.

    Args:
        half_life: seconds after which an event counts half; the latest matched one counts 1. No
            weight is 0, so that every pair that was shown has a cell with impressions.

    Raises:
        UserError: the table holds no impressions, no times that a half-life needs, or none but the
            latest that is recent enough for it.
    """
    _check_kind(matched, "impressions")
    weight = _weight(matched, half_life)
    has_positions = "position" in matched.events.columns
    position = "coalesce(position, 0)::BIGINT" if has_positions else "0::BIGINT"
    found = _query(
        matched,
        f"""
        SELECT m, k, {position} AS p, sum(shown * {weight}), sum(clicked * {weight})
        FROM matched GROUP BY m, k, p HAVING sum(shown) > 0 ORDER BY m, k, p
        """,
    )
    return ImpressionCells(*found)


def dwell_cells(matched: Matched, half_life: float | None = None) -> ValueCells:
    """Sum log(1 + seconds) up, which is 0 for impressions without a click.

    Clicks without a dwell time are left out, of the count too: how long they lasted is not known.
    In rows that count several impressions, dwell is the seconds of each click.

    Raises:
        UserError: the table holds no impressions, no click with a dwell time, or no times for a
            half-life.
    """
    _check_kind(matched, "impressions")
    _check_column(matched, "dwell", "Reward by dwell time")
    (timed,) = only_row(
        matched.events.connection,
        "SELECT count(*) FROM matched WHERE clicked > 0 AND dwell IS NOT NULL",
    )
    if not timed:
        raise UserError(
            f"{matched.events.name}: no click on an image of the data has a dwell time, which "
            "reward by dwell time is made of."
        )
    count = "CASE WHEN dwell IS NULL THEN shown - clicked ELSE shown END"
    value = "CASE WHEN clicked > 0 AND dwell IS NOT NULL THEN ln(1 + dwell) ELSE 0 END"
    return _value_cells(matched, count, f"clicked * {value}", f"clicked * ({value})^2", half_life)


def grade_cells(matched: Matched, half_life: float | None = None) -> ValueCells:
    """Sum grades up.

    Raises:
        UserError: the table holds no grades, or no times for a half-life.
    """
    _check_kind(matched, "grades")
    return _value_cells(matched, "1::DOUBLE", "grade", "grade^2", half_life)


def vote_cells(matched: Matched) -> VoteCells:
    """Sum votes up, over users; labels without a vote have no cell.

    Raises:
        UserError: the table holds no votes.
    """
    _check_kind(matched, "votes")
    found = _query(
        matched,
        "SELECT m, k, sum(votes) FROM matched GROUP BY m, k HAVING sum(votes) > 0 ORDER BY m, k",
    )
    return VoteCells(*found)


def rater_votes(matched: Matched) -> RaterVotes:
    """Sum votes up by user; users are in alphabetical order.

    Raises:
        UserError: the table holds no votes, or a matched row does not say whose they are.
    """
    _check_kind(matched, "votes")
    _check_column(matched, "user", "Weighting raters")
    events, connection = matched.events, matched.events.connection
    (anonymous,) = only_row(connection, 'SELECT min(row) FROM matched WHERE "user" IS NULL')
    if anonymous is not None:
        raise UserError(
            f"{events.name}, row {anonymous}: user is missing. Weighting raters needs one in "
            "every row."
        )
    connection.execute(
        'CREATE OR REPLACE TABLE users AS SELECT "user", row_number() OVER (ORDER BY "user") - 1 '
        'AS u FROM (SELECT DISTINCT "user" FROM matched WHERE votes > 0)'
    )
    image_V, user_V, label_V, votes_V = _query(
        matched,
        'SELECT m, u, k, sum(votes) FROM matched JOIN users USING ("user") '
        "GROUP BY m, u, k HAVING sum(votes) > 0 ORDER BY m, k, u",
    )
    users = connection.execute('SELECT "user" FROM users ORDER BY u').fetchall()
    return RaterVotes(image_V, user_V, label_V, votes_V, tuple(row[0] for row in users))


def preference_cells(matched: Matched) -> PreferenceCells:
    """Count comparisons.

    Raises:
        UserError: the table holds no preferences.
    """
    _check_kind(matched, "preferences")
    found = _query(
        matched,
        """
        SELECT m, CASE WHEN tie THEN least(preferred_k, rejected_k) ELSE preferred_k END AS a,
            CASE WHEN tie THEN greatest(preferred_k, rejected_k) ELSE rejected_k END AS b,
            count(*) FILTER (NOT tie)::DOUBLE, count(*) FILTER (tie)::DOUBLE
        FROM matched GROUP BY m, a, b ORDER BY m, a, b
        """,
    )
    return PreferenceCells(*found)


def log_cells(matched: Matched) -> LogCells:
    """Sum impressions up with the inverses of their propensities.

    Raises:
        UserError: the table holds no impressions, or no propensities.
    """
    _check_kind(matched, "impressions")
    _check_column(matched, "propensity", "Learning from logs off-policy")
    found = _query(
        matched,
        """
        SELECT m, k, sum(shown), sum(clicked), sum(shown / propensity),
            sum(shown / propensity^2), sum(clicked / propensity)
        FROM matched GROUP BY m, k HAVING sum(shown) > 0 ORDER BY m, k
        """,
    )
    return LogCells(*found)


def _value_cells(
    matched: Matched, count: str, value: str, square: str, half_life: float | None
) -> ValueCells:
    weight = _weight(matched, half_life)
    found = _query(
        matched,
        f"""
        SELECT m, k, sum({count} * {weight}), sum({value} * {weight}), sum({square} * {weight})
        FROM matched GROUP BY m, k HAVING sum({count}) > 0 ORDER BY m, k
        """,
    )
    return ValueCells(*found)


def _weight(matched: Matched, half_life: float | None) -> str:
    """Return SQL for the weight 2^(-age / half-life) of a row.

    Raises:
        UserError: the half-life is not above 0, there are no times, or all rows but the latest are
            too old to count.
    """
    if half_life is None:
        return "1"
    if not (math.isfinite(half_life) and half_life > 0):
        raise UserError(f"A half-life is a number of seconds above 0, not {half_life:g}.")
    _check_column(matched, "time", "A half-life")
    first, last = only_row(matched.events.connection, "SELECT min(time), max(time) FROM matched")
    weight = f"pow(2, (time - {last!r}) / {float(half_life)!r})"
    (older,) = only_row(
        matched.events.connection, f"SELECT sum({weight}) FROM matched WHERE time < {last!r}"
    )
    if older is not None and older < VANISHED:
        raise UserError(
            f"{matched.events.name} spans {last - first:,.6g} seconds, of which --half-life "
            f"{half_life:g} leaves only the latest event: take a longer one, in seconds."
        )
    return f"greatest({weight}, {_LEAST_WEIGHT!r})"


def _check_kind(matched: Matched, kind: Kind) -> None:
    events = matched.events
    if events.kind != kind:
        raise UserError(
            f"{events.name} holds {events.kind}; this needs {kind}, with the columns "
            f"{', '.join(SCHEMAS[kind].required)}."
        )


def _check_column(matched: Matched, column: str, what: str) -> None:
    events = matched.events
    if column not in events.columns:
        raise UserError(f'{what} needs the column "{column}", which {events.name} does not have.')


def _query(matched: Matched, sql: str) -> list[Any]:
    """Run a query and return its columns: whole numbers as int64, the others as float64."""
    connection = matched.events.connection
    (threads,) = only_row(connection, "SELECT current_setting('threads')")
    connection.execute("SET threads = 1")
    try:
        found = connection.execute(sql).fetchnumpy()
    finally:
        connection.execute(f"SET threads = {threads}")
    return [
        np.asarray(column, np.int64 if column.dtype.kind in "iu" else np.float64)
        for column in found.values()
    ]
