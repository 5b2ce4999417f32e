"""The options of `visgrpo feedback summarize`. Light to import."""

from __future__ import annotations

from dataclasses import dataclass

from visgrpo.errors import UserError
from visgrpo.tasks.checks import named
from visgrpo.tasks.configs import Config


@dataclass(frozen=True)
class SummarizeConfig(Config):
    """Say what is in a table of feedback, what it is good for and what it lacks."""

    events: str = ""
    """CSV, JSONL, Parquet, a folder or glob of such files, "sqlite:///app.db?table=votes" or
    "postgresql://…". See docs/feedback.md for its columns."""
    query: str | None = None
    """SQL that makes the table: in the database, or on a file, which is called events there."""
    drop_duplicates: bool = False
    """Leave out repeated events, and count them; otherwise they are a mistake."""
    data: str | None = None
    """Images whose coverage to report, in whatever visgrpo clip takes; by default coverage is of
    the images and labels in the table."""
    image_column: str | None = None
    """Column of the images of --data, where its name is not a usual one."""
    label_column: str | None = None
    """Column of the labels of --data, where its name is not a usual one."""
    id_column: str | None = None
    """Column of --data that holds the table's names of images; by default id, image_id, path, file
    or the like."""
    output: str | None = None
    """Write a page with plots to this file, or as feedback.html into this folder."""
    json: bool = False
    """Print JSON instead of tables."""

    def check(self) -> None:
        named(self.events, "a table of feedback: visgrpo feedback summarize events.parquet")
        for option in ("image_column", "label_column", "id_column"):
            if self.data is None and getattr(self, option) is not None:
                flag = "--" + option.replace("_", "-")
                raise UserError(f"{flag} is about --data, which is not given.")
