"""The people of the demo: what they click among labels that a weak model offers, truth hidden."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from visgrpo.data.inputs import PixelInputs
from visgrpo.data.read import read
from visgrpo.data.table import Table
from visgrpo.files import write_whole
from visgrpo.measures.over import logits_of
from visgrpo.tasks.clip.use import load_labeller
from visgrpo.training.processes import Processes

OFFERS = 20
"""Labels offered of each picture, one at a time."""
EXPLORED = 0.5
"""Share of the offers that are any label; the others are drawn by the model."""
CLICKS_RIGHT, CLICKS_WRONG = 0.7, 0.2
"""How often people click a label that is right, and one that is wrong."""
_TRAIN, _TEST = "train.parquet", "test.parquet"


def ask_people(model: Path, folder: Path, seed: int) -> None:
    """Show digits with labels of a model to simulated people; write down what they clicked.

        FOLDER/pictures/   digits, as they are: images with their true labels
        FOLDER/guessed/    the same, but training images have the label of the best click rate
        FOLDER/clicks.parquet   what was offered, with which probability, and what was clicked

    The files are functions of the model and the seed; one that is there already is left alone.
    """
    splits = read("digits")
    train, classes = splits.train, splits.train.classes
    rng = np.random.default_rng(seed)
    offered_MK = _policy(model, train)
    K, label_M = len(classes), np.asarray(train.labels)
    row = np.repeat(np.arange(len(train)), OFFERS)
    below_NK = offered_MK[row].cumsum(axis=1)[:, :-1] < rng.random((len(row), 1))
    shown = below_NK.sum(axis=1)
    right = shown == label_M[row]
    clicked = rng.random(len(row)) < np.where(right, CLICKS_RIGHT, CLICKS_WRONG)

    log = _table(
        image=np.array(_names(range(len(train)), "train"))[row],
        label=np.array(classes)[shown],
        clicked=clicked,
        propensity=offered_MK[row, shown],
        time=1_735_689_600.0 + np.arange(len(row)),
    )
    _write(folder / "clicks.parquet", log)
    _write(folder / "pictures" / _TRAIN, _pictures(train, label_M, "train"))
    _write(folder / "pictures" / _TEST, _pictures(splits.test, splits.test.labels, "test"))
    best_M, known_M = _best(row, shown, clicked, (len(train), K))
    kept = np.flatnonzero(known_M)
    guessed = _pictures(train.subset(kept), best_M[kept], "train", kept)
    _write(folder / "guessed" / _TRAIN, guessed)
    _write(folder / "guessed" / _TEST, _pictures(splits.test, splits.test.labels, "test"))


def _policy(model: Path, train: Table) -> np.ndarray:
    """The probability with which every label is offered of every picture, (M, K)."""
    classifier, parts = load_labeller(str(model), train.classes)
    logits_MK = logits_of(classifier, train, PixelInputs(train, parts.preprocess), Processes())
    policy_MK = logits_MK.double().softmax(dim=1).numpy()
    return (1 - EXPLORED) * policy_MK + EXPLORED / len(train.classes)


def _best(
    row: np.ndarray, shown: np.ndarray, clicked: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The label of the best click rate of each picture, and of which pictures any was clicked.

    Rates are posterior means with a prior of two offers at the mean rate, as GRPO's rewards are.
    """
    offers_MK, clicks_MK = np.zeros(shape), np.zeros(shape)
    np.add.at(offers_MK, (row, shown), 1)
    np.add.at(clicks_MK, (row, shown), clicked)
    rate_MK = (clicks_MK + 2 * clicked.mean()) / (offers_MK + 2)
    best_M = np.where(offers_MK > 0, rate_MK, -1.0).argmax(axis=1)
    return best_M, np.asarray(clicks_MK.any(axis=1))


def _names(rows: Iterable[int], split: str) -> list[str]:
    return [f"{split}/{row:04}.png" for row in rows]


def _pictures(
    part: Table, labels: Sequence[int] | np.ndarray, split: str, rows: Iterable[int] | None = None
) -> io.BytesIO:
    return _table(
        image_id=_names(range(len(part)) if rows is None else rows, split),
        image=[_png(image) for image in part.images],
        label=np.array(part.classes)[np.asarray(labels)],
    )


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def _table(**columns: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer


def _write(file: Path, buffer: io.BytesIO) -> None:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, buffer.getvalue())
