"""What `representation` and `segmentation` share: objective, what trains, inputs, the head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visgrpo.data.batches import InputFunction, Rows
from visgrpo.data.preprocess import Preprocess
from visgrpo.errors import UserError
from visgrpo.measures.feature_cache import cached_features
from visgrpo.models.adapt_backbone import BackboneAdaptation, adapt_backbone
from visgrpo.models.backbone_loading import BackboneParts, load_backbone
from visgrpo.models.representation import RepresentationClassifier, Segmenter
from visgrpo.models.representation_saving import HEAD_FILE, load_representation
from visgrpo.objectives import Objective
from visgrpo.tasks.backbone_configs import BackboneRunConfig
from visgrpo.tasks.session import Session, training_options
from visgrpo.training.options import TrainingOptions

BackboneModel = RepresentationClassifier | Segmenter


def objective_of(config: BackboneRunConfig) -> Objective:
    """Return GRPO's objective with the options that override it."""
    return Objective(
        scale=config.scale, epsilon_low=config.epsilon_low, epsilon_high=config.epsilon_high
    )


def options_of(config: BackboneRunConfig, train: Any, session: Session) -> TrainingOptions:
    """Return the trainer's options, checked for this number of processes."""
    supervised = config.method == "supervised"
    options = training_options(
        config,
        config.resolved_learning_rate(),
        train,
        inner_passes=config.inner_passes,
        minibatches=config.minibatches,
        # Cross-entropy asks no old model.
        refresh_every=1 if supervised else config.refresh_steps(len(train) // config.batch_size),
    )
    options.check(session.processes.world_size)
    return options


def adapt(model: BackboneModel, config: BackboneRunConfig, session: Session) -> None:
    """Choose what of the backbone trains, and bring the model to the device. In place.

    Raises:
        UserError: for a choice that this backbone, or this number of processes, cannot follow.
    """
    choice = BackboneAdaptation(
        train=config.train,
        last_blocks=config.last_blocks,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
    )
    torch.manual_seed(config.seed)  # the adapters' start
    adapt_backbone(model, choice)
    if session.processes.world_size > 1 and _keeps_batch_statistics(model):
        raise UserError(
            f"--train {config.train}: this {model.backbone.plain.config.model_type} normalises by "
            "the statistics of a batch, and every process would have its own: run it in one "
            "process, or take --train frozen."
        )
    model.to(session.processes.device)


def rate_of(config: BackboneRunConfig) -> Callable[[str], float]:
    """Return the share of the learning rate by the name of a parameter."""
    return lambda name: 1.0 if name.startswith("head.") else config.backbone_rate


def load_start(
    config: BackboneRunConfig,
    new: Callable[[BackboneParts], BackboneModel],
    session: Session,
) -> tuple[BackboneModel, BackboneParts, bool]:
    """Load the start; its own head is kept where it answers the same question.

    Args:
        new: puts a new head on a backbone.

    Returns:
        The model, its parts, and whether the head was kept.

    Raises:
        UserError: for a model that is not there or does not fit the job.
    """
    torch.manual_seed(config.seed)  # the head's start
    parts = load_backbone(config.model)
    model = new(parts)
    if not (Path(config.model) / HEAD_FILE).exists():
        return model, parts, False
    saved, saved_parts = load_representation(config.model)
    if _asks_the_same(saved, model):
        session.say(f"The head of {config.model} is kept.")
        return saved.train(), saved_parts, True
    session.say(f"note: the head of {config.model} has another task, classes or width: a new one.")
    return model, parts, False


def frozen_features(
    model: BackboneModel,
    dataset: Rows,
    inputs: InputFunction,
    preprocess: Preprocess,
    weights: str,
    config: BackboneRunConfig,
    session: Session,
) -> Tensor:
    """Return the features of a frozen backbone, (M, …), from the cache on disk where they are.

    Args:
        weights: `weights_key` of the backbone.
    """
    pool = model.pool if isinstance(model, RepresentationClassifier) else "dense"
    key = {
        "weights": weights,
        "model": model.backbone.plain.config.to_json_string(),
        "preprocess": repr(preprocess),
        "features": pool,
        "precision": config.precision,
    }
    folder = Path(config.cache).expanduser() if config.cache else None
    training = model.training
    model.eval()
    features_M = cached_features(
        model.features, dataset, inputs, session.processes, key=key, folder=folder
    )
    model.train(training)
    return features_M


def _keeps_batch_statistics(model: nn.Module) -> bool:
    """Whether training moves what is neither a weight nor the same in every process."""
    return any(isinstance(part, nn.BatchNorm2d) and part.training for part in model.modules())


def _asks_the_same(saved: BackboneModel, new: BackboneModel) -> bool:
    def question(model: BackboneModel) -> tuple[Any, ...]:
        pool = getattr(model, "pool", None)
        return type(model), model.classes, model.hidden, pool

    return question(saved) == question(new)
