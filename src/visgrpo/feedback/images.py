"""The images that feedback speaks of: named as a table names them, or labelled by what it says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from visgrpo.data.batches import CachedInputs
from visgrpo.data.folders import holds_photos, read_photos
from visgrpo.data.inputs import PixelInputs, check_augmentations
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.read import read_split
from visgrpo.data.roles import image_table
from visgrpo.data.split import Source, divide, parse_slice
from visgrpo.data.table import Splits, Table, of_files
from visgrpo.errors import UserError
from visgrpo.feedback.options import LabelledByModel
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
    remarks_on_images,
)
from visgrpo.feedback.worth.cells import Floats
from visgrpo.measures.over import logits_of, outputs_of
from visgrpo.models.backbone import RepresentationClassifier
from visgrpo.models.clip import ClipClassifier
from visgrpo.tasks.clip.options import ClipConfig
from visgrpo.tasks.clip.use import load_labeller
from visgrpo.tasks.images import load_data, say_notes
from visgrpo.tasks.options import RunConfig
from visgrpo.tasks.run import Session, print_notes
from visgrpo.tasks.task import kinds
from visgrpo.tasks.use import kind_of
from visgrpo.training.processes import Processes


def load_images(config: ClipConfig, data: RunConfig, session: Session) -> Splits:
    """Load three splits of labelled images, or of photos whose labels are what people liked best.

    Args:
        data: the options by which they are found and divided.

    Raises:
        UserError: for data that cannot be used, and photos without feedback.
    """
    if config.feedback is None or not holds_photos(Path(config.data).expanduser()):
        return load_data(data, session)
    check_augmentations(config.augment)
    source = _judged_photos(config, session)
    rows = slice(None) if config.train_slice is None else parse_slice(config.train_slice)
    splits = divide(source, train_rows=rows, fraction=data.validation_fraction, seed=data.seed)
    say_notes(session, splits)
    return splits


def read_votes(spec: str, dataset: Table, processes: Processes) -> Tensor:
    """Return people's votes on the images of a data set, (M, K).

    Other votes are left out, and what is odd about the table is printed.

    Raises:
        UserError: for a table that holds no votes on these images.
    """
    with open_events(spec, kind="votes") as events:
        matched = match(events, keys_of((dataset,), None), dataset.classes)
        print_notes([*events.notes, *remarks_on_images(matched)], processes)
        return votes_of(matched)


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
        columns={"file": names.take(kept)},
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


def answering_kind(name: str, doing: str) -> str:
    """Return the kind of a model that answers with labels: CLIP, or a backbone with a head.

    Args:
        doing: what is done with labels, for the message.

    Raises:
        UserError: it answers something else, or nothing.
    """
    kind, words = kind_of(name), {name: kind.words for name, kind in kinds().items()}
    if kind not in ("clip", "classification"):
        raise UserError(
            f'"{name}" is {words[kind]}; labels are {doing} by {words["clip"]} or '
            f"{words['classification']}."
        )
    return kind


def answers_of(
    name: str,
    dataset: Table,
    classes: tuple[str, ...],
    templates: tuple[str, ...] | None,
    processes: Processes,
    *,
    batch_size: int,
) -> tuple[Floats, Floats]:
    """Return what a model makes of M images: features (M, D), and probabilities of labels (M, K).

    Args:
        templates: prompts of a CLIP model; None takes those that it was trained with.

    Raises:
        UserError: for a model that answers no labels, or other ones.
    """
    classifier, preprocess = _load(name, classes, templates)
    classifier.to(processes.device).eval()
    inputs = PixelInputs(dataset, preprocess)
    pool = classifier.features
    pooled_MP = outputs_of(pool, dataset, inputs, processes, batch_size=batch_size).float()
    pooled = CachedInputs(pooled_MP)
    logits_MK = logits_of(classifier, dataset, pooled, processes, batch_size=batch_size)
    columns_K = [classifier.classes.index(label) for label in classes]
    probability_MK = logits_MK[:, columns_K].double().softmax(dim=-1)
    return pooled_MP.double().numpy(), probability_MK.numpy()


def stored_images(config: LabelledByModel) -> Table:
    """Load the rows of --data that are meant, where that is stored with labels."""
    return read_split(
        str(config.data),
        config.split,
        columns={"image": config.image_column, "label": config.label_column},
        seed=config.seed,
    )


def unlabelled(
    name: str, classes: tuple[str, ...], files: Sequence[str], images: Sequence[Image.Image]
) -> Table:
    """Return images with the labels that may be given to them."""
    nothing_M = np.zeros(len(files), dtype=np.int64)
    return image_table(name, classes, nothing_M, images, {"file": files})


def _load(
    name: str, classes: tuple[str, ...], templates: tuple[str, ...] | None
) -> tuple[ClipClassifier | RepresentationClassifier, Preprocess]:
    """Return a classifier that takes features made before, and what makes pixels of images."""
    answering_kind(name, "shown")
    classifier, parts = load_labeller(name, classes, templates)
    if odd := sorted(set(classifier.classes) ^ set(classes)):
        raise UserError(
            f'"{name}" answers {len(classifier.classes)} classes, which are not the {len(classes)} '
            f'labels that could be shown: only one of them has "{odd[0]}". Name the labels with '
            "--classes."
        )
    classifier.inputs_are_features = True
    return classifier, parts.preprocess
