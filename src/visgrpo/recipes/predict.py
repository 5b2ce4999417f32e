"""Classify image files with a saved model: `visgrpo predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from visgrpo.data.decoding import decode
from visgrpo.errors import UserError
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.loading import check_model_name, load_clip, read_info
from visgrpo.models.prompts import DEFAULT_TEMPLATES
from visgrpo.recipes.configs import PredictConfig
from visgrpo.training.processes import Processes


def predict(config: PredictConfig) -> list[dict[str, Any]]:
    """Return for each image its most probable classes, and print them.

    Raises:
        UserError: for an image that cannot be read, or a model that knows no class names.
    """
    config.check()
    check_model_name(config.model)
    info = read_info(config.model)
    classes = config.classes or tuple(info.get("classes", ()))
    if not classes:
        raise UserError(f'"{config.model}" names no classes: give them with --classes.')
    images = [_open(path) for path in config.images]
    processes = Processes(config.device)
    parts = load_clip(config.model)
    templates = config.templates or tuple(parts.info.get("templates", DEFAULT_TEMPLATES))
    classifier = ClipClassifier(parts.model, parts.tokenizer, classes, templates)
    classifier.to(processes.device).eval()
    side = classifier.backbone.config.vision_config.image_size
    probabilities = []
    # One by one: any number of large images fits in memory.
    for path, image in zip(config.images, images, strict=True):
        pixels = parts.preprocess(image)
        _check_size(path, pixels, side)
        with torch.no_grad():
            probabilities.append(classifier(pixels[None].to(processes.device)).softmax(dim=-1))
    top = torch.cat(probabilities).topk(min(config.top_k, len(classes)), dim=-1)
    answers = [
        {
            "image": path,
            "classes": [classes[k] for k in indices.tolist()],
            "probabilities": values.tolist(),
        }
        for path, indices, values in zip(config.images, top.indices, top.values, strict=True)
    ]
    _show(answers, config)
    return answers


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


def _show(answers: list[dict[str, Any]], config: PredictConfig) -> None:
    if config.json:
        print(json.dumps(answers, indent=1, ensure_ascii=False))
        return
    console = Console(width=None if Console().is_terminal else 100)
    for answer in answers:
        table = Table("class", "probability", title=answer["image"], title_justify="left")
        for name, value in zip(answer["classes"], answer["probabilities"], strict=True):
            table.add_row(name, f"{value:.3f}")
        console.print(table)
