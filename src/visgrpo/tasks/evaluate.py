"""Evaluate a saved model on any data set: `visgrpo evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from visgrpo.data.dataset import ImageDataset
from visgrpo.data.inputs import pixel_inputs
from visgrpo.measures import evaluate_logits, interpolate
from visgrpo.measures.agreement import agreement
from visgrpo.measures.zero_shot import predict_logits
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.loading import ClipParts, load_clip, model_folder
from visgrpo.models.prompts import DEFAULT_TEMPLATES, class_prompts
from visgrpo.tasks.evaluate_backbone import evaluate_classifier
from visgrpo.tasks.evaluate_language import evaluate_language, evaluate_reward
from visgrpo.tasks.evaluate_masks import evaluate_segmenter
from visgrpo.tasks.evaluate_shared import labelled_rows, models_of, show
from visgrpo.tasks.evaluate_vlm import evaluate_vlm
from visgrpo.tasks.extension import votes_on
from visgrpo.tasks.model_kinds import kind_of, refuse_other_options
from visgrpo.tasks.use_configs import EvaluateConfig
from visgrpo.training.processes import Processes


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Return the measures of a model, of the start, and of weights between the two.

    Keys are ``model``, ``start`` and ``alpha=…``; those that were asked for.

    Raises:
        UserError: for a model or data set that cannot be used, and options that do not go with it.
    """
    config.check()
    start = model_folder(config.start) if config.start else None
    config = replace(config, model=model_folder(config.model), start=start)
    kinds = {row: kind_of(name) for row, name in models_of(config)}
    kind = kinds["model"]
    refuse_other_options(config, kind)
    processes = Processes(config.device)
    if kind == "clip":
        return _evaluate_clip(config, processes)
    if kind == "segmentation":
        return evaluate_segmenter(config, processes)
    if kind == "language":
        return evaluate_language(config, processes)
    if kind == "reward":
        return evaluate_reward(config, processes)
    if kind == "vision-language":
        return evaluate_vlm(config, processes)
    return evaluate_classifier(config, processes)


def _evaluate_clip(config: EvaluateConfig, processes: Processes) -> dict[str, Any]:
    dataset = labelled_rows(config)
    parts = load_clip(config.model)
    templates = config.templates or tuple(parts.info.get("templates", DEFAULT_TEMPLATES))
    class_prompts(dataset.classes, templates)
    votes_MK = votes_on(dataset, config.votes) if config.votes else None
    evaluator = _Evaluator(parts, dataset, templates, processes, config.batch_size, votes_MK)
    start = load_clip(config.start) if config.start else None
    start_logits = evaluator.logits(start.model) if start else None
    results: dict[str, Any] = {}
    if start_logits is not None:
        results["start"] = evaluator.measures(start_logits, start_logits)
    results["model"] = evaluator.measures(evaluator.logits(parts.model), start_logits)
    if config.alpha and start is not None:
        between = _Weights(start.model.state_dict(), parts.model)
        for alpha in config.alpha:
            logits = evaluator.logits(between.at(alpha))
            results[f"alpha={alpha:g}"] = evaluator.measures(logits, start_logits)
    show(results, config, f"{dataset.name}, {len(dataset)} images")
    return results


class _Evaluator:
    """One data set and its prompts, for several sets of weights of one architecture."""

    def __init__(
        self,
        parts: ClipParts,
        dataset: ImageDataset,
        templates: tuple[str, ...],
        processes: Processes,
        batch_size: int,
        votes_MK: Tensor | None = None,
    ) -> None:
        self._parts, self._dataset, self._templates = parts, dataset, templates
        self._processes, self._batch_size = processes, batch_size
        self._votes_MK = votes_MK
        self._inputs = pixel_inputs(dataset, parts.preprocess)

    def logits(self, model: Any) -> Tensor:
        tokenizer = self._parts.tokenizer
        classifier = ClipClassifier(model, tokenizer, self._dataset.classes, self._templates)
        classifier.to(self._processes.device)
        return predict_logits(
            classifier, self._dataset, self._inputs, self._processes, batch_size=self._batch_size
        )

    def measures(self, logits_MK: Tensor, start_logits_MK: Tensor | None) -> dict[str, Any]:
        labels_M = torch.from_numpy(self._dataset.labels)
        measures = evaluate_logits(logits_MK, labels_M, self._dataset.classes, start_logits_MK)
        if self._votes_MK is not None:
            measures.update(agreement(logits_MK, self._votes_MK, labels_M))
        return measures


class _Weights:
    """Weights between a start and an end, put into the end's own model one after the other."""

    def __init__(self, start: Mapping[str, Tensor], model: Any) -> None:
        self._start = {name: tensor.cpu().clone() for name, tensor in start.items()}
        self._end = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
        self._model = model

    def at(self, alpha: float) -> Any:
        self._model.load_state_dict(interpolate(self._start, self._end, alpha))
        return self._model
