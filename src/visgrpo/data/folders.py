"""Folders of pictures: by class, with masks beside them, CIFAR's binary files, and photos."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from visgrpo.data.images import decode, decode_mask
from visgrpo.data.roles import image_table, mask_table
from visgrpo.data.table import SPLIT_NAMES, LazySequence, Table, of_files
from visgrpo.errors import UserError, nearest

EXTENSIONS = frozenset(
    f".{end}" for end in ("png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm")
)


def read_image_folder(folder: Path) -> dict[str, Table]:
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
    return {
        split: _read_split(folder, split, found, class_names)
        for split, found in class_folders.items()
    }


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


def _read_split(folder: Path, split: str, found: list[Path], class_names: dict[str, str]) -> Table:
    ids = {folder_name: index for index, folder_name in enumerate(class_names)}
    files: list[Path] = []
    labels: list[int] = []
    for entry in found:
        images = image_files(entry)
        if not images:
            raise UserError(f"{entry} holds no images; add some or remove the folder.")
        files += images
        labels += [ids[entry.name]] * len(images)
    return image_table(
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


_PIXELS = 3 * 32 * 32


def read_cifar(folder: Path) -> dict[str, Table] | None:
    """Read a folder of CIFAR files, or return None if it is not one.

    CIFAR-100's 20 coarse labels are kept in the column "coarse_label", by name.

    Raises:
        UserError: if it is the pickled version, a file is missing, or a file is cut short.
    """
    if any((folder / name).is_file() for name in ("data_batch_1", "batches.meta", "meta")):
        raise UserError(
            f"{folder} is the python version of CIFAR: it is pickled, and unpickling runs whatever "
            "code the file holds; download the binary version instead, or name cifar10 or cifar100."
        )
    if (folder / "batches.meta.txt").is_file():
        batches = sorted(folder.glob("data_batch_*.bin"))
        return _read_binary(
            folder, {"train": batches, "test": [folder / "test_batch.bin"]}, coarse=False
        )
    if (folder / "fine_label_names.txt").is_file():
        files = {"train": [folder / "train.bin"], "test": [folder / "test.bin"]}
        return _read_binary(folder, files, coarse=True)
    return None


def _read_binary(folder: Path, files: dict[str, list[Path]], *, coarse: bool) -> dict[str, Table]:
    classes = _lines(folder / ("fine_label_names.txt" if coarse else "batches.meta.txt"))
    coarse_names = _lines(folder / "coarse_label_names.txt") if coarse else ()
    splits = {}
    for split, paths in files.items():
        if not paths:
            raise UserError(f"{folder} has no data_batch_*.bin; unpack the whole archive.")
        records = np.concatenate([_records(path, 1 + coarse) for path in paths])
        labels, pixels = records[:, :-_PIXELS], records[:, -_PIXELS:].reshape(-1, 3, 32, 32)
        names = [coarse_names[label] for label in labels[:, 0]] if coarse else []
        splits[split] = image_table(
            name=f"{folder.resolve().name}/{split}",
            classes=classes,
            labels=labels[:, -1].astype(np.int64),
            images=LazySequence(partial(_image, pixels), range(len(pixels))),
            columns={"coarse_label": names} if coarse else {},
            identity=of_files(paths),
        )
    return splits


def _records(path: Path, label_bytes: int) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{path} is missing; unpack the whole archive.")
    content = np.fromfile(path, dtype=np.uint8)
    if len(content) == 0 or len(content) % (label_bytes + _PIXELS):
        raise UserError(
            f"{path} is cut short: {len(content)} bytes is no multiple of "
            f"{label_bytes + _PIXELS}; download it again."
        )
    return content.reshape(-1, label_bytes + _PIXELS)


def _image(pixels: np.ndarray, row: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[row].transpose(1, 2, 0)))


def _lines(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise UserError(f"{path} is missing; unpack the whole archive.")
    return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())


def holds_photos(folder: Path) -> bool:
    """Return whether images lie in `folder` itself, and not in folders named by their classes."""
    return folder.is_dir() and any(
        entry.suffix.lower() in EXTENSIONS and entry.is_file() for entry in folder.iterdir()
    )


def read_photos(folder: Path) -> tuple[list[str], LazySequence]:
    """Return the names of all images below `folder`, relative to it, and the images themselves.

    Returns:
        M names with "/" between their parts, sorted by path, and M RGB images, decoded on access.

    Raises:
        UserError: if there are none.
    """
    files = image_files(folder)
    if not files:
        raise UserError(f"{folder} holds no images; name another folder.")
    return [file.relative_to(folder).as_posix() for file in files], images_of(files)


def read_mask_folder(folder: Path, classes: tuple[str, ...], ignore_index: int) -> dict[str, Table]:
    """Read `folder/train/{images,masks}/…` (with val and test beside it) or `folder/images/…`.

    An image and its mask have one path below `images/` and `masks/`, but for its ending. The path
    of each image below `folder` is kept in the column "file".

    Raises:
        UserError: if a folder is missing or empty, or an image and a mask do not match.
    """
    roots = split_folders(folder) or {"all": folder}
    return {
        split: _read_masks(folder, split, root, classes, ignore_index)
        for split, root in roots.items()
    }


def _read_masks(
    folder: Path, split: str, root: Path, classes: tuple[str, ...], ignore_index: int
) -> Table:
    images, masks = _matched(root)
    return mask_table(
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
