"""What is done with a saved backbone and its head for masks: evaluated, and predicted with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from visgrpo.data.inputs import SegmentationInputs
from visgrpo.data.table import IGNORE_INDEX, Table
from visgrpo.errors import UserError
from visgrpo.measures.masks import HeldOutMasks, colour_mask
from visgrpo.models.backbone import Segmenter
from visgrpo.models.load import load_representation
from visgrpo.models.parts import read_info
from visgrpo.tasks.evaluate import rows_of
from visgrpo.tasks.use_configs import EvaluateConfig, PredictConfig
from visgrpo.training.processes import Processes

DEFAULT_FOLDER = "masks"
BYTE_CLASSES = 256
"""Class ids that an 8-bit picture holds; for more, masks have 16 bits."""


class Evaluation:
    """The measures of masks at every labelled pixel."""

    def __init__(self, config: EvaluateConfig, processes: Processes) -> None:
        info = read_info(config.model)
        stored = info.get("ignore_index", IGNORE_INDEX)
        ignored = stored if config.ignore_index is None else config.ignore_index
        size = config.image_size or info.get("image_size")
        self._size = tuple(size) if size else None
        names = config.classes_file
        self._dataset = rows_of(config, "masks", classes_file=names, ignore_index=ignored)
        self._processes = processes
        self.title = f"{self._dataset.name}, {len(self._dataset)} images"

    def measures(self, row: str, name: str) -> dict[str, Any]:
        model, parts = load_representation(name)
        _check_classes(name, model.classes, self._dataset)
        segmenter = cast(Segmenter, model).to(self._processes.device)
        inputs = SegmentationInputs(self._dataset, parts.preprocess.for_dense(self._size))
        return {row: HeldOutMasks(segmenter, self._dataset, inputs, self._processes).now()}


def _check_classes(folder: str, classes: tuple[str, ...], dataset: Table) -> None:
    for k, (ours, theirs) in enumerate(zip_longest(classes, dataset.classes, fillvalue="nothing")):
        if ours != theirs:
            raise UserError(
                f'Class {k} is "{ours}" to the head of "{folder}" and "{theirs}" in '
                f"{dataset.name}: give data with the head's classes in their order, or name them "
                "with --classes-file."
            )


@dataclass(frozen=True)
class _Files:
    """Where the pictures of one image go."""

    mask: Path
    overlay: Path


class Prediction:
    """A mask of class ids and an overlay in colours for each image, at the image's size.

    An answer holds the `top_k` classes that have most of the pixels, with their shares; classes
    without a pixel are left out.
    """

    def __init__(
        self, config: PredictConfig, images: Sequence[Image.Image], processes: Processes
    ) -> None:
        self._places, self._top_k = _free_places(config), config.top_k
        model, parts = load_representation(config.model)
        self._segmenter = cast(Segmenter, model).to(processes.device)
        self._device = processes.device
        size = parts.info.get("image_size")
        self._preprocess = parts.preprocess.for_dense(tuple(size) if size else None)

    def __call__(self, path: str, image: Image.Image) -> dict[str, Any]:
        place, classes = self._places[path], self._segmenter.classes
        ids_HW = self._segment(image)
        _write(place, ids_HW, image, classes)
        shares_K = np.bincount(ids_HW.ravel(), minlength=len(classes)) / ids_HW.size
        order = np.argsort(-shares_K, kind="stable")[: self._top_k]
        shares = {classes[k]: float(shares_K[k]) for k in order if shares_K[k] > 0}
        return {
            "mask": str(place.mask),
            "overlay": str(place.overlay),
            "classes": list(shares),
            "shares": list(shares.values()),
        }

    def _segment(self, image: Image.Image) -> np.ndarray:
        """Return the class ids (H, W) of an image, at its own size."""
        pixels = self._preprocess(image)
        logits_1hwK = self._segmenter(pixels[None].to(self._device))
        logits_1HWK = self._segmenter.upsample(logits_1hwK, pixels.shape[1:])
        ids_HW = logits_1HWK[0].argmax(dim=-1).cpu().numpy().astype(np.int32)
        if (image.height, image.width) == ids_HW.shape:
            return ids_HW
        # The model saw another size; its answers are not mixed, only repeated or dropped.
        resized = Image.fromarray(ids_HW).resize(image.size, Image.Resampling.NEAREST)
        return np.asarray(resized)


def _free_places(config: PredictConfig) -> dict[str, _Files]:
    """Return where pictures go, sure that nothing is there and no two images share a place."""
    folder = Path(DEFAULT_FOLDER if config.output is None else config.output)
    places: dict[str, _Files] = {}
    for path in config.images:
        stem = Path(path).stem
        place = _Files(folder / f"{stem}-mask.png", folder / f"{stem}-overlay.png")
        if place in places.values():
            raise UserError(
                f'Two images are called "{stem}", so their masks would be one file: predict them '
                "one at a time, with an --output of their own."
            )
        for file in (place.mask, place.overlay):
            if file.exists():
                raise UserError(f"{file} is there already: remove it, or give another --output.")
        places[path] = place
    return places


def _write(place: _Files, ids_HW: np.ndarray, image: Image.Image, classes: tuple[str, ...]) -> None:
    dtype = np.uint8 if len(classes) <= BYTE_CLASSES else np.uint16
    try:
        place.mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids_HW.astype(dtype)).save(place.mask)
        Image.blend(image, colour_mask(ids_HW, classes), 0.5).save(place.overlay)
    except OSError as error:
        raise UserError(
            f"--output {place.mask.parent} cannot be written: {error.strerror}."
        ) from error
