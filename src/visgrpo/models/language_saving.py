"""Save a language model so that plain transformers (and peft) loads it and knows where to stop."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visgrpo.models.quiet import without_progress_bars
from visgrpo.models.saving import merged, write_info

_TASK = {"task": "language"}


def save_language(
    model: Any, tokenizer: Any, folder: Path, card: str, info: Mapping[str, Any]
) -> None:
    """Write model, generation settings, tokenizer, what visgrpo knows and a card into one folder.

    Adapters are merged into a copy, so that ``AutoModelForCausalLM.from_pretrained(folder)`` is the
    tuned model; its ``generate`` stops at the tokenizer's end token.
    """
    plain = merged(model) if hasattr(model, "peft_config") else model
    with without_progress_bars():
        plain.save_pretrained(folder)
    generation_settings(plain, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_info(folder, {**_TASK, **info})
    (folder / "README.md").write_text(card, encoding="utf-8")


def save_language_adapter(model: Any, folder: Path) -> None:
    """Write the adapter alone, to be put on the start with ``PeftModel.from_pretrained``."""
    model.save_pretrained(str(folder), save_embedding_layers=False)
    write_info(folder, _TASK)


def generation_settings(model: Any, tokenizer: Any) -> Any:
    """Return a model's generation settings, with the tokenizer's end and padding where unset."""
    settings = copy.deepcopy(model.generation_config)
    if settings.eos_token_id is None:
        settings.eos_token_id = tokenizer.eos_token_id
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    return settings
