"""Saved models that answer with labels, and images whose own labels mean nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from visgrpo.data.batches import CachedInputs
from visgrpo.data.inputs import PixelInputs
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.read import read_split
from visgrpo.data.roles import image_table
from visgrpo.data.table import Table
from visgrpo.errors import UserError
from visgrpo.feedback.options import LabelledByModel
from visgrpo.feedback.worth.cells import Floats
from visgrpo.measures.over import logits_of, outputs_of
from visgrpo.models.backbone import RepresentationClassifier
from visgrpo.models.clip import ClipClassifier
from visgrpo.tasks.clip.use import load_labeller
from visgrpo.tasks.task import kinds
from visgrpo.tasks.use import kind_of
from visgrpo.training.processes import Processes


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
    name: str, classes: tuple[str, ...], files: list[str], images: Sequence[Image.Image]
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
