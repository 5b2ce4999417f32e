"""What differs between families of vision-language models: one class for each.

Every family has a tower that turns pixels into states, a bridge from states to features of the
language model's width, and a transformer that reads the features in the places of image tokens;
and a way of cutting images up and giving them places in a prompt.
"""

from __future__ import annotations

from typing import Any

from visgrpo.errors import UserError
from visgrpo.models.vision_families.base import VisionFamily
from visgrpo.models.vision_families.llava import NextVision, OneVision
from visgrpo.models.vision_families.qwen import (
    Qwen2Vision,
    Qwen3Vision,
    QwenVision,
    mrope_section,
)
from visgrpo.models.vision_families.tiles import GemmaVision, InternVision, TileVision

__all__ = ["SEEING", "VisionFamily", "family_of", "mrope_section", "with_images"]

_FAMILIES: dict[str, type[VisionFamily]] = {
    "qwen2_vl": Qwen2Vision,
    "qwen2_5_vl": QwenVision,
    "qwen3_vl": Qwen3Vision,
    "smolvlm": TileVision,
    "idefics3": TileVision,
    "internvl": InternVision,
    "gemma3": GemmaVision,
    "llava_next": NextVision,
    "llava_onevision": OneVision,
}
SEEING = tuple(_FAMILIES)  # by `model_type`


def family_of(model: Any) -> VisionFamily:
    """Return how a transformers model is used.

    Raises:
        UserError: for a kind of model that is not known here.
    """
    kind = model.config.model_type
    if kind not in _FAMILIES:
        raise UserError(
            f"A {kind} model is not known here as one that sees: take one of "
            f"{', '.join(_FAMILIES)}, or join a vision tower and a language model."
        )
    return _FAMILIES[kind]()


def with_images(config: Any, images: Any, tokenizer: Any) -> VisionFamily:
    """Return the family of a configuration's model, with its way with images.

    Raises:
        UserError: when image processor, tokenizer and model do not belong together.
    """
    return _FAMILIES[config.model_type].of(config, images, tokenizer)
