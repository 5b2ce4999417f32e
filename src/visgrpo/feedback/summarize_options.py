"""The options of `visgrpo feedback summarize`. Light to import."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from visgrpo.options import Options, option


@dataclass(frozen=True)
class SummarizeConfig(Options):
    """Say what is in a table of feedback, what it is good for and what it lacks."""

    events: str = option(
        "",
        'CSV, JSONL, Parquet, a folder or glob of such files, "sqlite:///app.db?table=votes" '
        'or "postgresql://…". See docs/feedback.md for its columns.',
        required="a table of feedback: visgrpo feedback summarize events.parquet",
    )
    query: str | None = option(
        None,
        "SQL that makes the table: in the database, or on a file, which is called events there.",
    )
    drop_duplicates: bool = option(
        False, "Leave out repeated events, and count them; otherwise they are a mistake."
    )
    data: str | None = option(
        None,
        "Images whose coverage to report, in whatever visgrpo clip takes; by default coverage "
        "is of the images and labels in the table.",
    )
    image_column: str | None = option(
        None, "Column of the images of --data, where its name is not a usual one."
    )
    label_column: str | None = option(
        None, "Column of the labels of --data, where its name is not a usual one."
    )
    id_column: str | None = option(
        None,
        "Column of --data that holds the table's names of images; by default id, image_id, "
        "path, file or the like.",
    )
    output: str | None = option(
        None, "Write a page with plots to this file, or as feedback.html into this folder."
    )
    json: bool = option(False, "Print JSON instead of tables.")

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        of_data = "image_column label_column id_column"
        yield from self.idle((of_data, self.data is None, "is about --data, which is not given"))
