"""The images that feedback speaks of: named as a table names them, or labelled by what it says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from torch import Tensor

from visgrpo.data.folders import holds_photos, read_photos
from visgrpo.data.inputs import check_augmentations
from visgrpo.data.roles import image_table
from visgrpo.data.split import Source, divide, parse_slice
from visgrpo.data.table import Splits, Table, of_files
from visgrpo.errors import UserError
from visgrpo.feedback.posteriors import (
    best_answers,
    kind_of_rewards,
    votes_of,
)
from visgrpo.feedback.source.events import Events, open_events
from visgrpo.feedback.source.matching import (
    image_keys,
    key_columns,
    logged_labels,
    match,
)
from visgrpo.tasks.clip.options import ClipConfig
from visgrpo.tasks.images import load_data, say_notes
from visgrpo.tasks.run import Session


def load_images(config: ClipConfig, session: Session) -> Splits:
    """Load three splits of labelled images, or of photos whose labels are what people liked best.

    Raises:
        UserError: for data that cannot be used, and photos without feedback.
    """
    if config.feedback is None or not holds_photos(Path(config.data).expanduser()):
        return load_data(config, session)
    check_augmentations(config.augment)
    source = _judged_photos(config, session)
    rows = slice(None) if config.train_slice is None else parse_slice(config.train_slice)
    splits = divide(source, train_rows=rows, fraction=config.validation_fraction, seed=config.seed)
    say_notes(session, splits)
    return splits


def read_votes(spec: str, dataset: Table) -> Tensor:
    """Return people's votes on the images of a data set, (M, K); other votes are left out.

    Raises:
        UserError: for a table that holds no votes on these images.
    """
    with open_events(spec, kind="votes") as events:
        return votes_of(match(events, keys_of((dataset,), None), dataset.classes))


def keys_of(parts: Sequence[Table], id_column: str | None) -> list[list[str]]:
    """Return the names of the images of several splits, one after the other.

    Raises:
        UserError: their tables do not name them.
    """
    first = parts[0]
    columns = {
        name: list(chain.from_iterable(part.columns[name] for part in parts))
        for name in key_columns(first.columns, id_column)
    }
    if not columns:
        raise UserError(
            f"{first.name}: none of its columns names its images, so feedback cannot find them: "
            "give it a column image_id, or name the one that does with --id-column."
        )
    return image_keys(columns, sum(map(len, parts)), id_column)


def _judged_photos(config: ClipConfig, session: Session) -> Source:
    folder = Path(config.data).expanduser()
    names, images = read_photos(folder)
    with events_of(config) as events:
        classes = logged_labels(events)
        if len(classes) < 2:
            raise UserError(
                f'{events.name} has only the label "{classes[0]}": a classifier needs two or more.'
            )
        matched = match(events, image_keys({"file": names}, len(names)), classes)
        best_M, judged_M = best_answers(matched, config)
    kept = np.flatnonzero(judged_M)
    session.note(
        f"{folder} has no labels: {len(kept):,} of {len(names):,} photos have feedback, and "
        "accuracy is how often the model's answer is the one that people liked best."
    )
    photos = image_table(
        name=folder.resolve().name,
        classes=classes,
        labels=best_M[kept],
        images=images.take(kept),
        columns={"file": [names[row] for row in kept]},
        identity=of_files([str(folder / names[row]) for row in kept]),
    )
    if config.skip_bad_images:
        photos = photos.without_bad_rows()
    return Source(photos.name, {"all": photos})


def events_of(config: ClipConfig) -> Events:
    """Open the table that a job learns from."""
    return open_events(
        str(config.feedback),
        query=config.query,
        kind=kind_of_rewards(config.reward),
        drop_duplicates=config.drop_duplicates,
    )
