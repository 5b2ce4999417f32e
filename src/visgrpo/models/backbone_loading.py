"""Load a vision encoder, from a folder or the Hub: weights as safetensors only, in float32."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visgrpo.data.preprocess import Preprocess
from visgrpo.models.backbone import FAMILIES
from visgrpo.models.loading import check_model_name, in_one_line, load_weights, read_info

_DUAL_ENCODERS = ("clip", "siglip")
# A checkpoint may lack these: a ViT's pooler, and what masked pre-training puts into the input.
_UNUSED = re.compile(r"pooler\.|embeddings\.mask_token$")
_CONVNEXT_CROPS_BELOW = 384  # pixels: larger images are resized without a crop


@dataclass(frozen=True)
class BackboneParts:
    """A vision encoder with everything that belongs to it."""

    name: str
    model: Any  # of one of the families in `models.backbone`
    processor: Any  # a transformers image processor, or StoredSettings
    preprocess: Preprocess
    info: Mapping[str, Any] = field(default_factory=dict)  # what visgrpo saved beside it


@dataclass(frozen=True)
class StoredSettings:
    """Settings of an image processor that transformers builds only with torchvision."""

    settings: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.settings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the settings as they were read."""
        text = json.dumps(self.settings, indent=2, sort_keys=True)
        (Path(folder) / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")


def load_backbone(name: str) -> BackboneParts:
    """Load a vision encoder by folder or Hub name; of CLIP and SigLIP the image tower.

    Raises:
        UserError: when the model is not there, cannot be fetched, is of another kind, or lacks
            weights.
    """
    check_model_name(name)
    with in_one_line(name):
        model = load_weights(name, (*FAMILIES, *_DUAL_ENCODERS), may_lack=_UNUSED)
        processor = _load_processor(name)
    if model.config.model_type in _DUAL_ENCODERS:
        model = model.vision_model
    return BackboneParts(name, model, processor, preprocess_of(processor), read_info(name))


def preprocess_of(processor: Any) -> Preprocess:
    """Read an image processor's settings, ConvNeXt's crop fraction too.

    Raises:
        UserError: if a setting is not understood, by name.
    """
    settings = dict(processor.to_dict())
    fraction = settings.pop("crop_pct", None)
    edge = (settings.get("size") or {}).get("shortest_edge")
    if fraction is not None and edge is not None:  # what ConvNextImageProcessor makes of them
        square = {"height": edge, "width": edge}
        if edge < _CONVNEXT_CROPS_BELOW:
            resized = {"shortest_edge": int(edge / fraction)}
            settings.update(size=resized, do_center_crop=True, crop_size=square)
        else:
            settings.update(size=square)
    return Preprocess.from_processor(settings)


def _load_processor(name: str) -> Any:
    from transformers import AutoImageProcessor
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        return AutoImageProcessor.from_pretrained(name, backend="pil")
    except (ImportError, ValueError) as error:
        if "torchvision" not in str(error).lower():
            raise
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name)
        return StoredSettings(settings)
