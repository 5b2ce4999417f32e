"""Many short texts, such as names of files, in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, overload

import numpy as np
import pyarrow as pa


class Strings(Sequence[Any]):
    """M texts, or None, in one block of memory: a Python string of each takes some 60 bytes more.

    Names of files may be no UTF-8: they are kept as the bytes that the system knows them by.
    """

    def __init__(self, bytes_M: pa.ChunkedArray) -> None:
        self._bytes_M = bytes_M.cast(pa.large_binary()).combine_chunks()

    @classmethod
    def of(cls, texts: Iterable[str]) -> Strings:
        """Return texts that are made one by one."""
        rest, parts = iter(texts), []
        while some := [text.encode("utf-8", "surrogateescape") for text in islice(rest, 8192)]:
            parts.append(pa.array(some, pa.large_binary()))
        return cls(pa.chunked_array(parts, pa.large_binary()))

    @classmethod
    def joined(cls, several: Iterable[Strings]) -> Strings:
        """Return the texts of several, in order."""
        return cls(pa.chunked_array([each._bytes_M for each in several], pa.large_binary()))

    def __len__(self) -> int:
        return len(self._bytes_M)

    @overload
    def __getitem__(self, index: int | np.integer) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Strings: ...
    def __getitem__(self, index: int | np.integer | slice) -> Any:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return _text(self._bytes_M[int(index)])

    def __iter__(self) -> Iterator[Any]:
        return map(_text, self._bytes_M)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))

    def unique(self) -> Strings:
        """Return every text once, in the order of first occurrence."""
        return Strings(pa.chunked_array([self._bytes_M.unique()]))

    def take(self, rows: np.ndarray) -> Strings:
        """Return the texts at `rows`, in that order."""
        return Strings(pa.chunked_array([self._bytes_M.take(pa.array(rows, pa.int64()))]))


def _text(value: pa.Scalar) -> str | None:
    held = value.as_py()
    return None if held is None else held.decode("utf-8", "surrogateescape")
