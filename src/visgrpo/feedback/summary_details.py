"""What each kind of feedback has of its own: clicks, votes, preferences and grades in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from visgrpo.feedback.source.events import Events
from visgrpo.feedback.source.schemas import only_row

Z = 1.959963984540054  # two-sided 95 %
LEAST_VOTES = 10
"""Votes that a user must have before anything is said about them."""
MOST_RATERS = 10
_SHARE_BINS = 10
_GRADE_BINS = 20


@dataclass(frozen=True)
class Row:
    """A value of one label, position or user, made of `count` observations.

    `low` and `high` are its 95 % interval, None where there is none; observations are taken to be
    independent.
    """

    name: str
    count: float
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Bin:
    """How many things lie between two values, both inclusive for counts, else [low, high)."""

    low: float
    high: float
    count: int


def share_row(name: str, part: float, count: float) -> Row:
    """Return the share part/count with Wilson's score interval.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    return Row(name, count, part / count, *wilson(part, count))


def wilson(part: float, count: float) -> tuple[float, float]:
    """Return the ends of Wilson's 95 % interval of part/count; count is above 0."""
    share, spread = part / count, Z**2 / count
    middle = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return (
        max(0.0, (middle - half) / (1 + spread)),
        min(1.0, (middle + half) / (1 + spread)),
    )


def mean_row(name: str, count: int, mean: float, deviation: float | None) -> Row:
    """Return a mean with its normal interval; one observation has no deviation, and no interval."""
    if deviation is None:
        return Row(name, count, mean)
    half = Z * deviation / math.sqrt(count)
    return Row(name, count, mean, mean - half, mean + half)


@dataclass(frozen=True)
class Raters:
    """How often users vote as the majority of the others do, where that is clear.

    Attributes:
        judged: users with at least `LEAST_VOTES` such votes.
        median: of their agreement, None without any.
        least_agreeing: those who agree least, at most `MOST_RATERS`.
    """

    judged: int
    median: float | None
    least_agreeing: tuple[Row, ...]


@dataclass(frozen=True)
class Votes:
    """Votes over all and by label.

    Attributes:
        per_image: votes for an image that has any, on average.
        majority: mean share of an image's most frequent label.
        majority_shares: how many images have which share; 100 % is in the last bin.
        kappa: Fleiss' kappa; None unless some image has two votes and labels differ.
        labels: share of all votes, most frequent first.
    """

    votes: float
    per_image: float
    majority: float
    majority_shares: tuple[Bin, ...]
    kappa: float | None
    labels: tuple[Row, ...]
    raters: Raters | None


def summarize_votes(events: Events) -> Votes:
    """Summarise votes. Without a single vote shares are 0."""
    connection = events.connection
    connection.execute(
        """
        CREATE OR REPLACE TEMP TABLE tally AS
            SELECT image, label, sum(votes) AS v FROM events GROUP BY image, label
            HAVING sum(votes) > 0;
        CREATE OR REPLACE TEMP TABLE totals AS
            SELECT image, sum(v) AS n, sum(v^2) AS squares, max(v) AS top FROM tally GROUP BY image
        """
    )
    votes, per_image, majority = only_row(
        connection,
        "SELECT coalesce(sum(n), 0), coalesce(avg(n), 0), coalesce(avg(top / n), 0) FROM totals",
    )
    shares = connection.execute(
        f"SELECT least(floor(top / n * {_SHARE_BINS}), {_SHARE_BINS - 1})::INTEGER AS b, count(*) "
        "FROM totals GROUP BY b ORDER BY b"
    ).fetchall()
    labels = connection.execute(
        "SELECT label, sum(v) AS count FROM tally GROUP BY label ORDER BY count DESC, label"
    ).fetchall()
    return Votes(
        votes=votes,
        per_image=per_image,
        majority=majority,
        majority_shares=tuple(
            Bin(b / _SHARE_BINS, (b + 1) / _SHARE_BINS, count) for b, count in shares
        ),
        kappa=_kappa(events),
        labels=tuple(Row(label, count, count / votes) for label, count in labels),
        raters=_raters(events) if "user" in events.columns else None,
    )


def _kappa(events: Events) -> float | None:
    """Return (P - Pe)/(1 - Pe) over images with at least two votes.

    P is the mean over images of the share of pairs of votes that agree, (Σ v² - n)/(n(n - 1)), and
    Pe = Σ_label share². Fleiss (1971), "Measuring nominal scale agreement among many raters", for
    images with the same number of votes; otherwise the same formulas with each image's own n.
    """
    agreement, chance = only_row(
        events.connection,
        """
        SELECT
            (SELECT avg((squares - n) / (n * (n - 1))) FROM totals WHERE n > 1),
            (SELECT sum(share^2) FROM (
                SELECT sum(v) / sum(sum(v)) OVER () AS share
                FROM tally SEMI JOIN (FROM totals WHERE n > 1) USING (image) GROUP BY label))
        """,
    )
    if agreement is None or chance == 1:
        return None
    return float((agreement - chance) / (1 - chance))


def _raters(events: Events) -> Raters:
    """Compare users' votes with the majority of the other votes on the same image.

    An image's most votes for a label, the second most, and how many labels have either, say what
    the majority is without the user's own votes. A tie says nothing.
    """
    connection = events.connection
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE rated AS
        WITH below AS (
            SELECT image, max(v) AS second FROM tally JOIN totals USING (image)
            WHERE v < top GROUP BY image
        ),
        ends AS (
            SELECT image, any_value(top) AS top, coalesce(any_value(second), 0) AS second,
                count(*) FILTER (v = top) AS at_top, count(*) FILTER (v = second) AS at_second
            FROM tally JOIN totals USING (image) LEFT JOIN below USING (image) GROUP BY image
        ),
        own AS (
            SELECT image, label, "user", sum(votes) AS own FROM events
            WHERE "user" IS NOT NULL GROUP BY image, label, "user" HAVING sum(votes) > 0
        ),
        compared AS (
            SELECT "user", own, CASE
                WHEN v < top THEN CASE WHEN at_top = 1 THEN 0 END
                WHEN at_top > 1 THEN CASE WHEN at_top = 2 THEN 0 END
                WHEN top - own > second THEN 1
                WHEN top - own < second AND at_second = 1 THEN 0
            END AS agrees
            FROM own JOIN tally USING (image, label) JOIN ends USING (image)
        )
        SELECT "user", sum(own) AS count, sum(own * agrees) AS agreed FROM compared
        WHERE agrees IS NOT NULL GROUP BY "user" HAVING sum(own) >= {LEAST_VOTES}
        """
    )
    judged, median = only_row(connection, "SELECT count(*), median(agreed / count) FROM rated")
    least = connection.execute(
        'SELECT "user", count, agreed / count AS share FROM rated '
        f'ORDER BY share, "user" LIMIT {MOST_RATERS}'
    ).fetchall()
    return Raters(judged, median, tuple(Row(*row) for row in least))


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


@dataclass(frozen=True)
class PositionBias:
    """Whether a click's position can be told from its label's worth.

    Attributes:
        pairs: clicked labels of an image that were shown at several positions.
        can_be_estimated: such pairs connect all positions that were clicked at.
        reason: why not, else empty.
    """

    pairs: int
    can_be_estimated: bool
    reason: str


@dataclass(frozen=True)
class Propensities:
    """How far from alike the labels were shown.

    Attributes:
        effective_share: of the impressions for a policy that shows every label as often,
            (Σ 1/p)² / (n Σ 1/p²); 1 where all propensities are the same.
        mean_inverse: mean of 1/p, which is how many labels an image can be shown with if the
            propensities are right.
    """

    least: float
    median: float
    greatest: float
    effective_share: float
    mean_inverse: float


@dataclass(frozen=True)
class Dwell:
    """Seconds after a click: the share of clicks that have any, and their quartiles."""

    share: float
    quartiles: tuple[float, float, float]


@dataclass(frozen=True)
class Clicks:
    """Impressions and clicks: over all, by label (most shown first) and by position."""

    shown: float
    clicked: float
    rate: Row
    labels: tuple[Row, ...]
    positions: tuple[Row, ...]
    position_bias: PositionBias | None
    propensities: Propensities | None
    dwell: Dwell | None


def summarize_clicks(events: Events) -> Clicks:
    """Summarise impressions. A log in which nothing was shown has rows without a rate."""
    connection = events.connection
    shown, clicked = only_row(connection, "SELECT sum(shown), sum(clicked) FROM events")
    has_positions = "position" in events.columns
    return Clicks(
        shown=shown,
        clicked=clicked,
        rate=share_row("all", clicked, shown) if shown else Row("all", 0, 0.0),
        labels=_rates(events, "label", "count DESC, label"),
        positions=_rates(events, "position", "position") if has_positions else (),
        position_bias=_position_bias(events) if has_positions else None,
        propensities=_propensities(events) if "propensity" in events.columns and shown else None,
        dwell=_dwell(events) if "dwell" in events.columns else None,
    )


def _rates(events: Events, column: str, order: str) -> tuple[Row, ...]:
    found = events.connection.execute(
        f"SELECT {column}, sum(clicked), sum(shown) AS count FROM events "
        f"WHERE {column} IS NOT NULL GROUP BY {column} HAVING sum(shown) > 0 ORDER BY {order}"
    ).fetchall()
    return tuple(
        share_row(name if isinstance(name, str) else f"{name:g}", clicked, shown)
        for name, clicked, shown in found
    )


def _position_bias(events: Events) -> PositionBias:
    """Look for clicked pairs at several positions; those sets of positions must be connected."""
    sets = events.connection.execute(
        """
        SELECT positions, count(*) FROM (
            SELECT list_sort(list(position)) AS positions FROM (
                SELECT image, label, position, sum(clicked) AS clicked FROM events
                WHERE shown > 0 AND position IS NOT NULL GROUP BY image, label, position
            ) GROUP BY image, label HAVING sum(clicked) > 0
        ) GROUP BY positions
        """
    ).fetchall()
    (clicked_at,) = only_row(
        events.connection,
        "SELECT list(DISTINCT position) FILTER (clicked > 0 AND position IS NOT NULL) FROM events",
    )
    pairs = sum(count for positions, count in sets if len(positions) > 1)
    if len(clicked_at or ()) < 2:
        return PositionBias(pairs, False, "clicks are at one position only")
    if not pairs:
        return PositionBias(0, False, "no clicked label of an image was shown at two positions")
    known = [[p for p in positions if p in clicked_at] for positions, _ in sets]
    if _parts(known) > 1:
        return PositionBias(pairs, False, "labels shown at several positions do not connect all")
    return PositionBias(pairs, True, "")


def _parts(sets: list[list[float]]) -> int:
    """Count what remains when sets that share a member are joined."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    places = {position: n for n, position in enumerate(sorted({p for s in sets for p in s}))}
    ends = [(places[s[0]], places[p]) for s in sets for p in s]
    rows, columns = np.array(ends).T
    shape = (len(places), len(places))
    graph = csr_array((np.ones(len(ends)), (rows, columns)), shape=shape)
    return int(connected_components(graph, directed=False)[0])


def _propensities(events: Events) -> Propensities:
    least, median, greatest, shown, first, second = only_row(
        events.connection,
        """
        SELECT min(propensity), approx_quantile(propensity, 0.5), max(propensity), sum(shown),
            sum(shown / propensity), sum(shown / propensity^2)
        FROM events WHERE shown > 0
        """,
    )
    return Propensities(least, median, greatest, first**2 / (shown * second), first / shown)


def _dwell(events: Events) -> Dwell | None:
    clicks, known, quartiles = only_row(
        events.connection,
        """
        SELECT sum(clicked), sum(clicked) FILTER (dwell IS NOT NULL),
            approx_quantile(dwell, [0.25, 0.5, 0.75]) FILTER (clicked > 0)
        FROM events
        """,
    )
    if not known:
        return None
    return Dwell(known / clicks, tuple(quartiles))
