"""A table: M rows with named columns, some of which have a role that reads and checks them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
from PIL import Image

from visgrpo.data.strings import Strings
from visgrpo.errors import UserError
from visgrpo.progress import tracked

T = TypeVar("T")
IGNORE_INDEX = 255


Content = Path | bytes
"""What makes a picture, before it is decoded: a file, or encoded bytes."""


class Drawn(bytes):
    """What a world draws a picture from: it tells pictures apart, and is no encoded one."""


class LazySequence(Sequence[T]):
    """A sequence whose item i is `get(rows[i])`, computed on access and never kept.

    Args:
        get: makes an item.
        rows: what is asked of `get`, by position.
        plain: whether items are values to pass on by name, and not pictures or masks.
        contents: returns what the pictures of an item are made of; None if that is unknown. It
            stays behind when the sequence is sent to another process.
    """

    def __init__(
        self,
        get: Callable[[int], T],
        rows: Sequence[int] | np.ndarray,
        *,
        plain: bool = False,
        contents: Callable[[int], Sequence[Content]] | None = None,
    ) -> None:
        self._get = get
        self._rows = np.asarray(rows, dtype=np.int64)
        self._contents = contents
        self.plain = plain

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> LazySequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | LazySequence[T]:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self._get(int(self._rows[index]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_contents": None}

    def take(self, indices: np.ndarray) -> LazySequence[T]:
        """Return the rows at `indices`, without stacking one view on another."""
        rows = self._rows[indices]
        return LazySequence(self._get, rows, plain=self.plain, contents=self._contents)

    def content(self, index: int) -> Sequence[Content]:
        """Return what the pictures of an item are made of; nothing if that is unknown."""
        return () if self._contents is None else self._contents(int(self._rows[index]))

    def contents(self) -> LazySequence[Sequence[Content]] | None:
        """Return what the pictures of every item are made of, read on access; None if unknown."""
        return None if self._contents is None else LazySequence(self._contents, self._rows)


def _as_stored(value: Any, where: str) -> Any:
    return value


@dataclass(frozen=True)
class Role:
    """What a column of a table holds. Data of a new kind need one of these and nothing else.

    Attributes:
        name: of its values in a `Table`, such as "images".
        word: one of them, in messages and in the option that names the column (`--image-column`).
        usual: the names, in lower case, that the column has in stored tables.
        decode: makes a value of a stored one when the table is read, told where that stands; it
            raises `UserError` for one that cannot be used.
        optional: whether a stored table may lack the column.
        kept: whether the stored column stays among the other columns as well.
        column: under which the values are among the other columns too; "" if they are not.
    """

    name: str
    word: str
    usual: tuple[str, ...] = ()
    decode: Callable[[Any, str], Any] = _as_stored
    optional: bool = False
    kept: bool = False
    column: str = ""

    def check(self, table: Table) -> None:
        """Refuse a table whose values do not fit; overridden where a whole column is looked at."""

    def value(self, table: Table, row: int) -> Any:
        """Return the value of a row; overridden where each is checked when it is used."""
        return table.values[self.name][row]

    def use(self, table: Table, row: int) -> None:
        """Raise `UserError` where a row cannot be used; overridden by roles of pictures."""

    def read(self, stored: Any, column: str) -> dict[str, Any]:
        """Return the values by split of a stored column, decoded (see `visgrpo.data.stored`)."""
        return {
            split: tuple(
                self.decode(value, f'{stored.name}/{split}: row {row}, column "{column}"')
                for row, value in enumerate(stored.plain(split, column))
            )
            for split in stored.tables
        }

    def identity(self, stored: Any, split: str, column: str, identity: str) -> str:
        """Name the content of a table, so far `identity`, with this column in it."""
        return derived(identity, f"column {column}")


class Values(Generic[T]):
    """Reads the values of a role: `table.images` is `table["images"]`."""

    def __init__(self, *, optional: bool = False) -> None:
        self._optional = optional

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, table: Table, owner: type) -> T:
        if self._optional and self._name not in table.values:
            return None  # type: ignore[return-value]
        return table[self._name]


@dataclass(frozen=True, repr=False, eq=False)
class Table:
    """M rows with named columns.

    `visgrpo.data.roles` makes tables of every usual kind, and `visgrpo.data.read` reads them.
    `table[name]` are the values of a role or a column; those of the usual roles are attributes too.

    Attributes:
        name: what messages call it, such as "digits/train".
        values: what the rows are made of, by the names of the roles: each of length M, perhaps
            decoded on access, and then an unreadable one raises `UserError` that names it.
        roles: what the values are; messages count by the first.
        columns: every other column by name, each of length M (captions, votes, …): batches carry
            those of plain values, and reward functions receive them.
        classes: class names, where the rows have classes; the position is the class id.
        ignore_index: the id of pixels in masks that belong to no class and count nowhere.
        identity: names the content (see `visgrpo.data.table`): where values come from and which
            rows they are; "" when unknown. Whoever replaces `values` replaces it too.
        skipped: the unusable rows that were left out on request, with their reasons.
        notes: what was decided to read them, such as files that lie elsewhere than the table says.
        places: (M,) int64, where the rows stand in `stored_as`, the table they were first part of.

    Raises:
        UserError: if columns differ in length, or values do not fit their role.
    """

    name: str
    values: Mapping[str, Any]
    roles: tuple[Role, ...]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    ignore_index: int = IGNORE_INDEX
    identity: str = ""
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    places: np.ndarray | None = None
    stored_as: str = ""

    # Of the usual roles, for who knows which to ask for.
    images = Values[Sequence[Any]]()
    labels = Values[np.ndarray]()
    masks = Values[Sequence[np.ndarray]]()
    prompts = Values[Sequence[Any]]()
    chosen = Values[Sequence[str]]()
    rejected = Values[Sequence[str]]()
    questions = Values[Sequence[str]]()
    answers = Values[Sequence[str]]()
    traces = Values[Sequence[str] | None](optional=True)
    texts = Values[Sequence[str]]()

    def __post_init__(self) -> None:
        if self.places is None:
            object.__setattr__(self, "places", np.arange(len(self)))
            object.__setattr__(self, "stored_as", self.name)
        too = {
            role.column: list(self.values[role.name])
            for role in self.roles
            if role.column and role.name in self.values
        }
        object.__setattr__(self, "columns", {**self.columns, **too})
        word = self.roles[0].word
        for column, values in {**self.values, **self.columns}.items():
            if len(values) != len(self):
                raise UserError(
                    f'{self.name}: column "{column}" has {len(values)} rows but there are '
                    f"{len(self)} {word}s; give one value per {word}."
                )
        for role in self.roles:
            role.check(self)

    def __len__(self) -> int:
        return len(self.values[self.roles[0].name])

    def __repr__(self) -> str:
        kinds = " and ".join(name for role in self.roles if (name := role.name) in self.values)
        classes = f" in {len(self.classes)} classes" if self.classes else ""
        return f"{self.name}: {len(self)} rows of {kinds}{classes}"

    def __getitem__(self, name: str) -> Any:
        role = next((role for role in self.roles if role.name == name), None)
        if role is None or name not in self.values:
            if name in self.columns:
                return self.columns[name]
            raise AttributeError(f"{self!r}: there is no column {name}.")
        if type(role).value is Role.value:
            return self.values[name]
        return LazySequence(partial(role.value, self), range(len(self)))

    def where(self, row: int) -> str:
        """Return what messages call row `row`: its place in the table as it is stored."""
        assert self.places is not None  # set in __post_init__
        files = self.columns.get("file")
        return f"{self.stored_as}: row {self.places[row]}" + (
            "" if files is None else f" ({files[row]})"
        )

    def subset(self, indices: Sequence[int] | np.ndarray) -> Table:
        """Return the rows at `indices`, in that order; pictures stay undecoded."""
        rows = np.asarray(indices, dtype=np.int64)
        assert self.places is not None
        return replace(
            self,
            values={name: take_rows(values, rows) for name, values in self.values.items()},
            columns={name: take_rows(column, rows) for name, column in self.columns.items()},
            identity=of_rows(self.identity, rows),
            places=self.places[rows],
        )

    def first(self, most: int) -> Table:
        """Return the first rows, at most so many."""
        return self.subset(range(most)) if most < len(self) else self

    def named(self, name: str) -> Table:
        """Return the same rows under another name."""
        return replace(self, name=name)

    def without_bad_rows(
        self, use: Callable[[Table, int], Any] | None = None, threads: int = 8
    ) -> Table:
        """Return the rows whose pictures can be used, each decoded once; `skipped` lists others.

        Args:
            use: takes the table and a row, and raises `UserError` where that cannot be used.
            threads: how many rows are looked at together.

        Raises:
            UserError: if no row is left.
        """
        problems = self.problems(use, threads)
        bad = tuple(problems.values())
        if len(bad) == len(self):
            by_role = {"labels": "images can be read", "masks": "rows can be used"}
            what = next(
                (by_role[name] for name in by_role if name in self.values), "rows can be read"
            )
            raise UserError(f"{self.name}: none of its {len(self)} {what}: {bad[0]}")
        good = [row for row in range(len(self)) if row not in problems]
        return replace(self.subset(good), skipped=(*self.skipped, *bad)) if bad else self

    def problems(
        self, use: Callable[[Table, int], Any] | None = None, threads: int = 8
    ) -> dict[int, str]:
        """Return what is wrong with rows that cannot be used, by row; see `without_bad_rows`."""

        # The last role of pictures looks at those before it too.
        of_pictures = [role for role in self.roles if type(role).use is not Role.use]
        tried = use or of_pictures[-1].use

        def problem(row: int) -> str | None:
            try:
                tried(self, row)
            except UserError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(threads) as pool:
            tries = pool.map(problem, range(len(self)))
            found = enumerate(tracked(tries, f"looking at {self.name}", len(self)))
            return {row: said for row, said in found if said is not None}


@dataclass(frozen=True)
class Splits:
    """Three tables of one kind that share no row.

    Attributes:
        train: rows to learn from.
        validation: rows to choose by.
        test: rows to report on.
        shifts: test rows from elsewhere, out of distribution, by name.
        notes: what was decided for the user, such as a test split made from the train rows.
    """

    train: Table
    validation: Table
    test: Table
    shifts: Mapping[str, Table] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def map(self, change: Callable[[Table], Table]) -> Splits:
        """Return the three splits after a change of each."""
        return replace(
            self,
            train=change(self.train),
            validation=change(self.validation),
            test=change(self.test),
        )


def is_plain(column: Sequence[Any]) -> bool:
    """Return whether a column holds no pictures, masks or encoded bytes; decodes no lazy one."""
    if isinstance(column, LazySequence):
        return column.plain
    if isinstance(column, Strings):
        return True
    if isinstance(column, np.ndarray) and column.dtype != object:
        return column.ndim <= 2 and column.dtype.kind not in "SV"
    return not any(
        isinstance(value, Image.Image | bytes) or getattr(value, "ndim", 0) > 1 for value in column
    )


def check_classes(name: str, classes: tuple[str, ...]) -> None:
    """Refuse class names that make no classification, in the table called `name`.

    Raises:
        UserError: if a class is named twice, or there are fewer than two.
    """
    twice = [label for label, count in Counter(classes).items() if count > 1]
    if twice:
        raise UserError(
            f'{name}: class "{twice[0]}" is named twice; give every class its own name.'
        )
    if len(classes) < 2:
        only = f' ("{classes[0]}")' if classes else ""
        raise UserError(
            f"{name}: {len(classes)} class{only} found; a classifier needs at least two."
        )


def take_rows(values: Sequence[T], rows: np.ndarray) -> Sequence[T]:
    """Return the values at `rows`, in that order; pictures stay undecoded."""
    if isinstance(values, LazySequence | Strings):
        return values.take(rows)
    if isinstance(values, np.ndarray) and values.ndim == 1:
        return values[rows]
    if isinstance(values, list | tuple):
        return type(values)(values[row] for row in rows)
    return LazySequence(partial(_item, values), rows, plain=is_plain(values))


def join(tables: Sequence[Table]) -> Table:
    """Return the rows of several tables of labelled images, in order, as one.

    Their classes stand side by side, equal names as one class; a column that one lacks is None
    there.
    """
    if len(tables) == 1:
        return tables[0]
    classes = tuple(dict.fromkeys(name for part in tables for name in part.classes))
    new_id = {name: position for position, name in enumerate(classes)}
    labels = [new_id[part.classes[label]] for part in tables for label in part.labels]
    starts = np.cumsum([0, *map(len, tables)])
    names = dict.fromkeys(name for part in tables for name in part.columns)
    columns = {
        name: [value for part in tables for value in part.columns.get(name, [None] * len(part))]
        for name in names
    }
    images = LazySequence(partial(_image_of, tables, starts), np.arange(len(labels)))
    return Table(
        " + ".join(part.name for part in tables),
        {"labels": np.array(labels), "images": images},
        tables[0].roles,
        columns,
        classes,
        identity=joined([part.identity for part in tables]),
    )


def _image_of(tables: Sequence[Table], starts: np.ndarray, row: int) -> Image.Image:
    part = int(np.searchsorted(starts, row, side="right")) - 1
    return tables[part].images[row - int(starts[part])]


def _item(values: Sequence[T], index: int) -> T:
    return values[index]


def of_files(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Name the content of files by their resolved paths, sizes and times of change."""
    digest, count = hashlib.sha256(), 0
    folder = folder_in_full = ""
    for given in paths:
        path = os.fspath(given)
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            status, in_full = os.stat(path), os.path.realpath(path)
        else:  # the folder's place is looked up once for all its files
            if os.path.dirname(path) != folder or not folder_in_full:
                folder = os.path.dirname(path)
                folder_in_full = os.path.realpath(folder)
            in_full = os.path.join(folder_in_full, os.path.basename(path))
        line = f"{in_full}\0{status.st_size}\0{status.st_mtime_ns}\n"
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
