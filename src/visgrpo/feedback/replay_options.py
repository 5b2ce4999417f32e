"""The options of `visgrpo feedback replay`. Light to import."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from visgrpo.errors import UserError
from visgrpo.tasks.checks import named, not_negative, positive
from visgrpo.tasks.configs import Config


@dataclass(frozen=True)
class ReplayConfig(Config):
    """Estimate from a log how saved models would have done in place of the policy that wrote it.

    A model is taken to draw labels by its probabilities, as the log's policy drew by its
    propensities. Images that a model learned from the clicks of make it look better than it is.
    """

    model: tuple[str, ...] = ()
    """Run, folder or Hub name: CLIP, or a backbone with a classification head. Give several to
    compare them with the first."""
    log: str = ""
    """Impressions with propensities: CSV, JSONL, Parquet, "sqlite:///app.db?table=impressions" or
    "postgresql://…". See docs/feedback.md for its columns."""
    query: str | None = None
    """SQL that makes the table: in the database, or on a file, which is called events there."""
    drop_duplicates: bool = False
    """Leave out repeated events, and count them; otherwise they are a mistake."""
    data: str | None = None
    """Images of the log, in whatever visgrpo clip takes; by default the files that the log names,
    from here or beside the log."""
    split: str = "test"
    """Rows of --data, perhaps sliced: "train[:2000]"."""
    image_column: str | None = None
    """Column of the images, where its name is not a usual one."""
    label_column: str | None = None
    """Column of the labels, where its name is not a usual one."""
    id_column: str | None = None
    """Column of the data that holds the log's names of images; by default id, image_id, path, file
    or the like."""
    skip_bad_images: bool = False
    """Leave out images that cannot be read, and count them; otherwise they stop the estimate."""
    classes: tuple[str, ...] = ()
    """Labels that could be shown; by default those of --data, else those that the first model which
    names any was trained with, else those in the log."""
    templates: tuple[str, ...] | None = None
    """CLIP: prompts; by default those that each model was trained with."""
    least_effective_share: float = 0.01
    """Refuse a model of which the log says less: effective sample size as a share of the
    impressions."""
    seed: int = 0
    """Of the folds in which click rates are predicted, and of --data that is made."""
    batch_size: int = 256
    """Images at a time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    json: bool = False
    """Print JSON instead of the table."""

    def check(self) -> None:
        named(self.model, "a model: visgrpo feedback replay --model A --log events.parquet")
        named(self.log, "the log: visgrpo feedback replay --model A --log events.parquet")
        positive(self, "batch_size")
        not_negative(self, "seed")
        if not 0 <= self.least_effective_share < 1:
            raise UserError(
                f"--least-effective-share {self.least_effective_share} must lie in [0, 1)."
            )
        twice = [name for name, times in Counter(self.model).items() if times > 1]
        if twice:
            raise UserError(f'--model "{twice[0]}" is given twice: give every model once.')
        for option in ("image_column", "label_column", "id_column"):
            if self.data is None and getattr(self, option) is not None:
                flag = "--" + option.replace("_", "-")
                raise UserError(f"{flag} is about --data, which is not given.")
