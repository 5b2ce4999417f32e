"""Image folders: one sub-folder per class, with or without train, val and test above them."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from visgrpo.data.dataset import ImageDataset, LazySequence
from visgrpo.data.decoding import decode
from visgrpo.data.identity import of_files
from visgrpo.data.splitting import Source
from visgrpo.errors import UserError, nearest

SPLIT_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
EXTENSIONS = frozenset(
    f".{end}" for end in ("png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm")
)


def read_image_folder(folder: Path) -> Source:
    """Read `folder/train/<class>/…` (with val and test beside it) or `folder/<class>/…`.

    Images may lie deeper than the class folder (as in Tiny ImageNet). Class names are the folders'
    names unless `classes.txt` or `LOC_synset_mapping.txt` gives better ones. The path of each image
    below `folder` is kept in the column "file".

    Raises:
        UserError: if there are no class folders, one of them holds no image, the splits disagree
            about the classes, or a class file does not fit.
    """
    roots = split_folders(folder) or {"all": folder}
    class_folders = {split: _subfolders(root) for split, root in roots.items()}
    for split, found in class_folders.items():
        if not found:
            raise UserError(f"{roots[split]} {_what_is_missing(roots[split])}")
    reference = next(split for split in ("train", "all", *roots) if split in roots)
    names = [entry.name for entry in class_folders[reference]]
    for found in class_folders.values():
        for entry in found:
            if entry.name not in names:
                raise UserError(
                    f'{entry}: class "{entry.name}" is not in {roots[reference]}. '
                    f"{nearest(entry.name, names)}"
                )
    class_names = _class_names(folder, names)
    return Source(
        folder.resolve().name,
        {
            split: _read_split(folder, split, found, class_names)
            for split, found in class_folders.items()
        },
    )


def split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders named for splits (train, val, test) below `folder`, by split.

    Raises:
        UserError: if two are the same split.
    """
    roots: dict[str, Path] = {}
    for entry in _subfolders(folder):
        split = SPLIT_NAMES.get(entry.name.lower())
        if split in roots:
            raise UserError(f"{roots[split]} and {entry} are both the {split} split; keep one.")
        if split is not None:
            roots[split] = entry
    return roots


def image_files(folder: Path) -> list[Path]:
    """Return the image files below `folder`, sorted, hidden ones left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )


def images_of(files: list[Path]) -> LazySequence[Image.Image]:
    """Return the RGB images of `files`, decoded on access."""
    return LazySequence(partial(_open, files), range(len(files)))


def _open(files: list[Path], row: int) -> Image.Image:
    return decode(files[row], f"image {files[row]}")


def _read_split(
    folder: Path, split: str, found: list[Path], class_names: dict[str, str]
) -> ImageDataset:
    ids = {folder_name: index for index, folder_name in enumerate(class_names)}
    files: list[Path] = []
    labels: list[int] = []
    for entry in found:
        images = image_files(entry)
        if not images:
            raise UserError(f"{entry} holds no images; add some or remove the folder.")
        files += images
        labels += [ids[entry.name]] * len(images)
    return ImageDataset(
        name=f"{folder.resolve().name}/{split}",
        classes=tuple(class_names.values()),
        labels=np.array(labels, dtype=np.int64),
        images=images_of(files),
        columns={"file": [path.relative_to(folder).as_posix() for path in files]},
        identity=of_files(files),
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith((".", "__"))
    )


def _what_is_missing(folder: Path) -> str:
    if image_files(folder):
        return "holds images but no class folders; put each image into a folder named by its class."
    if any(folder.iterdir()):
        return "holds no images, no parquet files and no known layout; name another folder."
    return "is empty; name a folder with one sub-folder of images per class."


def _class_names(folder: Path, folder_names: list[str]) -> dict[str, str]:
    """Return the class name of each class folder, in the order of the class ids."""
    for file in (folder / "classes.txt", folder / "LOC_synset_mapping.txt"):
        if file.is_file():
            lines = [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
            return _from_lines(file, lines, folder_names)
    return {name: name for name in folder_names}


def _from_lines(file: Path, lines: list[str], folder_names: list[str]) -> dict[str, str]:
    if sorted(lines) == folder_names:
        return {name: name for name in lines}  # the folders' own names: the file gives the order
    words = [line.split(maxsplit=1) for line in lines]
    named = {word[0]: word[1] for word in words if len(word) == 2}
    if set(folder_names) <= set(named):
        return _distinct({name: named[name] for name in folder_names})
    mentioned = set(named) | set(lines)
    missing = [name for name in folder_names if name not in mentioned]
    if missing and len(missing) < len(folder_names):
        raise UserError(f'{file} has no line for class folder "{missing[0]}"; add one.')
    if len(lines) != len(folder_names):
        raise UserError(
            f"{file} names {len(lines)} classes but there are {len(folder_names)} class folders; "
            "give one line per folder, in sorted order."
        )
    return dict(zip(folder_names, lines, strict=True))


def _distinct(names: dict[str, str]) -> dict[str, str]:
    # ImageNet calls two of its synsets "crane": the folder's name tells them apart.
    count = Counter(names.values())
    return {key: f"{text} ({key})" if count[text] > 1 else text for key, text in names.items()}
