"""Names as people write them: of splits, and of classes in a file beside folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from visgrpo.errors import UserError
from visgrpo.texts import composed

_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
} | dict.fromkeys(("val", "valid", "validation", "dev"), "validation")
# Words that may stand beside a split's without making it something else.
_BESIDE = {"set", "sets", "data", "dataset", "split", "seg", "partial", "of"} | {
    *("images", "image", "imgs", "img"),
}
_JOINED = re.compile(r"(train|training|test|testing|val|valid|validation|dev)(set|data)")
_BEHIND_AN_ID = re.compile(r"\s*[,:;=\t]\s*|\s+")
SYNSET = re.compile(r"n\d{8}")
PAIRS_SHOWN = 12


def split_of(name: str, *, leading: bool = False) -> str | None:
    """Return the split that a folder's or file's name says: "Training", "seg_train", "test-0001".

    Args:
        name: without an ending.
        leading: whether more words may follow the split's, as in "train_clean".
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    words = [_JOINED.sub(r"\1", word) for word in re.split(r"[^a-z]+", apart)]
    telling = [word for word in words if word and word not in _BESIDE]
    if not telling or (len(telling) > 1 and not leading):
        return None
    return _SPLITS.get(telling[0])


def as_read(name: str) -> str:
    """Return a name without what people write differently: capitals, "_" and "-", accents' form."""
    return " ".join(re.sub(r"[\s_-]+", " ", composed(name)).casefold().split())


def class_names(
    file: Path, lines: Sequence[str], folders: Sequence[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the class name of each folder, in the order of the class ids, and what is to be said.

    A line is a folder's name, perhaps written differently, and then the file gives the order; or an
    id and a name, one of which is the folder's; or, for folders that are numbers, it belongs to the
    number of its place. Only where nothing matches do lines go to the sorted folders in order.

    Raises:
        UserError: if some folders have a line and others none, or the numbers differ.
    """
    by_name = {as_read(folder): folder for folder in folders}
    by_name |= {str(int(key)): folder for key, folder in list(by_name.items()) if key.isdecimal()}

    def folder_of(text: str) -> str | None:
        key = as_read(text)
        return by_name.get(str(int(key)) if key.isdecimal() else key)

    parts = [(*_BEHIND_AN_ID.split(line, maxsplit=1), "")[:2] for line in lines]
    whole = {folder: line for line in lines if (folder := folder_of(line))}
    before = {folder: rest for key, rest in parts if rest and (folder := folder_of(key))}
    behind = {folder: rest for _, rest in parts if rest and (folder := folder_of(rest))}
    if len(whole) == len(folders) == len(lines) or len(behind) == len(folders):
        return (whole if len(whole) == len(folders) else behind), ()
    if len(before) == len(folders):
        return _distinct({folder: before[folder] for folder in folders}), ()
    missing = [folder for folder in folders if folder not in {**whole, **before, **behind}]
    if len(lines) != len(folders) and len(missing) in (0, len(folders)):
        raise UserError(
            f"{file} names {len(lines)} classes but there are {len(folders)} class folders; "
            "give one line per folder, in sorted order."
        )
    if missing and len(missing) < len(folders):
        raise UserError(f'{file} has no line for class folder "{missing[0]}"; add one.')
    if all(folder.isdecimal() for folder in folders):
        folders = sorted(folders, key=int)
        if [int(folder) for folder in folders] in _counted(len(folders)):
            return dict(zip(folders, lines, strict=True)), ()
    paired = dict(zip(folders, lines, strict=True))
    return paired, (
        f"{file.name} has no folder's name; its lines go to the sorted folders in order: "
        f"{_listed(paired)}.",
    )


def _counted(count: int) -> tuple[list[int], list[int]]:
    return list(range(count)), list(range(1, count + 1))


def _listed(paired: Mapping[str, str]) -> str:
    shown = [f"{folder} = {name}" for folder, name in list(paired.items())[:PAIRS_SHOWN]]
    return ", ".join(shown) + (", …" if len(paired) > PAIRS_SHOWN else "")


def _distinct(names: dict[str, str]) -> dict[str, str]:
    # ImageNet calls two of its synsets "crane": the folder's name tells them apart.
    count = Counter(names.values())
    return {key: f"{text} ({key})" if count[text] > 1 else text for key, text in names.items()}


def remarks_on(classes: Sequence[str]) -> tuple[str, ...]:
    """Return what is to be said of class names that go into prompts."""
    ids = [name for name in classes if SYNSET.fullmatch(name)]
    if ids:
        return (
            f"{len(ids)} of the {len(classes)} class names are ids such as {ids[0]}, which go into "
            f'prompts as they are; write lines such as "{ids[0]} name" into classes.txt.',
        )
    return ()
