"""Saved models that answer with names of classes: CLIP by its prompts, a backbone by its head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from PIL import Image
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.models.backbone import RepresentationClassifier
from visgrpo.models.clip import DEFAULT_TEMPLATES, ClipClassifier
from visgrpo.models.load import load_clip, load_representation
from visgrpo.models.parts import Parts
from visgrpo.tasks.model_kinds import kind_of
from visgrpo.tasks.predict import classes_of, most_probable
from visgrpo.tasks.use_configs import PredictConfig
from visgrpo.training.processes import Processes


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

    def __init__(
        self, config: PredictConfig, images: Sequence[Image.Image], processes: Processes
    ) -> None:
        self._classes, self._top_k = classes_of(config), config.top_k
        classifier, parts = load_labeller(config.model, self._classes, config.templates)
        self._classifier = classifier.to(processes.device).eval()
        self._preprocess, self._device = parts.preprocess, processes.device

    def __call__(self, path: str, image: Image.Image) -> dict[str, Any]:
        pixels = self._preprocess(image)
        if isinstance(self._classifier, ClipClassifier):
            _check_size(path, pixels, self._classifier.backbone.config.vision_config.image_size)
        logits_1K = self._classifier(pixels[None].to(self._device))
        return most_probable(logits_1K, self._classes, self._top_k)


def _check_size(path: str, pixels: Tensor, side: int) -> None:
    height, width = pixels.shape[1:]
    if (height, width) != (side, side):
        raise UserError(
            f'Image "{path}" is {width} × {height} pixels after the model\'s own preprocessing, '
            f"but the model takes {side} × {side}: make the image square, or set do_center_crop "
            "in its preprocessor_config.json."
        )
