"""Photos without labels: the images of a folder that has no class folders."""

from __future__ import annotations

from pathlib import Path

from visgrpo.data.dataset import LazySequence
from visgrpo.data.folders import EXTENSIONS, image_files, images_of
from visgrpo.errors import UserError


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
