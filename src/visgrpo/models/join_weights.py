"""The vision tower of a Qwen2.5-VL checkpoint, read without the language model beside it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.models.parts import (
    check_model_name,
    in_one_line,
    load_images,
    model_folder,
    pretrained,
)

_KIND = "qwen2_5_vl"
_IN_TOWER = re.compile(r"(?:model\.)?visual\.(.+)")  # as the Hub names them, or a model in memory


@dataclass(frozen=True)
class VisionTower:
    """A vision tower as it is stored.

    Attributes:
        name: where it was read.
        config: transformers' configuration of the tower.
        weights: float32, by the names inside the tower; all of the configuration's shapes.
        images: the checkpoint's image processor.
    """

    name: str
    config: Any
    weights: dict[str, Tensor]
    images: Any


def read_tower(name: str) -> VisionTower:
    """Read the vision tower of a Qwen2.5-VL folder or Hub name; only its files are fetched.

    Raises:
        UserError: for another kind of model, and weights that are missing or of other shapes than
            the configuration says.
    """
    name = model_folder(name)
    check_model_name(name)
    with in_one_line(name):
        config = pretrained("AutoConfig", name)
        if config.model_type != _KIND:
            raise UserError(
                f'--vision "{name}" is a {config.model_type} model; its tower cannot be joined. '
                f"Take a {_KIND}, such as Qwen/Qwen2.5-VL-3B-Instruct."
            )
        images = load_images(name)
        weights = _read_weights(name)
    _check_shapes(name, config.vision_config, weights)
    return VisionTower(name, config.vision_config, weights, images)


def _read_weights(name: str) -> dict[str, Tensor]:
    from safetensors import safe_open

    weights: dict[str, Tensor] = {}
    for file in _weight_files(name):
        with safe_open(file, "pt") as stored:
            for key in stored.keys():  # noqa: SIM118  # no dictionary
                inside = _IN_TOWER.fullmatch(key)
                if inside:
                    weights[inside[1]] = stored.get_tensor(key).float()
    return weights


def _weight_files(name: str) -> list[str]:
    """Fetch the files that hold weights of the tower, and return where they are."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

    index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if index is None:
        return [str(cached_file(name, SAFE_WEIGHTS_NAME))]
    places = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
    files = {file for key, file in places.items() if _IN_TOWER.fullmatch(key)}
    return [str(cached_file(name, file)) for file in sorted(files)]


def _check_shapes(name: str, config: Any, weights: dict[str, Tensor]) -> None:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VisionTransformerPretrainedModel,
    )

    with torch.device("meta"):
        tower = Qwen2_5_VisionTransformerPretrainedModel(config)
    expected = {key: tuple(weight.shape) for key, weight in tower.state_dict().items()}
    for key, shape in expected.items():
        if key not in weights:
            raise UserError(
                f'"{name}" lacks the weight visual.{key} of its vision tower: save the whole model '
                "again."
            )
        if tuple(weights[key].shape) != shape:
            raise UserError(
                f'"{name}" has visual.{key} of {tuple(weights[key].shape)}, but its config.json '
                f"says {shape}: they do not belong together."
            )
