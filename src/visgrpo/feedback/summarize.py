"""`visgrpo feedback summarize`: what is in a table of feedback, printed and as a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from visgrpo.errors import printable
from visgrpo.feedback.options import SummarizeConfig
from visgrpo.feedback.source.events import Events, open_events
from visgrpo.feedback.source.matching import Matched, image_keys, match
from visgrpo.feedback.summary import summarize as summarize_events
from visgrpo.reporting.feedback import facts, feedback_tables, write_feedback_page


def summarize(config: SummarizeConfig) -> dict[str, Any]:
    """Summarise a table of feedback, and return what --json prints.

    Raises:
        UserError: the table or the data cannot be read, or do not go together.
    """
    config.check()
    with open_events(
        config.events, query=config.query, drop_duplicates=config.drop_duplicates
    ) as events:
        summary = asdict(summarize_events(events, _match(events, config)))
    printed = config.printed(summary)
    if not printed:
        _show(summary)
    if config.output is not None:
        page = write_feedback_page(summary, Path(config.output))
        if not printed:
            print(f"Page: {page}")
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
    console = Console(width=None if Console().is_terminal else 100)
    table = Table(title=_text(summary["source"]), title_justify="left", show_header=False)
    for name, text in facts(summary):
        table.add_row(name, _text(text))
    console.print(table)
    for found in feedback_tables(summary):
        table = Table(*found.headings, title=found.title, title_justify="left")
        for row in found.rows:
            table.add_row(*map(_text, row))
        console.print(table)
        if found.left_out:
            print(f"and {found.left_out:,} more")
    for note in summary["notes"]:
        print(f"note: {printable(note)}")
    for column, loss in summary["missing"].items():
        print(f"missing: {column}, so {loss}")
    images = summary["coverage"]["unmatched_images"]
    if images:
        listed = printable(", ".join(f'"{image}" ({rows})' for image, rows in images[:5]))
        more = ", …" if summary["coverage"]["unmatched_image_count"] > 5 else ""
        print(f"not in the data: {listed}{more}")


def _text(cell: str) -> str:
    """Return a table's cell that shows what may be anyone's words as they stand."""
    return escape(printable(cell))
