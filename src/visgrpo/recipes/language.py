"""The nano language model: `visgrpo language`."""

from __future__ import annotations

from typing import Any

from visgrpo.recipes.language_config import LanguageConfig
from visgrpo.recipes.language_sft import train_sft


def train_language(config: LanguageConfig) -> Any:
    """Run the stage, or all of them, that the config asks for."""
    config.check()
    return train_sft(config)
