"""Folders of pictures: by class, with masks beside them, CIFAR's binary files, and photos."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from visgrpo.data.images import decode, decode_mask
from visgrpo.data.names import SYNSET, as_read, class_names, split_of
from visgrpo.data.roles import image_table, mask_table
from visgrpo.data.strings import Strings
from visgrpo.data.table import LazySequence, Table, of_files
from visgrpo.errors import UserError, nearest
from visgrpo.progress import Bar
from visgrpo.texts import composed, names_in

EXTENSIONS = frozenset(
    f".{end}" for end in ("png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm")
)
ANNOTATIONS = "val_annotations.txt"


def read_image_folder(folder: Path) -> dict[str, Table]:
    """Read `folder/train/<class>/…` (with val and test beside it) or `folder/<class>/…`.

    Images may lie deeper than the class folder (as in Tiny ImageNet, whose `val_annotations.txt` is
    read too). Class names are the folders' names unless `classes.txt`, `LOC_synset_mapping.txt` or
    `words.txt` gives better ones. The path of each image below `folder` is kept in the column
    "file". Held-out splits without labels are left out; a table's notes say so.

    Raises:
        UserError: if there are no class folders, one of them holds no image, the splits disagree
            about the classes, a class file does not fit, or the folder is of another layout.
    """
    roots = split_folders(folder)
    notes = _left_out(folder, roots)
    roots = roots or {"all": folder}
    reference = next(split for split in ("train", "all", *roots) if split in roots)
    by_class: dict[str, dict[str, Strings]] = {}
    for split, root in roots.items():
        files = _by_class(folder, root)
        if split != reference and _unlabelled(root, files):
            notes.append(f"{root} holds pictures without classes and was left out.")
        elif not files:
            raise UserError(f"{root} {_what_is_missing(root)}")
        else:
            by_class[split] = files
    _refuse_other_layouts(roots[reference])
    names = list(by_class[reference])
    for split, found in by_class.items():
        for name, paths in found.items():
            if name not in names:
                raise UserError(
                    f'{roots[split] / name}: class "{name}" is not in {roots[reference]}. '
                    f"{nearest(name, names)}"
                )
            if not paths:
                raise UserError(
                    f"{roots[split] / name} holds no images; add some or remove the folder."
                )
    classes, said = _class_names(folder, names)
    notes += said
    return {
        split: _class_table(folder, split, found, classes, tuple(notes))
        for split, found in by_class.items()
    }


def split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders named for splits (train, val, test, "Training", …) below `folder`.

    A folder called "train" beside others of pictures, none of which has folders within, is a class.

    Raises:
        UserError: if two are the same split.
    """
    roots: dict[str, Path] = {}
    entries = _subfolders(folder)
    for entry in entries:
        split = split_of(entry.name)
        if split in roots:
            raise UserError(f"{roots[split]} and {entry} are both the {split} split; keep one.")
        if split is not None:
            roots[split] = _unwrapped(entry, split)
    if len(roots) < len(entries) and not any(map(_subfolders, roots.values())):
        return {}
    return roots


def image_files(folder: Path) -> list[Path]:
    """Return the image files below `folder`, sorted, hidden ones and hidden folders left out."""
    return [folder / name for name in _names_below(folder)]


def _names_below(folder: Path) -> list[str]:
    """Return the names of the image files below `folder`, relative to it, in the order of paths."""
    found: list[str] = []
    with Bar(f"images in {folder}") as bar:
        for place, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not _is_hidden(name)]
            inner = Path(place).relative_to(folder).as_posix()
            before = "" if inner == "." else f"{inner}/"
            for name in files:
                is_image = os.path.splitext(name)[1].lower() in EXTENSIONS
                if is_image and name[0] != "." and os.path.isfile(os.path.join(place, name)):
                    found.append(before + name)
                    bar.to(len(found))
    found.sort(key=lambda name: name.split("/") if "/" in name else [name])
    return found


def images_of(folder: Path, names: Sequence[str]) -> LazySequence[Image.Image]:
    """Return the RGB images of files in `folder`, decoded on access."""
    opened = partial(_open, folder, names)
    return LazySequence(opened, range(len(names)), contents=lambda row: [folder / names[row]])


def _open(folder: Path, names: Sequence[str], row: int) -> Image.Image:
    return decode(folder / names[row], f"image {folder / names[row]}")


def _class_table(
    folder: Path,
    split: str,
    by_class: dict[str, Strings],
    classes: dict[str, str],
    notes: tuple[str, ...],
) -> Table:
    ids = {folder_name: index for index, folder_name in enumerate(classes)}
    files = Strings.joined(by_class.values())
    labels = np.repeat([ids[name] for name in by_class], list(map(len, by_class.values())))
    return image_table(
        name=f"{folder.resolve().name}/{split}",
        classes=tuple(classes.values()),
        labels=labels,
        images=images_of(folder, files),
        columns={"file": files},
        identity=of_files(os.path.join(folder, name) for name in files),
        notes=notes,
    )


def _by_class(folder: Path, root: Path) -> dict[str, Strings]:
    """Return the image files of each class, by the composed form of its folder's name.

    They are called by their places below `folder`, in which `root` lies.
    """
    if (root / ANNOTATIONS).is_file():
        lines = [line.split("\t") for line in names_in(root / ANNOTATIONS)]
        annotated: dict[str, list[str]] = {}
        below = (root / "images").relative_to(folder)
        for name, label in sorted((line[1], line[0]) for line in lines if len(line) > 1):
            annotated.setdefault(name, []).append((below / label).as_posix())
        return {name: Strings.of(files) for name, files in annotated.items()}
    found: dict[str, Path] = {}
    for entry in _subfolders(root):
        name = composed(entry.name)
        if name in found:
            raise UserError(
                f'{root} has two folders "{name}", whose accents are written differently; '
                "put their pictures into one."
            )
        found[name] = entry
    return {
        name: Strings.of(
            f"{entry.relative_to(folder).as_posix()}/{file}" for file in _names_below(entry)
        )
        for name, entry in found.items()
    }


def _unlabelled(root: Path, by_class: dict[str, Strings]) -> bool:
    """Whether a split has pictures in no folder, or in one that says what they are."""
    alone = {as_read(name) for name in by_class} <= {"images", "imgs"}
    return alone and bool(image_files(root))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry.name)
    )


def _is_hidden(name: str) -> bool:
    """Whether a folder is one of a system's or a program's own."""
    return name.startswith((".", "__", "@eaDir", "@Recycle", "#recycle", "$RECYCLE"))


def _unwrapped(root: Path, split: str) -> Path:
    """Return the one folder of the same split within, as archives are unpacked."""
    inner = _subfolders(root)
    return inner[0] if len(inner) == 1 and split_of(inner[0].name) == split else root


def _left_out(folder: Path, roots: dict[str, Path]) -> list[str]:
    others = [entry.name for entry in _subfolders(folder) if split_of(entry.name) is None]
    if not roots or not others:
        return []
    return [f"{folder}: beside its splits, {', '.join(others)} was left out."]


def _refuse_other_layouts(root: Path) -> None:
    """Refuse "class" folders that are images and masks, domains or splits of other names."""
    entries = _subfolders(root)
    if {"images", "masks"} <= {entry.name.lower() for entry in entries}:
        raise UserError(
            f"{root} holds images/ and masks/, which are no classes: it is data of visgrpo "
            "segmentation."
        )
    within = [frozenset(inner.name for inner in _subfolders(entry)) for entry in entries]
    alike = len(entries) > 1 and len(set(within)) == 1 and len(within[0]) > 1
    if alike and not any(map(holds_photos, entries)):
        raise UserError(
            f"{root}: its folders ({_few(entry.name for entry in entries)}) all hold the same "
            f"folders ({_few(sorted(within[0]))}) and no pictures: they are domains or splits, not "
            "classes; name one of them, or call them train and test."
        )


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:4]) + (", …" if len(listed) > 4 else "")


def _what_is_missing(folder: Path) -> str:
    if image_files(folder):
        return "holds images but no class folders; put each image into a folder named by its class."
    if any(folder.iterdir()):
        return "holds no images, no tables and no known layout; name another folder."
    return "is empty; name a folder with one sub-folder of images per class."


def _class_names(folder: Path, folders: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the class name of each class folder, in the order of the class ids, and notes."""
    synsets = all(map(SYNSET.fullmatch, folders))
    for name in ("classes.txt", "LOC_synset_mapping.txt", *(["words.txt"] if synsets else [])):
        if (folder / name).is_file():
            return class_names(folder / name, names_in(folder / name), folders)
    return {name: name for name in folders}, ()


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
    return tuple(names_in(path))


def holds_photos(folder: Path) -> bool:
    """Return whether images lie in `folder` itself, and not in folders named by their classes."""
    return folder.is_dir() and any(
        entry.suffix.lower() in EXTENSIONS and entry.is_file() for entry in folder.iterdir()
    )


def read_photos(folder: Path) -> tuple[Strings, LazySequence]:
    """Return the names of all images below `folder`, relative to it, and the images themselves.

    Returns:
        M names with "/" between their parts, sorted by path, and M RGB images, decoded on access.

    Raises:
        UserError: if there are none.
    """
    names = Strings.of(_names_below(folder))
    if not names:
        raise UserError(f"{folder} holds no images; name another folder.")
    return names, images_of(folder, names)


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
    names = Strings.of(path.relative_to(folder).as_posix() for path in images)
    return mask_table(
        name=f"{folder.resolve().name}/{split}",
        classes=classes,
        images=images_of(folder, names),
        masks=LazySequence(partial(_open_mask, masks), range(len(masks))),
        ignore_index=ignore_index,
        columns={"file": names},
        identity=of_files([*images, *masks]),
    )


def _open_mask(files: list[Path], row: int) -> Image.Image | np.ndarray:
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
