"""Evaluate a backbone with a head for masks: part of `visgrpo evaluate`."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any, cast

import numpy as np

from visgrpo.data.inputs import SegmentationInputs
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.segmentation import IGNORE_INDEX, SegmentationDataset
from visgrpo.data.segmentation_sources import load_segmentation_split, load_segmentation_splits
from visgrpo.data.splitting import parse_split
from visgrpo.errors import UserError
from visgrpo.measures.held_out_masks import HeldOutMasks
from visgrpo.models.loading import read_info
from visgrpo.models.representation import Segmenter
from visgrpo.models.representation_saving import load_representation
from visgrpo.tasks.evaluate_shared import division_of, models_of, show
from visgrpo.tasks.model_kinds import IN_WORDS, kind_of
from visgrpo.tasks.use_configs import EvaluateConfig
from visgrpo.training.processes import Processes


def evaluate_segmenter(config: EvaluateConfig, processes: Processes) -> dict[str, Any]:
    """Measure a backbone with a head for masks at every labelled pixel.

    Returns:
        The measures of `HeldOutMasks` under ``model`` and, with a start, under ``start``.

    Raises:
        UserError: for data or a start that cannot be used, or whose classes differ.
    """
    info = read_info(config.model)
    stored = info.get("ignore_index", IGNORE_INDEX)
    dataset = _masks(config, stored if config.ignore_index is None else config.ignore_index)
    size = config.image_size or info.get("image_size")
    results: dict[str, Any] = {}
    for name, folder in models_of(config):
        segmenter, preprocess = _load_segmenter(folder, dataset)
        segmenter.to(processes.device)
        inputs = SegmentationInputs(dataset, preprocess.for_dense(tuple(size) if size else None))
        results[name] = HeldOutMasks(segmenter, dataset, inputs, processes).now()
    show(results, config, f"{dataset.name}, {len(dataset)} images")
    return results


def _masks(config: EvaluateConfig, ignore_index: int) -> SegmentationDataset:
    division = division_of(config)
    settings: dict[str, Any] = {
        "image_column": config.image_column,
        "mask_column": config.mask_column,
        "classes_file": config.classes_file,
        "ignore_index": ignore_index,
        "skip_bad_images": config.skip_bad_images,
        "validation_fraction": division.validation_fraction,
        "seed": division.seed,
    }
    name, rows = parse_split(config.split)
    if name == "validation" and division.train_slice is not None:
        splits = load_segmentation_splits(config.data, train_slice=division.train_slice, **settings)
        return splits.validation.subset(np.arange(len(splits.validation))[rows])
    return load_segmentation_split(config.data, config.split, **settings)


def _load_segmenter(folder: str, dataset: SegmentationDataset) -> tuple[Segmenter, Preprocess]:
    kind = kind_of(folder)
    if kind != "segmentation":
        raise UserError(
            f'--start "{folder}" is {IN_WORDS[kind]}: it answers no masks. Give one with a '
            "segmentation head, or leave --start out."
        )
    model, parts = load_representation(folder)
    _check_classes(folder, model.classes, dataset)
    return cast(Segmenter, model), parts.preprocess


def _check_classes(folder: str, classes: tuple[str, ...], dataset: SegmentationDataset) -> None:
    for k, (ours, theirs) in enumerate(zip_longest(classes, dataset.classes, fillvalue="nothing")):
        if ours != theirs:
            raise UserError(
                f'Class {k} is "{ours}" to the head of "{folder}" and "{theirs}" in '
                f"{dataset.name}: give data with the head's classes in their order, or name them "
                "with --classes-file."
            )
