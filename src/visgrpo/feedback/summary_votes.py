"""Votes in numbers: how far people agree, and who votes unlike the others."""

from __future__ import annotations

from dataclasses import dataclass

from visgrpo.feedback.source.events import Events
from visgrpo.feedback.source.sql import only_row
from visgrpo.feedback.summary_rows import Bin, Row

LEAST_VOTES = 10
"""Votes that a user must have before anything is said about them."""
MOST_RATERS = 10
_SHARE_BINS = 10


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
