"""Classify or segment image files with a saved model, or ask about them: `visgrpo predict`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from visgrpo.data.images import decode
from visgrpo.errors import UserError
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.loading import load_clip, model_folder, read_info
from visgrpo.models.prompts import DEFAULT_TEMPLATES
from visgrpo.models.representation import RepresentationClassifier
from visgrpo.models.representation_saving import load_representation
from visgrpo.tasks.model_kinds import IN_WORDS, Kind, kind_of, refuse_other_options
from visgrpo.tasks.predict_backbone import segment_images
from visgrpo.tasks.predict_vlm import answer_about
from visgrpo.tasks.use_configs import PredictConfig
from visgrpo.training.processes import Processes

Classify = Callable[[str, Image.Image], Tensor]
"""Makes logits (1, K) of an image and its path, which messages name."""
_INSTEAD: Mapping[Kind, str] = {
    "language": "visgrpo generate MODEL PROMPT completes text with it",
    "reward": "visgrpo evaluate measures it, and visgrpo generate takes language models",
}


def predict(config: PredictConfig) -> list[dict[str, Any]]:
    """Return for each image its most probable classes, its pixels' or an answer; print them.

    Raises:
        UserError: for an image that cannot be read, a model that knows no class names, and options
            that do not go with the model.
    """
    config.check()
    config = replace(config, model=model_folder(config.model))
    kind = kind_of(config.model)
    if kind in _INSTEAD:
        raise UserError(
            f'"{config.model}" is {IN_WORDS[kind]} and sees no images: {_INSTEAD[kind]}.'
        )
    refuse_other_options(config, kind)
    if kind == "vision-language":
        return answer_about(config, [_open(path) for path in config.images])
    classes = config.classes or tuple(read_info(config.model).get("classes", ()))
    if kind == "backbone":
        raise UserError(
            f'"{config.model}" is {IN_WORDS[kind]} and answers nothing: train one with visgrpo '
            "representation or visgrpo segmentation."
        )
    if not classes:
        raise UserError(f'"{config.model}" names no classes: give them with --classes.')
    images = [_open(path) for path in config.images]
    if kind == "segmentation":
        answers = segment_images(config, images)
        _show(answers, config, "shares", "share of pixels")
    else:
        processes = Processes(config.device)
        load = _clip if kind == "clip" else _with_head
        answers = _classify(config, images, classes, load(config, classes, processes))
        _show(answers, config, "probabilities", "probability")
    return answers


def _clip(config: PredictConfig, classes: tuple[str, ...], processes: Processes) -> Classify:
    parts = load_clip(config.model)
    templates = config.templates or tuple(parts.info.get("templates", DEFAULT_TEMPLATES))
    classifier = ClipClassifier(parts.model, parts.tokenizer, classes, templates)
    classifier.to(processes.device).eval()
    side = classifier.backbone.config.vision_config.image_size

    def logits_1K(path: str, image: Image.Image) -> Tensor:
        pixels = parts.preprocess(image)
        _check_size(path, pixels, side)
        return classifier(pixels[None].to(processes.device))

    return logits_1K


def _with_head(config: PredictConfig, classes: tuple[str, ...], processes: Processes) -> Classify:
    model, parts = load_representation(config.model)
    classifier = cast(RepresentationClassifier, model).to(processes.device)
    return lambda path, image: classifier(parts.preprocess(image)[None].to(processes.device))


@torch.no_grad()
def _classify(
    config: PredictConfig,
    images: Sequence[Image.Image],
    classes: tuple[str, ...],
    logits_of: Classify,
) -> list[dict[str, Any]]:
    # One by one: any number of large images fits in memory.
    logits_NK = torch.cat(
        [logits_of(path, image) for path, image in zip(config.images, images, strict=True)]
    )
    top = logits_NK.softmax(dim=-1).topk(min(config.top_k, len(classes)), dim=-1)
    return [
        {
            "image": path,
            "classes": [classes[k] for k in indices.tolist()],
            "probabilities": values.tolist(),
        }
        for path, indices, values in zip(config.images, top.indices, top.values, strict=True)
    ]


def _open(path: str) -> Image.Image:
    if not Path(path).is_file():
        raise UserError(f'Image "{path}" does not exist.')
    return decode(path, f'Image "{path}"', mend="replace it, or leave it out")


def _check_size(path: str, pixels: Tensor, side: int) -> None:
    height, width = pixels.shape[1:]
    if (height, width) != (side, side):
        raise UserError(
            f'Image "{path}" is {width} × {height} pixels after the model\'s own preprocessing, '
            f"but the model takes {side} × {side}: make the image square, or set do_center_crop "
            "in its preprocessor_config.json."
        )


def _show(answers: list[dict[str, Any]], config: PredictConfig, numbers: str, title: str) -> None:
    """Print the classes of every image and the numbers that belong to them."""
    if config.json:
        print(json.dumps(answers, indent=1, ensure_ascii=False))
        return
    console = Console(width=None if Console().is_terminal else 100)
    for answer in answers:
        table = Table("class", title, title=answer["image"], title_justify="left")
        for name, value in zip(answer["classes"], answer[numbers], strict=True):
            table.add_row(name, f"{value:.3f}")
        console.print(table)
        if "mask" in answer:
            print(f"Mask: {answer['mask']}  Overlay: {answer['overlay']}")
