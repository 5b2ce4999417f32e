"""CIFAR-10 and CIFAR-100 as published in binary, read with numpy.

Each record is its label bytes followed by 3,072 pixel bytes: 32 × 32 red, then green, then blue
(https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from visgrpo.data.dataset import ImageDataset, LazySequence
from visgrpo.data.identity import of_files
from visgrpo.data.splitting import Source
from visgrpo.errors import UserError

_PIXELS = 3 * 32 * 32


def read_cifar(folder: Path) -> Source | None:
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
        return _read(folder, {"train": batches, "test": [folder / "test_batch.bin"]}, coarse=False)
    if (folder / "fine_label_names.txt").is_file():
        files = {"train": [folder / "train.bin"], "test": [folder / "test.bin"]}
        return _read(folder, files, coarse=True)
    return None


def _read(folder: Path, files: dict[str, list[Path]], *, coarse: bool) -> Source:
    classes = _lines(folder / ("fine_label_names.txt" if coarse else "batches.meta.txt"))
    coarse_names = _lines(folder / "coarse_label_names.txt") if coarse else ()
    splits = {}
    for split, paths in files.items():
        if not paths:
            raise UserError(f"{folder} has no data_batch_*.bin; unpack the whole archive.")
        records = np.concatenate([_records(path, 1 + coarse) for path in paths])
        labels, pixels = records[:, :-_PIXELS], records[:, -_PIXELS:].reshape(-1, 3, 32, 32)
        names = [coarse_names[label] for label in labels[:, 0]] if coarse else []
        splits[split] = ImageDataset(
            name=f"{folder.resolve().name}/{split}",
            classes=classes,
            labels=labels[:, -1].astype(np.int64),
            images=LazySequence(partial(_image, pixels), range(len(pixels))),
            columns={"coarse_label": names} if coarse else {},
            identity=of_files(paths),
        )
    return Source(folder.resolve().name, splits)


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
