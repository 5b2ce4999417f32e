"""`visgrpo feedback summarize`: what is in a table of feedback, and what it is good for.

Everything is summed up in SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from visgrpo.errors import printable
from visgrpo.feedback.options import SummarizeConfig
from visgrpo.feedback.source.events import Events, open_events
from visgrpo.feedback.source.matching import Matched, image_keys, match, remarks_on_names
from visgrpo.feedback.source.schemas import SCHEMAS, Kind, identifier, only_row
from visgrpo.feedback.summary_details import (
    Bin,
    Clicks,
    Grades,
    Preferences,
    Votes,
    summarize_clicks,
    summarize_grades,
    summarize_preferences,
    summarize_votes,
)
from visgrpo.reporting.feedback import facts, feedback_tables, write_feedback_page
from visgrpo.terminal import show, show_table

# What cannot be done without a column that is not required.
_MISSING: Mapping[Kind, Mapping[str, str]] = {
    "impressions": {
        "propensity": "learning from the log off-policy and replay are not possible",
        "position": "clicks cannot be corrected for position",
        "dwell": "--reward dwell is not possible",
        "time": "--half-life is not possible, and duplicates cannot be told from repeated events",
        "user": "nothing can be said of the people",
    },
    "votes": {"user": "--raters dawid-skene is not possible"},
    "preferences": {
        "user": "nothing can be said of the people",
        "tie": "ties, if people were allowed any, are not known",
    },
    "grades": {"user": "nothing can be said of the people"},
}


Details = Clicks | Votes | Preferences | Grades
_DETAILS: Mapping[Kind, Callable[[Events], Details]] = {
    "impressions": summarize_clicks,
    "votes": summarize_votes,
    "preferences": summarize_preferences,
    "grades": summarize_grades,
}


@dataclass(frozen=True)
class Coverage:
    """For which pairs of an image and a label there is feedback.

    Attributes:
        images: of the data, or without data those in the log.
        labels: of the data, or without data those in the log.
        pairs: those with feedback. A vote for one label is feedback on all labels of its image.
        share: pairs / (images · labels).
        of_data: whether images and labels are those of the data.
        unmatched_rows: rows of the log about other images than the data's.
        unmatched_images: the images most often named in those, with their rows.
    """

    images: int
    labels: int
    pairs: int
    share: float
    of_data: bool
    unmatched_rows: int = 0
    unmatched_image_count: int = 0
    unmatched_images: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Summary:
    """What is in a table of feedback.

    Attributes:
        users: how many there are, None where the table does not say.
        first_time: seconds since 1970 of the earliest event, None where the table has no times.
        last_time: the same of the latest.
        rows_per_image: how many images have how many rows.
        details: what only this kind of feedback has.
        missing: columns that are not there, and what that rules out.
        notes: remarks on what is unusual but no mistake.
    """

    source: str
    kind: Kind
    rows: int
    images: int
    labels: int
    users: int | None
    first_time: float | None
    last_time: float | None
    coverage: Coverage
    rows_per_image: tuple[Bin, ...]
    details: Details
    missing: Mapping[str, str]
    notes: tuple[str, ...]


def summary_of(events: Events, matched: Matched | None = None) -> Summary:
    """Summarise a table of feedback.

    Args:
        matched: the same events with the images and labels of a data set, for coverage.
    """
    images = _distinct(events, "image")
    labels = _count_labels(events)
    first = last = None
    if "time" in events.columns:
        first, last = only_row(events.connection, "SELECT min(time), max(time) FROM events")
    return Summary(
        source=events.name,
        kind=events.kind,
        rows=events.rows,
        images=images,
        labels=labels,
        users=_distinct(events, "user") if "user" in events.columns else None,
        first_time=first,
        last_time=last,
        coverage=_coverage(events, matched, images, labels),
        rows_per_image=_rows_per_image(events),
        details=_DETAILS[events.kind](events),
        missing={
            column: loss
            for column, loss in _MISSING[events.kind].items()
            if column not in events.columns
        },
        notes=(*events.notes, *(remarks_on_names(matched) if matched else ())),
    )


def _distinct(events: Events, column: str) -> int:
    """Count values; in a subquery, since a DISTINCT inside of count() must fit into memory."""
    name = identifier(column)
    (count,) = only_row(
        events.connection,
        f"SELECT count(*) FROM (SELECT DISTINCT {name} FROM events WHERE {name} IS NOT NULL)",
    )
    return int(count)


def _count_labels(events: Events) -> int:
    columns = SCHEMAS[events.kind].labels
    union = " UNION ".join(f"SELECT DISTINCT {identifier(name)} FROM events" for name in columns)
    return int(only_row(events.connection, f"SELECT count(*) FROM ({union})")[0])


def _coverage(events: Events, matched: Matched | None, images: int, labels: int) -> Coverage:
    lost: tuple[Any, ...] = ()
    if matched is not None:
        images, labels = matched.images, len(matched.classes)
        count, listed = matched.unmatched_image_count, matched.unmatched_images
        lost = matched.unmatched_rows, count, listed
    pairs = _count_pairs(events, matched is not None, labels)
    return Coverage(images, labels, pairs, pairs / (images * labels), matched is not None, *lost)


def _count_pairs(events: Events, is_matched: bool, labels: int) -> int:
    image, table = ("m", "matched") if is_matched else ("image", "events")
    if events.kind == "votes":
        voted = f"SELECT DISTINCT {image} FROM {table} WHERE votes > 0"
        return labels * int(only_row(events.connection, f"SELECT count(*) FROM ({voted})")[0])
    names = SCHEMAS[events.kind].labels
    if is_matched:
        names = ("k",) if len(names) == 1 else tuple(f"{name}_k" for name in names)
    shown = "WHERE shown > 0" if events.kind == "impressions" else ""
    union = " UNION ".join(
        f"SELECT DISTINCT {image}, {name} FROM {table} {shown}" for name in names
    )
    return int(only_row(events.connection, f"SELECT count(*) FROM ({union})")[0])


def _rows_per_image(events: Events) -> tuple[Bin, ...]:
    """Count images by their rows, in the bins 1, 2, 3 to 4, 5 to 8, …."""
    found = events.connection.execute(
        """
        SELECT ceil(log2(rows))::INTEGER AS n, count(*) FROM
            (SELECT count(*) AS rows FROM events GROUP BY image)
        GROUP BY n ORDER BY n
        """
    ).fetchall()
    return tuple(Bin(2 ** (n - 1) + 1 if n else 1, 2**n, count) for n, count in found)


def summarize(config: SummarizeConfig) -> dict[str, Any]:
    """Summarise a table of feedback, and return what --json prints.

    Raises:
        UserError: the table or the data cannot be read, or do not go together.
    """
    config.check()
    with open_events(
        config.events, query=config.query, drop_duplicates=config.drop_duplicates
    ) as events:
        summary = asdict(summary_of(events, _match(events, config)))
    printed = config.printed(summary)
    if not printed:
        _show(summary)
    if config.output is not None:
        page = write_feedback_page(summary, Path(config.output))
        if not printed:
            show(f"Page: {page}")
    return summary


def _match(events: Events, config: SummarizeConfig) -> Matched | None:
    """Find the images of --data, if there are any; photos have the labels in the table."""
    if config.data is None:
        return None
    # These bring torch, which a summary without data does not need.
    from visgrpo.data.folders import holds_photos, read_photos
    from visgrpo.data.read import read
    from visgrpo.feedback.images import keys_of
    from visgrpo.feedback.source.matching import logged_labels

    if holds_photos(folder := Path(config.data).expanduser()):
        names, _ = read_photos(folder)
        keys = image_keys({"file": names}, len(names), config.id_column)
        return match(events, keys, logged_labels(events))
    splits = read(config.data, columns={"image": config.image_column, "label": config.label_column})
    parts = (splits.train, splits.validation, splits.test)
    return match(events, keys_of(parts, config.id_column), splits.train.classes)


def _show(summary: Mapping[str, Any]) -> None:
    show_table([], facts(summary), title=summary["source"])
    for found in feedback_tables(summary):
        show_table(found.headings, found.rows, title=found.title)
        if found.left_out:
            show(f"and {found.left_out:,} more")
    for note in summary["notes"]:
        show(f"note: {printable(note)}")
    for column, loss in summary["missing"].items():
        show(f"missing: {column}, so {loss}")
    images = summary["coverage"]["unmatched_images"]
    if images:
        listed = printable(", ".join(f'"{image}" ({rows})' for image, rows in images[:5]))
        more = ", …" if summary["coverage"]["unmatched_image_count"] > 5 else ""
        show(f"not in the data: {listed}{more}")
