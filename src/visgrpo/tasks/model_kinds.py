"""What kind of model `evaluate` and `predict` were given, and which options go with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Literal, cast

from visgrpo.errors import UserError
from visgrpo.models.backbone import FAMILIES
from visgrpo.models.language_loading import nanogpt_checkpoint
from visgrpo.models.loading import check_model_name, in_one_line, read_info
from visgrpo.models.vision_loading import FAMILIES as SEEING_FAMILIES
from visgrpo.tasks.use_configs import EvaluateConfig, PredictConfig

Kind = Literal[
    "clip", "classification", "segmentation", "backbone", "language", "reward", "vision-language"
]

IN_WORDS: Mapping[Kind, str] = {
    "clip": "a CLIP or SigLIP model",
    "classification": "a backbone with a classification head",
    "segmentation": "a backbone with a segmentation head",
    "backbone": "a backbone without a head",
    "language": "a language model",
    "reward": "a reward model",
    "vision-language": "a vision-language model",
}
_TASKS: tuple[Kind, ...] = (
    "classification",
    "segmentation",
    "language",
    "reward",
    "vision-language",
)
# How transformers' classes are called that write text, and those that score it.
_ARCHITECTURES: Mapping[str, Kind] = {
    "ForCausalLM": "language",
    "LMHeadModel": "language",
    "ForSequenceClassification": "reward",
}
_BACKBONES: tuple[Kind, ...] = ("classification", "segmentation", "backbone")
_IMAGES: tuple[Kind, ...] = ("clip", *_BACKBONES)
_LABELLED: tuple[Kind, ...] = ("clip", "classification", "backbone")
_SEEING: tuple[Kind, ...] = ("vision-language",)
# Options that go with some kinds only; all others go with every kind.
_TAKEN_BY: Mapping[str, tuple[Kind, ...]] = {
    "alpha": ("clip",),
    "answer_column": _SEEING,
    "ask": _SEEING,
    "batch_size": _LABELLED,
    "classes": ("clip",),
    "classes_file": ("segmentation",),
    "context": ("language",),
    "ignore_index": ("segmentation",),
    "image_column": (*_IMAGES, *_SEEING),
    "image_size": ("segmentation",),
    "label_column": _LABELLED,
    "mask_column": ("segmentation",),
    "max_new_tokens": _SEEING,
    "max_pixels": _SEEING,
    "output": ("segmentation",),
    "pool": ("backbone",),
    "probe": ("classification", "backbone"),
    "question_column": _SEEING,
    "seed": (*_IMAGES, "reward", *_SEEING),
    "shifts": ("classification", "backbone"),
    "skip_bad_images": (*_IMAGES, *_SEEING),
    "style": _SEEING,
    "styles": _SEEING,
    "task": _SEEING,
    "templates": ("clip",),
    "text_column": ("language",),
    "top_k": _IMAGES,
    "train_slice": _IMAGES,
    "votes": ("clip",),
}
# Of backbones; that images' options do not go with text needs no words.
_BECAUSE: Mapping[str, str] = {
    "alpha": "a head begins at random, so weights between the start's and its own answer nothing",
    "batch_size": "masks are evaluated as many at a time as fit into fixed memory",
    "classes": "a head answers the classes that it was trained on",
    "pool": "its head was trained on features of its own pool",
    "templates": "it has no text tower",
}


def kind_of(name: str) -> Kind:
    """Return what a folder or Hub name holds, without loading weights.

    Models that are none of the others count as CLIP, whose loader names what it takes.

    Raises:
        UserError: when the model is not there.
    """
    if nanogpt_checkpoint(name) is not None:
        return "language"
    check_model_name(name)
    task = read_info(name).get("task")
    if task in _TASKS:
        return cast(Kind, task)
    if (Path(name) / "adapter_config.json").exists():
        return _kind_of_adapter(Path(name) / "adapter_config.json")
    from transformers import AutoConfig

    with in_one_line(name):
        config = AutoConfig.from_pretrained(name)
    if config.model_type in FAMILIES:
        return "backbone"
    if config.model_type in SEEING_FAMILIES:
        return "vision-language"
    for ending, kind in _ARCHITECTURES.items():
        if any(each.endswith(ending) for each in config.architectures or ()):
            return kind
    return "clip"


def refuse_other_options(config: EvaluateConfig | PredictConfig, kind: Kind) -> None:
    """Raise UserError for an option that was given and does not go with this kind of model."""
    for option in fields(config):
        taken_by = _TAKEN_BY.get(option.name, (kind,))
        if kind in taken_by or getattr(config, option.name) == option.default:
            continue
        flag = "--" + option.name.replace("_", "-")
        because = _BECAUSE.get(option.name, "") if kind in _BACKBONES else ""
        reason = f": {because}" if because else ""
        *most, last = (IN_WORDS[other] for other in taken_by)
        wanted = f"{', '.join(most)} or {last}" if most else last
        raise UserError(
            f'{flag} does not go with "{config.model}", {IN_WORDS[kind]}{reason}. '
            f"It is for {wanted}."
        )


def _kind_of_adapter(settings: Path) -> Kind:
    base = json.loads(settings.read_text(encoding="utf-8")).get("base_model_name_or_path")
    kind = kind_of(base) if base else "clip"
    return kind if kind in ("language", "vision-language") else "clip"
