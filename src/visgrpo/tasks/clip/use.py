"""What is done with saved models of labels: CLIP is evaluated, any of them predicts classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from visgrpo.data.inputs import pixel_inputs
from visgrpo.data.table import Table
from visgrpo.errors import UserError
from visgrpo.measures import evaluate_logits, interpolate
from visgrpo.measures.decisions import Decision
from visgrpo.measures.held_out import agreement
from visgrpo.measures.over import logits_of
from visgrpo.models.backbone import RepresentationClassifier
from visgrpo.models.clip import DEFAULT_TEMPLATES, ClipClassifier, class_prompts
from visgrpo.models.load import load_clip, load_representation
from visgrpo.models.parts import Parts
from visgrpo.tasks.extension import votes_on
from visgrpo.tasks.use import (
    classes_of,
    decided,
    kind_of,
    most_probable,
    rows_of,
    weakest_images,
)
from visgrpo.tasks.use_options import EvaluateConfig, PredictConfig
from visgrpo.training.processes import Processes


class Evaluation:
    """One data set and its prompts, for several sets of weights of one architecture."""

    def __init__(self, config: EvaluateConfig, processes: Processes) -> None:
        self._config, self._processes = config, processes
        self._dataset = rows_of(config)
        self._parts = load_clip(config.model)
        self._templates = prompts_of(self._parts, config.templates)
        class_prompts(self._dataset.classes, self._templates)
        votes = config.votes
        self._votes_MK = votes_on(self._dataset, votes, processes) if votes else None
        self._inputs = pixel_inputs(self._dataset, self._parts.preprocess)
        self._start_MK: Tensor | None = None
        self._start_weights: dict[str, Tensor] = {}
        self.title = f"{self._dataset.name}, {len(self._dataset)} images"

    def measures(self, row: str, name: str) -> dict[str, Any]:
        model = self._parts.model if row == "model" else load_clip(name).model
        logits_MK = self._logits(model)
        if row == "start":
            self._start_MK = logits_MK
            if self._config.alpha:
                self._start_weights = _weights(model)
        rows = {row: self._measures(logits_MK)}
        more = decided(
            self._config, row, self._dataset, logits_MK, lambda other: self._logits(model, other)
        )
        rows[row] |= more.pop(row, {})
        rows |= more
        if row == "model" and self._config.alpha:
            end = _weights(model)
            for alpha in self._config.alpha:
                model.load_state_dict(interpolate(self._start_weights, end, alpha))
                rows[f"alpha={alpha:g}"] = self._measures(self._logits(model))
        return rows

    def _logits(self, model: Any, other: Table | None = None) -> Tensor:
        """The answers to the rows, or to other rows of the same classes."""
        classes, processes = self._dataset.classes, self._processes
        classifier = ClipClassifier(model, self._parts.tokenizer, classes, self._templates)
        classifier.to(processes.device)
        size = self._config.batch_size
        rows, inputs = self._dataset, self._inputs
        if other is not None:
            rows, inputs = other, pixel_inputs(other, self._parts.preprocess)
        return logits_of(classifier, rows, inputs, processes, batch_size=size)

    def _measures(self, logits_MK: Tensor) -> dict[str, Any]:
        labels_M = torch.from_numpy(self._dataset.labels)
        measures = evaluate_logits(logits_MK, labels_M, self._dataset.classes, self._start_MK)
        measures |= weakest_images(logits_MK, self._dataset)
        if self._votes_MK is not None:
            measures.update(agreement(logits_MK, self._votes_MK, labels_M))
        return measures


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}


def load_labeller(
    name: str, classes: Sequence[str], templates: Sequence[str] | None = None
) -> tuple[ClipClassifier | RepresentationClassifier, Parts]:
    """Load a model that answers with labels, by folder or Hub name.

    Args:
        classes: among which a CLIP model chooses; a head answers its own.
        templates: prompts of a CLIP model; None takes those that it was trained with.

    Raises:
        UserError: for a model that is not there, or is of another kind.
    """
    if kind_of(name) == "classification":
        model, parts = load_representation(name)
        return cast(RepresentationClassifier, model), parts
    parts = load_clip(name)
    return ClipClassifier(
        parts.model, parts.tokenizer, classes, prompts_of(parts, templates)
    ), parts


def prompts_of(parts: Parts, templates: Sequence[str] | None) -> tuple[str, ...]:
    """Return the prompts that were given, else those that a CLIP model was trained with."""
    return tuple(templates or parts.info.get("templates", DEFAULT_TEMPLATES))


class Prediction:
    """The most probable classes of an image."""

    def __init__(self, config: PredictConfig, processes: Processes) -> None:
        self._classes, self._top_k = classes_of(config), config.top_k
        self._decision = Decision.parse(config.decide, self._classes)
        classifier, parts = load_labeller(config.model, self._classes, config.templates)
        self._classifier = classifier.to(processes.device).eval()
        self._preprocess, self._device = parts.preprocess, processes.device

    def __call__(self, path: str, image: Image.Image) -> dict[str, Any]:
        pixels = self._preprocess(image)
        if isinstance(self._classifier, ClipClassifier):
            _check_size(path, pixels, self._classifier.backbone.config.vision_config.image_size)
        logits_1K = self._classifier(pixels[None].to(self._device))
        found = most_probable(logits_1K, self._classes, self._top_k)
        if self._decision.name == "argmax":
            return found
        answer = int(self._decision.answers(logits_1K.cpu().softmax(dim=-1))[0])
        return {**found, "answer": None if answer < 0 else self._classes[answer]}


def _check_size(path: str, pixels: Tensor, side: int) -> None:
    height, width = pixels.shape[1:]
    if (height, width) != (side, side):
        raise UserError(
            f'Image "{path}" is {width} × {height} pixels after the model\'s own preprocessing, '
            f"but the model takes {side} × {side}: make the image square, or set do_center_crop "
            "in its preprocessor_config.json."
        )
