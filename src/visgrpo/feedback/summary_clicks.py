"""Impressions in numbers: click-through, positions, propensities, dwell times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visgrpo.feedback.source.events import Events
from visgrpo.feedback.source.schemas import only_row
from visgrpo.feedback.summary_judgements import Row, share_row


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
    clicked_at = {
        row[0]
        for row in events.connection.execute(
            "SELECT DISTINCT position FROM events WHERE clicked > 0 AND position IS NOT NULL"
        ).fetchall()
    }
    pairs = sum(count for positions, count in sets if len(positions) > 1)
    if len(clicked_at) < 2:
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
    return Dwell(known / clicks, (quartiles[0], quartiles[1], quartiles[2]))
