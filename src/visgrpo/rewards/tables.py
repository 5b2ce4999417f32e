"""Tables over class names, read from the files that people keep them in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from visgrpo.errors import UserError, nearest
from visgrpo.files import parse_json
from visgrpo.texts import csv_rows, read_text


def nearest_or(name: str, choices: Iterable[str], otherwise: str) -> str:
    """`nearest`, or the sentence `otherwise` when there is nothing to choose from."""
    known = list(choices)
    return nearest(name, known) if known else otherwise


def check_file(path: Path, what: str) -> None:
    """Raise `UserError` with the most similar file of the folder unless `path` is a file."""
    if path.is_file():
        return
    if path.is_dir():
        raise UserError(f'{what} "{path}" is a folder, not a file.')
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f'{what} "{path}" not found: there is no folder "{folder}".')
    similar = sorted(file.name for file in folder.glob(f"*{path.suffix}") if file.is_file())
    tail = nearest_or(path.name, similar, f'"{folder.resolve()}" holds no {path.suffix} file.')
    raise UserError(f'{what} "{path}" not found. {tail}')


def read_table(path: str | Path, classes: Sequence[str]) -> Tensor:
    """Read a table over pairs of classes.

    Args:
        path: CSV (UTF-8) whose header and whose first column are the class names, in any order;
            rows are the true class, columns the answer. The corner cell is free.
        classes: class names, position = class id.

    Returns:
        (K, K) float32 in the order of `classes`.

    Raises:
        UserError: the file is missing or not such a table, or its classes are not `classes`.
    """
    path = Path(path).expanduser()
    check_file(path, "Table")
    cells = csv_rows(read_text(path, "Table", empty=True), f'Table "{path}"')
    if not cells:
        raise UserError(f'Table "{path}" is empty: it needs a header of class names.')
    header, body = cells[0][1:], cells[1:]
    _check_names(header, classes, f'Table "{path}", header')
    _check_names([line[0] for line in body], classes, f'Table "{path}", first column')
    column = {name: position for position, name in enumerate(header)}
    class_id = {name: position for position, name in enumerate(classes)}
    table_KK = torch.empty(len(classes), len(classes))
    for truth, *values in body:
        if len(values) != len(header):
            raise UserError(
                f'Table "{path}", row "{truth}": {len(values)} values for {len(header)} classes.'
            )
        table_KK[class_id[truth]] = torch.tensor(
            [
                _number(values[column[answer]], f'Table "{path}", row "{truth}", "{answer}"')
                for answer in classes
            ]
        )
    return table_KK


def read_hierarchy(path: str | Path, classes: Sequence[str]) -> Tensor:
    """Read superclasses, {superclass: [class, …]}, from YAML or JSON.

    Returns:
        (K,) int64: the superclass number of each class, in the order of `classes`.

    Raises:
        UserError: the file is missing or not such a tree, or a class is unknown, left out or in
            two superclasses.
    """
    path = Path(path).expanduser()
    tree = _parse_tree(path, "Hierarchy")
    if not isinstance(tree, dict) or not all(isinstance(v, list) for v in tree.values()):
        raise UserError(f'Hierarchy "{path}" must map each superclass to a list of classes.')
    superclass: dict[str, str] = {}
    for parent, members in tree.items():
        for member in map(str, members):
            if member in superclass:
                raise UserError(
                    f'Hierarchy "{path}": class "{member}" is in "{superclass[member]}" and in '
                    f'"{parent}": keep one.'
                )
            superclass[member] = str(parent)
    _check_names(list(superclass), classes, f'Hierarchy "{path}"')
    number = {str(parent): position for position, parent in enumerate(tree)}
    return torch.tensor([number[superclass[name]] for name in classes])


def read_credit(path: str | Path, classes: Sequence[str]) -> Tensor:
    """Read one number for each class, {class: number}, from YAML or JSON; 1 for those left out.

    Returns:
        (K,) float32, in the order of `classes`.

    Raises:
        UserError: the file is missing or not such a mapping, or it names an unknown class.
    """
    path = Path(path).expanduser()
    given = _parse_tree(path, "Credit")
    if not isinstance(given, dict):
        raise UserError(
            f'Credit "{path}" must be YAML or JSON that maps classes to numbers, with lines such '
            f'as "{classes[0]}: 0.5"; a class that is left out earns 1.'
        )
    credit_K = torch.ones(len(classes))
    for name, value in given.items():
        if str(name) not in classes:
            raise UserError(f'Credit "{path}": unknown class "{name}". {nearest(name, classes)}')
        where = f'Credit "{path}", "{name}"'
        credit_K[classes.index(str(name))] = _number(str(value), where)
    return credit_K


def _parse_tree(path: Path, what: str) -> Any:
    check_file(path, what)
    text = read_text(path, what, empty=True)
    try:
        if path.suffix.lower() == ".json":
            return parse_json(text, finite=False)
        # BaseLoader leaves every scalar a string: classes may be called "no", "007" or "null".
        return yaml.load(text, Loader=yaml.BaseLoader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f'{what} "{path}" cannot be parsed: {reason}') from error


def _check_names(names: Sequence[str], classes: Sequence[str], where: str) -> None:
    """Raise `UserError` unless `names` are exactly `classes`, in any order."""
    known, seen = set(classes), set[str]()
    for name in names:
        if name not in known:
            raise UserError(f'{where}: unknown class "{name}". {nearest(name, classes)}')
        if name in seen:
            raise UserError(f'{where}: class "{name}" appears twice: keep one.')
        seen.add(name)
    for name in classes:
        if name not in seen:
            raise UserError(f'{where}: class "{name}" is missing: add it.')


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise UserError(f'{where}: "{text}" is not a number.') from error
    if not math.isfinite(value):
        raise UserError(f'{where}: "{text}" is not a finite number.')
    return value
