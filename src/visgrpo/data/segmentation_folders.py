"""Folders of images and masks with equal file names, with or without train, val and test."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from PIL import Image

from visgrpo.data.dataset import LazySequence
from visgrpo.data.folders import image_files, images_of, split_folders
from visgrpo.data.identity import of_files
from visgrpo.data.mask_decoding import decode_mask
from visgrpo.data.segmentation import SegmentationDataset
from visgrpo.data.segmentation_splitting import StoredMasks
from visgrpo.errors import UserError


def read_mask_folder(folder: Path, classes: tuple[str, ...], ignore_index: int) -> StoredMasks:
    """Read `folder/train/{images,masks}/…` (with val and test beside it) or `folder/images/…`.

    An image and its mask have one path below `images/` and `masks/`, but for its ending. The path
    of each image below `folder` is kept in the column "file".

    Raises:
        UserError: if a folder is missing or empty, or an image and a mask do not match.
    """
    roots = split_folders(folder) or {"all": folder}
    splits = {
        split: _read_split(folder, split, root, classes, ignore_index)
        for split, root in roots.items()
    }
    return StoredMasks(folder.resolve().name, splits)


def _read_split(
    folder: Path, split: str, root: Path, classes: tuple[str, ...], ignore_index: int
) -> SegmentationDataset:
    images, masks = _matched(root)
    return SegmentationDataset(
        name=f"{folder.resolve().name}/{split}",
        classes=classes,
        images=images_of(images),
        masks=LazySequence(partial(_open_mask, masks), range(len(masks))),
        ignore_index=ignore_index,
        columns={"file": [path.relative_to(folder).as_posix() for path in images]},
        identity=of_files([*images, *masks]),
    )


def _open_mask(files: list[Path], row: int) -> Image.Image:
    return decode_mask(files[row], f"mask {files[row]}")


def _matched(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the images below `root/images` and, in the same order, their masks."""
    images, masks = _by_stem(root / "images"), _by_stem(root / "masks")
    for these, others, other in ((images, masks, "masks"), (masks, images, "images")):
        alone = [stem for stem in these if stem not in others]
        if alone:
            more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
            raise UserError(
                f"{these[alone[0]]}{more} has no file of the same name in {root / other}; add it "
                "or remove this one."
            )
    return list(images.values()), [masks[stem] for stem in images]


def _by_stem(folder: Path) -> dict[str, Path]:
    found = image_files(folder) if folder.is_dir() else []
    if not found:
        raise UserError(
            f"{folder} is missing or holds no pictures; give images/ and masks/ with equal file "
            "names, or a folder of both in each of train/, val/ and test/."
        )
    by_stem: dict[str, Path] = {}
    for path in found:
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in by_stem:
            raise UserError(f"{by_stem[stem]} and {path} have one name; keep one of them.")
        by_stem[stem] = path
    return by_stem
