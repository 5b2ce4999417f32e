"""Load a vision-language model, from a folder or the Hub, in float32 and without torchvision."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visgrpo.errors import UserError
from visgrpo.models.language_loading import LanguageParts, adapter_base, load_adapter
from visgrpo.models.loading import (
    check_model_name,
    in_one_line,
    load_pretrained,
    model_folder,
    read_info,
)
from visgrpo.models.tokenizers import check_tokenizer
from visgrpo.models.vision_processor import VisionProcessor

FAMILIES = ("qwen2_5_vl", "smolvlm", "idefics3")  # by `model_type`


@dataclass(frozen=True)
class VisionParts(LanguageParts):
    """A vision-language model with everything that belongs to it.

    Attributes:
        processor: makes its pixels and prompts; holds the same tokenizer.
    """

    processor: VisionProcessor = field(kw_only=True)


def is_vision_language(name: str) -> bool:
    """Return whether a folder, a run's folder, an adapter or a Hub name is a vision-language model.

    Raises:
        UserError: when the model is not there.
    """
    from transformers import AutoConfig

    name = model_folder(name)
    check_model_name(name)
    if _is_adapter(name):
        return is_vision_language(adapter_base(name))
    with in_one_line(name):
        return AutoConfig.from_pretrained(name).model_type in FAMILIES


def load_vision_language(name: str, *, max_pixels: int | None = None) -> VisionParts:
    """Load Qwen2.5-VL, a joined model, SmolVLM or Idefics3; an adapter is merged into its base.

    Args:
        name: a model's or a run's folder, a Hub name or an adapter.
        max_pixels: images with more are made smaller; by default as the model's settings say.

    Raises:
        UserError: when the model is not there, cannot be fetched, is of another kind, lacks
            weights, or has parts that do not belong together.
    """
    name = model_folder(name)
    check_model_name(name)
    parts = load_adapter(name, load_vision_language) if _is_adapter(name) else _load_model(name)
    if max_pixels is not None:
        parts.processor.limit(max_pixels)
    return parts


def load_image_processor(name: str) -> Any:
    """Load the image processor of a vision-language model, of transformers' pillow kind."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(name, backend="pil")


def _load_model(name: str) -> VisionParts:
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

    with in_one_line(name):
        config = AutoConfig.from_pretrained(name)
        if config.model_type not in FAMILIES:
            raise UserError(
                f'"{name}" is a {config.model_type} model; this job needs one of: '
                f"{', '.join(FAMILIES)}. visgrpo join makes one of a vision tower and a qwen2."
            )
        tokenizer = AutoTokenizer.from_pretrained(name)
        images = load_image_processor(name)
        _use_template_of_processor(name, tokenizer)
        with _shapes_named(AutoModelForImageTextToText, name):
            model, _ = load_pretrained(AutoModelForImageTextToText, name)
    note = check_tokenizer(tokenizer, name, model.get_input_embeddings().num_embeddings)
    processor = VisionProcessor.of(config, images, tokenizer)
    notes = (note,) if note else ()
    return VisionParts(name, model, tokenizer, read_info(name), notes, processor=processor)


@contextmanager
def _shapes_named(auto: Any, name: str) -> Iterator[None]:
    """Name the shapes of weights that do not fit, which transformers only prints."""
    try:
        yield
    except RuntimeError as error:
        _, report = auto.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
        misfits = sorted(report["mismatched_keys"])
        if not misfits:
            raise
        weight, stored, expected = misfits[0]
        raise UserError(
            f'"{name}" has {len(misfits)} weight(s) of other shapes than its config.json says: '
            f"{weight} is {tuple(stored)}, not {tuple(expected)}."
        ) from error


def _use_template_of_processor(name: str, tokenizer: Any) -> None:
    """Take the chat template of older checkpoints from the processor's file, where only it is."""
    from transformers.utils import cached_file

    if tokenizer.chat_template is not None:
        return
    path = cached_file(name, "chat_template.json", _raise_exceptions_for_missing_entries=False)
    if path is not None:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        tokenizer.chat_template = stored["chat_template"]


def _is_adapter(name: str) -> bool:
    return (Path(name) / "adapter_config.json").exists()
