"""Save a classifier so that plain transformers (and peft) load it, with a card of its numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visgrpo.models.clip import ClipClassifier
from visgrpo.models.loading import INFO_FILE, ClipParts
from visgrpo.models.quiet import without_progress_bars


def save_classifier(
    classifier: ClipClassifier, parts: ClipParts, folder: Path, card: str, info: Mapping[str, Any]
) -> None:
    """Write model, tokenizer, image processor, class names and model card into one folder.

    Adapters are merged, so that ``CLIPModel.from_pretrained(folder)`` is the tuned model.
    """
    save_parts(plain_model(classifier), parts, folder, card, {**_own_info(classifier), **info})


def save_adapter(classifier: ClipClassifier, folder: Path) -> None:
    """Write the adapter alone, to be put on the start with ``PeftModel.from_pretrained``.

    Class names and templates go beside it: it is evaluated with the prompts it was tuned on.
    """
    classifier.encoder.save_pretrained(str(folder), save_embedding_layers=False)
    write_info(folder, _own_info(classifier))


def save_parts(
    model: Any, parts: ClipParts, folder: Path, card: str, info: Mapping[str, Any]
) -> None:
    """Write a dual encoder with what belongs to it."""
    with without_progress_bars():
        model.save_pretrained(folder)
    parts.tokenizer.save_pretrained(folder)
    parts.processor.save_pretrained(folder)
    write_info(folder, info)
    (folder / "README.md").write_text(card, encoding="utf-8")


def plain_model(classifier: ClipClassifier) -> Any:
    """Return the transformers model with adapters merged in; the classifier stays as it is."""
    return merged(classifier.encoder) if classifier.has_adapter else classifier.backbone


def merged(encoder: Any) -> Any:
    """Return a peft model's transformers model with the adapters merged into a copy."""
    return copy.deepcopy(encoder).merge_and_unload()


def write_info(folder: Path, info: Mapping[str, Any]) -> None:
    """Write what visgrpo knows of a model beside it."""
    text = json.dumps(info, indent=1, ensure_ascii=False)
    (folder / INFO_FILE).write_text(text, encoding="utf-8")


def _own_info(classifier: ClipClassifier) -> dict[str, Any]:
    return {"classes": list(classifier.classes), "templates": list(classifier.templates)}
