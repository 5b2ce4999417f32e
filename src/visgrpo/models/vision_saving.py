"""Save a vision-language model so that plain transformers (and peft) loads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visgrpo.models.language_saving import generation_settings
from visgrpo.models.quiet import without_progress_bars
from visgrpo.models.saving import merged, write_info
from visgrpo.models.vision_processor import VisionProcessor

_TASK = {"task": "vision-language"}


def save_vision_language(
    model: Any, processor: VisionProcessor, folder: Path, card: str, info: Mapping[str, Any]
) -> None:
    """Write model, generation settings, tokenizer, image processor and a card into one folder.

    Adapters are merged into a copy, so that
    ``AutoModelForImageTextToText.from_pretrained(folder)`` is the tuned model.
    """
    plain = merged(model) if hasattr(model, "peft_config") else model
    with without_progress_bars():
        plain.save_pretrained(folder)
    generation_settings(plain, processor.tokenizer).save_pretrained(folder)
    processor.save(folder)
    write_info(folder, {**_TASK, **info})
    (folder / "README.md").write_text(card, encoding="utf-8")


def save_vision_language_adapter(model: Any, folder: Path) -> None:
    """Write the adapter alone, to be put on the start with ``PeftModel.from_pretrained``."""
    model.save_pretrained(str(folder), save_embedding_layers=False)
    write_info(folder, _TASK)
