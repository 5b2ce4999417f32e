"""What kind of model `evaluate` and `predict` were given, and which options go with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Literal

from visgrpo.errors import UserError
from visgrpo.models.backbone import FAMILIES
from visgrpo.models.loading import check_model_name, in_one_line, read_info
from visgrpo.recipes.use_configs import EvaluateConfig, PredictConfig

Kind = Literal["clip", "classification", "segmentation", "backbone"]

IN_WORDS: Mapping[Kind, str] = {
    "clip": "a CLIP or SigLIP model",
    "classification": "a backbone with a classification head",
    "segmentation": "a backbone with a segmentation head",
    "backbone": "a backbone without a head",
}
# Options that go with some kinds only; all others go with every kind.
_TAKEN_BY: Mapping[str, tuple[Kind, ...]] = {
    "alpha": ("clip",),
    "batch_size": ("clip", "classification", "backbone"),
    "classes": ("clip",),
    "classes_file": ("segmentation",),
    "ignore_index": ("segmentation",),
    "image_size": ("segmentation",),
    "label_column": ("clip", "classification", "backbone"),
    "mask_column": ("segmentation",),
    "output": ("segmentation",),
    "pool": ("backbone",),
    "probe": ("classification", "backbone"),
    "shifts": ("classification", "backbone"),
    "templates": ("clip",),
}
_BECAUSE: Mapping[str, str] = {
    "alpha": "a head begins at random, so weights between the start's and its own answer nothing",
    "batch_size": "masks are evaluated as many at a time as fit into fixed memory",
    "classes": "a head answers the classes that it was trained on",
    "pool": "its head was trained on features of its own pool",
    "templates": "it has no text tower",
}


def kind_of(name: str) -> Kind:
    """Return what a folder or Hub name holds, without loading weights.

    Models that are neither a backbone nor visgrpo's count as CLIP, whose loader names what it
    takes.

    Raises:
        UserError: when the model is not there.
    """
    check_model_name(name)
    task = read_info(name).get("task")
    if task == "classification" or task == "segmentation":
        return task
    if (Path(name) / "adapter_config.json").exists():
        return "clip"
    from transformers import AutoConfig

    with in_one_line(name):
        family = AutoConfig.from_pretrained(name).model_type
    return "backbone" if family in FAMILIES else "clip"


def refuse_other_options(config: EvaluateConfig | PredictConfig, kind: Kind) -> None:
    """Raise UserError for an option that was given and does not go with this kind of model."""
    for option in fields(config):
        taken_by = _TAKEN_BY.get(option.name, (kind,))
        if kind in taken_by or getattr(config, option.name) == option.default:
            continue
        flag = "--" + option.name.replace("_", "-")
        reason = f": {_BECAUSE[option.name]}" if option.name in _BECAUSE and kind != "clip" else ""
        wanted = " or ".join(IN_WORDS[other] for other in taken_by)
        raise UserError(
            f'{flag} does not go with "{config.model}", {IN_WORDS[kind]}{reason}. '
            f"It is for {wanted}."
        )
