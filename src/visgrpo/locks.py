"""A folder that one process has for itself, until it ends, however that is."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from visgrpo.errors import UserError
from visgrpo.files import writing

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """Holds a folder against other processes, from here to `release` or the end of the process.

    The folder is made if need be, and taken away again by `release` where nothing was put into it.

    Args:
        mend: what to do where another process holds it.
        shared: the processes of one run share it: only the first takes the lock.

    Raises:
        UserError: another process holds it.
    """

    def __init__(
        self,
        folder: Path,
        mend: str = "wait until it has ended, or name another --output",
        *,
        shared: bool = True,
    ) -> None:
        self._made = [each for each in (folder, *folder.parents) if not each.exists()]
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._descriptor: int | None = None
        if fcntl is None or (shared and int(os.environ.get("RANK", "0"))):
            return
        self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(os.fstat(self._descriptor))
            os.close(self._descriptor)
            raise UserError(f"{folder} is in use by {holder}: {mend}.") from None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others have the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        with contextlib.suppress(OSError):  # what is not empty stays
            for each in self._made:
                each.rmdir()
        self._made = []


def _holder(folder: os.stat_result) -> str:
    """Return who holds the lock of a folder: the process, where the system says so."""
    place = f"{os.major(folder.st_dev):02x}:{os.minor(folder.st_dev):02x}:{folder.st_ino}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            words = line.split()
            if "FLOCK" in words and place in words and "->" not in words:
                return f"process {words[words.index(place) - 1]}"
    return "another process"
