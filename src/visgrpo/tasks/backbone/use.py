"""What saved backbones, with a head for whole images or none, are measured by in `evaluate`.

A backbone without a head, or with one for other classes, is judged by probes on its features.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from visgrpo.data.batches import CachedInputs
from visgrpo.data.inputs import PixelInputs, shifted
from visgrpo.data.split import parse_split, sliced
from visgrpo.data.table import Splits, Table
from visgrpo.errors import UserError
from visgrpo.measures import evaluate_logits, scalar_measures
from visgrpo.measures.over import logits_of, outputs_of
from visgrpo.measures.probes import Labelled, feature_measures
from visgrpo.models.backbone import Backbone, Pool, RepresentationClassifier
from visgrpo.models.load import load_backbone, load_representation
from visgrpo.models.parts import read_info
from visgrpo.tasks.evaluate import division_of, models_of, rows_of, splits_of
from visgrpo.tasks.model_kinds import kind_of
from visgrpo.tasks.use_configs import EvaluateConfig
from visgrpo.training.processes import Processes


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
        encoder = _Encoder(name, self._pool, self._config.batch_size, self._processes)
        rows, labels_M = self._rows, torch.from_numpy(self._rows.labels)
        features_MP = encoder.features(rows)
        logits_MK = encoder.answers(features_MP, rows)
        if row == "start":
            self._start_MK = logits_MK
        measures: dict[str, Any] = {}
        if logits_MK is not None:
            measures |= evaluate_logits(logits_MK, labels_M, rows.classes, self._start_MK)
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
        return {row: measures}

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
                print(f"{line}features are measured.", file=sys.stderr)
        return rows


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

    def features(self, dataset: Table) -> Tensor:
        """Return features (M, P), float32 on the CPU."""
        inputs = PixelInputs(dataset, self._preprocess)
        size = self._batch_size
        return outputs_of(self._pooled, dataset, inputs, self._processes, batch_size=size).float()

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
