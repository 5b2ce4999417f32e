"""Evaluate a backbone on labelled images, by its head or by probes: part of `visgrpo evaluate`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from visgrpo.data.batches import CachedInputs
from visgrpo.data.dataset import ImageDataset, Splits
from visgrpo.data.inputs import PixelInputs
from visgrpo.data.shifts import shifted
from visgrpo.data.splitting import parse_split, sliced
from visgrpo.errors import UserError
from visgrpo.measures import evaluate_logits, scalar_measures
from visgrpo.measures.backbone import feature_measures
from visgrpo.measures.probes import Labelled
from visgrpo.measures.zero_shot import predict_logits, run_over
from visgrpo.models.backbone import Backbone, Pool
from visgrpo.models.backbone_loading import load_backbone
from visgrpo.models.loading import read_info
from visgrpo.models.representation import RepresentationClassifier
from visgrpo.models.representation_saving import load_representation
from visgrpo.tasks.evaluate_shared import (
    division_of,
    labelled_rows,
    labelled_splits,
    models_of,
    show,
)
from visgrpo.tasks.model_kinds import kind_of
from visgrpo.tasks.use_configs import EvaluateConfig
from visgrpo.training.processes import Processes


def evaluate_classifier(config: EvaluateConfig, processes: Processes) -> dict[str, Any]:
    """Measure a backbone's head, or its features where it has none that answers these classes.

    Returns:
        The measures of `evaluate_logits`, those of `feature_measures` and "shifts", as asked for,
        under ``model`` and, with a start, under ``start``.

    Raises:
        UserError: for data or a start that cannot be used.
    """
    data = _load_data(config, processes)
    pool: Pool = config.pool or read_info(config.model).get("pool", "cls")
    results: dict[str, Any] = {}
    start_logits_MK = None
    for name, folder in models_of(config):
        encoder = _Encoder(folder, pool, config.batch_size, processes)
        features_MP = encoder.features(data.rows)
        logits_MK = encoder.answers(features_MP, data.rows)
        if name == "start":
            start_logits_MK = logits_MK
        results[name] = _measures(encoder, features_MP, logits_MK, start_logits_MK, data)
    show(results, config, f"{data.rows.name}, {len(data.rows)} images")
    return results


@dataclass(frozen=True)
class _Data:
    """The rows to report on, and what is to be found out about them.

    Attributes:
        splits: what probes learn from; None where only heads are asked.
        probes: those to fit.
        shifts: copies to evaluate on, too.
        seed: of their noise.
    """

    rows: ImageDataset
    splits: Splits | None
    probes: tuple[str, ...]
    shifts: tuple[str, ...]
    seed: int


class _Encoder:
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

    @property
    def device(self) -> torch.device:
        return self._processes.device

    def features(self, dataset: ImageDataset) -> Tensor:
        """Return features (M, P), float32 on the CPU."""
        inputs = PixelInputs(dataset, self._preprocess)
        return run_over(
            self._pooled, dataset, inputs, self._processes, batch_size=self._batch_size
        ).float()

    def answers(self, features_MP: Tensor, dataset: ImageDataset) -> Tensor | None:
        """Return logits (M, K) in the order of the data's classes; None without a head for them."""
        if self._head is None or not _same_names(self._head.classes, dataset.classes):
            return None
        logits_MK = predict_logits(
            self._head,
            dataset,
            CachedInputs(features_MP),
            self._processes,
            batch_size=self._batch_size,
        )
        return logits_MK[:, [self._head.classes.index(name) for name in dataset.classes]]


def _measures(
    encoder: _Encoder,
    features_MP: Tensor,
    logits_MK: Tensor | None,
    start_logits_MK: Tensor | None,
    data: _Data,
) -> dict[str, Any]:
    rows, labels_M = data.rows, torch.from_numpy(data.rows.labels)
    measures: dict[str, Any] = {}
    if logits_MK is not None:
        measures |= evaluate_logits(logits_MK, labels_M, rows.classes, start_logits_MK)
    probed: dict[str, Any] = {}
    if data.splits is not None:
        for name in ("train", "validation"):
            part = getattr(data.splits, name)
            probed[name] = Labelled(encoder.features(part), torch.from_numpy(part.labels))
        probed |= {"classes": len(rows.classes), "device": encoder.device}
        test = Labelled(features_MP, labels_M)
        measures |= feature_measures(**probed, test=test, probes=data.probes)
    for shift in data.shifts:
        copy = shifted(rows, shift, seed=data.seed)
        copy_MP = encoder.features(copy)
        copy_MK = encoder.answers(copy_MP, copy)
        measures.setdefault("shifts", {})[shift] = (
            feature_measures(**probed, test=Labelled(copy_MP, labels_M), probes=("knn",))
            if copy_MK is None
            else scalar_measures(copy_MK, labels_M)
        )
    return measures


def _load_data(config: EvaluateConfig, processes: Processes) -> _Data:
    """Load the rows to report on; the train and validation rows, too, where probes are fitted."""
    shifts = tuple(dict.fromkeys(config.shifts))
    seed = division_of(config).seed
    heads = {folder: _head_classes(folder) for _, folder in models_of(config)}
    if all(heads.values()) and not config.probe:
        rows = labelled_rows(config)
        if all(_same_names(classes, rows.classes) for classes in heads.values()):
            return _Data(rows, None, (), shifts, seed)
    name, chosen = parse_split(config.split)
    if name != "test":
        raise UserError(
            "Features are judged by probes, which learn from the train rows and choose by the "
            f"validation rows: give --split test, perhaps sliced, not {config.split}."
        )
    splits = labelled_splits(config)
    rows = sliced(splits.test, chosen)
    for folder, classes in heads.items():
        if classes and processes.is_main and not _same_names(classes, rows.classes):
            line = f"note: {config.data} has other classes than the head of {folder}: only its "
            print(f"{line}features are measured.", file=sys.stderr)
    probes = tuple(dict.fromkeys(config.probe)) or ("knn", "softmax-regression")
    return _Data(rows, splits, probes, shifts, seed)


def _head_classes(folder: str) -> tuple[str, ...]:
    """Return the classes that a head for whole images answers; empty without one."""
    return tuple(read_info(folder)["classes"]) if kind_of(folder) == "classification" else ()


def _same_names(classes: tuple[str, ...], others: tuple[str, ...]) -> bool:
    return sorted(classes) == sorted(others)
