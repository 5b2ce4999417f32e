"""Setting rows apart: by label, by groups of equal inputs, or in order; and slices of splits."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from visgrpo.data.roles import class_counts_MK
from visgrpo.data.table import Content, LazySequence, Splits, Table
from visgrpo.data.text import prompt_key
from visgrpo.errors import UserError, nearest
from visgrpo.progress import tracked

TEST_FRACTION = 0.2
TEST_SEED = 20240917  # fixed: a test split made from the rows must not move with a run's seed
NAMES = ("train", "validation", "test", "all")
_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?")
# A stream of its own for each split, so that equal seeds do not pick related rows.
_STREAMS = {"test": 0, "validation": 1}
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Part:
    """How rows are set apart, and what is said of it.

    Attributes:
        other: what to choose where there are no train rows.
        tells_rows: whether the note on a stored validation split says how many rows it has.
        reads_pictures: whether keys are made of pictures, of which none may be bad then.
        shared: what rows may have in common that keeps them together, and is counted in notes.
    """

    other: str = "other data"
    tells_rows: bool = False
    reads_pictures: bool = False
    shared: str = ""

    def keys(self, table: Table) -> np.ndarray:
        """Return (M, …) what decides where each row may go: first its stratum, last its group."""
        raise NotImplementedError

    def check(self, train: Table) -> None:
        """Refuse train rows that nothing can be learned from."""

    def take(
        self, name: str, split: str, keys_M: np.ndarray, fraction: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that stay and the rows taken for a split, each ascending.

        Groups are taken whole, a share of each stratum in proportion.
        """
        _, first, group_of_M = np.unique(keys_M[:, -1], return_index=True, return_inverse=True)
        _, taken = stratified_rows(keys_M[first, 0], fraction, rng)
        if len(taken) == 0:
            raise UserError(self.too_few(name, split, len(first)))
        is_taken_M = np.isin(group_of_M, taken)
        return np.flatnonzero(~is_taken_M), np.flatnonzero(is_taken_M)

    def too_few(self, name: str, split: str, groups: int) -> str:
        """Return what is said where there is nothing to take."""
        raise NotImplementedError

    def complete(self, source: Source, train_rows: slice, fraction: float, seed: int) -> Source:
        """Return `source` with all three splits."""
        if train_rows != slice(None):
            source = source.with_keys()  # they may depend on all rows
        source = source.with_test().sliced(train_rows)
        self.check(source.stored("train"))
        return source.with_validation(fraction, seed)

    def note(self, split: str, taken: int, whole: int, seed: int) -> str:
        """Return what is said of a split that was made."""
        by = "the same for every seed" if split == "test" else f"seed {seed}"
        return f"{taken} of its {whole} train rows ({by}) were set apart."

    def remarks(self, divided: Source) -> tuple[str, ...]:
        """Return what is to be said of the train rows that are left."""
        return ()


@dataclass(frozen=True)
class ByLabel(Part):
    """Each class in proportion, equal images together; the note says so."""

    other: str = "another data set"
    tells_rows: bool = True
    shared: str = "image"

    def keys(self, table: Table) -> np.ndarray:
        return np.column_stack([table.labels, picture_groups(table)])

    def check(self, train: Table) -> None:
        present = np.unique(train.labels)
        if len(present) < 2:
            raise UserError(
                f'{train.name}: all {len(train)} rows are of class "{train.classes[present[0]]}"; '
                "give rows of at least two classes."
            )

    def too_few(self, name: str, split: str, groups: int) -> str:
        return (
            f"{name}: {groups} different images are too few to set a {split} split apart; every "
            "class needs two images or more."
        )

    def note(self, split: str, taken: int, whole: int, seed: int) -> str:
        if split == "test":
            how = f"rows ({TEST_FRACTION:.0%}, stratified, the same for every seed)"
        else:
            how = f"train rows (stratified, seed {seed})"
        return f"{taken} of its {whole} {how} were set apart."


@dataclass(frozen=True)
class ByRarestClass(ByLabel):
    """Rows with masks, each as if it had one label: of its classes the one fewest rows have.

    For that, and to say which classes the train rows lack, every mask of the rows that may be
    divided is read once.
    """

    reads_pictures: bool = True

    def keys(self, table: Table) -> np.ndarray:
        """Return (M, 3 + K): the rarest class, ties to the smaller id; which are present; whether
        pixels are ignored; the group."""
        counts_MK = class_counts_MK(table, ignored=True)
        present_MK = counts_MK[:, :-1] > 0
        frequency_K = present_MK.sum(axis=0)
        rarest_M = np.where(present_MK, frequency_K, len(present_MK) + 1).argmin(axis=1)
        return np.column_stack([rarest_M, counts_MK > 0, picture_groups(table)])

    def check(self, train: Table) -> None:
        """Images of one class may have others in the background of a mask: nothing to refuse."""

    def remarks(self, divided: Source) -> tuple[str, ...]:
        train, keys_M = divided.splits["train"], divided.with_keys().keys_M
        assert keys_M is not None
        present_K, ignored = keys_M[:, 1:-2].any(axis=0), keys_M[:, -2].any()
        absent = [train.classes[k] for k in np.flatnonzero(~present_K)]
        if ignored and present_K.sum() == 1:
            only = int(np.flatnonzero(present_K)[0])
            raise UserError(
                f"{train.name}: its masks hold {only} and {train.ignore_index} only, and "
                f"{train.ignore_index} is ignored, so that there is nothing but "
                f'"{train.classes[only]}" to learn; store the ids of classes (0 and 1 for two), or '
                "name another id as --ignore-index."
            )
        if not absent:
            return ()
        shown = ", ".join(absent[:_NAMES_SHOWN]) + (", …" if len(absent) > _NAMES_SHOWN else "")
        are = "is" if len(absent) == 1 else "are"
        return (
            f"{len(absent)} of the {len(train.classes)} classes {are} on no pixel of {train.name} "
            f"({shown}): nothing can be learned about {'it' if len(absent) == 1 else 'them'}.",
        )


def prompt_groups(table: Table) -> np.ndarray:
    """Return (M,) numbers, equal for equal prompts alone."""
    return np.unique(list(map(prompt_key, table.prompts)), return_inverse=True)[1]


def picture_groups(table: Table) -> np.ndarray:
    """Return (M,) the first row that a row shares a picture with, itself or through others."""
    contents = contents_of(table)
    return np.arange(len(table)) if contents is None else same_content(contents)


def contents_of(table: Table) -> Sequence[Sequence[Content]] | None:
    """Return what the images of every row are made of; None where they are drawn."""
    images = table.images
    if isinstance(images, LazySequence):
        return images.contents()
    rows = [row if isinstance(row, tuple) else (row,) for row in images]
    if not all(isinstance(image, Image.Image) for row in rows for image in row):
        return None
    return [[repr(image.size).encode() + image.tobytes() for image in row] for row in rows]


def same_content(contents_M: Sequence[Sequence[Content]]) -> np.ndarray:
    """Return (M,) the first row that shares a picture with each, itself or through others.

    Sizes are compared first, then the last bytes of pictures of one size, then all of them: of
    pictures that differ, little is read, and nothing is kept but a few numbers of each.
    """
    rows, sizes = array("q"), array("q")  # of each of S pictures, row by row
    for row in tracked(range(len(contents_M)), "sizes of pictures", len(contents_M)):
        for part in contents_M[row]:
            rows.append(row)
            sizes.append(_size_of(part))
    rows_S, alike_S = np.array(rows), _numbered(np.array(sizes))
    first_S = np.searchsorted(rows_S, rows_S)  # of its row
    for read in (_last_bytes, _digest):
        many = np.flatnonzero(np.bincount(alike_S)[alike_S] > 1)
        keys = np.zeros(len(many), [("before", np.int64), ("digest", "V16")])
        keys["before"] = alike_S[many]

        def key(place: int, read: Callable[[Content], bytes] = read) -> bytes:
            return read(contents_M[int(rows_S[place])][place - int(first_S[place])])

        with ThreadPoolExecutor(8) as pool:
            starts = range(0, len(many), _AT_ONCE)
            for start in tracked(starts, "looking for equal pictures", len(starts)):
                some = slice(start, start + _AT_ONCE)
                keys["digest"][some] = list(pool.map(key, many[some].tolist()))
        alike_S[many] = alike_S.max(initial=0) + 1 + _numbered(keys.view("S24")) if len(many) else 0
        alike_S = _numbered(alike_S)
    groups = int(alike_S.max(initial=-1)) + 1
    count = len(contents_M)
    ones = np.ones(len(rows_S), np.int8)
    shared = csr_array((ones, (rows_S, count + alike_S)), shape=(count + groups,) * 2)
    together_M = connected_components(shared, directed=False)[1][:count]
    _, first, which_M = np.unique(together_M, return_index=True, return_inverse=True)
    return first[which_M]


_AT_ONCE = 4096  # pictures whose ends are in memory together


def _numbered(keys_S: np.ndarray) -> np.ndarray:
    """Return (S,) numbers from 0, equal for equal keys."""
    return np.unique(keys_S, return_inverse=True)[1]


_AT_THE_END = 4096


def _size_of(part: Content) -> int:
    """Return how many bytes a picture has, -1 where its file is missing."""
    if not isinstance(part, Path):
        return len(part)
    return part.stat().st_size if part.is_file() else -1


def _last_bytes(part: Content) -> bytes:
    if not isinstance(part, Path):
        return _short(memoryview(part)[-_AT_THE_END:])
    if not part.is_file():  # like no other
        return _short(bytes(part))
    with part.open("rb") as file:
        file.seek(max(0, part.stat().st_size - _AT_THE_END))
        return _short(file.read())


def _digest(part: Content) -> bytes:
    if not isinstance(part, Path):
        return _short(part)
    return _short(part.read_bytes() if part.is_file() else bytes(part))


def _short(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


@dataclass(frozen=True)
class _Both:
    """What the pictures of a row of two tables are made of, one table after the other."""

    one: Sequence[Sequence[Content]]
    other: Sequence[Sequence[Content]]

    def __call__(self, row: int) -> Sequence[Content]:
        return self.one[row] if row < len(self.one) else self.other[row - len(self.one)]


@dataclass(frozen=True)
class ByGroup(Part):
    """Rows with equal inputs stay together: none of these is in two splits that are made here.

    Attributes:
        groups: returns a number for every row, equal where rows belong together.
    """

    groups: Callable[[Table], np.ndarray] = prompt_groups

    def keys(self, table: Table) -> np.ndarray:
        groups_M = self.groups(table)
        return np.column_stack([np.zeros_like(groups_M), groups_M])

    def too_few(self, name: str, split: str, groups: int) -> str:
        where = f"{name.removesuffix('/all').removesuffix('/train')}/train"
        return (
            f"{where}: {groups} distinct {self.shared or 'prompt'}s are too few to set a {split} "
            "split apart; give more, or store the splits yourself."
        )


@dataclass(frozen=True)
class InOrder(Part):
    """Neighbouring rows resemble each other, so a split is one stretch of them, from the end.

    `fraction` of the train rows makes each missing split: first validation, then test.
    """

    other: str = "other text"

    def complete(self, source: Source, train_rows: slice, fraction: float, seed: int) -> Source:
        """Return `source` with all three splits, the missing ones cut off together."""
        source = source.sliced(train_rows)
        missing = [split for split in ("validation", "test") if split not in source.splits]
        if not missing:
            return source
        name, whole = source.name, source.stored("train")
        taken = max(1, round(fraction * len(whole)))
        stay = len(whole) - taken * len(missing)
        if stay < 1:
            raise UserError(
                f"{name}: {len(whole)} documents are too few to set {taken} apart for "
                f"{' and '.join(missing)} each; give more text, with blank lines between "
                "documents, or a smaller validation_fraction."
            )
        cut = {"train": whole.subset(range(stay))}
        for place, split in enumerate(missing):
            start = stay + place * taken
            cut[split] = whole.subset(range(start, start + taken)).named(f"{name}/{split}")
        note = (
            f"{name} has no {' and no '.join(missing)} split: the last {taken * len(missing)} of "
            f"its {len(whole)} documents were set apart."
        )
        return replace(source, splits={**source.splits, **cut}, notes=(*source.notes, note))


@dataclass(frozen=True)
class Source:
    """The splits as they are stored, and how missing ones are made of the train rows.

    Attributes:
        name: what messages call the data.
        splits: tables by split: "train", "validation", "test", or "all" when undivided.
        notes: what was decided so far.
        part: how rows are set apart.
        keys_M: of the rows that may be divided, once they were asked for (see `Part.keys`).
        shifts: further test rows, as in `Splits`.
    """

    name: str
    splits: Mapping[str, Table]
    notes: tuple[str, ...] = ()
    part: Part = ByLabel()
    keys_M: np.ndarray | None = None
    shifts: Mapping[str, Table] = field(default_factory=dict)

    def stored(self, split: str) -> Table:
        """Return a split that is needed to make others.

        Raises:
            UserError: if it is not stored.
        """
        if split not in self.splits:
            raise UserError(
                f"{self.name} has no {split} split, only {', '.join(self.splits)}; "
                f"add one or choose {self.part.other}."
            )
        return self.splits[split]

    def select(self, split: str, rows: slice) -> Table:
        """Return the rows of a slice of a split.

        Raises:
            UserError: if there is no such split, or no such rows.
        """
        if split not in self.splits:
            raise UserError(
                f"{self.name} is stored in the splits {', '.join(self.splits)}. "
                f"{nearest(split, self.splits)}"
            )
        return sliced(self.splits[split], rows)

    def validation_as_test(self) -> Source:
        """Return this with a stored validation split as "test" if there are train rows and no test.

        Where test labels are kept back, as ImageNet's are, results are quoted on the validation
        split; so it is kept for reporting, and validation is to be made from train.
        """
        if set(self.splits) != {"train", "validation"}:
            return self
        test = self.splits["validation"].named(f"{self.name}/test")
        rows = f" ({len(test)} rows)" if self.part.tells_rows else ""
        note = (
            f"{self.name} has no test split: its stored validation split{rows} is the test split."
        )
        splits = {"train": self.splits["train"], "test": test}
        return replace(self, splits=splits, notes=(*self.notes, note))

    def with_test(self) -> Source:
        """Return this with a test split, made from an undivided or train split if need be."""
        if "test" in self.splits:
            return self
        whole = "all" if "all" in self.splits else "train"
        return self._parted(whole, "test", TEST_FRACTION, TEST_SEED)

    def with_validation(self, fraction: float, seed: int) -> Source:
        """Return this with a validation split, made from the train rows if need be."""
        if "validation" in self.splits:
            return self
        return self._parted("train", "validation", fraction, seed)

    def sliced(self, rows: slice) -> Source:
        """Return this with some of the train rows alone."""
        whole = "train" if "train" in self.splits else "all"
        table = self.stored("train") if whole not in self.splits else self.splits[whole]
        kept = sliced(table, rows).named(f"{self.name}/train" if whole == "all" else table.name)
        keys_M = None if self.keys_M is None else self.keys_M[rows]
        return replace(self, splits={**self.splits, "train": kept}, keys_M=keys_M)

    def with_keys(self) -> Source:
        """Return this with the keys of the rows that may be divided."""
        whole = self.splits.get("train", self.splits.get("all"))
        if self.keys_M is not None or whole is None:
            return self
        keys_M = self.part.keys(whole)
        groups, word, notes = len(np.unique(keys_M[:, -1])), self.part.shared, self.notes
        if word and groups < len(whole):
            notes += (
                f"{self.name}: its {len(whole)} rows have {groups} different {word}s; rows that "
                f"share an {word} stay in one split.",
            )
        return replace(self, keys_M=keys_M, notes=notes)

    def _parted(self, whole: str, split: str, fraction: float, seed: int) -> Source:
        table, source = self.stored(whole), self.with_keys()
        assert source.keys_M is not None
        rng = np.random.default_rng([seed, _STREAMS[split]])
        stay, taken = self.part.take(table.name, split, source.keys_M, fraction, rng)
        note = (
            f"{self.name} has no {split} split: "
            f"{self.part.note(split, len(taken), len(table), seed)}"
        )
        splits = {
            **self.splits,
            "train": table.subset(stay).named(f"{self.name}/train"),
            split: table.subset(taken).named(f"{self.name}/{split}"),
        }
        return replace(
            source, splits=splits, notes=(*source.notes, note), keys_M=source.keys_M[stay]
        )

    def shared_notes(self) -> tuple[str, ...]:
        """Return what is to be said of stored splits that share pictures with the train rows."""
        if not self.part.shared or "train" not in self.splits:
            return ()
        train, notes = contents_of(self.splits["train"]), list[str]()
        for split in ("validation", "test"):
            held = contents_of(self.splits[split]) if split in self.splits else None
            if train is None or held is None:
                continue
            both = _Both(train, held)
            groups_M = same_content(LazySequence(both, range(len(train) + len(held))))
            count = int(np.isin(groups_M[len(train) :], groups_M[: len(train)]).sum())
            if count:
                notes.append(
                    f"warning: {count} of the {len(held)} {split} rows of {self.name} have an "
                    "image that stands in train too: what is measured on them was learned from."
                )
        return tuple(notes)


def divide(
    source: Source, *, fraction: float, seed: int = 0, train_rows: slice = slice(None)
) -> Splits:
    """Return the three splits, those that are missing made from the train rows.

    A stored validation split becomes a missing test split, on which results are then quoted;
    without either, 20 % of the rows do, the same for every seed. Then `train_rows` of the train
    rows are kept, and `fraction` of these makes a missing validation split, by `seed`.

    Raises:
        UserError: if an option is out of range, there are no train rows, or they are too few.
    """
    check_split_options(fraction, seed)
    source = source.validation_as_test()
    if "train" not in source.splits and "all" not in source.splits:
        source.stored("train")
    shared = source.shared_notes()
    source = source.part.complete(source, train_rows, fraction, seed)
    splits, notes = source.splits, (*source.notes, *shared, *source.part.remarks(source))
    return Splits(splits["train"], splits["validation"], splits["test"], source.shifts, notes)


def stratified_rows(
    labels: np.ndarray, fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Part the rows in two, each class in proportion.

    Systematic sampling: rows are shuffled, sorted by class, and taken at even spacing from a
    random start, so the total is round(fraction · M) and each class is within one of its share.
    One row of every class always stays.

    Args:
        labels: (M,) class ids.
        fraction: share of the rows to take, between 0 and 1.
        rng: the randomness.

    Returns:
        The rows that stay and the rows taken, each ascending.
    """
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, first_of_class = np.unique(labels[by_class], return_index=True)
    candidates = np.delete(by_class, first_of_class)
    wanted = min(max(1, round(fraction * len(labels))), len(candidates))
    if wanted == 0:
        return np.arange(len(labels)), np.empty(0, dtype=np.int64)
    spacing = len(candidates) / wanted
    taken = candidates[((np.arange(wanted) + rng.random()) * spacing).astype(np.int64)]
    return np.setdiff1d(np.arange(len(labels)), taken), np.sort(taken)


def check_split_options(fraction: float, seed: int) -> None:
    """Refuse a `validation_fraction` or seed that can make no split.

    Raises:
        UserError: if the fraction is not between 0 and 1, or the seed is negative.
    """
    if seed < 0:
        raise UserError(f"seed must be 0 or more, not {seed}.")
    if not 0 < fraction < 1:
        raise UserError(f"validation_fraction must lie between 0 and 1, not {fraction}.")


def parse_slice(text: str) -> slice:
    """Read "2000:", ":2000" or "10:20".

    Raises:
        UserError: if `text` is none of these.
    """
    match = _SLICE.fullmatch(text.strip())
    if match is None:
        raise UserError(f'"{text}" is no slice of rows; write it as "2000:", ":2000" or "10:20".')
    start, stop = (int(bound) if bound else None for bound in match.groups())
    return slice(start, stop)


def parse_split(text: str) -> tuple[str, slice]:
    """Read "train" or "train[:2000]" as a split's name and its rows.

    Raises:
        UserError: if the split or its slice is unknown.
    """
    name, bracket, rest = text.partition("[")
    if name not in NAMES:
        raise UserError(f'Unknown split "{name}". {nearest(name, NAMES)}')
    if not bracket:
        return name, slice(None)
    if not rest.endswith("]"):
        raise UserError(f'Split "{text}" has no closing bracket; write it as "{name}[:2000]".')
    return name, parse_slice(rest[:-1])


def sliced(table: Table, rows: slice) -> Table:
    """Return the rows of a slice.

    Raises:
        UserError: if there are none.
    """
    if rows == slice(None):
        return table
    chosen = np.arange(len(table))[rows]
    if len(chosen) == 0:
        bounds = [("" if bound is None else str(bound)) for bound in (rows.start, rows.stop)]
        raise UserError(
            f"{table.name}[{':'.join(bounds)}] holds no rows; it has {len(table)} in all."
        )
    return table.subset(chosen)
