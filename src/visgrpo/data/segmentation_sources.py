"""From what a user types (a built-in world, a folder, a parquet file, a Hub name) to masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from visgrpo.data.folders import read_mask_folder
from visgrpo.data.identity import derived
from visgrpo.data.segmentation import (
    IGNORE_INDEX,
    SegmentationDataset,
    SegmentationSplits,
    without_bad_pairs,
)
from visgrpo.data.segmentation_splitting import StoredMasks, divide_masks, one_split
from visgrpo.data.segmentation_tables import masked_images
from visgrpo.data.splitting import check_split_options, parse_slice
from visgrpo.data.tables import hub_tables, is_hub_name, parquet_files, parquet_tables
from visgrpo.data.worlds.shapes import MASK_CLASSES, shapes_splits
from visgrpo.errors import UserError, nearest

BUILT_IN = ("shapes", "shapes-out")


def load_segmentation_splits(
    spec: str,
    *,
    image_column: str | None = None,
    mask_column: str | None = None,
    classes_file: str | Path | None = None,
    train_slice: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    ignore_index: int = IGNORE_INDEX,
    skip_bad_images: bool = False,
) -> SegmentationSplits:
    """Load images with masks in three splits that share no row.

    Missing splits are made as in `load_splits`, stratified by the rarest class of each mask. For
    that, and to say which classes the train rows lack, every mask of the stored train split is read
    once; `SegmentationSplits.notes` says what was found and made.

    Args:
        spec: "shapes" or "shapes-out"; a folder of parquet files, or of `images/` and `masks/` with
            equal file names (each in train/, val/ and test/, or undivided); a parquet file; or a
            Hub name.
        image_column: the column of a table that holds the images, when its name is not usual.
        mask_column: the column of a table that holds the masks, when its name is not usual.
        classes_file: the class names, one per line in the order of the ids; by default
            `classes.txt` beside the data.
        train_slice: which train rows to use, such as "2000:", in stored order.
        validation_fraction: share of the train rows that makes a missing validation split.
        seed: chooses that validation split, and the images of a built-in world.
        ignore_index: the id of pixels that belong to no class.
        skip_bad_images: read every image and mask once now and leave the unusable rows out, listed
            in each split's `skipped`; otherwise one is an error when it is used.

    Raises:
        UserError: if the data set is unknown or does not fit the description above.
    """
    check_split_options(validation_fraction, seed)
    rows = slice(None) if train_slice is None else parse_slice(train_slice)
    stored = _read(spec, image_column, mask_column, classes_file, seed, ignore_index)
    return divide_masks(
        _without_bad_pairs(stored) if skip_bad_images else stored,
        train_rows=rows,
        fraction=validation_fraction,
        seed=seed,
    )


def load_segmentation_split(
    spec: str,
    split: str,
    *,
    image_column: str | None = None,
    mask_column: str | None = None,
    classes_file: str | Path | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    ignore_index: int = IGNORE_INDEX,
    skip_bad_images: bool = False,
) -> SegmentationDataset:
    """Load one split, or a slice of it; the names mean what they do in `load_split`.

    Args:
        spec: as for `load_segmentation_splits`, like all the others but `split`.
        split: "train", "validation", "test", or "all" for data that is stored undivided; with a
            slice if wanted, "train[:2000]".
        image_column: the column of the images.
        mask_column: the column of the masks.
        classes_file: the class names.
        validation_fraction: share of the train rows that makes a missing validation split.
        seed: chooses that validation split.
        ignore_index: the id of pixels that belong to no class.
        skip_bad_images: leave unusable rows out.

    Raises:
        UserError: if the data set, split or slice is unknown or empty.
    """
    check_split_options(validation_fraction, seed)
    stored = _read(spec, image_column, mask_column, classes_file, seed, ignore_index)
    return one_split(
        _without_bad_pairs(stored) if skip_bad_images else stored,
        split,
        fraction=validation_fraction,
        seed=seed,
    )


def _without_bad_pairs(stored: StoredMasks) -> StoredMasks:
    splits = {split: without_bad_pairs(dataset) for split, dataset in stored.splits.items()}
    return replace(stored, splits=splits)


def _read(
    spec: str,
    image_column: str | None,
    mask_column: str | None,
    classes_file: str | Path | None,
    seed: int,
    ignore_index: int,
) -> StoredMasks:
    if spec in BUILT_IN:
        return _shapes(spec, seed, ignore_index)
    path = Path(spec).expanduser()
    if path.is_dir():
        name = path.resolve().name
        files = parquet_files(path)
        classes = _class_names(name, classes_file, path)
        if not files:
            if mask_column is not None:
                raise UserError(
                    f"--mask-column {mask_column}: {spec} is a folder of pictures, which has no "
                    "columns: its masks are the files in masks/; leave --mask-column out."
                )
            return read_mask_folder(path, classes, ignore_index)
        tables = parquet_tables(name, files)
    elif path.is_file():
        files = parquet_files(path)
        classes = _class_names(path.name, classes_file, path.parent)
        tables = parquet_tables(path.stem, files)
    elif spec.startswith((".", "~")) or path.is_absolute() or path.suffix == ".parquet":
        raise UserError(f"No such file or folder: {spec}; check the path.")
    elif is_hub_name(spec):
        classes = _class_names(spec, classes_file, None)
        tables = hub_tables(spec)
    else:
        raise UserError(
            f'Unknown data set "{spec}". {nearest(spec, BUILT_IN)} '
            "There is no file or folder of that name either."
        )
    return masked_images(tables, classes, ignore_index, image_column, mask_column)


def _class_names(name: str, file: str | Path | None, folder: Path | None) -> tuple[str, ...]:
    if file is None and folder is None:
        raise UserError(
            f"{name}: masks hold ids, not names; give a file with one class name per line, in the "
            "order of the ids, as --classes-file."
        )
    path = Path(file).expanduser() if file is not None else (folder or Path()) / "classes.txt"
    if not path.is_file():
        raise UserError(
            f"{name}: there is no {path}; write one class name per line into it, in the order of "
            "the ids, or name another file with --classes-file."
        )
    return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())


def _shapes(spec: str, seed: int, ignore_index: int) -> StoredMasks:
    """Return the world of shapes with its masks: every pixel is background or one of six shapes."""
    splits = shapes_splits(seed=seed, style="out" if spec == "shapes-out" else "in")
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    masked = {
        split: SegmentationDataset(
            name=part.name,
            classes=MASK_CLASSES,
            images=part.images,
            masks=part.columns["mask"],
            ignore_index=ignore_index,
            columns={key: column for key, column in part.columns.items() if key != "mask"},
            identity=derived(part.identity, "masks"),
        )
        for split, part in parts.items()
    }
    return StoredMasks(spec, masked)
