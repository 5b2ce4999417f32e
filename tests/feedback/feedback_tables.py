"""Splits of the tiny data set, sessions that only listen, and tables of feedback about them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visgrpo.data.batches import CachedInputs
from visgrpo.data.roles import image_table
from visgrpo.data.table import Splits, Table
from visgrpo.tasks.clip.options import ClipConfig

CLASSES = ("cat", "dog", "apple")
TRAIN, VALIDATION, TEST = range(16), range(16, 20), range(20, 24)


class OneProcess:
    """One process in full precision."""

    rank, world_size, is_main, device = 0, 1, True, torch.device("cpu")

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()


class Listening:
    """A session that keeps what was said."""

    def __init__(self) -> None:
        self.processes = OneProcess()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def note(self, *decisions: str) -> None:
        self.lines.extend(decisions)


class Linear(nn.Module):
    """A classifier whose inputs are features, and whose features are its inputs."""

    def __init__(self, weight_DK: Tensor) -> None:
        super().__init__()
        self.weight_DK = weight_DK

    def forward(self, inputs_ND: Tensor) -> Tensor:
        return inputs_ND @ self.weight_DK

    def embed_images(self, inputs_ND: Tensor) -> Tensor:
        return inputs_ND


FEATURES = torch.from_numpy(np.random.default_rng(8).normal(size=(24, 3))).float()


def inputs() -> dict[str, CachedInputs]:
    parts = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    return {name: CachedInputs(FEATURES[list(rows)]) for name, rows in parts.items()}


def splits_of(whole: Table) -> Splits:
    """Rows 0-15, 16-19 and 20-23, whose images are called 00.png to 23.png."""
    names = [f"photos/{row:02}.png" for row in range(24)]
    named = image_table("tiny", CLASSES, whole.labels, whole.images, {"file": names})
    return Splits(*(named.subset(list(rows)) for rows in (TRAIN, VALIDATION, TEST)))


def write_table(file: Path, header: str, rows: Sequence[Sequence[Any]]) -> str:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header.split())
        writer.writerows(rows)
    return str(file)


def config_of(table: str, *reward: str, **options: Any) -> ClipConfig:
    config = ClipConfig(feedback=table, reward=reward or ("clicks",), device="cpu", **options)
    config.check()
    return config


def name(row: int) -> str:
    return f"{row:02}.png"
