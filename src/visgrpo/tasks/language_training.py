"""What the stages of `visgrpo language` that train a language model share: its start and end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from visgrpo.models.adapt_language import adapt_language
from visgrpo.models.card import language_card
from visgrpo.models.language import Critic, LanguageModel
from visgrpo.models.language_loading import LanguageParts
from visgrpo.models.language_saving import save_language, save_language_adapter
from visgrpo.tasks.language_config import LanguageConfig
from visgrpo.tasks.language_setup import info_of
from visgrpo.tasks.session import Session


def adapted(
    config: LanguageConfig, parts: LanguageParts, session: Session, critic: Critic | None = None
) -> LanguageModel:
    """Return the start with what trains of it chosen, on the device."""
    torch.manual_seed(config.seed)  # the adapters' start
    lm = adapt_language(
        parts.model, lora=config.lora, rank=config.lora_rank, alpha=config.lora_alpha, dropout=0.0
    )
    return LanguageModel(lm, critic).to(session.processes.device)


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
