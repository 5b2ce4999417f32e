"""What saved CLIP models are measured by: their part of `visgrpo evaluate`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visgrpo.data.inputs import pixel_inputs
from visgrpo.measures import evaluate_logits, interpolate
from visgrpo.measures.agreement import agreement
from visgrpo.measures.over import logits_of
from visgrpo.models.clip import ClipClassifier, class_prompts
from visgrpo.models.load import load_clip
from visgrpo.tasks.evaluate import rows_of
from visgrpo.tasks.extension import votes_on
from visgrpo.tasks.labels import prompts_of
from visgrpo.tasks.use_configs import EvaluateConfig
from visgrpo.training.processes import Processes


class Evaluation:
    """One data set and its prompts, for several sets of weights of one architecture."""

    def __init__(self, config: EvaluateConfig, processes: Processes) -> None:
        self._config, self._processes = config, processes
        self._dataset = rows_of(config)
        self._parts = load_clip(config.model)
        self._templates = prompts_of(self._parts, config.templates)
        class_prompts(self._dataset.classes, self._templates)
        self._votes_MK = votes_on(self._dataset, config.votes) if config.votes else None
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
        if row == "model" and self._config.alpha:
            end = _weights(model)
            for alpha in self._config.alpha:
                model.load_state_dict(interpolate(self._start_weights, end, alpha))
                rows[f"alpha={alpha:g}"] = self._measures(self._logits(model))
        return rows

    def _logits(self, model: Any) -> Tensor:
        classes, processes = self._dataset.classes, self._processes
        classifier = ClipClassifier(model, self._parts.tokenizer, classes, self._templates)
        classifier.to(processes.device)
        size = self._config.batch_size
        return logits_of(classifier, self._dataset, self._inputs, processes, batch_size=size)

    def _measures(self, logits_MK: Tensor) -> dict[str, Any]:
        labels_M = torch.from_numpy(self._dataset.labels)
        measures = evaluate_logits(logits_MK, labels_M, self._dataset.classes, self._start_MK)
        if self._votes_MK is not None:
            measures.update(agreement(logits_MK, self._votes_MK, labels_M))
        return measures


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
