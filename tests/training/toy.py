"""A linear classifier on eight features, and short runs of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from visgrpo.data.batches import BatchLoader, CachedInputs
from visgrpo.data.roles import image_table
from visgrpo.data.table import Table
from visgrpo.methods.labels import LabelGRPO
from visgrpo.methods.method import LossResult
from visgrpo.methods.supervised import Supervised
from visgrpo.objectives import preset
from visgrpo.rewards.sets import parse_rewards
from visgrpo.training.options import TrainingOptions
from visgrpo.training.processes import Processes
from visgrpo.training.run_directory import RunDirectory
from visgrpo.training.trainer import Trainer

CLASSES = ("cat", "dog", "owl")
ROWS, FEATURES = 48, 8
TIMES = {"seconds", "step_time"}


def toy_dataset() -> Table:
    """48 rows; the images are never looked at."""
    labels = np.arange(ROWS) % len(CLASSES)
    return image_table("toy/train", CLASSES, labels, [Image.new("RGB", (2, 2))] * ROWS)


def toy_inputs() -> Tensor:
    """Features in which the classes can be told apart, (48, 8)."""
    rng = np.random.default_rng(7)
    centres_K8 = 2 * np.eye(len(CLASSES), FEATURES)
    noise = rng.normal(size=(ROWS, FEATURES))
    return torch.from_numpy(centres_K8[toy_dataset().labels] + 0.3 * noise).float()


def toy_model(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(FEATURES, len(CLASSES)))


def supervised() -> Supervised:
    return Supervised(parse_rewards(["hard"], None, CLASSES), CLASSES)


def grpo(name: str = "grpo", processes: Processes | None = None, **settings: Any) -> LabelGRPO:
    return LabelGRPO(
        rewards=parse_rewards(["hard"], None, CLASSES),
        objective=preset(name),
        classes=CLASSES,
        shards=processes or Processes("cpu"),
        group_size=4,
        **settings,
    )


class Stub:
    """A method without groups whose loss is a function of the model and the step."""

    def __init__(self, loss_of: Any) -> None:
        self._loss_of = loss_of

    def rollout(self, old_model: Any, batch: Any, step: int, *, chunk: int) -> None: ...

    def loss(self, model: Any, batch: Any, groups: None, step: int) -> LossResult:
        return LossResult(self._loss_of(model, batch, step), {})

    def samples(self, groups: Any, rows: int) -> list[dict[str, Any]]:
        return []


def toy_trainer(
    folder: Path,
    method: Any,
    *,
    model: nn.Module | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    more: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Trainer:
    """A trainer of 8 rows a step; six steps unless told otherwise.

    Args:
        more: the trainer's own arguments; settings are its options.
    """
    options = TrainingOptions(
        **{
            "steps": 6,
            "batch_size": 8,
            "learning_rate": 0.05,
            "log_every": 1,
            "keep": "last",
            **settings,
        }
    )
    processes = Processes("cpu")
    run = RunDirectory(folder)
    run.create("toy", {})
    return Trainer(
        toy_model() if model is None else model,
        method,
        BatchLoader(toy_dataset(), CachedInputs(toy_inputs()), batch_size=8, seed=options.seed),
        options,
        processes=processes,
        run=run,
        evaluate=evaluate or (lambda: {"accuracy": 0.5}),
        **(more or {}),
    )


def read_lines(file: Path) -> list[dict[str, Any]]:
    # Not splitlines(), which also cuts at separators that JSON allows inside strings.
    return [json.loads(line) for line in file.read_text().split("\n") if line]


def metric_lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the times, which no two runs share."""
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_lines(run / "metrics.jsonl")
    ]


def training_values(run: Path, name: str) -> list[float]:
    return [line[name] for line in read_lines(run / "metrics.jsonl") if name in line]


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}
