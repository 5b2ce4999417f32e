"""What saved backbones, with a head for whole images or none, are measured by in `evaluate`.

A backbone without a head, or with one for other classes, is judged by probes on its features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visgrpo.data.batches import CachedInputs
from visgrpo.data.inputs import PixelInputs, SegmentationInputs, shifted
from visgrpo.data.split import parse_split, sliced
from visgrpo.data.table import IGNORE_INDEX, Splits, Table
from visgrpo.errors import UserError
from visgrpo.measures import evaluate_logits, scalar_measures
from visgrpo.measures.decisions import fit_biases
from visgrpo.measures.masks import HeldOutMasks, colour_mask
from visgrpo.measures.over import logits_of, outputs_of
from visgrpo.measures.probes import Labelled, feature_measures
from visgrpo.models.backbone import Backbone, Pool, RepresentationClassifier, Segmenter
from visgrpo.models.load import load_backbone, load_representation
from visgrpo.models.parts import read_info
from visgrpo.tasks.images import write_png
from visgrpo.tasks.use import (
    MEAN_IOU,
    decided,
    division_of,
    kind_of,
    models_of,
    rows_of,
    splits_of,
    weakest_images,
)
from visgrpo.tasks.use_options import EvaluateConfig, PredictConfig
from visgrpo.terminal import say
from visgrpo.training.processes import Processes

DEFAULT_FOLDER = "masks"
BYTE_CLASSES = 256
"""Class ids that an 8-bit picture holds; for more, masks have 16 bits."""


class Evaluation:
    """The measures of a head, those of features by probes, and both on shifted copies.

    The train and validation rows are loaded only where probes are fitted.
    """

    def __init__(self, config: EvaluateConfig, processes: Processes) -> None:
        self._config, self._processes = config, processes
        self._pool: Pool = config.pool or read_info(config.model).get("pool", "cls")
        self._splits: Splits | None = None
        self._start_MK: Tensor | None = None
        heads = {folder: _head_classes(folder) for _, folder in models_of(config)}
        rows = rows_of(config) if all(heads.values()) and not config.probe else None
        if rows is None or not all(_same_names(head, rows.classes) for head in heads.values()):
            rows = self._rows_for_probes(heads)
        self._rows = rows
        self.title = f"{rows.name}, {len(rows)} images"

    def measures(self, row: str, name: str) -> dict[str, Any]:
        encoder = Encoder(name, self._pool, self._config.batch_size, self._processes)
        rows, labels_M = self._rows, torch.from_numpy(self._rows.labels)
        features_MP = encoder.features(rows)
        logits_MK = encoder.answers(features_MP, rows)
        if row == "start":
            self._start_MK = logits_MK
        measures: dict[str, Any] = {}
        more: dict[str, Any] = {}
        if logits_MK is not None:
            more = decided(self._config, row, rows, logits_MK, encoder.logits)
            measures |= evaluate_logits(logits_MK, labels_M, rows.classes, self._start_MK)
            measures |= weakest_images(logits_MK, rows)
        probed: dict[str, Any] = {}
        if self._splits is not None:
            for split in ("train", "validation"):
                part = getattr(self._splits, split)
                probed[split] = Labelled(encoder.features(part), torch.from_numpy(part.labels))
            probed |= {"classes": len(rows.classes), "device": self._processes.device}
            probes = tuple(dict.fromkeys(self._config.probe)) or ("knn", "softmax-regression")
            test = Labelled(features_MP, labels_M)
            measures |= feature_measures(**probed, test=test, probes=probes)
        for shift in dict.fromkeys(self._config.shifts):
            copy = shifted(rows, shift, seed=division_of(self._config)["seed"])
            copy_MP = encoder.features(copy)
            copy_MK = encoder.answers(copy_MP, copy)
            measures.setdefault("shifts", {})[shift] = (
                feature_measures(**probed, test=Labelled(copy_MP, labels_M), probes=("knn",))
                if copy_MK is None
                else scalar_measures(copy_MK, labels_M)
            )
        return {row: measures | more.pop(row, {}), **more}

    def _rows_for_probes(self, heads: dict[str, tuple[str, ...]]) -> Table:
        config = self._config
        split, chosen = parse_split(config.split)
        if split != "test":
            raise UserError(
                "Features are judged by probes, which learn from the train rows and choose by the "
                f"validation rows: give --split test, perhaps sliced, not {config.split}."
            )
        self._splits = splits_of(config)
        rows = sliced(self._splits.test, chosen)
        for folder, classes in heads.items():
            if classes and self._processes.is_main and not _same_names(classes, rows.classes):
                line = f"note: {config.data} has other classes than the head of {folder}: only its "
                say(f"{line}features are measured.")
        return rows


class Encoder:
    """A backbone with the head that it was saved with, if that is for whole images.

    Args:
        pool: of a backbone without a head; a head has its own.
    """

    def __init__(self, name: str, pool: Pool, batch_size: int, processes: Processes) -> None:
        self._batch_size, self._processes = batch_size, processes
        self._head: RepresentationClassifier | None = None
        if kind_of(name) == "classification":
            model, parts = load_representation(name)
            self._head = cast(RepresentationClassifier, model).to(processes.device)
            self._head.inputs_are_features = True
            backbone, pool = self._head.backbone, self._head.pool
        else:
            parts = load_backbone(name)
            backbone = Backbone(parts.model).to(processes.device).eval()
        self._preprocess = parts.preprocess
        self._pooled = partial(backbone.pooled, pool=pool)

    def features(self, dataset: Table) -> Tensor:
        """Return features (M, P), float32 on the CPU."""
        inputs = PixelInputs(dataset, self._preprocess)
        size = self._batch_size
        return outputs_of(self._pooled, dataset, inputs, self._processes, batch_size=size).float()

    def logits(self, dataset: Table) -> Tensor:
        """Return logits (M, K) of images that the head is known to answer."""
        logits_MK = self.answers(self.features(dataset), dataset)
        assert logits_MK is not None
        return logits_MK

    def answers(self, features_MP: Tensor, dataset: Table) -> Tensor | None:
        """Return logits (M, K) in the order of the data's classes; None without a head for them."""
        if self._head is None or not _same_names(self._head.classes, dataset.classes):
            return None
        inputs, size = CachedInputs(features_MP), self._batch_size
        logits_MK = logits_of(self._head, dataset, inputs, self._processes, batch_size=size)
        return logits_MK[:, [self._head.classes.index(name) for name in dataset.classes]]


def _head_classes(folder: str) -> tuple[str, ...]:
    """Return the classes that a head for whole images answers; empty without one."""
    return tuple(read_info(folder)["classes"]) if kind_of(folder) == "classification" else ()


def _same_names(classes: tuple[str, ...], others: tuple[str, ...]) -> bool:
    return sorted(classes) == sorted(others)


class MaskEvaluation:
    """The measures of masks at every labelled pixel."""

    def __init__(self, config: EvaluateConfig, processes: Processes) -> None:
        info = read_info(config.model)
        stored = info.get("ignore_index", IGNORE_INDEX)
        ignored = stored if config.ignore_index is None else config.ignore_index
        size = config.image_size or info.get("image_size")
        self._size = tuple(size) if size else None
        names = config.classes_file
        self._dataset = rows_of(config, "masks", classes_file=names, ignore_index=ignored)
        self._config, self._processes = config, processes
        self.title = f"{self._dataset.name}, {len(self._dataset)} images"

    def measures(self, row: str, name: str) -> dict[str, Any]:
        model, parts = load_representation(name)
        _check_classes(name, model.classes, self._dataset)
        segmenter = cast(Segmenter, model).to(self._processes.device)
        preprocess, processes = parts.preprocess.for_dense(self._size), self._processes

        def held(rows: Table) -> HeldOutMasks:
            return HeldOutMasks(segmenter, rows, SegmentationInputs(rows, preprocess), processes)

        found = {row: held(self._dataset).now()}
        if self._config.fit_biases:
            names = self._config.classes_file
            ignored = self._dataset.ignore_index
            splits = splits_of(self._config, "masks", classes_file=names, ignore_index=ignored)
            biases_K = fit_biases(*held(splits.validation).some_pixels(), MEAN_IOU)
            biased = replace(held(self._dataset), biases_K=biases_K)
            found[f"{row}, biases"] = biased.now()
        return found


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


class MaskPrediction:
    """A mask of class ids and an overlay in colours for each image, at the image's size.

    An answer holds the `top_k` classes that have most of the pixels, with their shares; classes
    without a pixel are left out.
    """

    def __init__(self, config: PredictConfig, processes: Processes) -> None:
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
    write_png(place.mask, Image.fromarray(ids_HW.astype(dtype)))
    write_png(place.overlay, Image.blend(image, colour_mask(ids_HW, classes), 0.5))
