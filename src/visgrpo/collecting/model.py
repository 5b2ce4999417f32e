"""What `visgrpo feedback collect` shows and who offers it: the images, and a model's answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from torch import nn

from visgrpo.collecting.collector import Answers
from visgrpo.collecting.options import CollectConfig
from visgrpo.data.dataset import ImageDataset
from visgrpo.data.folders import holds_photos, read_photos
from visgrpo.data.images import without_bad_images
from visgrpo.data.inputs import pixel_inputs
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.sources import load_split
from visgrpo.errors import UserError
from visgrpo.feedback.source.matching import image_keys, key_columns
from visgrpo.measures.zero_shot import predict_logits
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.loading import load_clip, read_info
from visgrpo.models.prompts import DEFAULT_TEMPLATES, class_prompts
from visgrpo.models.representation_saving import load_representation
from visgrpo.tasks.model_kinds import KINDS, kind_of
from visgrpo.training.processes import Processes


class AnsweringModel:
    """Models of one kind, one after the other, answering about the same images.

    Attributes:
        dataset: the images; their labels mean nothing here.
        names: what the log calls them.
        classes: the labels that can be offered.
        templates: the prompts of a CLIP model.

    Raises:
        UserError: for a model or images that cannot be used.
    """

    def __init__(self, config: CollectConfig, processes: Processes) -> None:
        self._config, self._processes = config, processes
        self._kind = _kind(config)
        info = read_info(config.model)
        self.classes = config.classes or tuple(info.get("classes", ()))
        self.templates = config.templates or tuple(info.get("templates", DEFAULT_TEMPLATES))
        stored = _images(config, self.classes)
        named = replace(stored, columns={"name": _names(config, stored)})
        self.dataset = without_bad_images(named)
        self.names = list(self.dataset.columns["name"])
        self.classes = self.classes or self.dataset.classes
        if config.learn is not None:
            _check_learnable(self.classes, self.dataset)
        if self._kind == "clip":
            class_prompts(self.classes, self.templates)

    def answers(self, model: str) -> Answers:
        """Return what a model says of every image; `model` is also its name in the store.

        Raises:
            UserError: when it cannot be loaded.
        """
        classifier, preprocess = self._load(model)
        logits_MK = predict_logits(
            classifier.to(self._processes.device),
            self.dataset,
            pixel_inputs(self.dataset, preprocess),
            self._processes,
            batch_size=self._config.batch_size,
        )
        return Answers(model, logits_MK.double().softmax(dim=-1).numpy())

    def _load(self, model: str) -> tuple[nn.Module, Preprocess]:
        if self._kind == "clip":
            clip = load_clip(model)
            classifier = ClipClassifier(clip.model, clip.tokenizer, self.classes, self.templates)
            return classifier, clip.preprocess
        with_head, backbone = load_representation(model)
        return cast(nn.Module, with_head), backbone.preprocess


def _kind(config: CollectConfig) -> str:
    kind = kind_of(config.model)
    if kind not in ("clip", "classification"):
        raise UserError(
            f'"{config.model}" is {KINDS[kind].words}; labels are offered by '
            f"{KINDS['clip'].words} or {KINDS['classification'].words}."
        )
    if kind == "classification":
        for option, given in (
            ("classes", bool(config.classes)),
            ("templates", config.templates is not None),
            ("learn", config.learn is not None),
        ):
            if given:
                raise UserError(
                    f'--{option} is for CLIP: "{config.model}" is {KINDS["classification"].words}.'
                )
    return kind


def _check_learnable(classes: tuple[str, ...], dataset: ImageDataset) -> None:
    """Refuse labels that training, which has the data's classes, would not know."""
    foreign = [label for label in classes if label not in dataset.classes]
    if foreign:
        raise UserError(
            f'--learn trains on the classes of {dataset.name}, which has no "{foreign[0]}": name '
            "its own with --classes, or leave out --learn."
        )


def _images(config: CollectConfig, classes: tuple[str, ...]) -> ImageDataset:
    folder = Path(config.data).expanduser()
    if not holds_photos(folder):
        return load_split(
            config.data,
            config.split,
            image_column=config.image_column,
            label_column=config.label_column,
            seed=config.seed,
        )
    if config.split != "train":
        raise UserError(
            f"--split is of data that is stored in splits: {folder} is a folder of photos."
        )
    if not classes:
        raise UserError(
            f'"{config.model}" names no classes, and photos have none: give them with --classes.'
        )
    names, images = read_photos(folder)
    nothing_M = np.zeros(len(names), dtype=np.int64)
    return ImageDataset(folder.resolve().name, classes, nothing_M, images, {"file": names})


def _names(config: CollectConfig, dataset: ImageDataset) -> list[str]:
    """Return what the log calls each image: the first of its keys that no other image has."""
    if not key_columns(dataset.columns, config.id_column):
        raise UserError(
            f"{dataset.name}: no column names the images, so a log of them could not be matched: "
            "name one with --id-column."
        )
    keys = image_keys(dataset.columns, len(dataset), config.id_column)
    images = Counter(key for its_keys in keys for key in its_keys)
    names = []
    for row, its_keys in enumerate(keys):
        own = [key for key in its_keys if images[key] == 1]
        if not own:
            raise UserError(
                f"{dataset.name}: row {row} shares its name with another row, or has none, and a "
                "log could not tell which is meant: name another column with --id-column."
            )
        names.append(own[0])
    return names
