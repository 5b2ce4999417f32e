"""Classify or segment image files with a saved model, or ask about them: `visgrpo predict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from visgrpo.data.images import decode
from visgrpo.errors import UserError
from visgrpo.models.parts import model_folder, read_info
from visgrpo.tasks.model_kinds import kind_of, refuse_other_options
from visgrpo.tasks.task import kinds, loaded
from visgrpo.tasks.use_configs import PredictConfig
from visgrpo.training.processes import Processes

_NUMBERS = {"probabilities": "probability", "shares": "share of pixels"}


class Prediction(Protocol):
    """A model that says something about images: made of options, images and processes.

    That refuses what cannot work and loads the model. Images are answered one by one: any number
    of large ones fits in memory, and they may differ in size.
    """

    def __call__(self, path: str, image: Image.Image) -> dict[str, Any]:
        """Return classes with "probabilities" or "shares", or "completion" and "answer"."""


def predict(config: PredictConfig) -> list[dict[str, Any]]:
    """Return for each image its most probable classes, its pixels' or an answer; print them.

    Raises:
        UserError: for an image that cannot be read, a model that knows no class names, and options
            that do not go with the model.
    """
    config.check()
    config = replace(config, model=model_folder(config.model))
    name = kind_of(config.model)
    kind = kinds()[name]
    if kind.prediction is None:
        raise UserError(f'"{config.model}" is {kind.words} and {kind.no_answers}.')
    refuse_other_options(config, name)
    if kind.labels:
        classes_of(config)
    images = [_open(path) for path in config.images]
    prediction: Prediction = loaded(kind.prediction)(config, images, Processes(config.device))
    with torch.no_grad():
        answers = [
            {"image": path, **prediction(path, image)}
            for path, image in zip(config.images, images, strict=True)
        ]
    if not config.printed(answers):
        _show(answers)
    return answers


def classes_of(config: PredictConfig) -> tuple[str, ...]:
    """Return the classes to choose among: those that were given, or that the model knows.

    Raises:
        UserError: where there are none.
    """
    classes = config.classes or tuple(read_info(config.model).get("classes", ()))
    if not classes:
        raise UserError(f'"{config.model}" names no classes: give them with --classes.')
    return classes


def most_probable(logits_1K: Tensor, classes: Sequence[str], top_k: int) -> dict[str, Any]:
    """Return the classes of an image that have most probability, in order."""
    top = logits_1K.softmax(dim=-1).topk(min(top_k, len(classes)), dim=-1)
    return {
        "classes": [classes[k] for k in top.indices[0].tolist()],
        "probabilities": top.values[0].tolist(),
    }


def _open(path: str) -> Image.Image:
    if not Path(path).is_file():
        raise UserError(f'Image "{path}" does not exist.')
    return decode(path, f'Image "{path}"', mend="replace it, or leave it out")


def _show(answers: Sequence[Mapping[str, Any]]) -> None:
    """Print the classes of every image and the numbers that belong to them, or its answer."""
    console = Console(width=None if Console().is_terminal else 100)
    for answer in answers:
        if "completion" in answer:
            print(answer["image"])
            if answer["answer"] is not None:
                print(f"  answer: {answer['answer']}")
            print(f"  {answer['completion']}")
            continue
        numbers = next(name for name in _NUMBERS if name in answer)
        table = Table("class", _NUMBERS[numbers], title=answer["image"], title_justify="left")
        for name, value in zip(answer["classes"], answer[numbers], strict=True):
            table.add_row(name, f"{value:.3f}")
        console.print(table)
        if "mask" in answer:
            print(f"Mask: {answer['mask']}  Overlay: {answer['overlay']}")
