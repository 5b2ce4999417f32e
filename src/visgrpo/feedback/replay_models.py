"""The images of a log, and what models say of them: the inputs of `visgrpo feedback replay`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image
from torch import Tensor

from visgrpo.data.batches import CachedInputs
from visgrpo.data.dataset import ImageDataset
from visgrpo.data.folders import holds_photos, images_of, read_photos
from visgrpo.data.images import without_bad_images
from visgrpo.data.inputs import PixelInputs
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.sources import load_split
from visgrpo.errors import UserError
from visgrpo.feedback.options import ReplayConfig
from visgrpo.feedback.source.events import Events
from visgrpo.feedback.source.matching import logged_labels
from visgrpo.feedback.worth.cells import Floats
from visgrpo.measures.zero_shot import predict_logits, run_over
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.loading import load_clip, model_folder, read_info
from visgrpo.models.prompts import DEFAULT_TEMPLATES
from visgrpo.models.representation import RepresentationClassifier
from visgrpo.models.representation_saving import load_representation
from visgrpo.tasks.model_kinds import kind_of
from visgrpo.tasks.task import kinds
from visgrpo.training.processes import Processes


@dataclass(frozen=True)
class Answers:
    """What a model says of M images.

    Attributes:
        features_MD: pooled features of its image tower.
        probabilities_MK: of the labels.
    """

    features_MD: Floats
    probabilities_MK: Floats


def images_of_log(config: ReplayConfig, events: Events) -> ImageDataset:
    """Return the images that a log may speak of, with the labels that could be shown as classes.

    Their own labels mean nothing here.

    Raises:
        UserError: where there are none, or fewer than two labels.
    """
    if config.data is None:
        dataset = _named_files(config, events)
    elif holds_photos(Path(config.data).expanduser()):
        names, images = read_photos(Path(config.data).expanduser())
        dataset = _unlabelled(config, events, names, images)
    else:
        stored = load_split(
            config.data,
            config.split,
            image_column=config.image_column,
            label_column=config.label_column,
            seed=config.seed,
        )
        nothing_M = np.zeros(len(stored), dtype=np.int64)
        dataset = replace(stored, classes=config.classes or stored.classes, labels=nothing_M)
    return without_bad_images(dataset) if config.skip_bad_images else dataset


def answers_of(
    name: str, dataset: ImageDataset, config: ReplayConfig, processes: Processes
) -> Answers:
    """Run a model over the images; its classes are the data set's.

    Raises:
        UserError: for a model that answers no labels, or other ones.
    """
    classifier, pool, preprocess = _load(model_folder(name), dataset.classes, config.templates)
    classifier.to(processes.device).eval()
    inputs, size = PixelInputs(dataset, preprocess), config.batch_size
    pooled_MP = run_over(pool, dataset, inputs, processes, batch_size=size).float()
    logits_MK = predict_logits(
        classifier, dataset, CachedInputs(pooled_MP), processes, batch_size=size
    )
    columns_K = [classifier.classes.index(label) for label in dataset.classes]
    probabilities_MK = logits_MK[:, columns_K].double().softmax(dim=-1)
    return Answers(pooled_MP.double().numpy(), probabilities_MK.numpy())


def _load(
    folder: str, classes: tuple[str, ...], templates: tuple[str, ...] | None
) -> tuple[ClipClassifier | RepresentationClassifier, Callable[[Tensor], Tensor], Preprocess]:
    """Return a classifier that takes pooled features, what makes them of pixels, and of images."""
    kind = kind_of(folder)
    if kind == "clip":
        clip = load_clip(folder)
        templates = templates or tuple(clip.info.get("templates", DEFAULT_TEMPLATES))
        dual = ClipClassifier(clip.model, clip.tokenizer, classes, templates)
        dual.inputs_are_pooled = True
        return dual, dual.pool, clip.preprocess
    if kind != "classification":
        raise UserError(
            f'"{folder}" is {kinds()[kind].words}; labels are shown by {kinds()["clip"].words} or '
            f"{kinds()['classification'].words}."
        )
    model, backbone = load_representation(folder)
    headed = cast(RepresentationClassifier, model)
    if odd := sorted(set(headed.classes) ^ set(classes)):
        raise UserError(
            f'"{folder}" answers {len(headed.classes)} classes, which are not the {len(classes)} '
            f'labels that could be shown: only one of them has "{odd[0]}". Name the labels with '
            "--classes."
        )
    headed.inputs_are_features = True
    return headed, headed.features, backbone.preprocess


def _named_files(config: ReplayConfig, events: Events) -> ImageDataset:
    """Return the files that the log names as images; those that are not there are left out."""
    found = events.connection.execute("SELECT DISTINCT image FROM events ORDER BY image").fetchall()
    names = [name for (name,) in found]
    files = {name: file for name in names if (file := _file(config, name)) is not None}
    if not files:
        raise UserError(
            f'{events.name}: none of its {len(names)} images is a file, such as "{names[0]}": '
            "name the images with --data."
        )
    return _unlabelled(config, events, list(files), images_of(list(files.values())))


def _unlabelled(
    config: ReplayConfig, events: Events, names: list[str], images: Sequence[Image.Image]
) -> ImageDataset:
    labels = config.classes or _saved_classes(config) or logged_labels(events)
    nothing_M = np.zeros(len(names), dtype=np.int64)
    return ImageDataset(events.name, labels, nothing_M, images, {"file": names})


def _file(config: ReplayConfig, name: str) -> Path | None:
    """Return where an image lies: from here, else from the folder of the log."""
    for folder in (Path(), Path(config.log).expanduser().parent):
        if (folder / name).is_file():
            return folder / name
    return None


def _saved_classes(config: ReplayConfig) -> tuple[str, ...]:
    """Return the classes that the first model which names any was trained with."""
    saved = (tuple(read_info(model_folder(name)).get("classes", ())) for name in config.model)
    return next(filter(None, saved), ())
