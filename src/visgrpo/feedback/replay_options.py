"""The options of `visgrpo feedback replay`. Light to import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from visgrpo.options import Options, option


@dataclass(frozen=True)
class ReplayConfig(Options):
    """Estimate from a log how saved models would have done in place of the policy that wrote it.

    A model is taken to draw labels by its probabilities, as the log's policy drew by its
    propensities. Images that a model learned from the clicks of make it look better than it is.
    """

    model: tuple[str, ...] = option(
        (),
        "Run, folder or Hub name: CLIP, or a backbone with a classification head. Give "
        "several to compare them with the first.",
        required="a model: visgrpo feedback replay --model A --log events.parquet",
    )
    log: str = option(
        "",
        "Impressions with propensities: CSV, JSONL, Parquet, "
        '"sqlite:///app.db?table=impressions" or "postgresql://…". See docs/feedback.md for '
        "its columns.",
        required="the log: visgrpo feedback replay --model A --log events.parquet",
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
        "Images of the log, in whatever visgrpo clip takes; by default the files that the log "
        "names, from here or beside the log.",
    )
    split: str = option("test", 'Rows of --data, perhaps sliced: "train[:2000]".')
    image_column: str | None = option(
        None, "Column of the images, where its name is not a usual one."
    )
    label_column: str | None = option(
        None, "Column of the labels, where its name is not a usual one."
    )
    id_column: str | None = option(
        None,
        "Column of the data that holds the log's names of images; by default id, image_id, "
        "path, file or the like.",
    )
    skip_bad_images: bool = option(
        False,
        "Leave out images that cannot be read, and count them; otherwise they stop the estimate.",
    )
    classes: tuple[str, ...] = option(
        (),
        "Labels that could be shown; by default those of --data, else those that the first "
        "model which names any was trained with, else those in the log.",
    )
    templates: tuple[str, ...] | None = option(
        None, "CLIP: prompts; by default those that each model was trained with."
    )
    least_effective_share: float = option(
        0.01,
        "Refuse a model of which the log says less: effective sample size as a share of the "
        "impressions.",
        within="[0, 1)",
    )
    seed: int = option(
        0,
        "Of the folds in which click rates are predicted, and of --data that is made.",
        within=">= 0",
    )
    batch_size: int = option(256, "Images at a time.", within="> 0")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to compute.")
    json: bool = option(False, "Print JSON instead of the table.")

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        twice = [name for name, times in Counter(self.model).items() if times > 1]
        if twice:
            yield f'--model "{twice[0]}" is given twice: give every model once.'
        of_data = "image_column label_column id_column"
        yield from self.idle((of_data, self.data is None, "is about --data, which is not given"))
