"""Photos without labels, which feedback gives some: the answer that people liked best."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from visgrpo.data.augment import check_augmentations
from visgrpo.data.dataset import ImageDataset, Splits
from visgrpo.data.decoding import without_bad_images
from visgrpo.data.identity import of_files
from visgrpo.data.photos import holds_photos, read_photos
from visgrpo.data.splitting import Source, divide, parse_slice
from visgrpo.errors import UserError
from visgrpo.feedback.events import open_events
from visgrpo.feedback.labels import logged_labels
from visgrpo.feedback.matching import image_keys, match
from visgrpo.tasks.configs import ClipConfig
from visgrpo.tasks.feedback_posteriors import best_answers, kind_of_rewards
from visgrpo.tasks.session import Session, load_data, say_notes


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


def _judged_photos(config: ClipConfig, session: Session) -> Source:
    folder = Path(config.data).expanduser()
    names, images = read_photos(folder)
    kind = kind_of_rewards(config.reward)
    with open_events(
        str(config.feedback),
        query=config.query,
        kind=kind,
        drop_duplicates=config.drop_duplicates,
    ) as events:
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
    photos = ImageDataset(
        name=folder.resolve().name,
        classes=classes,
        labels=best_M[kept],
        images=images.take(kept),
        columns={"file": [names[row] for row in kept]},
        identity=of_files([str(folder / names[row]) for row in kept]),
    )
    if config.skip_bad_images:
        photos = without_bad_images(photos)
    return Source(photos.name, {"all": photos})
