"""What a data set holds, as a line of text made without decoding an image.

Equal lines mean equal images, in the same order. "" means unknown, and stays "" whatever is made
of it: a data set built in Python may hold anything.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence

import numpy as np


def of_files(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Name the content of files by their resolved paths, sizes and times of change."""
    digest, count = hashlib.sha256(), 0
    for path in paths:
        status = os.stat(path)
        line = f"{os.path.realpath(path)}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
        count += 1
    return f"{count} files {_short(digest.hexdigest())}"


def of_bytes(kind: str, parts: Iterable[bytes]) -> str:
    """Name content that is in memory, such as the pixels of a small built-in data set."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return f"{kind} {_short(digest.hexdigest())}"


def derived(identity: str, what: str) -> str:
    """Name what is made of a data set; of an unknown one it is unknown."""
    return f"{identity} > {what}" if identity else ""


def of_rows(identity: str, rows: np.ndarray) -> str:
    """Name the rows of a data set at the positions `rows`, in that order."""
    if not identity:
        return ""
    content = np.ascontiguousarray(rows, dtype="<i8").tobytes()
    return derived(identity, of_bytes(f"{len(rows)} rows", [content]))


def joined(identities: Sequence[str]) -> str:
    """Name several data sets in a row; if one is unknown, so is the whole."""
    return " + ".join(f"({identity})" for identity in identities) if all(identities) else ""


def _short(digest: str) -> str:
    return digest[:32]
