"""Save a model so that plain transformers (and peft) loads it, with a card of its numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from visgrpo.models.clip import ClipClassifier
from visgrpo.models.load import HEAD_FILE
from visgrpo.models.parts import INFO_FILE, Parts, without_progress_bars
from visgrpo.models.representation import RepresentationClassifier, Segmenter
from visgrpo.models.reward_model import RewardModel, with_own_padding
from visgrpo.models.vision_families import SEEING


def save(
    model: Any, parts: Parts, folder: Path, card: str = "", info: Mapping[str, Any] = {}
) -> None:
    """Write a model with all that belongs to it into one folder.

    That is the model with adapters merged into a copy, so that transformers' own
    ``from_pretrained(folder)`` gives the tuned model; generation settings that stop at the end
    token; tokenizer, image processor, a head over classes, what visgrpo knows, and a card. A reward
    model's tokenizer pads as plain transformers needs it to give the same scores.

    Args:
        model: one of ours, or the transformers or peft model itself.
        parts: what was loaded with its start.
        info: of the run; of a reward model ``reward_mean`` and ``reward_std`` are in it.
    """
    plain = merged(_encoder(model))
    with without_progress_bars():
        plain.save_pretrained(folder)
    if plain.can_generate():
        generation_settings(plain, parts.tokenizer).save_pretrained(folder)
    scores = isinstance(model, RewardModel)
    tokenizer = with_own_padding(parts.tokenizer) if scores else parts.tokenizer
    for part in (tokenizer, parts.processor):
        if part is not None:
            part.save_pretrained(folder)
    write_info(folder, {**_own_info(model), **info})
    (folder / "README.md").write_text(card, encoding="utf-8")
    if isinstance(model, RepresentationClassifier | Segmenter):
        head = {name: t.detach().contiguous().cpu() for name, t in model.head.state_dict().items()}
        save_file(head, folder / HEAD_FILE)


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter alone, to be put on the start with ``PeftModel.from_pretrained``.

    What visgrpo knows goes beside it: a classifier is evaluated with the prompts it was tuned on.
    """
    _encoder(model).save_pretrained(str(folder), save_embedding_layers=False)
    write_info(folder, _own_info(model))


def merged(encoder: Any) -> Any:
    """Return the transformers model of a peft model with the adapters merged into a copy.

    Any other model is returned as it is.
    """
    has_adapter = hasattr(encoder, "peft_config")
    return copy.deepcopy(encoder).merge_and_unload() if has_adapter else encoder


def write_info(folder: Path, info: Mapping[str, Any]) -> None:
    """Write what visgrpo knows of a model beside it."""
    text = json.dumps(info, indent=1, ensure_ascii=False)
    (folder / INFO_FILE).write_text(text, encoding="utf-8")


def generation_settings(model: Any, tokenizer: Any) -> Any:
    """Return a model's generation settings, with the tokenizer's end and padding where unset."""
    settings = copy.deepcopy(model.generation_config)
    if settings.eos_token_id is None:
        settings.eos_token_id = tokenizer.eos_token_id
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    return settings


def _encoder(model: Any) -> Any:
    """Return the transformers model of one of ours, in its adapters if it has them."""
    if isinstance(model, RepresentationClassifier | Segmenter):
        return model.backbone.encoder
    if isinstance(model, ClipClassifier):
        return model.encoder
    return model.scorer if isinstance(model, RewardModel) else model


def _own_info(model: Any) -> dict[str, Any]:
    """Return what the kind of a model says of it."""
    if isinstance(model, ClipClassifier):
        return {"classes": list(model.classes), "templates": list(model.templates)}
    if isinstance(model, Segmenter):
        classes = list(model.classes)
        return {"task": "segmentation", "classes": classes, "hidden": model.hidden}
    if isinstance(model, RepresentationClassifier):
        own = {"classes": list(model.classes), "hidden": model.hidden, "pool": model.pool}
        return {"task": "classification", **own}
    if isinstance(model, RewardModel):
        return {"task": "reward"}
    if model.can_generate():
        return {"task": "vision-language" if model.config.model_type in SEEING else "language"}
    return {}
