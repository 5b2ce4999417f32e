"""What the stages of `visgrpo language` that train share: model, batches, the run, saving."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from visgrpo.data.batches import BatchLoader, CachedInputs, Rows
from visgrpo.models.adapt_language import adapt_language
from visgrpo.models.card import language_card
from visgrpo.models.language import Critic, LanguageModel
from visgrpo.models.language_loading import LanguageParts
from visgrpo.models.language_saving import save_language, save_language_adapter
from visgrpo.recipes.language_config import LanguageConfig
from visgrpo.recipes.language_setup import info_of
from visgrpo.recipes.session import Session, begin, loop_options
from visgrpo.training.method import Method
from visgrpo.training.options import TrainingOptions
from visgrpo.training.trainer import Trainer, TrainResult


def adapted(
    config: LanguageConfig, parts: LanguageParts, session: Session, critic: Critic | None = None
) -> LanguageModel:
    """Return the start with what trains of it chosen, on the device."""
    torch.manual_seed(config.seed)  # the adapters' start
    lm = adapt_language(
        parts.model, lora=config.lora, rank=config.lora_rank, alpha=config.lora_alpha, dropout=0.0
    )
    return LanguageModel(lm, critic).to(session.processes.device)


def options_of(config: LanguageConfig, session: Session) -> TrainingOptions:
    """Turn a resolved config into the trainer's options, and check them."""
    assert config.steps is not None
    assert config.batch_size is not None
    assert config.learning_rate is not None
    assert config.inner_passes is not None
    options = loop_options(
        config,
        config.steps,
        config.batch_size,
        config.learning_rate,
        inner_passes=config.inner_passes,
        minibatches=config.minibatches,
        refresh_every=config.refresh_every,
        silent_steps_allowed=config.silent_steps,
    )
    options.check(session.processes.world_size)
    return options


def loader_of(
    config: LanguageConfig, rows: Rows, inputs: CachedInputs, session: Session
) -> BatchLoader:
    """Return this process's training batches."""
    assert config.batch_size is not None
    return BatchLoader(
        rows,
        inputs,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=session.processes.rank,
        world_size=session.processes.world_size,
        blocks=config.minibatches,
    )


def learn(
    model: nn.Module,
    method: Method,
    loader: BatchLoader,
    options: TrainingOptions,
    session: Session,
    *,
    measures: Callable[[str], dict[str, float]],
    title: str,
    inputs_are: str,
) -> tuple[dict[str, float], TrainResult]:
    """Begin the run of a stage that learns from examples, and train.

    Args:
        measures: of a split; the weights of the lowest "nll" in validation are the best.

    Returns:
        The test split's measures at the start, and how the training went.
    """
    trainer = Trainer(
        model,
        method,
        loader,
        options,
        processes=session.processes,
        run=session.run,
        evaluate=lambda: measures("validation"),
        selection="-nll",
        title=title,
        inputs_are=inputs_are,
    )
    before = measures("test")
    begin(session, "language")
    session.start_trackers()
    return before, trainer.train(session.checkpoint)


def save_writer(
    model: LanguageModel,
    parts: LanguageParts,
    config: LanguageConfig,
    session: Session,
    summary: Mapping[str, Any],
) -> None:
    """Save the language model of a finished run, and its adapter where it has one."""
    folder, info = session.run.path / "model", info_of(config, parts)
    save_language(model.lm, parts.tokenizer, folder, language_card(summary), info)
    if model.has_adapter:
        save_language_adapter(model.lm, session.run.path / "adapter")
