"""Tensors that are kept on the disk by name: what a frozen encoder makes of an image, once for all.

One SQLite file, so that several processes may read and write at once, and a kill leaves whole
entries alone. It is bounded: the oldest entries make room for new ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from visgrpo.data.table import Content, LazySequence
from visgrpo.errors import UserError

FILE = "features.sqlite"
MOST_BYTES = 32 * 2**30
"""The size at which the oldest entries make room."""
WAIT = 120.0  # seconds for another process to finish writing
ASKED_AT_ONCE = 500
_TABLE = """CREATE TABLE IF NOT EXISTS kept (
    place INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, kind TEXT NOT NULL, sum INTEGER NOT NULL,
    data BLOB NOT NULL)"""


def default_folder() -> Path:
    """Return $VISGRPO_CACHE, or ~/.cache/visgrpo/features."""
    return Path(os.environ.get("VISGRPO_CACHE") or "~/.cache/visgrpo/features").expanduser()


class Kept:
    """Tensors by name, in a file of a folder.

    Args:
        folder: `default_folder()` if None.
        key: everything that the tensors depend on beside what a name says, such as `weights_key`:
            names mean something under their key alone.
    """

    def __init__(self, folder: Path | None, key: Mapping[str, str]) -> None:
        self.folder = folder or default_folder()
        self._key = hashlib.blake2b(json.dumps(dict(key), sort_keys=True).encode()).digest()

    @property
    def file(self) -> Path:
        return self.folder / FILE

    def read(self, names: Sequence[bytes]) -> Iterator[tuple[bytes, Tensor]]:
        """Yield those of some names that are kept, each once and in any order, with their tensors.

        Raises:
            UserError: the file is damaged.
        """
        if not self.file.exists():
            return
        mine = {self._mine(name): name for name in names}
        asked_for = list(mine)
        with self._open() as kept:
            for start in range(0, len(asked_for), ASKED_AT_ONCE):
                some = asked_for[start : start + ASKED_AT_ONCE]
                marks = ",".join("?" * len(some))
                asked = f"SELECT name, kind, sum, data FROM kept WHERE name IN ({marks})"
                for name, kind, total, data in kept.execute(asked, some):
                    if total != _sum(name, kind, data):
                        raise self._damaged("an entry is not what was written")
                    yield mine[name], _tensor(kind, data)

    def write(self, tensors: Mapping[bytes, Tensor]) -> None:
        """Keep tensors by name, all or none of them.

        Raises:
            UserError: the folder cannot be written or is full.
        """
        rows = []
        for name, tensor in tensors.items():
            own, (kind, data) = self._mine(name), _bytes(tensor)
            rows.append((own, kind, _sum(own, kind, data), data))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._full(error.strerror or str(error)) from error
        with self._open() as kept:
            kept.execute("BEGIN IMMEDIATE")
            kept.execute(_TABLE)
            self._make_room(kept, sum(len(row[-1]) for row in rows))
            kept.executemany(
                "INSERT OR REPLACE INTO kept (name, kind, sum, data) VALUES (?, ?, ?, ?)", rows
            )
            kept.execute("COMMIT")

    def _make_room(self, kept: sqlite3.Connection, needed: int) -> None:
        """Forget the oldest entries; their pages in the file are written again."""
        pages, unused, size = (
            kept.execute(f"PRAGMA {what}").fetchone()[0]
            for what in ("page_count", "freelist_count", "page_size")
        )
        over = (pages - unused) * size + needed - MOST_BYTES
        if over <= 0:
            return
        freed, last = 0, 0
        for place, length in kept.execute("SELECT place, length(data) FROM kept ORDER BY place"):
            if freed >= over:
                break
            freed, last = freed + length, place
        kept.execute("DELETE FROM kept WHERE place <= ?", (last,))

    def _mine(self, name: bytes) -> bytes:
        return hashlib.blake2b(name, key=self._key, digest_size=16).digest()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.file, WAIT, isolation_level=None)) as kept:
                yield kept
        except sqlite3.OperationalError as error:
            raise self._full(str(error)) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error

    def _full(self, reason: str) -> UserError:
        return UserError(
            f"Features cannot be kept in {self.folder} ({reason}); make room there, "
            "or name another folder (--cache or VISGRPO_CACHE)."
        )

    def _damaged(self, reason: str) -> UserError:
        return UserError(
            f"The cached features {self.file} cannot be used ({reason}); delete the file, and "
            "they are made again."
        )


def weights_key(module: nn.Module, *, but: nn.Module | None = None) -> str:
    """Return a hash of all parameters and buffers: names, types, shapes and bytes.

    Args:
        but: a part of it whose weights do not count.
    """
    left_out = set(map(id, but.parameters())) if but is not None else set()
    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if id(tensor) in left_out:
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor)[1])
    return digest.hexdigest()


def picture_names(images: Sequence[Image.Image]) -> list[bytes]:
    """Return what tells pictures apart: equal names are equal pictures.

    That is the place, size and time of a file, encoded bytes, or else the pixels.
    """
    return [_picture_name(images, row) for row in range(len(images))]


def content_name(tensor: Tensor) -> str:
    """Return what tells a tensor from others: of its type, shape and numbers."""
    kind, content = _bytes(tensor)
    digest = hashlib.blake2b(kind.encode(), digest_size=16)
    digest.update(content)
    return digest.hexdigest()


def _picture_name(images: Sequence[Image.Image], row: int) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    parts: Sequence[Content] = images.content(row) if isinstance(images, LazySequence) else ()
    for part in parts:
        if isinstance(part, Path):
            status = part.stat()
            line = f"{os.path.realpath(part)}\0{status.st_size}\0{status.st_mtime_ns}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        else:
            digest.update(part)
    if not parts:
        image = images[row]
        digest.update(f"{image.mode} {image.size}\n".encode() + image.tobytes())
    return digest.digest()


def _bytes(tensor: Tensor) -> tuple[str, memoryview]:
    """Return a tensor's type and shape, and its content."""
    plain = tensor.detach().cpu().contiguous()
    kind = f"{str(plain.dtype).removeprefix('torch.')} {' '.join(map(str, plain.shape))}"
    return kind, plain.reshape(-1).view(torch.uint8).numpy().data


def _tensor(kind: str, data: bytes) -> Tensor:
    dtype, *sides = kind.split()
    numbers = torch.from_numpy(np.frombuffer(bytearray(data), np.uint8))
    return numbers.view(getattr(torch, dtype)).view(*map(int, sides))


def _sum(name: bytes, kind: str, data: bytes | memoryview) -> int:
    return zlib.crc32(data, zlib.crc32(name + kind.encode()))
