"""The images of a representation run as its model sees them, and the measures of its features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visgrpo.data.batches import CachedInputs, InputFunction
from visgrpo.data.dataset import ImageDataset, Splits
from visgrpo.data.inputs import PixelInputs, pixel_inputs
from visgrpo.data.shifts import shifted
from visgrpo.measures.backbone import feature_measures, retention_measure
from visgrpo.measures.feature_cache import weights_key
from visgrpo.measures.held_out import logits_of, pooled_of
from visgrpo.measures.probes import Labelled
from visgrpo.models.adapt_backbone import backbone_is_frozen
from visgrpo.models.backbone_loading import BackboneParts
from visgrpo.models.representation import RepresentationClassifier
from visgrpo.tasks.backbone.shared import frozen_features
from visgrpo.tasks.backbone_configs import RepresentationConfig
from visgrpo.tasks.session import Session


class FeatureJob:
    """The data of a run as the model sees it, and the measures of its features."""

    def __init__(
        self,
        config: RepresentationConfig,
        session: Session,
        classifier: RepresentationClassifier,
        parts: BackboneParts,
        splits: Splits,
        retained: Mapping[str, Splits],
    ) -> None:
        self._config, self._session = config, session
        self._classifier, self._preprocess = classifier, parts.preprocess
        self._splits, self._retained = splits, retained
        self._frozen = backbone_is_frozen(classifier)
        self._weights = weights_key(classifier.backbone) if self._frozen else ""
        self._measured: dict[str, Any] | None = None
        # Where no pixel changes, the model takes features from here on.
        classifier.inputs_are_features = self._frozen and not config.augment
        if classifier.inputs_are_features:
            session.say("The backbone is frozen: its features are computed once.")

    def inputs(self, split: str) -> InputFunction:
        """What the model takes of a split: features that were computed once, or pixels."""
        dataset = getattr(self._splits, split)
        if self._classifier.inputs_are_features:
            return CachedInputs(self._features(dataset))
        augmentations = self._config.augment if split == "train" else ()
        return pixel_inputs(dataset, self._preprocess, augmentations)

    def feature_measures(self, inputs: Mapping[str, InputFunction]) -> dict[str, Any]:
        """Measure the backbone's features now; of a frozen one, only once."""
        probes = self._config.probes()
        if not probes:
            return {}
        if self._measured is not None and self._frozen:
            return self._measured
        parts = {
            name: Labelled(self._of_split(name, made), torch.from_numpy(self._labels(name)))
            for name, made in inputs.items()
        }
        classes = len(self._splits.train.classes)
        device = self._session.processes.device
        self._measured = feature_measures(**parts, classes=classes, probes=probes, device=device)
        return self._measured

    def shifts(self) -> dict[str, dict[str, float]]:
        """Measure the head on shifted test images."""
        measures: dict[str, dict[str, float]] = {}
        for name in dict.fromkeys(self._config.shifts):
            dataset = shifted(self._splits.test, name, seed=self._config.seed)
            if self._classifier.inputs_are_features:
                made: InputFunction = CachedInputs(self._features(dataset))
            else:
                made = PixelInputs(dataset, self._preprocess)
            logits_MK = logits_of(self._classifier, dataset, made, self._session.processes)
            right_M = logits_MK.argmax(dim=1) == torch.from_numpy(dataset.labels)
            measures[name] = {"accuracy": right_M.double().mean().item()}
        return measures

    def retention(self) -> dict[str, float]:
        """Measure the features by kNN on data sets that are not tuned on."""
        measures = {}
        for name, splits in self._retained.items():
            train, test = (
                Labelled(self._features(part), torch.from_numpy(part.labels))
                for part in (splits.train, splits.test)
            )
            measures[name] = retention_measure(train, test, classes=len(splits.train.classes))
        return measures

    def _features(self, dataset: ImageDataset, made: InputFunction | None = None) -> Tensor:
        """The backbone's features as they are now, (M, P)."""
        if made is None:
            made = PixelInputs(dataset, self._preprocess)
        if self._frozen:
            return frozen_features(
                self._classifier,
                dataset,
                made,
                self._preprocess,
                self._weights,
                self._config,
                self._session,
            )
        training = self._classifier.training
        self._classifier.eval()
        features_MD = pooled_of(self._classifier.features, dataset, made, self._session.processes)
        self._classifier.train(training)
        return features_MD

    def _of_split(self, split: str, made: InputFunction) -> Tensor:
        """The features of a split; made of the pixels at hand, unless those change from epoch to
        epoch."""
        if not isinstance(made, CachedInputs):
            return self._features(getattr(self._splits, split))
        if self._classifier.inputs_are_features:
            return made.inputs_M
        return self._features(getattr(self._splits, split), made)

    def _labels(self, split: str) -> np.ndarray:
        return getattr(self._splits, split).labels
