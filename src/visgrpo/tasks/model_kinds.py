"""What kind of model `evaluate` and `predict` were given, and which options go with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from visgrpo.errors import UserError
from visgrpo.models.backbone import FAMILIES
from visgrpo.models.language_loading import nanogpt_checkpoint
from visgrpo.models.loading import check_model_name, in_one_line, read_info
from visgrpo.models.vision_loading import FAMILIES as SEEING_FAMILIES
from visgrpo.tasks.use_configs import EvaluateConfig, PredictConfig


@dataclass(frozen=True)
class Kind:
    """What saved models of one kind are called, and what is done with them.

    Attributes:
        words: what it is, as messages say it.
        parts: the module and the beginning of the names of its `Evaluation` and `Prediction`.
        labels: whether it answers with names of classes.
        data: what `evaluate` must be given with --data; None where built-in data will do.
        alike: whether a start must be of the same kind.
        no_answers: why `predict` has no use for it, and what to do instead.
    """

    words: str
    parts: str
    labels: bool = False
    data: str | None = None
    alike: bool = False
    no_answers: str | None = None


# By the "task" of visgrpo.json; models that have none are told apart by their settings.
KINDS: dict[str, Kind] = {
    "clip": Kind("a CLIP or SigLIP model", "visgrpo.tasks.clip.use:", labels=True),
    "classification": Kind(
        "a backbone with a classification head", "visgrpo.tasks.backbone.use:", labels=True
    ),
    "segmentation": Kind(
        "a backbone with a segmentation head",
        "visgrpo.tasks.backbone.use_masks:",
        labels=True,
        alike=True,
    ),
    "backbone": Kind(
        "a backbone without a head",
        "visgrpo.tasks.backbone.use:",
        no_answers="answers nothing: train one with visgrpo representation or visgrpo segmentation",
    ),
    "language": Kind(
        "a language model",
        "visgrpo.tasks.language_use:Text",
        data="a text, such as topics or a .txt file,",
        alike=True,
        no_answers="sees no images: visgrpo generate MODEL PROMPT completes text with it",
    ),
    "reward": Kind(
        "a reward model",
        "visgrpo.tasks.language_use:Pair",
        data="a table of preference pairs, such as RUN/pairs/pairs.jsonl,",
        alike=True,
        no_answers=(
            "sees no images: visgrpo evaluate measures it, and visgrpo generate takes language "
            "models"
        ),
    ),
    "vision-language": Kind(
        "a vision-language model",
        "visgrpo.tasks.vlm_use:",
        data="questions about images, such as shapes or a .jsonl file,",
        alike=True,
    ),
}
# How transformers' classes are called that write text, and those that score it.
_ARCHITECTURES: Mapping[str, str] = {
    "ForCausalLM": "language",
    "LMHeadModel": "language",
    "ForSequenceClassification": "reward",
}
_BACKBONES = ("classification", "segmentation", "backbone")
_IMAGES = ("clip", *_BACKBONES)
_LABELLED = ("clip", "classification", "backbone")
_SEEING = ("vision-language",)
# Options that go with some kinds only; all others go with every kind.
_TAKEN_BY: Mapping[str, tuple[str, ...]] = {
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


def part_of(kind: str, part: str) -> Any:
    """Return the `Evaluation` or `Prediction` of a kind; only now its modules are loaded."""
    return resolve_name(KINDS[kind].parts + part)


def kind_of(name: str) -> str:
    """Return what a folder or Hub name holds, without loading weights.

    Models that are none of the others count as CLIP, whose loader names what it takes.

    Raises:
        UserError: when the model is not there.
    """
    if nanogpt_checkpoint(name) is not None:
        return "language"
    check_model_name(name)
    task = read_info(name).get("task")
    if task in KINDS:
        return str(task)
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


def refuse_other_options(config: EvaluateConfig | PredictConfig, kind: str) -> None:
    """Raise UserError for an option that was given and does not go with this kind of model."""
    for option in fields(config):
        taken_by = _TAKEN_BY.get(option.name, (kind,))
        if kind in taken_by or getattr(config, option.name) == option.default:
            continue
        flag = "--" + option.name.replace("_", "-")
        because = _BECAUSE.get(option.name, "") if kind in _BACKBONES else ""
        reason = f": {because}" if because else ""
        *most, last = (KINDS[other].words for other in taken_by)
        wanted = f"{', '.join(most)} or {last}" if most else last
        raise UserError(
            f'{flag} does not go with "{config.model}", {KINDS[kind].words}{reason}. '
            f"It is for {wanted}."
        )


def _kind_of_adapter(settings: Path) -> str:
    base = json.loads(settings.read_text(encoding="utf-8")).get("base_model_name_or_path")
    kind = kind_of(base) if base else "clip"
    return kind if kind in ("language", "vision-language") else "clip"
