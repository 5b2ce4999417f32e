"""What the jobs of images share: their data, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visgrpo.data.inputs import check_augmentations
from visgrpo.data.read import read
from visgrpo.data.table import Splits, Table
from visgrpo.errors import UserError
from visgrpo.files import write_whole
from visgrpo.models.parts import Parts
from visgrpo.rewards.labels import ABSTAIN, NO_ANSWER
from visgrpo.tasks.lineage import Learned, with_stages
from visgrpo.tasks.options import OF_SETS, Rivals, RunConfig
from visgrpo.tasks.run import Session
from visgrpo.training.options import TrainingOptions


def load_data(config: RunConfig, session: Session, kind: str = "labels", **more: Any) -> Splits:
    """Load the three splits; say what was decided or left out on the way.

    Args:
        kind: of data, as `read` has it, which takes more, too.
    """
    check_augmentations(config.augment)
    splits = read(
        config.data,
        kind,
        columns=columns_of(config),
        train_slice=config.train_slice,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        skip_bad_images=config.skip_bad_images,
        **more,
    )
    say_notes(session, splits)
    return splits


def with_no_answer(splits: Splits) -> Splits:
    """Return data for a model that may abstain: with a class more, which no image has.

    Raises:
        UserError: the data have a class of that name.
    """
    train, validation, test = map(abstaining, (splits.train, splits.validation, splits.test))
    return replace(splits, train=train, validation=validation, test=test)


def abstaining(table: Table) -> Table:
    """Return rows with the class `NO_ANSWER` more; see `with_no_answer`."""
    if NO_ANSWER in table.classes:
        raise UserError(
            f'{table.name} has a class "{NO_ANSWER}", which is what a model that abstains says: '
            "rename it."
        )
    return replace(table, classes=(*table.classes, NO_ANSWER))


def asks_to_abstain(reward: Sequence[str]) -> bool:
    """Return whether a reward pays for no answer."""
    return any(spec.partition(":")[0].strip() == ABSTAIN for spec in reward)


def columns_of(config: Any) -> dict[str, str | None]:
    """Return the columns that options name, by the word of their role."""
    words = ("image", "label", "mask", "question", "answer", "trace", "text")
    return {word: getattr(config, f"{word}_column", None) for word in words}


def say_notes(session: Session, splits: Splits) -> None:
    """Say what was decided about the data, and what was left out."""
    session.note(*splits.notes)
    masked = "masks" in splits.train.values  # a readable pair may not belong together
    bad = "unusable row(s)" if masked else "unreadable image(s)"
    for part in (splits.train, splits.validation, splits.test):
        if part.skipped:
            session.note(f"{part.name}: left out {len(part.skipped)} {bad}:")
            for reason in part.skipped:
                session.say(f"  {reason}")


def training_of(
    config: RunConfig,
    rate: float,
    train: Table,
    session: Session,
    *,
    capped: bool = False,
    **more: Any,
) -> TrainingOptions:
    """Turn epochs into steps, and "by default" into numbers; see that batches can be divided.

    Args:
        capped: whether a batch may be smaller than asked for, where there are fewer images.
        more: options that are to be others.
    """
    size = config.batch_size
    if capped and size > len(train):
        size = max(len(train), 1)
        session.note(f"there are {len(train)} training images, so a step takes {size}, not "
                     f"--batch-size {config.batch_size}.")  # fmt: skip
    per_epoch = len(train) // size
    if per_epoch == 0:
        raise UserError(
            f"--batch-size {size} is larger than the {len(train)} training images: take "
            f"--batch-size {len(train)} or less."
        )
    more = {"batch_size": size, **more}
    steps = config.steps or max(1, math.ceil(config.epochs * per_epoch))
    options = config.resolved(steps, rate, **more)
    options.check_batches(session.processes.world_size)
    return options


def selection_of(select: str) -> str:
    """Return the metric of --select as `Job.selection` has it: of NLL the lowest."""
    return "-nll" if select == "nll" else select


def save_picture(session: Session, images: Sequence[Image.Image], index: int) -> str:
    """Keep the image of a sampled group; returns its path within the run."""
    path = session.run.path / "samples" / f"{index:06d}.png"
    if not path.exists():
        image = images[index].copy()
        image.thumbnail((224, 224))
        write_png(path, image)
    return str(path.relative_to(session.run.path))


def write_png(path: Path, image: Image.Image) -> None:
    """Write a picture, whole."""
    content = BytesIO()
    image.save(content, "png")
    write_whole(path, content.getvalue())


def run_stem(data: str) -> str:
    """Return what a data set is called in the default name of a run."""
    return data.rstrip("/").rsplit("/", 1)[-1].removesuffix(".parquet")


def info_of(options: Any, parts: Parts, data: RunConfig) -> dict[str, Any]:
    """Return what a tuned model says of the run that made it.

    Args:
        parts: of the start.
        data: the options by which the data were divided.
    """
    learned = with_stages(parts.info, Learned.of(data))
    return {"start": options.model, "method": options.method, "learned": learned}


def data_summary(name: str, splits: Splits) -> dict[str, Any]:
    """Return what the summary says of the data."""
    return {
        "name": name,
        "train": len(splits.train),
        "validation": len(splits.validation),
        "test": len(splits.test),
        "classes": len(splits.train.classes),
    }


def losses_of(
    config: Rivals, train: Table, session: Session
) -> tuple[tuple[str, ...], Tensor | None]:
    """Return what supervised training minimises, and the shares (K,) of classes if a loss asks.

    Raises:
        UserError: for a loss of whole batches in several processes.
    """
    whole = OF_SETS & set(config.loss)
    if whole and session.processes.world_size > 1:
        raise UserError(f"--loss {min(whole)} is of a whole batch: it runs in one process.")
    if not {"weighted", "balanced"} & set(config.loss):
        return tuple(config.loss), None
    return tuple(config.loss), _shares(train).to(session.processes.device)


def _shares(train: Table) -> Tensor:
    """Return the share of each class among the training labels, (K,), of pixels or images."""
    counts_K = np.zeros(len(train.classes))
    labels = train.masks if "masks" in train.values else [train.labels]
    for ids in labels:
        known = ids[ids != train.ignore_index] if "masks" in train.values else ids
        counts_K += np.bincount(known.ravel(), minlength=len(counts_K))
    return torch.from_numpy(counts_K / counts_K.sum()).float()
