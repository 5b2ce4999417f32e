"""Find a class for every pixel of image files: the part of `visgrpo predict` for segmenters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from visgrpo.data.preprocess import Preprocess
from visgrpo.errors import UserError
from visgrpo.measures.palette import colour_mask
from visgrpo.models.representation import Segmenter
from visgrpo.models.representation_saving import load_representation
from visgrpo.tasks.use_configs import PredictConfig
from visgrpo.training.processes import Processes

DEFAULT_FOLDER = "masks"
BYTE_CLASSES = 256
"""Class ids that an 8-bit picture holds; for more, masks have 16 bits."""


@dataclass(frozen=True)
class _Files:
    """Where the pictures of one image go."""

    mask: Path
    overlay: Path


def segment_images(config: PredictConfig, images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """Write a mask of class ids and an overlay in colours for each image, at the image's size.

    Returns:
        For each image its path, those of the mask and overlay, and the `top_k` classes that have
        most of its pixels with their shares; classes without a pixel are left out.

    Raises:
        UserError: where a picture is there already or cannot be written.
    """
    places = _free_places(config)
    processes = Processes(config.device)
    model, parts = load_representation(config.model)
    segmenter = cast(Segmenter, model).to(processes.device)
    size = parts.info.get("image_size")
    preprocess = parts.preprocess.for_dense(tuple(size) if size else None)
    answers = []
    # One by one: images may differ in size.
    for path, image, place in zip(config.images, images, places, strict=True):
        ids_HW = _segment(segmenter, preprocess, image, processes)
        _write(place, ids_HW, image, segmenter.classes)
        shares = _shares(ids_HW, segmenter.classes, config.top_k)
        answers.append(
            {
                "image": path,
                "mask": str(place.mask),
                "overlay": str(place.overlay),
                "classes": list(shares),
                "shares": list(shares.values()),
            }
        )
    return answers


def _free_places(config: PredictConfig) -> list[_Files]:
    """Return where pictures go, sure that nothing is there and no two images share a place."""
    folder = Path(DEFAULT_FOLDER if config.output is None else config.output)
    places = []
    for path in config.images:
        stem = Path(path).stem
        place = _Files(folder / f"{stem}-mask.png", folder / f"{stem}-overlay.png")
        if place in places:
            raise UserError(
                f'Two images are called "{stem}", so their masks would be one file: predict them '
                "one at a time, with an --output of their own."
            )
        for file in (place.mask, place.overlay):
            if file.exists():
                raise UserError(f"{file} is there already: remove it, or give another --output.")
        places.append(place)
    return places


@torch.no_grad()
def _segment(
    segmenter: Segmenter, preprocess: Preprocess, image: Image.Image, processes: Processes
) -> np.ndarray:
    """Return the class ids (H, W) of an image, at its own size."""
    pixels = preprocess(image)
    logits_1hwK = segmenter(pixels[None].to(processes.device))
    logits_1HWK = segmenter.upsample(logits_1hwK, pixels.shape[1:])
    ids_HW = logits_1HWK[0].argmax(dim=-1).cpu().numpy().astype(np.int32)
    if (image.height, image.width) == ids_HW.shape:
        return ids_HW
    # The model saw the image at another size; its answers are not mixed, only repeated or dropped.
    resized = Image.fromarray(ids_HW).resize(image.size, Image.Resampling.NEAREST)
    return np.asarray(resized)


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


def _shares(ids_HW: np.ndarray, classes: tuple[str, ...], top_k: int) -> dict[str, float]:
    shares_K = np.bincount(ids_HW.ravel(), minlength=len(classes)) / ids_HW.size
    order = np.argsort(-shares_K, kind="stable")[:top_k]
    return {classes[k]: float(shares_K[k]) for k in order if shares_K[k] > 0}
