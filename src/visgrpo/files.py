"""Files that the project writes and reads back: written whole, and checked before they are used.

A file may have been cut off by a kill, a full disk or an editor. Whatever is not what was written
is refused in one line that names the file; whatever cannot be written says why, and leaves the file
as it was before.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import yaml

from visgrpo.errors import UserError

PLAIN = dict[str, Any]
"""The shape of a mapping of which no more is known."""
Mend = str
"""What to do about a file that is damaged."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_SYSTEM = re.compile(r"os error (\d+)")


def read_json(path: Path, shape: Any = PLAIN, mend: Mend = "Restore or remove it.") -> Any:
    """Return what a JSON file holds.

    Args:
        shape: the type it must have, such as a TypedDict; NaN and infinities are in none.

    Raises:
        UserError: it cannot be read, is no JSON, or is of another shape.
    """
    with _reading(path, mend):
        return checked(parse_json(path.read_bytes()), shape)


def read_yaml(path: Path, shape: Any = PLAIN, mend: Mend = "Restore or mend it.") -> Any:
    """Return what a YAML file holds; see `read_json`."""
    with _reading(path, mend):
        return checked(yaml.safe_load(path.read_text(encoding="utf-8")), shape)


def read_lines(
    path: Path,
    shape: Any = PLAIN,
    check: Callable[[Any], None] | None = None,
    *,
    going_on: bool = False,
) -> list[Any]:
    """Return the lines of a file with one JSON object on each.

    Args:
        check: raises ValueError, with the reason, on an object that will not do.
        going_on: the file is still being written: a last line without its end is left out.

    Raises:
        UserError: a line is damaged; it is named by its number.
    """
    with _reading(path, "Mend or remove it."):
        *complete, last = path.read_bytes().split(b"\n")
    if last and not going_on:
        complete.append(last)
    lines = []
    for number, text in enumerate(complete, start=1):
        if text.strip():
            with _reading(f"{path}, line {number}", "Mend or remove that line."):
                lines.append(checked(parse_json(text), shape))
                if check is not None:
                    check(lines[-1])
    return lines


def parse_json(text: bytes | str, *, finite: bool = True) -> Any:
    """Parse JSON. Raises ValueError where it is none.

    Args:
        finite: refuse NaN and infinities, too, which are no JSON but which Python writes.
    """
    strict: dict[str, Any] = {"parse_constant": _refuse_constant, "parse_float": _finite}
    try:
        return json.loads(text, **(strict if finite else {}))
    except RecursionError:
        raise ValueError("nested without end") from None


def checked(value: Any, shape: Any) -> Any:
    """Return a value that has a shape. Raises ValueError with the place where it has not.

    Mappings may have more keys than their shape.
    """
    if shape == PLAIN:  # needs no library
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ValueError("not one object of names and values")
        return value
    from pydantic import ValidationError

    try:
        _validator(shape)(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise ValueError(f"{place}: {reason}" if place else reason) from None
    return value


@lru_cache
def _validator(shape: Any) -> Callable[[Any], Any]:
    from pydantic import TypeAdapter

    return partial(TypeAdapter(shape).validate_python, strict=True)


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file under a temporary name, then rename it: a reader never sees half of it.

    It is on the disk, name and all, when this returns.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with suppress(OSError):  # a full disk has no room for half of it
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    return path


def sync(path: Path) -> None:
    """Bring a file to the disk, or a folder with all that is in it: names and contents."""
    if path.is_dir():
        for inside in path.iterdir():
            sync(inside)
        sync_folder(path)
    else:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, after a rename."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def writing(path: Path, needed: int | None = None) -> Iterator[None]:
    """Say in one line why a file or folder cannot be written, whichever library writes it.

    Args:
        needed: bytes, where they are known.
    """
    try:
        yield
    except Exception as error:
        told = _OF_SYSTEM.search(str(error))  # by libraries in Rust
        number = int(told[1]) if told else getattr(error, "errno", None)
        if number is None and not isinstance(error, OSError):
            raise
        if number in _FULL:
            needs = "" if needed is None else f", and {_size(needed)} are needed"
            raise UserError(
                f"{path} cannot be written: the disk has {_size(_free(path))} left{needs}. "
                "Make room there; what was written before is whole."
            ) from error
        reason = str(error) if number is None else os.strerror(number)
        if dead_link(path):
            reason = f"{dead_link(path)} is a link that leads nowhere"
        raise UserError(f"{path} cannot be written: {reason}.") from error


@contextmanager
def _reading(what: Path | str, mend: Mend) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror or error}.") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{what} is not readable YAML ({reason}). {mend}") from error
    except (ValueError, RecursionError) as error:
        reason = "nested without end" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{what} is damaged ({reason}). {mend}") from error


def dead_link(path: Path) -> Path | None:
    """Return the link on the way to a path that leads nowhere, or to itself; mostly None."""
    above = (path, *path.parents)
    return next((each for each in above if each.is_symlink() and not each.exists()), None)


def _free(path: Path) -> int:
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count:,} bytes"


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value
