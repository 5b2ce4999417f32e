"""Preferences and grades in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from visgrpo.feedback.source.events import Events
from visgrpo.feedback.source.sql import only_row
from visgrpo.feedback.summary_rows import Bin, Row, mean_row, share_row

_GRADE_BINS = 20


@dataclass(frozen=True)
class Preferences:
    """Comparisons of two labels of an image.

    Attributes:
        pairs: different pairs of labels of an image that were compared.
        ties: share of comparisons without a preference.
        agreement: of comparisons of one pair, how many prefer what most of them prefer; None where
            no pair was compared twice.
        labels: share of its decided comparisons that a label won, most compared first.
    """

    comparisons: int
    pairs: int
    ties: float
    agreement: float | None
    labels: tuple[Row, ...]


@dataclass(frozen=True)
class Grades:
    """Grades over all, by label (most graded first), and their histogram.

    Where there are no more than twenty different grades, each is a bin.
    """

    least: float
    mean: float
    greatest: float
    deviation: float
    labels: tuple[Row, ...]
    histogram: tuple[Bin, ...]


def summarize_preferences(events: Events) -> Preferences:
    """Summarise preferences."""
    connection = events.connection
    ties, pairs, agreement = only_row(
        connection,
        """
        WITH compared AS (
            SELECT count(*) FILTER (preferred < rejected AND NOT tie) AS first,
                count(*) FILTER (preferred > rejected AND NOT tie) AS second,
                count(*) FILTER (tie) AS ties
            FROM events
            GROUP BY image, least(preferred, rejected), greatest(preferred, rejected)
        )
        SELECT sum(ties) / sum(first + second + ties), count(*),
            sum(greatest(first, second)) FILTER (first + second > 1)
                / sum(first + second) FILTER (first + second > 1)
        FROM compared
        """,
    )
    labels = connection.execute(
        """
        SELECT label, sum(won) AS won, count(*) AS count FROM (
            SELECT preferred AS label, 1 AS won FROM events WHERE NOT tie
            UNION ALL SELECT rejected, 0 FROM events WHERE NOT tie
        ) GROUP BY label ORDER BY count DESC, label
        """
    ).fetchall()
    rows = tuple(share_row(label, float(won), count) for label, won, count in labels)
    return Preferences(events.rows, pairs, float(ties), agreement, rows)


def summarize_grades(events: Events) -> Grades:
    """Summarise grades."""
    connection = events.connection
    least, mean, greatest, deviation = only_row(
        connection, "SELECT min(grade), avg(grade), max(grade), stddev_pop(grade) FROM events"
    )
    labels = connection.execute(
        "SELECT label, count(*) AS count, avg(grade), stddev_samp(grade) FROM events "
        "GROUP BY label ORDER BY count DESC, label"
    ).fetchall()
    rows = tuple(mean_row(*row) for row in labels)
    return Grades(least, mean, greatest, deviation, rows, _histogram(events, least, greatest))


def _histogram(events: Events, least: float, greatest: float) -> tuple[Bin, ...]:
    connection = events.connection
    few = connection.execute(
        f"SELECT grade, count(*) FROM events GROUP BY grade ORDER BY grade LIMIT {_GRADE_BINS + 1}"
    ).fetchall()
    if len(few) <= _GRADE_BINS:
        return tuple(Bin(grade, grade, count) for grade, count in few)
    width = (greatest - least) / _GRADE_BINS
    found = connection.execute(
        f"""
        SELECT least(floor((grade - $least) / $width), {_GRADE_BINS - 1})::INTEGER AS b, count(*)
        FROM events GROUP BY b ORDER BY b
        """,
        {"least": least, "width": width},
    ).fetchall()
    return tuple(Bin(least + b * width, least + (b + 1) * width, count) for b, count in found)
