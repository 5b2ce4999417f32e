"""Options of data: where images, text and questions come from. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from visgrpo.options import Options, option, override


@dataclass(frozen=True)
class Columns(Options):
    """Columns of a table, where their names are not usual ones."""

    heading = "Columns of a table"

    image_column: str | None = option(
        None, "Column of the images, where its name is not a usual one."
    )
    label_column: str | None = option(
        None, "Column of the labels, where its name is not a usual one."
    )
    mask_column: str | None = option(
        None, "Column of the masks, where its name is not a usual one."
    )
    id_column: str | None = option(
        None, "Column of the images that feedback names them by, where its name is not a usual one."
    )
    text_column: str | None = option(None, "Column of the text of a table.")
    question_column: str | None = option(
        None, "Column of the questions, where its name is not a usual one."
    )
    answer_column: str | None = option(
        None, "Column of the answers, where its name is not a usual one."
    )


@dataclass(frozen=True)
class Data(Options):
    """Where rows come from, and how they are divided."""

    heading = "Data"

    data: str = option(
        "digits",
        "Built-in (digits, shapes), a folder, a parquet file, or the name of a Hub data set.",
    )
    split: str = option("test", 'train, validation or test, perhaps sliced: "train[:2000]".')
    train_slice: str | None = option(
        None, 'Rows of the training split to use, such as "2000:" or ":500".'
    )
    validation_fraction: float = option(
        0.1,
        "Share of the training rows set apart where the data has no validation split.",
        within="(0, 1)",
    )
    skip_bad_images: bool = option(
        False,
        "Leave out images that cannot be read, count and list them; otherwise they stop the run.",
    )
    workers: int = option(0, "Processes that prepare images ahead of time.", within=">= 0")


@dataclass(frozen=True)
class ImageData(Data, Columns):
    """Where images and labels come from."""

    split = mask_column = id_column = override(hidden=True)
    text_column = question_column = answer_column = override(hidden=True)


@dataclass(frozen=True)
class Masks(Options):
    """What masks say."""

    heading = "Masks"

    classes_file: str | None = option(
        None, "Class names, one on each line; by default the classes.txt beside the data."
    )
    ignore_index: int = option(255, "Mask value of pixels that have no label.")
    image_size: tuple[int, int] | None = option(
        None, "Height and width that images and masks are resized to; by default their own."
    )


@dataclass(frozen=True)
class Boxes(Options):
    """How true boxes are stored, and how boxes are answered."""

    box_format: Literal["xyxy", "xywh"] = option(
        "xyxy",
        "What four numbers of a true box are: left, top, right, bottom, or left, top, width, "
        "height.",
    )
    coordinates: str | None = option(
        None,
        "Units of answered boxes and points: pixels of the image, permille of its sides, or "
        "bins:N from side to side; by default as the model learned it, bins:56 for a new one, "
        "else pixels.",
    )


@dataclass(frozen=True)
class Questions(Options):
    """How a model is asked about images."""

    heading = "Questions"

    style: Literal["reasoning", "direct"] = option(
        "reasoning", "Ask for reasoning before the answer, or for the answer alone."
    )
    max_pixels: int | None = option(
        None,
        "Larger images are made smaller, to rows × columns of at most this; by default as the "
        "model's own settings have it.",
        within="> 0",
    )
    min_pixels: int | None = option(
        None,
        "Smaller images are made larger, to rows × columns of at least this; by default as the "
        "model's own settings have it. For Qwen-VLs.",
        within="> 0",
    )
