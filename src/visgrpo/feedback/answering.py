"""Saved models that answer with labels, and images whose own labels mean nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from PIL import Image
from torch import Tensor

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
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.load import load_clip, load_representation
from visgrpo.models.prompts import DEFAULT_TEMPLATES
from visgrpo.models.representation import RepresentationClassifier
from visgrpo.tasks.model_kinds import kind_of
from visgrpo.tasks.task import kinds
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
    classifier, pool, preprocess = _load(name, classes, templates)
    classifier.to(processes.device).eval()
    inputs = PixelInputs(dataset, preprocess)
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
) -> tuple[ClipClassifier | RepresentationClassifier, Callable[[Tensor], Tensor], Preprocess]:
    """Return a classifier that takes pooled features, what makes them of pixels, and of images."""
    if answering_kind(name, "shown") == "clip":
        clip = load_clip(name)
        templates = templates or tuple(clip.info.get("templates", DEFAULT_TEMPLATES))
        dual = ClipClassifier(clip.model, clip.tokenizer, classes, templates)
        dual.inputs_are_pooled = True
        return dual, dual.pool, clip.preprocess
    model, backbone = load_representation(name)
    headed = cast(RepresentationClassifier, model)
    if odd := sorted(set(headed.classes) ^ set(classes)):
        raise UserError(
            f'"{name}" answers {len(headed.classes)} classes, which are not the {len(classes)} '
            f'labels that could be shown: only one of them has "{odd[0]}". Name the labels with '
            "--classes."
        )
    headed.inputs_are_features = True
    return headed, headed.features, backbone.preprocess
